//! All tests, the fast tests first, with a last line counting passed, failed and skipped tests.

use std::path::Path;
use std::process::Command;

use anyhow::ensure;

use crate::clock::Times;
use crate::kernels::Kernels;
use crate::setup::Toolchain;
use crate::steps::{self, Outcome};
use crate::{fuzz, licences, setup, tidy, vm, workspace};

/// Duration for each fuzz target, in seconds.
const FUZZ_SECONDS: u32 = 10;
/// Lines of a failed test's output repeated at the end.
const FAILURE_LINES: usize = 20;
const FAILURE_COLUMNS: usize = 400;
const ONE_AT_A_TIME: &str = "--test-threads=1";
/// A fixed seed gives the same result twice; `cargo xtask fuzz` explores.
const FUZZ_SEED: u32 = 1;

/// Run every test.
#[derive(Debug, clap::Args)]
pub(crate) struct Test {
    /// Leave out fuzzing.
    #[arg(long)]
    no_fuzz: bool,
    /// Leave out the tests on this host's kernel.
    #[arg(long)]
    no_host: bool,
    /// Leave out the virtual machines with other kernels.
    #[arg(long)]
    no_vm: bool,
}

impl Test {
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        let toolchain = setup::toolchain()?;
        setup::clients()?;
        setup::machines()?;
        let mut tally = Tally::default();
        fast(&mut tally);
        kernel_lints(&mut tally, &toolchain);
        if self.no_fuzz {
            tally.skip("fuzzing", "--no-fuzz was given");
        } else {
            fuzz_all(&mut tally);
        }
        if tally.note(workspace::build_release(&toolchain)) {
            corpus(&mut tally);
            if self.no_host {
                tally.skip("tests on this kernel", "--no-host was given");
            } else {
                host(&mut tally);
            }
            if self.no_vm {
                tally.skip("tests on other kernels", "--no-vm was given");
            } else {
                other_kernels(&mut tally);
            }
        } else {
            tally.skip("corpus, tests on any kernel", "there is no agent to test");
        }
        tally.report()
    }
}

/// Runs the CI checks for any machine: no kernel, no privilege, no kernel compiler.
pub(crate) fn ci() -> anyhow::Result<()> {
    setup::clients()?;
    let mut tally = Tally::default();
    fast(&mut tally);
    tally.report()
}

fn fast(tally: &mut Tally) {
    let mut format = workspace::cargo();
    tally.command("formatting", format.args(["fmt", "--all", "--check"]));
    tally.note(steps::check("tidy", tidy::check));
    tally.note(steps::check("licences", licences::check));
    let mut clippy = workspace::cargo();
    clippy.env("AYA_BUILD_SKIP", "1").args([
        "clippy",
        "--locked",
        "--workspace",
        "--exclude",
        "genops-ebpf",
    ]);
    tally.command("lints", clippy.args(["--all-targets", "--", "--deny", "warnings"]));
    let mut unit = workspace::cargo();
    unit.env("AYA_BUILD_SKIP", "1").args([
        "test",
        "--locked",
        "--no-fail-fast",
        "--",
        "--show-output",
    ]);
    tally.tests("tests that need no kernel", &mut unit);
}

/// Runs clippy on the kernel programs, for the kernel programs' target.
fn kernel_lints(tally: &mut Tally, toolchain: &Toolchain) {
    let what = "lints of the kernel programs";
    if !setup::works("rustup", &["run", &toolchain.name, "cargo", "clippy", "-V"]) {
        return tally.skip(what, &format!("the toolchain `{}` has no clippy", toolchain.name));
    }
    let mut clippy = Command::new("rustup");
    clippy.args([
        "run",
        &toolchain.name,
        "cargo",
        "clippy",
        "--locked",
        "--package",
        "genops-ebpf",
        "--bins",
    ]);
    clippy
        .args(["--release", "--target", "bpfel-unknown-none"])
        .arg("--target-dir")
        .arg(workspace::target().join("bpf-lints"));
    if toolchain.name == "nightly" {
        clippy.args(["-Z", "build-std=core"]);
    }
    // The cargo running the program must not choose the compiler.
    for variable in ["RUSTUP_TOOLCHAIN", "CARGO", "RUSTC", "AYA_BUILD_SKIP"] {
        clippy.env_remove(variable);
    }
    let architecture = format!("--cfg=bpf_target_arch=\"{}\"", std::env::consts::ARCH);
    clippy.env("CARGO_ENCODED_RUSTFLAGS", architecture).current_dir(workspace::root());
    tally.command(what, clippy.args(["--", "--deny", "warnings"]));
}

