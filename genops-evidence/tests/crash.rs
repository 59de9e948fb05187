//! Durable data survives killed processes, lost sectors, full and read-only disks, and cut files.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::cast_possible_truncation,
    reason = "a test may panic"
)]

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Command, Stdio};

use genops_evidence::{Directory, Log, OpenError, Options, Report, Verify};

fn options() -> Options {
    Options { segment_bytes: 1 << 20, ..Options::new("example.com/crash") }
}

fn record(index: u64) -> Vec<u8> {
    format!("{{\"seq\":{index},\"text\":\"{}\"}}", "y".repeat(300 + (index % 400) as usize)).into()
}

fn append(log: &mut Log, count: u64, batch: u64) {
    for done in 1..=count {
        log.append(&record(log.next_index())).unwrap();
        if done % batch == 0 {
            log.commit().unwrap();
        }
    }
    log.commit().unwrap();
}

fn problems(directory: &Path) -> usize {
    let each = &mut |_, _: &[u8]| {};
    Verify { directory, key: None, each, progress: &mut |_, _| {} }.run().problem_count
}

/// Verifies, and checks every record against the written record.
fn verify(directory: &Path) -> Report {
    let mut wrong = 0;
    let each = &mut |index, bytes: &[u8]| wrong += u64::from(bytes != record(index));
    let report = Verify { directory, key: None, each, progress: &mut |_, _| {} }.run();
    assert_eq!(wrong, 0);
    report
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to.join(entry.file_name()));
        } else {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

/// The test runs itself as a child writing until killed; the child prints each durable index.
#[test]
fn nothing_durable_is_lost_by_kill_9() {
    if let Ok(directory) = std::env::var("GENOPS_CRASH_CHILD") {
        let (mut log, _) = Log::open(Path::new(&directory), options()).unwrap();
        for ms in 0.. {
            append(&mut log, 1 + ms % 90, 64);
            println!("durable {}", log.durable());
            log.tick(ms * 40).unwrap();
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let mut promised = 0;
    for round in 0..12_u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "nothing_durable_is_lost_by_kill_9", "--nocapture"])
            .env("GENOPS_CRASH_CHILD", folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let wanted = promised + 40 + round * 97;
        for line in lines.by_ref() {
            let line = line.unwrap();
            let Some(durable) = line.strip_prefix("durable ") else { continue };
            promised = durable.parse().unwrap();
            if promised > wanted {
                break;
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        for line in lines.map_while(Result::ok) {
            if let Some(durable) = line.strip_prefix("durable ") {
                promised = promised.max(durable.parse().unwrap());
            }
        }
        let report = verify(folder.path());
        assert_eq!(report.problems, [], "round {round}");
        assert!(report.open, "round {round}");
        assert!(report.records >= promised, "{} of {promised}", report.records);
    }
    let (log, recovery) = Log::open(folder.path(), options()).unwrap();
    assert!(!recovery.clean && recovery.size >= promised);
    log.close().unwrap();
    let report = verify(folder.path());
    assert_eq!((report.problems, report.open), (vec![], false));
}

/// A power cut leaves any of the sectors of the last, unacknowledged write on the disk.
#[test]
fn a_power_cut_costs_only_what_was_not_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let (mut log, _) = Log::open(folder.path(), options()).unwrap();
    append(&mut log, 300, 50);
    log.publish().unwrap();
    append(&mut log, 20, 20);
    let segment = folder.path().join("wal/00000000000000000000");
    let before = fs::read(&segment).unwrap();
    append(&mut log, 6, 6);
    let after = fs::read(&segment).unwrap();
    drop(log);
    let from = before.iter().zip(&after).position(|(one, other)| one != other).unwrap();
    let to = after.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    let sectors: Vec<usize> = (from / 512..=(to - 1) / 512).collect();
    for lost in (1_u32..1 << sectors.len()).step_by(3) {
        let copied = tempfile::tempdir().unwrap();
        copy(folder.path(), copied.path());
        let file = fs::File::options()
            .write(true)
            .open(copied.path().join("wal/00000000000000000000"))
            .unwrap();
        for (bit, sector) in sectors.iter().enumerate() {
            if lost >> bit & 1 == 1 {
                let (start, end) = ((sector * 512).max(from), (sector * 512 + 512).min(to));
                file.write_all_at(&vec![0; end - start], start as u64).unwrap();
            }
        }
        let report = verify(copied.path());
        assert_eq!(report.problems, [], "sectors {lost:b} lost");
        let (mut log, recovery) = Log::open(copied.path(), options()).unwrap();
        assert!((320..=326).contains(&recovery.size), "{recovery:?}");
        append(&mut log, 10, 5);
        assert_eq!(verify(copied.path()).problems, [], "sectors {lost:b} lost");
        log.close().unwrap();
        assert_eq!(verify(copied.path()).problems, [], "sectors {lost:b} lost");
    }
}

/// A signed log with data cut off is not signed again, whatever the cut.
#[test]
fn a_log_that_lost_what_it_signed_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (mut log, _) = Log::open(folder.path(), options()).unwrap();
    append(&mut log, 700, 64);
    log.close().unwrap();
    for name in ["tile/entries/002.p/188", "tile/0/002.p/188", "checkpoint", "wal/segments"] {
        for cut in [true, false] {
            let copied = tempfile::tempdir().unwrap();
            copy(folder.path(), copied.path());
            let path = copied.path().join(name);
            let bytes = fs::read(&path).unwrap();
            if cut {
                fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
            } else {
                fs::remove_file(&path).unwrap();
            }
            let opened = Log::open(copied.path(), options());
            assert!(opened.is_err(), "{name}, cut: {cut}");
        }
    }
    // A crash never leaves an older checkpoint with newer tiles.
    let copied = tempfile::tempdir().unwrap();
    copy(folder.path(), copied.path());
    let (mut log, _) = Log::open(folder.path(), options()).unwrap();
    append(&mut log, 30, 10);
    log.close().unwrap();
    fs::copy(folder.path().join("checkpoint"), copied.path().join("checkpoint")).unwrap();
    let error = Log::open(copied.path(), options()).unwrap_err();
    assert!(matches!(error, OpenError::Read(_) | OpenError::Rollback { .. }), "{error}");
}

#[test]
fn a_log_says_that_it_is_crowded_before_it_takes_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let (mut log, _) = Log::open(&folder.path().join("log"), options()).unwrap();
    while !log.is_crowded() {
        log.append(&record(log.next_index())).unwrap();
    }
    // The largest record finds room all the same.
    log.append(&vec![b'y'; 65_535]).unwrap();
    log.commit().unwrap();
    assert!(!log.is_crowded());
}

