//! Files and directories that appear complete or not at all.
//!
//! A directory is built beside its target under a hidden name, flushed to disk, and renamed. When the target exists it has to make
//! way first, since no portable call swaps two directories:
//!
//! 1. `.NAME.partial-PID-N` is built and flushed, and renamed to `.NAME.ready`;
//! 2. `NAME` is renamed to `.NAME.old`;
//! 3. `.NAME.ready` is renamed to `NAME`;
//! 4. `.NAME.old` is removed.
//!
//! Killed before 2, the old directory stands; killed between 2 and 3, [`recover`] finishes step 3; killed after, the new one stands.
//! [`recover`] runs before a checkpoint is opened or replaced. What a killed process left behind is removed by the next that writes
//! to the same target.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};

/// Temporary paths that this process is writing now.
static LIVE: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
static COUNTER: AtomicU64 = AtomicU64::new(0);

fn live() -> std::sync::MutexGuard<'static, BTreeSet<PathBuf>> {
    // The set stays consistent if a holder panics: every operation on it is a single call.
    LIVE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// A path's directory and last component; links are followed when the path exists.
fn split(path: &Path) -> Result<(PathBuf, String)> {
    let resolved = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let name = resolved.file_name().ok_or_else(|| Error::file(path, "a path that ends in a name", "none"))?;
    let parent = match resolved.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    Ok((parent, name.to_string_lossy().into_owned()))
}

fn partial_path(parent: &Path, name: &str) -> PathBuf {
    let n = COUNTER.fetch_add(1, Ordering::Relaxed);
    parent.join(format!(".{name}.partial-{}-{n}", std::process::id()))
}

fn remove(path: &Path) -> std::io::Result<()> {
    if fs::symlink_metadata(path)?.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

/// Removes what processes that no longer run have left beside the target.
fn clean_leftovers(parent: &Path, name: &str) {
    let prefix = format!(".{name}.partial-");
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let file_name = entry.file_name();
        let Some(rest) = file_name.to_str().and_then(|n| n.strip_prefix(&prefix)) else { continue };
        let Some(pid) = rest.split('-').next().and_then(|pid| pid.parse::<u32>().ok()) else { continue };
        let in_use = if pid == std::process::id() {
            live().contains(&entry.path())
        } else {
            !Path::new("/proc/self").exists() || Path::new(&format!("/proc/{pid}")).exists()
        };
        if !in_use {
            // A leftover that cannot be removed is in nobody's way.
            let _ = remove(&entry.path());
        }
    }
}

fn sync_dir(path: &Path) -> Result<()> {
    if cfg!(unix) {
        File::open(path).and_then(|d| d.sync_all()).map_err(Error::io("flush", path))?;
    }
    Ok(())
}

fn sync_tree(path: &Path) -> Result<()> {
    for entry in fs::read_dir(path).map_err(Error::io("read", path))? {
        let entry = entry.map_err(Error::io("read", path))?;
        let file_type = entry.file_type().map_err(Error::io("read", entry.path()))?;
        if file_type.is_dir() {
            sync_tree(&entry.path())?;
        } else if file_type.is_file() {
            File::open(entry.path()).and_then(|f| f.sync_all()).map_err(Error::io("flush", entry.path()))?;
        }
    }
    sync_dir(path)
}

/// Finishes a replacement of `target` that was cut short, if there is one.
pub fn recover(target: &Path) -> Result<()> {
    if fs::symlink_metadata(target).is_ok() || target.file_name().is_none() {
        return Ok(());
    }
    let (parent, name) = split(target)?;
    for kept in [parent.join(format!(".{name}.ready")), parent.join(format!(".{name}.old"))] {
        if kept.is_dir() {
            // Ranks in several processes may come here at the same time, and one of them does it.
            return match fs::rename(&kept, target) {
                Err(_) if target.is_dir() => Ok(()),
                done => done.map_err(Error::io("recover", target)),
            };
        }
    }
    Ok(())
}

