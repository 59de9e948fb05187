//! Checks that the comparison of evidence with a provider's own log finds each kind of lie. No
//! kernel is needed.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context as _, ensure};
use genops_tests::scratch::Scratch;
use serde_json::{Value, json};

use crate::evidence::utf8;

/// Compares the evidence in a directory with the logs of providers.
fn compare(evidence: &Path, logs: &[PathBuf]) -> anyhow::Result<Output> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("compare_evidence.py");
    let mut compare = Command::new("python3");
    compare.arg("-B").arg(script).arg(evidence).args(logs);
    Ok(compare.output()?)
}

/// Fails unless the evidence and the logs agree.
#[track_caller]
pub(crate) fn agree(evidence: &Path, logs: &[PathBuf]) -> anyhow::Result<()> {
    let output = compare(evidence, logs)?;
    let [said, why] =
        [&output.stdout, &output.stderr].map(|it| String::from_utf8_lossy(it).into_owned());
    ensure!(
        output.status.code() == Some(0),
        "evidence and the provider's log differ:\n{said}{why}"
    );
    eprintln!("  {}", said.lines().next_back().unwrap_or_default());
    Ok(())
}

/// Records of an agent and a provider's log, about the same few requests.
#[derive(Clone, Debug)]
struct Story {
    records: Vec<Value>,
    arrived: Vec<Value>,
    /// Index of the first record present in the write-ahead log only.
    published: usize,
    /// Index of the first record in the write-ahead log.
    segment: usize,
}

impl Story {
    fn new() -> Self {
        let (records, arrived) = (Vec::new(), Vec::new());
        let mut it = Self { records, arrived, published: usize::MAX, segment: 0 };
        it.record(json!({"type": "agent_start"}));
        it.decided("a1", "ALLOWED", "small-1");
        it.decided("a2", "WARNING", "small-2");
        it.record(json!({"type": "intent", "awu": "b1", "what": what("large-1")}));
        it.decided("b1", "BLOCKED", "large-1");
        it.decided("r1", "RATE_LIMITED", "small-3");
        it.decided("b2", "BLOCKED", "large-2");
        it.record(json!({"type": "breach", "awu": "b2"}));
        it.decided("n1", "ALLOWED", "small-4");
        it.record(json!({"type": "release", "awu": "n1"}));
        let unread = json!({"op": "x_unexplained", "server": "one.test"});
        let decided = json!({"result": "BLOCKED"});
        it.record(json!({"type": "decision", "awu": "u1", "what": unread, "dec": decided}));
        for (model, host) in [("small-1", "one.test"), ("small-2", "one.test:443")] {
            it.arrives(model, host);
        }
        it.arrives("large-2", "one.test");
        it.arrived
            .push(json!({"type": "request", "method": "GET", "model": null, "body_bytes": 0}));
        it
    }

    fn record(&mut self, mut record: Value) {
        if let Some(fields) = record.as_object_mut() {
            fields.insert("seq".to_owned(), self.records.len().into());
        }
        self.records.push(record);
    }

    fn decided(&mut self, unit: &str, result: &str, model: &str) {
        let decided = json!({"result": result});
        self.record(json!({"type": "decision", "awu": unit, "what": what(model), "dec": decided}));
    }

    fn arrives(&mut self, model: &str, host: &str) {
        self.arrived.push(json!({
            "type": "request", "method": "POST", "host": host, "model": model, "body_bytes": 90,
        }));
    }

    /// Removes the records of a unit with the given type, and numbers the remaining records again.
    fn forget(&mut self, unit: &str, kind: &str) {
        self.records.retain(|it| it.get("awu") != Some(&json!(unit)) || it["type"] != kind);
        for (index, record) in (0_u64..).zip(&mut self.records) {
            record["seq"] = index.into();
        }
    }

    /// Changes a field in the provider's log of the request for `model`.
    fn alter(&mut self, model: &str, key: &str, value: &str) {
        for it in self.arrived.iter_mut().filter(|it| it["model"] == model) {
            it[key] = value.into();
        }
    }

