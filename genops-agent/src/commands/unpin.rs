//! `unpin`: ends what an agent with `pin_directory` has left in the kernel.

use anyhow::anyhow;

use crate::cli::{ConfigFile, Failure};
use crate::config::Config;
use crate::kernel::pins;

/// End the kernel programs that an agent has left behind
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: genops-agent unpin --config /etc/genops/agent.yaml\n\n\
    With `pin_directory`, programs and maps outlive the agent. Stop the agent first; what is held then \
    passes, and nothing is governed until an agent runs again.")]
pub(crate) struct Unpin {
    #[command(flatten)]
    config: ConfigFile,
}

impl Unpin {
    /// Runs the command.
    pub(crate) fn run(self) -> Result<(), Failure> {
        let config = Config::load_or_default(self.config.path.as_deref())?;
        let Some(directory) = config.pin_directory else {
            return Err(Failure::unreadable(anyhow!("the configuration has no `pin_directory`")));
        };
        let found = pins::remove(&directory).map_err(Failure::run)?;
        let place = directory.display();
        eprintln!("{place}: {}", if found { "nothing is left" } else { "there was nothing" });
        Ok(())
    }
}
