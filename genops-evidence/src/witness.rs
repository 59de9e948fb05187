//! The [tlog-witness] protocol, both ends, without the network: requests and answers are bytes.
//!
//! A witness keeps, for each log, the newest tree head cosigned by the witness, and cosigns only an
//! extension of the tree. So a cosigned checkpoint proves that the witness saw no other
//! history of the log.
//!
//! [tlog-witness]: https://c2sp.org/tlog-witness

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use crate::files::{self, Writer};
use crate::note::{
    Checkpoint, Note, NoteError, NoteSignature, PublicKey, SecretKey, TreeHead, format_hash,
    parse_decimal, parse_hash,
};
use crate::read::{Directory, ReadError};
use crate::tree::{Hash, empty_hash, is_consistent, prove_consistency};

/// Maximum of hashes in a consistency proof, set by the protocol.
const PROOF_LIMIT: usize = 63;

/// Maximum length of a request, in bytes.
pub const REQUEST_LIMIT: usize = 64 << 10;

/// Answer of a witness.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// `Content-Type` of the body.
    pub content_type: &'static str,
    /// Cosignature lines, a size, or an error message.
    pub body: String,
}

impl Answer {
    fn plain(status: u16, body: impl Into<String>) -> Self {
        Self { status, content_type: "text/plain; charset=utf-8", body: body.into() }
    }
}

/// A request to cosign.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddCheckpoint {
    /// Size cosigned last by the witness, as far as known to the log.
    pub old: u64,
    /// Proof that the tree of size `old` is a prefix of the tree in `checkpoint`.
    pub proof: Vec<Hash>,
    /// The checkpoint to cosign.
    pub checkpoint: Checkpoint,
}

impl AddCheckpoint {
    /// Creates the request for a log's newest checkpoint, given the size cosigned last by the
    /// witness.
    pub fn new(directory: &Directory, old: u64, checkpoint: Checkpoint) -> Result<Self, ReadError> {
        let size = checkpoint.head.size;
        let proof = prove_consistency(&mut directory.tiles(size), old, size)?;
        Ok(Self { old, proof, checkpoint })
    }

    /// Returns the body of the request.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = format!("old {}\n", self.old);
        for hash in &self.proof {
            text.push_str(&format_hash(hash));
            text.push('\n');
        }
        text.push('\n');
        text.push_str(&self.checkpoint.note.to_string());
        text
    }

    /// Reads the body of a request.
    pub fn parse(bytes: &[u8]) -> Result<Self, NoteError> {
        let malformed = |what| NoteError::Malformed(what);
        let text = str::from_utf8(bytes).map_err(|_| malformed("not UTF-8"))?;
        let (head, note) =
            text.split_once("\n\n").ok_or(malformed("no empty line before the checkpoint"))?;
        let mut lines = head.split('\n');
        let old = lines
            .next()
            .and_then(|line| line.strip_prefix("old "))
            .and_then(parse_decimal)
            .ok_or(malformed("it does not begin with `old` and a size"))?;
        let proof = lines
            .map(|line| parse_hash(line).ok_or(malformed("a proof line is not a hash")))
            .collect::<Result<Vec<_>, _>>()?;
        if proof.len() > PROOF_LIMIT {
            return Err(malformed("more than 63 proof lines"));
        }
        Ok(Self { old, proof, checkpoint: Checkpoint::parse(note.as_bytes())? })
    }
}

/// Outcome of a request, seen from the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The checkpoint with the witness's cosignature, and the time of the cosignature.
    Cosigned(Checkpoint, u64),
    /// Size cosigned last by the witness; the log may ask again from the size.
    Conflict(u64),
    /// The witness refuses to cosign: HTTP status and reason.
    Refused(u16, String),
}

