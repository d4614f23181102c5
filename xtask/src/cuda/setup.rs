//! `cargo xtask setup`: the pinned CUDA toolkit, from the Python package index into target/cuda.
//!
//! Compiling kernels needs it, and nothing else does: tests run the PTX that is checked in. Nothing outside the target
//! folder is written.

use super::toolkit::{self, Stamp, Toolkit};
use super::wheels::{COMPILER, HEADER, PROGRAMS, RELEASE, WHEELS};
use crate::python::Python;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use xtask::args::{Failure, Parsed};
use xtask::workspace::{self, TempFolder, io};

/// An archive without members. `cust_raw` asks the linker for libcuda, from a folder named lib64; the symbols themselves
/// are defined by v3-gpu, so an empty library is all that has to be found, and no linker minds one.
const EMPTY_ARCHIVE: &str = "!<arch>\n";

/// Sets up, or says that all is there.
pub fn run(args: &[String]) -> Result<(), Failure> {
    Parsed::new(args, &[], &[])?.at_most(0)?;
    let target = workspace::target_directory(&workspace::members_metadata()?);
    std::fs::create_dir_all(&target).map_err(io(&target))?;
    // Two runs at once would unpack over each other; the second waits, then finds the work done.
    let lock_path = target.join("cuda.lock");
    let lock = File::create(&lock_path).map_err(io(&lock_path))?;
    lock.lock().map_err(io(&lock_path))?;

    let folder = target.join("cuda");
    let new = target.join("cuda.new");
    if new.exists() {
        println!("setup: removing what an interrupted run left");
        workspace::remove(&new)?;
    }
    match std::env::var_os("CUDA_PATH").filter(|path| !path.is_empty()) {
        Some(path) => use_installed(&folder, &new, Path::new(&path)),
        None => use_wheels(&folder, &new),
    }
}

/// Points to a toolkit that is installed already.
fn use_installed(folder: &Path, new: &Path, path: &Path) -> Result<(), Failure> {
    let hint = format!("point CUDA_PATH at a CUDA {RELEASE} toolkit, or unset it to have the pinned one downloaded");
    let refuse = |why: String| Failure::task(format!("CUDA_PATH is {}: {why}; {hint}", path.display()));
    let root = path.canonicalize().map_err(|e| refuse(e.to_string()))?;
    let versions = Toolkit::inspect(&root).map_err(refuse)?;
    let toolkit = Toolkit { compiler: versions.get("nvcc").cloned().unwrap_or_default(), root };
    let mut stamp = Stamp::default();
    stamp.set("root", toolkit.root.display());
    versions.iter().for_each(|(name, version)| stamp.set(name, version));
    if Stamp::read(folder).is_ok_and(|old| old == stamp) {
        println!("setup: {} is in use already: nothing to do", toolkit.root.display());
        return Ok(());
    }
    toolkit.try_out()?;
    let new = TempFolder::at(new.to_path_buf())?;
    link_folder(&new.path)?;
    stamp.write(&new.path)?;
    put_in_place(new, folder)?;
    println!("setup: using {}: {}", toolkit.root.display(), describe(&versions));
    if toolkit.compiler != COMPILER {
        println!("setup: the PTX that is checked in was made by nvcc {COMPILER}; {} may give another text", toolkit.compiler);
    }
    Ok(())
}

