//! Writing a checkpoint tensor by tensor, sharded, without ever holding more than what is handed over.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use serde_json::{Map, Value, json};

use super::atomic::StagedDir;
use super::header::{self, Dtype};
use super::{INDEX_FILE, SINGLE_FILE};
use crate::config::Config;
use crate::error::{Error, Result};

/// A tensor that a [`CheckpointWriter`] will be given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriteSpec {
    /// Name.
    pub name: String,
    /// Type it is stored in.
    pub dtype: Dtype,
    /// Shape.
    pub shape: Vec<usize>,
}

impl WriteSpec {
    /// Bytes it takes.
    pub fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.size()
    }
}

#[derive(Debug)]
struct Slot {
    dtype: Dtype,
    bytes: usize,
    shard: usize,
    offset: usize,
    written: usize,
}

#[derive(Debug)]
struct Shard {
    file_name: String,
    header: Vec<u8>,
    total: usize,
}

/// Writes the tensors of a checkpoint directory into one file, or into shards with an index, in any order, each in as many pieces
/// as convenient. Nothing is visible under the target's name before [`CheckpointWriter::finish`]; dropped before that, it leaves
/// nothing behind.
#[derive(Debug)]
pub struct CheckpointWriter {
    staged: StagedDir,
    target: PathBuf,
    shards: Vec<Shard>,
    slots: HashMap<String, Slot>,
    order: Vec<String>,
    open: Option<(usize, File)>,
    created: Vec<bool>,
    buffer: Vec<u8>,
}

impl CheckpointWriter {
    /// Plans the files of the checkpoint `target`, which is replaced on [`CheckpointWriter::finish`] if it exists. Tensors fill
    /// shards in the given order, a new one begun before `max_shard_bytes` would be exceeded (one tensor larger than that has a
    /// shard to itself).
    pub fn create(target: &Path, tensors: &[WriteSpec], max_shard_bytes: u64) -> Result<CheckpointWriter> {
        let mut groups: Vec<Vec<usize>> = vec![Vec::new()];
        let mut filled = 0u64;
        for (i, tensor) in tensors.iter().enumerate() {
            let bytes = tensor.bytes() as u64;
            if filled > 0 && filled + bytes > max_shard_bytes {
                groups.push(Vec::new());
                filled = 0;
            }
            filled += bytes;
            groups.last_mut().expect("there is always a last group").push(i);
        }
        let mut writer = CheckpointWriter {
            staged: StagedDir::create(target)?,
            target: target.to_owned(),
            shards: Vec::new(),
            slots: HashMap::new(),
            order: tensors.iter().map(|t| t.name.clone()).collect(),
            open: None,
            created: vec![false; groups.len()],
            buffer: Vec::new(),
        };
        for (shard, group) in groups.iter().enumerate() {
            let described: Vec<_> = group.iter().map(|&i| (&*tensors[i].name, tensors[i].dtype, &*tensors[i].shape)).collect();
            let (header, offsets) = header::build(&described);
            let data: usize = group.iter().map(|&i| tensors[i].bytes()).sum();
            for (&i, offset) in group.iter().zip(offsets) {
                let WriteSpec { name, dtype, .. } = &tensors[i];
                let slot = Slot { dtype: *dtype, bytes: tensors[i].bytes(), shard, offset, written: 0 };
                if writer.slots.insert(name.clone(), slot).is_some() {
                    return Err(Error::tensor(target, name, "to be written once", "a second tensor of this name"));
                }
            }
            let file_name = match groups.len() {
                1 => SINGLE_FILE.to_owned(),
                n => format!("model-{:05}-of-{n:05}.safetensors", shard + 1),
            };
            writer.shards.push(Shard { file_name, total: header.len() + data, header });
        }
        Ok(writer)
    }

    /// Where other files of the checkpoint can be written until [`CheckpointWriter::finish`]; they appear with it.
    pub fn staging_path(&self) -> &Path {
        self.staged.path()
    }

    /// Writes a small file of the checkpoint.
    pub fn write_file(&self, name: &str, bytes: &[u8]) -> Result<()> {
        self.staged.write_file(name, bytes)
    }

