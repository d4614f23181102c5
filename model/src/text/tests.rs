use std::collections::BTreeSet;
use std::path::Path;

use proptest::prelude::*;

use super::*;

#[test]
fn bytes_round_trip_and_stream_whole_characters() {
    let text = "In the beginning — ἐν ἀρχῇ 起初 🌍\u{FFFD}";
    let ids = Tokenizer::Bytes.encode(text).unwrap();
    assert_eq!(ids.len(), text.len());
    assert_eq!(Tokenizer::Bytes.decode(&ids).unwrap(), text);
    let tokenizer = Tokenizer::Bytes;
    let mut stream = tokenizer.stream();
    let mut out = Vec::new();
    for id in ids {
        out.push(stream.push(id).unwrap());
    }
    assert_eq!(stream.finish().unwrap(), "");
    assert_eq!(out.concat(), text);
    assert!(out.iter().all(|piece| piece.chars().count() <= 1));
}

#[test]
fn a_cut_character_comes_out_at_the_end() {
    let tokenizer = Tokenizer::Bytes;
    let mut stream = tokenizer.stream();
    assert_eq!(stream.push(0xe2).unwrap(), "");
    assert_eq!(stream.push(0x80).unwrap(), "");
    assert_eq!(stream.push(b'a'.into()).unwrap(), "\u{FFFD}a");
    assert_eq!(stream.push(0xe2).unwrap(), "");
    assert_eq!(stream.push(300).unwrap(), "\u{FFFD}\u{FFFD}");
    assert_eq!(stream.push(0xe2).unwrap(), "");
    assert_eq!(stream.finish().unwrap(), "\u{FFFD}");
}

proptest! {
    #[test]
    fn streamed_and_whole_decoding_agree(ids in prop::collection::vec(0u32..260, 0..40)) {
        let tokenizer = Tokenizer::Bytes;
        let mut stream = tokenizer.stream();
        let mut text = String::new();
        for id in &ids {
            text.push_str(&stream.push(*id).unwrap());
        }
        text.push_str(&stream.finish().unwrap());
        prop_assert_eq!(&text, &tokenizer.decode(&ids).unwrap());
        if ids.iter().all(|id| *id < 256) {
            let bytes: Vec<u8> = ids.iter().map(|id| *id as u8).collect();
            prop_assert_eq!(text, String::from_utf8_lossy(&bytes));
        }
    }

    #[test]
    fn a_permutation_is_one(n in 1u64..400, key: u64) {
        let images: BTreeSet<u64> = (0..n).map(|i| permute(i, n, key)).collect();
        prop_assert_eq!(images.len() as u64, n);
        prop_assert!(images.into_iter().all(|i| i < n));
    }

    #[test]
    fn an_epoch_reads_disjoint_windows(len in 2usize..500, seq_len in 1usize..40, lookahead in 1usize..4, seed: u64, epoch in 0u64..4) {
        prop_assume!(seq_len + lookahead <= len);
        let tokens = Tokens::U32((0..len as u32).collect());
        let batches = Batches::new(&tokens, seed, seq_len, lookahead).unwrap();
        let n = batches.epoch_len();
        let starts: BTreeSet<usize> = (0..n).map(|i| batches.start(epoch * n + i)).collect();
        prop_assert_eq!(starts.len() as u64, n);
        for pair in starts.iter().collect::<Vec<_>>().windows(2) {
            prop_assert!(pair[1] - pair[0] == seq_len);
        }
        prop_assert!(starts.last().unwrap() + seq_len + lookahead <= len);
        let window = batches.window(epoch * n);
        prop_assert_eq!(window.len(), seq_len + lookahead);
        prop_assert_eq!(window[0] as usize, batches.start(epoch * n));
    }

    #[test]
    fn every_token_but_the_first_is_scored_once(len in 0usize..200, seq_len in 1usize..50) {
        let mut predicted = Vec::new();
        for window in eval_windows(len, seq_len) {
            prop_assert!(window.len() >= 2 && window.len() <= seq_len + 1);
            predicted.extend(window.start + 1..window.end);
        }
        prop_assert_eq!(predicted, (1..len).collect::<Vec<_>>());
    }
}

#[test]
fn steps_tile_the_windows_and_seeds_differ() {
    let tokens = Tokens::U8((0..=255).cycle().take(3000).collect());
    let batches = Batches::new(&tokens, 1, 10, 2).unwrap();
    let joined: Vec<u32> = (0..3).flat_map(|i| batches.micro_batch(5, 3, i, 2)).collect();
    let direct: Vec<u32> = (30..36).flat_map(|n| batches.window(n)).collect();
    assert_eq!(joined, direct);
    let other = Batches::new(&tokens, 2, 10, 2).unwrap();
    assert_ne!((0..20).map(|n| other.start(n)).collect::<Vec<_>>(), (0..20).map(|n| batches.start(n)).collect::<Vec<_>>());
    let (first, second): (Vec<_>, Vec<_>) =
        (0..batches.epoch_len()).map(|n| (batches.start(n), batches.start(n + batches.epoch_len()))).unzip();
    assert_ne!(first, second);
}