/// A directory under construction beside its target. Dropped without [`StagedDir::commit`], it is removed.
#[derive(Debug)]
pub struct StagedDir {
    parent: PathBuf,
    name: String,
    path: PathBuf,
    committed: bool,
}

impl StagedDir {
    /// Starts building what will be `target`; its parent directories are created.
    pub fn create(target: &Path) -> Result<StagedDir> {
        recover(target)?;
        let (parent, name) = split(target)?;
        fs::create_dir_all(&parent).map_err(Error::io("create", &parent))?;
        if target.exists() && !target.is_dir() {
            return Err(Error::file(target, "a directory or nothing", "a file"));
        }
        clean_leftovers(&parent, &name);
        let path = partial_path(&parent, &name);
        live().insert(path.clone());
        let staged = StagedDir { parent, name, path, committed: false };
        fs::create_dir(&staged.path).map_err(Error::io("create", target))?;
        Ok(staged)
    }

    /// The directory to write into.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes one small file into it.
    pub fn write_file(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.path.join(name);
        fs::write(&path, bytes).map_err(Error::io("write", path))
    }

    /// Flushes everything and puts the directory in the place of its target.
    pub fn commit(mut self) -> Result<()> {
        sync_tree(&self.path)?;
        let target = self.parent.join(&self.name);
        let hidden = |what: &str| self.parent.join(format!(".{}.{what}", self.name));
        if fs::symlink_metadata(&target).is_err() {
            fs::rename(&self.path, &target).map_err(Error::io("create", &target))?;
        } else {
            let (ready, old) = (hidden("ready"), hidden("old"));
            self.discard(&ready)?;
            self.discard(&old)?;
            fs::rename(&self.path, &ready).map_err(Error::io("create", &ready))?;
            let swapped = fs::rename(&target, &old).and_then(|()| fs::rename(&ready, &target));
            if let Err(source) = swapped {
                // The old directory goes back, if it had gone; the new one is given up.
                if fs::symlink_metadata(&target).is_err() {
                    let _ = fs::rename(&old, &target);
                }
                let _ = fs::rename(&ready, &self.path);
                return Err(Error::io("replace", target)(source));
            }
            sync_dir(&self.parent)?;
            self.committed = true;
            self.discard(&old)?;
        }
        self.committed = true;
        sync_dir(&self.parent)
    }

    /// Removes a directory so that a kill in the middle leaves nothing that looks whole.
    fn discard(&self, path: &Path) -> Result<()> {
        if fs::symlink_metadata(path).is_ok() {
            let doomed = partial_path(&self.parent, &self.name);
            fs::rename(path, &doomed).map_err(Error::io("remove", path))?;
            remove(&doomed).map_err(Error::io("remove", path))?;
        }
        Ok(())
    }
}

impl Drop for StagedDir {
    fn drop(&mut self) {
        if !self.committed {
            let _ = fs::remove_dir_all(&self.path);
        }
        live().remove(&self.path);
    }
}

/// Writes a file that is complete under its name or not there. A device or a pipe is written to directly.
pub fn write_file_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    if fs::metadata(path).is_ok_and(|m| !m.is_file() && !m.is_dir()) {
        return fs::write(path, bytes).map_err(Error::io("write", path));
    }
    if path.is_dir() {
        return Err(Error::file(path, "a file to write", "a directory"));
    }
    let (parent, name) = split(path)?;
    clean_leftovers(&parent, &name);
    let partial = partial_path(&parent, &name);
    live().insert(partial.clone());
    let write = || -> std::io::Result<()> {
        let mut file = File::create_new(&partial)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&partial, parent.join(&name))
    };
    let written = write();
    if written.is_err() {
        let _ = fs::remove_file(&partial);
    }
    live().remove(&partial);
    written.map_err(Error::io("write", path))?;
    sync_dir(&parent)
}
