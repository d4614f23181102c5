//! Streams, events and launches that may overlap.

use ptx_emu::{Arg, Config, Kind, Machine, Module, Report, Shape};

/// `waits` and `does_not` add 1 to the thread's word of `x`; the first after `griddepcontrol.wait`.
const PTX: &str = "
.version 8.0
.target sm_90
.address_size 64
.visible .entry waits(.param .u64 x) {
    .reg .b32 %a; .reg .b64 %x, %at;
    ld.param.u64 %x, [x]; mov.u32 %a, %tid.x; mul.wide.u32 %at, %a, 4; add.s64 %x, %x, %at;
    griddepcontrol.wait;
    ld.global.u32 %a, [%x]; add.u32 %a, %a, 1; st.global.u32 [%x], %a;
    griddepcontrol.launch_dependents;
    ret;
}
.visible .entry does_not(.param .u64 x) {
    .reg .b32 %a; .reg .b64 %x, %at;
    ld.param.u64 %x, [x]; mov.u32 %a, %tid.x; mul.wide.u32 %at, %a, 4; add.s64 %x, %x, %at;
    ld.global.u32 %a, [%x]; add.u32 %a, %a, 1; st.global.u32 [%x], %a;
    griddepcontrol.launch_dependents;
    ret;
}";

fn launches(seed: u64, kernels: &[&str], programmatic: bool, wait_between: bool) -> Result<u32, Report> {
    let machine = Machine::new(Config { seed, ..Config::default() });
    let module = machine.load(&Module::parse(PTX).unwrap(), 0).unwrap();
    let stream = machine.stream(0).unwrap();
    let x = machine.memory().alloc(0, 128).unwrap();
    machine.memory().fill(x, 0, 128).unwrap();
    for kernel in kernels {
        machine.launch(stream, &module, kernel, Shape { programmatic, ..Shape::new(1, 32) }, &[Arg::from(x)]).unwrap();
        if wait_between {
            machine.synchronize_stream(stream)?;
        }
    }
    machine.synchronize()?;
    let mut word = [0; 4];
    machine.memory().read(x + 124, &mut word).unwrap();
    Ok(u32::from_le_bytes(word))
}

#[test]
fn a_stream_orders_its_launches() {
    for seed in 0..10 {
        assert_eq!(launches(seed, &["does_not"; 3], false, false).unwrap(), 3);
    }
}

#[test]
fn a_programmatic_launch_that_waits_comes_after() {
    for seed in 0..10 {
        assert_eq!(launches(seed, &["waits"; 5], true, false).unwrap(), 5);
    }
}

#[test]
fn a_programmatic_launch_that_does_not_wait_races_with_every_seed() {
    for seed in 0..10 {
        let report = launches(seed, &["waits", "does_not"], true, false).unwrap_err();
        assert_eq!(report.kind, Kind::DataRace, "{report}");
    }
}

#[test]
fn the_host_waiting_in_between_orders_them_too() {
    for seed in 0..10 {
        assert_eq!(launches(seed, &["does_not"; 3], true, true).unwrap(), 3);
    }
}

#[test]
fn a_plain_launch_ends_a_chain_of_programmatic_ones() {
    let machine = Machine::new(Config::default());
    let module = machine.load(&Module::parse(PTX).unwrap(), 0).unwrap();
    let stream = machine.stream(0).unwrap();
    let x = machine.memory().alloc(0, 128).unwrap();
    machine.memory().fill(x, 0, 128).unwrap();
    for i in 0..6 {
        let (kernel, programmatic) = if i % 3 == 2 { ("does_not", false) } else { ("waits", true) };
        machine.launch(stream, &module, kernel, Shape { programmatic, ..Shape::new(1, 32) }, &[Arg::from(x)]).unwrap();
    }
    machine.synchronize().unwrap();
}

#[test]
fn thousands_of_overlapping_launches() {
    assert_eq!(launches(0, &["waits"; 3000], true, false).unwrap(), 3000);
}

#[test]
fn a_stream_waits_for_an_event_of_another() {
    for seed in 0..10 {
        let machine = Machine::new(Config { seed, ..Config::default() });
        let module = machine.load(&Module::parse(PTX).unwrap(), 0).unwrap();
        let (one, two) = (machine.stream(0).unwrap(), machine.stream(0).unwrap());
        let x = machine.memory().alloc(0, 128).unwrap();
        machine.memory().fill(x, 0, 128).unwrap();
        let event = machine.event();
        machine.launch(one, &module, "does_not", Shape::new(1, 32), &[Arg::from(x)]).unwrap();
        machine.record(one, event).unwrap();
        machine.wait_event(two, event).unwrap();
        machine.launch(two, &module, "does_not", Shape::new(1, 32), &[Arg::from(x)]).unwrap();
        machine.synchronize().unwrap();
        // Without the event the two race.
        machine.launch(one, &module, "does_not", Shape::new(1, 32), &[Arg::from(x)]).unwrap();
        machine.launch(two, &module, "does_not", Shape::new(1, 32), &[Arg::from(x)]).unwrap();
        assert_eq!(machine.synchronize().unwrap_err().kind, Kind::DataRace);
    }
}
