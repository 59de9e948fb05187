//! USD on the command line: decimal text to and from integers of a billionth. No floats.

/// Billionths in a dollar.
const NANO: i64 = 1_000_000_000;

/// Parses `12.5` as nano-USD; `None` if the text is no amount, or does not fit.
pub(super) fn parse_usd(text: &str) -> Option<i64> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
    let numeric = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if !numeric(whole) || !numeric(fraction) || fraction.len() > 9 {
        return None;
    }
    let whole: i64 = whole.parse().ok()?;
    let fraction: i64 = format!("{fraction:0<9}").parse().ok()?;
    whole.checked_mul(NANO)?.checked_add(fraction)?.checked_mul(sign)
}

/// Formats nano-USD as decimal text, exactly, with at least two decimals.
pub(super) fn usd(nano: i64) -> String {
    let sign = if nano < 0 { "-" } else { "" };
    let nano = nano.unsigned_abs();
    let (whole, fraction) = (nano / NANO.unsigned_abs(), nano % NANO.unsigned_abs());
    let fraction = format!("{fraction:09}");
    let decimals = fraction.trim_end_matches('0').len().max(2);
    format!("{sign}{whole}.{}", fraction.get(..decimals).unwrap_or(&fraction))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_and_written_exactly() {
        for (text, nano, back) in [
            ("25", 25_000_000_000, "25.00"),
            ("0.000000001", 1, "0.000000001"),
            ("-1.5", -1_500_000_000, "-1.50"),
            ("9223372036.854775807", i64::MAX, "9223372036.854775807"),
        ] {
            assert_eq!(parse_usd(text), Some(nano), "{text}");
            assert_eq!(usd(nano), back);
        }
    }

    #[test]
    fn what_is_no_amount_is_refused() {
        for text in ["", "-", "1.", ".5", "1e3", "1,5", "$5", "0.0000000001", "9223372036.9", "--1"]
        {
            assert_eq!(parse_usd(text), None, "{text}");
        }
    }
}