    /// Changes the result of a unit's decision.
    fn rewrite(&mut self, unit: &str, result: &str) {
        let of_unit = |it: &&mut Value| it.get("awu") == Some(&json!(unit));
        let records = self.records.iter_mut().filter(of_unit);
        for said in records.filter_map(|it| it.pointer_mut("/dec/result")) {
            *said = result.into();
        }
    }

    /// Writes evidence and log, compares both, and returns the exit code and the output.
    fn told(&self) -> anyhow::Result<(i32, String)> {
        let scratch = Scratch::new("story")?;
        let directory = scratch.join("evidence");
        let bundles = directory.join("tile/entries");
        std::fs::create_dir_all(&bundles)?;
        std::fs::create_dir_all(directory.join("wal"))?;
        let published = self.records.get(..self.published).unwrap_or(&self.records);
        let mut bundle = Vec::new();
        for record in published {
            let text = record.to_string();
            bundle.extend(u16::try_from(text.len())?.to_be_bytes());
            bundle.extend(text.as_bytes());
        }
        std::fs::create_dir_all(bundles.join("000.p"))?;
        std::fs::write(bundles.join("000.p").join(published.len().to_string()), bundle)?;
        let segment = directory.join(format!("wal/{:020}", self.segment));
        std::fs::write(segment, self.ahead()?)?;
        let mut log = String::new();
        for line in &self.arrived {
            writeln!(log, "{line}")?;
        }
        let path = scratch.join("provider.jsonl");
        std::fs::write(&path, log)?;
        let output = compare(&directory, &[path])?;
        let said = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok((output.status.code().context(utf8(&directory)?.to_owned())?, said))
    }

    /// Encodes records as a write-ahead log, with a mark after each batch of four.
    fn ahead(&self) -> anyhow::Result<Vec<u8>> {
        let mut segment = b"genops-wal 1\n\0\0\0".to_vec();
        segment.resize(512, 0);
        let records = self.records.get(self.segment..).context("records")?;
        for batch in records.chunks(4) {
            for record in batch {
                let text = record.to_string();
                segment.extend(u16::try_from(text.len())?.to_be_bytes());
                segment.extend([7; 4]);
                segment.extend(text.as_bytes());
            }
            segment.extend([0, 0, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7]);
        }
        segment.resize(segment.len() + 64, 0);
        Ok(segment)
    }
}

fn what(model: &str) -> Value {
    json!({"op": "chat", "model": model, "server": "one.test"})
}

#[test]
fn what_both_say_is_no_difference() -> anyhow::Result<()> {
    let mut story = Story::new();
    for published in [usize::MAX, 5, 0] {
        story.published = published;
        let (code, said) = story.told()?;
        ensure!(code == 0 && said.ends_with(": 0 differences\n"), "{published}: {said}");
    }
    Ok(())
}

/// Fails unless `lie` leads to `difference` and to no other.
#[track_caller]
fn finds(lie: impl FnOnce(&mut Story), difference: &str) -> anyhow::Result<()> {
    let mut story = Story::new();
    lie(&mut story);
    let (code, said) = story.told()?;
    ensure!(code == 1 && said.ends_with(": 1 differences\n"), "{code}: {said}");
    let first = said.lines().next().unwrap_or_default();
    ensure!(first == difference, "said: {first}");
    Ok(())
}

#[test]
fn what_was_refused_and_arrived_is_found() -> anyhow::Result<()> {
    finds(
        |it| it.arrives("large-1", "one.test"),
        "record 4 (BLOCKED large-1) was stopped, and it arrived: \
         provider.jsonl:5 (large-1 at one.test)",
    )?;
    finds(
        |it| it.rewrite("a2", "BLOCKED"),
        "record 2 (BLOCKED small-2) was stopped, and it arrived: \
         provider.jsonl:2 (small-2 at one.test)",
    )?;
    finds(
        |it| it.arrives("small-3", "one.test"),
        "record 5 (RATE_LIMITED small-3) was stopped, and it arrived: \
         provider.jsonl:5 (small-3 at one.test)",
    )
}

#[test]
fn a_breach_that_is_not_told_is_found() -> anyhow::Result<()> {
    finds(
        |it| it.forget("b2", "breach"),
        "record 6 (BLOCKED large-2) was stopped, and it arrived: \
         provider.jsonl:3 (large-2 at one.test)",
    )
}

