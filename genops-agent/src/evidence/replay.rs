//! `evidence replay`: repeats every recorded decision, and compares the results.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use genops_evidence::Directory;
use genops_governance::{Again, Record, Settings};
use serde_json::json;

use super::{At, Output, Progress, line, time_text};
use crate::config::{Config, recipe};
use crate::journal::entry::{self, Entry, Kind};
use crate::journal::{again, sha256_text};

/// Maximum of shown differences.
const SHOWN: usize = 1_000;

/// Decide every recorded decision again, and compare.
///
/// Each decision is repeated by the configuration in force at the time, kept beside the log, on the
/// recorded inputs. Exit code 0: every decision comes to the same; 1: a decision does not. Records
/// are taken as true; `evidence verify` checks the records.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  genops-agent evidence replay\n  \
    genops-agent evidence replay /mnt/copy --config stricter.yaml   # what would it have come to?")]
pub(crate) struct Replay {
    #[command(flatten)]
    at: At,
    /// Decide by another configuration instead: what would have come of it?
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// How to write the result.
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// A decision with another result, or not repeatable.
struct Difference {
    seq: u64,
    unix_ns: u64,
    principal: String,
    what: String,
}

/// Results of the replay so far.
#[derive(Default)]
struct Replayed {
    /// Configuration deciding at the current place of the log, or the reason for its absence.
    now: Option<Result<Settings, String>>,
    /// Configurations by their SHA-256.
    known: HashMap<String, Result<Settings, String>>,
    decisions: u64,
    same: u64,
    /// Number of decisions not repeatable.
    unknown: u64,
    shown: Vec<Difference>,
}

impl Replay {
    pub(super) fn run(&self) -> anyhow::Result<ExitCode> {
        let directory = self.at.open()?;
        let place = || directory.path().display().to_string();
        let size = super::trusted_head(&directory)?.size;
        let other = self.config.as_deref().map(Config::load).transpose()?;
        let other = other.map(|config| config.settings());
        let mut found = Replayed::default();
        let mut progress = Progress::new("deciding");
        let mut each = |index: u64, bytes: &[u8]| {
            progress.at(index, size);
            if let Ok(entry) = serde_json::from_slice::<Entry<'_>>(bytes) {
                found.take(&directory, other.as_ref(), &entry);
            }
        };
        let first = directory.first_kept().with_context(place)?;
        directory.records(first, size, &mut each).with_context(place)?;
        directory.unpublished(size, &mut each).with_context(place)?;
        drop(progress);
        line(&mut io::stdout().lock(), &self.tell(&found))?;
        let good = found.same == found.decisions;
        Ok(if good { ExitCode::SUCCESS } else { ExitCode::from(1) })
    }

    fn tell(&self, found: &Replayed) -> String {
        let Replayed { decisions, same, unknown, shown, .. } = found;
        let differing = decisions - same - unknown;
        if self.output == Output::Json {
            let list: Vec<_> = shown
                .iter()
                .map(|it| json!({"seq": it.seq, "principal": it.principal, "what": it.what}))
                .collect();
            return json!({
                "decisions": decisions, "same": same, "differing": differing,
                "not_decidable": unknown, "differences": list,
            })
            .to_string();
        }
        let mut lines: Vec<String> = shown
            .iter()
            .map(|Difference { seq, unix_ns, principal, what }| {
                format!("{seq:>8}  {}  {principal}: {what}", time_text(*unix_ns))
            })
            .collect();
        lines.push(format!(
            "{decisions} decisions: {same} come to the same, {differing} do not, {unknown} cannot be made again"
        ));
        lines.join(
            "
",
        )
    }
}

impl Replayed {
    fn take(&mut self, directory: &Directory, other: Option<&Settings>, entry: &Entry<'_>) {
        if matches!(entry.kind, Kind::PolicyLoaded | Kind::Heads) {
            self.now = self.in_force(directory, entry).or(self.now.take());
        }
        let record = match again::decision(entry) {
            Ok(Some(record)) => record,
            Ok(None) => return,
            Err(why) => return self.cannot(entry, &why),
        };
        self.decisions += 1;
        let settings = match (other, &self.now) {
            (Some(other), _) => other.clone(),
            (None, Some(Ok(settings))) => settings.clone(),
            (None, Some(Err(why))) => return self.unknown(entry, &why.clone()),
            (None, None) => match self.by_policies(directory, &record) {
                Some(settings) => settings,
                None => return self.unknown(entry, "no record says which configuration held"),
            },
        };
        match compare(&settings, &record, other.is_some()) {
            None => self.same += 1,
            Some(what) => self.show(entry, what),
        }
    }

