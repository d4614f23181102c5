//! The text form of PyTorch's pipelining (`torch.distributed.pipelining`, the CSV that its schedules load and dump in the format
//! `compute_only`).
//!
//! One row a rank, in order; in each row the rank's actions in order, separated by commas. An action is the number of its stage, a letter, and
//! the number of its micro-batch: `2F0`. The letters mean what they mean here: `F`, `B` (full backward), `I`, `W`. An empty
//! cell is a slot in which the rank does nothing. An overlapped forward and backward is `(0F3;7B1)OVERLAP_F_B`
//! (PyTorch 2.9 and later). Cells may stand in double quotes, and space around them does not count.
//!
//! What the form cannot say:
//! - a stage on more than one rank ([`Placement::Bidirectional`]): an error, as it is in PyTorch;
//! - the name of a schedule: reading gives the first kind that makes exactly these lists, or [`Kind::Custom`]. One rank with two
//!   stages is read as a V, unless an interleaved schedule makes these lists.
//!
//! And what a [`Schedule`] cannot say: slots in which nothing is done are left out (their length is for
//! [`simulate`](crate::simulate) to find), and the format `compute_comms` (`SEND_F`, `RECV_F`, `SEND_B`, `RECV_B`, `UNSHARD`, `RESHARD`,
//! `REDUCE_GRAD`) is an error: transfers follow from the actions.

use std::fmt::Write;

use crate::action::{Action, ActionKind, Step};
use crate::error::{Error, Result};
use crate::kind::{Kind, Placement};
use crate::schedule::{MAX_CHUNKS, Schedule};

/// An action as PyTorch counts: by stage and micro-batch.
#[derive(Clone, Copy)]
struct Cell {
    kind: ActionKind,
    stage: usize,
    micro_batch: usize,
}

/// What PyTorch calls a forward and a backward that overlap each other.
const OVERLAP: &str = "OVERLAP_F_B";

/// Actions of the format `compute_comms`.
const COMMUNICATION: [&str; 7] = ["UNSHARD", "RESHARD", "REDUCE_GRAD", "SEND_F", "RECV_F", "SEND_B", "RECV_B"];

