//! As much of a Cargo.toml as tidy looks at: tables, and keys with the text of their value.

use std::collections::BTreeMap;

/// A manifest: table name to keys to the text of the value.
#[derive(Debug, Default)]
pub struct Manifest {
    tables: BTreeMap<String, BTreeMap<String, String>>,
}

impl Manifest {
    /// Reads the text of a manifest.
    pub fn parse(text: &str) -> Manifest {
        let mut manifest = Manifest::default();
        let mut table = String::new();
        for line in text.lines() {
            let line = without_comment(line).trim();
            if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
                table = name.trim_matches(['[', ']', ' ']).to_string();
                manifest.tables.entry(table.clone()).or_default();
            } else if let Some((key, value)) = line.split_once('=') {
                manifest.tables.entry(table.clone()).or_default().insert(key.trim().to_string(), value.trim().to_string());
            }
        }
        manifest
    }

    /// The text of a value.
    pub fn get(&self, table: &str, key: &str) -> Option<&str> {
        self.tables.get(table)?.get(key).map(String::as_str)
    }

    /// Whether a key of `[package]` comes from the workspace.
    pub fn inherits(&self, key: &str) -> bool {
        let inline = self.get("package", key).map(|v| v.replace(' ', ""));
        self.get("package", &format!("{key}.workspace")) == Some("true") || inline.as_deref() == Some("{workspace=true}")
    }
}

/// The line up to a `#` that is not inside quotes.
fn without_comment(line: &str) -> &str {
    let mut quoted = false;
    for (i, c) in line.char_indices() {
        match c {
            '"' => quoted = !quoted,
            '#' if !quoted => return &line[..i],
            _ => {}
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_keys_and_inheritance() {
        let manifest = Manifest::parse(
            "[package]\nname = \"a # b\" # a name\nversion.workspace = true\nedition = { workspace = true }\nlicense = \"MIT\"\n\n[lints]\nworkspace = true\n",
        );
        assert_eq!(manifest.get("package", "name"), Some("\"a # b\""));
        assert_eq!(manifest.get("lints", "workspace"), Some("true"));
        assert!(manifest.inherits("version") && manifest.inherits("edition"));
        assert!(!manifest.inherits("license") && !manifest.inherits("rust-version"));
    }
}
