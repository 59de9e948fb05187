//! Tests of the evidence of the agent's actions: verified, replayed, proved, shipped and witnessed,
//! with missing records found.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use genops_tests::agent::{Agent, Launch, free_address, program};
use genops_tests::clients::{Stage, python, run};
use genops_tests::scratch::Scratch;
use serde_json::Value;

use crate::support::can_run;

/// Enforcing configuration: a model and a phrase are denied, and the budget lasts for a handful of
/// calls.
pub(crate) const RULES: &str = "mode: enforce\n\
    principals:\n  - {name: assistant, match: {exe: \"*/python3*\"}, team: desk}\n\
    policies:\n  - {name: no-pro, denied_models: [\"*-pro\"], enforcement: block}\n  \
    - {name: words, denied_content: [\"(?i)secret plan\"], enforcement: block}\n\
    budgets:\n  - {name: daily, team: desk, unit: USD, limit: 0.0003, period: day}\n\
    rate_limits:\n  - {name: pace, principal: assistant, requests: 100, per: minute}";

/// Runs `genops-agent evidence ..`.
pub(crate) fn evidence(arguments: &[&str]) -> anyhow::Result<Output> {
    Ok(Command::new(program()?).arg("evidence").args(arguments).output()?)
}

/// A path as an argument.
pub(crate) fn utf8(path: &Path) -> anyhow::Result<&str> {
    path.to_str().context("a path in UTF-8")
}

/// Runs the second verifier, written in another language.
pub(crate) fn second(arguments: &[&str]) -> anyhow::Result<Output> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("verify_evidence.py");
    Ok(Command::new("python3").arg("-B").arg(script).args(arguments).output()?)
}

/// Fails unless both verifiers accept the directory.
#[track_caller]
pub(crate) fn both_accept(directory: &Path) -> anyhow::Result<()> {
    let directory = utf8(directory)?;
    for output in [evidence(&["verify", directory])?, second(&[directory])?] {
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.code() == Some(0), "{directory}: {said}");
    }
    Ok(())
}

/// Copies a directory with all files.
pub(crate) fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status()?;
    ensure!(status.success(), "cp -a {} {}", from.display(), to.display());
    Ok(())
}

