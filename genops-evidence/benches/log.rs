//! Cost of durable evidence: `cargo xtask bench evidence`.
//!
//! Records become durable beside the floor: the same bytes written and synced without a log, in the
//! same run and on the disk of the build directory. A verdict waits for three records; a log of a
//! million records is written and verified. `--records N` sets another length; with `--tiny`
//! everything is done a few times only, as a check.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    reason = "a benchmark may panic, prints its results, and rounds them"
)]

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use genops_evidence::{Log, Options, Verify};

/// A record in the agent's form, just under a kilobyte: after a start, decisions naming the
/// policies.
fn record(index: u64) -> Vec<u8> {
    let head = format!(
        "{{\"v\":1,\"seq\":{index},\"kseq\":{index},\"drops\":0,\"t\":1795378193123456789,\
         \"mono\":8812300456,\"boot\":\"9e3a51c07d1b2f44\",\"type\":"
    );
    let policies = "aa".repeat(32);
    match index {
        0 => format!("{head}\"agent_start\",\"det\":{{\"end\":\"clean\"}}}}"),
        1 => format!("{head}\"policy_loaded\",\"det\":{{\"hash\":\"{policies}\"}}}}"),
        _ => {
            let (number, before) = (index - 1, index - 1);
            let before = if index == 2 { String::new() } else { format!("\"pprev\":{before},") };
            format!(
                "{head}\"decision\",\"awu\":\"0198c6f2b1d07a7e8f00000000016065-{index:016x}\",\
                 \"who\":{{\"prin\":\"refund-bot\",\"pseq\":{number},{before}\"mapped\":true,\
                 \"team\":\"payments\",\"proj\":\"refunds\",\"env\":\"production\",\
                 \"human\":\"h:20779:5f70aa5f70aa5f70aa\",\"pid\":4321,\"start\":991231,\
                 \"exe\":\"/usr/bin/python3.11\",\"user\":\"svc-refund\",\
                 \"unit\":\"refund.service\",\"cg\":\"/system.slice/refund.service\"}},\
                 \"what\":{{\"op\":\"chat\",\"type\":\"inference\",\"prov\":\"openai\",\
                 \"model\":\"gpt-4o-mini\",\"server\":\"api.openai.com\",\"api\":\"openai.chat\",\
                 \"conf\":\"full\",\"mechanism\":\"egress_hold\"}},\
                 \"in\":{{\"tok_in\":1820,\"tok_out\":1024,\"cost\":12000000,\"bytes\":2210,\
                 \"whole\":true,\"stop\":true,\"had\":[[\"payments-daily\",50000000000,880000000]]}},\
                 \"dec\":{{\"result\":\"BLOCKED\",\"code\":\"POLICY_DENY_MODEL\",\
                 \"policy\":\"refund-models\",\"bundle\":\"sha256:{policies}\",\"epoch\":1,\
                 \"prevented\":true}}}}"
            )
        }
    }
    .into_bytes()
}

fn percentile(sorted: &[Duration], share: f64) -> f64 {
    let at = ((sorted.len() - 1) as f64 * share).round() as usize;
    sorted[at].as_secs_f64() * 1e3
}

/// Writes batches of `size` records, each made durable; returns the time of each batch.
fn log_batches(folder: &Path, size: u64, batches: u64) -> (Vec<Duration>, f64) {
    fs::remove_dir_all(folder).unwrap_or_default();
    let (mut log, _) = Log::open(folder, Options::new("example.com/bench")).unwrap();
    let mut times = Vec::new();
    let started = Instant::now();
    for _ in 0..batches {
        let begun = Instant::now();
        for _ in 0..size {
            log.append(&record(log.next_index())).unwrap();
        }
        log.commit().unwrap();
        times.push(begun.elapsed());
        log.tick(started.elapsed().as_millis() as u64).unwrap();
    }
    let rate = (size * batches) as f64 / started.elapsed().as_secs_f64();
    drop(log);
    times.sort();
    (times, rate)
}

/// Floor: the same bytes appended to a single file, with `fdatasync` after each batch.
fn plain_batches(folder: &Path, size: u64, batches: u64) -> (Vec<Duration>, f64) {
    let path = folder.with_extension("floor");
    let mut file = fs::File::create(&path).unwrap();
    let mut times = Vec::new();
    let started = Instant::now();
    for batch in 0..batches {
        let begun = Instant::now();
        let mut bytes = Vec::new();
        for index in 0..size {
            bytes.extend_from_slice(&record(batch * size + index));
        }
        file.write_all(&bytes).unwrap();
        file.sync_data().unwrap();
        times.push(begun.elapsed());
    }
    let rate = (size * batches) as f64 / started.elapsed().as_secs_f64();
    fs::remove_file(path).unwrap();
    times.sort();
    (times, rate)
}

