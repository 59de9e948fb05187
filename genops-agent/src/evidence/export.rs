//! `evidence export`: hands out records, each with its proof, and a signed statement.

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use clap::{Args, ValueEnum};
use genops_evidence::note::SecretKey;
use genops_evidence::{Checkpoint, Directory, files};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::filter::Filter;
use super::prove::proof_file;
use super::{At, csv_cell, line, matched, time_text, trusted_head};
use crate::journal::entry::Entry;
use genops_governance::hex;

/// Format of exported records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    /// The stored bytes, a record per line.
    #[default]
    Jsonl,
    /// A table of the most requested fields.
    Csv,
}

/// Hand out records, with proofs and a signed statement.
///
/// Into a new folder: `records.jsonl` or `records.csv`, `checkpoint`, `log.vkey`, `proofs/`, and
/// `statement.json`, an in-toto statement about the files in a DSSE envelope, signed with the log's
/// key. With only `--principal`, the records' numbers (`pseq`, `pprev`) prove the absence of gaps.
#[derive(Debug, Args)]
pub(crate) struct Export {
    #[command(flatten)]
    at: At,
    #[command(flatten)]
    filter: Filter,
    /// Folder to create.
    #[arg(long, value_name = "FOLDER")]
    to: PathBuf,
    /// How to write the records.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// No inclusion proof for each record.
    #[arg(long)]
    no_proofs: bool,
    /// Secret key to sign the statement; default: the log's own key, if readable.
    #[arg(long, value_name = "FILE")]
    sign_key: Option<PathBuf>,
}

/// Columns of the table.
const COLUMNS: &str = "seq,time,type,awu,principal,team,project,environment,provider,model,region,\
                       result,reason,policy,budget,unit,reserved,actual,remaining\n";

impl Export {
    pub(super) fn run(&self) -> anyhow::Result<ExitCode> {
        let directory = self.at.open()?;
        let head = trusted_head(&directory)?;
        let checkpoint = directory.checkpoint()?;
        ensure!(!self.to.exists(), "{}: exists already", self.to.display());
        fs::create_dir_all(&self.to).with_context(|| self.to.display().to_string())?;
        let name = match self.format {
            Format::Jsonl => "records.jsonl",
            Format::Csv => "records.csv",
        };
        let written = self.write_records(&directory, head.size, &self.to.join(name))?;
        if written.indices.is_empty() {
            // A statement about no record is worthless.
            fs::remove_dir_all(&self.to).with_context(|| self.to.display().to_string())?;
            return Ok(matched(0, written.read));
        }
        self.copy(&directory)?;
        let mut subjects = vec![name, files::CHECKPOINT, files::VKEY];
        if !self.no_proofs {
            self.write_proofs(&directory, &checkpoint, &written)?;
            subjects.push("proofs.sha256");
        }
        let signed = self.write_statement(&checkpoint, &written, &subjects)?;
        let mut out = std::io::stdout().lock();
        line(&mut out, &format!("{} records in {}", written.indices.len(), self.to.display()))?;
        if !signed {
            line(&mut out, "statement not signed: no key can be read; give one with --sign-key")?;
        }
        Ok(ExitCode::SUCCESS)
    }

    fn write_records(
        &self,
        directory: &Directory,
        size: u64,
        path: &Path,
    ) -> anyhow::Result<Written> {
        let context = || path.display().to_string();
        let mut out = BufWriter::new(File::create(path).with_context(context)?);
        let mut written = Written::default();
        if self.format == Format::Csv {
            out.write_all(COLUMNS.as_bytes()).with_context(context)?;
        }
        let mut failed = Ok(());
        let first = directory.first_kept()?;
        let mut next = first;
        directory
            .records(first, size, |index, record| {
                // A record given up meanwhile must not go unnoticed.
                next += u64::from(next == index);
                written.read += 1;
                let Ok(entry) = serde_json::from_slice::<Entry<'_>>(record) else { return };
                if failed.is_err() || !self.filter.takes(&entry) {
                    return;
                }
                written.add(index, &entry);
                failed = match self.format {
                    Format::Jsonl => out.write_all(record).and_then(|()| out.write_all(b"\n")),
                    Format::Csv => out.write_all(row(&entry).as_bytes()),
                };
            })
            .with_context(|| directory.path().display().to_string())?;
        failed.and_then(|()| out.flush()).with_context(context)?;
        ensure!(next == size, "records were given up while they were exported; export once more");
        Ok(written)
    }

    fn copy(&self, directory: &Directory) -> anyhow::Result<()> {
        for name in [files::CHECKPOINT, files::VKEY] {
            let from = directory.path().join(name);
            fs::copy(&from, self.to.join(name)).with_context(|| from.display().to_string())?;
        }
        Ok(())
    }

