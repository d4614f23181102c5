//! Where the toolkit is, and what is in it.

use super::wheels::{COMPILER, HEADER, PROGRAMS, RELEASE};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use xtask::args::Failure;
use xtask::workspace::{TempFolder, io};

/// The name of the file that is written last, so that a folder with it is whole.
const STAMP: &str = "setup.txt";

/// What nvcc reads from the environment and would change what it makes.
const NVCC_ENVIRONMENT: [&str; 5] = ["NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS", "CPATH", "C_INCLUDE_PATH", "CPLUS_INCLUDE_PATH"];

/// A toolkit of the right release.
pub struct Toolkit {
    /// The folder that holds bin/ and include/.
    pub root: PathBuf,
    /// The version of nvcc, such as 13.0.88.
    pub compiler: String,
}

impl Toolkit {
    /// The toolkit that `cargo xtask setup` left in `target`.
    pub fn find(target: &Path) -> Result<Toolkit, Failure> {
        let folder = target.join("cuda");
        let stamp = Stamp::read(&folder).map_err(|why| Failure::task(format!("{why}: run `cargo xtask setup` first")))?;
        let toolkit = Toolkit { root: stamp.root(&folder), compiler: stamp.get("nvcc").to_string() };
        match toolkit.program("nvcc").is_file() {
            true => Ok(toolkit),
            false => Err(Failure::task(format!("{} is gone: run `cargo xtask setup` again", toolkit.program("nvcc").display()))),
        }
    }

    /// A program of the toolkit.
    pub fn program(&self, name: &str) -> PathBuf {
        self.root.join("bin").join(name)
    }

    /// nvcc, deaf to what the environment would have it do.
    pub fn nvcc(&self) -> Command {
        let mut nvcc = Command::new(self.program("nvcc"));
        NVCC_ENVIRONMENT.iter().for_each(|name| {
            nvcc.env_remove(name);
        });
        nvcc
    }

    /// Looks at a folder: right release in all its parts, and able to compile and to assemble.
    pub fn inspect(root: &Path) -> Result<BTreeMap<&'static str, String>, String> {
        let mut versions = BTreeMap::new();
        for (program, expected) in PROGRAMS {
            let path = root.join("bin").join(program);
            // The two that only look into binaries may be missing or of another release.
            let needed = expected == COMPILER;
            match version_of(&path) {
                Ok(version) if needed && release(&version) != RELEASE => {
                    return Err(format!("{} is version {version}, and {RELEASE} is needed", path.display()));
                }
                Ok(version) => drop(versions.insert(program, version)),
                Err(why) if needed => return Err(why),
                Err(_) => {}
            }
        }
        let header = root.join("include/cuda.h");
        let text = std::fs::read_to_string(&header).map_err(|e| format!("{}: {e}", header.display()))?;
        match header_version(&text) {
            Some(HEADER) => versions.insert("cuda.h", HEADER.to_string()),
            other => {
                return Err(format!("{} is of version {}, and {HEADER} is needed", header.display(), other.unwrap_or("unknown")));
            }
        };
        Ok(versions)
    }

    /// Compiles a kernel and assembles it, which takes every part: preprocessor, headers, compiler, assembler.
    pub fn try_out(&self) -> Result<(), Failure> {
        let folder = TempFolder::new("setup-kernel")?;
        let source = folder.path.join("kernel.cu");
        let kernel = "#include <cuda_fp8.h>\n#include <cuda/atomic>\nextern \"C\" __global__ void kernel(__nv_fp8_e4m3* q, \
                      const float* x) { q[threadIdx.x] = __nv_fp8_e4m3(x[threadIdx.x]); }\n";
        std::fs::write(&source, kernel).map_err(io(&source))?;
        let run = |command: &mut Command, what: &str| {
            let output = command.current_dir(&folder.path).output().map_err(|e| Failure::task(format!("{what}: {e}")))?;
            let said = String::from_utf8_lossy(&output.stderr).trim().to_string();
            output.status.success().then_some(()).ok_or_else(|| Failure::task(format!("{what} failed: {said}")))
        };
        run(self.nvcc().args(["-ptx", "-arch=compute_90a", "-std=c++17", "kernel.cu", "-o", "kernel.ptx"]), "nvcc").map_err(
            |failure| Failure::task(format!("{} (nvcc needs a C++ compiler beside it, such as g++)", failure.message)),
        )?;
        run(Command::new(self.program("ptxas")).args(["-arch=sm_90a", "kernel.ptx", "-o", "kernel.cubin"]), "ptxas")
    }
}

/// What setup notes when it is done: `key value` lines.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Stamp {
    values: BTreeMap<String, String>,
}

impl Stamp {
    /// Notes a value.
    pub fn set(&mut self, key: &str, value: impl ToString) {
        self.values.insert(key.to_string(), value.to_string());
    }

    /// A value, empty when it is missing.
    pub fn get(&self, key: &str) -> &str {
        self.values.get(key).map_or("", String::as_str)
    }