/// Delay of a verdict by evidence: three records and a commit, 200 a second, with checkpoints going
/// on in parallel.
fn verdicts(folder: &Path, count: u32) -> Vec<Duration> {
    fs::remove_dir_all(folder).unwrap_or_default();
    let (mut log, _) = Log::open(folder, Options::new("example.com/bench")).unwrap();
    let mut times = Vec::new();
    let started = Instant::now();
    for number in 0..count {
        let due = started + Duration::from_millis(5) * number;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let begun = Instant::now();
        for _ in 0..3 {
            log.append(&record(log.next_index())).unwrap();
        }
        log.commit().unwrap();
        times.push(begun.elapsed());
        log.tick(started.elapsed().as_millis() as u64).unwrap();
    }
    drop(log);
    times.sort();
    times
}

fn size_of(folder: &Path) -> u64 {
    fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let meta = entry.metadata().unwrap();
            if meta.is_dir() { size_of(&entry.path()) } else { meta.len() }
        })
        .sum()
}

/// Highest resident memory of the process so far, in KiB.
fn peak_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).unwrap_or(0)
}

/// Returns `met` or `missed`, for the text behind the goal.
fn goal(measured: f64, most: f64) -> String {
    let verdict = if measured <= most { "met" } else { "missed" };
    format!("at most {most}: {verdict}")
}

/// Measures durable records a second, batch by batch, beside the floor.
fn durable(folder: &Path, tiny: bool) {
    println!(
        "| records in a batch | durable a second | fsync alone | times the floor | batch p50 | p99 |"
    );
    println!("| --- | --- | --- | --- | --- | --- |");
    for (size, batches) in [(1, 1_000), (64, 400), (1_024, 60)] {
        let batches = if tiny { 5 } else { batches };
        let (floor, floor_rate) = plain_batches(folder, size, batches);
        let (times, rate) = log_batches(folder, size, batches);
        println!(
            "| {size} | {rate:.0} | {floor_rate:.0} | {:.2} | {:.3} ms (floor {:.3}) | {:.3} ms (floor {:.3}) |",
            floor_rate / rate,
            percentile(&times, 0.5),
            percentile(&floor, 0.5),
            percentile(&times, 0.99),
            percentile(&floor, 0.99),
        );
    }
}

/// Writes a log of `records` records and closes the log.
fn write(folder: &Path, records: u64) {
    fs::remove_dir_all(folder).unwrap_or_default();
    let (mut log, _) = Log::open(folder, Options::new("example.com/bench")).unwrap();
    let started = Instant::now();
    while log.next_index() < records {
        for _ in 0..1_024.min(records - log.next_index()) {
            log.append(&record(log.next_index())).unwrap();
        }
        log.commit().unwrap();
        log.tick(started.elapsed().as_millis() as u64).unwrap();
    }
    log.close().unwrap();
}

/// Writes a log, measures the size, and verifies the log; the goal for a million records is scaled.
fn whole_log(folder: &Path, records: u64) {
    write(folder, records);
    let (stored, raw) = (size_of(folder) as f64 / records as f64, record(records / 2).len());
    println!("| bytes a record, stored | {stored:.1} | {raw} as JSON |");
    let started = Instant::now();
    let each = &mut |_, _: &[u8]| {};
    let report = Verify { directory: folder, key: None, each, progress: &mut |_, _| {} }.run();
    let seconds = started.elapsed().as_secs_f64();
    assert_eq!((report.problem_count, report.records), (0, records));
    let most = 5.0 * records as f64 / 1e6;
    println!("| verify {records} records, s | {seconds:.3} | {} |", goal(seconds, most));
    println!("| most memory, KiB | {} | |", peak_kib());
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let asked = |option: &str| arguments.iter().position(|it| it == option);
    // Cargo passes `--bench` for a measurement; `cargo test` only checks the program.
    let tiny = asked("--tiny").is_some() || asked("--bench").is_none();
    let given = asked("--records").map(|at| arguments[at + 1].parse().unwrap());
    let records = given.unwrap_or(if tiny { 3_000 } else { 1_000_000 });
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("evidence-bench-{}", std::process::id()));
    durable(&folder, tiny);
    println!("\n| what | measured | goal |\n| --- | --- | --- |");
    let times = verdicts(&folder, if tiny { 20 } else { 2_000 });
    for (share, name, most) in [(0.5, "p50", 1.0), (0.99, "p99", 6.0)] {
        let measured = percentile(&times, share);
        println!("| added to a verdict, {name}, ms | {measured:.3} | {} |", goal(measured, most));
    }
    whole_log(&folder, records);
    fs::remove_dir_all(&folder).unwrap();
}
