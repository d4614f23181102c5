//! Reading and writing of checkpoints: round trips, shards, atomic replacement, and files that are not what they should be.

mod files;

use files::{Dir, config, file_with_header, names, source, values, write_checkpoint};
use proptest::prelude::*;
use v3_model::checkpoint::header::{self, TensorInfo};
use v3_model::checkpoint::{
    Checkpoint, CheckpointWriter, Dtype, NamedTensor, StagedDir, TensorData, TensorFile, WriteSpec, recover, write_file_atomic,
    write_tensors,
};
use v3_model::error::Error;

fn spec(name: &str, dtype: Dtype, shape: &[usize]) -> WriteSpec {
    WriteSpec { name: name.into(), dtype, shape: shape.to_vec() }
}

#[test]
fn what_is_written_is_read_whole_and_in_shards() {
    let config = config();
    for (max_shard, sharded) in [(u64::MAX, false), (100_000, true), (1, true)] {
        let dir = Dir::new();
        let path = dir.join("model");
        write_checkpoint(&path, &config, Dtype::F32, max_shard);
        assert_eq!(path.join("model.safetensors.index.json").exists(), sharded);
        assert_eq!(path.join("model.safetensors").exists(), !sharded);
        let checkpoint = Checkpoint::open(&path).unwrap();
        assert_eq!(checkpoint.config().unwrap(), config);
        checkpoint.check_all(&config).unwrap();
        for t in config.tensors() {
            assert_eq!(checkpoint.tensor_f32(&t.name, &t.shape).unwrap(), values(source(&t), t.len()), "{}", t.name);
        }
        assert_eq!(checkpoint.names().count(), config.tensors().len());
        assert_eq!(dir.names(), ["model"]);
        if max_shard == 100_000 {
            for name in names(&path).iter().filter(|n| n.ends_with(".safetensors")) {
                let file = TensorFile::open(&path.join(name)).unwrap();
                let tensors: Vec<usize> = file.names().map(|n| file.bytes(n).unwrap().len()).collect();
                assert!(tensors.len() == 1 || tensors.iter().sum::<usize>() <= 100_000);
            }
        }
    }
}

#[test]
fn the_reference_implementation_reads_what_is_written() {
    let dir = Dir::new();
    let path = dir.join("a.safetensors");
    let (odd, halves) = ([1u8, 2, 3], [half::bf16::from_f32(1.5); 5]);
    let tensors = [
        NamedTensor { name: "odd", shape: &[3], data: TensorData::U8(&odd) },
        NamedTensor { name: "ids", shape: &[1, 2], data: TensorData::I64(&[7, -1]) },
        NamedTensor { name: "none", shape: &[0, 4], data: TensorData::F32(&[]) },
        NamedTensor { name: "loss", shape: &[], data: TensorData::F32(&[2.5]) },
        NamedTensor { name: "halves", shape: &[5], data: TensorData::Bf16(&halves) },
        NamedTensor { name: "counts", shape: &[1], data: TensorData::U64(&[u64::MAX]) },
    ];
    write_tensors(&path, &tensors).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let theirs = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(theirs.len(), tensors.len());
    assert_eq!(theirs.tensor("ids").unwrap().data(), [7i64.to_le_bytes(), (-1i64).to_le_bytes()].concat());
    let ours = TensorFile::open(&path).unwrap();
    for t in &tensors {
        let their = theirs.tensor(t.name).unwrap();
        assert_eq!((their.shape(), their.data()), (t.shape, ours.bytes(t.name).unwrap()));
        let info = ours.info(t.name).unwrap();
        assert!(info.range.start.is_multiple_of(info.dtype.size()), "{} is aligned", t.name);
    }
    assert_eq!(ours.f32("loss", &[]).unwrap(), [2.5]);
    assert_eq!(ours.u64("counts", &[1]).unwrap(), [u64::MAX]);
    assert_eq!(ours.bf16("halves", &[5]).unwrap(), halves);
    assert_eq!(ours.f32("halves", &[5]).unwrap(), [1.5; 5]);
    assert!(ours.u8("odd", &[3]).is_ok() && ours.u8("odd", &[4]).is_err() && ours.i64("odd", &[3]).is_err());
    assert_eq!(dir.names(), ["a.safetensors"]);

    // And the other way round: a file of the reference implementation.
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![2], &[0, 0, 128, 63, 0, 0, 0, 64]).unwrap();
    std::fs::write(&path, safetensors::serialize([("x", view)], None).unwrap()).unwrap();
    assert_eq!(TensorFile::open(&path).unwrap().f32("x", &[2]).unwrap(), [1.0, 2.0]);
}

