//! Probes: kernels of one instruction each, for every instruction that the workspace's PTX uses.
//!
//! What an instruction must give is taken from the text of the PTX ISA manual (version 9.0; each probe names its section), written out
//! independently of the emulator. The probes run on the emulator, and on a GPU where there is one; with `V3_RESULTS` set they leave
//! what each device gave in that folder, as `probes-DEVICE.txt`. Such files of real GPUs, checked in as
//! `docs/measured/probes-*.txt`, are compared with what the emulator gives.

#[path = "../common/mod.rs"]
mod common;
mod signals;
mod simple;
mod special;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use v3_gpu::{Args, Backend, Device, LaunchConfig};

/// Runs a probe on a device and gives its words.
type Run = Box<dyn Fn(&Device) -> Result<Vec<u64>, v3_gpu::Error>>;

/// What a probe gave: its name and 64-bit words.
type Outcome = (String, Vec<u64>);

/// Words that a probe must give.
enum Expected {
    /// These.
    Words(Vec<u64>),
    /// The manual leaves it open: only recorded.
    Open,
}

/// A probe.
struct Probe {
    /// Unique.
    name: String,
    /// Opcodes, as written in PTX, that it is about.
    covers: Vec<&'static str>,
    /// Of the manual.
    section: &'static str,
    /// Runs it.
    run: Run,
    expected: Expected,
}

fn probes() -> Vec<Probe> {
    let mut all = simple::probes();
    all.extend(special::probes());
    all.extend(signals::probes());
    all
}

/// Runs a kernel of 32 threads (or as configured) with `inputs` and room for `outputs` 64-bit words.
fn run(device: &Device, ptx: &str, config: &LaunchConfig, inputs: &[u64], outputs: usize) -> Result<Vec<u64>, v3_gpu::Error> {
    let stream = device.stream()?;
    let kernel = device.module(ptx)?.kernel("probe")?;
    let from = stream.upload(inputs)?;
    let to = stream.zeroed::<u64>(outputs)?;
    let args = Args::new().buffer(&from).buffer(&to);
    // SAFETY: the probe reads `inputs` and writes `outputs` alone.
    unsafe { stream.launch(&kernel, config, args)? };
    stream.download(&to)
}

/// Runs all probes on a device; the architecture decides which can run.
fn outcomes(device: &Device) -> Vec<Outcome> {
    probes()
        .iter()
        .map(|probe| match (probe.run)(device) {
            Ok(words) => (probe.name.clone(), words),
            Err(e) => panic!("probe {} (section {}): {e}", probe.name, probe.section),
        })
        .collect()
}

fn text_of(outcomes: &[Outcome]) -> String {
    let mut text = String::new();
    for (name, words) in outcomes {
        let words: Vec<String> = words.iter().map(|w| format!("{w:x}")).collect();
        writeln!(text, "{name}\t{}", words.join(" ")).unwrap();
    }
    text
}

fn compare(outcomes: &[Outcome], who: &str) {
    let mut wrong = vec![];
    for (probe, (name, words)) in probes().iter().zip(outcomes) {
        if let Expected::Words(expected) = &probe.expected
            && expected != words
        {
            let at = expected.iter().zip(words).position(|(e, w)| e != w).unwrap_or(expected.len().min(words.len()));
            wrong.push(format!(
                "{name} (section {}): word {at} is {:x?}, expected {:x?}",
                probe.section,
                words.get(at),
                expected.get(at)
            ));
        }
    }
    assert!(wrong.is_empty(), "{who}:\n{}", wrong.join("\n"));
}