fn fuzz_all(tally: &mut Tally) {
    if let Some(reason) = fuzz::unavailable() {
        return tally.skip("fuzzing", &reason);
    }
    let targets = match fuzz::install().and_then(|()| fuzz::targets()) {
        Ok(targets) => targets,
        Err(error) => {
            tally.note(Err(error));
            return;
        }
    };
    if targets.is_empty() {
        return tally.skip("fuzzing", "there are no targets");
    }
    if tally.note(fuzz::build(&targets)) {
        for result in fuzz::run_all(targets, FUZZ_SECONDS, Some(FUZZ_SEED)) {
            tally.note(result);
        }
    }
}

/// Replays the corpus: real exchanges with labels, beside the repository on some machines.
fn corpus(tally: &mut Tally) {
    let corpus = workspace::root().join("../shared/corpus");
    if !corpus.exists() {
        return tally.skip("corpus", "../shared/corpus is not there");
    }
    tally.note(score(&corpus, "http1"));
}

fn score(corpus: &Path, name: &str) -> anyhow::Result<()> {
    let units = workspace::cache().join(format!("{name}.awus.jsonl"));
    let mut replay = Command::new(workspace::agent());
    replay.arg("replay").arg(corpus.join(format!("{name}.jsonl"))).args(["--output", "json"]);
    // Both streams are in the output; a unit is a JSON object.
    let output = steps::run(&format!("replay the corpus ({name})"), &mut replay)?;
    let lines: Vec<_> = output.lines().filter(|line| line.starts_with('{')).collect();
    std::fs::write(&units, lines.join("\n"))?;
    let mut score = Command::new("python3");
    score.arg(corpus.join("score.py")).arg(corpus.join(format!("{name}.labels.jsonl"))).arg(&units);
    for line in steps::run(&format!("score of {name}"), &mut score)?.lines() {
        eprintln!("        {line}");
    }
    Ok(())
}

fn host(tally: &mut Tally) {
    if !workspace::is_root() {
        return tally.skip("tests on this kernel", "they need root");
    }
    let mut host = workspace::cargo();
    host.env("GENOPS_AGENT", workspace::agent()).env("GENOPS_VENV", setup::venv());
    host.args(["test", "--locked", "--package", "genops-tests", "--no-fail-fast"]);
    // A single kernel: a test at a time.
    tally.tests("tests on this kernel", host.args(["--", ONE_AT_A_TIME, "--show-output"]));
}

/// Runs the selected tests of each kernel with a selection.
fn other_kernels(tally: &mut Tally) {
    if let Some(reason) = vm::unavailable() {
        return tally.skip("tests on other kernels", &reason);
    }
    let (kernels, program) = match Kernels::read().and_then(|it| Ok((it, std::env::current_exe()?)))
    {
        Ok(found) => found,
        Err(error) => {
            tally.note(Err(error));
            return;
        }
    };
    for kernel in kernels.all() {
        let what = format!("tests on Linux {}", kernel.line);
        if kernel.selection.is_empty() {
            let command = format!("cargo xtask vm --kernel {}", kernel.line);
            tally.skip(&what, &format!("`{command}` runs them"));
        } else if let Err(error) = kernel.fetch() {
            tally.skip(&what, &format!("{error:#}"));
        } else {
            let mut guest = Command::new(&program);
            tally
                .tests(&what, guest.args(["vm", "--kernel", &kernel.line]).args(&kernel.selection));
        }
    }
}

/// Numbers of passed, failed and skipped tests.
#[derive(Debug, Default)]
struct Tally {
    passed: usize,
    failed: usize,
    skipped: usize,
    /// Output of each failed test, repeated at the end of a long output.
    failures: Vec<String>,
    /// Of the tests on this host's kernel.
    times: Times,
}

impl Tally {
    /// Counts a step as a single test.
    fn note(&mut self, result: anyhow::Result<()>) -> bool {
        let good = result.is_ok();
        *(if good { &mut self.passed } else { &mut self.failed }) += 1;
        if let Err(error) = result {
            eprintln!("    {error:#}");
            self.failures.push(format!("{error:#}"));
        }
        good
    }