/// Reads a witness's answer to the request for `checkpoint`.
#[must_use]
pub fn read_answer(
    checkpoint: &Checkpoint,
    witness: &PublicKey,
    status: u16,
    body: &[u8],
) -> Outcome {
    let text = String::from_utf8_lossy(body.get(..REQUEST_LIMIT).unwrap_or(body));
    match status {
        200 => {
            for line in text.lines() {
                let Ok(signature) = NoteSignature::parse(line) else { continue };
                if let Ok(Some(verified)) = witness.verify(&checkpoint.note.text, &signature) {
                    let mut cosigned = checkpoint.clone();
                    cosigned.note.signatures.push(signature);
                    return Outcome::Cosigned(cosigned, verified.at_unix_s.unwrap_or(0));
                }
            }
            Outcome::Refused(status, "no cosignature of the configured key".to_owned())
        }
        409 => match text.trim_end().parse() {
            Ok(size) => Outcome::Conflict(size),
            Err(_) => Outcome::Refused(status, "a conflict without a size".to_owned()),
        },
        _ => Outcome::Refused(status, text.chars().take(200).collect()),
    }
}

/// A witness: key, known logs, and the checkpoint cosigned for each log.
#[derive(Debug)]
pub struct Witness {
    key: SecretKey,
    logs: BTreeMap<String, Vec<PublicKey>>,
    directory: PathBuf,
    writer: Writer,
}

impl Witness {
    /// Opens a witness with its state in `directory`, for the logs of the given keys.
    pub fn open(directory: &Path, key: SecretKey, logs: Vec<PublicKey>) -> io::Result<Self> {
        std::fs::create_dir_all(directory.join(files::TMP))?;
        let mut known: BTreeMap<String, Vec<PublicKey>> = BTreeMap::new();
        for log in logs {
            known.entry(log.name().to_owned()).or_default().push(log);
        }
        let writer = Writer::new(directory, "witness");
        Ok(Self { key, logs: known, directory: directory.to_owned(), writer })
    }

    /// Returns the public key of the cosignatures.
    #[must_use]
    pub fn key(&self) -> &PublicKey {
        self.key.public()
    }

    /// Answers `POST add-checkpoint`. A cosigned checkpoint is on disk before the answer.
    pub fn add_checkpoint(&mut self, body: &[u8], unix_s: u64) -> Answer {
        let request = match AddCheckpoint::parse(body) {
            Ok(request) => request,
            Err(error) => return Answer::plain(400, format!("{error}\n")),
        };
        let TreeHead { origin, size, root } = &request.checkpoint.head;
        let Some(keys) = self.logs.get(origin) else {
            return Answer::plain(404, "this log is not known here\n");
        };
        if !is_signed(&request.checkpoint, keys) {
            return Answer::plain(403, "not signed by a known key of this log\n");
        }
        if request.old > *size {
            return Answer::plain(400, "the old size is larger than the new one\n");
        }
        let last = match self.latest(origin) {
            Ok(last) => last,
            Err(error) => return Answer::plain(500, format!("{error}\n")),
        };
        let (last_size, last_root) =
            last.map_or_else(|| (0, empty_hash()), |last| (last.head.size, last.head.root));
        if request.old != last_size {
            let body = format!("{last_size}\n");
            return Answer { status: 409, content_type: "text/x.tlog.size", body };
        }
        if !is_consistent((last_size, &last_root), (*size, root), &request.proof) {
            return Answer::plain(422, "not a continuation of what was cosigned before\n");
        }
        let signature = self.key.sign(&request.checkpoint.note.text, unix_s);
        let line = format!("{signature}\n");
        let note = kept_note(&request.checkpoint, keys, signature);
        let kept = self.writer.write(&state_file(origin), note.to_string().as_bytes());
        if let Err(error) = kept.and_then(|()| self.writer.settle()) {
            return Answer::plain(500, format!("{error}\n"));
        }
        Answer::plain(200, line)
    }

