//! Keyed digests of names that identify a human: HMAC-SHA-256 with a key of the day.
//!
//! The key of a day lies in the evidence directory's `keys` folder, readable by the owner alone.
//! Destroying the key makes the day's digests meaningless, without touching the log. A bare hash
//! would not do, because names can be guessed.

use std::fmt::{self, Write as _};
use std::path::{Path, PathBuf};

use genops_evidence::secret::{self, Secret};
use genops_governance::hex;
use hmac::{Hmac, Mac as _};
use sha2::Sha256;

use super::DAY_NS;

/// Name of the key of a day.
pub(crate) fn key_name(day: u64) -> String {
    format!("digest-{day}.key")
}

/// A day since 1970, as `2026-11-24`.
pub(crate) fn day_text(day: u64) -> String {
    let seconds = i64::try_from(day).ok().and_then(|day| day.checked_mul(86_400));
    let time = seconds.and_then(|it| jiff::Timestamp::from_second(it).ok());
    time.map_or_else(|| format!("day {day}"), |time| time.to_string().chars().take(10).collect())
}

/// Digests with the key of the day.
pub(super) struct Digester {
    folder: PathBuf,
    /// Day since 1970, and the key; `None` if no key could be made.
    key: Option<(u64, Secret)>,
}

impl fmt::Debug for Digester {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Digester").field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl Digester {
    pub(super) fn new(evidence: &Path) -> Self {
        Self { folder: evidence.join("keys"), key: None }
    }

    /// Digest of the texts of a request: each behind its length, so no two requests share a digest.
    pub(super) fn digest_texts(&mut self, texts: &[String], unix_ns: u64) -> String {
        let mut all = zeroize::Zeroizing::new(String::from("request\n"));
        for text in texts {
            // Writing to a string cannot fail.
            write!(all, "{}\n{text}\n", text.len()).unwrap_or_default();
        }
        self.digest("hmac", &all, unix_ns)
    }

    /// `<prefix>:<day>:<hex>`, or `<prefix>:unavailable` without a key: never the text.
    pub(super) fn digest(&mut self, prefix: &str, text: &str, unix_ns: u64) -> String {
        let day = unix_ns / DAY_NS;
        if self.key.as_ref().is_none_or(|(known, _)| *known != day) {
            let path = self.folder.join(key_name(day));
            self.key = secret::load_or_make(&path).ok().map(|key| (day, key));
        }
        let mac =
            self.key.as_ref().and_then(|(_, key)| Hmac::<Sha256>::new_from_slice(&key[..]).ok());
        match mac {
            Some(mac) => {
                let digest = mac.chain_update(text).finalize().into_bytes();
                format!("{prefix}:{day}:{}", hex(&digest))
            }
            None => format!("{prefix}:unavailable"),
        }
    }
}
