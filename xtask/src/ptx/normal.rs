//! PTX that is the same on every machine: no absolute paths, no build numbers, no hashes of paths.

use std::path::{Component, Path, PathBuf};

/// Names for the places that a compiler writes into its output.
pub struct Places {
    /// The root of the workspace, in each spelling.
    roots: Vec<PathBuf>,
    /// The include folder of the toolkit, in each spelling.
    toolkits: Vec<PathBuf>,
}

impl Places {
    /// The workspace at `root`, the toolkit at `toolkit`.
    pub fn new(root: &Path, toolkit: &Path) -> Places {
        let both = |path: &Path| {
            let mut spellings = vec![tidy_path(path)];
            spellings.extend(path.canonicalize().ok().filter(|p| *p != spellings[0]));
            spellings
        };
        Places { roots: both(root), toolkits: both(&toolkit.join("include")) }
    }

    /// The name of a source file: relative to the workspace, below `cuda/`, or alone below `host/`.
    fn name(&self, path: &str) -> String {
        let path = tidy_path(Path::new(path));
        let below = |places: &[PathBuf]| places.iter().find_map(|p| path.strip_prefix(p).ok().map(slashes));
        // The toolkit may lie inside the workspace's target folder: it goes first.
        if let Some(name) = below(&self.toolkits) {
            return format!("cuda/{name}");
        }
        if let Some(name) = below(&self.roots) {
            return name;
        }
        match path.is_absolute() {
            true => format!("host/{}", path.file_name().unwrap_or_default().to_string_lossy()),
            false => slashes(&path),
        }
    }
}

/// Without `.` and `..`, as text alone: links are not followed.
fn tidy_path(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir if matches!(out.components().next_back(), Some(Component::Normal(_))) => drop(out.pop()),
            part => out.push(part),
        }
    }
    out
}

fn slashes(path: &Path) -> String {
    path.components().map(|c| c.as_os_str().to_string_lossy()).collect::<Vec<_>>().join("/")
}

/// What the compiler wrote, with `head` for its first lines and without what differs between machines.
pub fn normalize(ptx: &str, head: &str, places: &Places) -> Result<String, String> {
    let mut out = String::with_capacity(ptx.len() + head.len());
    out.push_str(head);
    // The compiler's own head carries build numbers.
    let body = ptx.find(".version").ok_or("the compiler's output has no .version")?;
    // Consecutive lines of `.b8`: the text may run from one into the next.
    let mut bytes: Vec<Vec<u8>> = vec![];
    for line in ptx[body..].lines() {
        if let Some(row) = byte_row(line) {
            bytes.push(row);
            continue;
        }
        flush(&mut bytes, &mut out);
        match line.trim_start().strip_prefix(".file") {
            Some(rest) => {
                let (number, path) = file_directive(rest).ok_or_else(|| format!("cannot read '{line}'"))?;
                out.push_str(&format!("\t.file\t{number} \"{}\"\n", places.name(path)));
            }
            None => {
                let mut line = line.as_bytes().to_vec();
                blank_hashes(&mut line);
                // Only ASCII digits were put in the place of ASCII digits and letters.
                out.push_str(&String::from_utf8_lossy(&line));
                out.push('\n');
            }
        }
    }
    flush(&mut bytes, &mut out);
    while out.ends_with("\n\n") {
        out.pop();
    }
    Ok(out)
}

/// The numbers of a line `.b8 1,2,3`.
fn byte_row(line: &str) -> Option<Vec<u8>> {
    line.strip_prefix(".b8 ")?.split(',').map(|n| n.trim().parse().ok()).collect()
}

fn flush(rows: &mut Vec<Vec<u8>>, out: &mut String) {
    let mut all = rows.concat();
    blank_hashes(&mut all);
    let mut rest = &all[..];
    for row in rows.drain(..) {
        let (line, after) = rest.split_at(row.len().min(rest.len()));
        rest = after;
        let numbers: Vec<String> = line.iter().map(u8::to_string).collect();
        out.push_str(&format!(".b8 {}\n", numbers.join(",")));
    }
}

/// Number and path of `1 "path"`, `1 "path", time, size`.
fn file_directive(rest: &str) -> Option<(u32, &str)> {
    let (number, rest) = rest.trim().split_once(char::is_whitespace)?;
    let path = rest.trim().strip_prefix('"')?;
    Some((number.parse().ok()?, &path[..path.find('"')?]))
}

