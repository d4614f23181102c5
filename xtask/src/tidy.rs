//! `cargo xtask tidy`: the rules of the workspace that the compiler does not check.

use crate::manifest::Manifest;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use xtask::args::{Failure, Parsed};
use xtask::workspace::{self, directory, list, packages, text};

/// The pieces: crates that another project can depend on alone.
pub const PIECES: [&str; 6] = ["fp8-gemm", "mla-kernels", "moe-dispatch", "dualpipe", "mtp", "ema-offload"];

/// Crates that another project never depends on.
const UNPUBLISHED: [&str; 3] = ["v3-model", "v3-testkit", "xtask"];

/// A file longer than this is cut in two.
const MOST_LINES: usize = 899;

/// PTX of one folder, in bytes: a crate holds a closed list of kernels.
const MOST_PTX: u64 = 3_000_000;

/// A file that says this in one of its first lines is made by a program, which is what there is to read.
const GENERATED: &str = concat!("@gene", "rated");

/// Crates that want CUDA, MPI, libclang or Python when they are built or linked. A trailing `*` stands for any ending.
const UNWANTED: [&str; 17] = [
    "cust*", "cuda*", "cublas*", "nvml*", "nvptx*", "nccl*", "hip*", "mpi", "mpi-*", "bindgen*", "clang", "clang-*", "pyo3*",
    "python*", "cpython", "numpy", "tch",
];

/// Native libraries that a crate may declare to link and that a machine with only Rust lacks.
const UNWANTED_LINKS: [&str; 7] = ["cuda", "cudart", "mpi", "nccl", "clang", "python", "python3"];

/// Where a member lives, which decides what it may depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layer {
    Piece,
    Support,
    Model,
    Xtask,
}

struct Member {
    name: String,
    directory: PathBuf,
    layer: Layer,
    published: bool,
    /// Name, and whether it is a dev-dependency.
    dependencies: Vec<(String, bool)>,
    /// Names of the dependencies that are optional.
    optional: Vec<String>,
    /// Each feature with what it turns on.
    features: BTreeMap<String, Vec<String>>,
}

/// Runs every check and reports all that is wrong.
pub fn run(args: &[String]) -> Result<(), Failure> {
    Parsed::new(args, &[], &[])?.at_most(0)?;
    let root = workspace::root();
    let metadata = workspace::metadata()?;
    let members = members(&metadata, &root).map_err(Failure::task)?;
    let mut problems = vec![];
    check_layers(&members, &mut problems);
    check_gpu(&members, &mut problems);
    check_default_build(&metadata, &mut problems);
    for member in &members {
        let text = std::fs::read_to_string(member.directory.join("Cargo.toml"))
            .map_err(|e| Failure::task(format!("{}/Cargo.toml: {e}", member.name)))?;
        check_manifest(member, &Manifest::parse(&text), &mut problems);
        check_ptx(member, &mut problems);
        if member.layer == Layer::Piece {
            check_shape(member, &mut problems);
        }
    }
    let files = sources(&root).map_err(|e| Failure::task(format!("cannot list the sources: {e}")))?;
    for file in &files {
        let name = file.strip_prefix(&root).unwrap_or(file).display().to_string();
        match std::fs::read_to_string(file) {
            Ok(text) => check_text(&name, &text, &mut problems),
            Err(e) => problems.push(format!("{name}: {e}")),
        }
    }
    if problems.is_empty() {
        println!("tidy: {} crates, {} files, nothing to complain about", members.len(), files.len());
        return Ok(());
    }
    problems.iter().for_each(|p| eprintln!("{p}"));
    Err(Failure::task(format!("{} problems", problems.len())))
}

