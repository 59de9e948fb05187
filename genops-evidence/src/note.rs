//! Signed notes, keys and checkpoints: [signed-note], [tlog-checkpoint], [tlog-cosignature].
//!
//! Ed25519 only: type 0x01 (note signatures, by logs) and 0x04 (timestamped cosignatures, by
//! witnesses). A signature of another type belongs to an unknown key and is ignored, as demanded by
//! the format. The module reads no file.
//!
//! [signed-note]: https://c2sp.org/signed-note
//! [tlog-checkpoint]: https://c2sp.org/tlog-checkpoint
//! [tlog-cosignature]: https://c2sp.org/tlog-cosignature

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::tree::Hash;

/// Maximum length of a note, in bytes: 64 signatures of five kilobytes would fit.
pub const NOTE_LIMIT: usize = 1 << 19;

/// Maximum of signatures in a note; the format demands at least 16.
pub const SIGNATURE_LIMIT: usize = 64;

/// An invalid note, key or checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoteError {
    /// The text is not a signed note at all.
    #[error("not a signed note: {0}")]
    Malformed(&'static str),
    /// An unreadable verifier key or secret key. The error does not repeat the key.
    #[error("not a key: {0}")]
    Key(&'static str),
    /// The note has no signature of the expected key.
    #[error("not signed by `{0}`")]
    NotSigned(String),
    /// A signature naming a known key does not fit the text.
    #[error("the signature of `{0}` does not fit the text")]
    WrongSignature(String),
    /// The text of the note is not a checkpoint.
    #[error("not a checkpoint: {0}")]
    Checkpoint(&'static str),
}

/// Type of a key: form of the signed message and of the signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyType {
    /// Signs the text of a note (0x01).
    Note,
    /// Signs a checkpoint together with the time of the signature (0x04).
    Cosignature,
}

impl KeyType {
    fn byte(self) -> u8 {
        match self {
            Self::Note => 0x01,
            Self::Cosignature => 0x04,
        }
    }

    fn from_byte(byte: u8) -> Option<Self> {
        [Self::Note, Self::Cosignature].into_iter().find(|it| it.byte() == byte)
    }
}

/// Returns whether the 64 bytes of `signature` are the Ed25519 signature over `bytes` by `key`.
#[must_use]
pub fn is_signed(key: &[u8; 32], bytes: &[u8], signature: &[u8]) -> bool {
    let (Ok(key), Ok(signature)) =
        (VerifyingKey::from_bytes(key), Signature::from_slice(signature))
    else {
        return false;
    };
    key.verify_strict(bytes, &signature).is_ok()
}

/// A public key with its name: a `vkey`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey {
    name: String,
    id: u32,
    key_type: KeyType,
    key: VerifyingKey,
}

impl PublicKey {
    /// Returns the name of the key; for a log, the origin.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the type of the key.
    #[must_use]
    pub fn key_type(&self) -> KeyType {
        self.key_type
    }

    /// Returns the 32 bytes of the Ed25519 key.
    #[must_use]
    pub fn bytes(&self) -> [u8; 32] {
        self.key.to_bytes()
    }

    /// Verifies `signature` over `text`. `Ok(None)`: the signature names another key. For a
    /// cosignature, the result has the time of the signature, in seconds since the epoch.
    pub fn verify(
        &self,
        text: &str,
        signature: &NoteSignature,
    ) -> Result<Option<Verified>, NoteError> {
        if signature.name != self.name || signature.id != self.id {
            return Ok(None);
        }
        let wrong = || NoteError::WrongSignature(self.name.clone());
        let (message, raw, at) = match self.key_type {
            KeyType::Note => (text.to_owned(), signature.blob.as_slice(), None),
            KeyType::Cosignature => {
                let (time, raw) = signature.blob.split_first_chunk::<8>().ok_or_else(wrong)?;
                let at = u64::from_be_bytes(*time);
                (format!("cosignature/v1\ntime {at}\n{text}"), raw, Some(at))
            }
        };
        let raw = Signature::from_slice(raw).map_err(|_| wrong())?;
        self.key.verify_strict(message.as_bytes(), &raw).map_err(|_| wrong())?;
        Ok(Some(Verified { at_unix_s: at }))
    }
}