#[test]
fn the_shipped_text_is_what_it_says() {
    let text = default_text();
    assert!((1_200_000..1_600_000).contains(&text.len()));
    assert!(text.starts_with(b"In the beginning God created") && text.is_ascii());
    let data = Dataset::from_bytes(Path::new("kjv.txt"), text.to_vec(), &Tokenizer::Bytes, 256, 200).unwrap();
    assert_eq!(data.held_out.len(), text.len() / 20);
    assert_eq!(data.train.len() + data.held_out.len(), text.len());
    assert_eq!(data.train_bytes().len(), data.train.len());
}

#[test]
fn bad_data_is_named() {
    let path = Path::new("a.txt");
    let load = |bytes: &[u8], vocab, window| {
        Dataset::from_bytes(path, bytes.to_vec(), &Tokenizer::Bytes, vocab, window).unwrap_err().to_string()
    };
    assert_eq!(load(b"", 256, 4), "a.txt: expected text, found an empty file");
    assert!(load(b"abc", 256, 4).contains("at least 4 tokens in the training part, found 3"));
    assert!(load(&[b'a'; 40], 256, 4).contains("held out, found 2"));
    assert!(load(&[b'a'; 400], 97, 4).contains("tokens below vocab_size = 97, found token 97"));
    let error = Dataset::load(Path::new("/nonexistent/x"), &Tokenizer::Bytes, 256, 4).unwrap_err().to_string();
    assert!(error.starts_with("cannot read /nonexistent/x"), "{error}");
    assert!(check_ids("--ids", &[1, 2, 97], 97).unwrap_err().to_string().contains("0 to 96, found 97 at position 2"));
    assert_eq!(parse_ids("--ids", "5, 6,7", 97).unwrap(), [5, 6, 7]);
    assert!(parse_ids("--ids", "5,,7", 97).is_err() && parse_ids("--ids", "-1", 97).is_err());
    assert!(Batches::new(&Tokens::U8(vec![0; 5]), 0, 5, 1).is_err());
    assert!(Batches::new(&Tokens::U8(vec![0; 5]), 0, 0, 1).is_err());
}

/// A tokenizer of three words with a byte fallback, as a checkpoint might carry.
fn word_tokenizer(dir: &Path) -> Tokenizer {
    let mut vocab = serde_json::Map::new();
    for (id, word) in ["<unk>", "ab", "c", "a", "b"].iter().enumerate() {
        vocab.insert((*word).into(), id.into());
    }
    for byte in 0..=255u32 {
        vocab.insert(format!("<0x{byte:02X}>"), (byte + 5).into());
    }
    let json = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": null, "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": true, "vocab": vocab, "merges": ["a b"]},
    });
    std::fs::write(dir.join(TOKENIZER_FILE), json.to_string()).unwrap();
    Tokenizer::open(dir).unwrap()
}

#[test]
fn a_tokenizer_file_is_used_and_streams_whole_characters() {
    let dir = std::env::temp_dir().join(format!("v3-tokenizer-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    assert!(matches!(Tokenizer::open(&dir).unwrap(), Tokenizer::Bytes));
    let tokenizer = word_tokenizer(&dir);
    let text = "abcé起b🌍ca";
    let ids = tokenizer.encode(text).unwrap();
    assert_eq!(ids[..2], [1, 2]);
    let mut stream = tokenizer.stream();
    let mut out = String::new();
    for id in &ids {
        let piece = stream.push(*id).unwrap();
        assert!(!piece.contains('\u{FFFD}'));
        out.push_str(&piece);
    }
    out.push_str(&stream.finish().unwrap());
    assert_eq!(out, text);
    let data = Dataset::from_bytes(Path::new("t"), text.repeat(50).into_bytes(), &tokenizer, 300, 4).unwrap();
    assert!(matches!(data.train, Tokens::U32(_)));
    assert!(std::str::from_utf8(data.held_out_bytes()).is_ok());
    std::fs::write(dir.join(TOKENIZER_FILE), "{").unwrap();
    assert!(Tokenizer::open(&dir).unwrap_err().to_string().contains("tokenizer.json: expected a tokenizer"));
    std::fs::remove_dir_all(&dir).unwrap();
}
