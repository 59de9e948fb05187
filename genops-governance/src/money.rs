//! Money as integers: nano-USD in accounts, pico-USD for a token; a double only in telemetry.

/// Nano-USD in a USD.
pub const NANO: i64 = 1_000_000_000;

/// An amount of nano-USD as the double that telemetry wants, rounded to the nearest.
#[must_use]
pub fn to_usd(nano: i64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "exact to 2^53 nano-USD, 9 million USD")]
    let nano = nano as f64;
    #[expect(clippy::cast_precision_loss, reason = "10^9 is exact")]
    let unit = NANO as f64;
    nano / unit
}

/// A configured amount of USD as nano-USD.
///
/// # Errors
///
/// A sentence, for an amount that is not a number, below zero, or above 9,000,000,000 USD.
pub fn from_usd(usd: f64) -> Result<i64, String> {
    scaled(usd, 1e9, 9e9)
}

/// A configured price in USD for a million tokens as pico-USD for one.
///
/// # Errors
///
/// A sentence, for a price that is not a number, below zero, or above 1,000,000 USD.
pub fn pico_per_token(usd_per_million: f64) -> Result<u64, String> {
    scaled(usd_per_million, 1e6, 1e6).map(i64::unsigned_abs)
}

fn scaled(value: f64, scale: f64, most: f64) -> Result<i64, String> {
    if !value.is_finite() {
        return Err("not a number".to_owned());
    }
    if value < 0.0 {
        return Err(format!("{value} is below zero"));
    }
    if value > most {
        return Err(format!("{value} is above the largest amount, {most}"));
    }
    #[expect(clippy::cast_possible_truncation, reason = "bounded above, at most 9e18")]
    let scaled = (value * scale).round() as i64;
    Ok(scaled)
}

/// An amount of nano-USD in words: `0.0125`, `50`, `-0.000000001`.
#[must_use]
pub fn format_usd(nano: i64) -> String {
    let (sign, size) = (if nano < 0 { "-" } else { "" }, nano.unsigned_abs());
    let unit = NANO.unsigned_abs();
    let fraction = format!("{:09}", size % unit);
    let fraction = fraction.trim_end_matches('0');
    let point = if fraction.is_empty() { "" } else { "." };
    format!("{sign}{}{point}{fraction}", size / unit)
}
