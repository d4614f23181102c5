//! `v3 place`: which device holds which replica of which expert, from a JSON file of loads.
//!
//! Input: `weight` `[layers][experts]`, `num_replicas`, `num_groups`, `num_nodes`, `num_gpus`. Output: `phy2log`
//! `[layers][replicas]`, `logcnt` `[layers][experts]`, `gpu_load` `[layers][gpus]`, `balancedness` `[layers]` (mean over largest
//! load), and `moves` `[layers]` (expert copies that a device has to fetch) when a previous placement was given.

use std::path::{Path, PathBuf};

use moe_dispatch::placement::{Placement, PlacementInput, place};
use serde_json::{Value, json};

use crate::checkpoint::write_file_atomic;
use crate::error::{Error, Result};

/// Options of `v3 place`.
#[derive(Debug, Clone, clap::Args)]
pub struct PlaceArgs {
    /// Loads of the experts and the sizes of the machine
    #[arg(long, value_name = "FILE.json")]
    pub input: PathBuf,
    /// Where the placement goes
    #[arg(long, value_name = "FILE.json")]
    pub out: PathBuf,
    /// The placement in force, as written by this command; few experts are then moved
    #[arg(long, value_name = "FILE.json")]
    pub previous: Option<PathBuf>,
}

/// Runs `v3 place`.
pub fn run(args: &PlaceArgs) -> Result<()> {
    let problem = Problem::read(&args.input)?;
    let previous = args.previous.as_ref().map(|path| problem.read_previous(path)).transpose()?;
    let input = PlacementInput {
        num_groups: problem.num_groups,
        num_nodes: problem.num_nodes,
        previous: previous.as_deref(),
        ..PlacementInput::new(&problem.weight, problem.num_experts, problem.num_replicas, problem.num_gpus)
    };
    let placement = place(&input).map_err(|e| field_error(&args.input, e))?;
    write_file_atomic(&args.out, format!("{}\n", to_json(&placement)).as_bytes())
}

/// A placement as this command writes it.
pub fn to_json(placement: &Placement) -> Value {
    fn rows<T: serde::Serialize>(values: &[T], layers: usize) -> Value {
        if layers == 0 {
            return json!([]);
        }
        values.chunks(values.len() / layers).map(|row| json!(row)).collect()
    }
    let layers = placement.layers;
    let mut out = json!({
        "phy2log": rows(&placement.phy2log, layers),
        "logcnt": rows(&placement.logcnt, layers),
        "gpu_load": rows(&placement.device_load, layers),
        "balancedness": placement.balancedness,
    });
    if let Some(moves) = &placement.moves {
        out["moves"] = json!(moves);
    }
    out
}

/// The input file.
#[derive(Debug)]
struct Problem {
    weight: Vec<f64>,
    layers: usize,
    num_experts: usize,
    num_replicas: usize,
    num_groups: usize,
    num_nodes: usize,
    num_gpus: usize,
}

fn read_object(path: &Path) -> Result<Value> {
    let text = std::fs::read(path).map_err(Error::io("read", path))?;
    let value: Value = serde_json::from_slice(&text).map_err(|e| Error::file(path, "a JSON object", e))?;
    if value.is_object() { Ok(value) } else { Err(Error::file(path, "a JSON object", "something else")) }
}

fn bad(path: &Path, field: &str, expected: &str, found: impl std::fmt::Display) -> Error {
    Error::config(field, expected, found).in_file(path)
}

/// A list of lists of one length, row after row, with the number of rows and their length.
fn matrix<T>(
    path: &Path,
    value: &Value,
    field: &str,
    what: &str,
    item: impl Fn(&Value) -> Option<T>,
) -> Result<(Vec<T>, usize, usize)> {
    let expected = format!("a list of layers, each a list of {what}");
    let Some(found) = value.get(field) else { return Err(bad(path, field, &expected, "no such field")) };
    let Some(rows) = found.as_array() else { return Err(bad(path, field, &expected, "no list")) };
    let mut out = Vec::new();
    let mut width = None;
    for (i, row) in rows.iter().enumerate() {
        let Some(row) = row.as_array() else {
            return Err(bad(path, field, &expected, format!("no list for layer {i}")));
        };
        if *width.get_or_insert(row.len()) != row.len() {
            let expected = format!("layers of {} entries, as layer 0 has", width.unwrap_or(0));
            return Err(bad(path, field, &expected, format!("{} in layer {i}", row.len())));
        }
        for (j, entry) in row.iter().enumerate() {
            let Some(entry) = item(entry) else {
                return Err(bad(path, field, &expected, format!("{entry} at [{i}][{j}]")));
            };
            out.push(entry);
        }
    }
    match width {
        Some(width) if width > 0 => Ok((out, rows.len(), width)),
        _ => Err(bad(path, field, &expected, "an empty one")),
    }
}

impl Problem {
    fn read(path: &Path) -> Result<Problem> {
        let value = read_object(path)?;
        let (weight, layers, num_experts) = matrix(path, &value, "weight", "loads", Value::as_f64)?;
        let size = |field: &str| {
            let found = value.get(field);
            let size = found.and_then(Value::as_u64).and_then(|v| usize::try_from(v).ok()).filter(|v| *v > 0);
            let found = found.map_or("no such field".into(), Value::to_string);
            size.ok_or_else(|| bad(path, field, "a positive integer", found))
        };
        Ok(Problem {
            weight,
            layers,
            num_experts,
            num_replicas: size("num_replicas")?,
            num_groups: size("num_groups")?,
            num_nodes: size("num_nodes")?,
            num_gpus: size("num_gpus")?,
        })
    }

