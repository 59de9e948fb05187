//! Enforcement without a running agent: place and lifetime of pinned programs and maps.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde_saphyr::Spanned;

use super::Refusal;

/// Place for programs and maps to outlive the agent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum PinDirectory {
    /// In enforce mode, the first safe directory of the usual places; no pins while only observing.
    #[default]
    Auto,
    /// No pins: programs and maps end with the agent.
    None,
    /// The given directory; the agent does not start without it.
    Path(PathBuf),
}

impl fmt::Display for PinDirectory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::None => f.write_str("none"),
            Self::Path(path) => path.display().fmt(f),
        }
    }
}

/// Reads `pin_directory`.
pub(super) fn pin_directory(given: Option<Spanned<String>>) -> Result<PinDirectory, Refusal> {
    let Some(given) = given else { return Ok(PinDirectory::Auto) };
    match given.value.as_str() {
        "auto" => Ok(PinDirectory::Auto),
        "none" => Ok(PinDirectory::None),
        path if path.starts_with('/') => Ok(PinDirectory::Path(PathBuf::from(path))),
        other => {
            let message = format!(
                "`pin_directory`: `{other}` is not `auto`, `none` or a path that begins with `/`"
            );
            Err((given.referenced.line(), message))
        }
    }
}

/// Longest time for a refusal to outlive the agent.
const LONGEST: Duration = Duration::from_hours(30 * 24);

/// Reads `pinned_for`.
pub(super) fn pinned_for(given: Option<Spanned<String>>) -> Result<Duration, Refusal> {
    let Some(given) = given else { return Ok(Duration::from_hours(1)) };
    let found = duration(&given.value).filter(|it| !it.is_zero() && *it <= LONGEST);
    found.ok_or_else(|| {
        let text = &given.value;
        let message = format!(
            "`pinned_for`: `{text}` is not a time between 1s and 30d, such as 90s, 15m, 1h or 2d"
        );
        (given.referenced.line(), message)
    })
}

/// A whole number and its unit.
fn duration(text: &str) -> Option<Duration> {
    let units = [("s", 1), ("m", 60), ("h", 3_600), ("d", 86_400)];
    let (number, seconds) =
        units.iter().find_map(|(unit, seconds)| Some((text.strip_suffix(unit)?, seconds)))?;
    if !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = number.parse().ok()?;
    Some(Duration::from_secs(number.checked_mul(*seconds)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_a_whole_number_and_a_unit() {
        let seconds = |text| duration(text).map(|it| it.as_secs());
        assert_eq!(seconds("45s"), Some(45));
        assert_eq!(seconds("7m"), Some(420));
        assert_eq!(seconds("3h"), Some(10_800));
        assert_eq!(seconds("2d"), Some(172_800));
        for wrong in ["", "5", "h", "-1h", "+1h", "1.5h", "1 h", "1w", "99999999999999999999d"] {
            assert_eq!(seconds(wrong), None, "{wrong}");
        }
    }
}