/// Waits until `done` returns a value.
pub(crate) fn eventually<T>(
    what: &str,
    mut done: impl FnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + Duration::from_mins(1);
    loop {
        if let Some(found) = done()? {
            return Ok(found);
        }
        ensure!(Instant::now() < deadline, "{what} did not come");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Returns the stored records of the given type.
fn records(directory: &Path, kind: &str) -> anyhow::Result<Vec<Value>> {
    let shown = evidence(&["show", utf8(directory)?, "--type", kind, "--output", "json"])?;
    let said = String::from_utf8_lossy(&shown.stderr);
    let none = said.contains("0 of ") && said.contains(" records match");
    ensure!(shown.status.success() || none, "{said}");
    String::from_utf8(shown.stdout)?.lines().map(|it| Ok(serde_json::from_str(it)?)).collect()
}

#[test]
fn every_decision_is_in_the_evidence_and_comes_to_the_same_again() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let stage = Stage::new()?;
    let launch = Launch { evidence: "content: full, ", ..Launch::default() };
    // A single request may need more than the budget.
    let mut agent = Agent::launch(&RULES.replace("0.0003", "0.00005"), &launch)?;
    let asked = [
        &["--model", "o1-pro"][..],
        &["--text", "Our Secret Plan is a walk"],
        &["--stream"],
        &[],
        &[],
        &[],
    ];
    for arguments in asked {
        drop(run(&mut stage.python("openai", arguments)?)?);
    }
    let durable = agent.metrics()?.into_iter();
    let durable: f64 =
        durable.filter(|it| it.0 == "genops_agent_evidence_records_total").map(|it| it.1).sum();
    ensure!(durable >= f64::from(u32::try_from(asked.len())?), "{durable} records made durable");
    let (status, lines) = agent.stop()?;
    ensure!(status.success(), "{status}");
    ensure!(lines.len() == asked.len(), "{} calls, reported: {lines:#?}", asked.len());
    let directory = agent.evidence();
    both_accept(&directory)?;
    let capability = records(&directory, "capability")?;
    let works = |it: &Value| it.pointer("/det/egress_hold") == Some(&"works".into());
    ensure!(capability.len() == 1 && capability.iter().all(works), "{capability:#?}");
    let decisions = records(&directory, "decision")?;
    ensure!(decisions.len() == asked.len(), "{decisions:#?}");
    for code in ["POLICY_DENY_MODEL", "POLICY_DENY_CONTENT", "BUDGET_"] {
        let found = decisions.iter().any(|it| it.to_string().contains(code));
        ensure!(found, "no decision says {code}: {decisions:#?}");
    }
    // Replaying the records gives the same decisions; another configuration does not.
    let place = utf8(&directory)?;
    let replayed = evidence(&["replay", place])?;
    let said = String::from_utf8_lossy(&replayed.stdout);
    ensure!(replayed.status.code() == Some(0), "{said}");
    ensure!(said.contains("6 decisions: 6 come to the same"), "{said}");
    let other = directory.with_file_name("other.yaml");
    std::fs::write(&other, RULES.replace("0.0003", "0.3"))?;
    let replayed = evidence(&["replay", place, "--config", utf8(&other)?])?;
    let said = String::from_utf8_lossy(&replayed.stdout);
    ensure!(replayed.status.code() == Some(1), "{said}");
    ensure!(said.contains("BLOCKED BUDGET_") && said.contains("again: ALLOWED"), "{said}");
    // The export is complete for a principal: the statement says so, and the second verifier
    // accepts each proof.
    let folder = directory.with_file_name("export");
    let exported =
        evidence(&["export", place, "--principal", "assistant", "--to", utf8(&folder)?])?;
    ensure!(exported.status.success(), "{}", String::from_utf8_lossy(&exported.stderr));
    let read = "import base64, json, sys; print(base64.b64decode(json.load(open(sys.argv[1]))['payload']).decode())";
    let statement = Command::new("python3")
        .args(["-c", read, utf8(&folder.join("statement.json"))?])
        .output()?;
    let statement: Value = serde_json::from_slice(&statement.stdout)?;
    let said = |key: &str| statement.get("predicate").and_then(|it| it.get(key));
    ensure!(said("completeForPrincipal") == Some(&Value::Bool(true)), "{statement}");
    let lines = std::fs::read_to_string(folder.join("records.jsonl"))?;
    let count = u64::try_from(lines.lines().count())?;
    ensure!(said("records").and_then(Value::as_u64) == Some(count) && count >= 6, "{statement}");
    let vkey = std::fs::read_to_string(folder.join("log.vkey"))?;
    for line in lines.lines() {
        let record: Value = serde_json::from_str(line)?;
        let index = record.get("seq").and_then(Value::as_u64).context("a number")?;
        let (proof, bytes) =
            (folder.join(format!("proofs/{index}.tlog-proof")), folder.join("one.record"));
        std::fs::write(&bytes, line)?;
        let arguments =
            ["--proof", utf8(&proof)?, "--record", utf8(&bytes)?, "--key", vkey.trim_end()];
        let checked = second(&arguments)?;
        ensure!(checked.status.code() == Some(0), "{}", String::from_utf8_lossy(&checked.stdout));
    }
    // The text sent is there for anybody with the keys, and nowhere in the clear.
    let shown = evidence(&["show", place, "--content"])?;
    ensure!(String::from_utf8_lossy(&shown.stdout).contains("What is the capital of France?"));
    let grep = Command::new("grep").args(["-rl", "capital of France", place]).output()?;
    ensure!(grep.stdout.is_empty(), "in the clear: {}", String::from_utf8_lossy(&grep.stdout));
    let forgotten = evidence(&["forget", place, "--before", "2100-01-01"])?;
    ensure!(forgotten.status.success(), "{}", String::from_utf8_lossy(&forgotten.stderr));
    let shown = evidence(&["show", place, "--content"])?;
    ensure!(!String::from_utf8_lossy(&shown.stdout).contains("capital of France"));
    both_accept(&directory)
}

/// Process killed on drop.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.kill().unwrap_or_default();
        self.0.wait().map(|_| ()).unwrap_or_default();
    }
}

/// Starts a witness of the log in `directory`; returns the process, key and address.
fn witness(directory: &Path, state: &Path) -> anyhow::Result<(Ended, String, SocketAddr)> {
    let mut command = Command::new(program()?);
    command.args(["witness", "--listen", "127.0.0.1:0", "--name", "witness.example/w"]);
    command.arg("--log").arg(directory.join("log.vkey")).arg("--state").arg(state);
    let mut child = Ended(command.stdout(Stdio::piped()).spawn()?);
    let stdout = child.0.stdout.take().context("the witness's output is a pipe")?;
    let mut lines = BufReader::new(stdout).lines();
    let key = lines.next().context("the witness's key")??;
    let listening = lines.next().context("the witness's address")??;
    let address = listening.rsplit('/').next().context("an address")?.parse()?;
    Ok((child, key, address))
}

/// Reads the newest checkpoint cosigned by the witness, as available to anybody.
fn cosigned(address: SocketAddr, origin: &str) -> anyhow::Result<Option<String>> {
    let digest =
        Command::new("sh").args(["-c", "printf %s \"$1\" | sha256sum", "sh", origin]).output()?;
    let digest: String = String::from_utf8(digest.stdout)?.chars().take(64).collect();
    let mut stream = TcpStream::connect(address)?;
    write!(stream, "GET /{digest}/checkpoint HTTP/1.1\r\nHost: w\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").context("no end of the head")?;
    Ok(head.contains(" 200 ").then(|| body.to_owned()))
}

