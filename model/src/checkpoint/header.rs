//! The header of a safetensors file: eight bytes of length, then a JSON object that gives every tensor its type, its shape and its
//! place. Parsed strictly: whatever this accepts can be read without a further check.

use std::fmt;
use std::ops::Range;

use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::Value;

/// Type of the elements of a stored tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types)] // the names of the format
#[allow(missing_docs)] // likewise
pub enum Dtype {
    BOOL,
    U8,
    I8,
    F8_E5M2,
    F8_E4M3,
    F8_E8M0,
    I16,
    U16,
    F16,
    BF16,
    I32,
    U32,
    F32,
    I64,
    U64,
    F64,
}

impl Dtype {
    const ALL: [(Dtype, &'static str, usize); 16] = [
        (Dtype::BOOL, "BOOL", 1),
        (Dtype::U8, "U8", 1),
        (Dtype::I8, "I8", 1),
        (Dtype::F8_E5M2, "F8_E5M2", 1),
        (Dtype::F8_E4M3, "F8_E4M3", 1),
        (Dtype::F8_E8M0, "F8_E8M0", 1),
        (Dtype::I16, "I16", 2),
        (Dtype::U16, "U16", 2),
        (Dtype::F16, "F16", 2),
        (Dtype::BF16, "BF16", 2),
        (Dtype::I32, "I32", 4),
        (Dtype::U32, "U32", 4),
        (Dtype::F32, "F32", 4),
        (Dtype::I64, "I64", 8),
        (Dtype::U64, "U64", 8),
        (Dtype::F64, "F64", 8),
    ];

    fn entry(self) -> (Dtype, &'static str, usize) {
        Dtype::ALL[self as usize]
    }

    /// Bytes of one element.
    pub fn size(self) -> usize {
        self.entry().2
    }

    /// Name in the format.
    pub fn name(self) -> &'static str {
        self.entry().1
    }

    fn from_name(name: &str) -> Option<Dtype> {
        Dtype::ALL.iter().find(|(_, n, _)| *n == name).map(|(d, _, _)| *d)
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Type, shape and place of one tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Type of the elements.
    pub dtype: Dtype,
    /// Shape; empty for a scalar.
    pub shape: Vec<usize>,
    /// Bytes of the file that hold it, counted from the start of the file.
    pub range: Range<usize>,
}

impl TensorInfo {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Why a header cannot be taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderError {
    /// The tensor at fault, where it is one.
    pub tensor: Option<String>,
    /// What should have been there.
    pub expected: String,
    /// What was there.
    pub found: String,
}

impl HeaderError {
    fn file(expected: impl fmt::Display, found: impl fmt::Display) -> HeaderError {
        HeaderError { tensor: None, expected: expected.to_string(), found: found.to_string() }
    }

