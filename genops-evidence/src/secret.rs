//! Secrets of 32 bytes, each in a separate file with a checksum: a damaged secret is noticed.

use std::io;
use std::path::Path;

use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

/// A secret, erased from memory when dropped.
pub type Secret = Zeroizing<[u8; 32]>;

/// Reads the secret at `path`, or creates a secret readable only by the owner.
pub fn load_or_make(path: &Path) -> io::Result<Secret> {
    match std::fs::read(path).map(Zeroizing::new) {
        Ok(bytes) => parse(&bytes).map_err(io::Error::other),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut secret = Secret::new([0; 32]);
            crate::note::fill_random(secret.as_mut())?;
            crate::log::write_secret(path, &format(&secret))?;
            Ok(secret)
        }
        Err(error) => Err(error),
    }
}

/// Writes a secret text readable only by the owner, whole or not at all.
pub fn write(path: &Path, text: &str) -> io::Result<()> {
    crate::log::write_secret(path, text)
}

/// Formats `<64 digits> <8 digits of its SHA-256>` and a line end.
fn format(secret: &[u8; 32]) -> Zeroizing<String> {
    let digest = Sha256::digest(secret);
    let mut text = Zeroizing::new(String::with_capacity(74));
    let push = |text: &mut String, byte: &u8| {
        for nibble in [byte >> 4, byte & 15] {
            text.push(char::from_digit(u32::from(nibble), 16).unwrap_or('0'));
        }
    };
    for byte in secret {
        push(&mut text, byte);
    }
    text.push(' ');
    for byte in digest.iter().take(4) {
        push(&mut text, byte);
    }
    text.push('\n');
    text
}

pub(crate) fn parse(bytes: &[u8]) -> Result<Secret, &'static str> {
    let digits = str::from_utf8(bytes).ok().and_then(|text| text.get(..64));
    let digits = digits.ok_or("not a secret of 32 bytes")?;
    let mut secret = Secret::new([0; 32]);
    for (byte, pair) in secret.iter_mut().zip(digits.as_bytes().as_chunks::<2>().0) {
        let pair = str::from_utf8(pair).map_err(|_| "not hexadecimal")?;
        *byte = u8::from_str_radix(pair, 16).map_err(|_| "not hexadecimal")?;
    }
    if format(&secret).as_bytes() != bytes {
        return Err("the checksum does not fit");
    }
    Ok(secret)
}
