//! Every way to damage an evidence directory is found, and the place named.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::cast_possible_truncation,
    reason = "a test may panic"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use genops_evidence::{Log, Options, Report, Verify};

fn options() -> Options {
    Options { segment_bytes: 1 << 20, ..Options::new("example.com/test") }
}

fn record(index: u64) -> Vec<u8> {
    let text = "x".repeat(40 + (index % 700) as usize);
    format!("{{\"v\":1,\"seq\":{index},\"type\":\"gap\",\"text\":\"{text}\"}}").into_bytes()
}

fn append(log: &mut Log, count: u64) {
    for _ in 0..count {
        let record = record(log.next_index());
        log.append(&record).unwrap();
        if log.next_index().is_multiple_of(7) {
            log.commit().unwrap();
        }
    }
    log.commit().unwrap();
}

fn verify(directory: &Path) -> Report {
    Verify { directory, key: None, each: &mut |_, _| {}, progress: &mut |_, _| {} }.run()
}

/// A closed log with every kind of content.
fn closed(directory: &Path) {
    let (mut log, _) = Log::open(directory, options()).unwrap();
    append(&mut log, 1_100);
    log.rotate_key().unwrap();
    append(&mut log, 1_203);
    log.close().unwrap();
}

/// A log of a killed process: some records are only in the write-ahead log.
fn crashed(directory: &Path) {
    let (mut log, _) = Log::open(directory, options()).unwrap();
    append(&mut log, 700);
    log.publish().unwrap();
    append(&mut log, 33);
    drop(log);
}

fn files(root: &Path, folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(root, &path, found);
        } else {
            found.push(path.strip_prefix(root).unwrap().to_owned());
        }
    }
    found.sort();
}

fn numbers(seed: u64) -> impl FnMut(usize) -> usize {
    let mut state = seed;
    move |below| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below.max(1) as u64) as usize
    }
}

/// Damages of the bytes of a file: description, and the bytes after.
fn damages(
    bytes: &[u8],
    random: &mut impl FnMut(usize) -> usize,
) -> Vec<(String, Option<Vec<u8>>)> {
    let mut out = vec![("removed".to_owned(), None)];
    if bytes.is_empty() {
        return out;
    }
    let used = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    let mut places = vec![0, used - 1, used / 2, bytes.len() - 1];
    places.extend((0..12).map(|_| random(used)));
    for at in places {
        let bit = random(8);
        let mut flipped = bytes.to_vec();
        flipped[at] ^= 1 << bit;
        out.push((format!("bit {bit} of byte {at} flipped"), Some(flipped)));
    }
    for _ in 0..3 {
        let (from, len) = (random(used), 1 + random(used));
        let to = (from + len).min(used);
        let mut without = bytes.to_vec();
        without.drain(from..to);
        out.push((format!("bytes {from}..{to} removed"), Some(without)));
        let mut twice = bytes.to_vec();
        twice.splice(to..to, bytes[from..to].iter().copied());
        out.push((format!("bytes {from}..{to} repeated"), Some(twice)));
        out.push((format!("cut at {from}"), Some(bytes[..from].to_vec())));
        let mut swapped = bytes.to_vec();
        let half = (to - from) / 2;
        for at in 0..half {
            swapped.swap(from + at, from + half + at);
        }
        out.push((format!("bytes {from}..{to} reordered"), Some(swapped)));
    }
    out.retain(|(_, after)| after.as_deref() != Some(bytes));
    out
}

/// Damages every file of the directory in every way; the verifier must find each damage and name
/// the file or a dependent file.
fn damage_everything(directory: &Path) {
    let untouched = verify(directory);
    assert_eq!(untouched.problems, [], "{}", directory.display());
    let mut found = Vec::new();
    files(directory, directory, &mut found);
    assert!(found.len() > 10, "{found:?}");
    let mut random = numbers(0x9e37_79b9_7f4a_7c15);
    let mut tried = 0;
    for name in found {
        let path = directory.join(&name);
        let bytes = fs::read(&path).unwrap();
        for (what, after) in damages(&bytes, &mut random) {
            match after {
                None => fs::remove_file(&path).unwrap(),
                Some(after) => fs::write(&path, after).unwrap(),
            }
            let report = verify(directory);
            assert!(!report.problems.is_empty(), "{}: {what}: not found", name.display());
            tried += 1;
            fs::write(&path, &bytes).unwrap();
        }
        let copy = directory.join(format!("{}~", name.display()));
        fs::copy(&path, &copy).unwrap();
        assert!(!verify(directory).problems.is_empty(), "{}: copied", name.display());
        fs::remove_file(copy).unwrap();
    }
    assert_eq!(verify(directory).problems, []);
    println!("{tried} damages found");
}

#[test]
fn every_damage_to_a_closed_log_is_found() {
    let folder = tempfile::tempdir().unwrap();
    closed(folder.path());
    damage_everything(folder.path());
}

#[test]
fn every_damage_to_a_crashed_log_is_found() {
    let folder = tempfile::tempdir().unwrap();
    crashed(folder.path());
    damage_everything(folder.path());
}