    /// Writes a proof for each record, and a list of the hashes of the proofs.
    fn write_proofs(
        &self,
        directory: &Directory,
        checkpoint: &Checkpoint,
        written: &Written,
    ) -> anyhow::Result<()> {
        let folder = self.to.join("proofs");
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        let mut sums = String::new();
        for index in &written.indices {
            let proof = proof_file(directory, *index, checkpoint, checkpoint.head.size)?;
            let name = format!("proofs/{index}.tlog-proof");
            sums.push_str(&hex(&Sha256::digest(&proof)));
            sums.push_str("  ");
            sums.push_str(&name);
            sums.push('\n');
            fs::write(self.to.join(&name), proof).with_context(|| name)?;
        }
        let path = self.to.join("proofs.sha256");
        fs::write(&path, sums).with_context(|| path.display().to_string())
    }

    /// Writes the in-toto statement; returns whether the statement was signed.
    fn write_statement(
        &self,
        checkpoint: &Checkpoint,
        written: &Written,
        subjects: &[&str],
    ) -> anyhow::Result<bool> {
        let mut subject = Vec::new();
        for name in subjects {
            let path = self.to.join(name);
            let bytes = fs::read(&path).with_context(|| path.display().to_string())?;
            subject.push(json!({"name": name, "digest": {"sha256": hex(&Sha256::digest(bytes))}}));
        }
        let statement = json!({
            "_type": "https://in-toto.io/Statement/v1",
            "subject": subject,
            "predicateType": "https://genops.dev/evidence-export/v1",
            "predicate": {
                "origin": checkpoint.head.origin,
                "treeSize": checkpoint.head.size,
                "records": written.indices.len(),
                "firstIndex": written.indices.first(),
                "lastIndex": written.indices.last(),
                "principal": self.filter.which.principal,
                "completeForPrincipal": self.filter.is_whole_principal() && written.dense,
                "principalRecords": written.last_number,
            },
        })
        .to_string();
        let kind = "application/vnd.in-toto+json";
        let own = self.at.directory.join(files::KEY);
        let path = self.sign_key.as_ref().unwrap_or(&own);
        let secret = match fs::read_to_string(path).map(zeroize::Zeroizing::new) {
            Ok(text) => Some(SecretKey::parse(&text).with_context(|| path.display().to_string())?),
            Err(error) if self.sign_key.is_some() => {
                return Err(error).with_context(|| path.display().to_string());
            }
            Err(_) => None,
        };
        // Pre-authentication encoding of DSSE v1.
        let signed = format!("DSSEv1 {} {kind} {} {statement}", kind.len(), statement.len());
        let signatures: Vec<_> = secret
            .iter()
            .map(|key| {
                let signature = BASE64.encode(key.sign(&signed, 0).blob);
                json!({"keyid": key.public().to_string(), "sig": signature})
            })
            .collect();
        let envelope = json!({
            "payloadType": kind,
            "payload": BASE64.encode(&statement),
            "signatures": signatures,
        });
        let path = self.to.join("statement.json");
        fs::write(&path, format!("{envelope}\n")).with_context(|| path.display().to_string())?;
        Ok(secret.is_some())
    }
}

/// Counts and numbers of the exported records.
#[derive(Debug)]
struct Written {
    /// Number of records read.
    read: u64,
    indices: Vec<u64>,
    /// The principal's numbers have no gap so far.
    dense: bool,
    last_number: Option<u64>,
}

impl Default for Written {
    fn default() -> Self {
        Self { read: 0, indices: Vec::new(), dense: true, last_number: None }
    }
}

impl Written {
    fn add(&mut self, index: u64, entry: &Entry<'_>) {
        let number = entry.who.as_ref().and_then(|who| who.pseq);
        self.dense &= number == Some(self.last_number.unwrap_or(0) + 1);
        self.last_number = number.or(self.last_number);
        self.indices.push(index);
    }
}

/// Returns a line of the table.
fn row(entry: &Entry<'_>) -> String {
    let (who, what, dec) = (entry.who.as_ref(), entry.what.as_ref(), entry.dec.as_ref());
    let budget = entry.bud.first();
    let text = |text: Option<&crate::journal::entry::Text<'_>>| {
        text.map(|text| text.as_str().to_owned()).unwrap_or_default()
    };
    let number = |number: Option<i64>| number.map(|it| it.to_string()).unwrap_or_default();
    let cells = [
        entry.seq.to_string(),
        time_text(entry.t),
        entry.kind.as_str().to_owned(),
        text(entry.awu.as_ref()),
        text(who.map(|who| &who.prin)),
        text(who.and_then(|who| who.team.as_ref())),
        text(who.and_then(|who| who.proj.as_ref())),
        text(who.and_then(|who| who.env.as_ref())),
        text(what.and_then(|what| what.prov.as_ref())),
        text(what.and_then(|what| what.model.as_ref())),
        text(what.and_then(|what| what.region.as_ref())),
        text(dec.map(|dec| &dec.result)),
        text(dec.and_then(|dec| dec.code.as_ref())),
        text(dec.and_then(|dec| dec.policy.as_ref())),
        text(budget.and_then(|budget| budget.name.as_ref())),
        text(budget.map(|budget| &budget.unit)),
        number(budget.map(|budget| budget.res)),
        number(budget.and_then(|budget| budget.act)),
        number(budget.and_then(|budget| budget.rem)),
    ];
    let mut line = cells.map(|cell| csv_cell(&cell)).join(",");
    line.push('\n');
    line
}