#[test]
fn a_second_process_is_kept_out() {
    let folder = tempfile::tempdir().unwrap();
    let (_log, _) = Log::open(folder.path(), options()).unwrap();
    assert!(matches!(Log::open(folder.path(), options()), Err(OpenError::InUse(_))));
}

#[test]
fn the_secret_key_is_for_its_owner_only() {
    let folder = tempfile::tempdir().unwrap();
    let (_log, recovery) = Log::open(folder.path(), options()).unwrap();
    assert!(recovery.created && recovery.clean);
    let mode = |name: &str| fs::metadata(folder.path().join(name)).unwrap().permissions().mode();
    assert_eq!(mode("keys/log.key") & 0o777, 0o600);
    assert_eq!(mode("keys") & 0o777, 0o700);
}

#[test]
fn a_key_from_outside_is_used_and_another_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let keys = tempfile::tempdir().unwrap();
    let mut options = options();
    for (name, seed) in [("one", 1), ("two", 2)] {
        let kind = genops_evidence::note::KeyType::Note;
        let key = genops_evidence::note::SecretKey::new("example.com/given", kind, &[seed; 32]);
        fs::write(keys.path().join(name), key.unwrap().to_text().as_bytes()).unwrap();
    }
    options.key_file = Some(keys.path().join("one"));
    let (mut log, recovery) = Log::open(folder.path(), options.clone()).unwrap();
    assert_eq!(recovery.key.name(), "example.com/given");
    append(&mut log, 3, 1);
    assert!(log.rotate_key().is_err());
    log.close().unwrap();
    assert_eq!(verify(folder.path()).problems, []);
    assert!(!folder.path().join("keys/log.key").exists());
    options.key_file = Some(keys.path().join("two"));
    assert!(matches!(Log::open(folder.path(), options.clone()), Err(OpenError::WrongKey { .. })));
    // The present key signs for the next; then the next key is used, and the first no more.
    options.key_file = Some(keys.path().join("one"));
    let (mut log, _) = Log::open(folder.path(), options.clone()).unwrap();
    assert!(log.rotate_key_to(&keys.path().join("one")).is_err());
    let public = log.rotate_key_to(&keys.path().join("two")).unwrap();
    append(&mut log, 3, 1);
    log.close().unwrap();
    let report = verify(folder.path());
    assert_eq!((report.problems, report.keys.last()), (vec![], Some(&public)));
    assert!(matches!(Log::open(folder.path(), options.clone()), Err(OpenError::WrongKey { .. })));
    options.key_file = Some(keys.path().join("two"));
    let (log, recovery) = Log::open(folder.path(), options).unwrap();
    assert_eq!(recovery.key, public);
    log.close().unwrap();
}

