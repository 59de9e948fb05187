//! `evidence prove`: proves a record to be in the log, in the published format.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use clap::Args;
use genops_evidence::note::{Checkpoint, format_hash};
use genops_evidence::tree::prove_inclusion;
use genops_evidence::{Directory, TreeHead};

use super::{At, line, trusted_head};
use crate::journal::entry::{Entry, Kind};

/// Write a proof that one record is in the log.
///
/// Two files: `<index>.record`, the signed bytes, and `<index>.tlog-proof`
/// (c2sp.org/tlog-proof@v1).
#[derive(Debug, Args)]
pub(crate) struct Prove {
    /// Index of the record.
    index: u64,
    #[command(flatten)]
    at: At,
    /// Folder to write the two files into.
    #[arg(long, value_name = "FOLDER", default_value = ".")]
    to: PathBuf,
    /// Prove against the newest checkpoint cosigned by a witness, not against the newest
    /// checkpoint.
    #[arg(long)]
    witnessed: bool,
}

impl Prove {
    pub(super) fn run(&self) -> anyhow::Result<ExitCode> {
        let directory = self.at.open()?;
        let head = trusted_head(&directory)?;
        let place = directory.path().display();
        let checkpoint = if self.witnessed {
            newest_witnessed(&directory, &head)?
                .with_context(|| format!("{place}: no witness has cosigned this log"))?
        } else {
            directory.checkpoint().with_context(|| format!("{place}"))?
        };
        let record = directory
            .record(self.index, head.size)
            .with_context(|| format!("{place}: record {}", self.index))?;
        let proof = proof_file(&directory, self.index, &checkpoint, head.size)?;
        std::fs::create_dir_all(&self.to).with_context(|| self.to.display().to_string())?;
        for (ending, bytes) in [("record", record.as_slice()), ("tlog-proof", proof.as_bytes())] {
            let path = self.to.join(format!("{}.{ending}", self.index));
            std::fs::write(&path, bytes).with_context(|| path.display().to_string())?;
            line(&mut std::io::stdout(), &path.display().to_string())?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Returns the text of a proof of record `index` in the tree covered by `checkpoint`.
pub(super) fn proof_file(
    directory: &Directory,
    index: u64,
    checkpoint: &Checkpoint,
    size: u64,
) -> anyhow::Result<String> {
    let TreeHead { size: covered, .. } = checkpoint.head;
    ensure!(
        index < covered,
        "record {index} is not covered by the checkpoint of {covered} records; \
         one is signed every second while the agent runs"
    );
    let place = directory.path().display();
    let hashes = prove_inclusion(&mut directory.tiles(size), index, covered)
        .with_context(|| format!("{place}"))?;
    let mut text = format!("c2sp.org/tlog-proof@v1\nindex {index}\n");
    for hash in hashes {
        text.push_str(&format_hash(&hash));
        text.push('\n');
    }
    text.push('\n');
    text.push_str(&checkpoint.note.to_string());
    Ok(text)
}

/// Returns the newest checkpoint in the log cosigned by a witness.
fn newest_witnessed(directory: &Directory, head: &TreeHead) -> anyhow::Result<Option<Checkpoint>> {
    let mut newest = None;
    directory.records(directory.first_kept()?, head.size, |_, record| {
        let Ok(entry) = serde_json::from_slice::<Entry<'_>>(record) else { return };
        if entry.kind == Kind::Witnessed
            && let Some((_, note)) = entry.det.iter().find(|(key, _)| key.as_str() == "note")
            && let Ok(checkpoint) = Checkpoint::parse(note.as_str().as_bytes())
        {
            newest = Some(checkpoint);
        }
    })?;
    Ok(newest)
}
