//! Messages about the time without an agent: the refusals going on, and the end of them.

use std::time::Duration;

use genops_governance::OnTimeout;

use crate::{
    config::{Config, PinDirectory},
    kernel::Pins,
};

/// Command to end the programs outliving the agent.
const UNPIN: &str = "`genops-agent unpin`";

/// The last line of an enforcing agent.
pub(crate) fn farewell(config: &Config, pins: Option<&Pins>) -> Option<String> {
    match pins {
        Some(pins) => Some(stays(config, &pins.directory().display().to_string())),
        None if config.enforces() => {
            Some("stopped; enforcement has ended with the agent: nothing is refused".to_owned())
        }
        None => None,
    }
}

/// The programs left in the kernel, the duration, and the way to end them.
fn stays(config: &Config, directory: &str) -> String {
    let what = match config.on_timeout {
        OnTimeout::Closed => {
            "every request of an enforced process to a provider is refused".to_owned()
        }
        OnTimeout::Open => format!(
            "what was refused to a process outright stays refused, for {} at most",
            shown(config.pinned_for)
        ),
    };
    format!(
        "stopped; the kernel programs in {directory} stay: {what}, until an agent runs again or {UNPIN} ends it"
    )
}

/// Warning about an enforcing agent without programs to leave behind.
pub(crate) fn remark(config: &Config, pins: Option<&Pins>, unkept: Option<&str>) -> Option<String> {
    if !config.enforces() || pins.is_some() {
        return None;
    }
    let why = match (unkept, &config.pin_directory) {
        (Some(why), _) => why.to_owned(),
        (None, PinDirectory::None) => "`pin_directory` is `none`".to_owned(),
        (None, _) => "`pin_directory` counts from the next start on".to_owned(),
    };
    Some(ends(&why))
}

/// The message that nothing outlives the agent, with the reason.
pub(crate) fn ends(why: &str) -> String {
    format!("enforcement ends with the agent: {why}")
}

/// The line of `doctor` for an agent of the configuration.
pub(crate) fn outlook(config: &Config, directory: &str) -> String {
    stays(config, directory).replacen("stopped;", "when the agent stops,", 1)
}

/// A time in the largest unit with a whole number.
fn shown(time: Duration) -> String {
    let seconds = time.as_secs();
    let units = [("d", 86_400), ("h", 3_600), ("m", 60)];
    let whole = units.iter().find(|(_, unit)| seconds.is_multiple_of(*unit));
    whole.map_or_else(|| format!("{seconds}s"), |(name, unit)| format!("{}{name}", seconds / unit))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it does not hold")]

    use std::path::Path;

    use expect_test::expect;

    use super::*;

    fn config(text: &str) -> Config {
        Config::parse(Path::new("a.yaml"), text).unwrap()
    }

    #[test]
    fn what_stays_is_said_with_what_ends_it() {
        let open = config("mode: enforce\npinned_for: 90m\n");
        expect!["stopped; the kernel programs in /d stay: what was refused to a process outright stays refused, for 90m at most, until an agent runs again or `genops-agent unpin` ends it"]
            .assert_eq(&stays(&open, "/d"));
        let closed = config("mode: enforce\non_timeout: closed\n");
        expect!["when the agent stops, the kernel programs in /d stay: every request of an enforced process to a provider is refused, until an agent runs again or `genops-agent unpin` ends it"]
            .assert_eq(&outlook(&closed, "/d"));
    }

    #[test]
    fn an_agent_that_leaves_nothing_says_so_where_it_enforces() {
        let enforce = config("mode: enforce\npin_directory: none\n");
        expect!["enforcement ends with the agent: `pin_directory` is `none`"]
            .assert_eq(&remark(&enforce, None, None).unwrap());
        assert_eq!(remark(&config("mode: observe\n"), None, None), None);
        assert_eq!(farewell(&config("mode: observe\n"), None), None);
        assert!(farewell(&enforce, None).unwrap().contains("ended with the agent"));
    }

    #[test]
    fn a_time_is_shown_in_its_largest_whole_unit() {
        let of = |seconds| shown(Duration::from_secs(seconds));
        assert_eq!([of(3_600), of(5_400), of(172_800), of(61)], ["1h", "90m", "2d", "61s"]);
    }
}
