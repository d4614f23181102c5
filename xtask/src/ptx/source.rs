//! Kernel sources: where they are, and what their first lines ask for.

use std::path::{Path, PathBuf};

/// The folders of a crate that hold kernels, each with the folder that holds their PTX.
pub const FOLDERS: [(&str, &str); 2] = [("kernels", "ptx"), ("tests/kernels", "tests/ptx")];

/// What the comment at the head of a kernel file says.
///
/// ```text
/// // archs: sm_80 sm_90a                       compiled once for each
/// // defines: TILE=128                         for every PTX of the file
/// // variants: a=-DBUG=1 b=-DBUG=2,-DN=4       one more PTX for each, named FILE-a, FILE-b
/// // allow-spills: kernel_a kernel_b           kernels that may spill registers
/// // allow-ptxas: C7510                        remarks of the assembler that are expected
/// ```
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Head {
    /// Such as `sm_90a`.
    pub archs: Vec<String>,
    /// `NAME` or `NAME=VALUE`.
    pub defines: Vec<String>,
    /// Suffix, and the options that go with it. Without a suffix: the file as it is.
    pub variants: Vec<(String, Vec<String>)>,
    /// Names of kernels.
    pub allow_spills: Vec<String>,
    /// Such as `C7510`.
    pub allow_ptxas: Vec<String>,
}

impl Head {
    /// Reads the comment lines at the start of a source.
    pub fn parse(source: &str) -> Result<Head, String> {
        let mut head = Head { variants: vec![(String::new(), vec![])], ..Head::default() };
        for (number, line) in source.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() {
                continue;
            }
            let Some(comment) = line.strip_prefix("//") else { break };
            let Some((key, words)) = comment.split_once(':') else { continue };
            let words: Vec<String> = words.split_whitespace().map(str::to_string).collect();
            let wrong = |what: &str| Err(format!("line {}: {what}", number + 1));
            match key.trim() {
                "archs" => {
                    if let Some(bad) = words.iter().find(|w| !is_arch(w)) {
                        return wrong(&format!("'{bad}' is no architecture such as sm_80 or sm_90a"));
                    }
                    head.archs.extend(words);
                }
                "defines" => {
                    if let Some(bad) = words.iter().find(|w| !is_name(w.split('=').next().unwrap_or_default())) {
                        return wrong(&format!("'{bad}' is not NAME or NAME=VALUE"));
                    }
                    head.defines.extend(words);
                }
                "variants" => {
                    for word in words {
                        match variant(&word) {
                            Some(variant) if head.variants.iter().all(|(s, _)| *s != variant.0) => head.variants.push(variant),
                            Some(_) => return wrong(&format!("variant '{word}' has the name of another")),
                            None => return wrong(&format!("'{word}' is not NAME=-DX=1,-DY=2")),
                        }
                    }
                }
                "allow-spills" => head.allow_spills.extend(words),
                "allow-ptxas" => {
                    if let Some(bad) = words.iter().find(|w| !is_remark(w)) {
                        return wrong(&format!("'{bad}' is no remark such as C7510"));
                    }
                    head.allow_ptxas.extend(words);
                }
                near @ ("arch" | "define" | "variant" | "allow-spill" | "allow_spills" | "allow_ptxas") => {
                    return wrong(&format!("'{near}:' means nothing: archs, defines, variants, allow-spills, allow-ptxas do"));
                }
                _ => {}
            }
        }
        match head.archs.is_empty() {
            true => Err("the head names no architecture (// archs: sm_80 sm_90a)".into()),
            false => Ok(head),
        }
    }
}

fn is_name(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') && word.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn is_arch(word: &str) -> bool {
    let digits = word.strip_prefix("sm_").map(|w| w.strip_suffix(['a', 'f']).unwrap_or(w));
    digits.is_some_and(|d| (2..=3).contains(&d.len()) && d.bytes().all(|b| b.is_ascii_digit()))
}

fn is_remark(word: &str) -> bool {
    word.strip_prefix('C').is_some_and(|d| d.len() == 4 && d.bytes().all(|b| b.is_ascii_digit()))
}

fn variant(word: &str) -> Option<(String, Vec<String>)> {
    let (suffix, options) = word.split_once('=')?;
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let options: Vec<String> = options.split(',').map(str::to_string).collect();
    let define = |o: &String| o.strip_prefix("-D").is_some_and(|d| is_name(d.split('=').next().unwrap_or_default()));
    (!suffix.is_empty() && suffix.chars().all(fits) && options.iter().all(define)).then(|| (suffix.to_string(), options))
}