/// Fetches the wheels, unless they are there.
fn use_wheels(folder: &Path, new: &Path) -> Result<(), Failure> {
    match complete(folder) {
        Ok(versions) => {
            println!("setup: {} is complete: {}: nothing to do", workspace::relative(folder), describe(&versions));
            return Ok(());
        }
        Err(why) => println!("setup: {why}"),
    }
    let new = TempFolder::at(new.to_path_buf())?;
    let tree = fetch(&new.path).map_err(|failure| {
        Failure::task(format!("{} (or set CUDA_PATH to an installed CUDA {RELEASE} toolkit)", failure.message))
    })?;
    let versions = Toolkit::inspect(&tree.path).map_err(Failure::task)?;
    expect_pinned(&versions).map_err(Failure::task)?;
    Toolkit { root: tree.path.clone(), compiler: COMPILER.into() }.try_out()?;
    println!("setup: compiled and assembled a kernel");
    link_folder(&tree.path)?;
    let (files, bytes) = toolkit::measure(&tree.path).map_err(io(&tree.path))?;
    let mut stamp = Stamp::default();
    stamp.set("root", ".");
    stamp.set("files", files);
    stamp.set("bytes", bytes);
    versions.iter().for_each(|(name, version)| stamp.set(name, version));
    WHEELS.iter().for_each(|wheel| stamp.set(wheel.name, wheel.version));
    stamp.write(&tree.path)?;
    put_in_place(tree, folder)?;
    println!("setup: {} is ready ({} MB): {}", workspace::relative(folder), bytes / 1_000_000, describe(&versions));
    Ok(())
}

/// Whether the folder holds all of the pinned toolkit; otherwise what is wrong with it.
fn complete(folder: &Path) -> Result<BTreeMap<&'static str, String>, String> {
    let stamp = Stamp::read(folder)?;
    if stamp.root(folder) != folder {
        return Err(format!("{} points to {}", folder.display(), stamp.get("root")));
    }
    for wheel in &WHEELS {
        if stamp.get(wheel.name) != wheel.version {
            return Err(format!("{} is '{}', and {} is pinned", wheel.name, stamp.get(wheel.name), wheel.version));
        }
    }
    let (files, bytes) = toolkit::measure(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    if stamp.get("files") != files.to_string() || stamp.get("bytes") != bytes.to_string() {
        return Err(format!("{} is damaged: {files} files, {bytes} bytes", folder.display()));
    }
    let versions = Toolkit::inspect(folder)?;
    expect_pinned(&versions)?;
    Ok(versions)
}

/// The versions of the programs are those of the wheels, all of them.
fn expect_pinned(versions: &BTreeMap<&'static str, String>) -> Result<(), String> {
    for (program, expected) in PROGRAMS {
        match versions.get(program) {
            Some(version) if version == expected => {}
            Some(version) => return Err(format!("{program} is version {version}, and {expected} is pinned")),
            None => return Err(format!("{program} does not run")),
        }
    }
    (versions.get("cuda.h").is_some_and(|v| v == HEADER)).then_some(()).ok_or_else(|| "cuda.h is of another version".into())
}

fn describe(versions: &BTreeMap<&'static str, String>) -> String {
    versions.iter().map(|(name, version)| format!("{name} {version}")).collect::<Vec<_>>().join(", ")
}

/// Fetches and unpacks every wheel below `new` and gives the folder that holds bin/ and include/.
fn fetch(new: &Path) -> Result<TempFolder, Failure> {
    let python = Python::find()?;
    let unpacked = new.join("unpacked");
    for wheel in python.download("setup", &WHEELS, &new.join("wheels"))? {
        python.unpack("setup", &wheel, &unpacked)?;
    }
    let root = unpacked.join("nvidia/cu13");
    for programs in ["bin", "nvvm/bin"] {
        make_executable(&root.join(programs))?;
    }
    Ok(TempFolder { path: root })
}

/// zipfile forgets which files are programs.
fn make_executable(folder: &Path) -> Result<(), Failure> {
    for entry in std::fs::read_dir(folder).map_err(io(folder))? {
        let path = entry.map_err(io(folder))?.path();
        if path.is_file() {
            #[cfg(unix)]
            {
                use std::os::unix::fs::PermissionsExt;
                std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).map_err(io(&path))?;
            }
        }
    }
    Ok(())
}

