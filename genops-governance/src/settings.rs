//! Settled configuration: every value checked, every policy compiled. What the engine runs on.

use std::sync::Arc;

use genops_protocols::Hosts;

use crate::config::Sections;

/// What the engine runs on.
#[derive(Clone, Debug)]
pub struct Settings {
    hosts: Arc<Hosts>,
}

/// A configuration that can't be run on: every fault found, each a sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .faults.join("\n"))]
pub struct ConfigError {
    /// One sentence each, with section, index and name, and key; or file, line and column.
    pub faults: Vec<String>,
}

impl Settings {
    /// Checks and compiles the sections.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] with every fault.
    pub fn compile(sections: &Sections) -> Result<Self, ConfigError> {
        let mut hosts = Hosts::builtin();
        for provider in &sections.providers {
            if let Some(dialect) = &provider.dialect {
                hosts = hosts
                    .with(&provider.host, provider.port, dialect)
                    .map_err(|error| ConfigError { faults: vec![error.to_string()] })?;
            }
        }
        Ok(Self { hosts: Arc::new(hosts) })
    }

    /// The AI providers: built-in and configured.
    #[must_use]
    pub fn hosts(&self) -> Arc<Hosts> {
        Arc::clone(&self.hosts)
    }
}