impl Schedule {
    /// The schedule in the text form of PyTorch's pipelining: rows of cells, each row ended by `\r\n`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for stages that are on two ranks.
    ///
    /// ```
    /// use dualpipe::{Kind, Schedule};
    /// let schedule = Schedule::new(Kind::OneFOneB, 2, 2)?;
    /// assert_eq!(schedule.to_torch_csv()?, "0F0,0F1,0B0,0B1\r\n1F0,1B0,1F1,1B1\r\n");
    /// # Ok::<(), dualpipe::Error>(())
    /// ```
    pub fn to_torch_csv(&self) -> Result<String> {
        if self.placement() == Placement::Bidirectional {
            return Err(Error::Unsupported {
                what: format!("schedule {} in the text form of PyTorch", self.kind()),
                why: "it has every stage on two ranks, the text form on one".into(),
            });
        }
        let mut out = String::new();
        for rank in 0..self.ranks() {
            for (index, step) in self.steps(rank).iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                let cell = |action: Action| {
                    // Every action of a schedule has a stage.
                    let stage = self.stage_of(rank, action.direction).unwrap_or_default();
                    format!("{stage}{}{}", action.kind.letter(), self.micro_batch(action.direction, action.chunk))
                };
                // Writing to a string cannot fail.
                let _ = match *step {
                    Step::One(action) => write!(out, "{}", cell(action)),
                    Step::Pair(forward, backward) => write!(out, "({};{}){OVERLAP}", cell(forward), cell(backward)),
                };
            }
            out.push_str("\r\n");
        }
        Ok(out)
    }

    /// Reads the text form of PyTorch's pipelining. As many ranks as rows; stages on ranks in a line, in a V, or in a loop
    /// (as in interleaved schedules).
    ///
    /// # Errors
    /// [`Error::Cell`] for a cell that is not of the form; [`Error::Unsupported`] for communication, and for stages that are placed
    /// otherwise or on several ranks; all that [`validate`](crate::validate()) finds.
    ///
    /// ```
    /// use dualpipe::{Kind, Schedule};
    /// let text = "0F0,0F1,,0B0,0B1\n,1F0,1B0,1F1,1B1\n";
    /// assert_eq!(Schedule::from_torch_csv(text)?, Schedule::new(Kind::OneFOneB, 2, 2)?);
    /// # Ok::<(), dualpipe::Error>(())
    /// ```
    pub fn from_torch_csv(text: &str) -> Result<Schedule> {
        let rows = parse(text)?;
        let ranks = rows.len();
        let (mut stages, mut micro_batches) = (0, 0);
        for cell in rows.iter().flatten().flatten() {
            // The parser has made sure that both are small.
            stages = stages.max(cell.stage + 1);
            micro_batches = micro_batches.max(cell.micro_batch + 1);
        }
        if stages == 0 {
            return Err(Error::Shape {
                what: "PyTorch schedule".into(),
                expected: "at least one action".into(),
                got: format!("{ranks} rows without any"),
            });
        }
        let mut homes: Vec<Option<usize>> = vec![None; stages];
        for (rank, row) in rows.iter().enumerate() {
            for cell in row.iter().flatten() {
                let home = homes[cell.stage].get_or_insert(rank);
                if *home != rank {
                    return Err(Error::Unsupported {
                        what: format!("PyTorch schedule: stage {} on ranks {home} and {rank}", cell.stage),
                        why: "a stage is on one rank".into(),
                    });
                }
            }
        }
        let placements: Vec<Placement> = placements(ranks, &homes);
        let Some(&first) = placements.first() else {
            let shown: Vec<String> =
                homes.iter().take(16).map(|home| home.map_or("none".into(), |rank| rank.to_string())).collect();
            return Err(Error::Unsupported {
                what: format!("PyTorch schedule: {stages} stages on ranks {}", shown.join(" ")),
                why: "stages can be placed in a line, in a V, or in a loop".into(),
            });
        };
        let mut lists = Vec::with_capacity(ranks);
        for (rank, row) in rows.iter().enumerate() {
            let action = |cell: &Cell| {
                // The stage is at home on this rank, and every placement that is left puts it here in the same direction.
                let mut directions = 0..first.directions();
                let direction = directions.find(|&d| first.stage_of(ranks, rank, d) == Some(cell.stage)).unwrap_or_default();
                Action::new(cell.kind, direction as u8, cell.micro_batch)
            };
            let step = |cells: &Vec<Cell>| match cells.as_slice() {
                [forward, backward] => Some(Step::Pair(action(forward), action(backward))),
                [single] => Some(Step::One(action(single))),
                _ => None,
            };
            lists.push(row.iter().filter_map(step).collect::<Vec<Step>>());
        }
        let schedule = Schedule::from_actions(Kind::Custom(first), ranks, micro_batches, lists)?;
        for placement in placements {
            let looped = match placement {
                Placement::Loop(each) => Some(Kind::Interleaved(each)),
                _ => None,
            };
            for kind in Kind::ALL.into_iter().chain(looped).filter(|kind| kind.placement() == placement) {
                if let Ok(known) = Schedule::new(kind, ranks, micro_batches)
                    && known.ranks_actions() == schedule.ranks_actions()
                {
                    return Ok(known);
                }
            }
        }
        Ok(schedule)
    }
}

/// The placements that put the stages where the text has them.
fn placements(ranks: usize, homes: &[Option<usize>]) -> Vec<Placement> {
    let each = homes.len() / ranks.max(1);
    let mut candidates = vec![Placement::Line, Placement::V];
    candidates.extend(u8::try_from(each).ok().filter(|&each| each >= 2).map(Placement::Loop));
    let right = |placement: &Placement| {
        placement.stages(ranks) == homes.len()
            && homes.iter().enumerate().all(|(stage, home)| {
                // Every stage of these has the same home for all micro-batches.
                placement.locate(ranks, 1, stage, 0).map(|(rank, ..)| rank) == *home
            })
    };
    candidates.retain(right);
    candidates
}

