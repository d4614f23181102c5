//! The text form of PyTorch's pipelining: there and back, golden rows, hostile text.

use dualpipe::{Action, ActionKind, Error, Kind, Placement, Schedule, Step};
use proptest::prelude::*;

fn kinds() -> Vec<Kind> {
    let mut kinds = Kind::ALL.to_vec();
    kinds.extend([Kind::Interleaved(3), Kind::Interleaved(5)]);
    kinds
}

#[test]
fn every_schedule_with_one_home_a_stage_comes_back() {
    let mut back = 0;
    for kind in kinds() {
        for (ranks, micro_batches) in [(1, 1), (1, 3), (2, 2), (2, 5), (3, 7), (4, 8), (4, 16), (8, 20)] {
            let Ok(schedule) = Schedule::new(kind, ranks, micro_batches) else { continue };
            let text = schedule.to_torch_csv();
            if kind.placement() == Placement::Bidirectional {
                let error = text.unwrap_err();
                assert!(matches!(error, Error::Unsupported { .. }), "{error}");
                assert!(error.to_string().contains("two ranks"), "{error}");
                continue;
            }
            let text = text.unwrap();
            let read = Schedule::from_torch_csv(&text).unwrap();
            assert_eq!(read.ranks_actions(), schedule.ranks_actions(), "{kind} {ranks} {micro_batches}");
            assert_eq!((read.ranks(), read.micro_batches()), (ranks, micro_batches));
            // The name is that of the first kind with these lists; for any but the smallest it is the same.
            if (ranks, micro_batches) == (4, 16) {
                assert_eq!(read, schedule);
            }
            assert_eq!(read.to_torch_csv().unwrap(), text);
            back += 1;
        }
    }
    assert!(back > 50);
}

/// Lists that no generator makes are read as a custom schedule with their placement.
#[test]
fn other_lists_come_back_as_custom() {
    for (kind, placement) in
        [(Kind::GPipe, Placement::Line), (Kind::ZbV, Placement::V), (Kind::Interleaved(3), Placement::Loop(3))]
    {
        let schedule = Schedule::new(kind, 3, 6).unwrap();
        let mut lists = schedule.ranks_actions().to_vec();
        // The first two forwards of rank 0 in the other order.
        lists[0].swap(0, 1);
        let odd = Schedule::from_actions(Kind::Custom(placement), 3, 6, lists).unwrap();
        let read = Schedule::from_torch_csv(&odd.to_torch_csv().unwrap()).unwrap();
        assert_eq!(read, odd);
    }
}

/// Rows as PyTorch writes them: two stages a rank in a V, 0 and 3 on rank 0, 1 and 2 on rank 1 (the V-shaped schedule of its tests
/// has this placement), with slots in which a rank does nothing, a backward in its two parts, and an overlap.
#[test]
fn golden_rows() {
    let text = "0F0,0F1,,3F0,\"(3F1;3B0)OVERLAP_F_B\",3I1, 0B0 ,3W1,0I1,0W1\r\n,1F0,2F0,1F1,2F1,2B0,1B0,2B1,1B1\r\n";
    let schedule = Schedule::from_torch_csv(text).unwrap();
    assert_eq!((schedule.ranks(), schedule.micro_batches(), schedule.placement()), (2, 2, Placement::V));
    assert_eq!(schedule.kind(), Kind::Custom(Placement::V));
    let one = |kind, direction, chunk| Step::One(Action::new(kind, direction, chunk));
    use ActionKind::{B, F, I, W};
    assert_eq!(
        schedule.steps(0),
        [
            one(F, 0, 0),
            one(F, 0, 1),
            one(F, 1, 0),
            Step::Pair(Action::new(F, 1, 1), Action::new(B, 1, 0)),
            one(I, 1, 1),
            one(B, 0, 0),
            one(W, 1, 1),
            one(I, 0, 1),
            one(W, 0, 1),
        ]
    );
    // Written back: the same without the empty slots, quotes and spaces, which say nothing about the order.
    let plain = "0F0,0F1,3F0,(3F1;3B0)OVERLAP_F_B,3I1,0B0,3W1,0I1,0W1\r\n1F0,2F0,1F1,2F1,2B0,1B0,2B1,1B1\r\n";
    assert_eq!(schedule.to_torch_csv().unwrap(), plain);
    assert_eq!(Schedule::from_torch_csv(plain).unwrap(), schedule);
}