fn members(metadata: &Value, root: &Path) -> Result<Vec<Member>, String> {
    packages(metadata)
        .map(|package| {
            let directory = directory(package);
            let relative = directory.strip_prefix(root).unwrap_or(&directory).to_path_buf();
            let name = text(package, "name").to_string();
            let layer = match relative.to_str().unwrap_or_default() {
                piece if PIECES.contains(&piece) => Layer::Piece,
                "model" => Layer::Model,
                "xtask" => Layer::Xtask,
                path if path.starts_with("support/") => Layer::Support,
                other => return Err(format!("{name}: '{other}' is no place for a crate: pieces are {}", PIECES.join(", "))),
            };
            let dependencies = list(package, "dependencies");
            Ok(Member {
                name,
                directory,
                layer,
                // `publish = false` is an empty list of registries.
                published: package["publish"].is_null(),
                dependencies: dependencies.iter().map(|d| (text(d, "name").to_string(), text(d, "kind") == "dev")).collect(),
                optional: names(dependencies.iter().filter(|d| d["optional"] == true).map(|d| &d["name"])),
                features: package["features"].as_object().map_or_else(BTreeMap::new, |features| {
                    features.iter().map(|(name, on)| (name.clone(), names(on.as_array().into_iter().flatten()))).collect()
                }),
            })
        })
        .collect()
}

fn names<'a>(values: impl Iterator<Item = &'a Value>) -> Vec<String> {
    values.filter_map(Value::as_str).map(str::to_string).collect()
}

/// A piece and a support crate depend on support crates only; testkit is for tests.
fn check_layers(members: &[Member], problems: &mut Vec<String>) {
    let layers: BTreeMap<&str, Layer> = members.iter().map(|m| (m.name.as_str(), m.layer)).collect();
    for piece in PIECES.iter().filter(|p| !layers.contains_key(*p)) {
        problems.push(format!("{piece}: the piece is missing from the workspace"));
    }
    for member in members {
        for (dependency, dev) in &member.dependencies {
            let Some(&layer) = layers.get(dependency.as_str()) else { continue };
            if *dev && *dependency == member.name {
                // For its tests a crate may depend on itself, with more features.
                continue;
            }
            let lower = matches!(member.layer, Layer::Piece | Layer::Support);
            if lower && layer != Layer::Support {
                problems.push(format!("{}: depends on {dependency}, but may depend on support crates only", member.name));
            }
            if layer == Layer::Xtask || (layer == Layer::Model && member.layer != Layer::Xtask) {
                problems.push(format!("{}: depends on {dependency}, which nothing may depend on", member.name));
            }
            if dependency == "v3-testkit" && !dev {
                problems.push(format!("{}: v3-testkit is a dev-dependency only", member.name));
            }
        }
    }
    for member in members {
        let expected = !UNPUBLISHED.contains(&member.name.as_str());
        if member.published != expected {
            let what = if expected { "has publish = false, but is for others to use" } else { "lacks publish = false" };
            problems.push(format!("{}: {what}", member.name));
        }
    }
}

/// The emulator is a library by itself; the driver is reached through one crate, behind one feature.
fn check_gpu(members: &[Member], problems: &mut Vec<String>) {
    let workspace: Vec<&str> = members.iter().map(|m| m.name.as_str()).collect();
    for member in members {
        for (dependency, dev) in &member.dependencies {
            let testkit = *dev && dependency == "v3-testkit";
            if member.name == "ptx-emu" && workspace.contains(&dependency.as_str()) && !testkit {
                problems.push(format!("ptx-emu: depends on {dependency}, but stands alone"));
            }
            if !matches("cust*", dependency) {
                continue;
            }
            if member.name != "v3-gpu" {
                problems.push(format!("{}: depends on {dependency}, which is reached through v3-gpu", member.name));
            } else if !member.optional.contains(dependency) {
                problems.push(format!("v3-gpu: {dependency} is not optional"));
            }
            let switch = format!("dep:{dependency}");
            let weak = format!("{dependency}/");
            for (feature, on) in &member.features {
                if feature != "cuda" && on.iter().any(|o| *o == switch || o == dependency || o.starts_with(&weak)) {
                    problems.push(format!("{}: {dependency} belongs to the feature cuda, and '{feature}' has it", member.name));
                }
            }
        }
    }
}

/// The PTX of a folder stays small enough to be checked in and packed.
fn check_ptx(member: &Member, problems: &mut Vec<String>) {
    for folder in ["ptx", "tests/ptx"] {
        let entries = std::fs::read_dir(member.directory.join(folder)).into_iter().flatten().flatten();
        let bytes: u64 = entries.filter_map(|e| e.metadata().ok()).map(|m| m.len()).sum();
        if bytes > MOST_PTX {
            problems.push(format!("{}: {folder} holds {bytes} bytes, at most {MOST_PTX} are allowed", member.name));
        }
    }
}

