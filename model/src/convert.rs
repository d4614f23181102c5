//! `v3 convert`: a checkpoint rewritten in f32, bf16 or FP8, a band of rows at a time.
//!
//! FP8 is stored as published: weights of linear layers as E4M3 with f32 scales of 128x128 blocks, the router's bias in f32, all else
//! (`eh_proj` of MTP modules included) in bf16. What is FP8 already is copied when FP8 is asked for. Tensors that the
//! configuration does not name are copied as they are.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use fp8_gemm::ScalePolicy;
use fp8_gemm::quantize::quantize_128x128;
use indicatif::{ProgressBar, ProgressStyle};
use v3_numerics::MatRef;

use crate::checkpoint::{CONFIG_FILE, Checkpoint, CheckpointWriter, Dtype, WriteSpec, recover};
use crate::config::{FP8_BLOCK, TensorKind, TensorSpec, scale_name};
use crate::error::{Error, Result};

/// What weights are stored in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Storage {
    /// Everything in f32.
    F32,
    /// bf16, the router's bias in f32.
    Bf16,
    /// Linear weights in E4M3 with 128x128 scales, the rest as with bf16.
    Fp8,
}

impl Storage {
    fn dtype(self, kind: TensorKind) -> Dtype {
        match self {
            _ if kind == TensorKind::RouterBias => Dtype::F32,
            Storage::F32 => Dtype::F32,
            Storage::Fp8 if kind.is_fp8_stored() => Dtype::F8_E4M3,
            Storage::Bf16 | Storage::Fp8 => Dtype::BF16,
        }
    }
}

