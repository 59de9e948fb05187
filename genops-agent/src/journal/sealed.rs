//! Encryption of the text sent to a model: AES-256-GCM with a key of the day and a random nonce.
//!
//! The key lies in the evidence directory's `keys` folder, readable by the owner alone. Destroying
//! the key makes the day's texts unreadable, without touching the log.

use std::fmt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use genops_evidence::secret::{self, Secret};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use zeroize::Zeroizing;

use super::entry::Sealed;
use super::{DAY_NS, digest};

/// Bytes of a part before base64: a record holds 65,535 bytes.
const PART_BYTES: usize = 45_000;

/// Encrypts with the key of the day.
pub(super) struct Sealer {
    folder: PathBuf,
    key: Option<(u64, Secret)>,
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealer").field("folder", &self.folder).finish_non_exhaustive()
    }
}

/// Name of the key of a day.
pub(crate) fn key_name(day: u64) -> String {
    format!("content-{day}.key")
}

impl Sealer {
    pub(super) fn new(evidence: &Path) -> Self {
        Self { folder: evidence.join(genops_evidence::files::KEYS), key: None }
    }

    /// Encrypts the texts of a unit. `None` without a key or randomness: never the text.
    pub(super) fn seal(
        &mut self,
        unit: &str,
        texts: &[String],
        left: u64,
        unix_ns: u64,
    ) -> Option<Vec<Sealed<'static>>> {
        let day = unix_ns / DAY_NS;
        if self.key.as_ref().is_none_or(|(known, _)| *known != day) {
            self.key =
                secret::load_or_make(&self.folder.join(key_name(day))).ok().map(|key| (day, key));
        }
        let (_, key) = self.key.as_ref()?;
        let mut nonce = [0; NONCE_LEN];
        let filled = rustix::rand::getrandom(&mut nonce, rustix::rand::GetRandomFlags::empty());
        filled.ok().filter(|filled| *filled == NONCE_LEN)?;
        let mut text = Zeroizing::new(serde_json::to_vec(texts).ok()?);
        let aad = Aad::from(unit.as_bytes());
        let nonce_of = Nonce::assume_unique_for_key(nonce);
        let tag = aead(key)?.seal_in_place_separate_tag(nonce_of, aad, &mut text).ok()?;
        let sealed = [&nonce, text.as_slice(), tag.as_ref()].concat();
        let parts = sealed.chunks(PART_BYTES).len() as u64;
        let part = |(part, bytes): (u64, &[u8])| {
            let left = if part == 0 { left } else { 0 };
            Sealed { day, part, parts, left, data: BASE64.encode(bytes).into() }
        };
        Some((0..).zip(sealed.chunks(PART_BYTES)).map(part).collect())
    }
}

fn aead(key: &Secret) -> Option<LessSafeKey> {
    UnboundKey::new(&AES_256_GCM, &key[..]).ok().map(LessSafeKey::new)
}

/// Decrypts the parts of a unit, joined.
///
/// # Errors
///
/// A sentence, if the key was destroyed or the bytes do not fit the key.
pub(crate) fn open(
    evidence: &Path,
    unit: &str,
    day: u64,
    data: &[String],
) -> Result<Vec<String>, String> {
    let path = evidence.join(genops_evidence::files::KEYS).join(key_name(day));
    if !path.exists() {
        return Err(format!("the key of {} is not here, or was destroyed", digest::day_text(day)));
    }
    let key =
        secret::load_or_make(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let broken = || "the encrypted text is not whole".to_owned();
    let mut sealed = Vec::new();
    for part in data {
        sealed.extend(BASE64.decode(part).map_err(|_| broken())?);
    }
    let (nonce, text) = sealed.split_first_chunk_mut::<NONCE_LEN>().ok_or_else(broken)?;
    let nonce = Nonce::assume_unique_for_key(*nonce);
    let key = aead(&key).ok_or_else(broken)?;
    let text = key.open_in_place(nonce, Aad::from(unit.as_bytes()), text).map_err(|_| broken())?;
    serde_json::from_slice(text).map_err(|_| broken())
}
