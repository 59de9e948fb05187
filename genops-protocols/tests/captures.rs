//! Small recordings of the project, for every dialect and form: decoded as recorded, byte by byte
//! and with every piece cut in two, always to the same calls.
#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "tests read their files, panic when they fail, and say what they skip"
)]

mod recording;

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use genops_protocols::Connection;
use recording::{Cut, Replayed, replay};
use serde_json::Value;

/// Stated bound of a connection with two messages in flight.
const MEMORY_LIMIT: usize = Connection::MEMORY_LIMIT + 2 * Connection::MESSAGE_LIMIT;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn rendered(Replayed { lines, texts, peak_bytes: _ }: &Replayed) -> String {
    let mut out = String::new();
    for line in lines {
        writeln!(out, "{line}").expect("a string takes it");
    }
    for text in texts {
        writeln!(out, "{}", serde_json::json!({ "text": text })).expect("a string takes it");
    }
    out
}

/// Parses lines to values, because the order of keys in `serde_json` depends on the other crates
/// built.
fn values(lines: &str) -> Vec<Value> {
    lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[test]
fn every_capture_decodes_as_expected_however_it_is_cut() {
    let directory = root().join("tests/captures");
    let mut names: Vec<PathBuf> = std::fs::read_dir(&directory)
        .expect("captures are part of the project")
        .map(|entry| entry.expect("readable").path())
        .filter(|path| path.is_dir())
        .collect();
    names.sort();
    assert!(names.len() >= 40, "captures are missing: {}", names.len());
    for path in names {
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        let recording = std::fs::read_to_string(path.join("recording.jsonl")).expect("recording");
        let whole = replay(&recording, true, Cut::Never);
        let found = rendered(&whole);
        if std::env::var_os("UPDATE_EXPECT").is_some() {
            std::fs::write(path.join("expected.jsonl"), &found).expect("writable");
        }
        let expected = std::fs::read_to_string(path.join("expected.jsonl")).expect("expected");
        assert_eq!(values(&found), values(&expected), "{name}");
        let longest = recording.lines().map(str::len).max().unwrap_or(0);
        let cuts = [1, 2, 3, 7].map(Cut::Every).into_iter().chain((0..longest).map(Cut::At));
        for cut in cuts {
            let again = replay(&recording, true, cut);
            assert_eq!(rendered(&again), found, "{name}, {cut:?}");
            assert!(again.peak_bytes <= MEMORY_LIMIT, "{name}: {} bytes", again.peak_bytes);
        }
    }
}

/// Checks the recordings of real exchanges beside the project, if present.
#[test]
fn real_exchanges_are_told_apart() {
    for (name, unknown_allowed) in [("http1", 0), ("http2", 0), ("midway", 10)] {
        let corpus = root().join("../shared/corpus");
        let Ok(recording) = std::fs::read_to_string(corpus.join(format!("{name}.jsonl"))) else {
            println!("skipped: no recordings beside the project");
            return;
        };
        let labels = std::fs::read_to_string(corpus.join(format!("{name}.labels.jsonl"))).unwrap();
        let whole = replay(&recording, true, Cut::Never);
        let by_piece = replay(&recording, true, Cut::Every(13));
        assert_eq!(rendered(&by_piece), rendered(&whole), "{name}");
        assert!(whole.peak_bytes < 40 << 20, "{name}: {} bytes", whole.peak_bytes);
        let mut kinds: HashMap<(String, Option<u64>), String> = HashMap::new();
        for line in &whole.lines {
            let connection = line["conn"].as_str().unwrap().to_owned();
            let kind = line["kind"].as_str().unwrap().to_lowercase();
            kinds.insert((connection.clone(), line["exchange"].as_u64()), kind.clone());
            kinds.entry((connection, None)).or_insert(kind);
        }
        let mut unlike = Vec::new();
        for label in labels.lines() {
            let label: Value = serde_json::from_str(label).unwrap();
            let key = (label["conn"].as_str().unwrap().to_owned(), label["exchange"].as_u64());
            let kind = kinds.get(&key).map(String::as_str);
            if kind != label["kind"].as_str() {
                let invented = kind == Some("inference");
                assert!(!invented, "{name}: invented {label}");
                unlike.push(key);
            }
        }
        assert!(unlike.len() <= unknown_allowed, "{name}: {unlike:?}");
    }
}