/// Nothing in a build with default features, tests included, wants CUDA, MPI, libclang or Python.
fn check_default_build(metadata: &Value, problems: &mut Vec<String>) {
    let packages: BTreeMap<&str, &Value> = list(metadata, "packages").iter().map(|p| (text(p, "id"), p)).collect();
    let nodes: BTreeMap<&str, &Value> = list(&metadata["resolve"], "nodes").iter().map(|n| (text(n, "id"), n)).collect();
    // The nodes of the graph are what default features turn on; walk them from the members, remembering the way.
    let mut queue: Vec<&str> = list(metadata, "workspace_members").iter().filter_map(Value::as_str).collect();
    let mut from: BTreeMap<&str, Option<&str>> = queue.iter().map(|&id| (id, None)).collect();
    while let Some(id) = queue.pop() {
        let Some(package) = packages.get(id) else { continue };
        let name = text(package, "name");
        let links = text(package, "links");
        if UNWANTED.iter().any(|pattern| matches(pattern, name)) || UNWANTED_LINKS.contains(&links) {
            let mut way = vec![name];
            let mut at = id;
            while let Some(Some(before)) = from.get(at) {
                way.push(packages.get(before).map_or("?", |p| text(p, "name")));
                at = before;
            }
            way.reverse();
            problems.push(format!("{}: a default build may not need it", way.join(" -> ")));
        }
        for dependency in nodes.get(id).map_or(&[][..], |n| list(n, "deps")) {
            let next = text(dependency, "pkg");
            if !from.contains_key(next) {
                from.insert(next, Some(id));
                queue.push(next);
            }
        }
    }
}

fn matches(pattern: &str, name: &str) -> bool {
    pattern.strip_suffix('*').map_or(name == pattern, |start| name.starts_with(start))
}

/// What belongs to all crates is said once, in the workspace's manifest.
fn check_manifest(member: &Member, manifest: &Manifest, problems: &mut Vec<String>) {
    for key in ["version", "edition", "rust-version", "license"] {
        if !manifest.inherits(key) {
            problems.push(format!("{}: '{key}' does not come from the workspace ({key}.workspace = true)", member.name));
        }
    }
    if manifest.get("lints", "workspace") != Some("true") {
        problems.push(format!("{}: the workspace's lints are not inherited ([lints] workspace = true)", member.name));
    }
    if manifest.get("package", "description").is_none() {
        problems.push(format!("{}: has no description", member.name));
    }
}

/// Every piece has one shape.
fn check_shape(member: &Member, problems: &mut Vec<String>) {
    for file in ["README.md", "src/lib.rs", "src/error.rs"] {
        if !member.directory.join(file).is_file() {
            problems.push(format!("{}: {file} is missing", member.name));
        }
    }
    let reference = ["src/reference.rs", "src/reference/mod.rs"];
    if !reference.iter().any(|f| member.directory.join(f).is_file()) {
        problems.push(format!("{}: src/reference.rs is missing", member.name));
    }
    for folder in ["tests", "benches", "examples"] {
        let entries = std::fs::read_dir(member.directory.join(folder)).into_iter().flatten().flatten();
        if !entries.into_iter().any(|e| e.path().extension().is_some_and(|x| x == "rs")) {
            problems.push(format!("{}: {folder}/ holds no .rs file", member.name));
        }
    }
}

/// Lengths and leftovers. The words are put together here so that this file may hold them.
fn check_text(name: &str, text: &str, problems: &mut Vec<String>) {
    let rust = name.ends_with(".rs");
    let lines = text.lines().count();
    let code = rust || [".cu", ".cuh", ".c", ".h"].iter().any(|end| name.ends_with(end));
    let generated = text.lines().take(3).any(|l| l.contains(GENERATED));
    if code && !generated && lines > MOST_LINES {
        problems.push(format!("{name}: {lines} lines, at most {MOST_LINES} are allowed"));
    }
    let leftovers = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X:")];
    let macros = [concat!("to", "do!("), concat!("unimple", "mented!("), concat!("db", "g!("), concat!("#[ig", "nore")];
    for (number, line) in text.lines().enumerate() {
        for word in leftovers.iter().chain(if rust { &macros[..] } else { &[] }) {
            if line.contains(word) {
                problems.push(format!("{name}:{}: '{word}' is left over", number + 1));
            }
        }
    }
    if name.contains("/src/reference") {
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if code.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == concat!("uns", "afe")) {
                problems.push(format!("{name}:{}: a reference is written in safe Rust", number + 1));
            }
        }
    }
}

