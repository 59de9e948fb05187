//! The price file of a configuration: read, compared with the configured hash or key, and compiled.
//! The hash or the key is never taken from a place beside the price file.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use genops_governance::prices::data;
use genops_governance::{PriceTable, PricesConfig};
use sha2::{Digest as _, Sha256};

use super::{LoadError, Sources};
use genops_governance::hex;

/// DER prefix of an Ed25519 public key in the form of RFC 8410.
const SPKI: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// Reads the file named by `prices`; a relative path starts at the configuration's directory.
pub(super) fn table(
    config: &Path,
    prices: &PricesConfig,
    sources: &Sources,
) -> Result<Option<PriceTable>, LoadError> {
    let invalid = |why: String| LoadError::Invalid(format!("{}: {why}", config.display()));
    let PricesConfig { file, sha256, public_key, .. } = prices;
    let Some(file) = file else {
        let vouches = [("sha256", sha256), ("public_key", public_key)];
        return match vouches.iter().find(|(_, value)| value.is_some()) {
            Some((key, _)) => Err(invalid(format!("`prices.{key}` vouches for no `prices.file`"))),
            None => Ok(None),
        };
    };
    if sha256.is_none() && public_key.is_none() {
        let why = "`prices.file` needs `prices.sha256`, or `prices.public_key` of its signature";
        return Err(invalid(why.to_owned()));
    }
    let path = config.parent().unwrap_or(Path::new("")).join(file);
    let text = sources.file(&path)?;
    let found = hex(&Sha256::digest(text.as_bytes()));
    if let Some(wanted) = sha256.as_ref().map(|it| it.trim().to_lowercase())
        && wanted.trim_start_matches("sha256:") != found
    {
        let why = format!("{}: its SHA-256 is {found}, and not `prices.sha256`", path.display());
        return Err(invalid(why));
    }
    if let Some(key) = public_key {
        let key = key_of(key).ok_or_else(|| {
            invalid("`prices.public_key` is no Ed25519 key of 32 bytes in base64".to_owned())
        })?;
        let beside = path.with_added_extension("sig");
        let signature = sources.file(&beside)?;
        if !is_signed(&key, text.as_bytes(), &signature) {
            let why = format!("{} is no signature of it by `prices.public_key`", beside.display());
            return Err(invalid(format!("{}: {why}", path.display())));
        }
    }
    let lines = data::compile(&text).map_err(|why| invalid(format!("{} {why}", path.display())))?;
    Ok(Some(PriceTable { file: path.display().to_string(), sha256: found, lines }))
}

fn key_of(text: &str) -> Option<[u8; 32]> {
    let bytes = BASE64.decode(text.trim()).ok()?;
    let key = bytes.strip_prefix(&SPKI).unwrap_or(&bytes);
    key.try_into().ok()
}

fn is_signed(key: &[u8; 32], bytes: &[u8], signature: &str) -> bool {
    let signature: String = signature.split_ascii_whitespace().collect();
    let decoded = BASE64.decode(signature).ok();
    decoded.is_some_and(|it| genops_evidence::is_signed(key, bytes, &it))
}
