//! Checkpoints as published: a directory with `config.json` and either `model.safetensors` or the shards that
//! `model.safetensors.index.json` lists.
//!
//! Reading maps the files and decodes one tensor at a time. A weight is stored in FP8 exactly when a tensor of its name followed by
//! `_scale_inv` stands beside it: E4M3 values, and one f32 scale per block of 128x128. Writing streams into a directory that
//! appears under its name when it is complete.

mod atomic;
mod file;
pub mod header;
mod writer;

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::Value;
use v3_numerics::E4M3;

pub use atomic::{StagedDir, recover, write_file_atomic};
pub use file::{NamedTensor, TensorData, TensorFile, read_tensors, write_tensors};
pub use header::{Dtype, TensorInfo};
pub use writer::{CheckpointWriter, WriteSpec};

use crate::config::{Config, FP8_BLOCK, TensorSpec, scale_name};
use crate::error::{Error, Result};

/// Name of the weights when they are one file.
pub const SINGLE_FILE: &str = "model.safetensors";
/// Name of the index when they are several.
pub const INDEX_FILE: &str = "model.safetensors.index.json";
/// Name of the configuration.
pub const CONFIG_FILE: &str = "config.json";

/// The weights of a checkpoint directory, memory-mapped and checked.
#[derive(Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    files: Vec<TensorFile>,
    /// Which file holds a tensor.
    places: BTreeMap<String, usize>,
}

impl Checkpoint {
    /// Opens the weights of a checkpoint directory. A replacement of the directory that was cut short is finished first.
    pub fn open(dir: &Path) -> Result<Checkpoint> {
        recover(dir)?;
        if !dir.is_dir() {
            let found = if dir.exists() { "a file" } else { "nothing" };
            return Err(Error::file(dir, "a checkpoint directory", found));
        }
        let single = dir.join(SINGLE_FILE);
        if single.is_file() {
            let file = TensorFile::open(&single)?;
            let places = file.names().map(|name| (name.to_owned(), 0)).collect();
            return Ok(Checkpoint { dir: dir.to_owned(), files: vec![file], places });
        }
        let index = dir.join(INDEX_FILE);
        if !index.is_file() {
            return Err(Error::file(dir, format!("{SINGLE_FILE} or {INDEX_FILE}"), "neither"));
        }
        Checkpoint::open_sharded(dir, &index)
    }

    fn open_sharded(dir: &Path, index: &Path) -> Result<Checkpoint> {
        let text = std::fs::read(index).map_err(Error::io("read", index))?;
        let weight_map = parse_index(&text).map_err(|(expected, found)| Error::file(index, expected, found))?;
        let mut files: Vec<TensorFile> = Vec::new();
        let mut numbers: HashMap<&str, usize> = HashMap::new();
        let mut places = BTreeMap::new();
        for (tensor, file_name) in &weight_map {
            let number = match numbers.get(file_name.as_str()) {
                Some(number) => *number,
                None => {
                    files.push(TensorFile::open(&dir.join(file_name))?);
                    numbers.insert(file_name, files.len() - 1);
                    files.len() - 1
                }
            };
            if !files[number].contains(tensor) {
                let path = files[number].path();
                return Err(Error::tensor(path, tensor, format!("it here, where {INDEX_FILE} places it"), "no such tensor"));
            }
            places.insert(tensor.clone(), number);
        }
        Ok(Checkpoint { dir: dir.to_owned(), files, places })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Reads its `config.json`.
    pub fn config(&self) -> Result<Config> {
        Config::from_file(&self.dir.join(CONFIG_FILE))
    }

    /// Names of all stored tensors, FP8 scales included, in alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.places.keys().map(String::as_str)
    }

    /// Whether a tensor of that name is stored.
    pub fn contains(&self, name: &str) -> bool {
        self.places.contains_key(name)
    }

    fn file(&self, name: &str) -> Result<&TensorFile> {
        let place = self.places.get(name);
        let place = place.ok_or_else(|| Error::tensor(&self.dir, name, "a tensor of this name", "none"))?;
        Ok(&self.files[*place])
    }

    /// Type and shape of a stored tensor.
    pub fn info(&self, name: &str) -> Result<&TensorInfo> {
        self.file(name)?.info(name)
    }

    /// The bytes of a stored tensor, little-endian, row-major, of any alignment.
    pub fn bytes(&self, name: &str) -> Result<&[u8]> {
        self.file(name)?.bytes(name)
    }

    /// Whether a weight is stored in FP8.
    pub fn is_fp8(&self, name: &str) -> bool {
        self.contains(&scale_name(name))
    }

