//! Set-up, build, test and measurement commands of the workspace: `cargo xtask help`.
//!
//! Each command installs missing requirements, and nothing if all are present. The program knows
//! nothing of the assertions in the tests: adding a test never edits the program.

mod bench;
mod clock;
mod fuzz;
mod kernels;
mod licences;
mod prices;
mod setup;
mod steps;
mod test;
mod tidy;
mod vm;
mod workspace;

use std::process::ExitCode;

use clap::Parser;

/// Build, test and measure GenOps.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask")]
enum Command {
    /// Install the requirements of the build and the tests, and nothing if all are present.
    Setup,
    /// Build `target/release/genops-agent` with the kernel programs inside.
    Build,
    /// Run every test, the fast tests first; tests on this kernel need root.
    Test(test::Test),
    Vm(vm::Vm),
    /// Run formatting, lints, unit tests, tidy and licences, without kernel and privilege.
    Ci,
    /// Check the invariants of ARCHITECTURE.md, links, test names and wording in documents.
    Tidy,
    /// Check licences, sources and permitted dependencies (deny.toml).
    Licences,
    /// Renew the compiled-in prices from the package registry, and print the changes.
    Prices,
    /// Fuzz the decoders.
    Fuzz(fuzz::Fuzz),
    /// Show the main job on this host: an allowed call, a blocked call, a call over budget, and the
    /// evidence.
    Demo(Forwarded),
    /// Measure, part by part, beside floors and goals.
    Bench(bench::Bench),
}

/// A command of `genops-tests`, run after set-up and build.
#[derive(Debug, clap::Args)]
struct Forwarded {
    /// Options of the forwarded command; `--help` shows the options.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

fn main() -> ExitCode {
    match Command::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

impl Command {
    fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Setup => {
                setup::toolchain()?;
                setup::clients()?;
                setup::machines()
            }
            Self::Build => workspace::build_release(&setup::toolchain()?),
            Self::Test(test) => test.run(),
            Self::Vm(vm) => vm.run(),
            Self::Ci => test::ci(),
            Self::Tidy => report("tidy", &tidy::check()?),
            Self::Licences => report("licences", &licences::check()?),
            Self::Prices => prices::renew(),
            Self::Fuzz(fuzz) => fuzz.run(),
            Self::Demo(Forwarded { arguments }) => workspace::run_tool("demo", &arguments),
            Self::Bench(bench) => bench.run(),
        }
    }
}

/// Fails with every complaint on a separate line.
fn report(what: &str, complaints: &[String]) -> anyhow::Result<()> {
    anyhow::ensure!(complaints.is_empty(), "{what}:\n  {}", complaints.join("\n  "));
    Ok(())
}