#[test]
fn an_attachment_is_kept_under_its_digest_and_every_damage_to_it_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let (mut log, _) = Log::open(folder.path(), options()).unwrap();
    let digest = log.keep(b"what decides").unwrap();
    assert_eq!(log.keep(b"what decides").unwrap(), digest);
    append(&mut log, 3, 1);
    log.close().unwrap();
    let report = verify(folder.path());
    assert_eq!((report.problems, report.blobs), (vec![], vec![digest]));
    let directory = Directory::new(folder.path());
    assert_eq!(directory.blob(&digest).unwrap().as_deref(), Some(&b"what decides"[..]));
    let path = folder.path().join(genops_evidence::files::blob(&digest));
    fs::write(&path, b"what decided").unwrap();
    assert!(directory.blob(&digest).is_err());
    assert_eq!(problems(folder.path()), 1);
    // A damaged attachment is written again.
    let (log, _) = Log::open(folder.path(), options()).unwrap();
    log.keep(b"what decides").unwrap();
    log.close().unwrap();
    assert_eq!(problems(folder.path()), 0);
}

#[test]
fn pruned_records_are_gone_and_everything_else_still_verifies() {
    let folder = tempfile::tempdir().unwrap();
    let (mut log, _) = Log::open(folder.path(), options()).unwrap();
    append(&mut log, 1_500, 64);
    log.publish().unwrap();
    assert_eq!(log.prune(600).unwrap(), 512);
    assert_eq!(log.prune(100).unwrap(), 512);
    append(&mut log, 100, 64);
    log.close().unwrap();
    let report = verify(folder.path());
    assert_eq!(report.problems, []);
    assert_eq!((report.first, report.records), (512, 1_600 - 512));
    assert_eq!(Directory::new(folder.path()).first_kept().unwrap(), 512);
    // A reader with an earlier start is not disturbed by pruned records, but by missing records.
    let read_from_the_first = || {
        let mut indices = Vec::new();
        let directory = Directory::new(folder.path());
        directory.records(0, 1_600, |index, _| indices.push(index)).map(|()| indices)
    };
    assert!(read_from_the_first().unwrap().into_iter().eq(512..1_600));
    let (log, _) = Log::open(folder.path(), options()).unwrap();
    log.close().unwrap();
    for name in ["pruned", "tile/entries/002", "tile/0/000", "tile/0/001"] {
        let path = folder.path().join(name);
        let bytes = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        assert_ne!(problems(folder.path()), 0, "{name} removed");
        assert!(name != "tile/entries/002" || read_from_the_first().is_err());
        let mut flipped = bytes.clone();
        flipped[bytes.len() / 2] ^= 4;
        fs::write(&path, flipped).unwrap();
        assert_ne!(problems(folder.path()), 0, "{name} flipped");
        fs::write(&path, bytes).unwrap();
    }
}