/// A verified signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Time of a cosignature, in seconds since the epoch; `None` for a note signature.
    pub at_unix_s: Option<u64>,
}

impl FromStr for PublicKey {
    type Err = NoteError;

    fn from_str(vkey: &str) -> Result<Self, NoteError> {
        let mut parts = vkey.trim_end_matches('\n').splitn(3, '+');
        let (Some(name), Some(id), Some(data)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(NoteError::Key("a verifier key has three parts, `name+hash+key`"));
        };
        check_name(name)?;
        let id = parse_id(id)?;
        let data = BASE64.decode(data).map_err(|_| NoteError::Key("its base64 is broken"))?;
        let (&first, rest) = data.split_first().ok_or(NoteError::Key("it is empty"))?;
        let key_type = KeyType::from_byte(first)
            .ok_or(NoteError::Key("it is neither Ed25519 (1) nor a cosignature key (4)"))?;
        let raw: [u8; 32] =
            rest.try_into().map_err(|_| NoteError::Key("an Ed25519 key has 32 bytes"))?;
        let key = VerifyingKey::from_bytes(&raw)
            .map_err(|_| NoteError::Key("its bytes are not a point of the curve"))?;
        if key_id(name, key_type, &key) != id {
            return Err(NoteError::Key("its hash does not fit its name and bytes"));
        }
        Ok(Self { name: name.to_owned(), id, key_type, key })
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut data = vec![self.key_type.byte()];
        data.extend_from_slice(self.key.as_bytes());
        write!(f, "{}+{:08x}+{}", self.name, self.id, BASE64.encode(data))
    }
}

/// A secret key with its name. Erased from memory when dropped; never shown by `Debug`.
pub struct SecretKey {
    public: PublicKey,
    key: SigningKey,
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretKey").field("public", &self.public).finish_non_exhaustive()
    }
}

impl SecretKey {
    /// Creates a key from 32 secret bytes.
    pub fn new(name: &str, key_type: KeyType, seed: &[u8; 32]) -> Result<Self, NoteError> {
        check_name(name)?;
        let key = SigningKey::from_bytes(seed);
        let verifying = key.verifying_key();
        let id = key_id(name, key_type, &verifying);
        let public = PublicKey { name: name.to_owned(), id, key_type, key: verifying };
        Ok(Self { public, key })
    }

    /// Creates a new key from the kernel's random numbers.
    pub fn generate(name: &str, key_type: KeyType) -> Result<Self, NoteError> {
        let mut seed = Zeroizing::new([0_u8; 32]);
        fill_random(seed.as_mut())
            .map_err(|_| NoteError::Key("the kernel gave no random bytes"))?;
        Self::new(name, key_type, &seed)
    }

    /// Reads `PRIVATE+KEY+name+hash+base64`, the form written by other tools for signed notes.
    pub fn parse(text: &str) -> Result<Self, NoteError> {
        let rest = text
            .trim_end_matches('\n')
            .strip_prefix("PRIVATE+KEY+")
            .ok_or(NoteError::Key("it does not begin with `PRIVATE+KEY+`"))?;
        let mut parts = rest.splitn(3, '+');
        let (Some(name), Some(id), Some(data)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(NoteError::Key("a secret key has the parts `PRIVATE+KEY+name+hash+key`"));
        };
        let id = parse_id(id)?;
        let data = BASE64.decode(data).map_err(|_| NoteError::Key("its base64 is broken"))?;
        let data = Zeroizing::new(data);
        let (&first, rest) = data.split_first().ok_or(NoteError::Key("it is empty"))?;
        let key_type =
            KeyType::from_byte(first).ok_or(NoteError::Key("it is not an Ed25519 key"))?;
        let seed: [u8; 32] =
            rest.try_into().map_err(|_| NoteError::Key("an Ed25519 key has 32 bytes"))?;
        let seed = Zeroizing::new(seed);
        let key = Self::new(name, key_type, &seed)?;
        if key.public.id != id {
            return Err(NoteError::Key("its hash does not fit its name and bytes"));
        }
        Ok(key)
    }

