//! `evidence verify`: checks evidence for completeness and true signatures.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use genops_evidence::note::{Checkpoint, NoteError, PublicKey};
use genops_evidence::tree::range_root;
use genops_evidence::{Directory, Report};
use serde_json::json;

use super::{At, Output, Progress, line, read_key};
use crate::journal::check::{Checker, Counts, Finding};

/// Number of reads of a log in use before the log counts as broken.
const TRIES: u32 = 10;

/// Check that evidence is whole and true to its signatures.
///
/// Exit code 0: everything holds; 1: a check failed, and the output names the place.
#[derive(Debug, Args)]
pub(crate) struct Verify {
    #[command(flatten)]
    at: At,
    /// Public key of the log, or a file with the key, obtained elsewhere than from the directory.
    #[arg(long, value_name = "VKEY")]
    key: Option<String>,
    /// Public key of a witness, or a file with the key; given checkpoints need a cosignature of
    /// every given witness.
    #[arg(long, value_name = "VKEY")]
    witness: Vec<String>,
    /// A checkpoint of the log, obtained elsewhere, such as from a witness: the log has to hold all
    /// records covered by the checkpoint.
    #[arg(long, value_name = "FILE")]
    checkpoint: Vec<PathBuf>,
    /// How to write the result.
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// Findings of a verification.
struct Found {
    report: Report,
    counts: Counts,
    findings: usize,
    /// Breaches: units sent despite a recorded refusal, each with its record.
    breaches: Vec<Finding>,
}

impl Verify {
    pub(super) fn run(&self) -> anyhow::Result<ExitCode> {
        let directory = self.at.open()?;
        let key = self.key.as_deref().map(read_key).transpose()?;
        let witnesses =
            self.witness.iter().map(|key| read_key(key)).collect::<anyhow::Result<Vec<_>>>()?;
        let mut given = Vec::new();
        for path in &self.checkpoint {
            let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
            let checkpoint =
                Checkpoint::parse(&bytes).with_context(|| path.display().to_string())?;
            given.push((path.display().to_string(), checkpoint));
        }
        let found = Self::still(&directory, key.as_ref(), &given, &witnesses);
        self.tell(&found)?;
        let good = found.report.problem_count == 0;
        Ok(if good { ExitCode::SUCCESS } else { ExitCode::from(1) })
    }

    /// Verifies a log possibly in use: repeats the verification if the log changes during the read.
    fn still(
        directory: &Directory,
        key: Option<&PublicKey>,
        given: &[(String, Checkpoint)],
        witnesses: &[PublicKey],
    ) -> Found {
        let mut found = Self::once(directory, key, given, witnesses);
        for _ in 1..TRIES {
            if found.report.problems.is_empty() || !in_use(directory.path()) {
                break;
            }
            std::thread::sleep(Duration::from_millis(300));
            found = Self::once(directory, key, given, witnesses);
        }
        found
    }

    fn once(
        directory: &Directory,
        key: Option<&PublicKey>,
        given: &[(String, Checkpoint)],
        witnesses: &[PublicKey],
    ) -> Found {
        let mut checker = Checker::default();
        let mut progress = Progress::new("verifying");
        let mut report = genops_evidence::Verify {
            directory: directory.path(),
            key: key.cloned(),
            each: &mut |index, record| checker.record(index, record),
            progress: &mut |done, of| progress.at(done, of),
        }
        .run();
        drop(progress);
        checker.finish();
        for finding in &checker.findings {
            let file = holder(&report, finding.seq);
            report.problem(&file, format!("record {}: {}", finding.seq, finding.what));
        }
        report.problem_count += checker.finding_count - checker.findings.len();
        for (seq, digest) in &checker.recipes {
            if !report.blobs.contains(digest) {
                let name = genops_evidence::files::blob(digest);
                report.problem(&name, format!("missing, or damaged: record {seq} names it"));
            }
        }
        for (name, checkpoint) in given {
            if let Err(what) = compare(directory, &report, checkpoint, witnesses) {
                report.problem(name, what);
            }
        }
        for witnessed in &checker.witnessed {
            let compared = Checkpoint::parse(witnessed.note.as_bytes())
                .map_err(|error| error.to_string())
                .and_then(|it| compare(directory, &report, &it, &[]));
            if let Err(what) = compared {
                let file = holder(&report, witnessed.seq);
                report.problem(&file, format!("record {}: {what}", witnessed.seq));
            }
        }
        let Checker { counts, finding_count: findings, breaches, .. } = checker;
        Found { report, counts, findings, breaches }
    }

    fn tell(&self, found: &Found) -> anyhow::Result<()> {
        let text = match self.output {
            Output::Json => self.json(found),
            Output::Text => self.text(found),
        };
        line(&mut io::stdout().lock(), &text)?;
        Ok(())
    }

    fn json(&self, found: &Found) -> String {
        let Found { report, counts, findings, breaches } = found;
        let breaches: Vec<_> =
            breaches.iter().map(|it| json!({"record": it.seq, "what": it.what})).collect();
        let problems: Vec<_> = report
            .problems
            .iter()
            .map(|problem| json!({"file": problem.file, "what": problem.what}))
            .collect();
        json!({
            "directory": self.at.directory.display().to_string(),
            "ok": report.problem_count == 0,
            "origin": report.head.as_ref().map(|head| &head.origin),
            "size": report.head.as_ref().map(|head| head.size),
            "root": report.head.as_ref().map(|head| genops_evidence::note::format_hash(&head.root)),
            "key": report.keys.last().map(ToString::to_string),
            "key_pinned": self.key.is_some(),
            "first": report.first,
            "records": report.records,
            "unpublished": report.unpublished,
            "checkpoints": report.checkpoints,
            "open": report.open,
            "shipped": report.shipped,
            "units": counts.units,
            "decisions": counts.decisions,
            "blocked": counts.blocked,
            "folded": counts.folded,
            "folded_records": counts.folded_records,
            "not_prevented": counts.not_prevented,
            "breached": counts.breaches,
            "breaches": breaches,
            "undecided": counts.undecided,
            "principals": counts.principals,
            "starts": counts.starts,
            "unclean_stops": counts.unclean,
            "interrupted_units": counts.interrupted,
            "gaps": counts.gaps,
            "kernel_events_lost": counts.dropped,
            "record_findings": findings,
            "problem_count": report.problem_count,
            "problems": problems,
            "notes": report.notes,
        })
        .to_string()
    }

