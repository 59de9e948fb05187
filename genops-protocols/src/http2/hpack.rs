//! HPACK decoder ([RFC 7541][rfc]), tolerant of an unseen beginning.
//!
//! If a connection was joined midway, or header blocks are missing, the older entries of the
//! dynamic table are unknown. An index of an unknown entry yields a field with `None` for name or
//! value: unknown stays unknown, and never becomes another field. Entries added since are counted
//! from the newest, and stay right whatever came before.
//!
//! [rfc]: https://www.rfc-editor.org/rfc/rfc7541

use std::collections::VecDeque;

use httlib_huffman::DecoderSpeed;

/// Failure to decode a block. The data after the failure is unknown too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

type Text = Option<Box<[u8]>>;

/// Decoding context of a direction.
#[derive(Debug)]
pub(crate) struct Decoder {
    /// Newest first.
    table: VecDeque<(Text, Text)>,
    /// Sum of the sizes of entries, as counted by RFC 7541 §4.1.
    size: usize,
    /// Current size limit of the peer's table.
    limit: usize,
    /// Size allowed by the settings.
    allowed: usize,
    scratch: Vec<u8>,
}

impl Decoder {
    /// Maximum bytes of table kept, whatever the settings allow; entries beyond count as unknown.
    pub(crate) const TABLE_LIMIT: usize = 12 << 10;
    /// Size added to each entry by §4.1.
    const OVERHEAD: usize = 32;
    /// Table size before any settings of the peer.
    const DEFAULT: usize = 4096;

    pub(crate) fn new(from_start: bool) -> Self {
        // Unseen settings may allow more than the default. Keeping too many entries is harmless,
        // because the peer does not name dropped entries.
        let limit = if from_start { Self::DEFAULT } else { Self::TABLE_LIMIT };
        Self { table: VecDeque::new(), size: 0, limit, allowed: limit, scratch: Vec::new() }
    }

    /// Forgets the table after missing header blocks: the indexes of old entries are unknown.
    pub(crate) fn forget(&mut self) {
        self.table.clear();
        self.size = 0;
        self.limit = Self::TABLE_LIMIT;
    }

    /// Takes `SETTINGS_HEADER_TABLE_SIZE` of the receiver.
    pub(crate) fn allow(&mut self, bytes: u32) {
        self.allowed = usize::try_from(bytes).unwrap_or(usize::MAX).min(Self::TABLE_LIMIT);
        if self.allowed < self.limit {
            self.limit = self.allowed;
            self.evict();
        }
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.size + self.table.capacity() * size_of::<(Text, Text)>() + self.scratch.capacity()
    }

    /// Decodes a header block, field by field; `None` is an unknown name or value.
    pub(crate) fn decode(
        &mut self,
        mut block: &[u8],
        mut field: impl FnMut(Option<&[u8]>, Option<&[u8]>),
    ) -> Result<(), Malformed> {
        while let Some(&first) = block.first() {
            if first & 0x80 != 0 {
                let index = integer(&mut block, 7)?;
                self.indexed(index, &mut field)?;
            } else if first & 0xe0 == 0x20 {
                let size = integer(&mut block, 5)?;
                self.limit = size.min(Self::TABLE_LIMIT);
                self.evict();
            } else {
                let keep = first & 0x40 != 0;
                let index = integer(&mut block, if keep { 6 } else { 4 })?;
                let name =
                    if index == 0 { Some(self.string(&mut block)?) } else { self.name(index)? };
                let value = self.string(&mut block)?;
                field(name.as_deref(), Some(&value));
                if keep {
                    self.insert(name, Some(value));
                }
            }
        }
        Ok(())
    }

    fn indexed(
        &self,
        index: usize,
        field: &mut impl FnMut(Option<&[u8]>, Option<&[u8]>),
    ) -> Result<(), Malformed> {
        let index = index.checked_sub(1).ok_or(Malformed)?;
        if let Some((name, value)) = STATIC.get(index) {
            field(Some(name.as_bytes()), Some(value.as_bytes()));
        } else {
            match self.table.get(index - STATIC.len()) {
                Some((name, value)) => field(name.as_deref(), value.as_deref()),
                None => field(None, None),
            }
        }
        Ok(())
    }

    fn name(&self, index: usize) -> Result<Text, Malformed> {
        let index = index.checked_sub(1).ok_or(Malformed)?;
        Ok(match STATIC.get(index) {
            Some((name, _)) => Some(name.as_bytes().into()),
            None => self.table.get(index - STATIC.len()).and_then(|(name, _)| name.clone()),
        })
    }

