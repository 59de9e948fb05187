//! Paths of requests, normalised for comparison.
//!
//! Servers differ in the decoding before routing. The decoding of any server is done here:
//! percent-encoding once, dot segments, empty segments ([RFC 3986 §6.2.2][rfc]); paths still
//! ambiguous afterwards are marked.
//!
//! [rfc]: https://www.rfc-editor.org/rfc/rfc3986#section-6.2.2

use crate::dialect::percent_decode;

/// A path in comparable form.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Path {
    segments: Vec<String>,
    odd: bool,
    plain: bool,
}

impl Path {
    /// Maximum number of segments read; a longer path is odd.
    const LIMIT: usize = 64;

    /// Normalises a path. `sent`: the path of the request line, without query.
    pub(crate) fn normalise(sent: &str) -> Self {
        let decoded = percent_decode(sent);
        let strange =
            |char: char| char.is_control() || matches!(char, '\\' | '%' | ';' | '\u{fffd}');
        let mut path = Self { odd: decoded.contains(strange), ..Self::default() };
        for segment in decoded.split('/') {
            match segment {
                "" => {}
                "." => path.odd = true,
                ".." => {
                    path.odd = true;
                    path.segments.pop();
                }
                segment if path.segments.len() < Self::LIMIT => {
                    path.segments.push(segment.to_owned());
                }
                _ => path.odd = true,
            }
        }
        let slashes = |text: &str| text.bytes().filter(|it| *it == b'/').count();
        path.plain = !path.odd && slashes(sent) == slashes(&decoded);
        path
    }

    pub(crate) fn segments(&self) -> impl Iterator<Item = &str> {
        self.segments.iter().map(String::as_str)
    }

    /// Returns whether servers read the path differently: the path has dot segments, is encoded
    /// twice, or holds characters cut by some servers.
    pub(crate) fn is_odd(&self) -> bool {
        self.odd
    }

    /// Returns whether the segments are the same with and without decoding.
    pub(crate) fn is_plain(&self) -> bool {
        self.plain
    }

    /// Returns the path in lower case, for servers ignoring case.
    pub(crate) fn lower(&self) -> Self {
        let segments = self.segments.iter().map(|it| it.to_ascii_lowercase()).collect();
        Self { segments, ..*self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(sent: &str, segments: &str, odd: bool, plain: bool) {
        let path = Path::normalise(sent);
        let joined = path.segments().collect::<Vec<_>>().join("|");
        assert_eq!((joined.as_str(), path.is_odd(), path.is_plain()), (segments, odd, plain));
    }

    #[test]
    fn every_spelling_of_a_path_is_one_path_and_what_reads_in_two_ways_is_marked() {
        check("/v1/embeddings", "v1|embeddings", false, true);
        check("//v1///embeddings/", "v1|embeddings", false, true);
        check("/v1/%65mbeddings", "v1|embeddings", false, true);
        check("/v1%2Fembeddings", "v1|embeddings", false, false);
        check("/v1/embeddings/.", "v1|embeddings", true, false);
        check("/v1/files/%2e%2e/embeddings", "v1|embeddings", true, false);
        check("/../v1/embeddings", "v1|embeddings", true, false);
        check("/v1/%2565mbeddings", "v1|%65mbeddings", true, false);
        check("/v1/embeddings;a=b", "v1|embeddings;a=b", true, false);
        check("/v1/embeddings%00", "v1|embeddings\0", true, false);
    }
}