    /// Returns the form read by [`SecretKey::parse`].
    #[must_use]
    pub fn to_text(&self) -> Zeroizing<String> {
        let mut data = Zeroizing::new(vec![self.public.key_type.byte()]);
        data.extend_from_slice(self.key.as_bytes());
        let encoded = Zeroizing::new(BASE64.encode(&*data));
        let PublicKey { name, id, .. } = &self.public;
        Zeroizing::new(format!("PRIVATE+KEY+{name}+{id:08x}+{}\n", *encoded))
    }

    /// Returns the public key.
    #[must_use]
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// Signs `text`. `at_unix_s` counts for a cosignature only.
    #[must_use]
    pub fn sign(&self, text: &str, at_unix_s: u64) -> NoteSignature {
        let mut blob = Vec::with_capacity(72);
        let message = match self.public.key_type {
            KeyType::Note => text.to_owned(),
            KeyType::Cosignature => {
                blob.extend_from_slice(&at_unix_s.to_be_bytes());
                format!("cosignature/v1\ntime {at_unix_s}\n{text}")
            }
        };
        blob.extend_from_slice(&self.key.sign(message.as_bytes()).to_bytes());
        NoteSignature { name: self.public.name.clone(), id: self.public.id, blob }
    }
}

/// Fills `buffer` from the kernel's random numbers.
pub(crate) fn fill_random(buffer: &mut [u8]) -> std::io::Result<()> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        filled += rustix::rand::getrandom(rest, rustix::rand::GetRandomFlags::empty())?;
    }
    Ok(())
}

fn check_name(name: &str) -> Result<(), NoteError> {
    let bad = |c: char| c.is_whitespace() || c == '+' || c.is_control();
    if name.is_empty() || name.contains(bad) {
        return Err(NoteError::Key("its name is empty or has a space or `+` in it"));
    }
    Ok(())
}

fn parse_id(hex: &str) -> Result<u32, NoteError> {
    let lower = |byte: &u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(byte);
    let well_formed = hex.len() == 8 && hex.as_bytes().iter().all(lower);
    let id = if well_formed { u32::from_str_radix(hex, 16).ok() } else { None };
    id.ok_or(NoteError::Key("its hash is not eight lower-case hexadecimal digits"))
}

fn key_id(name: &str, key_type: KeyType, key: &VerifyingKey) -> u32 {
    let digest = Sha256::new()
        .chain_update(name)
        .chain_update([b'\n', key_type.byte()])
        .chain_update(key.as_bytes())
        .finalize();
    digest.iter().take(4).fold(0, |id, byte| (id << 8) | u32::from(*byte))
}

/// A signature line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoteSignature {
    /// Name of the key.
    pub name: String,
    /// Key ID.
    pub id: u32,
    /// Bytes after the key ID: the signature, for a cosignature preceded by its time.
    pub blob: Vec<u8>,
}

impl NoteSignature {
    /// Reads a line, without the line end.
    pub fn parse(line: &str) -> Result<Self, NoteError> {
        let rest = line
            .strip_prefix("\u{2014} ")
            .ok_or(NoteError::Malformed("a signature line does not begin with an em dash"))?;
        let (name, data) = rest
            .split_once(' ')
            .ok_or(NoteError::Malformed("a signature line has no signature"))?;
        check_name(name).map_err(|_| NoteError::Malformed("a signature has no key name"))?;
        let data = BASE64
            .decode(data)
            .map_err(|_| NoteError::Malformed("the base64 of a signature is broken"))?;
        let (id, blob) = data
            .split_first_chunk::<4>()
            .filter(|(_, blob)| !blob.is_empty())
            .ok_or(NoteError::Malformed("a signature is too short"))?;
        Ok(Self { name: name.to_owned(), id: u32::from_be_bytes(*id), blob: blob.to_vec() })
    }
}

impl fmt::Display for NoteSignature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut data = self.id.to_be_bytes().to_vec();
        data.extend_from_slice(&self.blob);
        write!(f, "\u{2014} {} {}", self.name, BASE64.encode(data))
    }
}

/// A text with signatures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// With its final line end.
    pub text: String,
    /// In the order of the note.
    pub signatures: Vec<NoteSignature>,
}