    /// The folder with bin/ and include/: `folder` itself, or one that is installed elsewhere.
    pub fn root(&self, folder: &Path) -> PathBuf {
        match self.get("root") {
            "" | "." => folder.to_path_buf(),
            elsewhere => PathBuf::from(elsewhere),
        }
    }

    /// Reads the stamp of a folder, or says why there is none.
    pub fn read(folder: &Path) -> Result<Stamp, String> {
        let path = folder.join(STAMP);
        let text = std::fs::read_to_string(&path).map_err(|_| format!("there is no CUDA toolkit in {}", folder.display()))?;
        Ok(Stamp::parse(&text))
    }

    fn parse(text: &str) -> Stamp {
        let lines = text.lines().filter(|l| !l.starts_with('#'));
        let pairs = lines.filter_map(|l| l.split_once(' ')).map(|(k, v)| (k.to_string(), v.trim().to_string()));
        Stamp { values: pairs.collect() }
    }

    fn render(&self) -> String {
        let lines = self.values.iter().map(|(k, v)| format!("{k} {v}\n"));
        std::iter::once("# written last by `cargo xtask setup`\n".to_string()).chain(lines).collect()
    }

    /// Writes the stamp into a folder that is otherwise whole.
    pub fn write(&self, folder: &Path) -> Result<(), Failure> {
        let path = folder.join(STAMP);
        std::fs::write(&path, self.render()).map_err(io(&path))
    }
}

/// Files and bytes below a folder, the stamp aside: what a whole one is recognised by.
pub fn measure(folder: &Path) -> std::io::Result<(u64, u64)> {
    let (mut files, mut bytes) = (0, 0);
    let mut folders = vec![folder.to_path_buf()];
    while let Some(at) = folders.pop() {
        for entry in std::fs::read_dir(&at)? {
            let entry = entry?;
            let kind = entry.metadata()?;
            if kind.is_dir() {
                folders.push(entry.path());
            } else if entry.file_name() != STAMP {
                files += 1;
                bytes += kind.len();
            }
        }
    }
    Ok((files, bytes))
}

/// The version that a program of the toolkit reports.
pub fn version_of(program: &Path) -> Result<String, String> {
    let output = Command::new(program).arg("--version").output().map_err(|e| format!("{}: {e}", program.display()))?;
    let said = String::from_utf8_lossy(&output.stdout);
    parse_version(&said).map(str::to_string).ok_or_else(|| format!("{} --version names no version", program.display()))
}

/// 13.0.88 from "Cuda compilation tools, release 13.0, V13.0.88".
fn parse_version(said: &str) -> Option<&str> {
    let line = said.lines().find(|l| l.contains("release "))?;
    let version = line.rsplit_once(", V")?.1.trim();
    (version.split('.').count() == 3 && version.split('.').all(|n| n.parse::<u32>().is_ok())).then_some(version)
}

/// 13.0 from 13.0.88.
pub fn release(version: &str) -> &str {
    version.rsplit_once('.').map_or(version, |(release, _)| release)
}

fn header_version(cuda_h: &str) -> Option<&str> {
    cuda_h.lines().find_map(|l| l.strip_prefix("#define CUDA_VERSION ")).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        let said =
            "nvcc: NVIDIA (R) Cuda compiler driver\nBuilt on a day\nCuda compilation tools, release 13.0, V13.0.88\nBuild x\n";
        assert_eq!(parse_version(said), Some("13.0.88"));
        assert_eq!(release("13.0.88"), "13.0");
        for bad in ["", "release 13.0", "release 13.0, V13", "release 13.0, V13.0.x"] {
            assert_eq!(parse_version(bad), None, "{bad}");
        }
        assert_eq!(header_version("#define __CUDA\n#define CUDA_VERSION 13000\n"), Some("13000"));
        assert_eq!(header_version("#define CUDA_VERSIONS 1\n"), None);
    }

    #[test]
    fn stamps_survive_being_written() {
        let folder = TempFolder::new("stamp-test").unwrap();
        assert!(Stamp::read(&folder.path).is_err());
        let mut stamp = Stamp::default();
        stamp.set("root", "/opt/a folder");
        stamp.set("files", 12);
        stamp.write(&folder.path).unwrap();
        let read = Stamp::read(&folder.path).unwrap();
        assert_eq!(read, stamp);
        assert_eq!((read.root(Path::new("x")), read.get("files"), read.get("none")), (PathBuf::from("/opt/a folder"), "12", ""));
        stamp.set("root", ".");
        assert_eq!(stamp.root(Path::new("x")), PathBuf::from("x"));
        std::fs::write(folder.path.join("file"), "abc").unwrap();
        assert_eq!(measure(&folder.path).unwrap(), (1, 3));
    }

    #[test]
    fn an_empty_folder_is_no_toolkit() {
        let folder = TempFolder::new("toolkit-test").unwrap();
        assert!(Toolkit::inspect(&folder.path).unwrap_err().contains("nvcc"));
        let failure = Toolkit::find(&folder.path).err().unwrap();
        assert!(failure.message.contains("cargo xtask setup"), "{failure:?}");
    }
}