    fn tensor(name: &str, expected: impl fmt::Display, found: impl fmt::Display) -> HeaderError {
        HeaderError { tensor: Some(name.to_owned()), expected: expected.to_string(), found: found.to_string() }
    }
}

/// Largest header taken, as in the reference implementation.
const MAX_HEADER: usize = 100_000_000;

/// Parses and checks the header of the safetensors file whose bytes are `file`: its tensors lie within the file, cover it without
/// gap or overlap, and each has the bytes that its type and shape need. The result is in the order of the data.
pub fn parse(file: &[u8]) -> Result<Vec<(String, TensorInfo)>, HeaderError> {
    let Some((length, rest)) = file.split_first_chunk::<8>() else {
        return Err(HeaderError::file("a safetensors file of at least 8 bytes", format!("{} bytes", file.len())));
    };
    let length = u64::from_le_bytes(*length);
    let Some(header) = usize::try_from(length).ok().filter(|n| *n <= MAX_HEADER).and_then(|n| rest.get(..n)) else {
        let most = rest.len().min(MAX_HEADER);
        return Err(HeaderError::file(
            format!("a safetensors header of at most {most} bytes (the file has {})", file.len()),
            format!("a header length of {length}"),
        ));
    };
    let data_start = 8 + header.len();
    let text = std::str::from_utf8(header).map_err(|e| HeaderError::file("a UTF-8 safetensors header", e))?;
    let Entries(entries) = serde_json::from_str(text).map_err(|e| HeaderError::file("a JSON safetensors header", e))?;

    let data_len = file.len() - data_start;
    let mut tensors = Vec::with_capacity(entries.len());
    for (name, value) in entries {
        if name != "__metadata__" {
            let info = tensor_info(&name, &value, data_start)?;
            tensors.push((name, info));
        }
    }
    tensors.sort_by(|(a, x), (b, y)| (x.range.start, x.range.end, a).cmp(&(y.range.start, y.range.end, b)));
    let mut end = data_start;
    for (name, info) in &tensors {
        if info.range.start != end {
            let what = if info.range.start < end { "an overlap" } else { "a gap" };
            return Err(HeaderError::tensor(
                name,
                format!("data from offset {}", end - data_start),
                format!("data from offset {}, which leaves {what}", info.range.start - data_start),
            ));
        }
        end = info.range.end;
    }
    if end != file.len() {
        return Err(HeaderError::file(
            format!("{} bytes of tensor data as the header says", end - data_start),
            format!("{data_len} bytes"),
        ));
    }
    for pair in by_name(&tensors).windows(2) {
        if pair[0] == pair[1] {
            return Err(HeaderError::tensor(pair[0], "one entry in the header", "two"));
        }
    }
    Ok(tensors)
}

fn by_name(tensors: &[(String, TensorInfo)]) -> Vec<&str> {
    let mut names: Vec<&str> = tensors.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    names
}

fn tensor_info(name: &str, value: &Value, data_start: usize) -> Result<TensorInfo, HeaderError> {
    let Value::Object(fields) = value else {
        return Err(HeaderError::tensor(name, "an object in the header", value));
    };
    let field = |key: &str| fields.get(key).ok_or_else(|| HeaderError::tensor(name, format!("a {key} in the header"), "none"));
    let integers = |key: &str, what: &str| -> Result<Vec<usize>, HeaderError> {
        let value = field(key)?;
        let parse = |v: &Value| v.as_u64().and_then(|v| usize::try_from(v).ok());
        let items = value.as_array().and_then(|items| items.iter().map(parse).collect::<Option<Vec<_>>>());
        items.ok_or_else(|| HeaderError::tensor(name, format!("{key} to be {what}"), value))
    };
    let dtype = field("dtype")?;
    let Some(dtype) = dtype.as_str().and_then(Dtype::from_name) else {
        return Err(HeaderError::tensor(name, "a dtype of the safetensors format", dtype));
    };
    let shape = integers("shape", "a list of sizes")?;
    let offsets = integers("data_offsets", "a pair of offsets")?;
    let [begin, end] = offsets[..] else {
        return Err(HeaderError::tensor(name, "data_offsets to be a pair of offsets", format!("{offsets:?}")));
    };
    let bytes = shape.iter().try_fold(dtype.size(), |n, s| n.checked_mul(*s));
    // A file offset that does not fit is an extent that no file has.
    let range = data_start.checked_add(begin).zip(data_start.checked_add(end)).map(|(b, e)| b..e);
    let (Some(bytes), Some(range)) = (bytes, range) else {
        return Err(HeaderError::tensor(name, "a size that can be addressed", format!("shape {shape:?} at {offsets:?}")));
    };
    if begin.checked_add(bytes) != Some(end) {
        return Err(HeaderError::tensor(
            name,
            format!("{bytes} bytes for {dtype} {shape:?}"),
            format!("data_offsets [{begin}, {end}]"),
        ));
    }
    Ok(TensorInfo { dtype, shape, range })
}

/// The members of a JSON object in order, repeated names included.
struct Entries(Vec<(String, Value)>);

impl<'de> serde::Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry::<String, Value>()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(Members)
    }
}

/// The header of a file that holds `tensors`, and the file offset of each tensor's data. Data are laid out by falling element size,
/// in the given order within a size, so that every tensor is aligned to its elements wherever the file is mapped.
pub fn build(tensors: &[(&str, Dtype, &[usize])]) -> (Vec<u8>, Vec<usize>) {
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(tensors[i].1.size()));
    let mut offsets = vec![0; tensors.len()];
    let mut members = serde_json::Map::new();
    members.insert("__metadata__".into(), serde_json::json!({"format": "pt"}));
    let mut at = 0;
    for i in order {
        let (name, dtype, shape) = tensors[i];
        let end = at + dtype.size() * shape.iter().product::<usize>();
        offsets[i] = at;
        let entry = serde_json::json!({"dtype": dtype.name(), "shape": shape, "data_offsets": [at, end]});
        members.insert(name.into(), entry);
        at = end;
    }
    let mut text = Value::Object(members).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut header = (text.len() as u64).to_le_bytes().to_vec();
    header.append(&mut text);
    for offset in &mut offsets {
        *offset += header.len();
    }
    (header, offsets)
}
