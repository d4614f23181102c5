//! Which memory instructions of a PTX file tell the caches what to do.

use std::collections::BTreeMap;

/// Columns for the opcode.
const WIDTH: usize = 71;

/// A row of the table for each opcode with a cache hint, and how often it is written; 80 columns wide.
pub fn rows(ptx: &str) -> Vec<String> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for line in ptx.lines() {
        let words = line.trim().trim_start_matches(['{', '}']).split_whitespace();
        // A guard stands before the instruction.
        let opcode = words.into_iter().find(|word| !word.starts_with('@')).unwrap_or("");
        if is_hinted(opcode) {
            *counts.entry(opcode).or_default() += 1;
        }
    }
    let row = |(opcode, count): (&str, usize)| {
        // The scope and the kind of a copy stand first, its hints last.
        let cut = opcode.len().saturating_sub(WIDTH);
        let shown = if cut == 0 { opcode.to_string() } else { format!("~{}", opcode.get(cut + 1..).unwrap_or(opcode)) };
        format!("    {shown:<WIDTH$}{count:>5}")
    };
    counts.into_iter().map(row).collect()
}

/// Accesses of memory that say where a line shall not stay, or how long.
fn is_hinted(opcode: &str) -> bool {
    let touches = ["ld.", "st.", "cp.", "prefetch"].iter().any(|start| opcode.starts_with(start));
    touches && ["L1::", "L2::", ".nc", ".cs", ".cg"].iter().any(|hint| opcode.contains(hint))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hinted_opcodes_are_counted() {
        let text = "\
\tld.global.nc.L1::no_allocate.L2::cache_hint.v4.u32 {%r1, %r2, %r3, %r4}, [%rd1], %rd2;
\t@%p1 ld.global.nc.L1::no_allocate.L2::cache_hint.v4.u32 {%r1, %r2, %r3, %r4}, [%rd1], %rd2;
\tst.global.L1::no_allocate.v4.u32 [%rd1], {%r1, %r2, %r3, %r4};
\tst.global.u32 [%rd1], %r1;
// ld.global.L1::no_allocate.u32 in a comment
\tcp.async.cg.shared.global [%r1], [%rd1], 16;
\tcp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%r1], [%rd1], %r2, [%r3], %rd2;
";
        let rows = rows(text);
        let short: Vec<Vec<&str>> = rows.iter().map(|row| row.split_whitespace().collect()).collect();
        assert_eq!(
            short,
            [
                ["~ulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint", "1"],
                ["cp.async.cg.shared.global", "1"],
                ["ld.global.nc.L1::no_allocate.L2::cache_hint.v4.u32", "2"],
                ["st.global.L1::no_allocate.v4.u32", "1"],
            ]
        );
        assert!(rows.iter().all(|row| row.chars().count() == 80));
    }
}
