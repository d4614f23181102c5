//! Wheels of the Python package index: fetched with the user's own pip, verified by their hashes, unpacked.
//!
//! Python, because it can read the index with the user's settings. Only tasks that fetch something need it.

use std::path::{Path, PathBuf};
use std::process::Command;
use xtask::args::Failure;
use xtask::workspace::io;

/// A wheel, and what its two files for Linux hold.
pub struct Wheel {
    /// Its name on the package index.
    pub name: &'static str,
    /// Its version.
    pub version: &'static str,
    /// SHA-256 of the file for x86-64.
    pub x86_64: &'static str,
    /// SHA-256 of the file for AArch64.
    pub aarch64: &'static str,
}

/// The wheels with their hashes, in the form that `pip --require-hashes` verifies; nothing for a machine without wheels.
pub fn requirements(wheels: &[Wheel], os: &str, architecture: &str) -> Option<String> {
    let hash = |wheel: &Wheel| match (os, architecture) {
        ("linux", "x86_64") => Some(wheel.x86_64),
        ("linux", "aarch64") => Some(wheel.aarch64),
        _ => None,
    };
    wheels.iter().map(|w| Some(format!("{}=={} --hash=sha256:{}\n", w.name, w.version, hash(w)?))).collect()
}

/// A Python 3 with pip.
pub struct Python {
    program: PathBuf,
}

impl Python {
    /// Looks for one.
    pub fn find() -> Result<Python, Failure> {
        let mut reasons = vec![];
        for name in ["python3", "python"] {
            match Command::new(name).args(["-m", "pip", "--version"]).output() {
                Ok(output) if output.status.success() => return Ok(Python { program: name.into() }),
                Ok(output) => reasons.push(format!("{name}: {}", String::from_utf8_lossy(&output.stderr).trim())),
                Err(e) => reasons.push(format!("{name}: {e}")),
            }
        }
        Err(Failure::task(format!("Python 3 with pip is needed to fetch wheels ({})", reasons.join("; "))))
    }

    /// Fetches wheels into a folder and gives their files. pip verifies what they hold.
    pub fn download(&self, task: &str, wheels: &[Wheel], into: &Path) -> Result<Vec<PathBuf>, Failure> {
        let (os, architecture) = (std::env::consts::OS, std::env::consts::ARCH);
        let text = requirements(wheels, os, architecture).ok_or_else(|| {
            let names: Vec<&str> = wheels.iter().map(|w| w.name).collect();
            Failure::task(format!(
                "{}: wheels for Linux on x86-64 and AArch64, and this is {os} on {architecture}",
                names.join(", ")
            ))
        })?;
        std::fs::create_dir_all(into).map_err(io(into))?;
        let list = into.join("requirements.txt");
        std::fs::write(&list, text).map_err(io(&list))?;
        println!("{task}: fetching {} wheels with {} -m pip", wheels.len(), self.program.display());
        let mut pip = Command::new(&self.program);
        pip.args(["-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check", "--no-deps"]);
        pip.args(["--only-binary=:all:", "--require-hashes", "--requirement"]).arg(&list).arg("--dest").arg(into);
        self.run(&mut pip, "pip could not fetch them")?;
        let mut files: Vec<PathBuf> = std::fs::read_dir(into).map_err(io(into))?.flatten().map(|e| e.path()).collect();
        files.retain(|f| f.extension().is_some_and(|x| x == "whl"));
        files.sort();
        match files.len() == wheels.len() {
            true => Ok(files),
            false => Err(Failure::task(format!("pip left {} wheels, {} were asked for", files.len(), wheels.len()))),
        }
    }

    /// Unpacks a wheel into a folder.
    pub fn unpack(&self, task: &str, wheel: &Path, into: &Path) -> Result<(), Failure> {
        println!("{task}: unpacking {}", wheel.file_name().unwrap_or_default().to_string_lossy());
        let mut zip = Command::new(&self.program);
        zip.args(["-m", "zipfile", "-e"]).args([wheel, into]);
        self.run(&mut zip, &format!("{} could not be unpacked", wheel.display()))
    }

    fn run(&self, command: &mut Command, what: &str) -> Result<(), Failure> {
        let output = command.output().map_err(|e| Failure::task(format!("{}: {e}", self.program.display())))?;
        match output.status.success() {
            true => Ok(()),
            false => Err(Failure::task(format!("{what}: {}", String::from_utf8_lossy(&output.stderr).trim()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requirements_name_every_wheel_with_the_hash_of_the_machine() {
        let wheels = [
            Wheel { name: "a", version: "1.2", x86_64: "0x", aarch64: "0a" },
            Wheel { name: "b", version: "3", x86_64: "1x", aarch64: "1a" },
        ];
        assert_eq!(requirements(&wheels, "linux", "x86_64").unwrap(), "a==1.2 --hash=sha256:0x\nb==3 --hash=sha256:1x\n");
        assert_eq!(requirements(&wheels, "linux", "aarch64").unwrap(), "a==1.2 --hash=sha256:0a\nb==3 --hash=sha256:1a\n");
        assert!(requirements(&wheels, "macos", "aarch64").is_none() && requirements(&wheels, "linux", "riscv64").is_none());
    }
}
