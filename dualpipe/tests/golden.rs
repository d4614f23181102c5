//! The lists that the authors' own implementations of DualPipe and DualPipeV gave.

use dualpipe::{Kind, Schedule};

const GOLDEN: [(Kind, usize, usize, &str); 8] = [
    (Kind::DualPipe, 2, 4, include_str!("data/dualpipe_r2_m4.json")),
    (Kind::DualPipe, 4, 8, include_str!("data/dualpipe_r4_m8.json")),
    (Kind::DualPipe, 6, 14, include_str!("data/dualpipe_r6_m14.json")),
    (Kind::DualPipe, 8, 20, include_str!("data/dualpipe_r8_m20.json")),
    (Kind::DualPipeV, 1, 2, include_str!("data/dualpipev_r1_m2.json")),
    (Kind::DualPipeV, 2, 4, include_str!("data/dualpipev_r2_m4.json")),
    (Kind::DualPipeV, 4, 10, include_str!("data/dualpipev_r4_m10.json")),
    (Kind::DualPipeV, 8, 20, include_str!("data/dualpipev_r8_m20.json")),
];

#[test]
fn generated_schedules_equal_the_authors_byte_for_byte() {
    for (kind, ranks, micro_batches, text) in GOLDEN {
        let schedule = Schedule::new(kind, ranks, micro_batches).unwrap();
        assert_eq!(schedule.to_json(), text.trim_end(), "{kind}, {ranks} ranks, {micro_batches} micro-batches");
    }
}

#[test]
fn the_authors_schedules_read_back_as_the_generated_ones() {
    for (kind, ranks, micro_batches, text) in GOLDEN {
        assert_eq!(Schedule::from_json(text).unwrap(), Schedule::new(kind, ranks, micro_batches).unwrap());
    }
}

/// The small schedules written out: a change of the generators shows here.
#[test]
fn the_other_schedules_are_as_published() {
    let text = |kind: Kind, ranks, micro_batches, rank: usize| {
        let schedule = Schedule::new(kind, ranks, micro_batches).unwrap();
        schedule.steps(rank).iter().map(|step| step.to_string()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(text(Kind::GPipe, 2, 3, 1), "F0.0 F0.1 F0.2 B0.0 B0.1 B0.2");
    assert_eq!(text(Kind::OneFOneB, 3, 4, 0), "F0.0 F0.1 F0.2 B0.0 F0.3 B0.1 B0.2 B0.3");
    assert_eq!(text(Kind::OneFOneB, 3, 4, 2), "F0.0 B0.0 F0.1 B0.1 F0.2 B0.2 F0.3 B0.3");
    assert_eq!(text(Kind::ZbH1, 3, 4, 0), "F0.0 F0.1 F0.2 I0.0 W0.0 F0.3 I0.1 W0.1 I0.2 W0.2 I0.3 W0.3");
    assert_eq!(text(Kind::ZbH1, 3, 4, 2), "F0.0 I0.0 F0.1 I0.1 F0.2 I0.2 W0.0 F0.3 I0.3 W0.1 W0.2 W0.3");
    assert_eq!(
        text(Kind::ZbV, 2, 3, 0),
        "F0.0 F0.1 F0.2 F1.0 I1.0 W1.0 F1.1 I1.1 W1.1 I0.0 W0.0 F1.2 I1.2 W1.2 I0.1 W0.1 I0.2 W0.2"
    );
    assert_eq!(
        text(Kind::ZbV, 2, 3, 1),
        "F0.0 F1.0 F0.1 F1.1 I1.0 W1.0 F0.2 I0.0 W0.0 F1.2 I1.1 W1.1 I0.1 I1.2 I0.2 W0.1 W1.2 W0.2"
    );
}