#[test]
fn another_model_than_was_let_go_is_found() -> anyhow::Result<()> {
    finds(
        |it| it.alter("small-1", "model", "huge-1"),
        "record 1 (ALLOWED small-1) was let go, and what arrived has another model: \
         provider.jsonl:1 (huge-1 at one.test)",
    )
}

#[test]
fn another_server_than_was_let_go_to_is_found() -> anyhow::Result<()> {
    finds(
        |it| it.alter("small-2", "host", "two.test"),
        "record 2 (WARNING small-2) was let go to one.test, and arrived as \
         provider.jsonl:2 (small-2 at two.test)",
    )
}

#[test]
fn what_no_record_tells_of_is_found() -> anyhow::Result<()> {
    let absent = "no record tells of what arrived: provider.jsonl:1 (small-1 at one.test)";
    finds(|it| it.forget("a1", "decision"), absent)?;
    let absent = "no record tells of what arrived: provider.jsonl:5 (huge-1 at one.test)";
    finds(|it| it.arrives("huge-1", "one.test"), absent)?;
    // A unit accounts for a single request.
    let absent = "no record tells of what arrived: provider.jsonl:5 (small-1 at one.test)";
    finds(|it| it.arrives("small-1", "one.test"), absent)?;
    // A body without a model is no less a request.
    let body = json!({"type": "request", "method": "POST", "host": "one.test", "body_bytes": 9});
    let absent = "no record tells of what arrived: provider.jsonl:5 (no model at one.test)";
    finds(|it| it.arrived.push(body), absent)
}

/// Many equal decisions are folded into a record with their number.
#[test]
fn what_was_counted_together_accounts_for_its_number() -> anyhow::Result<()> {
    let folded = |result: &str, number: u64| {
        let (what, decided) = (json!({"server": "one.test"}), json!({"result": result}));
        let fold = json!({"n": number, "first": 1, "last": 2});
        json!({"type": "folded", "what": what, "dec": decided, "fold": fold})
    };
    finds(
        |it| {
            it.record(folded("WARNING", 2));
            it.record(folded("BLOCKED", 5));
            it.arrives("huge-1", "one.test");
            it.arrives("huge-2", "one.test");
            it.arrives("huge-3", "one.test");
        },
        "no record tells of what arrived: provider.jsonl:7 (huge-3 at one.test)",
    )
}

/// A request released unread accounts for a single request with any content.
#[test]
fn what_was_let_go_unread_accounts_for_one_request() -> anyhow::Result<()> {
    let absent = "no record tells of what arrived: provider.jsonl:6 (huge-2 at one.test)";
    finds(
        |it| {
            it.rewrite("u1", "WARNING");
            it.arrives("huge-1", "one.test");
            it.arrives("huge-2", "one.test");
        },
        absent,
    )
}

#[test]
fn what_was_let_go_and_never_arrived_is_found() -> anyhow::Result<()> {
    let absent = "record 1 (ALLOWED small-1) was let go, and never arrived";
    finds(|it| it.arrived.retain(|it| it["model"] != "small-1"), absent)?;
    let absent = "record 8 (ALLOWED small-4) was let go, and never arrived";
    finds(|it| it.forget("n1", "release"), absent)
}

#[test]
fn records_that_are_missing_or_changed_are_found() -> anyhow::Result<()> {
    finds(
        |it| {
            it.published = 5;
            it.segment = 6;
        },
        "records 5 to 5 are missing",
    )?;
    let again = |it: &mut Story| {
        for record in it.records.iter_mut().filter(|it| it["awu"] == "r1") {
            record["seq"] = 7.into();
        }
    };
    finds(again, "record 5 says that it is record 7")
}

#[test]
fn forbidden_text_that_arrived_is_found() -> anyhow::Result<()> {
    finds(
        |it| it.arrived.push(json!({"type": "marker", "connection": 3})),
        "provider.jsonl:5: forbidden text arrived on connection 3",
    )
}

#[test]
fn what_cannot_be_read_is_no_agreement() -> anyhow::Result<()> {
    let scratch = Scratch::new("nothing")?;
    let output = compare(scratch.path(), &[scratch.join("none")])?;
    ensure!(output.status.code() == Some(2), "{output:?}");
    Ok(())
}
