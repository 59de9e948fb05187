//! Money as integers: nano-USD in accounts, pico-USD for a token; doubles only in telemetry.

/// Nano-USD in a USD.
pub const NANO: i64 = 1_000_000_000;

/// Converts nano-USD to a double in USD for telemetry, rounded to the nearest.
#[must_use]
pub fn to_usd(nano: i64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "exact to 2^53 nano-USD, 9 million USD")]
    let nano = nano as f64;
    #[expect(clippy::cast_precision_loss, reason = "10^9 is exact")]
    let unit = NANO as f64;
    nano / unit
}

/// Converts a configured amount of USD to nano-USD.
///
/// # Errors
///
/// A sentence, for an amount that is not a number, below zero, or above 9,000,000,000 USD.
pub fn from_usd(usd: f64) -> Result<i64, String> {
    scaled(usd, 1e9, 9e9)
}

/// Converts a configured price in USD for a million tokens to pico-USD for a token.
///
/// # Errors
///
/// A sentence, for a price that is not a number, below zero, or above 1,000,000 USD.
pub fn pico_per_token(usd_per_million: f64) -> Result<u64, String> {
    scaled(usd_per_million, 1e6, 1e6).map(i64::unsigned_abs)
}

/// Converts a configured price in USD for a second to pico-USD for a second.
///
/// # Errors
///
/// A sentence, for a price that is not a number, below zero, or above 1,000,000 USD.
pub fn pico_per_second(usd: f64) -> Result<u64, String> {
    scaled(usd, 1e12, 1e6).map(i64::unsigned_abs)
}

/// Converts a configured number of seconds to nanoseconds.
///
/// # Errors
///
/// A sentence, for a number that is not finite, below zero, or above 9,000,000,000 s.
pub fn from_seconds(seconds: f64) -> Result<i64, String> {
    scaled(seconds, 1e9, 9e9)
}

/// Converts the maximum duration of a request in whole seconds to nanoseconds.
///
/// # Errors
///
/// A sentence, for a duration of zero, or above the range of accounts (9,000,000,000 s).
pub fn nanoseconds(seconds: u64) -> Result<i64, String> {
    let known = i64::try_from(seconds).ok().filter(|it| *it > 0 && *it <= 9 * NANO);
    known.map(|it| it * NANO).ok_or_else(|| format!("{seconds} is not from 1 to 9000000000"))
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

/// Formats nano-USD in words: `0.0125`, `50`, `-0.000000001`.
#[must_use]
pub fn format_usd(nano: i64) -> String {
    let (sign, size) = (if nano < 0 { "-" } else { "" }, nano.unsigned_abs());
    let unit = NANO.unsigned_abs();
    let fraction = format!("{:09}", size % unit);
    let fraction = fraction.trim_end_matches('0');
    let point = if fraction.is_empty() { "" } else { "." };
    format!("{sign}{}{point}{fraction}", size / unit)
}
