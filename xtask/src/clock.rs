//! Times of single tests, taken while a test program writes its lines one test at a time.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::time::{Duration, Instant};

/// Tests named at the end of a run.
const SLOWEST: usize = 10;

/// Follows the output of a test program.
#[derive(Debug)]
pub(crate) struct Clock {
    log: Option<File>,
    line: Vec<u8>,
    since: Instant,
    /// The running test.
    test: Option<String>,
    times: Times,
}

/// Duration of each test, in order.
#[derive(Debug, Default)]
pub(crate) struct Times(Vec<(String, Duration)>);

impl Clock {
    /// Begins to follow the file written by the program.
    pub(crate) fn start(log: &Path) -> Self {
        let (log, line, times) = (File::open(log).ok(), Vec::new(), Times::default());
        Self { log, line, since: Instant::now(), test: None, times }
    }

    /// Takes what was written since the last call.
    pub(crate) fn tick(&mut self) {
        let mut news = Vec::new();
        // A log that can't be read costs the times alone.
        let _unread = self.log.as_mut().map(|log| log.read_to_end(&mut news));
        for byte in news {
            if byte != b'\n' {
                self.line.push(byte);
                continue;
            }
            let line = std::mem::take(&mut self.line);
            self.take(&String::from_utf8_lossy(&line));
        }
    }

    /// Takes a line. What a test's processes print stands between its name and its result.
    fn take(&mut self, line: &str) {
        if line.starts_with("running ") {
            self.since = Instant::now();
        }
        let rest = line.strip_prefix("test ").and_then(|it| it.split_once(" ... "));
        if let Some((name, _)) = rest {
            self.test = Some(name.to_owned());
        }
        if is_result(rest.map_or(line, |(_, rest)| rest))
            && let Some(test) = self.test.take()
        {
            self.times.0.push((test, self.since.elapsed()));
            self.since = Instant::now();
        }
    }

    /// Returns the times.
    pub(crate) fn end(mut self) -> Times {
        self.tick();
        self.times
    }
}

/// Returns whether the text is the result of a test.
fn is_result(text: &str) -> bool {
    ["ok", "FAILED", "ignored"].contains(&text)
}

impl Times {
    /// Adds the times of another run.
    pub(crate) fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// Describes the slowest tests, and the time of each module.
    pub(crate) fn report(&self) -> Vec<String> {
        let mut slowest: Vec<_> = self.0.iter().collect();
        slowest.sort_by_key(|(_, took)| std::cmp::Reverse(*took));
        let slowest = slowest.iter().take(SLOWEST);
        let mut lines: Vec<_> =
            slowest.map(|(name, took)| format!("{:>6.1} s  {name}", took.as_secs_f32())).collect();
        let mut modules: BTreeMap<&str, Duration> = BTreeMap::new();
        for (name, took) in &self.0 {
            *modules.entry(name.split("::").next().unwrap_or(name)).or_default() += *took;
        }
        let mut modules: Vec<_> = modules.into_iter().collect();
        modules.sort_by_key(|(_, took)| std::cmp::Reverse(*took));
        let minutes =
            |(name, took): (&str, Duration)| format!("{name} {:.1}", took.as_secs_f32() / 60.0);
        if !modules.is_empty() {
            let modules: Vec<_> = modules.into_iter().map(minutes).collect();
            lines.push(format!("minutes: {}", modules.join(", ")));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{Clock, Duration, Times};

    #[test]
    fn each_test_is_timed_whatever_its_processes_print() {
        let mut clock = Clock::start(Path::new("/nowhere"));
        let lines = [
            "running 3 tests",
            "test a::b ... ok",
            "test a::c ... genops: nothing is left",
            "that is ok",
            "FAILED",
            "ok",
            "test a::d ... ok",
            "test result: ok. 3 passed",
        ];
        for line in lines {
            clock.take(line);
        }
        let names: Vec<_> = clock.end().0.into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["a::b", "a::c", "a::d"]);
    }

    #[test]
    fn the_slowest_tests_and_each_module_are_named() {
        let of = |name: &str, seconds| (name.to_owned(), Duration::from_secs(seconds));
        let times = Times(vec![of("a::x", 30), of("b::y", 60), of("a::z", 60)]);
        let lines = ["  60.0 s  b::y", "  60.0 s  a::z", "  30.0 s  a::x", "minutes: a 1.5, b 1.0"];
        assert_eq!(times.report(), lines);
        assert!(Times::default().report().is_empty());
    }
}
