//! Settled configuration: every value checked, every policy compiled. What the engine runs on.

use std::sync::Arc;

use genops_protocols::Hosts;

use crate::authority::Grants;
use crate::budget::{self, Budget};
use crate::config::{Estimate, Mode, Sections, Uninspectable, Unmapped};
use crate::policy::Policies;
use crate::prices::Prices;
use crate::principal::Roster;
use crate::rate::{self, Limit};
use crate::sla::{self, Target};
use crate::telemetry::says_something;

/// What the engine runs on. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Settings(pub(crate) Arc<Inner>);

/// See [`Settings`].
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) hosts: Arc<Hosts>,
    pub(crate) regions: Vec<(String, String)>,
    pub(crate) mode: Mode,
    pub(crate) unmapped: Unmapped,
    pub(crate) uninspectable: Uninspectable,
    pub(crate) grants: Grants,
    pub(crate) roster: Roster,
    pub(crate) policies: Policies,
    pub(crate) budgets: Vec<Budget>,
    pub(crate) limits: Vec<Limit>,
    pub(crate) targets: Vec<Target>,
    pub(crate) prices: Prices,
    pub(crate) estimate: Estimate,
    /// Output tokens assumed where neither the request nor the tables limit them.
    pub(crate) max_output_tokens: Option<u64>,
}

/// A configuration that can't be run on: every fault found, each a sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .faults.join("\n"))]
pub struct ConfigError {
    /// One sentence each, with section, index, name and key; or file, line and column.
    pub faults: Vec<String>,
}

/// The faults found so far.
#[derive(Debug, Default)]
pub(crate) struct Faults(pub(crate) Vec<String>);

impl Faults {
    /// How an entry is called: section, index and name.
    pub(crate) fn entry(section: &str, index: usize, name: &str) -> String {
        if name.is_empty() {
            format!("{section}[{index}]")
        } else {
            format!("{section}[{index}] ({name})")
        }
    }

    pub(crate) fn add(&mut self, place: &str, key: &str, why: &str) {
        self.0.push(format!("{place}: `{key}` {why}"));
    }

    /// Every entry has a name of its own.
    pub(crate) fn name_is_new(
        &mut self,
        place: &str,
        name: &str,
        used_before: impl Fn(usize) -> bool,
        index: usize,
    ) {
        if name.trim().is_empty() {
            self.add(place, "name", "is empty");
        } else if used_before(index) {
            self.add(place, "name", "is used by an entry before it");
        }
    }
}

impl Settings {
    /// Checks and compiles the sections.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] with every fault.
    pub fn compile(sections: &Sections) -> Result<Self, ConfigError> {
        let mut faults = Faults::default();
        let grants = Grants::compile(sections, &mut faults);
        let inner = Inner {
            hosts: hosts(sections, &mut faults),
            regions: regions(sections),
            mode: sections.mode,
            unmapped: sections.unmapped,
            uninspectable: sections.uninspectable,
            roster: Roster::compile(sections, &grants, &mut faults),
            grants,
            policies: Policies::compile(sections, &mut faults),
            budgets: budget::compile(sections, &mut faults),
            limits: rate::compile(sections, &mut faults),
            targets: sla::compile(sections, &mut faults),
            prices: Prices::compile(&sections.prices, &mut faults),
            estimate: sections.prices.estimate,
            max_output_tokens: sections.prices.default_max_output_tokens,
        };
        let empty = sections.environment.as_ref().filter(|it| !says_something(it));
        if let Some(environment) = empty {
            faults.0.push(format!("`environment` is `{environment}`, which says nothing"));
        }
        if faults.0.is_empty() {
            inner.roster.each(|who, lineage| drop(inner.policies.slice(who, lineage)));
            Ok(Self(Arc::new(inner)))
        } else {
            Err(ConfigError { faults: faults.0 })
        }
    }

    /// The AI providers: built-in and configured.
    #[must_use]
    pub fn hosts(&self) -> Arc<Hosts> {
        Arc::clone(&self.0.hosts)
    }

    /// Observe or enforce, where no principal says otherwise.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.0.mode
    }

    /// Whether it matters who started a process: somebody is configured to be inherited.
    #[must_use]
    pub fn names_principals(&self) -> bool {
        self.0.roster.names_any()
    }

    /// The names of the configured principals.
    pub fn principals(&self) -> impl Iterator<Item = &str> {
        self.0.roster.names()
    }

    /// SHA-256 of the policies.
    #[must_use]
    pub fn policy_hash(&self) -> [u8; 32] {
        self.0.policies.hash()
    }

    /// SHA-256 of the price table and its overrides.
    #[must_use]
    pub fn price_hash(&self) -> [u8; 32] {
        self.0.prices.hash()
    }

    /// How many Cedar policies there are.
    #[must_use]
    pub fn policy_count(&self) -> usize {
        self.0.policies.len()
    }

    /// The Cedar texts that are in force, by file or short-form rule.
    pub fn cedar(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.policies.texts()
    }
}

fn hosts(sections: &Sections, faults: &mut Faults) -> Arc<Hosts> {
    let mut hosts = Hosts::builtin();
    for (index, provider) in sections.providers.iter().enumerate() {
        let place = Faults::entry("providers", index, &provider.host);
        let Some(dialect) = &provider.dialect else {
            if provider.region.is_none() {
                faults.add(&place, "dialect", "is missing, and no `region` is given either");
            }
            continue;
        };
        match hosts.clone().with(&provider.host, provider.port, dialect) {
            Ok(more) => hosts = more,
            Err(error) => faults.0.push(format!("{place}: {error}")),
        }
    }
    Arc::new(hosts)
}

fn regions(sections: &Sections) -> Vec<(String, String)> {
    let named = sections
        .providers
        .iter()
        .filter_map(|it| Some((it.host.to_lowercase(), it.region.clone()?)));
    named.collect()
}
