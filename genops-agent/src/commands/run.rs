//! `run`: the agent.

use std::path::Path;

use crate::cli::{ConfigFile, Failure};
use crate::config::{Config, LoadError, kept, load_unless_emptied};
use crate::render::Output;
use crate::run::Options;

/// Run the agent
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  genops-agent run\n  genops-agent run --config /etc/genops/agent.yaml --output json\n\n\
    Without a configuration it observes the whole host, prints each AI Workload Unit as a line, \
    and keeps evidence under /var/lib/genops/evidence. SIGTERM and SIGINT end it: it drains, writes \
    what is open, and ends with 0. SIGHUP, or a change of its files, reads the configuration again. Where it can't be \
    read, the last one that was in force stays so, also at a start."
)]
pub(crate) struct Run {
    #[command(flatten)]
    config: ConfigFile,
    /// How to print the AWUs [default: table without --config, none with --config].
    #[arg(long, value_enum)]
    output: Option<Output>,
    /// Attach programs without effect: the baseline of the benchmarks.
    #[arg(long, hide = true)]
    floor: bool,
}

impl Run {
    /// Runs the command.
    pub(crate) fn run(self) -> Result<(), Failure> {
        let Self { config: file, output, floor } = self;
        let Loaded { config, refused } = load(file.path.as_deref())?;
        for warning in &config.warnings {
            eprintln!("genops-agent: {warning}");
        }
        let default = if file.path.is_some() { Output::None } else { Output::Table };
        let output = output.unwrap_or(default);
        let options = Options { output, floor, config_path: file.path, refused };
        crate::run::run(config, options).map_err(Failure::run)
    }
}

/// Configuration at the start of an agent.
struct Loaded {
    config: Config,
    /// Error of the configured file, if the agent starts with an earlier configuration.
    refused: Option<String>,
}

/// Loads the file, or, if the file can't be used, the last configuration in force.
fn load(path: Option<&Path>) -> Result<Loaded, LoadError> {
    let Some(path) = path else {
        return Ok(Loaded { config: Config::default(), refused: None });
    };
    let error = match load_unless_emptied(path) {
        Ok(config) => return Ok(Loaded { config: *config, refused: None }),
        Err(error) => error,
    };
    match kept::last_good(path) {
        Ok(config) => {
            let refused = error.to_string();
            eprintln!("genops-agent: {refused}; THE LAST GOOD CONFIGURATION STAYS IN FORCE");
            Ok(Loaded { config, refused: Some(refused) })
        }
        Err(why) => {
            // A configuration empty from the beginning observes.
            let config = Config::load(path).map_err(|_| error)?;
            eprintln!("genops-agent: there is no earlier configuration to start with: {why}");
            Ok(Loaded { config, refused: None })
        }
    }
}