impl Note {
    /// Reads a note. Signatures are not verified yet.
    pub fn parse(bytes: &[u8]) -> Result<Self, NoteError> {
        if bytes.len() > NOTE_LIMIT {
            return Err(NoteError::Malformed("longer than any note that is read"));
        }
        let all = str::from_utf8(bytes).map_err(|_| NoteError::Malformed("not UTF-8"))?;
        if all.chars().any(|c| c < ' ' && c != '\n') {
            return Err(NoteError::Malformed("a control character in it"));
        }
        let (text, lines) = all
            .rsplit_once("\n\n")
            .ok_or(NoteError::Malformed("no empty line before the signatures"))?;
        let lines = lines
            .strip_suffix('\n')
            .ok_or(NoteError::Malformed("the last line is not complete"))?;
        if text.is_empty() {
            return Err(NoteError::Malformed("no text"));
        }
        if lines.split('\n').count() > SIGNATURE_LIMIT {
            return Err(NoteError::Malformed("too many signatures"));
        }
        let signatures =
            lines.split('\n').map(NoteSignature::parse).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { text: format!("{text}\n"), signatures })
    }

    /// Verifies the signature of `key`; an absent signature is an error.
    pub fn verify(&self, key: &PublicKey) -> Result<Verified, NoteError> {
        let mut found = None;
        for signature in &self.signatures {
            if let Some(verified) = key.verify(&self.text, signature)? {
                found = Some(verified);
            }
        }
        found.ok_or_else(|| NoteError::NotSigned(key.name.clone()))
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.text)?;
        self.signatures.iter().try_for_each(|signature| writeln!(f, "{signature}"))
    }
}

/// A tree head: the state committed to by a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeHead {
    /// Identity of the log.
    pub origin: String,
    /// Number of records.
    pub size: u64,
    /// Root of the Merkle tree over the records.
    pub root: Hash,
}

impl TreeHead {
    /// Reads the text of a checkpoint. Extension lines are refused: no log of this crate has
    /// extension lines, and nobody can audit extension lines.
    pub fn parse(text: &str) -> Result<Self, NoteError> {
        let mut lines = text
            .strip_suffix('\n')
            .ok_or(NoteError::Checkpoint("the last line is not complete"))?
            .split('\n');
        let (Some(origin), Some(size), Some(root), None) =
            (lines.next(), lines.next(), lines.next(), lines.next())
        else {
            return Err(NoteError::Checkpoint("it does not have three lines"));
        };
        if origin.is_empty() {
            return Err(NoteError::Checkpoint("the origin is empty"));
        }
        let size = parse_decimal(size)
            .ok_or(NoteError::Checkpoint("the size is not a plain decimal number"))?;
        let root = parse_hash(root).ok_or(NoteError::Checkpoint("the root is not 32 bytes"))?;
        Ok(Self { origin: origin.to_owned(), size, root })
    }

    /// Returns the signed text.
    #[must_use]
    pub fn text(&self) -> String {
        format!("{}\n{}\n{}\n", self.origin, self.size, BASE64.encode(self.root))
    }
}

/// Parses a decimal number without sign or leading zeroes.
pub(crate) fn parse_decimal(text: &str) -> Option<u64> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit());
    let no_leading_zero = text == "0" || !text.starts_with('0');
    if plain && no_leading_zero { text.parse().ok() } else { None }
}

/// Parses a hash in standard base64.
#[must_use]
pub fn parse_hash(text: &str) -> Option<Hash> {
    BASE64.decode(text).ok()?.try_into().ok()
}

/// Formats a hash in standard base64.
#[must_use]
pub fn format_hash(hash: &Hash) -> String {
    BASE64.encode(hash)
}

/// A tree head with its signatures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The signed tree head.
    pub head: TreeHead,
    /// The note as stored and sent.
    pub note: Note,
}

impl Checkpoint {
    /// Reads a checkpoint. No signature is verified yet.
    pub fn parse(bytes: &[u8]) -> Result<Self, NoteError> {
        let note = Note::parse(bytes)?;
        let head = TreeHead::parse(&note.text)?;
        Ok(Self { head, note })
    }

    /// Signs a tree head.
    #[must_use]
    pub fn sign<'k>(head: TreeHead, keys: impl IntoIterator<Item = &'k SecretKey>) -> Self {
        let text = head.text();
        let signatures = keys.into_iter().map(|key| key.sign(&text, 0)).collect();
        Self { head, note: Note { text, signatures } }
    }
}

#[cfg(test)]
mod tests;