#[test]
fn a_cut_log_is_found_out_with_a_witness_and_proofs_hold_elsewhere() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (stage, scratch) = (Stage::new()?, Scratch::new("witness")?);
    let [log, earlier, note] = ["evidence", "earlier", "cosigned"].map(|it| scratch.join(it));
    let mut launch = Launch { evidence_in: Some(log.clone()), ..Launch::default() };
    let mut agent = Agent::launch(RULES, &launch)?;
    drop(run(&mut stage.python("openai", &[])?)?.succeeded()?);
    agent.stop()?;
    drop(agent);
    copy(&log, &earlier)?;
    let (_witness, key, address) = witness(&log, &scratch.join("state"))?;
    launch.more_evidence = format!("witnesses: [{{url: \"http://{address}\", key: \"{key}\"}}], ");
    let mut agent = Agent::launch(RULES, &launch)?;
    drop(run(&mut stage.python("openai", &["--model", "o1-pro"])?)?);
    eventually("a cosignature", || Ok((!records(&log, "witnessed")?.is_empty()).then_some(())))?;
    agent.stop()?;
    drop(agent);
    let vkey = std::fs::read_to_string(log.join("log.vkey"))?;
    let vkey = vkey.trim_end();
    let origin = vkey.split('+').next().context("an origin")?;
    std::fs::write(&note, cosigned(address, origin)?.context("nothing was cosigned")?)?;
    // Alone, the earlier state verifies. Compared with the witness's checkpoint, it does not.
    both_accept(&earlier)?;
    let (note_at, earlier_at, log_at) = (utf8(&note)?, utf8(&earlier)?, utf8(&log)?);
    for (directory, code) in [(log_at, 0), (earlier_at, 1)] {
        let given = ["verify", directory, "--checkpoint", note_at, "--witness", &key];
        for output in [evidence(&given)?, second(&[directory, "--checkpoint", note_at])?] {
            let said = String::from_utf8_lossy(&output.stdout);
            ensure!(output.status.code() == Some(code), "{directory}: {said}");
        }
    }
    // Nor does an agent go on from the earlier state: it signs nothing, and refuses.
    let cut = Launch { evidence_in: Some(earlier.clone()), ..launch };
    let agent = Agent::launch(RULES, &cut)?;
    eventually("the refusal", || {
        let (status, reason) = agent.get("/readyz")?;
        Ok((status == 503 && reason.contains("x_evidence_rollback")).then_some(()))
    })?;
    let refused = run(&mut stage.python("openai", &[])?)?;
    let report = refused.report()?;
    ensure!(report.get("ok") == Some(&Value::Bool(false)), "a call ran without evidence: {report}");
    drop(agent);
    // Proofs of single records for a third party.
    let proofs = scratch.join("proofs");
    for (index, witnessed) in [("3", false), ("0", true)] {
        let mut arguments = vec!["prove", index, log_at, "--to", utf8(&proofs)?];
        arguments.extend(witnessed.then_some("--witnessed"));
        let proved = evidence(&arguments)?;
        ensure!(proved.status.success(), "{}", String::from_utf8_lossy(&proved.stderr));
        let [proof, record] =
            ["tlog-proof", "record"].map(|ending| proofs.join(format!("{index}.{ending}")));
        let mut arguments = vec!["--proof", utf8(&proof)?, "--record", utf8(&record)?];
        arguments.extend(["--key", vkey]);
        if witnessed {
            arguments.extend(["--witness", &key]);
        }
        let checked = second(&arguments)?;
        ensure!(checked.status.code() == Some(0), "{}", String::from_utf8_lossy(&checked.stdout));
        let mut bytes = std::fs::read(&record)?;
        *bytes.get_mut(20).context("a record")? ^= 1;
        std::fs::write(&record, bytes)?;
        ensure!(second(&arguments)?.status.code() == Some(1), "a changed record is proved");
    }
    Ok(())
}

/// Starts an S3 server storing objects in a directory.
fn object_store(root: &Path, address: SocketAddr) -> anyhow::Result<Ended> {
    let program = python()?.with_file_name("localbucket");
    std::fs::create_dir_all(root.join("bucket"))?;
    let mut command = Command::new(&program);
    command.args(["--port", &address.port().to_string()]).arg(root);
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let child = Ended(child.with_context(|| program.display().to_string())?);
    eventually("the object store", || Ok(TcpStream::connect(address).is_ok().then_some(())))?;
    Ok(child)
}

