//! Streaming decoder of base64 ([RFC 4648 §4 and §5][rfc]).
//!
//! Bytes outside the alphabet are skipped: white space, padding and others.
//!
//! [rfc]: https://www.rfc-editor.org/rfc/rfc4648#section-4

/// Decodes a string through pieces of any size.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Base64 {
    bits: u32,
    bit_count: u32,
}

impl Base64 {
    /// Bytes handed out at a time.
    const BATCH: usize = 768;

    pub(crate) fn feed(&mut self, text: &[u8], mut out: impl FnMut(&[u8])) {
        let mut batch = [0_u8; Self::BATCH];
        for part in text.chunks(Self::BATCH / 3 * 4) {
            let mut len = 0;
            for &byte in part {
                let Some(sextet) = sextet(byte) else { continue };
                self.bits = self.bits << 6 | sextet;
                self.bit_count += 6;
                if self.bit_count >= 8 {
                    self.bit_count -= 8;
                    if let Some(slot) = batch.get_mut(len) {
                        *slot = u8::try_from(self.bits >> self.bit_count & 0xff).unwrap_or(0);
                        len += 1;
                    }
                }
            }
            out(batch.get(..len).unwrap_or_default());
        }
    }
}

fn sextet(byte: u8) -> Option<u32> {
    let value = match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' | b'-' => 62,
        b'/' | b'_' => 63,
        _ => return None,
    };
    Some(u32::from(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_string_decodes_alike_however_it_is_cut() {
        let text = b"eyJ1c2FnZSI6eyJpbnB1dCI6MX19";
        for at in 0..=text.len() {
            let (head, tail) = text.split_at(at);
            let (mut decoder, mut out) = (Base64::default(), Vec::new());
            for part in [head, tail] {
                decoder.feed(part, |bytes| out.extend_from_slice(bytes));
            }
            assert_eq!(out, br#"{"usage":{"input":1}}"#, "cut at byte {at}");
        }
    }
}
