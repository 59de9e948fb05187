//! What the agent did is in the evidence, and the evidence shows when it was changed.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context as _, ensure};
use genops_tests::agent::{Agent, program};
use genops_tests::clients::{Stage, run};
use serde_json::Value;

use crate::support::can_run;

fn evidence(command: &str, directory: &Path) -> anyhow::Result<Output> {
    let mut evidence = Command::new(program()?);
    Ok(evidence.args(["evidence", command]).arg(directory).args(["--output", "json"]).output()?)
}

/// The largest file of the log itself.
fn largest_file(directory: &Path) -> anyhow::Result<PathBuf> {
    let mut largest = None;
    let mut open = vec![directory.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(&directory)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                open.push(entry.path());
            } else {
                largest = largest.max(Some((entry.metadata()?.len(), entry.path())));
            }
        }
    }
    Ok(largest.context("the evidence directory is empty")?.1)
}

#[test]
fn every_decision_is_in_the_evidence_and_a_changed_byte_is_found() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let stage = Stage::new()?;
    let configuration = "mode: enforce\nprincipals:\n  - {name: assistant, match: {exe: \"*/python3*\"}}\n\
                         policies:\n  - {name: no-pro, denied_models: [\"*-pro\"], enforcement: block}";
    let mut agent = Agent::start(configuration)?;
    run(&mut stage.python("openai", &["--stream"])?)?.succeeded()?;
    run(&mut stage.python("requests", &["--model", "o1-pro"])?)?.succeeded()?;
    let (status, lines) = agent.stop()?;
    ensure!(status.success(), "{status}");
    ensure!(lines.len() == 2, "two calls, reported: {lines:#?}");

    let directory = agent.evidence();
    let verified = evidence("verify", &directory)?;
    ensure!(verified.status.code() == Some(0), "{}", String::from_utf8_lossy(&verified.stdout));
    // A second implementation, in another language, comes to the same.
    let second = Path::new(env!("CARGO_MANIFEST_DIR")).join("verify_evidence.py");
    let second = Command::new("python3").arg(second).arg(&directory).output()?;
    ensure!(second.status.code() == Some(0), "{}", String::from_utf8_lossy(&second.stdout));
    let shown = evidence("show", &directory)?;
    let shown = String::from_utf8(shown.stdout)?;
    for result in ["ALLOWED", "BLOCKED"] {
        let records = shown.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let found = records.filter(|record| record.to_string().contains(result)).count();
        ensure!(found > 0, "no record says {result}:\n{shown}");
    }

    let file = largest_file(&directory)?;
    let mut bytes = std::fs::read(&file)?;
    let middle = bytes.len() / 2;
    *bytes.get_mut(middle).context("an empty file")? ^= 1;
    std::fs::write(&file, bytes)?;
    let verified = evidence("verify", &directory)?;
    ensure!(
        verified.status.code() == Some(1),
        "one changed bit of {} goes unnoticed",
        file.display()
    );
    Ok(())
}