/// Returns the size of the newest tree head in a copy.
fn newest_head(copy: &Path) -> Option<u64> {
    let names = std::fs::read_dir(copy.join("heads")).ok()?;
    names.filter_map(|it| it.ok()?.file_name().to_str()?.parse().ok()).max()
}

#[test]
fn copies_are_shipped_through_outages_and_a_killed_agent() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (stage, scratch) = (Stage::new()?, Scratch::new("ship")?);
    let [root, log] = ["s3", "evidence"].map(|it| scratch.join(it));
    let copied = root.join("bucket/host");
    let credentials = scratch.join("credentials");
    std::fs::write(&credentials, "access_key_id: a\nsecret_access_key: hunter2\n")?;
    let address = free_address()?;
    let launch = Launch {
        evidence_in: Some(log.clone()),
        more_evidence: format!(
            "ship: {{to: \"s3://bucket/host\", endpoint: \"http://{address}\", region: eu-central-1, \
             every_s: 1, credentials_file: \"{}\"}}, ",
            credentials.display()
        ),
        ..Launch::default()
    };
    let call = || run(&mut stage.python("openai", &["--repeat", "20"])?);
    let observe = "mode: observe";
    // Nobody listens: calls go on, and the outage is recorded.
    let mut agent = Agent::launch(observe, &launch)?;
    call()?.succeeded()?;
    eventually("a note of the outage", || {
        Ok(records(&log, "shipping")?.first().map(|it| it.to_string().contains("failed")))
    })?;
    let store = object_store(&root, address)?;
    eventually("a first copy", || Ok(newest_head(&copied)))?;
    call()?.succeeded()?;
    agent.kill()?;
    drop(agent);
    drop(store);
    // Another start, another server on the same files.
    let mut agent = Agent::launch(observe, &launch)?;
    let _store = object_store(&root, address)?;
    call()?.succeeded()?;
    agent.stop()?;
    let stderr = agent.stderr();
    ensure!(!stderr.contains("hunter2"), "a secret is told: {stderr}");
    drop(agent);
    let size = std::fs::read_to_string(log.join("checkpoint"))?;
    let size: u64 = size.lines().nth(1).context("a size")?.parse()?;
    ensure!(newest_head(&copied) == Some(size), "{:?} of {size} shipped", newest_head(&copied));
    both_accept(&log)?;
    both_accept(&copied)?;
    let replayed = evidence(&["replay", utf8(&copied)?])?;
    ensure!(replayed.status.success(), "{}", String::from_utf8_lossy(&replayed.stdout));
    // Another host under the same prefix: refused, and the existing copy stays.
    let there = std::fs::read(copied.join("log.vkey"))?;
    let other = Launch { evidence_in: Some(scratch.join("other/evidence")), ..launch };
    let mut agent = Agent::launch(observe, &other)?;
    eventually("the refusal", || {
        let found = records(&agent.evidence(), "shipping")?;
        Ok(found.first().map(|it| it.to_string().contains("is there already")))
    })?;
    agent.stop()?;
    ensure!(std::fs::read(copied.join("log.vkey"))? == there, "the copy was written over");
    Ok(())
}

#[test]
fn old_records_are_given_up_while_the_agent_runs() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let stage = Stage::new()?;
    let launch = Launch {
        evidence: "segment_bytes: 1048576, max_bytes: 16777216, content: full, ",
        ..Launch::default()
    };
    let mut agent = Agent::launch("mode: observe", &launch)?;
    let log = agent.evidence();
    // Each call brings a few kilobytes; the limit is the smallest allowed.
    let text = "x".repeat(60_000);
    let mut kept = 0;
    for _ in 0..12 {
        let arguments = ["--repeat", "40", "--text", &text];
        drop(run(&mut stage.python("openai", &arguments)?)?.succeeded()?);
        kept = records(&log, "retention")?.len();
        if kept > 0 {
            break;
        }
    }
    if kept == 0 {
        eventually("a record of what was given up", || {
            Ok((!records(&log, "retention")?.is_empty()).then_some(()))
        })?;
    }
    let (status, _) = agent.stop()?;
    ensure!(status.success(), "{status}");
    let found = records(&log, "retention")?;
    ensure!(found.iter().all(|it| it.to_string().contains("max_bytes")), "{found:#?}");
    ensure!(log.join("pruned").exists(), "nothing says what was given up");
    both_accept(&log)?;
    let replayed = evidence(&["replay", utf8(&log)?])?;
    let said = String::from_utf8_lossy(&replayed.stdout);
    if !replayed.status.success() {
        bail!("{said}");
    }
    Ok(())
}

/// Returns the paths of all files below `root`, relative to `root` and sorted.
pub(crate) fn files(root: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open = vec![root.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                open.push(entry.path());
            } else {
                found.push(entry.path().strip_prefix(root)?.to_owned());
            }
        }
    }
    found.sort();
    Ok(found)
}