#[test]
fn fp8_is_dequantised_block_by_block() {
    let dir = Dir::new();
    let path = dir.join("model");
    let (n, k) = (130, 257);
    let specs = [spec("w", Dtype::F8_E4M3, &[n, k]), spec("w_scale_inv", Dtype::F32, &[2, 3])];
    let mut writer = CheckpointWriter::create(&path, &specs, u64::MAX).unwrap();
    let codes: Vec<u8> = (0..n * k).map(|i| (i % 251) as u8 & !0x08).collect();
    let scales = [1.0f32, 0.5, 3.0, 0.1, 2.0, 7.0];
    writer.write_bytes("w", &codes[..1000]).unwrap();
    writer.write_f32("w_scale_inv", &scales).unwrap();
    writer.write_bytes("w", &codes[1000..]).unwrap();
    writer.finish().unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    assert!(checkpoint.is_fp8("w") && !checkpoint.is_fp8("w_scale_inv"));
    let read = checkpoint.tensor_f32("w", &[n, k]).unwrap();
    for (i, value) in read.iter().enumerate() {
        let expected = v3_numerics::E4M3(codes[i]).to_f32() * scales[i / k / 128 * 3 + i % k / 128];
        assert_eq!(value.to_bits(), expected.to_bits(), "[{}, {}]", i / k, i % k);
    }
    let mut rows = vec![0.0; 3 * k];
    checkpoint.rows_f32_into("w", &[n, k], 127..130, &mut rows).unwrap();
    assert_eq!(rows, read[127 * k..]);
    assert!(checkpoint.rows_f32_into("w", &[n, k], 128..131, &mut rows).is_err());
    assert!(checkpoint.rows_f32_into("w", &[n, k], 128..130, &mut rows).is_err());
}

