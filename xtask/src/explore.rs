//! `cargo xtask explore`: the tests that run kernels on the emulator, under many more schedules than a test run has time for.

use serde_json::Value;
use xtask::args::{Failure, Parsed};
use xtask::workspace::{self, cargo, list, relative, text};

/// How many schedules a test tries, as the tests read it.
const SEEDS: &str = "V3_EMU_SEEDS";

/// Runs the tests of the crates that use the emulator, or of those named.
pub fn run(args: &[String]) -> Result<(), Failure> {
    let parsed = Parsed::new(args, &["--seeds"], &[])?;
    let seeds = parsed.count("--seeds", 200)?;
    let metadata = workspace::members_metadata()?;
    let users = users(&metadata);
    let chosen: Vec<&str> = match parsed.words.is_empty() {
        true => users.iter().map(|(name, _)| name.as_str()).collect(),
        false => parsed.words.iter().map(|word| find(&users, word)).collect::<Result<_, _>>()?,
    };
    println!("explore: {} with {seeds} seeds", chosen.join(", "));
    let mut command = cargo();
    command.arg("test").env(SEEDS, seeds.to_string());
    for name in chosen {
        command.args(["--package", name]);
    }
    let status = command.status().map_err(|e| Failure::task(format!("cannot start cargo: {e}")))?;
    match status.success() {
        true => Ok(()),
        false => Err(Failure::task("a schedule was found that fails; its seed is in the report above".into())),
    }
}

/// The emulator, and the members whose tests stand on it: name and folder.
fn users(metadata: &Value) -> Vec<(String, String)> {
    let on_it = |package: &&Value| {
        let depends = |d: &Value| ["ptx-emu", "v3-gpu"].contains(&text(d, "name"));
        text(package, "name") == "ptx-emu" || list(package, "dependencies").iter().any(depends)
    };
    let users = workspace::packages(metadata).filter(on_it);
    users.map(|p| (text(p, "name").to_string(), relative(&workspace::directory(p)))).collect()
}

fn find<'a>(users: &'a [(String, String)], word: &str) -> Result<&'a str, Failure> {
    let found = users.iter().find(|(name, folder)| name == word || folder == word.trim_end_matches('/'));
    found.map(|(name, _)| name.as_str()).ok_or_else(|| {
        let names: Vec<&str> = users.iter().map(|(name, _)| name.as_str()).collect();
        Failure::usage(format!("'{word}' runs nothing on the emulator: {} do", names.join(", ")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn crates_that_use_the_emulator() {
        let package = |name: &str, on: &[&str]| {
            let dependencies: Vec<Value> = on.iter().map(|d| json!({"name": d})).collect();
            json!({"id": name, "name": name, "manifest_path": format!("/x/{name}/Cargo.toml"), "dependencies": dependencies})
        };
        let metadata = json!({
            "workspace_members": ["ptx-emu", "v3-gpu", "mtp", "dualpipe"],
            "packages": [package("ptx-emu", &[]), package("v3-gpu", &["ptx-emu"]), package("mtp", &["v3-gpu"]), package("dualpipe", &["half"])],
        });
        let users = users(&metadata);
        let names: Vec<&str> = users.iter().map(|(n, _)| n.as_str()).collect();
        assert_eq!(names, ["ptx-emu", "v3-gpu", "mtp"]);
        assert_eq!(find(&users, "mtp").unwrap(), "mtp");
        assert_eq!(find(&users, "dualpipe").unwrap_err().status, 2);
    }
}
