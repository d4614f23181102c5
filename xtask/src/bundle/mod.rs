//! `cargo xtask gpu-bundle`: one folder with everything that a machine with a GPU has to run.
//!
//! Of every crate with a feature `cuda`: its integration tests, or those that its manifest names, and the examples that its
//! manifest names, which run first:
//!
//! ```toml
//! [package.metadata.gpu-bundle]
//! tests = ["properties"]
//! examples = ["probe"]
//! ```
//!
//! What a program reads has to be inside it (`include_bytes!`), since nothing of the workspace goes along.

use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use xtask::args::{Failure, Parsed};
use xtask::workspace::{self, TempFolder, cargo, directory, io, list, text};

/// What the folder may weigh, so that it can be sent by any means.
const MOST_BYTES: u64 = 60_000_000;

/// Starts all programs and keeps what they say.
const SCRIPT: &str = include_str!("run.sh");

const README: &str = "\
Programs that test the GPU kernels. On a machine with Linux (x86-64) and an NVIDIA driver, and nothing else:

    ./run.sh

It writes one file for each program to results/, headed by GPU, driver and date, and results/summary.txt. ptx/ holds the
kernels as text; the programs carry their own copy.
";

/// Builds, packs, weighs.
pub fn run(args: &[String]) -> Result<(), Failure> {
    let parsed = Parsed::new(args, &["--out"], &[])?;
    parsed.at_most(0)?;
    let metadata = workspace::members_metadata()?;
    let out = match parsed.value("--out") {
        Some(path) => std::path::absolute(path).map_err(io(Path::new(path)))?,
        None => workspace::target_directory(&metadata).join("gpu-bundle"),
    };
    // A folder that something else made is not ours to remove.
    if out.exists() && !out.join("run.sh").is_file() {
        return Err(Failure::usage(format!("{} is there and is no bundle", out.display())));
    }
    let crates = crates(&metadata);
    let programs = build(&crates)?;
    if programs.is_empty() {
        return Err(Failure::task("no crate has a test or an example to pack".into()));
    }
    let mut beside = out.clone().into_os_string();
    beside.push(".new");
    let new = TempFolder::at(beside.into())?;
    pack(&new.path, &crates, &programs)?;
    let bytes = weigh(&new.path).map_err(io(&new.path))?;
    if bytes > MOST_BYTES {
        return Err(Failure::task(format!("the bundle weighs {bytes} bytes, at most {MOST_BYTES} are allowed")));
    }
    workspace::remove(&out)?;
    std::fs::rename(&new.path, &out).map_err(io(&out))?;
    println!("gpu-bundle: {} programs, {:.1} MB: {}", programs.len(), bytes as f64 / 1e6, workspace::relative(&out));
    Ok(())
}

/// A crate with code for the GPU.
#[derive(Debug, PartialEq, Eq)]
struct Member {
    name: String,
    folder: PathBuf,
    tests: Vec<String>,
    examples: Vec<String>,
}

/// The members with a feature `cuda`, and what of them is packed.
fn crates(metadata: &Value) -> Vec<Member> {
    let with_cuda = workspace::packages(metadata).filter(|p| !p["features"]["cuda"].is_null());
    with_cuda
        .map(|package| {
            let wanted = &package["metadata"]["gpu-bundle"];
            let named = |key: &str| list(wanted, key).iter().filter_map(Value::as_str).map(str::to_string).collect();
            let is_test = |target: &&Value| list(target, "kind").iter().any(|k| k == "test");
            let all = || list(package, "targets").iter().filter(is_test).map(|t| text(t, "name").to_string()).collect();
            Member {
                name: text(package, "name").to_string(),
                folder: directory(package),
                tests: if wanted["tests"].is_null() { all() } else { named("tests") },
                examples: named("examples"),
            }
        })
        .collect()
}

/// A program that was built.
struct Program {
    /// Name in the bundle.
    name: String,
    /// `tests` or `programs`.
    folder: &'static str,
    file: PathBuf,
}