#[test]
fn storage_that_contradicts_itself_is_named() {
    let cases = [
        (vec![spec("w", Dtype::F8_E4M3, &[4, 4])], "since there is no w_scale_inv"),
        (vec![spec("w", Dtype::BF16, &[4, 4]), spec("w_scale_inv", Dtype::F32, &[1, 1])], "F8_E4M3, since there is w_scale_inv"),
        (
            vec![spec("w", Dtype::F8_E4M3, &[4, 4]), spec("w_scale_inv", Dtype::F32, &[1, 2])],
            "w_scale_inv: expected shape [1, 1]",
        ),
        (
            vec![spec("w", Dtype::F8_E4M3, &[4, 4]), spec("w_scale_inv", Dtype::I32, &[1, 1])],
            "w_scale_inv: expected F32, found I32",
        ),
        (vec![spec("w", Dtype::I64, &[4, 4])], "F32, BF16, F16 or F8_E4M3 with scales, found I64"),
        (vec![spec("w", Dtype::F8_E5M2, &[4, 4])], "found F8_E5M2"),
        (vec![spec("w", Dtype::F32, &[4, 5])], "expected shape [4, 4], found [4, 5]"),
        (vec![spec("v", Dtype::F32, &[4, 4])], "tensor w: expected a tensor of this name, found none"),
    ];
    for (specs, message) in cases {
        let dir = Dir::new();
        let path = dir.join("model");
        let mut writer = CheckpointWriter::create(&path, &specs, u64::MAX).unwrap();
        for s in &specs {
            writer.write_bytes(&s.name, &vec![0; s.bytes()]).unwrap();
        }
        writer.finish().unwrap();
        let error = Checkpoint::open(&path).unwrap().tensor_f32("w", &[4, 4]).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn an_unfinished_writer_leaves_nothing() {
    let dir = Dir::new();
    let path = dir.join("model");
    let specs = [spec("a", Dtype::F32, &[2]), spec("b", Dtype::F32, &[2])];
    let mut writer = CheckpointWriter::create(&path, &specs, u64::MAX).unwrap();
    writer.write_f32("a", &[1.0, 2.0]).unwrap();
    assert!(writer.write_f32("a", &[3.0]).unwrap_err().to_string().contains("tensor a: expected 8 bytes, found 12 bytes"));
    assert!(writer.write_f32("c", &[3.0]).is_err());
    writer.write_f32("b", &[1.0]).unwrap();
    assert!(writer.finish().unwrap_err().to_string().contains("tensor b: expected 8 bytes, found 4 bytes"));
    assert!(dir.names().is_empty());
    let writer = CheckpointWriter::create(&path, &specs, u64::MAX).unwrap();
    assert_eq!(dir.names().len(), 1);
    drop(writer);
    assert!(dir.names().is_empty());
    let twice = [spec("a", Dtype::F32, &[2]), spec("a", Dtype::F32, &[2])];
    assert!(CheckpointWriter::create(&path, &twice, u64::MAX).is_err());
    assert!(dir.names().is_empty());
}

#[test]
fn a_directory_is_replaced_whole() {
    let dir = Dir::new();
    let path = dir.join("run");
    let write = |text: &str| {
        let staged = StagedDir::create(&path)?;
        staged.write_file(text, text.as_bytes())?;
        staged.commit()
    };
    write("first").unwrap();
    assert_eq!(names(&path), ["first"]);
    write("second").unwrap();
    assert_eq!((names(&path), dir.names()), (vec!["second".to_owned()], vec!["run".to_owned()]));

    // Killed after the old directory made way: the new one, complete, is taken.
    std::fs::rename(&path, dir.join(".run.old")).unwrap();
    std::fs::create_dir(dir.join(".run.ready")).unwrap();
    std::fs::write(dir.join(".run.ready/third"), "third").unwrap();
    recover(&path).unwrap();
    assert_eq!(names(&path), ["third"]);
    // And the next write clears what is left.
    write("fourth").unwrap();
    assert_eq!((names(&path), dir.names()), (vec!["fourth".to_owned()], vec!["run".to_owned()]));

    // Killed before the new one was complete: nothing happened. No process has this number.
    std::fs::create_dir(dir.join(".run.partial-4000000000-0")).unwrap();
    recover(&path).unwrap();
    assert_eq!(names(&path), ["fourth"]);
    write("fifth").unwrap();
    assert_eq!((names(&path), dir.names()), (vec!["fifth".to_owned()], vec!["run".to_owned()]));

    // Only the old one is left.
    std::fs::rename(&path, dir.join(".run.old")).unwrap();
    recover(&path).unwrap();
    assert_eq!(names(&path), ["fifth"]);
    recover(&dir.join("nothing")).unwrap();
    assert_eq!(dir.names(), ["run"]);

    // Two at a time do not disturb each other; the later one stands.
    let (a, b) = (StagedDir::create(&path).unwrap(), StagedDir::create(&path).unwrap());
    b.write_file("b", b"").unwrap();
    a.write_file("a", b"").unwrap();
    b.commit().unwrap();
    a.commit().unwrap();
    assert_eq!((names(&path), dir.names()), (vec!["a".to_owned()], vec!["run".to_owned()]));
}

#[test]
fn a_file_is_written_whole_or_not_at_all() {
    let dir = Dir::new();
    let path = dir.join("out.json");
    write_file_atomic(&path, b"one").unwrap();
    write_file_atomic(&path, b"two").unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"two");
    assert_eq!(dir.names(), ["out.json"]);
    assert!(write_file_atomic(&dir.0, b"x").unwrap_err().to_string().contains("expected a file to write, found a directory"));
    let nowhere = dir.join("no/such/place");
    assert!(matches!(write_file_atomic(&nowhere, b"x"), Err(Error::Io { .. })));
    assert!(StagedDir::create(&path).unwrap_err().to_string().contains("expected a directory or nothing, found a file"));
    assert!(matches!(StagedDir::create(&path.join("below")), Err(Error::Io { .. })));
    assert_eq!(dir.names(), ["out.json"]);
    #[cfg(unix)]
    {
        // A device is written to, not replaced; a link keeps pointing to its file.
        use std::os::unix::fs::FileTypeExt;
        write_file_atomic("/dev/null".as_ref(), b"x").unwrap();
        assert!(std::fs::metadata("/dev/null").unwrap().file_type().is_char_device());
        let link = dir.join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        write_file_atomic(&link, b"three").unwrap();
        assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(std::fs::read(&path).unwrap(), b"three");
    }
}

#[test]
fn token_ids_are_checked() {
    let dir = Dir::new();
    let path = dir.join("ids.safetensors");
    let read = |shape: &[usize], data: TensorData<'_>| {
        write_tensors(&path, &[NamedTensor { name: "input_ids", shape, data }]).unwrap();
        TensorFile::open(&path).unwrap().token_ids("input_ids", 97).map_err(|e| e.to_string())
    };
    assert_eq!(read(&[2, 2], TensorData::I64(&[0, 96, 5, 6])), Ok((vec![0, 96, 5, 6], 2, 2)));
    let fails = |result: Result<_, String>, message: &str| {
        let error = result.unwrap_err();
        assert!(error.contains("ids.safetensors: tensor input_ids: expected") && error.contains(message), "{error}");
    };
    fails(read(&[2, 2], TensorData::I64(&[0, 97, 5, 6])), "token ids from 0 to 96, found 97 at [0, 1]");
    fails(read(&[2, 2], TensorData::I64(&[0, 1, -5, 6])), "found -5 at [1, 0]");
    fails(read(&[4], TensorData::I64(&[0, 1, 5, 6])), "found I64 [4]");
    fails(read(&[2, 2], TensorData::F32(&[0.0; 4])), "found F32");
    fails(read(&[0, 2], TensorData::I64(&[])), "at least one token");
    let missing = TensorFile::open(&path).unwrap().token_ids("ids", 97).unwrap_err().to_string();
    assert!(missing.contains("tensor ids: expected a tensor of this name, found none"), "{missing}");
}