#[test]
fn ends_of_lines_do_not_matter() {
    let schedule = Schedule::new(Kind::ZbH1, 3, 5).unwrap();
    let text = schedule.to_torch_csv().unwrap();
    for other in [text.replace("\r\n", "\n"), text.replace("\r\n", "\r"), text.trim_end().to_string()] {
        assert_eq!(Schedule::from_torch_csv(&other).unwrap(), schedule);
    }
}

#[test]
fn what_cannot_be_read_is_named() {
    let said = |text: &str| {
        let error = Schedule::from_torch_csv(text).unwrap_err().to_string();
        assert!(!error.contains('\n') && error.len() < 300, "{error}");
        error
    };
    assert!(said("").contains("at least one action"));
    assert!(said(",,\n").contains("at least one action"));
    assert!(said("0F0,0B0,oF1").contains("row 0, cell 2: expected an action as 2F0"));
    assert!(said("0F0,0B").contains("row 0, cell 1"));
    assert!(said("0F0x").contains("'0F0x'"));
    assert!(said("F0").contains("expected an action"));
    assert!(said("0F0,0B0\n1F0,1SEND_B0").contains("row 1, cell 1: SEND_B: not supported"));
    assert!(said("0UNSHARD,0F0").contains("UNSHARD"));
    assert!(said("(0F0;0B0)OVERLAP").contains("OVERLAP_F_B"));
    assert!(said("(0F0,0B0").contains("OVERLAP_F_B"));
    assert!(said("(0B0;0F1)OVERLAP_F_B").contains("in this order"));
    assert!(said("(0F1;0I0)OVERLAP_F_B").contains("one F and one B"));
    assert!(said("\"0F0").contains("a quote that ends"));
    assert!(said("99999999999999999999F0").contains("numbers below"));
    assert!(said("0F1048576").contains("numbers below"));
    assert!(said("1048575F1048575,0F0").contains("not supported"));
    // A stage on two ranks, as in DualPipe, and an order of stages that no placement has.
    assert!(said("0F0,0B0\n0F1,0B1").contains("stage 0 on ranks 0 and 1"));
    assert!(said("1F0,1B0\n0F0,0B0").contains("in a line, in a V, or in a loop"));
    assert!(said("0F0,0B0\n\n2F0,2B0").contains("not supported"));
    // What is of the form but no schedule.
    assert!(said("0F0").contains("lacks B"));
    assert!(said("0F0,0F0,0B0").contains("twice"));
    assert!(said("0B0,0F0").contains("backward before F"));
    assert!(said("0F0,0B0,0F1,0B1\n1F1,1B1,1F0,1B0").contains("deadlock"));
}

/// Text that looks like the form.
fn almost() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        "[0-3][FIBW][0-3]",
        "[0-9]{0,3}(F|I|B|W|UNSHARD|SEND_F|OVERLAP_F_B|é)[0-9]{0,12}",
        "\\([0-3]F[0-3];[0-3]B[0-3]\\)OVERLAP_F_B",
        "[,;()\" \r\n]",
        "\\PC{0,3}",
    ];
    proptest::collection::vec((piece, prop_oneof![Just(","), Just("\n"), Just("\r\n"), Just(""), Just("\"")]), 0..40)
        .prop_map(|pieces| pieces.into_iter().map(|(piece, end)| piece + end).collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn hostile_text_never_panics(text in almost()) {
        if let Ok(schedule) = Schedule::from_torch_csv(&text) {
            // Whatever it took, it can write and read again.
            let again = Schedule::from_torch_csv(&schedule.to_torch_csv().unwrap()).unwrap();
            prop_assert_eq!(again, schedule);
        }
    }

    #[test]
    fn damaged_text_is_refused_or_read_alike(
        at in 0usize..10_000,
        kind in proptest::sample::select(kinds()),
        with in prop_oneof![Just(""), Just(","), Just("0"), Just("F"), Just("\n"), Just("\""), Just(" "), Just("(")],
    ) {
        prop_assume!(kind.placement() != Placement::Bidirectional);
        let text = Schedule::new(kind, 2, 4).unwrap().to_torch_csv().unwrap();
        let at = at % text.len();
        let damaged = format!("{}{with}{}", &text[..at], &text[at + usize::from(with.is_empty())..]);
        if let Ok(schedule) = Schedule::from_torch_csv(&damaged) {
            let again = Schedule::from_torch_csv(&schedule.to_torch_csv().unwrap()).unwrap();
            prop_assert_eq!(again.ranks_actions(), schedule.ranks_actions());
        }
    }
}
