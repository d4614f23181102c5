//! `cargo xtask ptx`: kernels to PTX, and what the assembler makes of it.
//!
//! The PTX is checked in, so that tests and users need no compiler; `--check` proves that it is what the sources give.

mod hints;
mod normal;
mod ptxas;
mod source;

use crate::cuda::Toolkit;
use normal::Places;
use source::Job;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use xtask::args::{Failure, Parsed};
use xtask::workspace::{self, TempFolder, directory, io, relative, text};

/// Device headers that every kernel may include.
const HEADERS: &str = "support/gpu/include";

/// Compiles and reports, or compares with `--check`.
pub fn run(args: &[String]) -> Result<(), Failure> {
    let parsed = Parsed::new(args, &["--jobs"], &["--check"])?;
    let check = parsed.flag("--check");
    let threads = parsed.count("--jobs", std::thread::available_parallelism().map_or(1, usize::from))?;
    let metadata = workspace::members_metadata()?;
    let target = workspace::target_directory(&metadata);
    let sources = Sources::find(&metadata, &parsed.words)?;
    let toolkit = Toolkit::find(&target)?;
    let scratch = TempFolder::at(target.join(format!("ptx-{}", std::process::id())))?;
    let compiler = Compiler {
        places: Places::new(&workspace::root(), &toolkit.root),
        scratch: scratch.path.clone(),
        toolkit,
        write: !check,
    };

    println!("{}", ptxas::table_head());
    let mut problems = sources.problems;
    problems.extend(compiler.all(&sources.jobs, threads));
    for orphan in &sources.orphans {
        if check {
            problems.push(format!("{}: no kernel gives it", orphan.display()));
        } else {
            workspace::remove(&workspace::root().join(orphan))?;
            println!("{}: removed, no kernel gives it", orphan.display());
        }
    }
    if problems.is_empty() {
        let what = if check { "is what its source gives" } else { "is current" };
        println!("ptx: {} files, each {what}", sources.jobs.len());
        return Ok(());
    }
    problems.iter().for_each(|p| eprintln!("{p}"));
    Err(Failure::task(format!("{} problems (nvcc {})", problems.len(), compiler.toolkit.compiler)))
}

/// What there is to compile.
struct Sources {
    jobs: Vec<Job>,
    /// PTX files that no source gives.
    orphans: Vec<PathBuf>,
    /// Sources that cannot be read.
    problems: Vec<String>,
}

impl Sources {
    /// The kernels of the crates that `words` name (or of all), or of single files.
    fn find(metadata: &serde_json::Value, words: &[String]) -> Result<Sources, Failure> {
        let root = workspace::root();
        let (files, crates): (Vec<&String>, Vec<&String>) = words.iter().partition(|w| w.ends_with(".cu"));
        let files: BTreeSet<PathBuf> =
            files.into_iter().map(|f| Path::new(f).canonicalize().map_err(io(Path::new(f)))).collect::<Result<_, _>>()?;
        let mut known: BTreeMap<String, PathBuf> = BTreeMap::new();
        for package in workspace::packages(metadata) {
            known.insert(text(package, "name").to_string(), directory(package));
        }
        let by_name = |word: &String| {
            let is = |name: &String, folder: &Path| name == word || relative(folder) == word.trim_end_matches('/');
            let found = known.iter().find(|(name, folder)| is(name, folder)).map(|(_, folder)| folder.clone());
            found.ok_or_else(|| Failure::usage(format!("'{word}' is no crate of the workspace and no .cu file")))
        };
        let chosen: Vec<PathBuf> = match (crates.is_empty(), files.is_empty()) {
            (true, _) => known.values().cloned().collect(),
            (false, _) => crates.into_iter().map(by_name).collect::<Result<_, _>>()?,
        };
        let mut sources = Sources { jobs: vec![], orphans: vec![], problems: vec![] };
        let mut unseen = files.clone();
        for folder in chosen {
            for (kernels, ptx) in source::FOLDERS {
                let ptx = folder.strip_prefix(&root).unwrap_or(&folder).join(ptx);
                for path in list(&folder.join(kernels), "cu") {
                    if !files.is_empty() && !path.canonicalize().is_ok_and(|p| unseen.remove(&p)) {
                        continue;
                    }
                    let content = std::fs::read_to_string(&path).map_err(io(&path))?;
                    match source::jobs(path.strip_prefix(&root).unwrap_or(&path), &ptx, &content) {
                        Ok(jobs) => sources.jobs.extend(jobs),
                        Err(why) => sources.problems.push(why),
                    }
                }
                if files.is_empty() && sources.problems.is_empty() {
                    let there = list(&root.join(&ptx), "ptx").into_iter().filter(|p| source::is_made(p));
                    let there = there.map(|p| p.strip_prefix(&root).unwrap_or(&p).to_path_buf());
                    sources.orphans.extend(there.filter(|p| sources.jobs.iter().all(|j| j.ptx != *p)));
                }
            }
        }
        match unseen.first() {
            Some(file) => Err(Failure::usage(format!("{}: not in kernels/ or tests/kernels/ of a crate", file.display()))),
            None => Ok(sources),
        }
    }
}