/// A call of the compiler: one source, one variant, one architecture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// The source, relative to the root of the workspace.
    pub source: PathBuf,
    /// The PTX, relative to the root of the workspace.
    pub ptx: PathBuf,
    /// Such as `sm_90a`.
    pub arch: String,
    /// `-D` options.
    pub options: Vec<String>,
    /// What the head allows.
    pub head: Head,
}

/// What a source at `path` (relative to the root) is compiled to. `folder` takes the PTX.
pub fn jobs(path: &Path, folder: &Path, text: &str) -> Result<Vec<Job>, String> {
    let head = Head::parse(text).map_err(|why| format!("{}: {why}", path.display()))?;
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let mut jobs = vec![];
    for (suffix, options) in &head.variants {
        let dash = if suffix.is_empty() { "" } else { "-" };
        for arch in &head.archs {
            let defines = head.defines.iter().map(|d| format!("-D{d}"));
            jobs.push(Job {
                source: path.to_path_buf(),
                ptx: folder.join(format!("{stem}{dash}{suffix}.{arch}.ptx")),
                arch: arch.clone(),
                options: defines.chain(options.iter().cloned()).collect(),
                head: head.clone(),
            });
        }
    }
    Ok(jobs)
}

/// Whether a file has a name that only this task gives: `NAME.sm_90a.ptx`.
pub fn is_made(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.strip_suffix(".ptx").and_then(|n| n.rsplit_once('.')).is_some_and(|(_, arch)| is_arch(arch))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads() {
        let text = "// What it does: nothing.\n// archs: sm_80 sm_90a\n\n//defines: A B=2\n// variants: x=-DBUG=1 y=-DBUG=2,-DN\n\
                    // allow-spills: k\n// allow-ptxas: C7510\n#include <a>\n// archs: sm_100\n";
        let head = Head::parse(text).unwrap();
        assert_eq!((head.archs.join(" "), head.defines.join(" ")), ("sm_80 sm_90a".into(), "A B=2".into()));
        let names: Vec<&str> = head.variants.iter().map(|(s, _)| s.as_str()).collect();
        assert_eq!((names, &head.variants[2].1), (vec!["", "x", "y"], &vec!["-DBUG=2".to_string(), "-DN".into()]));
        assert_eq!((head.allow_spills.join(" "), head.allow_ptxas.join(" ")), ("k".into(), "C7510".into()));
    }

    #[test]
    fn wrong_heads_name_the_line() {
        for (bad, word) in [
            ("", "architecture"),
            ("#include <a>\n// archs: sm_80\n", "architecture"),
            ("// arch: sm_80\n", "line 1"),
            ("// archs: sm_80\n// archs: compute_80\n", "line 2"),
            ("// archs: sm_8x\n", "sm_8x"),
            ("// archs: sm_80\n// defines: 1A\n", "1A"),
            ("// archs: sm_80\n// variants: a\n", "'a'"),
            ("// archs: sm_80\n// variants: a=-O1\n", "-O1"),
            ("// archs: sm_80\n// variants: a=-DX a=-DY\n", "another"),
            ("// archs: sm_80\n// allow-ptxas: 7510\n", "7510"),
        ] {
            let why = Head::parse(bad).unwrap_err();
            assert!(why.contains(word), "{bad:?}: {why}");
        }
    }

    #[test]
    fn one_job_for_each_variant_and_architecture() {
        let text = "// archs: sm_80 sm_90a\n// defines: A\n// variants: x=-DB\n";
        let jobs = jobs(Path::new("c/kernels/k.cu"), Path::new("c/ptx"), text).unwrap();
        let names: Vec<String> = jobs.iter().map(|j| j.ptx.display().to_string()).collect();
        assert_eq!(names, ["c/ptx/k.sm_80.ptx", "c/ptx/k.sm_90a.ptx", "c/ptx/k-x.sm_80.ptx", "c/ptx/k-x.sm_90a.ptx"]);
        assert_eq!((jobs[0].options.join(" "), jobs[3].options.join(" ")), ("-DA".into(), "-DA -DB".into()));
        assert!(jobs.iter().all(|j| is_made(&j.ptx)));
        assert!(!is_made(Path::new("ptx/by_hand.ptx")) && !is_made(Path::new("ptx/a.sm_x.ptx")));
    }
}