/// Builds the tests and the examples of each crate. One crate at a time: two of them may have tests of one name.
fn build(crates: &[Member]) -> Result<Vec<Program>, Failure> {
    let mut programs = vec![];
    for member in crates {
        let sets = [("tests", "--test", &member.tests), ("programs", "--example", &member.examples)];
        for (folder, option, names) in sets.into_iter().filter(|(_, _, names)| !names.is_empty()) {
            let command: &[&str] = if option == "--test" { &["test", "--no-run"] } else { &["build"] };
            println!("gpu-bundle: building {folder} of {}: {}", member.name, names.join(", "));
            let output = cargo()
                .args(command)
                .args(["--profile", "bundle", "--features", "cuda", "--message-format", "json-render-diagnostics", "--quiet"])
                .args(["--package", &member.name])
                .args(names.iter().flat_map(|name| [option, name]))
                .stderr(std::process::Stdio::inherit())
                .output()
                .map_err(|e| Failure::task(format!("cannot start cargo: {e}")))?;
            if !output.status.success() {
                return Err(Failure::task(format!("{} does not build with the feature cuda", member.name)));
            }
            let built = executables(&String::from_utf8_lossy(&output.stdout));
            for name in names {
                let file = built.iter().find(|(n, _)| n == name).map(|(_, file)| file.clone());
                let file = file.ok_or_else(|| Failure::task(format!("{}: cargo built no {name}", member.name)))?;
                let short = if folder == "tests" { format!("{}-{name}", member.name) } else { name.clone() };
                programs.push(Program { name: short, folder, file });
            }
        }
    }
    let names: BTreeSet<&str> = programs.iter().map(|p| p.name.as_str()).collect();
    match names.len() == programs.len() {
        true => Ok(programs),
        false => Err(Failure::task("two programs of the bundle have one name".into())),
    }
}

/// Name and file of every executable in cargo's messages.
fn executables(messages: &str) -> Vec<(String, PathBuf)> {
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let built = messages.filter(|m| m["reason"] == "compiler-artifact");
    built.filter_map(|m| Some((text(&m["target"], "name").to_string(), PathBuf::from(m["executable"].as_str()?)))).collect()
}

/// Fills the folder.
fn pack(folder: &Path, crates: &[Member], programs: &[Program]) -> Result<(), Failure> {
    for program in programs {
        copy(&program.file, &folder.join(program.folder).join(&program.name))?;
    }
    for member in crates {
        for ptx in ["ptx", "tests/ptx"] {
            let entries = std::fs::read_dir(member.folder.join(ptx)).into_iter().flatten().flatten();
            for entry in entries.filter(|e| e.path().extension().is_some_and(|x| x == "ptx")) {
                copy(&entry.path(), &folder.join("ptx").join(&member.name).join(entry.file_name()))?;
            }
        }
    }
    if let Some(program) = programs.first() {
        for library in libraries(&program.file)? {
            copy(&library, &folder.join("lib").join(library.file_name().unwrap_or_default()))?;
        }
    }
    let script = folder.join("run.sh");
    for (name, content) in [("run.sh", SCRIPT), ("README.txt", README), ("revision.txt", &revision())] {
        let path = folder.join(name);
        std::fs::write(&path, content).map_err(io(&path))?;
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).map_err(io(&script))?;
    }
    Ok(())
}

/// Copies a file, links followed, folders made.
fn copy(from: &Path, to: &Path) -> Result<(), Failure> {
    let folder = to.parent().unwrap_or(to);
    std::fs::create_dir_all(folder).map_err(io(folder))?;
    std::fs::copy(from, to).map_err(io(from))?;
    Ok(())
}

/// The C library that a program was linked with, its loader, and the parts of it that a driver wants.
fn libraries(program: &Path) -> Result<Vec<PathBuf>, Failure> {
    let output = Command::new("ldd").arg(program).output().map_err(|e| Failure::task(format!("ldd: {e}")))?;
    let mut found = linked(&String::from_utf8_lossy(&output.stdout));
    let beside = found.iter().find(|p| p.ends_with("libc.so.6")).and_then(|p| p.parent()).map(Path::to_path_buf);
    let beside = beside.ok_or_else(|| Failure::task(format!("ldd names no C library for {}", program.display())))?;
    for name in ["libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1"] {
        let path = beside.join(name);
        if path.is_file() && !found.contains(&path) {
            found.push(path);
        }
    }
    Ok(found)
}

/// The files in the output of ldd.
fn linked(said: &str) -> Vec<PathBuf> {
    let words = said.lines().filter_map(|l| l.split_whitespace().find(|w| w.starts_with('/')));
    words.map(PathBuf::from).collect()
}

/// The commit that the bundle was made from.
fn revision() -> String {
    let git = |args: &[&str]| {
        let output = Command::new("git").current_dir(workspace::root()).args(args).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_string())
    };
    match (git(&["rev-parse", "HEAD"]), git(&["status", "--porcelain"])) {
        (Some(commit), Some(changes)) => format!("{commit}{}\n", if changes.is_empty() { "" } else { " with changes" }),
        _ => "unknown\n".into(),
    }
}