    /// Answers `GET <origin hash>/checkpoint`.
    #[must_use]
    pub fn checkpoint(&self, origin_hash: &str) -> Answer {
        let known = self.logs.keys().find(|origin| origin_digest(origin) == origin_hash);
        match known.map(|origin| self.latest(origin)) {
            Some(Ok(Some(checkpoint))) => Answer::plain(200, checkpoint.note.to_string()),
            Some(Err(error)) => Answer::plain(500, format!("{error}\n")),
            Some(Ok(None)) | None => Answer::plain(404, "nothing was cosigned for this log\n"),
        }
    }

    /// Returns the newest checkpoint cosigned for a log.
    fn latest(&self, origin: &str) -> Result<Option<Checkpoint>, ReadError> {
        let name = state_file(origin);
        match Directory::new(&self.directory).checkpoint_in(&name, "it was cosigned") {
            Ok(checkpoint) => Ok(Some(checkpoint)),
            Err(ReadError::Missing { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Returns the checkpoint with its verified signatures and the cosignature.
fn kept_note(checkpoint: &Checkpoint, keys: &[PublicKey], signature: NoteSignature) -> Note {
    let mut note = checkpoint.note.clone();
    note.signatures.retain(|signature| {
        keys.iter().any(|key| matches!(key.verify(&checkpoint.note.text, signature), Ok(Some(_))))
    });
    note.signatures.push(signature);
    note
}

/// Returns whether a known key signed; a wrong signature of a known key spoils the note.
fn is_signed(checkpoint: &Checkpoint, keys: &[PublicKey]) -> bool {
    let results: Vec<_> = keys.iter().map(|key| checkpoint.note.verify(key)).collect();
    results.iter().any(Result::is_ok)
        && !results.iter().any(|result| matches!(result, Err(NoteError::WrongSignature(_))))
}

fn origin_digest(origin: &str) -> String {
    use sha2::{Digest as _, Sha256};
    Sha256::digest(origin).iter().flat_map(|byte| [byte >> 4, byte & 15]).map(digit).collect()
}

fn digit(nibble: u8) -> char {
    char::from_digit(u32::from(nibble), 16).unwrap_or('0')
}

fn state_file(origin: &str) -> String {
    format!("{}/checkpoint", origin_digest(origin))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;
    use crate::note::KeyType;
    use crate::{Log, Options};

    struct Scene {
        log: tempfile::TempDir,
        state: tempfile::TempDir,
    }

    impl Scene {
        fn new() -> Self {
            Self { log: tempfile::tempdir().unwrap(), state: tempfile::tempdir().unwrap() }
        }

        fn grow(&self, records: u64) -> Checkpoint {
            let (mut log, _) = Log::open(self.log.path(), Options::new("example.com/l")).unwrap();
            for index in 0..records {
                log.append(format!("record {index}").as_bytes()).unwrap();
            }
            log.close().unwrap()
        }

        fn witness(&self) -> Witness {
            let key = SecretKey::new("witness.example/w", KeyType::Cosignature, &[3; 32]).unwrap();
            let keys = Directory::new(self.log.path()).keys().unwrap();
            Witness::open(self.state.path(), key, keys).unwrap()
        }

        fn ask(&self, old: u64, checkpoint: &Checkpoint) -> Answer {
            let directory = Directory::new(self.log.path());
            let request = AddCheckpoint::new(&directory, old, checkpoint.clone()).unwrap();
            self.witness().add_checkpoint(request.to_text().as_bytes(), 1_795_378_193)
        }
    }

    #[test]
    fn a_growing_log_is_cosigned_and_the_state_outlives_the_witness() {
        let scene = Scene::new();
        let first = scene.grow(300);
        let answer = scene.ask(0, &first);
        let key = scene.witness().key().clone();
        let outcome = read_answer(&first, &key, answer.status, answer.body.as_bytes());
        let Outcome::Cosigned(cosigned, at) = outcome else { panic!("{outcome:?}") };
        assert_eq!(at, 1_795_378_193);
        assert!(cosigned.note.verify(&key).is_ok());
        let second = scene.grow(500);
        let conflict = scene.ask(0, &second);
        assert_eq!((conflict.status, conflict.body.as_str()), (409, "300\n"));
        assert_eq!(conflict.content_type, "text/x.tlog.size");
        assert_eq!(scene.ask(300, &second).status, 200);
        assert_eq!(scene.ask(800, &second).status, 200);
        let served = scene.witness().checkpoint(&origin_digest("example.com/l"));
        assert_eq!(served.status, 200);
        assert_eq!(Checkpoint::parse(served.body.as_bytes()).unwrap().head, second.head);
    }

    #[test]
    fn a_log_rolled_back_is_found_out() {
        let scene = Scene::new();
        let early = scene.grow(300);
        assert_eq!(scene.ask(0, &early).status, 200);
        let late = scene.grow(100);
        assert_eq!(scene.ask(300, &late).status, 200);
        // An operator put the old directory back: the witness knows more than the log.
        let conflict = scene.ask(0, &early);
        let key = scene.witness().key().clone();
        let outcome = read_answer(&early, &key, conflict.status, conflict.body.as_bytes());
        assert_eq!(outcome, Outcome::Conflict(400));
    }

    #[test]
    fn a_rewritten_history_is_refused() {
        let scene = Scene::new();
        let first = scene.grow(300);
        assert_eq!(scene.ask(0, &first).status, 200);
        let second = scene.grow(100);
        let directory = Directory::new(scene.log.path());
        let mut request = AddCheckpoint::new(&directory, 300, second.clone()).unwrap();
        // The same key signs another tree of the same size.
        let secret = std::fs::read_to_string(scene.log.path().join(files::KEY)).unwrap();
        let secret = SecretKey::parse(&secret).unwrap();
        let mut head = second.head;
        head.root = [9; 32];
        request.checkpoint = Checkpoint::sign(head, [&secret]);
        let answer = scene.witness().add_checkpoint(request.to_text().as_bytes(), 1);
        assert_eq!(answer.status, 422);
        let mut head = first.head.clone();
        head.root = [9; 32];
        let fork = AddCheckpoint {
            old: 300,
            proof: Vec::new(),
            checkpoint: Checkpoint::sign(head, [&secret]),
        };
        let answer = scene.witness().add_checkpoint(fork.to_text().as_bytes(), 1);
        assert_eq!(answer.status, 422);
    }

    #[test]
    fn what_is_not_a_request_of_a_known_log_is_refused_as_the_protocol_says() {
        let scene = Scene::new();
        let checkpoint = scene.grow(10);
        let request = |old, checkpoint| AddCheckpoint { old, proof: Vec::new(), checkpoint };
        let status = |body: &str| scene.witness().add_checkpoint(body.as_bytes(), 1).status;
        let good = request(0, checkpoint.clone()).to_text();
        assert_eq!(status("nonsense"), 400);
        assert_eq!(status(&good.replacen("old 0", "old 00", 1)), 400);
        assert_eq!(status(&good.replacen("old 0", "old 11", 1)), 400);
        assert_eq!(status(&good.replace("example.com/l", "example.com/m")), 404);
        let hash = format_hash(&[7; 32]);
        assert_eq!(status(&good.replacen("old 0\n", &format!("old 0\n{hash}\n"), 1)), 422);
        let many = format!("old 0\n{}", format!("{hash}\n").repeat(64));
        assert_eq!(status(&good.replacen("old 0\n", &many, 1)), 400);
        let stranger = SecretKey::new("example.com/l", KeyType::Note, &[8; 32]).unwrap();
        let forged = Checkpoint::sign(checkpoint.head, [&stranger]);
        assert_eq!(status(&request(0, forged).to_text()), 403);
        assert_eq!(status(&good), 200);
    }
}