/// The names of what has internal linkage carry a hash of the source's absolute path. Every module is loaded by itself, so
/// the names need not differ between files.
fn blank_hashes(text: &mut [u8]) {
    const LENGTH: usize = 8;
    for mark in [&b"_INTERNAL_"[..], b"_GLOBAL__N__"] {
        let mut at = 0;
        while let Some(found) = text.get(at..).and_then(|rest| rest.windows(mark.len()).position(|w| w == mark)) {
            at += found + mark.len();
            if let Some(hash) = text.get_mut(at..at + LENGTH).filter(|h| h.iter().all(u8::is_ascii_hexdigit)) {
                hash.fill(b'0');
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places() -> Places {
        Places { roots: vec!["/home/a/v3".into()], toolkits: vec!["/home/a/v3/target/cuda/include".into()] }
    }

    #[test]
    fn files_are_named_from_the_workspace() {
        for (path, name) in [
            ("/home/a/v3/fp8-gemm/kernels/k.cu", "fp8-gemm/kernels/k.cu"),
            ("fp8-gemm/kernels/../kernels/./k.cu", "fp8-gemm/kernels/k.cu"),
            ("/home/a/v3/target/cuda/bin/..//include/cuda_fp8.hpp", "cuda/cuda_fp8.hpp"),
            ("/home/a/v3/target/cuda/include/cccl/cuda/atomic", "cuda/cccl/cuda/atomic"),
            ("/usr/include/c++/12/cmath", "host/cmath"),
        ] {
            assert_eq!(places().name(path), name);
        }
    }

    #[test]
    fn what_differs_between_machines_is_gone() {
        let made = |root: &str, hash: &str, build: &str| {
            let string = format!("_ZN27_INTERNAL_{hash}_4_k_cu_k6helperEf\0");
            let numbers: Vec<String> = string.bytes().map(|b| b.to_string()).collect();
            format!(
                "//\n// Compiler Build ID: {build}\n//\n\n.version 9.0\n.target sm_90a\n.func _ZN27_INTERNAL_{hash}_4_k_cu_k29_GLOBAL__N__{hash}_4_k(\n\
                 \t.file\t1 \"{root}/c/kernels/k.cu\"\n\t.file\t2 \"{root}/target/cuda/include/a.h\", {build}, 7\n\t.section\t.debug_str\n\
                 \t{{\n$L__info_string0:\n.b8 {}\n.b8 {}\n\n\t}}\n\n",
                numbers[..18].join(","),
                numbers[18..].join(",")
            )
        };
        let one = normalize(&made("/home/a/v3", "dc1b041e", "1"), "// head\n", &places()).unwrap();
        let elsewhere = Places { roots: vec!["/b".into()], toolkits: vec!["/b/target/cuda/include".into()] };
        let two = normalize(&made("/b", "df37235a", "22"), "// head\n", &elsewhere).unwrap();
        assert_eq!(one, two);
        assert!(one.starts_with("// head\n.version 9.0\n.target sm_90a\n"));
        assert!(one.contains("\t.file\t1 \"c/kernels/k.cu\"\n\t.file\t2 \"cuda/a.h\"\n"));
        assert!(one.contains("_ZN27_INTERNAL_00000000_4_k_cu_k29_GLOBAL__N__00000000_4_k("));
        assert!(one.ends_with("\t}\n") && !one.contains("dc1b041e"));
        // The string keeps its length and its ends.
        let rows: Vec<u8> = one.lines().filter_map(byte_row).flatten().collect();
        assert_eq!(String::from_utf8(rows).unwrap(), "_ZN27_INTERNAL_00000000_4_k_cu_k6helperEf\0");
    }

    #[test]
    fn output_that_cannot_be_read_is_refused() {
        assert!(normalize("", "", &places()).is_err());
        assert!(normalize(".version 9.0\n.file x\n", "", &places()).is_err());
    }

    #[test]
    fn what_is_no_hash_stays() {
        let mut text = b"_INTERNAL_short _INTERNAL_0123456z _GLOBAL__N__x _INTERNAL_".to_vec();
        let before = text.clone();
        blank_hashes(&mut text);
        assert_eq!(text, before);
    }
}