    /// Returns the configuration in force from a record on; `None`: the record does not tell.
    fn in_force(
        &mut self,
        directory: &Directory,
        entry: &Entry<'_>,
    ) -> Option<Result<Settings, String>> {
        let named = entry.det.iter().find(|(key, _)| key.as_str() == "config");
        let Some((_, named)) = named else {
            let missing = "the configuration was not kept when its policies were loaded";
            return (entry.kind == Kind::PolicyLoaded).then(|| Err(missing.to_owned()));
        };
        let named = named.as_str();
        if let Some(known) = self.known.get(named) {
            return Some(known.clone());
        }
        let read = load(directory, named);
        self.known.insert(named.to_owned(), read.clone());
        Some(read)
    }

    /// Returns the only kept configuration with the policies named by a decision: for logs without
    /// the records naming the configuration, because the records were given up.
    fn by_policies(&mut self, directory: &Directory, record: &Record) -> Option<Settings> {
        let wanted = record.decision.as_ref()?.policy_hash;
        for name in directory.blobs() {
            let named = format!("sha256:{name}");
            self.known.entry(named).or_insert_with_key(|named| load(directory, named));
        }
        let fitting = self.known.values().flatten().filter(|it| it.policy_hash() == wanted);
        let mut fitting = fitting.cloned();
        fitting.next().filter(|_| fitting.next().is_none())
    }

    fn cannot(&mut self, entry: &Entry<'_>, why: &str) {
        self.decisions += 1;
        self.unknown(entry, why);
    }

    fn unknown(&mut self, entry: &Entry<'_>, why: &str) {
        self.unknown += 1;
        self.show(entry, format!("cannot be made again: {why}"));
    }

    fn show(&mut self, entry: &Entry<'_>, what: String) {
        if self.shown.len() < SHOWN {
            let principal = entry.who.as_ref().map(|who| who.prin.to_string()).unwrap_or_default();
            self.shown.push(Difference { seq: entry.seq, unix_ns: entry.t, principal, what });
        }
    }
}

/// Loads the configuration with the SHA-256 `named`, from beside the log.
fn load(directory: &Directory, named: &str) -> Result<Settings, String> {
    let digest = entry::parse_sha256(named).ok_or_else(|| format!("`{named}` is no SHA-256"))?;
    let bytes = directory.blob(&digest).map_err(|error| error.to_string())?;
    let bytes = bytes.ok_or_else(|| format!("the configuration {named} is not there"))?;
    let (settings, agent) = recipe::read(&bytes)?;
    if agent != env!("CARGO_PKG_VERSION") {
        // Providers and prices are built in, and another version may have other data.
        eprintln!("genops-agent: {named} was in force under version {agent}");
    }
    Ok(settings)
}

/// Describes the difference between the decision and its repetition; `None`: no difference.
fn compare(settings: &Settings, record: &Record, by_another: bool) -> Option<String> {
    let (decided, who) = (record.decision.as_ref()?, record.who.as_ref()?);
    if !by_another && settings.policy_hash() != decided.policy_hash {
        let (kept, said) = (settings.policy_hash(), decided.policy_hash);
        let (kept, said) = (sha256_text(&kept), sha256_text(&said));
        return Some(format!("decided by policies {said}; those kept are {kept}"));
    }
    let configured =
        who.attribution.mapped.then(|| settings.attribution(&who.attribution.principal));
    if !by_another
        && configured.is_some_and(|it| it.as_ref() != Some(&who.attribution.configured()))
    {
        return Some("team, project or grants are not those of the configuration".to_owned());
    }
    let again = if by_another {
        settings.decide_otherwise(record)?
    } else {
        settings.decide_again(record)?
    };
    let before = Again {
        result: decided.result,
        reason: decided.reason.clone(),
        policy: decided.policy.clone(),
        matched: decided.matched.clone(),
    };
    (again != before).then(|| format!("{}; again: {}", words(&before), words(&again)))
}