    /// The `phy2log` of a file, of the shape that this problem needs.
    fn read_previous(&self, path: &Path) -> Result<Vec<u32>> {
        let value = read_object(path)?;
        let expert = |v: &Value| v.as_u64().filter(|v| *v < self.num_experts as u64).map(|v| v as u32);
        let what = format!("experts from 0 to {}", self.num_experts - 1);
        let (phy2log, layers, replicas) = matrix(path, &value, "phy2log", &what, expert)?;
        if (layers, replicas) != (self.layers, self.num_replicas) {
            let expected = format!("{} layers of {} slots", self.layers, self.num_replicas);
            return Err(bad(path, "phy2log", &expected, format!("{layers} of {replicas}")));
        }
        Ok(phy2log)
    }
}

/// What the piece says about the input, under the names of the file.
fn field_error(path: &Path, error: moe_dispatch::Error) -> Error {
    use moe_dispatch::Error as Piece;
    let name = |what: &str| if what == "num_devices" { "num_gpus".to_owned() } else { what.to_owned() };
    match &error {
        Piece::Shape { what, expected, got } => bad(path, &name(what), expected, got),
        Piece::Config { what, reason } => match reason.rsplit_once(", got ") {
            Some((expected, found)) => bad(path, &name(what), expected.trim_start_matches("expected "), found),
            None => Error::Piece { piece: "moe-dispatch", message: format!("{}: {error}", path.display()) },
        },
        _ => Error::Piece { piece: "moe-dispatch", message: format!("{}: {error}", path.display()) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory of its own for one test, removed at the end.
    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Dir {
            let dir = std::env::temp_dir().join(format!("v3-place-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&dir).unwrap();
            Dir(dir)
        }

        fn write(&self, name: &str, value: &Value) -> PathBuf {
            let path = self.0.join(name);
            std::fs::write(&path, value.to_string()).unwrap();
            path
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn input() -> Value {
        json!({
            "weight": [[9.0, 1, 2, 3, 4, 5, 6, 7], [1, 1, 1, 1, 1, 1, 1, 30]],
            "num_replicas": 12, "num_groups": 4, "num_nodes": 2, "num_gpus": 4,
        })
    }

    #[test]
    fn places_and_places_again_without_moves() {
        let dir = Dir::new("twice");
        let (input, out) = (dir.write("in.json", &input()), dir.0.join("out.json"));
        run(&PlaceArgs { input: input.clone(), out: out.clone(), previous: None }).unwrap();
        let first = read_object(&out).unwrap();
        assert_eq!(first["phy2log"].as_array().unwrap().len(), 2);
        assert_eq!(first["phy2log"][1].as_array().unwrap().len(), 12);
        for layer in 0..2 {
            let total: u64 = first["logcnt"][layer].as_array().unwrap().iter().map(|c| c.as_u64().unwrap()).sum();
            assert_eq!(total, 12);
            assert!(first["balancedness"][layer].as_f64().unwrap() > 0.5);
        }
        assert!(first.get("moves").is_none());
        let again = dir.0.join("again.json");
        run(&PlaceArgs { input, out: again.clone(), previous: Some(out) }).unwrap();
        assert_eq!(read_object(&again).unwrap()["moves"], json!([0, 0]));
    }

    #[test]
    fn bad_input_is_named_and_nothing_is_written() {
        let dir = Dir::new("bad");
        let out = dir.0.join("out.json");
        let fails = |change: &dyn Fn(&mut Value), field: &str| {
            let mut value = input();
            change(&mut value);
            let input = dir.write("in.json", &value);
            let error = run(&PlaceArgs { input, out: out.clone(), previous: None }).unwrap_err().to_string();
            assert!(error.contains("in.json") && error.contains(field), "{error}");
            assert!(error.contains("expected") && error.contains("found") && !error.contains('\n'), "{error}");
            assert!(!out.exists());
        };
        fails(&|v| v["num_gpus"] = json!(5), "num_gpus");
        fails(&|v| v["num_gpus"] = json!(0), "num_gpus");
        fails(&|v| v["num_gpus"] = json!(-4), "num_gpus");
        fails(&|v| v["num_gpus"] = Value::Null, "num_gpus");
        fails(&|v| v["num_nodes"] = json!(3), "num_nodes");
        fails(&|v| v["num_groups"] = json!(3), "num_groups");
        fails(&|v| v["num_replicas"] = json!(4), "num_replicas");
        fails(&|v| v["weight"][0][0] = json!(-1), "weight");
        fails(&|v| v["weight"][0][0] = json!("1"), "weight");
        fails(&|v| v["weight"][0] = json!([1.0]), "weight");
        fails(&|v| v["weight"] = json!([]), "weight");
        fails(&|v| v["weight"] = json!([[], []]), "weight");
        fails(&|v| *v = json!([1]), "JSON object");

        let input = dir.write("in.json", &input());
        for previous in [
            json!({}),
            json!({"phy2log": [vec![0; 12]]}),
            json!({"phy2log": [vec![0; 11], vec![0; 11]]}),
            json!({"phy2log": [vec![8; 12], vec![0; 12]]}),
        ] {
            let previous = dir.write("previous.json", &previous);
            let error = run(&PlaceArgs { input: input.clone(), out: out.clone(), previous: Some(previous) }).unwrap_err();
            let error = error.to_string();
            assert!(error.contains("previous.json: phy2log: expected"), "{error}");
            assert!(!out.exists());
        }
        let missing = PlaceArgs { input: dir.0.join("none.json"), out, previous: None };
        assert!(run(&missing).unwrap_err().to_string().contains("none.json"));
    }
}
