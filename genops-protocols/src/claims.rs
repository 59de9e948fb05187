//! Claims of a request about the principal, read from fields requested by governance. A claim is
//! the client's word; nothing in the module says how far to trust a claim.

use std::fmt;
use std::str::FromStr;

use crate::dialect::percent_decode;
use crate::facts::Facts;

/// Paths of keys in a request body available as claims.
pub const BODY_PATHS: [&str; 32] = [
    "user",
    "user_id",
    "customer_id",
    "session_id",
    "safety_identifier",
    "prompt_cache_key",
    "metadata.user_id",
    "metadata.user",
    "metadata.customer_id",
    "metadata.customer",
    "metadata.tenant_id",
    "metadata.tenant",
    "metadata.account_id",
    "metadata.feature",
    "metadata.session_id",
    "metadata.conversation_id",
    "labels.user_id",
    "labels.customer_id",
    "labels.customer",
    "labels.tenant_id",
    "labels.tenant",
    "labels.account_id",
    "labels.feature",
    "labels.session_id",
    "requestMetadata.user_id",
    "requestMetadata.customer_id",
    "requestMetadata.customer",
    "requestMetadata.tenant_id",
    "requestMetadata.tenant",
    "requestMetadata.account_id",
    "requestMetadata.feature",
    "requestMetadata.session_id",
];

/// Longest name of a header or key, in bytes.
const NAME_LIMIT: usize = 40;
/// Longest `baggage` read ([W3C](https://www.w3.org/TR/baggage/#limits): 8,192 bytes).
const BAGGAGE_LIMIT: usize = 8_192;
/// Longest value, in bytes.
const VALUE_LIMIT: usize = 256;

/// A place in a request able to name the principal.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ClaimSource {
    /// A header, with the name in lower case.
    Header(String),
    /// A key of the header `baggage`.
    Baggage(String),
    /// A path of [`BODY_PATHS`].
    Body(&'static str),
    /// The conversation or thread named by the request.
    Conversation,
}

/// A text naming no [`ClaimSource`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is none of `header:NAME`, `baggage:KEY`, `body:PATH` and `conversation`{hint}")]
pub struct UnknownSource {
    text: String,
    hint: String,
}

impl FromStr for ClaimSource {
    type Err = UnknownSource;

    fn from_str(text: &str) -> Result<Self, UnknownSource> {
        let fault =
            |hint: &str| Err(UnknownSource { text: text.to_owned(), hint: hint.to_owned() });
        let is_name = |it: &str| {
            !it.is_empty() && it.len() <= NAME_LIMIT && it.bytes().all(|it| it.is_ascii_graphic())
        };
        match text.split_once(':') {
            None if text == "conversation" => Ok(Self::Conversation),
            Some(("header", name)) if is_name(name) => {
                let name = name.to_ascii_lowercase();
                if SECRET.contains(&name.as_str()) {
                    return fault("; that header is a secret");
                }
                Ok(Self::Header(name))
            }
            Some(("baggage", key)) if is_name(key) => Ok(Self::Baggage(key.to_owned())),
            Some(("body", path)) => match BODY_PATHS.iter().find(|it| **it == path) {
                Some(path) => Ok(Self::Body(path)),
                None => fault(&format!("; of a body, {} can be read", BODY_PATHS.join(", "))),
            },
            _ => fault(""),
        }
    }
}

/// Headers with values never to be written anywhere.
const SECRET: [&str; 7] = [
    "api-key",
    "authorization",
    "cookie",
    "proxy-authorization",
    "x-api-key",
    "x-amz-security-token",
    "x-goog-api-key",
];

impl fmt::Display for ClaimSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(name) => write!(f, "header:{name}"),
            Self::Baggage(key) => write!(f, "baggage:{key}"),
            Self::Body(path) => write!(f, "body:{path}"),
            Self::Conversation => f.write_str("conversation"),
        }
    }
}

/// Value of a claimed field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Place of the value.
    pub source: ClaimSource,
    /// Value, without surrounding blanks.
    pub value: String,
}

