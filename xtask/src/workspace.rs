//! The workspace as cargo sees it, and folders that go away by themselves.

use crate::args::Failure;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The cargo that runs this program.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// The root of the workspace.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// What `cargo metadata` says, dependencies included.
pub fn metadata() -> Result<Value, Failure> {
    cargo_metadata(&[])
}

/// What `cargo metadata` says of the members alone, which needs no registry.
pub fn members_metadata() -> Result<Value, Failure> {
    cargo_metadata(&["--no-deps"])
}

/// What `cargo metadata` says with further options.
pub fn cargo_metadata(extra: &[&str]) -> Result<Value, Failure> {
    let output = cargo()
        .args(["metadata", "--format-version", "1", "--quiet"])
        .args(extra)
        .output()
        .map_err(|e| Failure::task(format!("cannot start cargo: {e}")))?;
    if !output.status.success() {
        let reason = String::from_utf8_lossy(&output.stderr);
        return Err(Failure::task(format!("cargo metadata: {}", reason.trim())));
    }
    serde_json::from_slice(&output.stdout).map_err(|e| Failure::task(format!("cargo metadata: {e}")))
}

/// A string of a JSON object, empty when there is none.
pub fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// A list of a JSON object, empty when there is none.
pub fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

/// The packages that are members of the workspace.
pub fn packages(metadata: &Value) -> impl Iterator<Item = &Value> {
    let ids: BTreeSet<&str> = list(metadata, "workspace_members").iter().filter_map(Value::as_str).collect();
    list(metadata, "packages").iter().filter(move |p| ids.contains(text(p, "id")))
}

/// The folder of a package.
pub fn directory(package: &Value) -> PathBuf {
    let manifest = Path::new(text(package, "manifest_path"));
    manifest.parent().unwrap_or(manifest).to_path_buf()
}

/// Where cargo puts what it builds.
pub fn target_directory(metadata: &Value) -> PathBuf {
    PathBuf::from(text(metadata, "target_directory"))
}

/// `path` below the root, with `/` between folders; unchanged when it is elsewhere.
pub fn relative(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

/// A failure to do something with a file.
pub fn io(path: &Path) -> impl Fn(std::io::Error) -> Failure + '_ {
    move |e| Failure::task(format!("{}: {e}", path.display()))
}

/// A folder that is removed when it is no longer used.
pub struct TempFolder {
    /// Where it is.
    pub path: PathBuf,
}

impl TempFolder {
    /// An empty folder in the system's place for such folders.
    pub fn new(name: &str) -> Result<TempFolder, Failure> {
        TempFolder::at(std::env::temp_dir().join(format!("v3-{name}-{}", std::process::id())))
    }

    /// An empty folder at a place of the caller's choosing; what was there is removed.
    pub fn at(path: PathBuf) -> Result<TempFolder, Failure> {
        remove(&path)?;
        std::fs::create_dir_all(&path).map_err(io(&path))?;
        Ok(TempFolder { path })
    }
}

impl Drop for TempFolder {
    fn drop(&mut self) {
        // Left behind, it is only a waste of disk.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// Removes a folder with all it holds, or a file, or nothing when it does not exist.
pub fn remove(path: &Path) -> Result<(), Failure> {
    let result = match std::fs::symlink_metadata(path) {
        Ok(kind) if kind.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(_) => Ok(()),
    };
    result.map_err(io(path))
}