    fn string(&mut self, block: &mut &[u8]) -> Result<Box<[u8]>, Malformed> {
        let coded = block.first().ok_or(Malformed)? & 0x80 != 0;
        let len = integer(block, 7)?;
        let (text, rest) = block.split_at_checked(len).ok_or(Malformed)?;
        *block = rest;
        if !coded {
            return Ok(text.into());
        }
        self.scratch.clear();
        httlib_huffman::decode(text, &mut self.scratch, DecoderSpeed::FourBits)
            .map_err(|_| Malformed)?;
        Ok(self.scratch.as_slice().into())
    }

    fn insert(&mut self, name: Text, value: Text) {
        self.size += entry_size(&name, &value);
        self.table.push_front((name, value));
        self.evict();
    }

    fn evict(&mut self) {
        while self.size > self.limit {
            let Some((name, value)) = self.table.pop_back() else { break };
            self.size -= entry_size(&name, &value);
        }
    }
}

fn entry_size(name: &Text, value: &Text) -> usize {
    let len = |text: &Text| text.as_ref().map_or(0, |text| text.len());
    len(name) + len(value) + Decoder::OVERHEAD
}

/// Reads an integer with a prefix of `bits` bits (§5.1).
fn integer(block: &mut &[u8], bits: u32) -> Result<usize, Malformed> {
    let mask = (1_u8 << bits) - 1;
    let (&first, mut rest) = block.split_first().ok_or(Malformed)?;
    let mut value = usize::from(first & mask);
    if first & mask == mask {
        let mut shift = 0;
        loop {
            let (&byte, after) = rest.split_first().ok_or(Malformed)?;
            rest = after;
            if shift > 21 {
                return Err(Malformed);
            }
            value += usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
    }
    *block = rest;
    Ok(value)
}

/// The static table (Appendix A).
const STATIC: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(decoder: &mut Decoder, hex: &str) -> Vec<String> {
        let digits: Vec<char> = hex.chars().filter(|it| !it.is_whitespace()).collect();
        let bytes: Vec<u8> = digits
            .chunks(2)
            .map(|pair| u8::from_str_radix(&String::from_iter(pair), 16).expect("hex"))
            .collect();
        let mut fields = Vec::new();
        let shown =
            |text: Option<&[u8]>| text.map_or("?".into(), String::from_utf8_lossy).to_string();
        decoder
            .decode(&bytes, |name, value| fields.push(format!("{}: {}", shown(name), shown(value))))
            .expect("well formed");
        fields
    }

    /// RFC 7541 Appendix C.4: requests with Huffman coding.
    #[test]
    fn requests_of_the_appendix_decode() {
        let mut decoder = Decoder::new(true);
        let first = decode(&mut decoder, "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff");
        assert_eq!(
            first,
            [":method: GET", ":scheme: http", ":path: /", ":authority: www.example.com"]
        );
        let second = decode(&mut decoder, "8286 84be 5886 a8eb 1064 9cbf");
        assert_eq!(second[3..], [":authority: www.example.com", "cache-control: no-cache"]);
        let third =
            decode(&mut decoder, "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf");
        assert_eq!(
            third[2..],
            [":path: /index.html", ":authority: www.example.com", "custom-key: custom-value"]
        );
    }

    /// RFC 7541 Appendix C.6: responses, with evictions from a table of 256 bytes.
    #[test]
    fn responses_of_the_appendix_decode() {
        let mut decoder = Decoder::new(true);
        decoder.allow(256);
        decode(
            &mut decoder,
            "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 \
             2d1b ff6e 919d 29ad 1718 63c7 8f0b 97c8 e9ae 82ae 43d3",
        );
        let second = decode(&mut decoder, "4883 640e ffc1 c0bf");
        assert_eq!(second[0], ":status: 307");
        assert_eq!(second[3], "location: https://www.example.com");
        assert_eq!(decoder.size, 222);
    }

    #[test]
    fn an_entry_from_before_joining_stays_unknown() {
        let mut decoder = Decoder::new(false);
        // Indexes 62 and 63 belong to an unseen past; then a new entry becomes index 62.
        assert_eq!(decode(&mut decoder, "be bf"), ["?: ?", "?: ?"]);
        assert_eq!(decode(&mut decoder, "4003 666f 6f03 6261 72"), ["foo: bar"]);
        assert_eq!(decode(&mut decoder, "be bf"), ["foo: bar", "?: ?"]);
        // A known value under an unknown name.
        assert_eq!(decode(&mut decoder, "7f00 0362 617a"), ["?: baz"]);
        assert_eq!(decode(&mut decoder, "bf"), ["foo: bar"]);
    }
}
