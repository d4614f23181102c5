//! Dispatch and combine between devices.

use moe_dispatch::gpu::Arch;

#[test]
fn architectures() {
    assert_eq!(Arch::of((9, 0)).unwrap(), Arch::Sm90a);
    assert_eq!(Arch::of((8, 6)).unwrap(), Arch::Sm80);
    assert_eq!(Arch::of((10, 0)).unwrap(), Arch::Sm80);
    assert!(Arch::of((7, 5)).unwrap_err().to_string().contains("7.5"));
    assert!(Arch::Sm80.runs_on((9, 0)) && !Arch::Sm90a.runs_on((10, 0)));
}
