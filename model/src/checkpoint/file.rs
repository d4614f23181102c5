//! One safetensors file, memory-mapped; and small files of a few tensors, written whole.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use memmap2::Mmap;

use super::atomic::write_file_atomic;
use super::header::{self, Dtype, TensorInfo};
use crate::error::{Error, Result};

/// A safetensors file, memory-mapped and checked.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    map: Mmap,
    tensors: BTreeMap<String, TensorInfo>,
}

impl TensorFile {
    /// Maps the file and checks its header. The file must not shrink while it is mapped.
    pub fn open(path: &Path) -> Result<TensorFile> {
        let file = File::open(path).map_err(Error::io("open", path))?;
        let metadata = file.metadata().map_err(Error::io("read", path))?;
        if !metadata.is_file() {
            return Err(Error::file(path, "a safetensors file", "something else"));
        }
        if metadata.len() < 8 {
            let found = format!("{} bytes", metadata.len());
            return Err(Error::file(path, "a safetensors file of at least 8 bytes", found));
        }
        // SAFETY: the mapping is read-only and private to this value. Another process that truncates the file while it is mapped
        // ends this one with SIGBUS, as with every memory-mapped reader; files written by this crate are replaced by renaming
        // and never truncated.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io("map", path))?;
        let tensors = header::parse(&map).map_err(|e| match e.tensor {
            Some(name) => Error::tensor(path, name, e.expected, e.found),
            None => Error::file(path, e.expected, e.found),
        })?;
        Ok(TensorFile { path: path.to_owned(), map, tensors: tensors.into_iter().collect() })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names, in alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether there is a tensor of that name.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Type and shape of a tensor.
    pub fn info(&self, name: &str) -> Result<&TensorInfo> {
        self.tensors.get(name).ok_or_else(|| Error::tensor(&self.path, name, "a tensor of this name", "none"))
    }

    /// The bytes of a tensor, little-endian, row-major, of any alignment.
    pub fn bytes(&self, name: &str) -> Result<&[u8]> {
        let info = self.info(name)?;
        Ok(&self.map[info.range.clone()])
    }

    /// Checks the shape of a tensor.
    pub fn expect_shape(&self, name: &str, shape: &[usize]) -> Result<&TensorInfo> {
        let info = self.info(name)?;
        if info.shape != shape {
            return Err(Error::tensor(&self.path, name, format!("shape {shape:?}"), format!("{:?}", info.shape)));
        }
        Ok(info)
    }

    /// A tensor of F32, BF16 or F16 as f32 (exact).
    pub fn f32(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let info = self.expect_shape(name, shape)?;
        let mut out = vec![0.0; info.len()];
        if !floats(info.dtype, self.bytes(name)?, &mut out) {
            return Err(Error::tensor(&self.path, name, "F32, BF16 or F16", info.dtype));
        }
        Ok(out)
    }

    /// A tensor of BF16, unchanged.
    pub fn bf16(&self, name: &str, shape: &[usize]) -> Result<Vec<bf16>> {
        self.expect_dtype(name, shape, Dtype::BF16)?;
        Ok(self.bytes(name)?.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b)).collect())
    }

    /// A tensor of I64.
    pub fn i64(&self, name: &str, shape: &[usize]) -> Result<Vec<i64>> {
        self.expect_dtype(name, shape, Dtype::I64)?;
        Ok(self.bytes(name)?.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect())
    }

    /// A tensor of U64.
    pub fn u64(&self, name: &str, shape: &[usize]) -> Result<Vec<u64>> {
        self.expect_dtype(name, shape, Dtype::U64)?;
        Ok(self.bytes(name)?.as_chunks().0.iter().map(|b| u64::from_le_bytes(*b)).collect())
    }

    /// A tensor of U8.
    pub fn u8(&self, name: &str, shape: &[usize]) -> Result<Vec<u8>> {
        self.expect_dtype(name, shape, Dtype::U8)?;
        Ok(self.bytes(name)?.to_vec())
    }

    fn expect_dtype(&self, name: &str, shape: &[usize], dtype: Dtype) -> Result<()> {
        let info = self.expect_shape(name, shape)?;
        if info.dtype != dtype {
            return Err(Error::tensor(&self.path, name, dtype, info.dtype));
        }
        Ok(())
    }

    /// Token ids: an integer tensor `[batch, length]` (I64 or I32) with at least one row and one column, every value below
    /// `vocab_size`. Returns the ids in row-major order, the batch and the length.
    pub fn token_ids(&self, name: &str, vocab_size: usize) -> Result<(Vec<u32>, usize, usize)> {
        let info = self.info(name)?;
        let bad = |expected: String, found: String| Error::tensor(&self.path, name, expected, found);
        let (&[batch, length], true) = (&info.shape[..], matches!(info.dtype, Dtype::I64 | Dtype::I32)) else {
            return Err(bad("I64 [batch, length]".into(), format!("{} {:?}", info.dtype, info.shape)));
        };
        if batch == 0 || length == 0 {
            return Err(bad("at least one token".into(), format!("shape {:?}", info.shape)));
        }
        let bytes = self.bytes(name)?;
        let values: Vec<i64> = match info.dtype {
            Dtype::I64 => bytes.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect(),
            _ => bytes.as_chunks().0.iter().map(|b| i32::from_le_bytes(*b).into()).collect(),
        };
        let id = |(i, v): (usize, i64)| match u32::try_from(v) {
            Ok(id) if (id as usize) < vocab_size => Ok(id),
            _ => Err(bad(format!("token ids from 0 to {}", vocab_size - 1), format!("{v} at [{}, {}]", i / length, i % length))),
        };
        let ids = values.into_iter().enumerate().map(id).collect::<Result<Vec<u32>>>()?;
        Ok((ids, batch, length))
    }
}

