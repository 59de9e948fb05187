//! Waiting times of the tests, scaled for machines of any speed.

use std::sync::OnceLock;
use std::time::Duration;

static SCALE: OnceLock<u32> = OnceLock::new();

/// Returns `duration` multiplied by `GENOPS_TEST_TIME_SCALE`, if set, for example in a guest
/// without hardware virtualisation.
#[must_use]
pub fn scaled(duration: Duration) -> Duration {
    let read = || std::env::var("GENOPS_TEST_TIME_SCALE").ok()?.parse().ok();
    duration.saturating_mul(*SCALE.get_or_init(|| read().unwrap_or(1)))
}