fn words(again: &Again) -> String {
    let Again { result, reason, policy, matched } = again;
    let mut text = result.as_str().to_owned();
    for (label, value) in [
        (" ", reason.as_ref().map(ToString::to_string)),
        (" by ", policy.clone()),
        (", matched ", (!matched.is_empty()).then(|| matched.join(" "))),
    ] {
        if let Some(value) = value {
            text.push_str(label);
            text.push_str(&value);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]

    use std::path::Path;

    use genops_governance::{
        ConnId, ConnectionOpen, Engine, HoldLevel, Ledger, Mechanism, Now, Output as Made,
        ProcessFacts, ProcessKey,
    };
    use genops_protocols::Direction;

    use super::*;
    use crate::config::Content;
    use crate::journal::{Journal, Opening, sealed};

    const YAML: &str = "mode: enforce\n\
        telemetry: {otlp: {endpoint: \"http://127.0.0.1:4318\", headers: {x-key: hunter2}}}\n\
        principals:\n  - {name: bot, match: {user: svc-bot}, team: payments, project: refunds}\n\
        policies:\n  - {name: rules, denied_models: [\"*-pro\"], enforcement: block}\n  \
        - {name: words, denied_content: [\"(?i)secret plan\"], enforcement: block}\n\
        budgets:\n  - {name: day, team: payments, unit: USD, limit: 0.0002, period: day}\n\
        rate_limits:\n  - {name: pace, principal: bot, requests: 6, per: minute, burst: 6}\n";

    fn now(ms: u64) -> Now {
        let mono_ns = ms * 1_000_000;
        Now { mono_ns, unix_ns: 1_795_378_193_000_000_000 + mono_ns }
    }

    fn request(model: &str, text: &str) -> Vec<u8> {
        let body = format!(
            r#"{{"model":"{model}","max_tokens":50,"messages":[{{"role":"user","content":"{text}"}}]}}"#
        );
        format!(
            "POST /v1/chat/completions HTTP/1.1\r\nHost: api.openai.com\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .into_bytes()
    }

    /// Creates a log of decisions of every sort, each reached by other steps.
    fn run(directory: &Path, content: Content) {
        let config = Config::parse(Path::new("agent.yaml"), YAML).unwrap();
        let recipe = config.recipe.clone();
        let opening = Opening { content, recipe, ..Opening::default() };
        let (mut journal, _) = Journal::open(directory, opening, now(0)).unwrap();
        let mut engine = Engine::new(config.settings(), Ledger::new(), [7; 32]);
        engine.keep_texts(content != Content::None);
        let key = ProcessKey { pid: 7, start_ns: 7 };
        let user = Some("svc-bot".to_owned());
        engine.process(now(1), ProcessFacts { user, ..ProcessFacts::bare(key, "bot") });
        let asked = [
            ("gpt-4o-mini", "hello"),
            ("gpt-5-pro", "hello"),
            ("gpt-4o-mini", "our Secret Plan"),
            ("gpt-4o-mini", "again"),
            ("gpt-4o-mini", "until the budget is used up"),
            ("gpt-4o-mini", "and more"),
            ("gpt-4o-mini", "and more"),
            ("gpt-4o-mini", "and the pace is reached"),
        ];
        for (number, (model, text)) in (1..).zip(asked) {
            let conn = ConnId(number);
            let opened = ConnectionOpen {
                name: format!("c{number}"),
                process: Some(key),
                pid: Some(7),
                comm: None,
                exe: None,
                server_name: Some("api.openai.com".to_owned()),
                local: None,
                remote: None,
                from_start: true,
                hold: HoldLevel::Held(Mechanism::EgressHold),
            };
            let at = now(10 * number);
            engine.open(at, conn, opened);
            engine.data(at, conn, at.mono_ns, Direction::Egress, &request(model, text));
            let made: Vec<Made> = engine.outputs().collect();
            for output in made {
                if let Made::Record(record) = output {
                    journal.record(&record).unwrap();
                }
            }
        }
        journal.close(now(200)).unwrap();
    }

    fn replay(directory: &Path, other: Option<&str>) -> Replayed {
        let log = Directory::new(directory);
        let other = other.map(|yaml| Config::parse(Path::new("other"), yaml).unwrap().settings());
        let mut found = Replayed::default();
        let size = log.checkpoint().unwrap().head.size;
        log.records(0, size, |_, bytes| {
            found.take(&log, other.as_ref(), &serde_json::from_slice(bytes).unwrap());
        })
        .unwrap();
        found
    }

    fn text_of(directory: &Path) -> String {
        let log = Directory::new(directory);
        let mut text = String::new();
        let size = log.checkpoint().unwrap().head.size;
        log.records(0, size, |_, bytes| text.push_str(&String::from_utf8_lossy(bytes))).unwrap();
        text
    }

    #[test]
    fn every_decision_comes_to_the_same_again() {
        let folder = tempfile::tempdir().unwrap();
        run(folder.path(), Content::None);
        let text = text_of(folder.path());
        for code in ["POLICY_DENY_MODEL", "POLICY_DENY_CONTENT", "BUDGET_", "ALLOWED"] {
            assert!(text.contains(code), "{code}: {text}");
        }
        let found = replay(folder.path(), None);
        let shown: Vec<&String> = found.shown.iter().map(|it| &it.what).collect();
        assert_eq!((found.decisions, found.same), (8, 8), "{shown:?}");
        // Neither the kept configuration nor the records hold a secret or a text.
        let blobs = std::fs::read_dir(folder.path().join("blob")).unwrap();
        let kept = blobs.map(|it| std::fs::read_to_string(it.unwrap().path()).unwrap());
        let kept: String = kept.collect();
        assert!(kept.contains("secret plan") && !kept.contains("hunter2"), "{kept}");
        assert!(!text.contains("hello") && !text.contains("hunter2"));
    }

    #[test]
    fn under_another_configuration_the_differences_are_named() {
        let folder = tempfile::tempdir().unwrap();
        run(folder.path(), Content::None);
        let other = YAML.replace("*-pro", "gpt-4o*").replace("limit: 0.0002", "limit: 10.0");
        let found = replay(folder.path(), Some(&other));
        assert_eq!((found.decisions, found.unknown), (8, 0));
        let first = &found.shown[0].what;
        let expected = "ALLOWED; again: BLOCKED POLICY_DENY_MODEL by rules.denied_models, matched \
                        rules.denied_models";
        assert_eq!(first, expected);
        assert_eq!(
            found.shown[1].what.split(';').next(),
            Some("BLOCKED POLICY_DENY_MODEL by rules.denied_models, matched rules.denied_models")
        );
    }

    #[test]
    fn without_the_configuration_nothing_is_decided_again() {
        let folder = tempfile::tempdir().unwrap();
        run(folder.path(), Content::None);
        std::fs::remove_dir_all(folder.path().join("blob")).unwrap();
        let found = replay(folder.path(), None);
        assert_eq!((found.decisions, found.same, found.unknown), (8, 0, 8));
    }

    #[test]
    fn what_is_sent_can_be_digested_or_sealed_and_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let [hash, full] = ["hash", "full"].map(|it| folder.path().join(it));
        run(&hash, Content::Hash);
        let text = text_of(&hash);
        assert!(text.contains("\"dig\":\"hmac:20779:") && !text.contains("\"seal\""), "{text}");
        assert!(!text.contains("hello") && !text.contains("Secret Plan"));
        run(&full, Content::Full);
        let text = text_of(&full);
        assert!(!text.contains("hello") && !text.contains("Secret Plan"));
        let record = text.split("{\"v\":1").find(|it| it.contains("\"type\":\"content\"")).unwrap();
        let record = format!("{{\"v\":1{record}");
        let entry: Entry<'_> = serde_json::from_str(&record).unwrap();
        let (awu, seal) = (entry.awu.unwrap(), entry.seal.unwrap());
        let data = [seal.data.to_string()];
        let opened = sealed::open(&full, awu.as_str(), seal.day, &data).unwrap();
        assert_eq!(opened, ["hello"]);
        assert!(sealed::open(&full, "another unit", seal.day, &data).is_err());
        let before = verified(&full);
        // Forgetting leaves only the log, and the log still verifies.
        let at = At { directory: full.clone() };
        crate::evidence::upkeep::Forget { at, day: vec![seal.day], before: None, key_file: None }
            .run()
            .unwrap();
        let gone = sealed::open(&full, awu.as_str(), seal.day, &data).unwrap_err();
        assert!(gone.contains("2026-11-22"), "{gone}");
        assert!(verified(&full) > before);
        assert!(text_of(&full).contains("\"type\":\"forgotten\""));
        let found = replay(&full, None);
        assert_eq!((found.decisions, found.same), (8, 8));
    }

    fn verified(directory: &Path) -> u64 {
        let mut checker = crate::journal::check::Checker::default();
        let report = genops_evidence::Verify {
            directory,
            key: None,
            each: &mut |index, record| checker.record(index, record),
            progress: &mut |_, _| {},
        }
        .run();
        checker.finish();
        // The calls allowed here have no recorded end.
        let others = checker.findings.iter().filter(|it| !it.what.contains("neither reconciled"));
        assert_eq!((report.problems, others.count()), (vec![], 0), "{:?}", checker.findings);
        report.records
    }
}
