//! `policy`: shows the Cedar compiled from the policies of a configuration.

use std::path::PathBuf;

use serde_json::json;

use crate::cli::{self, Failure, Format};
use crate::config::Config;

/// Look at policies
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Policy {
    /// Print the Cedar compiled from a configuration's policies
    Show(Show),
}

impl Policy {
    /// Runs the command.
    pub(crate) fn run(self) -> Result<(), Failure> {
        match self {
            Self::Show(show) => show.run(),
        }
    }
}

/// `policy show`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: genops-agent policy show --config /etc/genops/agent.yaml")]
pub(crate) struct Show {
    /// Configuration with the policies to print.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// How to print the policies.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

impl Show {
    fn run(self) -> Result<(), Failure> {
        let Self { config, output } = self;
        let settings = Config::load(&config)?.settings();
        let own = settings.cedar().map(|(place, text)| (place.to_owned(), text.to_owned()));
        let mut all = own.chain(settings.grants_in_cedar());
        cli::print(|out| match output {
            Format::Text => {
                all.try_for_each(|(place, text)| writeln!(out, "// {place}\n{}\n", text.trim_end()))
            }
            Format::Json => all.try_for_each(|(place, text)| {
                writeln!(out, "{}", json!({"from": place, "cedar": text}))
            }),
        })?;
        Ok(())
    }
}