/// The files of a folder with an ending, in order; none when there is no such folder.
fn list(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path());
    let mut files: Vec<PathBuf> = entries.filter(|p| p.extension().is_some_and(|x| x == ending)).collect();
    files.sort();
    files
}

struct Compiler {
    toolkit: Toolkit,
    places: Places,
    scratch: PathBuf,
    /// Whether the PTX is written, or compared.
    write: bool,
}

/// What came of a job: lines of the table, and problems.
type Outcome = (String, Vec<String>);

impl Compiler {
    /// Runs all jobs, prints each when it and all before it are done, and gives the problems.
    fn all(&self, jobs: &[Job], threads: usize) -> Vec<String> {
        let next = AtomicUsize::new(0);
        let done: Mutex<(usize, Vec<Option<Outcome>>)> = Mutex::new((0, jobs.iter().map(|_| None).collect()));
        std::thread::scope(|scope| {
            for _ in 0..threads.min(jobs.len()) {
                scope.spawn(|| {
                    while let Some((index, job)) =
                        Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|i| Some((i, jobs.get(i)?)))
                    {
                        let outcome = self.one(job, index).unwrap_or_else(|why| (format!("{}\n", job.ptx.display()), vec![why]));
                        let mut done = done.lock().unwrap_or_else(|e| e.into_inner());
                        done.1[index] = Some(outcome);
                        while let Some(Some((lines, _))) = done.1.get(done.0) {
                            print!("{lines}");
                            done.0 += 1;
                        }
                    }
                });
            }
        });
        let done = done.into_inner().unwrap_or_else(|e| e.into_inner());
        done.1.into_iter().flatten().flat_map(|(_, problems)| problems).collect()
    }

    /// Compiles, normalises, writes or compares, and assembles.
    fn one(&self, job: &Job, index: usize) -> Result<Outcome, String> {
        let ptx = self.compile(job, index)?;
        let path = workspace::root().join(&job.ptx);
        let before = std::fs::read(&path).ok();
        let mut problems = vec![];
        if before.as_deref() != Some(ptx.as_bytes()) {
            if self.write {
                let folder = path.parent().unwrap_or(&path);
                std::fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
                std::fs::write(&path, &ptx).map_err(|e| format!("{}: {e}", path.display()))?;
            } else {
                let what = if before.is_some() { "is not what its source gives" } else { "is missing" };
                problems.push(format!("{}: {what}: run `cargo xtask ptx`", job.ptx.display()));
            }
        }
        let report = self.assemble(job, &ptx, index)?;
        let mut lines = format!("{}\n", job.ptx.display());
        report.usages.iter().for_each(|usage| lines.push_str(&format!("{}\n", usage.row())));
        hints::rows(&ptx).iter().for_each(|row| lines.push_str(&format!("{row}\n")));
        let found = report.problems(&job.head.allow_spills, &job.head.allow_ptxas);
        problems.extend(found.into_iter().map(|p| format!("{}: {p}", job.ptx.display())));
        Ok((lines, problems))
    }

    /// The PTX of a job, as it is checked in.
    fn compile(&self, job: &Job, index: usize) -> Result<String, String> {
        let out = self.scratch.join(format!("{index}.ptx"));
        let arch = job.arch.replace("sm_", "compute_");
        let output = self
            .toolkit
            .nvcc()
            .current_dir(workspace::root())
            .args(["-ptx", "-std=c++17", "-lineinfo", "-Werror", "all-warnings", "-I", HEADERS])
            .arg(format!("-arch={arch}"))
            .args(&job.options)
            .arg(&job.source)
            .arg("-o")
            .arg(&out)
            .output()
            .map_err(|e| format!("{}: nvcc: {e}", job.source.display()))?;
        if !output.status.success() {
            let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            return Err(format!("{}: nvcc failed:\n{}", job.ptx.display(), said.trim_end()));
        }
        let ptx = std::fs::read_to_string(&out).map_err(|e| format!("{}: {e}", out.display()))?;
        let options: String = job.options.iter().map(|o| format!(" {o}")).collect();
        let head = format!(
            "// Made by `cargo xtask ptx` from {}\n// nvcc {}, {arch}{options}\n\n",
            job.source.display(),
            crate::cuda::RELEASE
        );
        normal::normalize(&ptx, &head, &self.places).map_err(|why| format!("{}: {why}", job.ptx.display()))
    }

    /// What ptxas says of it.
    fn assemble(&self, job: &Job, ptx: &str, index: usize) -> Result<ptxas::Report, String> {
        let (input, output) = (self.scratch.join(format!("{index}.normal.ptx")), self.scratch.join(format!("{index}.cubin")));
        std::fs::write(&input, ptx).map_err(|e| format!("{}: {e}", input.display()))?;
        let said = Command::new(self.toolkit.program("ptxas"))
            .args(["-v".to_string(), format!("-arch={}", job.arch)])
            .args([&input, Path::new("-o"), &output])
            .output()
            .map_err(|e| format!("{}: ptxas: {e}", job.ptx.display()))?;
        let text = format!("{}{}", String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
        if !said.status.success() {
            return Err(format!("{}: ptxas failed:\n{}", job.ptx.display(), text.trim_end()));
        }
        Ok(ptxas::Report::parse(&text))
    }
}