    /// Checks a tensor's shape, its type, and, for FP8, that its scales fit.
    pub fn check(&self, name: &str, shape: &[usize]) -> Result<()> {
        let file = self.file(name)?;
        let info = file.expect_shape(name, shape)?;
        let scales = scale_name(name);
        let bad = |expected: String| Err(Error::tensor(file.path(), name, expected, info.dtype));
        match (info.dtype, self.contains(&scales)) {
            (Dtype::F32 | Dtype::BF16 | Dtype::F16, false) => Ok(()),
            (Dtype::F8_E4M3, true) => {
                let &[n, k] = shape else {
                    return Err(Error::tensor(file.path(), name, "two dimensions, since it has scales", format!("{shape:?}")));
                };
                let scale_file = self.file(&scales)?;
                let info = scale_file.expect_shape(&scales, &[n.div_ceil(FP8_BLOCK), k.div_ceil(FP8_BLOCK)])?;
                if !matches!(info.dtype, Dtype::F32 | Dtype::BF16 | Dtype::F16) {
                    return Err(Error::tensor(scale_file.path(), &scales, "F32", info.dtype));
                }
                Ok(())
            }
            (Dtype::F8_E4M3, false) => bad(format!("F32, BF16 or F16, since there is no {scales}")),
            (_, true) => bad(format!("F8_E4M3, since there is {scales}")),
            (_, false) => bad("F32, BF16, F16 or F8_E4M3 with scales".into()),
        }
    }

    /// Checks that every tensor of a configuration is stored with the right shape and a readable type.
    pub fn check_all(&self, config: &Config) -> Result<()> {
        for TensorSpec { name, shape, layer, .. } in config.tensors() {
            let mtp = layer.is_some_and(|l| l >= config.num_hidden_layers);
            if mtp && !self.contains(&name) {
                let expected = format!(
                    "it, since {CONFIG_FILE} says num_nextn_predict_layers = {} (0 for a checkpoint without MTP layers)",
                    config.num_nextn_predict_layers
                );
                return Err(Error::tensor(&self.dir, name, expected, "no such tensor"));
            }
            self.check(&name, &shape)?;
        }
        Ok(())
    }

    /// A tensor as f32: F32 as it is, BF16 and F16 exactly, FP8 as value times scale in f32.
    pub fn tensor_f32(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        self.check(name, shape)?;
        let mut out = vec![0.0; shape.iter().product()];
        self.tensor_f32_into(name, shape, &mut out)?;
        Ok(out)
    }

    /// As [`Checkpoint::tensor_f32`], into a buffer of as many elements.
    pub fn tensor_f32_into(&self, name: &str, shape: &[usize], out: &mut [f32]) -> Result<()> {
        let rows = shape.first().copied().unwrap_or(1);
        self.rows_f32_into(name, shape, 0..rows, out)
    }

    /// Rows `rows` (of the first dimension) of a tensor as f32, into a buffer of as many elements.
    pub fn rows_f32_into(&self, name: &str, shape: &[usize], rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        self.check(name, shape)?;
        let file = self.file(name)?;
        let dtype = file.info(name)?.dtype;
        let row_len: usize = shape.iter().skip(1).product();
        let row_count = shape.first().copied().unwrap_or(1);
        if rows.end > row_count || rows.start > rows.end || out.len() != rows.len() * row_len {
            return Err(Error::tensor(
                file.path(),
                name,
                format!("rows within 0..{row_count} of {row_len} elements"),
                format!("rows {rows:?} for a buffer of {} elements", out.len()),
            ));
        }
        let row_bytes = row_len * dtype.size();
        let bytes = &file.bytes(name)?[rows.start * row_bytes..rows.end * row_bytes];
        if file::floats(dtype, bytes, out) {
            return Ok(());
        }
        // FP8: `check` has made sure of two dimensions and fitting scales.
        let scales = scale_name(name);
        let scale_shape = [row_count.div_ceil(FP8_BLOCK), row_len.div_ceil(FP8_BLOCK)];
        let scale = self.file(&scales)?.f32(&scales, &scale_shape)?;
        if row_len == 0 {
            return Ok(());
        }
        let table = e4m3_table();
        for (r, (out, bytes)) in rows.zip(out.chunks_exact_mut(row_len).zip(bytes.chunks_exact(row_len))) {
            let scale = &scale[r / FP8_BLOCK * scale_shape[1]..][..scale_shape[1]];
            for ((out, bytes), scale) in out.chunks_mut(FP8_BLOCK).zip(bytes.chunks(FP8_BLOCK)).zip(scale) {
                for (o, b) in out.iter_mut().zip(bytes) {
                    *o = table[usize::from(*b)] * scale;
                }
            }
        }
        Ok(())
    }
}

/// The value of each E4M3 code.
fn e4m3_table() -> &'static [f32; 256] {
    static TABLE: OnceLock<[f32; 256]> = OnceLock::new();
    TABLE.get_or_init(|| std::array::from_fn(|code| E4M3(code as u8).to_f32()))
}

/// The `weight_map` of an index: tensor to file name. The error is what was expected and what was found.
fn parse_index(text: &[u8]) -> std::result::Result<BTreeMap<String, String>, (String, String)> {
    let value: Value = serde_json::from_slice(text).map_err(|e| ("a JSON index".to_owned(), e.to_string()))?;
    let Some(map) = value.get("weight_map").and_then(Value::as_object) else {
        return Err(("an object weight_map".into(), "none".into()));
    };
    if map.is_empty() {
        return Err(("a weight_map with tensors".into(), "an empty one".into()));
    }
    let mut out = BTreeMap::new();
    for (tensor, file) in map {
        // A file of the same directory, by its plain name.
        let plain = |name: &&str| Path::new(name).file_name().is_some_and(|f| f == *name);
        let Some(name) = file.as_str().filter(plain) else {
            return Err((format!("a file name for {tensor} in weight_map"), file.to_string()));
        };
        out.insert(tensor.clone(), name.to_owned());
    }
    Ok(out)
}