/// The source and text files of the workspace, in order.
fn sources(root: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = vec![];
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            let (path, name) = (entry.path(), entry.file_name());
            let name = name.to_string_lossy();
            let kind = entry.file_type()?;
            // Built output, version control, runs and the data of tests are not sources.
            if kind.is_dir() && !["target", ".git", "runs", "data"].contains(&name.as_ref()) {
                folders.push(path);
            } else if kind.is_file()
                && [".rs", ".toml", ".md", ".sh", ".py", ".cu", ".cuh", ".c", ".h"].iter().any(|end| name.ends_with(end))
            {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn member(name: &str, layer: Layer, dependencies: &[(&str, bool)]) -> Member {
        Member {
            name: name.into(),
            directory: PathBuf::new(),
            layer,
            published: !UNPUBLISHED.contains(&name),
            dependencies: dependencies.iter().map(|(n, d)| (n.to_string(), *d)).collect(),
            optional: vec![],
            features: BTreeMap::new(),
        }
    }

    fn layers(extra: Vec<Member>) -> Vec<String> {
        let mut members: Vec<Member> = PIECES.iter().map(|p| member(p, Layer::Piece, &[("v3-numerics", false)])).collect();
        members.push(member("v3-numerics", Layer::Support, &[("v3-testkit", true), ("half", false)]));
        members.push(member("v3-testkit", Layer::Support, &[]));
        members.push(member("v3-model", Layer::Model, &[("mtp", false), ("fp8-gemm", false)]));
        for m in extra {
            members.retain(|old| old.name != m.name);
            members.push(m);
        }
        let mut problems = vec![];
        check_layers(&members, &mut problems);
        problems
    }

    #[test]
    fn layers_are_kept_apart() {
        assert_eq!(layers(vec![]), [""; 0]);
        assert_eq!(layers(vec![member("mtp", Layer::Piece, &[("fp8-gemm", false)])]).len(), 1);
        assert_eq!(layers(vec![member("mtp", Layer::Piece, &[("fp8-gemm", true)])]).len(), 1);
        assert!(!layers(vec![member("mtp", Layer::Piece, &[("v3-model", false)])]).is_empty());
        assert_eq!(layers(vec![member("mtp", Layer::Piece, &[("v3-testkit", false)])]).len(), 1);
        assert_eq!(layers(vec![member("v3-numerics", Layer::Support, &[("mtp", false)])]).len(), 1);
        assert_eq!(layers(vec![Member { published: true, ..member("v3-testkit", Layer::Support, &[]) }]).len(), 1);
    }

    #[test]
    fn the_driver_is_behind_one_feature_of_one_crate() {
        let gpu = |optional: &[&str], features: &[(&str, &str)]| Member {
            optional: optional.iter().map(|o| o.to_string()).collect(),
            features: features.iter().map(|(f, on)| (f.to_string(), vec![on.to_string()])).collect(),
            ..member("v3-gpu", Layer::Support, &[("cust", false), ("ptx-emu", false)])
        };
        let problems = |members: Vec<Member>| {
            let mut problems = vec![];
            check_gpu(&members, &mut problems);
            problems
        };
        let emulator = || member("ptx-emu", Layer::Support, &[("half", false), ("v3-testkit", true)]);
        let good = gpu(&["cust"], &[("cuda", "dep:cust"), ("default", "emulator")]);
        assert_eq!(problems(vec![emulator(), good, member("v3-testkit", Layer::Support, &[])]), [""; 0]);
        assert_eq!(problems(vec![gpu(&[], &[("cuda", "dep:cust")])]).len(), 1);
        assert_eq!(problems(vec![gpu(&["cust"], &[("cuda", "dep:cust"), ("other", "dep:cust")])]).len(), 1);
        assert_eq!(problems(vec![gpu(&["cust"], &[("default", "cust/bytemuck")])]).len(), 1);
        assert_eq!(problems(vec![member("fp8-gemm", Layer::Piece, &[("cust_raw", false)])]).len(), 1);
        let leaning = member("ptx-emu", Layer::Support, &[("v3-gpu", true)]);
        assert_eq!(problems(vec![leaning, gpu(&["cust"], &[("cuda", "dep:cust")])]).len(), 1);
    }

    #[test]
    fn ptx_is_weighed() {
        let folder = xtask::workspace::TempFolder::new("tidy-test").unwrap();
        let member = Member { directory: folder.path.clone(), ..member("fp8-gemm", Layer::Piece, &[]) };
        let problems = |bytes: usize| {
            std::fs::create_dir_all(folder.path.join("ptx")).unwrap();
            std::fs::write(folder.path.join("ptx/a.sm_80.ptx"), vec![b' '; bytes]).unwrap();
            let mut problems = vec![];
            check_ptx(&member, &mut problems);
            problems.len()
        };
        assert_eq!((problems(3_000_000), problems(3_000_001)), (0, 1));
    }

    #[test]
    fn unwanted_crates_are_found_with_the_way_to_them() {
        let package = |name: &str, links: Option<&str>| json!({"id": name, "name": name, "links": links});
        let node =
            |name: &str, deps: &[&str]| json!({"id": name, "deps": deps.iter().map(|d| json!({"pkg": d})).collect::<Vec<_>>()});
        let graph = |deep: &str, links: Option<&str>| {
            json!({
                "workspace_members": ["mtp"],
                "packages": [package("mtp", None), package("middle", None), package(deep, links), package("cust", None)],
                "resolve": {"nodes": [node("mtp", &["middle"]), node("middle", &[deep]), node(deep, &[]), node("cust", &[])]},
            })
        };
        let problems = |deep: &str, links| {
            let mut problems = vec![];
            check_default_build(&graph(deep, links), &mut problems);
            problems
        };
        // `cust` is among the packages but not reached: behind a feature.
        assert_eq!(problems("half", None), [""; 0]);
        assert_eq!(problems("clang-sys", None), ["mtp -> middle -> clang-sys: a default build may not need it"]);
        assert_eq!(problems("harmless", Some("mpi")).len(), 1);
        assert!(problems("customary", None).len() == 1, "cust* takes any ending");
    }

    #[test]
    fn manifests_inherit() {
        let whole = "[package]\nname = \"a\"\ndescription = \"b\"\nversion.workspace = true\nedition.workspace = true\n\
                     rust-version.workspace = true\nlicense.workspace = true\n[lints]\nworkspace = true\n";
        let problems = |text: &str| {
            let mut problems = vec![];
            check_manifest(&member("a", Layer::Piece, &[]), &Manifest::parse(text), &mut problems);
            problems.len()
        };
        assert_eq!(problems(whole), 0);
        for line in whole.lines().filter(|l| !l.starts_with("name") && !l.starts_with("[package]")) {
            assert!(problems(&whole.replace(line, "")) > 0, "nothing noticed without '{line}'");
        }
    }

    #[test]
    fn leftovers_and_long_files_are_found() {
        let problems = |name: &str, text: &str| {
            let mut problems = vec![];
            check_text(name, text, &mut problems);
            problems.len()
        };
        assert_eq!(problems("a/src/lib.rs", "fn main() {}\n"), 0);
        assert_eq!(problems("a/src/lib.rs", concat!("// TO", "DO: more\n")), 1);
        assert_eq!(problems("README.md", concat!("FIX", "ME\n")), 1);
        assert_eq!(problems("a/src/lib.rs", concat!("#[ig", "nore]\n")), 1);
        assert_eq!(problems("a/src/lib.rs", &"\n".repeat(899)), 0);
        assert_eq!(problems("a/src/lib.rs", &"\n".repeat(900)), 1);
        assert_eq!(problems("a/kernels/k.cu", &"\n".repeat(900)), 1);
        assert_eq!(problems("a/src/sys.rs", &format!("//! {GENERATED} by a program\n{}", "\n".repeat(900))), 0);
        assert_eq!(problems("a/src/reference.rs", "// unsafe is absent\n"), 0);
        assert_eq!(problems("a/src/reference.rs", concat!("uns", "afe { }\n")), 1);
        assert_eq!(problems("a/src/cpu.rs", concat!("uns", "afe { }\n")), 0);
    }
}