#[test]
fn probes_give_what_the_manual_says() {
    common::for_each_device_from("probes", (9, 0), |device| {
        let outcomes = outcomes(device);
        if let Some(folder) = std::env::var_os("V3_RESULTS") {
            let name = match device.backend() {
                Backend::Emulator => "probes-emulator.txt",
                _ => "probes-gpu.txt",
            };
            let header: String = ["V3_GPU_NAME", "V3_GPU_DRIVER", "V3_GPU_DATE"]
                .iter()
                .filter_map(|key| Some(format!("# {}\n", std::env::var(key).ok()?)))
                .collect();
            std::fs::write(Path::new(&folder).join(name), header + &text_of(&outcomes)).unwrap();
        }
        compare(&outcomes, &device.info().unwrap().name);
    });
}

#[test]
fn probes_have_names_of_their_own() {
    let probes = probes();
    let names: BTreeSet<&str> = probes.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(names.len(), probes.len());
}

fn workspace() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent()?.parent()?;
    root.join("Cargo.lock").exists().then(|| root.to_path_buf())
}

#[test]
fn every_instruction_of_the_workspace_has_a_probe() {
    let Some(root) = workspace() else {
        v3_testkit::skip::skip("every_instruction_of_the_workspace_has_a_probe", "the workspace is not here");
        return;
    };
    let probed: BTreeSet<&str> = probes().iter().flat_map(|p| p.covers.clone()).collect();
    let mut missing: BTreeMap<String, String> = BTreeMap::new();
    let mut files = 0;
    for krate in std::fs::read_dir(&root).unwrap() {
        let Ok(folder) = std::fs::read_dir(krate.unwrap().path().join("ptx")) else { continue };
        for file in folder {
            let path = file.unwrap().path();
            if path.extension().is_none_or(|e| e != "ptx") {
                continue;
            }
            files += 1;
            let text = std::fs::read_to_string(&path).unwrap();
            for opcode in opcodes(&text) {
                if !probed.contains(opcode.as_str()) {
                    missing.entry(opcode).or_insert_with(|| path.display().to_string());
                }
            }
        }
    }
    assert!(files > 0, "no PTX found under {}", root.display());
    assert!(missing.is_empty(), "no probe for: {missing:#?}");
}

/// The opcodes of a PTX text as nvcc writes it: an instruction a line.
fn opcodes(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for line in text.lines() {
        let line = line.split("//").next().unwrap_or("").trim().trim_start_matches(['{', '}']).trim();
        let line = match line.strip_prefix('@') {
            Some(guarded) => guarded.split_once(char::is_whitespace).map_or("", |(_, rest)| rest).trim(),
            None => line,
        };
        let opcode = line.split([' ', '\t', ';']).next().unwrap_or("");
        let first = opcode.chars().next();
        if !line.contains(';') && !line.ends_with(',') || opcode.ends_with(':') || !first.is_some_and(|c| c.is_ascii_lowercase())
        {
            continue;
        }
        found.insert(opcode.to_string());
    }
    found
}

#[test]
fn the_emulator_gives_what_gpus_gave() {
    let results = workspace().map(|root| root.join("docs/measured")).and_then(|folder| std::fs::read_dir(folder).ok());
    let files: Vec<PathBuf> = results
        .into_iter()
        .flatten()
        .filter_map(|f| Some(f.ok()?.path()))
        .filter(|p| p.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with("probes-") && n.ends_with(".txt")))
        .collect();
    if files.is_empty() {
        v3_testkit::skip::skip("the_emulator_gives_what_gpus_gave", "no results of a GPU are checked in under docs/measured");
        return;
    }
    let ours: BTreeMap<String, Vec<u64>> = outcomes(&common::emulated(1)[0]).into_iter().collect();
    for path in files {
        let text = std::fs::read_to_string(&path).unwrap();
        for line in text.lines().filter(|l| !l.starts_with('#')) {
            let (name, words) = line.split_once('\t').unwrap_or_else(|| panic!("{}: {line}", path.display()));
            let words: Vec<u64> = words.split(' ').map(|w| u64::from_str_radix(w, 16).unwrap()).collect();
            assert_eq!(ours.get(name), Some(&words), "{}: {name}", path.display());
        }
    }
}