#[test]
fn exchanged_files_are_found() {
    let folder = tempfile::tempdir().unwrap();
    closed(folder.path());
    let mut found = Vec::new();
    files(folder.path(), folder.path(), &mut found);
    for pair in found.windows(2) {
        let (one, other) = (folder.path().join(&pair[0]), folder.path().join(&pair[1]));
        let (first, second) = (fs::read(&one).unwrap(), fs::read(&other).unwrap());
        fs::write(&one, &second).unwrap();
        fs::write(&other, &first).unwrap();
        assert!(!verify(folder.path()).problems.is_empty(), "{pair:?} exchanged");
        fs::write(&one, &first).unwrap();
        fs::write(&other, &second).unwrap();
    }
}

/// Returns the result of the second verifier; `None` without Python.
fn second_opinion(directory: &Path) -> Option<bool> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/verify_evidence.py");
    let output = Command::new("python3").arg(script).arg(directory).output().ok()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    match output.status.code() {
        Some(0) => Some(true),
        Some(1) if said.ends_with("NOT VERIFIED\n") => Some(false),
        _ => panic!("{output:?}"),
    }
}

/// Checks that both verifiers give the same result for every damage.
fn both_agree(directory: &Path) {
    let Some(good) = second_opinion(directory) else {
        println!("skipped: no python3 to run the second verifier");
        return;
    };
    assert!(good, "{}", directory.display());
    let mut found = Vec::new();
    files(directory, directory, &mut found);
    // Secrets are no evidence: the second verifier, as an auditor, never sees the keys.
    found.retain(|name| !name.starts_with("keys"));
    let mut random = numbers(0x1234_5678_9abc_def1);
    let mut tried = 0;
    for name in found {
        let path = directory.join(&name);
        let bytes = fs::read(&path).unwrap();
        // A single damage of each kind.
        let mut kinds = std::collections::BTreeMap::new();
        for (what, after) in damages(&bytes, &mut random) {
            let kind = what.split(' ').next_back().unwrap_or_default().to_owned();
            kinds.insert(
                if what.starts_with("cut") { "cut".to_owned() } else { kind },
                (what, after),
            );
        }
        for (what, after) in kinds.into_values() {
            match after {
                None => fs::remove_file(&path).unwrap(),
                Some(after) => fs::write(&path, after).unwrap(),
            }
            let found = verify(directory).problems;
            assert!(!found.is_empty(), "{}: {what}: not found", name.display());
            let agreed = second_opinion(directory) == Some(false);
            assert!(agreed, "{}: {what}: not found by the second verifier", name.display());
            tried += 1;
            fs::write(&path, &bytes).unwrap();
        }
    }
    println!("{tried} damages found by both");
}

#[test]
fn both_verifiers_agree_on_a_closed_log() {
    let folder = tempfile::tempdir().unwrap();
    let (mut log, _) = Log::open(folder.path(), options()).unwrap();
    append(&mut log, 300);
    log.rotate_key().unwrap();
    append(&mut log, 230);
    log.close().unwrap();
    both_agree(folder.path());
}

#[test]
fn both_verifiers_agree_on_a_crashed_log() {
    let folder = tempfile::tempdir().unwrap();
    let (mut log, _) = Log::open(folder.path(), options()).unwrap();
    append(&mut log, 270);
    log.publish().unwrap();
    append(&mut log, 33);
    drop(log);
    both_agree(folder.path());
}

/// A crash cuts the newest segment only: a missing end of an earlier segment is noticed, even if
/// only the last mark is missing.
#[test]
fn an_earlier_segment_without_its_end_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let (mut log, _) = Log::open(folder.path(), options()).unwrap();
    append(&mut log, 270);
    log.publish().unwrap();
    append(&mut log, 3_000);
    drop(log);
    assert!(verify(folder.path()).problems.is_empty());
    let list = fs::read_to_string(folder.path().join("wal/segments")).unwrap();
    assert_eq!(list.lines().count(), 3, "two segments: {list}");
    let name = format!("wal/{:0>20}", list.lines().nth(1).unwrap());
    let path = folder.path().join(&name);
    let bytes = fs::read(&path).unwrap();
    let used = bytes.iter().rposition(|it| *it != 0).unwrap() + 1;
    // A mark has 14 bytes; the last batch lies before the mark.
    let before_mark = (used - 14..used).find(|at| bytes[*at..at + 2] == [0, 0]).unwrap();
    for from in [before_mark, before_mark - 20, used / 2, used / 1024 * 512, 512] {
        let mut after = bytes.clone();
        after[from..].fill(0);
        fs::write(&path, after).unwrap();
        let found = verify(folder.path()).problems;
        assert!(found.iter().any(|it| it.file == name), "from {from}: {found:?}");
        assert!(second_opinion(folder.path()) != Some(true), "from {from}: the second verifier");
    }
    fs::write(&path, &bytes).unwrap();
    assert!(second_opinion(folder.path()) != Some(false));
}
