//! What the assembler says of a PTX file: registers, memory, spills, and remarks that cost speed.

/// What a kernel, or a function that is not inlined, takes.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Usage {
    /// The name in the PTX.
    pub name: String,
    /// Registers per thread; 0 for a function, whose caller counts them.
    pub registers: u64,
    /// Static shared memory in bytes.
    pub shared: u64,
    /// Bytes of registers stored to local memory.
    pub spill_stores: u64,
    /// Bytes of registers loaded from local memory.
    pub spill_loads: u64,
    /// Stack frame in bytes: local arrays and spills.
    pub stack: u64,
}

/// All it says.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// In the order of their names.
    pub usages: Vec<Usage>,
    /// Warnings, errors, and numbered remarks such as `(C7510) Potential Performance Loss: ...`.
    pub remarks: Vec<String>,
}

impl Report {
    /// Reads what `ptxas -v` writes.
    pub fn parse(said: &str) -> Report {
        let mut report = Report::default();
        let mut entry = String::new();
        let mut current: Option<usize> = None;
        for line in said.lines() {
            let info = line.strip_prefix("ptxas info").map(|l| l.trim_start_matches([' ', ':']));
            match info {
                Some(info) if info.starts_with('(') => report.remarks.push(info.to_string()),
                Some(info) => {
                    if let Some(name) = info.strip_prefix("Compiling entry function '").and_then(|r| r.split('\'').next()) {
                        entry = name.to_string();
                        report.at(name);
                    } else if let Some(name) = info.strip_prefix("Function properties for ") {
                        current = Some(report.at(name.trim()));
                    } else if info.starts_with("Used ") {
                        let at = report.at(&entry);
                        let usage = &mut report.usages[at];
                        usage.registers = before(info, " registers");
                        usage.shared = before(info, " bytes smem");
                    }
                }
                None if line.contains("bytes stack frame") => {
                    if let Some(usage) = current.and_then(|at| report.usages.get_mut(at)) {
                        usage.stack = before(line, " bytes stack frame");
                        usage.spill_stores = before(line, " bytes spill stores");
                        usage.spill_loads = before(line, " bytes spill loads");
                    }
                }
                None if !line.trim().is_empty() => report.remarks.push(line.trim().to_string()),
                None => {}
            }
        }
        report.usages.sort_by(|a, b| a.name.cmp(&b.name));
        report
    }

    fn at(&mut self, name: &str) -> usize {
        let found = self.usages.iter().position(|u| u.name == name);
        found.unwrap_or_else(|| {
            self.usages.push(Usage { name: name.to_string(), ..Usage::default() });
            self.usages.len() - 1
        })
    }

    /// What may not be: spills in kernels that are not allowed to, and remarks that are not expected.
    pub fn problems(&self, allow_spills: &[String], allow_remarks: &[String]) -> Vec<String> {
        let spilling = self.usages.iter().filter(|u| u.spill_stores + u.spill_loads > 0 && !allow_spills.contains(&u.name));
        let spills =
            spilling.map(|u| format!("{} spills {} bytes, and is not allowed to", u.name, u.spill_stores.max(u.spill_loads)));
        let expected = |remark: &&String| !allow_remarks.iter().any(|code| remark.starts_with(&format!("({code})")));
        spills.chain(self.remarks.iter().filter(expected).cloned()).collect()
    }
}

/// The number in front of `words`, 0 when they are not there.
fn before(line: &str, words: &str) -> u64 {
    let text = line.split(words).next().filter(|head| head.len() < line.len());
    text.and_then(|head| head.rsplit(|c: char| !c.is_ascii_digit()).next()?.parse().ok()).unwrap_or(0)
}

/// The head of the table.
pub fn table_head() -> String {
    row("kernel", ["regs", "smem", "spill st", "spill ld", "stack"])
}

impl Usage {
    /// A row of the table, 80 columns wide.
    pub fn row(&self) -> String {
        let registers = if self.registers == 0 { "-".to_string() } else { self.registers.to_string() };
        let numbers = [self.shared, self.spill_stores, self.spill_loads, self.stack].map(|n| n.to_string());
        row(&format!("  {}", self.name), [&registers, &numbers[0], &numbers[1], &numbers[2], &numbers[3]])
    }
}

fn row(name: &str, [registers, shared, stores, loads, stack]: [&str; 5]) -> String {
    const WIDTH: usize = 42;
    let cut: String = match name.chars().count() > WIDTH {
        true => name.chars().take(WIDTH - 1).chain(['~']).collect(),
        false => name.to_string(),
    };
    format!("{cut:<WIDTH$}{registers:>5}{shared:>8}{stores:>9}{loads:>9}{stack:>7}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "\
ptxas info    : (C7508) Potential Performance Loss: 'setmaxnreg' ignored; unable to determine register count at entry.
ptxas info    : 4 bytes gmem
ptxas info    : Compiling entry function 'w' for 'sm_90a'
ptxas info    : Function properties for w
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 30 registers, used 1 barriers, 1024 bytes smem
ptxas info    : Compile time = 2.366 ms
ptxas info    : Compiling entry function 'k' for 'sm_90a'
ptxas info    : Function properties for k
    1096 bytes stack frame, 1056 bytes spill stores, 1068 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 1096 bytes cumulative stack size
ptxas info    : Function properties for _Z6helperfi
    8 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
";

    #[test]
    fn usage_and_remarks() {
        let report = Report::parse(SAID);
        let names: Vec<&str> = report.usages.iter().map(|u| u.name.as_str()).collect();
        assert_eq!(names, ["_Z6helperfi", "k", "w"]);
        let k = Usage { name: "k".into(), registers: 32, shared: 0, spill_stores: 1056, spill_loads: 1068, stack: 1096 };
        assert_eq!(report.usages[1], k);
        assert_eq!((report.usages[2].registers, report.usages[2].shared, report.usages[0].stack), (30, 1024, 8));
        assert_eq!(report.remarks.len(), 1);
    }

    #[test]
    fn spills_and_remarks_fail_unless_allowed() {
        let report = Report::parse(SAID);
        let problems = |spills: &[&str], remarks: &[&str]| {
            let owned = |l: &[&str]| l.iter().map(|s| s.to_string()).collect::<Vec<_>>();
            report.problems(&owned(spills), &owned(remarks))
        };
        assert_eq!(problems(&[], &[]).len(), 2);
        assert_eq!(problems(&["k"], &[]).len(), 1);
        assert_eq!(problems(&["w"], &["C7508"]), ["k spills 1068 bytes, and is not allowed to"]);
        assert_eq!(problems(&["k"], &["C7508"]), [""; 0]);
        let other = Report::parse("ptxas warning : Unresolved extern\nptxas fatal   : Ptx assembly aborted due to errors\n");
        assert_eq!(other.problems(&[], &["C7508".into()]).len(), 2);
    }

    #[test]
    fn rows_are_80_columns() {
        let long = Usage { name: "x".repeat(70), registers: 255, ..Usage::default() };
        for row in [table_head(), long.row(), Usage::default().row()] {
            assert_eq!(row.chars().count(), 80, "{row}");
        }
    }
}
