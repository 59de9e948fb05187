//! Long commands with progress: name, duration, and the output on failure.

use std::fs::File;
use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use crate::clock::{Clock, Times};
use crate::workspace;

/// Interval between updates of a terminal's line.
const REDRAW: Duration = Duration::from_millis(200);
/// Interval between lines if there is no terminal.
const SIGN_OF_LIFE: Duration = Duration::from_mins(1);
/// Lines of output shown of a failed command.
const TAIL_LINES: usize = 400;

/// Output of a command, both streams together.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) succeeded: bool,
    pub(crate) output: String,
    /// Of a program that runs tests one at a time.
    pub(crate) times: Times,
}

/// Runs `command` to the end and returns the whole output; fails if the command does.
pub(crate) fn run(what: &str, command: &mut Command) -> anyhow::Result<String> {
    let Outcome { succeeded, output, .. } = attempt(what, command)?;
    ensure!(succeeded, "{what}: {} failed", command.get_program().display());
    Ok(output)
}

/// Runs `command` to the end. Progress takes a single line; on failure, the output is shown.
pub(crate) fn attempt(what: &str, command: &mut Command) -> anyhow::Result<Outcome> {
    let log = log_path(what)?;
    let file = File::create(&log).with_context(|| format!("{}", log.display()))?;
    command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
    let started = Instant::now();
    let program = command.get_program().display().to_string();
    let mut child = command.spawn().with_context(|| format!("cannot start {program}"))?;
    let progress = Progress::start(what);
    let mut clock = Clock::start(&log);
    let mut last_line = started;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        progress.tick(started.elapsed(), &mut last_line);
        clock.tick();
        std::thread::sleep(REDRAW);
    };
    let output = String::from_utf8_lossy(&std::fs::read(&log)?).into_owned();
    progress.end(status.success(), started.elapsed());
    if !status.success() {
        let lines: Vec<_> = output.lines().collect();
        for line in lines.iter().skip(lines.len().saturating_sub(TAIL_LINES)) {
            eprintln!("    {line}");
        }
        eprintln!("    {program} ended with {status}; all of its output is in {}", log.display());
    }
    Ok(Outcome { succeeded: status.success(), output, times: clock.end() })
}

/// Runs a check of the workspace as a step; the check is quick.
pub(crate) fn check(
    what: &str,
    check: impl FnOnce() -> anyhow::Result<Vec<String>>,
) -> anyhow::Result<()> {
    let started = Instant::now();
    let progress = Progress::start(what);
    let result = check().and_then(|complaints| crate::report(what, &complaints));
    progress.end(result.is_ok(), started.elapsed());
    result
}

/// Reports a skipped step, with the reason.
pub(crate) fn skip(what: &str, reason: &str) {
    eprintln!("{} {what}: {reason}", mark("skipped", "33"));
}

/// Returns the word in front of a failed step.
pub(crate) fn failed() -> String {
    mark("FAILED", "31")
}

fn log_path(what: &str) -> anyhow::Result<PathBuf> {
    let directory = workspace::cache().join("logs");
    std::fs::create_dir_all(&directory).with_context(|| format!("{}", directory.display()))?;
    let name: String = what
        .chars()
        .map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '-' })
        .collect();
    Ok(directory.join(format!("{name}.log")))
}

struct Progress<'a> {
    what: &'a str,
    terminal: bool,
}

impl<'a> Progress<'a> {
    fn start(what: &'a str) -> Self {
        let terminal = std::io::stderr().is_terminal();
        if !terminal {
            eprintln!("        {what} ...");
        }
        Self { what, terminal }
    }

    fn tick(&self, elapsed: Duration, last_line: &mut Instant) {
        let seconds = elapsed.as_secs();
        if self.terminal {
            eprint!("\r        {} {seconds} s", self.what);
            // A terminal without write access shows nothing anyway.
            drop(std::io::stderr().flush());
        } else if last_line.elapsed() >= SIGN_OF_LIFE {
            eprintln!("        {} {seconds} s", self.what);
            *last_line = Instant::now();
        }
    }

    fn end(&self, good: bool, elapsed: Duration) {
        let mark = if good { mark("ok", "32") } else { failed() };
        let clear = if self.terminal { "\r\x1b[K" } else { "" };
        eprintln!("{clear}{mark} {} ({:.1} s)", self.what, elapsed.as_secs_f32());
    }
}

/// Returns a word, in colour on a terminal, right-aligned either way.
fn mark(word: &str, colour: &str) -> String {
    if std::io::stderr().is_terminal() {
        format!("\x1b[{colour}m{word:>7}\x1b[0m")
    } else {
        format!("{word:>7}")
    }
}