/// The cells of each row: none for an empty one, two for an overlap.
fn parse(text: &str) -> Result<Vec<Vec<Vec<Cell>>>> {
    let mut rows = Vec::new();
    let mut characters = text.chars().peekable();
    let mut row: Vec<Vec<Cell>> = Vec::new();
    let mut field = String::new();
    // Whether the row has anything yet: the end of the text after the end of a row begins no other.
    let mut begun = false;
    let mut quoted = false;
    loop {
        let next = characters.next();
        let at = || (rows.len(), row.len());
        match next {
            Some('"') if quoted && characters.peek() == Some(&'"') => {
                characters.next();
                field.push('"');
            }
            Some('"') if quoted || field.trim().is_empty() => {
                quoted = !quoted;
                begun = true;
            }
            None if quoted => return Err(fault(at(), "a quote that ends", "the end of the text")),
            Some(other) if quoted => field.push(other),
            Some(',') => {
                let cells = cell(&field, at())?;
                row.push(cells);
                field.clear();
                begun = true;
            }
            Some('\r') if characters.peek() == Some(&'\n') => {}
            Some('\n' | '\r') | None => {
                if next.is_none() && !begun {
                    return Ok(rows);
                }
                let cells = cell(&field, at())?;
                row.push(cells);
                field.clear();
                rows.push(std::mem::take(&mut row));
                begun = false;
            }
            Some(other) => {
                field.push(other);
                begun = true;
            }
        }
        if rows.len() > MAX_CHUNKS || row.len() > 4 * MAX_CHUNKS {
            return Err(fault((rows.len(), row.len()), "a schedule of at most 1,048,576 chunks", "more"));
        }
    }
}

fn fault((row, cell): (usize, usize), expected: &str, got: &str) -> Error {
    // What is shown of a cell is short, whatever the text is.
    let mut shown: String = got.chars().take(40).collect();
    if shown.len() < got.len() {
        shown.push_str("...");
    }
    Error::Cell { row, cell, expected: expected.into(), got: shown }
}

/// An empty cell, an action, or two that overlap.
fn cell(text: &str, at: (usize, usize)) -> Result<Vec<Cell>> {
    let text = text.trim();
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let Some(inner) = text.strip_prefix('(') else { return Ok(vec![single(text, at)?]) };
    let form = "an overlap as (0F1;1B0)OVERLAP_F_B";
    let (parts, name) = inner.split_once(')').ok_or_else(|| fault(at, form, text))?;
    if name.trim() != OVERLAP {
        return Err(fault(at, form, text));
    }
    let (forward, backward) = parts.split_once(';').ok_or_else(|| fault(at, form, text))?;
    let (forward, backward) = (single(forward.trim(), at)?, single(backward.trim(), at)?);
    if (forward.kind, backward.kind) != (ActionKind::F, ActionKind::B) {
        return Err(fault(at, "an overlap of one F and one B, in this order", text));
    }
    Ok(vec![forward, backward])
}

/// An action: stage, letter, micro-batch.
fn single(text: &str, at: (usize, usize)) -> Result<Cell> {
    let form = "an action as 2F0: stage, F, I, W or B, micro-batch";
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (stage, rest) = text.split_at(digits);
    let letters = rest.bytes().take_while(|byte| !byte.is_ascii_digit()).count();
    // The bytes counted are those of whole characters: a digit is never inside of one.
    let (name, micro_batch) = rest.split_at(letters);
    if COMMUNICATION.contains(&name) && !stage.is_empty() {
        return Err(Error::Unsupported {
            what: format!("PyTorch schedule: row {}, cell {}: {name}", at.0, at.1),
            why: "only the format compute_only is read; transfers follow from the actions".into(),
        });
    }
    let kind = ActionKind::from_letter(name).ok_or_else(|| fault(at, form, text))?;
    let number = |part: &str| -> Result<usize> {
        if part.is_empty() || !part.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(fault(at, form, text));
        }
        let value: Option<usize> = part.parse().ok();
        value.filter(|&value| value < MAX_CHUNKS).ok_or_else(|| fault(at, "numbers below 1,048,576", text))
    };
    Ok(Cell { kind, stage: number(stage)?, micro_batch: number(micro_batch)? })
}
