//! `doctor`: reports the abilities of kernel and host.

use crate::cli::{ConfigFile, Failure, Format};
use crate::config::Config;

/// Report the abilities of kernel and host, and the running programs an agent would capture
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: genops-agent doctor --output json\n\n\
    Loads and attaches nothing for longer than a probe takes. Exit code 0: this host can capture \
    and hold; 1: it cannot, and the output says why.")]
pub(crate) struct Doctor {
    #[command(flatten)]
    config: ConfigFile,
    /// How to print the findings.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

impl Doctor {
    /// Runs the command.
    pub(crate) fn run(self) -> Result<(), Failure> {
        let Self { config, output } = self;
        let config = Config::load_or_default(config.path.as_deref())?;
        match crate::doctor::run(&config, output) {
            Ok(true) => Ok(()),
            Ok(false) => Err(Failure::not_so_as_said()),
            Err(error) => Err(Failure::run(error)),
        }
    }
}
