//! What fits into memory. A size that cannot fit is refused before anything is allocated or written.

/// Bytes of memory that the machine has, where that can be told.
pub fn installed() -> Option<u128> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kib: u128 = text.lines().find_map(|l| l.strip_prefix("MemTotal:"))?.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// The machine's memory and the need, in words, if `bytes` cannot fit.
pub fn exceeded(bytes: u128) -> Option<(String, String)> {
    let gb = |bytes: u128| format!("{:.1} GB", bytes as f64 / 1e9);
    installed().filter(|installed| bytes > *installed).map(|installed| (gb(installed), gb(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_exceeds_and_everything_does() {
        assert_eq!(exceeded(0), None);
        if installed().is_some() {
            let (_, need) = exceeded(u128::MAX >> 40).expect("more than any machine has");
            assert!(need.ends_with(" GB"));
        }
    }
}