/// A number of bytes: `5GB`, `500MB`, `1.5GiB`, `4096`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByteSize(pub u64);

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<ByteSize, String> {
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let factor = match text[digits..].trim().to_ascii_lowercase().as_str() {
            "" | "b" => 1.0,
            "kb" => 1e3,
            "mb" => 1e6,
            "gb" => 1e9,
            "kib" => 1024.0,
            "mib" => 1024.0 * 1024.0,
            "gib" => 1024.0 * 1024.0 * 1024.0,
            _ => return Err(format!("expected a size such as 5GB or 500MiB, found \"{text}\"")),
        };
        match text[..digits].parse::<f64>() {
            Ok(number) if number * factor >= 1.0 && number * factor < 1e18 => Ok(ByteSize((number * factor) as u64)),
            _ => Err(format!("expected a size such as 5GB or 500MiB, found \"{text}\"")),
        }
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Options of `v3 convert`.
#[derive(Debug, Clone, clap::Args)]
pub struct ConvertArgs {
    /// Checkpoint directory to read
    #[arg(value_name = "IN")]
    pub input: PathBuf,
    /// Checkpoint directory to write; it must not exist
    #[arg(value_name = "OUT")]
    pub output: PathBuf,
    /// Storage of the weights
    #[arg(long, value_enum)]
    pub to: Storage,
    /// Largest file of weights; more than that is cut into shards with an index
    #[arg(long, value_name = "BYTES", default_value = "5GB")]
    pub max_shard_size: ByteSize,
}

/// Runs `v3 convert`.
pub fn run(args: &ConvertArgs) -> Result<()> {
    let bar = ProgressBar::no_length();
    let style = ProgressStyle::with_template("{bar:30} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}");
    bar.set_style(style.map_err(Error::piece("indicatif"))?);
    let done = convert(&args.input, &args.output, args.to, args.max_shard_size.0, &mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    done
}

/// One tensor's way from the input to the output.
enum Job {
    /// Bytes as they are.
    Copy,
    /// Decoded and stored in this type, F32 or BF16.
    Decode(TensorSpec, Dtype),
    /// Decoded and quantised; scales go to the tensor of [`scale_name`].
    Quantize(TensorSpec),
}

/// Rewrites the checkpoint `input` as `output`, in files of at most `max_shard_bytes`. `progress` hears of the bytes written so far
/// and in all.
pub fn convert(input: &Path, output: &Path, to: Storage, max_shard_bytes: u64, progress: &mut dyn FnMut(u64, u64)) -> Result<()> {
    recover(output)?;
    let same = |a: &Path, b: &Path| std::fs::canonicalize(a).ok().zip(std::fs::canonicalize(b).ok()).is_some_and(|(a, b)| a == b);
    if same(input, output) {
        return Err(Error::option("OUT", "a directory other than IN", format!("{}, the same", output.display())));
    }
    if std::fs::symlink_metadata(output).is_ok() {
        return Err(Error::option("OUT", "a directory that does not exist", format!("{}, which does", output.display())));
    }
    let checkpoint = Checkpoint::open(input)?;
    let mut config = checkpoint.config()?;
    checkpoint.check_all(&config)?;
    let (specs, jobs) = plan(&checkpoint, config.tensors(), to)?;

    config.set_storage(if to == Storage::F32 { "float32" } else { "bfloat16" }, to == Storage::Fp8);
    let mut writer = CheckpointWriter::create(output, &specs, max_shard_bytes)?;
    writer.write_config(&config)?;
    copy_side_files(&checkpoint, &writer)?;
    let total = specs.iter().map(|s| s.bytes() as u64).sum();
    let mut done = 0;
    let mut buffer = Vec::new();
    for (name, job) in jobs {
        match job {
            Job::Copy => {
                let bytes = checkpoint.bytes(&name)?;
                for chunk in bytes.chunks(1 << 24) {
                    writer.write_bytes(&name, chunk)?;
                    done += chunk.len() as u64;
                    progress(done, total);
                }
            }
            Job::Decode(spec, dtype) => {
                for_each_band(&checkpoint, &spec, &mut buffer, &mut |band, _| {
                    done += (band.len() * dtype.size()) as u64;
                    progress(done, total);
                    writer.write_f32(&name, band)
                })?;
            }
            Job::Quantize(spec) => {
                let mut scales = Vec::new();
                for_each_band(&checkpoint, &spec, &mut buffer, &mut |band, rows| {
                    if let Some(bad) = band.iter().find(|v| !v.is_finite()) {
                        let path = checkpoint.path();
                        return Err(Error::tensor(path, &name, "finite values, to be quantised", bad));
                    }
                    let view = MatRef::new(band, rows, spec.shape[1]).map_err(Error::piece("v3-numerics"))?;
                    let (codes, band_scales) = quantize_128x128(view, ScalePolicy::F32).into_parts();
                    scales.extend(band_scales);
                    done += band.len() as u64;
                    progress(done, total);
                    writer.write_bytes(&name, bytemuck::cast_slice(&codes))
                })?;
                writer.write_f32(&scale_name(&name), &scales)?;
            }
        }
    }
    writer.finish()
}

/// What is written, in the order of the configuration, and how each tensor is made.
#[allow(clippy::type_complexity)] // two parallel lists, taken apart at once by the only caller
fn plan(checkpoint: &Checkpoint, tensors: Vec<TensorSpec>, to: Storage) -> Result<(Vec<WriteSpec>, Vec<(String, Job)>)> {
    let mut specs = Vec::new();
    let mut jobs = Vec::new();
    let mut known = BTreeSet::new();
    for tensor in tensors {
        let name = tensor.name.clone();
        known.insert(name.clone());
        known.insert(scale_name(&name));
        let source = checkpoint.info(&name)?;
        let copied = checkpoint.is_fp8(&name) && to == Storage::Fp8;
        let dtype = if copied { source.dtype } else { to.dtype(tensor.kind) };
        specs.push(WriteSpec { name: name.clone(), dtype, shape: tensor.shape.clone() });
        if dtype == Dtype::F8_E4M3 {
            let name = scale_name(&name);
            let dtype = if copied { checkpoint.info(&name)?.dtype } else { Dtype::F32 };
            let shape = tensor.shape.iter().map(|s| s.div_ceil(FP8_BLOCK)).collect();
            specs.push(WriteSpec { name: name.clone(), dtype, shape });
            if copied {
                jobs.push((name, Job::Copy));
            }
        }
        let job = match dtype {
            _ if source.dtype == dtype => Job::Copy,
            Dtype::F8_E4M3 => Job::Quantize(tensor),
            _ => Job::Decode(tensor, dtype),
        };
        jobs.push((name, job));
    }
    for name in checkpoint.names().filter(|name| !known.contains(*name)) {
        let info = checkpoint.info(name)?;
        specs.push(WriteSpec { name: name.to_owned(), dtype: info.dtype, shape: info.shape.clone() });
        jobs.push((name.to_owned(), Job::Copy));
    }
    Ok((specs, jobs))
}

/// Elements decoded at a time, about.
const BAND: usize = 1 << 20;

/// Hands over a tensor in f32, in bands of whole rows whose number is a multiple of 128.
fn for_each_band(
    checkpoint: &Checkpoint,
    spec: &TensorSpec,
    buffer: &mut Vec<f32>,
    each: &mut dyn FnMut(&[f32], usize) -> Result<()>,
) -> Result<()> {
    let rows = spec.shape[0];
    let row_len: usize = spec.shape[1..].iter().product();
    let band = (BAND / row_len.max(1)).next_multiple_of(FP8_BLOCK).max(FP8_BLOCK);
    for first in (0..rows).step_by(band) {
        let range = first..(first + band).min(rows);
        let count = range.len();
        buffer.resize(count * row_len, 0.0);
        checkpoint.rows_f32_into(&spec.name, &spec.shape, range, buffer)?;
        each(buffer, count)?;
    }
    Ok(())
}

/// Copies what belongs to the model beside its weights: tokenizer, generation settings, licence and the like; never the state of
/// a training run.
fn copy_side_files(checkpoint: &Checkpoint, writer: &CheckpointWriter) -> Result<()> {
    let dir = checkpoint.path();
    for entry in std::fs::read_dir(dir).map_err(Error::io("read", dir))? {
        let path = entry.map_err(Error::io("read", dir))?.path();
        let Some(name) = path.file_name().and_then(|n| n.to_str()) else { continue };
        let belongs =
            ["tokenizer", "generation_config", "special_tokens_map", "chat_template", "vocab", "merges", "LICENSE", "README"];
        let belongs = belongs.iter().any(|prefix| name.starts_with(prefix)) || name.ends_with(".py");
        if belongs && name != CONFIG_FILE && path.is_file() && !name.ends_with(".safetensors") {
            std::fs::copy(&path, writer.staging_path().join(name)).map_err(Error::io("copy", &path))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_parse() {
        for (text, bytes) in [("5GB", 5_000_000_000), ("4096", 4096), ("1.5 KiB", 1536), ("2mb", 2_000_000)] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)));
        }
        for text in ["", "GB", "5XB", "-5GB", "0", "1e3", "99999999999GB", "1.2.3MB"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
    }
}
