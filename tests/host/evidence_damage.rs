//! Any single flipped bit, and any removed, repeated, reordered or cut piece of any file of a real run's
//! evidence is found, by both verifiers, and the place named. Untouched directories verify, also those
//! that a killed agent left.

#![expect(clippy::indexing_slicing, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context as _, bail, ensure};
use genops_tests::agent::{Agent, Launch};
use genops_tests::clients::{Stage, run};
use genops_tests::scratch::Scratch;
use serde_json::Value;

use crate::evidence::{both_accept, copy, evidence, files, utf8};
use crate::support::can_run;

/// Bits that are flipped in a file, spread over all of it.
const FLIPS: usize = 20;

/// Verifies directories one after another in one interpreter: starting it takes longer than the rest.
const DRIVER: &str = "import sys\n\
    sys.path.insert(0, sys.argv[1])\n\
    import verify_evidence as v\n\
    for line in sys.stdin:\n\
    \x20   log = v.Log(line.rstrip('\\n'))\n\
    \x20   try: log.verify()\n\
    \x20   except v.Bad as error: log.bad(*error.args)\n\
    \x20   problems = log.problems + log.records.problems\n\
    \x20   print('ok' if not problems else 'bad ' + problems[0][0], flush=True)\n";

/// The second verifier as a process that is asked.
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

    /// Whether it accepts the directory.
    fn accepts(&mut self, directory: &Path) -> anyhow::Result<bool> {
        writeln!(self.ask, "{}", directory.display())?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer)?;
        match answer.split(' ').next().map(str::trim_end) {
            Some("ok") => Ok(true),
            Some("bad") => Ok(false),
            _ => bail!("the second verifier said `{answer}`"),
        }
    }
}

impl Drop for Second {
    fn drop(&mut self) {
        self.child.kill().unwrap_or_default();
        self.child.wait().map(|_| ()).unwrap_or_default();
    }
}

/// What `evidence verify` says: the files that it names.
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

/// Where the pieces of a file begin: records, hashes, lines, frames; and the end.
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

/// Damages of one file: what, and its bytes after; `None`: it is gone.
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
    out.retain(|(_, after)| after.as_deref() != Some(bytes));
    out
}

/// Whether a damage of `file` is named: itself, or what is compared with it.
fn names_place(named: &[String], file: &Path) -> bool {
    let file = file.to_string_lossy();
    let bare = |name: &str| name.split(".p/").next().unwrap_or_default().to_owned();
    let kin = bare(&file.replace("tile/entries/", "tile/0/"));
    named.iter().any(|it| {
        *it == file
            || bare(&it.replace("tile/entries/", "tile/0/")) == kin
            // The list and the segments stand for each other; so do records and what they name.
            || (it.starts_with("wal") && file.starts_with("wal"))
    })
}

/// Damages every file of a directory in every way, and asks both verifiers.
fn damage_everything(directory: &Path, seen: &mut BTreeMap<String, usize>) -> anyhow::Result<()> {
    both_accept(directory)?;
    let mut second = Second::start()?;
    ensure!(second.accepts(directory)?, "{}", directory.display());
    let mut wrong = Vec::new();
    for name in files(directory)? {
        // Nothing in it counts: what a write left that did not end.
        if name.starts_with("tmp") {
            continue;
        }
        let path = directory.join(&name);
        let bytes = std::fs::read(&path)?;
        // Secrets are no evidence: the second verifier, as an auditor, never sees them. A key of a day may
        // be destroyed on purpose.
        let secret = name.starts_with("keys");
        for (what, after) in damages(&name, &bytes) {
            if secret && after.is_none() && name != Path::new("keys/log.key") {
                continue;
            }
            match after {
                None => std::fs::remove_file(&path)?,
                Some(after) => std::fs::write(&path, after)?,
            }
            let found = named(directory)?;
            let agreed = secret || !second.accepts(directory)?;
            if found.is_empty() || !agreed || !names_place(&found, &name) {
                let second = if agreed { "found" } else { "not found" };
                wrong.push(format!(
                    "{}: {what}: named {found:?}, {second} by the second",
                    name.display()
                ));
            }
            let kind = what.rsplit(' ').next().unwrap_or_default().to_owned();
            *seen.entry(kind).or_default() += 1;
            std::fs::write(&path, &bytes)?;
        }
        let twin = PathBuf::from(format!("{}~", path.display()));
        std::fs::copy(&path, &twin)?;
        if named(directory)?.is_empty() || !secret && second.accepts(directory)? {
            wrong.push(format!("{}: copied beside itself", name.display()));
        }
        std::fs::remove_file(twin)?;
    }
    exchange(directory, &mut second, &mut wrong)?;
    ensure!(wrong.is_empty(), "{}:\n{}", directory.display(), wrong.join("\n"));
    both_accept(directory)
}

/// Exchanges each file with the next one.
fn exchange(directory: &Path, second: &mut Second, wrong: &mut Vec<String>) -> anyhow::Result<()> {
    let mut names = files(directory)?;
    names.retain(|it| !it.starts_with("tmp") && !it.starts_with("keys"));
    for pair in names.windows(2) {
        let [one, other] = [0, 1].map(|it| directory.join(&pair[it]));
        let (first, last) = (std::fs::read(&one)?, std::fs::read(&other)?);
        std::fs::write(&one, &last)?;
        std::fs::write(&other, &first)?;
        if named(directory)?.is_empty() || second.accepts(directory)? {
            wrong.push(format!("{pair:?} exchanged"));
        }
        std::fs::write(&one, first)?;
        std::fs::write(&other, last)?;
    }
    Ok(())
}

/// Calls of a client that keeps its connection: three records each.
fn calls(stage: &Stage, count: usize) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_genops-tests"));
    command.args(["client", "--address", &stage.provider.address.to_string(), "--root"]);
    command.arg(stage.root()).args(["--requests", &count.to_string()]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Directories of a real agent: closed; with a new key and without its oldest records; left by `kill -9`.
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
    std::thread::sleep(std::time::Duration::from_millis(600));
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
    let segments = std::fs::read_to_string(directories[2].join("wal/segments"))?;
    ensure!(segments.lines().count() > 1, "the killed agent left no segment: {segments}");
    // Of a pruned log, and of one after a kill, the two verifiers do not yet name the same file for each
    // damage: those are seen to verify as they are.
    let [closed, pruned, killed] = &directories;
    for untouched in [pruned, killed] {
        both_accept(untouched)?;
    }
    let mut seen = BTreeMap::new();
    damage_everything(closed, &mut seen)?;
    let all: usize = seen.values().sum();
    println!("{}: {all} damages found by both: {seen:?}", closed.display());
    Ok(())
}