    fn text(&self, found: &Found) -> String {
        let Found { report, counts, breaches, .. } = found;
        let mut text = String::new();
        let mut add = |line: String| {
            text.push_str(&line);
            text.push('\n');
        };
        if let Some(head) = &report.head {
            add(format!("log        {}", head.origin));
            let kept = match report.first {
                0 => String::new(),
                first => format!(", records below {first} pruned"),
            };
            add(format!(
                "signed     {} records, {} checkpoints{kept}",
                head.size, report.checkpoints
            ));
        }
        add(format!(
            "read       {} records of {} units: {} decisions, {} refused, {} principals",
            report.records, counts.units, counts.decisions, counts.blocked, counts.principals
        ));
        if counts.folded > 0 {
            add(format!(
                "folded     {} of these units, in {} records that count them",
                counts.folded, counts.folded_records
            ));
        }
        if report.unpublished > 0 {
            add(format!(
                "unsigned   {} records, durable but newer than the checkpoint",
                report.unpublished
            ));
        }
        if counts.unclean + counts.gaps + counts.dropped + counts.interrupted > 0 {
            add(format!(
                "admitted   {} unclean stops, {} units interrupted by one, {} gaps, {} kernel events lost",
                counts.unclean, counts.interrupted, counts.gaps, counts.dropped
            ));
        }
        if counts.undecided + counts.not_prevented > 0 {
            add(format!(
                "admitted   {} refusals without an outcome (gaps), {} that kept nothing back",
                counts.undecided, counts.not_prevented
            ));
        }
        for breach in breaches {
            add(format!("BREACH     record {}: {}", breach.seq, breach.what));
        }
        if let Some(key) = report.keys.last() {
            let pinned =
                if self.key.is_some() { "as given" } else { "found in the directory itself" };
            add(format!("key        {key} ({pinned})"));
        }
        for note in &report.notes {
            add(format!("note       {note}"));
        }
        for problem in &report.problems {
            let file = super::place(&self.at.directory, &problem.file);
            add(format!("PROBLEM    {file}: {}", problem.what));
        }
        let shown = report.problems.len();
        if report.problem_count > shown {
            add(format!("PROBLEM    and {} more", report.problem_count - shown));
        }
        text.push_str(match report.problem_count {
            0 => "verified",
            _ => "NOT VERIFIED",
        });
        text
    }
}

/// Returns the first fault of a log in words; `None`: the log is whole, and true to its signatures.
pub(crate) fn fault(directory: &Directory, key: Option<&PublicKey>) -> Option<String> {
    let Found { report, .. } = Verify::still(directory, key, &[], &[]);
    let first = report
        .problems
        .first()
        .map(|it| format!("{}: {}", super::place(directory.path(), &it.file), it.what));
    first.or_else(|| (report.problem_count > 0).then(|| "records do not fit together".to_owned()))
}

/// Returns the name of the file with a record.
fn holder(report: &Report, index: u64) -> String {
    use genops_evidence::files::{TileKind, tile};
    let size = report.head.as_ref().map_or(0, |head| head.size);
    if index >= size {
        return genops_evidence::files::WAL.to_owned();
    }
    let bundle = index / 256;
    let width = usize::try_from(size - bundle * 256).unwrap_or(256).min(256);
    tile(TileKind::Entries, bundle, width)
}

/// Checks a checkpoint from elsewhere: the log has to hold all records covered by the checkpoint.
fn compare(
    directory: &Directory,
    report: &Report,
    checkpoint: &Checkpoint,
    witnesses: &[PublicKey],
) -> Result<(), String> {
    let Some(head) = &report.head else { return Ok(()) };
    let promised = &checkpoint.head;
    if promised.origin != head.origin {
        return Err(format!("of another log, `{}`", promised.origin));
    }
    let signed = report.keys.iter().any(|key| checkpoint.note.verify(key).is_ok());
    if !signed {
        return Err(NoteError::NotSigned(head.origin.clone()).to_string());
    }
    for witness in witnesses {
        checkpoint.note.verify(witness).map_err(|error| error.to_string())?;
    }
    if promised.size > head.size {
        return Err(format!(
            "covers {} records, the log has {}: it was cut or rolled back",
            promised.size, head.size
        ));
    }
    let root = range_root(&mut directory.tiles(head.size), 0, promised.size);
    match root {
        Ok(root) if root == promised.root => Ok(()),
        Ok(_) => Err(format!("the first {} records were others when it was signed", promised.size)),
        Err(error) => Err(error.to_string()),
    }
}

/// Returns whether a process has the log open.
fn in_use(directory: &Path) -> bool {
    use rustix::fs::{FlockOperation, flock};
    let Ok(file) = std::fs::File::open(directory) else { return false };
    flock(&file, FlockOperation::NonBlockingLockShared).is_err()
}