    fn command(&mut self, what: &str, command: &mut Command) -> bool {
        let result = steps::run(what, command).map(drop);
        self.note(result)
    }

    fn skip(&mut self, what: &str, reason: &str) {
        steps::skip(what, reason);
        self.skipped += 1;
    }

    /// Counts the tests of a `cargo test`. A test printing `skipped: REASON` is not counted as
    /// passed.
    fn tests(&mut self, what: &str, command: &mut Command) {
        let Outcome { succeeded, output, times } = match steps::attempt(what, command) {
            Ok(outcome) => outcome,
            Err(error) => {
                self.note(Err(error));
                return;
            }
        };
        let results = output.lines().filter_map(|line| line.strip_prefix("test result: "));
        let (mut passed, mut failed, mut skipped) = (0, 0, 0);
        for result in results {
            passed += count(result, " passed");
            failed += count(result, " failed");
            skipped += count(result, " ignored");
        }
        for reason in output.lines().filter_map(|line| line.strip_prefix("skipped: ")) {
            steps::skip(what, reason);
            passed = usize::saturating_sub(passed, 1);
            skipped += 1;
        }
        if !succeeded && failed == 0 {
            failed = 1; // It did not compile, or died.
            self.failures.push(format!("{what}: no test failed, but the command did"));
        }
        eprintln!("        {passed} passed, {failed} failed, {skipped} skipped");
        self.failures.extend(failures(&output));
        if command.get_args().any(|it| it == ONE_AT_A_TIME) {
            self.times.extend(times);
        }
        self.passed += passed;
        self.failed += failed;
        self.skipped += skipped;
    }

    /// Prints the failures and the last line; fails if a test did.
    #[expect(clippy::print_stdout, reason = "the result of the command")]
    fn report(&self) -> anyhow::Result<()> {
        let Self { passed, failed, skipped, failures, times } = self;
        for line in times.report() {
            eprintln!("        {line}");
        }
        for failure in failures {
            eprintln!("{} {}", steps::failed(), failure.replace('\n', "\n        "));
        }
        println!("{passed} passed, {failed} failed, {skipped} skipped");
        ensure!(*failed == 0, "not all tests passed");
        ensure!(*passed > 0, "no test was run");
        Ok(())
    }
}

/// Returns the output of each failed test of a `cargo test`, without the backtraces.
fn failures(output: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    // With `--show-output`, passed tests are printed in the same way in a separate section.
    let (mut failed, mut left) = (false, 0);
    for line in output.lines() {
        let name = line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----"));
        match (line, name) {
            ("failures:" | "successes:", _) => (failed, left) = (line == "failures:", 0),
            (_, Some(name)) if failed => {
                found.push(name.to_owned());
                left = FAILURE_LINES;
            }
            ("Stack backtrace:" | "stack backtrace:", _) => left = 0,
            _ if left > 0 && !line.is_empty() => {
                left -= 1;
                let start = line.chars().take(FAILURE_COLUMNS);
                if let Some(failure) = found.last_mut() {
                    failure.push('\n');
                    failure.extend(start);
                }
            }
            _ => {}
        }
    }
    found
}

/// Returns the number before `unit` in `12 passed; 0 failed; ..`.
fn count(result: &str, unit: &str) -> usize {
    let before = result.split(unit).next().filter(|before| before.len() < result.len());
    before.and_then(|before| before.rsplit(' ').next()?.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::{count, failures};

    #[test]
    fn a_failed_test_is_repeated_without_its_backtrace() {
        let output = "test a::good ... ok\ntest a::bad ... FAILED\n\nsuccesses:\n\n\
                      ---- a::good stdout ----\n12 of 12\n\nfailures:\n\n---- a::bad stdout ----\n  3 blows\n\
                      Error: a request took 9 s\n\nStack backtrace:\n   0: main\n\nfailures:\n    a::bad\n";
        assert_eq!(failures(output), ["a::bad\n  3 blows\nError: a request took 9 s"]);
    }

    #[test]
    fn counts_are_read_from_a_result_line() {
        let line =
            "ok. 12 passed; 3 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s";
        assert_eq!(
            [" passed", " failed", " ignored", " exploded"].map(|unit| count(line, unit)),
            [12, 3, 1, 0]
        );
    }
}
