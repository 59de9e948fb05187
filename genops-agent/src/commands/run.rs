//! `run`: the agent.

use crate::cli::{ConfigFile, Failure};
use crate::config::Config;
use crate::render::Output;
use crate::run::Options;

/// Run the agent
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  genops-agent run\n  genops-agent run --config /etc/genops/agent.yaml --output json\n\n\
    Without a configuration it observes the whole host, prints each AI Workload Unit as a line, \
    and keeps evidence under /var/lib/genops/evidence. SIGTERM and SIGINT end it: it drains, writes \
    what is open, and ends with 0. SIGHUP, or a change of its files, reads the configuration again."
)]
pub(crate) struct Run {
    #[command(flatten)]
    config: ConfigFile,
    /// How to print the AWUs [default: table without --config, none with it].
    #[arg(long, value_enum)]
    output: Option<Output>,
    /// Attach programs that do nothing: the floor of the benchmarks.
    #[arg(long, hide = true)]
    floor: bool,
}

impl Run {
    /// Runs the command.
    pub(crate) fn run(self) -> Result<(), Failure> {
        let Self { config: file, output, floor } = self;
        let config = Config::load_or_default(file.path.as_deref())?;
        for warning in &config.warnings {
            eprintln!("genops-agent: {warning}");
        }
        let default = if file.path.is_some() { Output::None } else { Output::Table };
        let options = Options { output: output.unwrap_or(default), floor, config_path: file.path };
        crate::run::run(config, options).map_err(Failure::run)
    }
}