/// What `cust_raw` wants to find where CUDA_LIBRARY_PATH points.
fn link_folder(folder: &Path) -> Result<(), Failure> {
    let lib64 = folder.join("lib64");
    std::fs::create_dir_all(&lib64).map_err(io(&lib64))?;
    let archive = lib64.join("libcuda.a");
    std::fs::write(&archive, EMPTY_ARCHIVE).map_err(io(&archive))
}

/// Moves a whole folder to its place, at once.
fn put_in_place(new: TempFolder, folder: &Path) -> Result<(), Failure> {
    workspace::remove(folder)?;
    std::fs::rename(&new.path, folder).map_err(io(folder))
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(unix)]
    use std::process::Command;

    fn pinned() -> BTreeMap<&'static str, String> {
        PROGRAMS.iter().map(|(name, version)| (*name, version.to_string())).chain([("cuda.h", HEADER.to_string())]).collect()
    }

    #[test]
    fn only_the_pinned_versions_pass() {
        assert_eq!(expect_pinned(&pinned()), Ok(()));
        for name in pinned().keys() {
            let mut wrong = pinned();
            wrong.insert(name, "13.0.1".into());
            assert!(expect_pinned(&wrong).is_err(), "{name}");
            wrong.remove(name);
            assert!(expect_pinned(&wrong).is_err(), "{name}");
        }
    }

    #[test]
    fn a_folder_without_stamp_or_with_a_damaged_tree_is_not_complete() {
        let folder = TempFolder::new("setup-test").unwrap();
        assert!(complete(&folder.path).unwrap_err().contains("no CUDA toolkit"));
        let mut stamp = Stamp::default();
        stamp.set("root", "/usr/local/cuda");
        stamp.write(&folder.path).unwrap();
        assert!(complete(&folder.path).unwrap_err().contains("points to"));
        stamp.set("root", ".");
        WHEELS.iter().for_each(|w| stamp.set(w.name, "1"));
        stamp.write(&folder.path).unwrap();
        assert!(complete(&folder.path).unwrap_err().contains("pinned"));
        WHEELS.iter().for_each(|w| stamp.set(w.name, w.version));
        stamp.set("files", 9);
        stamp.write(&folder.path).unwrap();
        assert!(complete(&folder.path).unwrap_err().contains("damaged"));
    }

    #[test]
    fn an_unfitting_cuda_path_is_refused_with_a_way_out() {
        let folder = TempFolder::new("setup-installed-test").unwrap();
        let (place, new) = (folder.path.join("cuda"), folder.path.join("cuda.new"));
        let installed = folder.path.join("installed");
        for path in [folder.path.join("nowhere"), folder.path.clone()] {
            let failure = use_installed(&place, &new, &path).unwrap_err();
            assert!(failure.message.contains("CUDA_PATH") && failure.message.contains("unset"), "{failure:?}");
        }
        #[cfg(unix)]
        {
            // Written by a shell: a file that this process had open for writing could not be started while another test
            // starts a program.
            let script = "mkdir -p bin && printf '#!/bin/sh\\necho release 12.4, V12.4.131\\n' > bin/nvcc && chmod +x bin/nvcc";
            std::fs::create_dir_all(&installed).unwrap();
            assert!(Command::new("sh").args(["-c", script]).current_dir(&installed).status().unwrap().success());
            let failure = use_installed(&place, &new, &installed).unwrap_err();
            assert!(failure.message.contains("12.4.131") && failure.message.contains("13.0 is needed"), "{failure:?}");
        }
        assert!(!place.exists() && !new.exists());
    }

    #[test]
    fn moving_into_place_replaces_what_was_there() {
        let folder = TempFolder::new("setup-move-test").unwrap();
        let place = folder.path.join("cuda");
        std::fs::create_dir_all(place.join("old")).unwrap();
        let new = TempFolder::at(folder.path.join("cuda.new")).unwrap();
        link_folder(&new.path).unwrap();
        put_in_place(new, &place).unwrap();
        assert!(place.join("lib64/libcuda.a").is_file() && !place.join("old").exists() && !folder.path.join("cuda.new").exists());
    }
}