/// A small separate file system, or the reason for the lack.
struct Mount(tempfile::TempDir);

impl Mount {
    fn new(options: &str) -> Result<Self, String> {
        let folder = tempfile::tempdir().unwrap();
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "genops-test"])
            .arg(folder.path())
            .stderr(Stdio::null())
            .status();
        match status {
            Ok(status) if status.success() => Ok(Self(folder)),
            other => Err(format!("no small file system can be mounted here: {other:?}")),
        }
    }

    fn again(&self, options: &str) {
        let status =
            Command::new("mount").args(["-o", options]).arg(self.0.path()).status().unwrap();
        assert!(status.success());
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        Command::new("umount").arg(self.0.path()).status().unwrap();
    }
}

#[test]
fn a_full_disk_refuses_records_and_takes_them_again_when_there_is_room() {
    let mount = match Mount::new("size=6m") {
        Ok(mount) => mount,
        Err(reason) => return println!("skipped: {reason}"),
    };
    let directory = mount.0.path().join("evidence");
    let (mut log, _) = Log::open(&directory, options()).unwrap();
    let mut durable = 0;
    let mut refused = false;
    let mut ms = 0;
    for _ in 0..40_000 {
        if log.append(&record(log.next_index())).is_err() {
            refused = true;
            break;
        }
        ms += 10;
        match log.commit() {
            Ok(()) => durable = log.durable(),
            Err(_) => refused = true,
        }
        // Publishing fails as well, and is tried again.
        log.tick(ms).unwrap_or_default();
        if refused {
            break;
        }
    }
    assert!(refused, "{durable} records fitted six megabytes");
    assert!(durable > 1_000, "{durable}");
    assert_eq!(log.durable(), durable);
    mount.again("remount,size=32m");
    log.commit().unwrap();
    append(&mut log, 100, 10);
    log.close().unwrap();
    let report = verify(&directory);
    assert_eq!(report.problems, []);
    assert!(report.records >= durable + 100);
}

#[test]
fn a_full_disk_at_the_end_of_a_process_loses_nothing_durable() {
    let mount = match Mount::new("size=6m") {
        Ok(mount) => mount,
        Err(reason) => return println!("skipped: {reason}"),
    };
    let directory = mount.0.path().join("evidence");
    let (mut log, _) = Log::open(&directory, options()).unwrap();
    while log.append(&record(log.next_index())).is_ok() && log.commit().is_ok() {
        log.tick(log.next_index() * 10).unwrap_or_default();
    }
    let durable = log.durable();
    drop(log);
    mount.again("remount,size=32m");
    let report = verify(&directory);
    assert_eq!(report.problems, []);
    let (log, recovery) = Log::open(&directory, options()).unwrap();
    assert!(recovery.size >= durable);
    log.close().unwrap();
    assert_eq!(verify(&directory).problems, []);
}

#[test]
fn a_read_only_disk_is_a_clear_error() {
    let mount = match Mount::new("size=6m") {
        Ok(mount) => mount,
        Err(reason) => return println!("skipped: {reason}"),
    };
    let directory = mount.0.path().join("evidence");
    let (mut log, _) = Log::open(&directory, options()).unwrap();
    append(&mut log, 100, 10);
    log.close().unwrap();
    mount.again("remount,ro");
    let error = Log::open(&directory, options()).unwrap_err();
    assert!(error.to_string().contains("Read-only file system"), "{error}");
    assert_eq!(verify(&directory).problems, []);
}
