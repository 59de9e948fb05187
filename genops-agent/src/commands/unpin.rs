//! `unpin`: removes the programs and maps left in the kernel by an agent.

use std::path::PathBuf;

use crate::cli::{ConfigFile, Failure};
use crate::config::{Config, PinDirectory};
use crate::kernel::{pins, place};

/// End the kernel programs left behind by an agent
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: genops-agent unpin\n\n\
    In enforce mode, programs and maps outlive the agent: in /sys/fs/bpf/genops, in /run/genops/bpf, or where \
    `pin_directory` says. Stop the agent first; what is held then passes, and nothing is governed until an agent \
    runs again. No configuration is needed, but for a `pin_directory` of your own.")]
pub(crate) struct Unpin {
    #[command(flatten)]
    config: ConfigFile,
    /// Another place to look in.
    #[arg(long, value_name = "DIRECTORY")]
    directory: Option<PathBuf>,
}

impl Unpin {
    /// Runs the command.
    pub(crate) fn run(self) -> Result<(), Failure> {
        let Self { config, directory } = self;
        let mut places: Vec<PathBuf> = place::USUAL.map(PathBuf::from).into();
        places.extend(directory);
        let configured = config.path.as_deref().map(Config::load).transpose();
        if let Ok(Some(Config { pin_directory: PinDirectory::Path(path), .. })) = &configured
            && !places.contains(path)
        {
            places.push(path.clone());
        }
        let mut failed = None;
        for place in places {
            let shown = place.display();
            match pins::remove(&place) {
                Ok(true) => eprintln!("{shown}: nothing is left"),
                Ok(false) => eprintln!("{shown}: there was nothing"),
                Err(error) => failed = Some(error),
            }
        }
        match (failed, configured) {
            (Some(error), _) => Err(Failure::run(error)),
            // The usual places are done; a place named only by the unreadable configuration may be
            // left.
            (None, Err(error)) => Err(Failure::from(error)),
            (None, Ok(_)) => Ok(()),
        }
    }
}