/// Bytes of all files below a folder.
fn weigh(folder: &Path) -> std::io::Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        bytes += if entry.file_type()?.is_dir() { weigh(&entry.path())? } else { entry.metadata()?.len() };
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn crates_with_the_feature_and_what_they_name() {
        let package = |name: &str, cuda: bool, wanted: Value| {
            let features = if cuda { json!({"cuda": []}) } else { json!({}) };
            json!({"id": name, "name": name, "manifest_path": format!("/x/{name}/Cargo.toml"), "features": features, "metadata": wanted,
                   "targets": [{"name": "lib", "kind": ["lib"]}, {"name": "properties", "kind": ["test"]}, {"name": "one", "kind": ["example"]}]})
        };
        let metadata = json!({
            "workspace_members": ["a", "b", "c"],
            "packages": [
                package("a", true, Value::Null),
                package("b", true, json!({"gpu-bundle": {"tests": [], "examples": ["one"]}})),
                package("c", false, Value::Null),
            ],
        });
        let crates = crates(&metadata);
        let packed: Vec<(&str, &[String], &[String])> =
            crates.iter().map(|c| (c.name.as_str(), &c.tests[..], &c.examples[..])).collect();
        assert_eq!(packed, [("a", &["properties".to_string()][..], &[][..]), ("b", &[][..], &["one".to_string()][..])]);
    }

    #[test]
    fn executables_are_read_from_messages() {
        let messages = "{\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"x\"},\"executable\":null}\nno json\n\
                        {\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"properties\"},\"executable\":\"/t/properties-1\"}\n\
                        {\"reason\":\"build-finished\"}\n";
        assert_eq!(executables(messages), [("properties".to_string(), PathBuf::from("/t/properties-1"))]);
    }

    #[test]
    fn libraries_are_read_from_ldd() {
        let said = "\tlinux-vdso.so.1 (0x1)\n\tlibc.so.6 => /lib/x/libc.so.6 (0x2)\n\t/lib64/ld-linux-x86-64.so.2 (0x3)\n";
        assert_eq!(linked(said), [PathBuf::from("/lib/x/libc.so.6"), PathBuf::from("/lib64/ld-linux-x86-64.so.2")]);
    }

    /// The script, in a bundle whose programs are scripts too.
    #[cfg(target_os = "linux")]
    #[test]
    fn the_script_keeps_what_programs_say_and_fails_when_one_does() {
        let folder = TempFolder::new("bundle-test").unwrap();
        // Written by a shell: a file that this process had open for writing could not be started while another test starts
        // a program.
        let programs = "mkdir -p programs tests && echo abc >revision.txt\n\
                        printf '#!/bin/sh\\necho \"$V3_GPU_DATE\" >\"$V3_RESULTS/probe.json\"\\necho probing\\n' >programs/probe\n\
                        printf '#!/bin/sh\\necho \"$@\"\\nexit 3\\n' >tests/a-properties\n\
                        printf '#!/bin/sh\\n' >tests/b-properties\nchmod +x programs/* tests/*\n\
                        printf '#!/bin/sh\\n' >ldd && chmod +x ldd\n";
        let shell = |script: &str| {
            let path = format!("{}:{}", folder.path.display(), std::env::var("PATH").unwrap_or_default());
            Command::new("sh").args(["-c", script]).current_dir(&folder.path).env("PATH", path).output().unwrap()
        };
        assert!(shell(programs).status.success());
        std::fs::write(folder.path.join("run.sh"), SCRIPT).unwrap();
        let output = shell("sh run.sh");
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let read = |name: &str| std::fs::read_to_string(folder.path.join("results").join(name)).unwrap();
        assert!(read("summary.txt").contains("\nprobe 0\na-properties 3\nb-properties 0\n"), "{}", read("summary.txt"));
        let test = read("a-properties.txt");
        assert!(test.starts_with("# program: a-properties\n# gpu: ") && test.contains("\n# driver: "), "{test}");
        assert!(test.contains("# revision: abc\n--test-threads=1 --nocapture\n# status: 3\n"), "{test}");
        assert!(read("probe.txt").contains("\nprobing\n") && read("probe.json").starts_with("20"));
        // Only what is asked for.
        std::fs::remove_dir_all(folder.path.join("results")).unwrap();
        assert!(shell("sh run.sh b-prop").status.success());
        assert!(folder.path.join("results/b-properties.txt").is_file() && !folder.path.join("results/probe.txt").exists());
    }
}