/// Places requested by governance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted(Vec<ClaimSource>);

impl FromIterator<ClaimSource> for Wanted {
    fn from_iter<I: IntoIterator<Item = ClaimSource>>(sources: I) -> Self {
        let mut all: Vec<ClaimSource> = sources.into_iter().collect();
        all.sort_unstable();
        all.dedup();
        Self(all)
    }
}

impl Wanted {
    /// Collects claims from a header of a request; `name` in lower case.
    pub(crate) fn header(&self, name: &[u8], value: &[u8], claims: &mut Vec<Claim>) {
        if self.0.is_empty() {
            return;
        }
        let Ok(value) = std::str::from_utf8(value) else { return };
        for source in &self.0 {
            match source {
                ClaimSource::Header(wanted) if wanted.as_bytes() == name => {
                    keep(source, value, claims);
                }
                ClaimSource::Baggage(key) if name == b"baggage" => {
                    if let Some(value) = baggage(value, key) {
                        keep(source, &value, claims);
                    }
                }
                _ => {}
            }
        }
    }

    /// Collects claims from a body.
    pub(crate) fn body(&self, facts: &Facts, claims: &mut Vec<Claim>) {
        for source in &self.0 {
            if let ClaimSource::Body(path) = source
                && let Some(value) = facts.claim(path)
            {
                keep(source, value, claims);
            }
        }
    }
}

/// Keeps a claim; of a repeated place, the first value counts.
fn keep(source: &ClaimSource, value: &str, claims: &mut Vec<Claim>) {
    let value = value.trim();
    let known = claims.iter().any(|it| it.source == *source);
    if !known && !value.is_empty() && value.len() <= VALUE_LIMIT {
        claims.push(Claim { source: source.clone(), value: value.to_owned() });
    }
}

/// Returns the value of a member of [W3C baggage](https://www.w3.org/TR/baggage/#header-content),
/// without properties.
fn baggage(header: &str, wanted: &str) -> Option<String> {
    if header.len() > BAGGAGE_LIMIT {
        return None;
    }
    let mut members = header.split(',').filter_map(|it| it.split_once('='));
    let (_, value) = members.find(|(key, _)| key.trim() == wanted)?;
    Some(percent_decode(value.split(';').next().unwrap_or_default().trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(wanted: &[&str], headers: &[(&str, &str)]) -> Vec<String> {
        let wanted: Wanted = wanted.iter().map(|it| it.parse().unwrap()).collect();
        let mut claims = Vec::new();
        for (name, value) in headers {
            wanted.header(name.as_bytes(), value.as_bytes(), &mut claims);
        }
        claims.iter().map(|it| format!("{}={}", it.source, it.value)).collect()
    }

    #[test]
    fn only_what_is_asked_for_is_read() {
        let headers = [("x-shop", " s-12 "), ("x-other", "o"), ("x-shop", "s-13")];
        assert_eq!(said(&["header:X-Shop"], &headers), ["header:x-shop=s-12"]);
        assert_eq!(said(&[], &headers), [""; 0]);
    }

    #[test]
    fn baggage_is_read_as_the_w3c_has_it() {
        let header = ("baggage", "shop = s%2012 ;ttl=1, lane=fast,shop=s-13");
        let wanted = ["baggage:shop", "baggage:lane", "baggage:ttl"];
        assert_eq!(said(&wanted, &[header]), ["baggage:lane=fast", "baggage:shop=s 12"]);
    }

    #[test]
    fn what_is_no_place_is_said_in_a_sentence() {
        let fault = |text: &str| text.parse::<ClaimSource>().unwrap_err().to_string();
        let unknown = "is none of `header:NAME`, `baggage:KEY`, `body:PATH` and `conversation`";
        assert_eq!(fault("shop"), format!("`shop` {unknown}"));
        let secret = format!("`header:Authorization` {unknown}; that header is a secret");
        assert_eq!(fault("header:Authorization"), secret);
        assert!(fault("body:messages").contains("metadata.user_id"));
    }
}
