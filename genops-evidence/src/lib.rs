//! An append-only, signed log of opaque records, verifiable offline by anybody.
//!
//! The log is a Merkle tree (RFC 6962) kept in the published C2SP formats: [tlog-tiles] for hashes
//! and entries, [tlog-checkpoint] in [signed-note] with Ed25519 for the signed tree head,
//! [tlog-cosignature] and [tlog-witness] for witnesses, [tlog-proof] for the proof of a record. A
//! write-ahead log makes a record durable before its Merkle leaf is published.
//!
//! The crate knows nothing of AI, policies or JSON: a record is bytes. The crate reads no clock
//! (time is an argument) and no network.
//!
//! # An evidence directory
//!
//! ```text
//! checkpoint              the newest signed tree head
//! checkpoints/<size>      the tree head at every multiple of 1,024 records
//! log.vkey                the first public key of the log
//! rotations/<n>           statements signed by an old key and its successor
//! tile/<level>/<n>        hashes            (C2SP tlog-tiles)
//! tile/entries/<n>        records           (C2SP tlog-tiles)
//! pruned                  signed: the first record with bytes still kept; absent: all kept
//! wal/segments            write-ahead segments in use; empty after a clean stop
//! wal/<first index>       records that may not be in `tile/entries` yet
//! blob/<SHA-256>          attachments, named in records by digest
//! tmp/                    files being written
//! keys/                   secrets, for the owner only; not for an auditor
//! ```
//!
//! A shipped copy, with no file written twice, has `heads/<size>` instead of `checkpoint`, and no
//! `wal`, `tmp` and `keys`.
//!
//! [tlog-tiles]: https://c2sp.org/tlog-tiles
//! [tlog-checkpoint]: https://c2sp.org/tlog-checkpoint
//! [signed-note]: https://c2sp.org/signed-note
//! [tlog-cosignature]: https://c2sp.org/tlog-cosignature
//! [tlog-witness]: https://c2sp.org/tlog-witness
//! [tlog-proof]: https://c2sp.org/tlog-proof

pub mod files;
pub mod log;
pub mod note;
mod publish;
pub mod read;
pub mod secret;
pub mod tree;
pub mod verify;
pub mod wal;
pub mod witness;

pub use log::{AppendError, CommitError, Log, OpenError, Options, PublishError, Recovery};
pub use note::{Checkpoint, TreeHead, is_signed};
pub use read::{Directory, ReadError};
pub use verify::{Problem, Report, Verify};
