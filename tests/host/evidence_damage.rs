//! Checks that both verifiers find and locate any damage to the evidence of a real run: a flipped
//! bit, or a removed, repeated, reordered or cut piece of any file. Untouched directories verify,
//! including the directory left by a killed agent.

#![expect(clippy::indexing_slicing, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use genops_tests::agent::{Agent, Launch};
use genops_tests::clients::{Stage, run};
use genops_tests::patience::scaled;
use genops_tests::scratch::Scratch;
use serde_json::Value;

use crate::evidence::{both_accept, copy, evidence, files, utf8};
use crate::support::can_run;

/// Number of bits flipped in a file, spread over the whole file.
const FLIPS: usize = 10;

/// Label for damages equal to the result of a crash, when counted.
const AFTER_A_CRASH: &str = "as after a crash";

/// Python program verifying directories one after another and printing the files named as damaged.
/// A single interpreter serves all directories, because starting Python takes longer than the rest.
/// Results for the same bytes are cached.
const DRIVER: &str = "import functools, sys\n\
    sys.path.insert(0, sys.argv[1])\n\
    import verify_evidence as v\n\
    v.ed25519_verify = functools.lru_cache(4096)(v.ed25519_verify)\n\
    v.crc32c = functools.lru_cache(65536)(v.crc32c)\n\
    for line in sys.stdin:\n\
    \x20   log = v.Log(line.rstrip('\\n'))\n\
    \x20   try: log.verify()\n\
    \x20   except v.Bad as error: log.bad(*error.args)\n\
    \x20   problems = log.problems + log.records.problems\n\
    \x20   print(*(name for name, what in problems), sep='\\t', flush=True)\n";