    /// Writes `config.json`.
    pub fn write_config(&self, config: &Config) -> Result<()> {
        self.write_file(super::CONFIG_FILE, config.to_json_string().as_bytes())
    }

    /// Writes the next bytes of a tensor, as stored.
    pub fn write_bytes(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let Some(slot) = self.slots.get_mut(name) else {
            return Err(Error::tensor(&self.target, name, "a tensor that was announced", "another"));
        };
        if slot.written + bytes.len() > slot.bytes {
            let found = format!("{} bytes", slot.written + bytes.len());
            return Err(Error::tensor(&self.target, name, format!("{} bytes", slot.bytes), found));
        }
        let (shard, at) = (slot.shard, (slot.offset + slot.written) as u64);
        slot.written += bytes.len();
        let path = self.staged.path().join(&self.shards[shard].file_name);
        let file = self.shard_file(shard)?;
        file.seek(SeekFrom::Start(at)).and_then(|_| file.write_all(bytes)).map_err(Error::io("write", path))
    }

    /// Writes the next elements of a tensor that is stored in F32, BF16 or F16 (nearest even).
    pub fn write_f32(&mut self, name: &str, values: &[f32]) -> Result<()> {
        let Some(slot) = self.slots.get(name) else {
            return Err(Error::tensor(&self.target, name, "a tensor that was announced", "another"));
        };
        let dtype = slot.dtype;
        if !matches!(dtype, Dtype::F32 | Dtype::BF16 | Dtype::F16) {
            return Err(Error::tensor(&self.target, name, "to be stored in F32, BF16 or F16", dtype));
        }
        let mut bytes = std::mem::take(&mut self.buffer);
        for chunk in values.chunks(1 << 18) {
            bytes.clear();
            match dtype {
                Dtype::F32 => bytes.extend(chunk.iter().flat_map(|v| v.to_le_bytes())),
                Dtype::BF16 => bytes.extend(chunk.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes())),
                _ => bytes.extend(chunk.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes())),
            }
            self.write_bytes(name, &bytes)?;
        }
        self.buffer = bytes;
        Ok(())
    }

    fn shard_file(&mut self, shard: usize) -> Result<&mut File> {
        if self.open.as_ref().is_none_or(|(open, _)| *open != shard) {
            let Shard { file_name, header, total } = &self.shards[shard];
            let path = self.staged.path().join(file_name);
            let file = if self.created[shard] {
                OpenOptions::new().write(true).open(&path).map_err(Error::io("open", &path))?
            } else {
                let mut file = File::create_new(&path).map_err(Error::io("create", &path))?;
                let started = file.write_all(header).and_then(|()| file.set_len(*total as u64));
                started.map_err(Error::io("write", &path))?;
                self.created[shard] = true;
                file
            };
            self.open = Some((shard, file));
        }
        Ok(&mut self.open.as_mut().expect("a shard was just opened").1)
    }

    /// Checks that every announced tensor is complete, writes the index where there is more than one shard, flushes, and puts the
    /// checkpoint in its place.
    pub fn finish(mut self) -> Result<()> {
        for name in &self.order {
            let slot = &self.slots[name];
            if slot.written != slot.bytes {
                let found = format!("{} bytes", slot.written);
                return Err(Error::tensor(&self.target, name, format!("{} bytes", slot.bytes), found));
            }
        }
        for shard in 0..self.shards.len() {
            if !self.created[shard] {
                self.shard_file(shard)?; // it holds empty tensors only
            }
        }
        self.open = None;
        if self.shards.len() > 1 {
            let total: usize = self.slots.values().map(|s| s.bytes).sum();
            let map: Map<String, Value> =
                self.slots.iter().map(|(n, s)| (n.clone(), json!(self.shards[s.shard].file_name))).collect();
            let index = json!({"metadata": {"total_size": total}, "weight_map": map});
            self.staged.write_file(INDEX_FILE, format!("{index:#}\n").as_bytes())?;
        }
        self.staged.commit()
    }
}
