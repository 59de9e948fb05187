//! Bytes as hexadecimal digits, by table.

/// The hexadecimal digits.
const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// Returns lower-case hexadecimal digits, two for each byte.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.extend(digits(*byte));
    }
    text
}

fn digits(byte: u8) -> [char; 2] {
    let digit = |of: u8| DIGITS.get(usize::from(of)).map_or('0', |digit| char::from(*digit));
    [digit(byte >> 4), digit(byte & 0xf)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_its_two_digits() {
        for byte in 0..=u8::MAX {
            assert_eq!(hex(&[byte]), format!("{byte:02x}"));
        }
        assert_eq!(hex(&[]), "");
    }
}