/// Decodes F32, BF16 or F16; false for another type. `out` has as many elements as `bytes`.
pub(super) fn floats(dtype: Dtype, bytes: &[u8], out: &mut [f32]) -> bool {
    match dtype {
        Dtype::F32 => {
            for (o, b) in out.iter_mut().zip(bytes.as_chunks().0) {
                *o = f32::from_le_bytes(*b);
            }
        }
        Dtype::BF16 => {
            for (o, b) in out.iter_mut().zip(bytes.as_chunks().0) {
                *o = f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
            }
        }
        Dtype::F16 => {
            for (o, b) in out.iter_mut().zip(bytes.as_chunks().0) {
                *o = f16::from_le_bytes(*b).to_f32();
            }
        }
        _ => return false,
    }
    true
}

/// The elements of a tensor to be written.
#[derive(Debug, Clone, Copy)]
pub enum TensorData<'a> {
    /// f32.
    F32(&'a [f32]),
    /// bf16.
    Bf16(&'a [bf16]),
    /// i64.
    I64(&'a [i64]),
    /// u64.
    U64(&'a [u64]),
    /// Bytes.
    U8(&'a [u8]),
}

impl TensorData<'_> {
    fn dtype(&self) -> Dtype {
        match self {
            TensorData::F32(_) => Dtype::F32,
            TensorData::Bf16(_) => Dtype::BF16,
            TensorData::I64(_) => Dtype::I64,
            TensorData::U64(_) => Dtype::U64,
            TensorData::U8(_) => Dtype::U8,
        }
    }

    fn len(&self) -> usize {
        match self {
            TensorData::F32(v) => v.len(),
            TensorData::Bf16(v) => v.len(),
            TensorData::I64(v) => v.len(),
            TensorData::U64(v) => v.len(),
            TensorData::U8(v) => v.len(),
        }
    }

    fn append_to(&self, out: &mut Vec<u8>) {
        match self {
            TensorData::F32(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
            TensorData::Bf16(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
            TensorData::I64(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
            TensorData::U64(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
            TensorData::U8(v) => out.extend_from_slice(v),
        }
    }
}

/// A named tensor to be written.
#[derive(Debug, Clone, Copy)]
pub struct NamedTensor<'a> {
    /// Name.
    pub name: &'a str,
    /// Shape; its product is the number of elements.
    pub shape: &'a [usize],
    /// Elements, row-major.
    pub data: TensorData<'a>,
}

/// Writes a safetensors file whole: complete under its name, or not there.
pub fn write_tensors(path: &Path, tensors: &[NamedTensor<'_>]) -> Result<()> {
    for t in tensors {
        let elements: usize = t.shape.iter().product();
        if elements != t.data.len() {
            let found = format!("{} elements", t.data.len());
            return Err(Error::tensor(path, t.name, format!("{elements} elements for shape {:?}", t.shape), found));
        }
    }
    let described: Vec<_> = tensors.iter().map(|t| (t.name, t.data.dtype(), t.shape)).collect();
    let (mut bytes, offsets) = header::build(&described);
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_by_key(|&i| offsets[i]); // stable: an empty tensor may share its offset with the next
    for i in order {
        tensors[i].data.append_to(&mut bytes);
    }
    write_file_atomic(path, &bytes)
}

/// Opens a safetensors file for reading; the same as [`TensorFile::open`].
pub fn read_tensors(path: &Path) -> Result<TensorFile> {
    TensorFile::open(path)
}