#[test]
fn a_broken_header_is_named() {
    let entry = |dtype: &str, shape: &str, offsets: &str| {
        format!(r#""a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}"#)
    };
    let a = entry("F32", "[2]", "[0,8]");
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (vec![], "at least 8 bytes, found 0 bytes"),
        (vec![1, 2, 3], "at least 8 bytes, found 3 bytes"),
        (u64::MAX.to_le_bytes().to_vec(), "found a header length of 18446744073709551615"),
        (
            9u64.to_le_bytes().iter().copied().chain(*b"{}").collect(),
            "at most 2 bytes (the file has 10), found a header length of 9",
        ),
        (file_with_header("{", 0), "a JSON safetensors header"),
        (file_with_header("[]", 0), "a JSON safetensors header"),
        (file_with_header(&"[".repeat(100_000), 0), "a JSON safetensors header"),
        (file_with_header(&format!("{{{a}}}"), 7), "8 bytes of tensor data as the header says, found 7 bytes"),
        (file_with_header(&format!("{{{a}}}"), 9), "8 bytes of tensor data as the header says, found 9 bytes"),
        (
            file_with_header(&format!("{{{}}}", entry("F32", "[2]", "[1,9]")), 9),
            "from offset 0, found data from offset 1, which leaves a gap",
        ),
        (file_with_header(&format!("{{{}}}", entry("F32", "[2]", "[8,0]")), 8), "8 bytes for F32 [2], found data_offsets [8, 0]"),
        (
            file_with_header(&format!("{{{}}}", entry("F32", "[3]", "[0,8]")), 8),
            "12 bytes for F32 [3], found data_offsets [0, 8]",
        ),
        (
            file_with_header(&format!("{{{}}}", entry("F33", "[2]", "[0,8]")), 8),
            "a dtype of the safetensors format, found \"F33\"",
        ),
        (file_with_header(&format!("{{{}}}", entry("F32", "[-2]", "[0,8]")), 8), "shape to be a list of sizes, found [-2]"),
        (file_with_header(&format!("{{{}}}", entry("F32", "2", "[0,8]")), 8), "shape to be a list of sizes"),
        (file_with_header(&format!("{{{}}}", entry("F32", "[2]", "[0,8,9]")), 8), "data_offsets to be a pair"),
        (
            file_with_header(&format!("{{{}}}", entry("F32", "[4294967296,4294967296,8]", "[0,8]")), 8),
            "a size that can be addressed",
        ),
        (file_with_header(&format!("{{{}}}", entry("U8", "[2]", "[18446744073709551615,1]")), 8), "a size that can be addressed"),
        (file_with_header(r#"{"a":{"dtype":"F32","shape":[2]}}"#, 8), "a data_offsets in the header, found none"),
        (file_with_header(r#"{"a":7}"#, 8), "an object in the header, found 7"),
        (file_with_header(&format!("{{{a},{}}}", entry("F32", "[0]", "[8,8]")), 8), "one entry in the header, found two"),
        (
            file_with_header(&format!(r#"{{{a},"b":{{"dtype":"U8","shape":[4],"data_offsets":[4,8]}}}}"#), 8),
            "found data from offset 4, which leaves an overlap",
        ),
    ];
    for (bytes, message) in cases {
        let dir = Dir::new();
        let path = dir.join("x.safetensors");
        std::fs::write(&path, &bytes).unwrap();
        let error = TensorFile::open(&path).unwrap_err().to_string();
        assert!(error.contains("x.safetensors: ") && error.contains(message), "{error}");
        assert!(!error.contains('\n') && error.len() < 2000, "{error}");
    }
}

#[test]
fn an_index_is_checked() {
    let dir = Dir::new();
    let path = dir.join("model");
    write_checkpoint(&path, &config(), Dtype::BF16, 50_000);
    let index_path = path.join("model.safetensors.index.json");
    let index: serde_json::Value = serde_json::from_slice(&std::fs::read(&index_path).unwrap()).unwrap();
    let shard = index["weight_map"]["lm_head.weight"].as_str().unwrap().to_owned();
    let fails = |change: &dyn Fn(&mut serde_json::Value), message: &str| {
        let mut index = index.clone();
        change(&mut index);
        std::fs::write(&index_path, index.to_string()).unwrap();
        let error = Checkpoint::open(&path).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    };
    fails(&|i| i["weight_map"]["nothing"] = shard.clone().into(), "tensor nothing: expected it here");
    fails(&|i| i["weight_map"]["lm_head.weight"] = "../x.safetensors".into(), "a file name for lm_head.weight");
    fails(&|i| i["weight_map"]["lm_head.weight"] = 7.into(), "a file name for lm_head.weight in weight_map, found 7");
    fails(&|i| i["weight_map"]["lm_head.weight"] = "model-9.safetensors".into(), "cannot open");
    fails(&|i| i["weight_map"] = serde_json::json!({}), "found an empty one");
    fails(&|i| *i = 7.into(), "an object weight_map, found none");
    std::fs::write(&index_path, "{").unwrap();
    assert!(Checkpoint::open(&path).unwrap_err().to_string().contains("index.json: expected a JSON index"));
    std::fs::write(&index_path, index.to_string()).unwrap();
    std::fs::remove_file(path.join(&shard)).unwrap();
    assert!(Checkpoint::open(&path).unwrap_err().to_string().contains(&shard));
    std::fs::remove_file(&index_path).unwrap();
    let error = Checkpoint::open(&path).unwrap_err().to_string();
    assert!(error.contains("expected model.safetensors or model.safetensors.index.json, found neither"), "{error}");
}

/// A header entry that may or may not make sense.
fn entry() -> impl Strategy<Value = serde_json::Value> {
    let number = prop_oneof![0u64..20, Just(u64::MAX), any::<u64>()];
    let dtype = prop_oneof![Just("F32"), Just("BF16"), Just("F8_E4M3"), Just("I64"), Just("nonsense")];
    (dtype, prop::collection::vec(number.clone(), 0..4), prop::collection::vec(number, 1..4))
        .prop_map(|(dtype, shape, offsets)| serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": offsets}))
}

/// Whatever the parser accepts must be readable.
fn readable(tensors: &[(String, TensorInfo)], file_len: usize) {
    for (name, info) in tensors {
        assert!(info.range.start <= info.range.end && info.range.end <= file_len, "{name}");
        assert_eq!(info.range.len(), info.len() * info.dtype.size(), "{name}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(tensors) = header::parse(&bytes) {
            readable(&tensors, bytes.len());
        }
    }

    #[test]
    fn random_headers_never_panic(entries in prop::collection::vec(("[a-c]", entry()), 0..4), data in 0usize..40, cut in 0usize..400) {
        let members: Vec<String> = entries.iter().map(|(name, e)| format!("\"{name}\":{e}")).collect();
        let mut bytes = file_with_header(&format!("{{{}}}", members.join(",")), data);
        if let Ok(tensors) = header::parse(&bytes) {
            readable(&tensors, bytes.len());
        }
        bytes.truncate(cut);
        if let Ok(tensors) = header::parse(&bytes) {
            readable(&tensors, bytes.len());
        }
    }

    #[test]
    fn a_changed_byte_never_panics(at in 0usize..400, value: u8) {
        let (mut bytes, _) = header::build(&[("a", Dtype::F32, &[2, 3]), ("b", Dtype::U8, &[5]), ("c", Dtype::BF16, &[])]);
        bytes.resize(bytes.len() + 24 + 5 + 2, 0);
        let at = at % bytes.len();
        bytes[at] = value;
        if let Ok(tensors) = header::parse(&bytes) {
            readable(&tensors, bytes.len());
        }
    }

    #[test]
    fn what_is_built_is_parsed(tensors in prop::collection::vec((0usize..16, prop::collection::vec(0usize..5, 0..4)), 0..8)) {
        let dtypes = [Dtype::BOOL, Dtype::U8, Dtype::I8, Dtype::F8_E5M2, Dtype::F8_E4M3, Dtype::F8_E8M0, Dtype::I16, Dtype::U16,
            Dtype::F16, Dtype::BF16, Dtype::I32, Dtype::U32, Dtype::F32, Dtype::I64, Dtype::U64, Dtype::F64];
        let names: Vec<String> = (0..tensors.len()).map(|i| format!("tensor \"{i}\"\n")).collect();
        let described: Vec<(&str, Dtype, &[usize])> =
            tensors.iter().zip(&names).map(|((dtype, shape), name)| (&**name, dtypes[*dtype], &**shape)).collect();
        let (mut bytes, offsets) = header::build(&described);
        bytes.resize(bytes.len() + described.iter().map(|(_, d, s)| d.size() * s.iter().product::<usize>()).sum::<usize>(), 0);
        let parsed = header::parse(&bytes).unwrap();
        prop_assert_eq!(parsed.len(), described.len());
        for (name, info) in &parsed {
            let i = names.iter().position(|n| n == name).unwrap();
            prop_assert_eq!((info.dtype, &*info.shape, info.range.start), (described[i].1, described[i].2, offsets[i]));
            prop_assert!(info.range.start.is_multiple_of(info.dtype.size()));
        }
    }
}