/// Second verifier, as a running process.
struct Second {
    child: Child,
    ask: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Second {
    fn start() -> anyhow::Result<Self> {
        let mut command = Command::new("python3");
        command.args(["-B", "-c", DRIVER, env!("CARGO_MANIFEST_DIR")]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let ask = child.stdin.take().context("its input is a pipe")?;
        let answers = BufReader::new(child.stdout.take().context("its output is a pipe")?);
        Ok(Self { child, ask, answers })
    }

    /// Returns the files named as damaged; none if the verifier accepts the directory.
    fn named(&mut self, directory: &Path) -> anyhow::Result<Vec<String>> {
        writeln!(self.ask, "{}", directory.display())?;
        let mut answer = String::new();
        ensure!(self.answers.read_line(&mut answer)? > 0, "the second verifier ended");
        let answer = answer.trim_end_matches('\n');
        Ok(answer.split('\t').filter(|it| !it.is_empty()).map(str::to_owned).collect())
    }
}

impl Drop for Second {
    fn drop(&mut self) {
        self.child.kill().unwrap_or_default();
        self.child.wait().map(|_| ()).unwrap_or_default();
    }
}

/// Returns the files named as damaged by `evidence verify`.
fn named(directory: &Path) -> anyhow::Result<Vec<String>> {
    let output = evidence(&["verify", utf8(directory)?, "--output", "json"])?;
    let said: Value = serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    let problems = said.get("problems").and_then(Value::as_array).context("problems")?;
    let file = |it: &Value| it.get("file").and_then(Value::as_str).map(str::to_owned);
    let files: Vec<String> = problems.iter().filter_map(file).collect();
    let code = i32::from(!files.is_empty());
    ensure!(output.status.code() == Some(code), "{:?} and {said}", output.status);
    Ok(files)
}

/// Returns the starts of the pieces of a file (records, hashes, lines, frames), and the end.
fn pieces(name: &Path, bytes: &[u8]) -> Vec<usize> {
    let text = name.to_string_lossy();
    let mut starts = vec![0];
    let mut at = 0;
    if text.starts_with("tile/entries/") {
        while let Some(head) = bytes.get(at..at + 2) {
            at += 2 + usize::from(u16::from_be_bytes([head[0], head[1]]));
            starts.push(at);
        }
    } else if text.starts_with("tile/") {
        starts.extend((32..=bytes.len()).step_by(32));
    } else if text.starts_with("wal/0") {
        starts.extend([16, 24, 28, 32, 512]);
        at = 512;
        while let Some(&[high, low]) = bytes.get(at..at + 2).and_then(<[u8]>::first_chunk) {
            let length = usize::from(u16::from_be_bytes([high, low]));
            let empty = bytes.get(at + 2..at + 6).is_none_or(|crc| crc.iter().all(|it| *it == 0));
            if length == 0 && empty {
                break;
            }
            at += if length == 0 { 14 } else { 6 + length };
            starts.push(at);
        }
    } else {
        starts.extend((1..=bytes.len()).filter(|at| bytes[at - 1] == b'\n'));
    }
    starts.retain(|it| *it <= bytes.len());
    starts.dedup();
    starts
}

/// Returns copies of a segment with zeroes from a place on, at unchanged length.
fn emptied(bytes: &[u8], starts: &[usize], used: usize) -> Vec<(String, Option<Vec<u8>>)> {
    let sector = used / 512 * 512;
    let last = starts.len().saturating_sub(3);
    let places = [0, 512, 512 + 100, used / 2, sector, used - 3]
        .into_iter()
        .chain([starts.len() / 2, last, last + 1].map(|it| starts[it]));
    let made = places.map(|from| {
        let mut after = bytes.to_vec();
        after[from..].fill(0);
        (format!("from byte {from} on emptied"), Some(after))
    });
    made.collect()
}

/// Returns damages of a file: description and bytes after the damage, or `None` if the file is
/// removed.
fn damages(name: &Path, bytes: &[u8]) -> Vec<(String, Option<Vec<u8>>)> {
    let mut out = vec![("removed".to_owned(), None)];
    let used = bytes.iter().rposition(|it| *it != 0).map_or(0, |last| last + 1);
    if used == 0 {
        return out;
    }
    let mut flips: Vec<usize> = (0..FLIPS).map(|it| it * used / FLIPS).collect();
    flips.extend([used - 1, bytes.len() - 1, usize::midpoint(used, bytes.len())]);
    flips.retain(|it| *it < bytes.len());
    for (number, at) in flips.into_iter().enumerate() {
        let mut flipped = bytes.to_vec();
        flipped[at] ^= 1 << (number % 8);
        out.push((format!("bit {} of byte {at} flipped", number % 8), Some(flipped)));
    }
    let starts = pieces(name, bytes);
    for at in [0, starts.len() / 3, starts.len() / 2, starts.len().saturating_sub(3)] {
        let Some(&[from, to]) = starts.get(at..at + 2).and_then(<[usize]>::first_chunk) else {
            continue;
        };
        let end = starts.get(at + 2).copied().unwrap_or(to);
        let (head, piece, next, rest) =
            (&bytes[..from], &bytes[from..to], &bytes[to..end], &bytes[end..]);
        let made = [
            ("removed", [head, next, rest, &[]].concat()),
            ("repeated", [head, piece, piece, &bytes[to..]].concat()),
            ("exchanged with the next", [head, next, piece, rest].concat()),
            ("and what follows cut", head.to_vec()),
            ("cut in the middle", bytes[..from + piece.len() / 2].to_vec()),
        ];
        let what = |how| format!("piece {at} (bytes {from}..{to}) {how}");
        out.extend(made.into_iter().map(|(how, after)| (what(how), Some(after))));
    }
    if name.to_string_lossy().starts_with("wal/0") {
        out.extend(emptied(bytes, &starts, used));
    }
    out.retain(|(_, after)| after.as_deref() != Some(bytes));
    out
}

/// Whether a damage of `file` is named: by `file`, or by a file standing for `file`.
fn names_place(named: &[String], file: &Path, gone: bool) -> bool {
    let file = file.to_string_lossy();
    named.iter().any(|it| {
        *it == file
            // Without the list, or with another list, a segment counts as a foreign file.
            || (file == "wal/segments" && it.starts_with("wal/"))
            // Without the rotation, only a signature shows that the log had a second key.
            || (gone && file.starts_with("rotations/") && it == "checkpoint")
            // Without the statement about pruned records, the pruned records are missed first.
            || (gone && file == "pruned" && it.starts_with("tile/entries/"))
    })
}

/// Returns the index of the first record of each write-ahead segment in use.
fn segments(directory: &Path) -> anyhow::Result<Vec<u64>> {
    let list = std::fs::read_to_string(directory.join("wal/segments"))?;
    list.lines().skip(1).map(|line| line.parse().context("a number")).collect()
}

/// Returns the number of whole records in the segment `bytes` before byte `end`.
fn records(name: &Path, bytes: &[u8], end: usize) -> u64 {
    let frames = pieces(name, bytes);
    let whole = frames.windows(2).filter(|it| it[0] >= 512 && it[1] <= end);
    whole.filter(|it| bytes[it[0]..it[0] + 2] != [0, 0]).map(|_| 1).sum()
}

/// Whether the damage is equal to the result of a crash, for any verifier with the directory alone.
/// There are two cases. The newest write-ahead segment is empty from a place on, at unchanged
/// length, and every signed record lies before the place. Or the list lacks segments about to be
/// removed, because all of their records are signed, or lacks the newest segment, still without a
/// record.
fn as_after_a_crash(directory: &Path, name: &Path, after: &[u8]) -> anyhow::Result<bool> {
    let before = std::fs::read(directory.join(name))?;
    let listed = segments(directory)?;
    let Some(newest) = listed.last().copied() else { return Ok(false) };
    let checkpoint = std::fs::read_to_string(directory.join("checkpoint"))?;
    let signed: u64 = checkpoint.lines().nth(1).context("a size")?.parse()?;
    let newest_name = PathBuf::from(format!("wal/{newest:020}"));
    if name == Path::new("wal/segments") {
        let bytes = std::fs::read(directory.join(&newest_name))?;
        let is_new = records(&newest_name, &bytes, bytes.len()) == 0;
        let rest = |from: &u64, to: usize| {
            let rest = listed.iter().take(to).filter(|it| *it >= from);
            let mut lines = vec!["genops-wal 1".to_owned()];
            lines.extend(rest.map(u64::to_string));
            *from <= signed && after == (lines.join("\n") + "\n").as_bytes()
        };
        let ends = [listed.len(), listed.len() - usize::from(is_new)];
        return Ok(listed.iter().any(|from| ends.iter().any(|to| rest(from, *to))));
    }
    let kept = after.iter().rposition(|it| *it != 0).map_or(0, |last| last + 1);
    let emptied = after.len() == before.len() && before.starts_with(&after[..kept]);
    Ok(name == newest_name
        && emptied
        && kept >= 32
        && newest + records(name, &before, kept) >= signed)
}

/// Result of the verifiers for a damage.
enum Verdict {
    Named,
    /// Both accept the directory as the result of a crash.
    AfterACrash,
    Wrong(String),
}

/// Damages a file, asks both verifiers, restores the file and returns the result.
fn damage(
    directory: &Path,
    second: &mut Second,
    name: &Path,
    after: Option<&[u8]>,
) -> anyhow::Result<Verdict> {
    let path = directory.join(name);
    let bytes = std::fs::read(&path)?;
    let may_be = after.map_or(Ok(false), |after| as_after_a_crash(directory, name, after))?;
    match after {
        None => std::fs::remove_file(&path)?,
        Some(after) => std::fs::write(&path, after)?,
    }
    let said = [named(directory)?, second.named(directory)?];
    std::fs::write(&path, &bytes)?;
    // Secrets are no evidence: the second verifier, as an auditor, never looks at keys.
    let asked = if name.starts_with("keys") { &said[..1] } else { &said[..] };
    let found = asked.iter().all(|it| names_place(it, name, after.is_none()));
    let accepted = said.iter().all(Vec::is_empty);
    Ok(match (found, accepted && may_be) {
        (true, _) => Verdict::Named,
        (false, true) => Verdict::AfterACrash,
        (false, false) => Verdict::Wrong(format!("{said:?}")),
    })
}

/// Damages every file of a directory in every way, and asks both verifiers.
fn damage_everything(directory: &Path, seen: &mut BTreeMap<String, usize>) -> anyhow::Result<()> {
    both_accept(directory)?;
    let mut second = Second::start()?;
    let mut wrong = Vec::new();
    for name in files(directory)? {
        // Files left by an unfinished write do not count.
        if name.starts_with("tmp") {
            continue;
        }
        let path = directory.join(&name);
        let bytes = std::fs::read(&path)?;
        for (what, after) in damages(&name, &bytes) {
            // A key of a day may be destroyed on purpose.
            if name.starts_with("keys") && after.is_none() && name != Path::new("keys/log.key") {
                continue;
            }
            let kind = match damage(directory, &mut second, &name, after.as_deref())? {
                Verdict::Named => what.rsplit(' ').next().unwrap_or_default(),
                Verdict::AfterACrash => AFTER_A_CRASH,
                Verdict::Wrong(said) => {
                    wrong.push(format!("{}: {what}: named {said}", name.display()));
                    continue;
                }
            };
            *seen.entry(kind.to_owned()).or_default() += 1;
        }
        let twin = PathBuf::from(format!("{}~", path.display()));
        std::fs::copy(&path, &twin)?;
        let said = [named(directory)?, second.named(directory)?];
        let secret = name.starts_with("keys");
        let stranger = format!("{}~", name.display());
        if !said[..if secret { 1 } else { 2 }].iter().all(|it| it.contains(&stranger)) {
            wrong.push(format!("{}: copied beside itself: {said:?}", name.display()));
        }
        *seen.entry("foreign".to_owned()).or_default() += 1;
        std::fs::remove_file(twin)?;
    }
    exchange(directory, &mut second, &mut wrong)?;
    ensure!(wrong.is_empty(), "{}:\n{}", directory.display(), wrong.join("\n"));
    both_accept(directory)
}

/// Exchanges each file with the next file.
fn exchange(directory: &Path, second: &mut Second, wrong: &mut Vec<String>) -> anyhow::Result<()> {
    let mut names = files(directory)?;
    names.retain(|it| !it.starts_with("tmp") && !it.starts_with("keys"));
    for pair in names.windows(2) {
        let [one, other] = [0, 1].map(|it| directory.join(&pair[it]));
        let (first, last) = (std::fs::read(&one)?, std::fs::read(&other)?);
        std::fs::write(&one, &last)?;
        std::fs::write(&other, &first)?;
        let said = [named(directory)?, second.named(directory)?];
        let places = |it: &Vec<String>| pair.iter().any(|file| names_place(it, file, false));
        if !said.iter().all(places) {
            wrong.push(format!("{pair:?} exchanged: named {said:?}"));
        }
        std::fs::write(&one, first)?;
        std::fs::write(&other, last)?;
    }
    Ok(())
}

/// Returns a client making calls on a kept connection: three records for each call.
fn calls(stage: &Stage, count: usize) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_genops-tests"));
    command.args(["client", "--address", &stage.provider.address.to_string(), "--root"]);
    command.arg(stage.root()).args(["--requests", &count.to_string()]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Returns directories of a real agent: closed; with a new key and without the oldest records; left
/// by `kill -9`.
fn directories(scratch: &Scratch) -> anyhow::Result<[PathBuf; 3]> {
    let stage = Stage::new()?;
    let [log, closed, pruned, killed] =
        ["evidence", "closed", "pruned", "killed"].map(|it| scratch.join(it));
    let launch = Launch {
        evidence: "segment_bytes: 1048576, ",
        evidence_in: Some(log.clone()),
        ..Launch::default()
    };
    let rules = "mode: enforce\npolicies: [{name: no-pro, denied_models: [\"*-pro\"]}]\n\
                 budgets: [{name: all, unit: USD, limit: 50, period: day}]";
    let mut agent = Agent::launch(rules, &launch)?;
    drop(run(&mut calls(&stage, 380))?.succeeded()?);
    drop(run(&mut stage.python("openai", &["--model", "o1-pro"])?)?);
    agent.stop()?;
    drop(agent);
    copy(&log, &closed)?;
    let place = utf8(&log)?;
    for arguments in [&["rotate", place][..], &["prune", place, "--before", "2100-01-01T00:00:00Z"]]
    {
        let done = evidence(arguments)?;
        ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }
    let mut agent = Agent::launch(rules, &launch)?;
    drop(run(&mut calls(&stage, 40))?.succeeded()?);
    agent.stop()?;
    drop(agent);
    copy(&log, &pruned)?;
    let mut agent = Agent::launch(rules, &launch)?;
    let mut going = calls(&stage, 100_000).spawn()?;
    // Kill the agent while a segment is in use and another still has unsigned records.
    let patience = Instant::now() + scaled(Duration::from_mins(1));
    while segments(&log)?.len() < 2 {
        ensure!(Instant::now() < patience, "no segment was followed by another one in time");
        std::thread::sleep(Duration::from_millis(1));
    }
    agent.kill()?;
    going.kill()?;
    going.wait()?;
    drop(agent);
    copy(&log, &killed)?;
    Ok([closed, pruned, killed])
}

#[test]
#[expect(clippy::print_stdout, reason = "the figure of this test")]
fn every_damage_to_evidence_of_a_real_run_is_found_by_both_verifiers() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let scratch = Scratch::new("damage")?;
    let directories = directories(&scratch)?;
    ensure!(directories[0].join("checkpoints").exists(), "no checkpoint was kept");
    ensure!(directories[1].join("rotations/1").exists() && directories[1].join("pruned").exists());
    let left = segments(&directories[2])?;
    ensure!(left.len() > 1, "the killed agent left only the segments {left:?}");
    let mut seen = BTreeMap::new();
    for directory in &directories {
        damage_everything(directory, &mut seen)?;
    }
    // Only ends of the killed agent's newest segment, and of its list: most of its damages are
    // found.
    let excused = seen.remove(AFTER_A_CRASH).unwrap_or_default();
    ensure!(
        (1..=20).contains(&excused) && seen.get("emptied").is_some_and(|it| *it >= 3),
        "{excused} of {seen:?}"
    );
    let all: usize = seen.values().sum();
    println!("{all} damages found by both, {excused} as after a crash: {seen:?}");
    Ok(())
}
