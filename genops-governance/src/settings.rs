//! Compiled configuration for the engine: every value checked, every policy compiled.

use std::sync::Arc;

use genops_protocols::{Hosts, Wanted};

use crate::authority::Grants;
use crate::budget::{self, Budget};
use crate::config::{
    Estimate, Mode, PricesConfig, ProviderConfig, Sections, Uninspectable, Unit, Unmapped, Unnamed,
};
use crate::money;
use crate::policy::Policies;
use crate::prices::Prices;
use crate::principal::Roster;
use crate::rate::{self, Limit};
use crate::sla::{self, Target};
use crate::telemetry::says_something;

/// Compiled configuration for the engine. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Settings(pub(crate) Arc<Inner>);

/// See [`Settings`].
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) hosts: Arc<Hosts>,
    /// Pattern of a host, port, and region of computation.
    pub(crate) regions: Vec<(String, Option<u16>, String)>,
    pub(crate) mode: Mode,
    pub(crate) unmapped: Unmapped,
    pub(crate) uninspectable: Uninspectable,
    pub(crate) unnamed: Unnamed,
    /// Whether a request without a covering grant is refused.
    pub(crate) require_authority: bool,
    pub(crate) grants: Grants,
    pub(crate) roster: Roster,
    /// Places in requests that say for whom a request is made.
    pub(crate) wanted: Arc<Wanted>,
    pub(crate) policies: Policies,
    pub(crate) budgets: Vec<Budget>,
    pub(crate) limits: Vec<Limit>,
    pub(crate) targets: Vec<Target>,
    pub(crate) prices: Prices,
    pub(crate) estimate: Estimate,
    /// Output tokens assumed if neither the request nor the tables have a limit.
    pub(crate) max_output_tokens: Option<u64>,
    /// Maximum duration of a request, in nanoseconds, if no price has a duration.
    pub(crate) max_compute_ns: i64,
    /// Whether a budget counts durations of requests.
    pub(crate) counts_time: bool,
}

/// An invalid configuration: every fault found, each a sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .faults.join("\n"))]
pub struct ConfigError {
    /// A sentence for each fault, with section, index, name and key; or file, line and column.
    pub faults: Vec<String>,
}

/// The faults found so far.
#[derive(Debug, Default)]
pub(crate) struct Faults(pub(crate) Vec<String>);

impl Faults {
    /// Returns the label of an entry: section, index and name.
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

    /// Adds the faults found under `key`.
    pub(crate) fn extend_under(&mut self, key: &str, faults: &Self) {
        self.0.extend(faults.0.iter().map(|it| it.replacen(": `", &format!(": `{key}."), 1)));
    }

    /// Checks that an entry has a name of its own.
    pub(crate) fn name_is_new(
        &mut self,
        place: &str,
        name: &str,
        used_before: impl Fn(usize) -> bool,
        index: usize,
    ) {
        if name.trim().is_empty() {
            self.add(place, "name", "is empty");
        } else if name.chars().any(char::is_control) {
            self.add(place, "name", "has a line break or another control character");
        } else if used_before(index) {
            self.add(place, "name", "is used by an entry before it");
        }
    }
}

impl Inner {
    /// Returns every budget: the configured budgets and the budgets of grants.
    pub(crate) fn budgets(&self) -> impl Iterator<Item = &Budget> {
        self.budgets.iter().chain(self.grants.budgets())
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
        let roster = Roster::compile(sections, &grants, &mut faults);
        let inner = Inner {
            hosts: hosts(sections, &mut faults),
            regions: regions(sections),
            mode: sections.mode,
            unmapped: sections.unmapped,
            uninspectable: sections.uninspectable,
            unnamed: sections.unnamed,
            wanted: Arc::new(roster.wanted()),
            roster,
            require_authority: sections.require_authority,
            grants,
            policies: Policies::compile(sections, &mut faults),
            budgets: budget::compile(sections, &mut faults),
            limits: rate::compile(sections, &mut faults),
            targets: sla::compile(sections, &mut faults),
            prices: Prices::compile(&sections.prices, sections.price_table.as_ref(), &mut faults),
            estimate: sections.prices.estimate,
            max_output_tokens: sections.prices.default_max_output_tokens,
            max_compute_ns: max_compute_ns(sections, &mut faults),
            counts_time: counts_time(sections),
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

    /// Returns the AI providers: built-in and configured.
    #[must_use]
    pub fn hosts(&self) -> Arc<Hosts> {
        Arc::clone(&self.0.hosts)
    }

    /// Returns the mode of principals without a mode of their own.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.0.mode
    }

    /// Returns whether connections without a plaintext reader are refused.
    #[must_use]
    pub fn blocks_unread(&self) -> bool {
        self.0.uninspectable == Uninspectable::Block
    }

    /// Returns whether handshakes with an unconfirmed server name have a consequence.
    #[must_use]
    pub fn asks_for_names(&self) -> bool {
        self.0.unnamed != Unnamed::Allow
    }

    /// Returns whether the parent of a process matters: at least one principal, inherited by
    /// children, is configured.
    #[must_use]
    pub fn names_principals(&self) -> bool {
        self.0.roster.names_any()
    }

    /// Returns the names of the configured principals.
    pub fn principals(&self) -> impl Iterator<Item = &str> {
        self.0.roster.names()
    }

    /// Returns the SHA-256 of the policies.
    #[must_use]
    pub fn policy_hash(&self) -> [u8; 32] {
        self.0.policies.hash()
    }

    /// Returns the SHA-256 of the price table and the overrides.
    #[must_use]
    pub fn price_hash(&self) -> [u8; 32] {
        self.0.prices.hash()
    }

    /// Returns the prices.
    #[must_use]
    pub fn prices(&self) -> &Prices {
        &self.0.prices
    }

    /// Returns the number of Cedar policies.
    #[must_use]
    pub fn policy_count(&self) -> usize {
        self.0.policies.len()
    }

    /// Returns the Cedar texts in force, by file or short-form rule.
    pub fn cedar(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.policies.texts()
    }

    /// Returns the scopes of the grants as equivalent Cedar text, by rule. The Cedar text does not
    /// decide.
    pub fn grants_in_cedar(&self) -> impl Iterator<Item = (String, String)> {
        self.0.grants.cedar()
    }
}

/// Returns whether a budget, or the budget of a grant, counts durations of requests.
fn counts_time(sections: &Sections) -> bool {
    let of_grants = sections.grants.iter().filter_map(|it| it.budget.as_ref());
    let mut units = sections.budgets.iter().map(|it| it.unit).chain(of_grants.map(|it| it.unit));
    units.any(|it| it == Unit::ComputeSeconds)
}

fn max_compute_ns(sections: &Sections, faults: &mut Faults) -> i64 {
    let seconds = sections.prices.default_max_seconds.unwrap_or(PricesConfig::MAX_SECONDS);
    let found = money::nanoseconds(seconds);
    found.map_err(|why| faults.add("prices", "default_max_seconds", &why)).unwrap_or_default()
}

fn hosts(sections: &Sections, faults: &mut Faults) -> Arc<Hosts> {
    let mut hosts = Hosts::builtin();
    for (index, provider) in sections.providers.iter().enumerate() {
        let place = Faults::entry("providers", index, &provider.host);
        for line in &provider.harmless {
            match hosts.clone().with_harmless(&provider.host, line) {
                Ok(more) => hosts = more,
                Err(error) => faults.add(&place, "harmless", &format!("holds {error}")),
            }
        }
        let Some(dialect) = &provider.dialect else {
            if provider.region.is_none() && provider.harmless.is_empty() {
                faults.add(&place, "dialect", "is missing, and no `region` is given either");
            }
            continue;
        };
        let (host, port) = match host_and_port(provider) {
            Ok(found) => found,
            Err(why) => {
                faults.add(&place, "host", &why);
                continue;
            }
        };
        // `*.example.com` means every name below `example.com`, as `.example.com` does.
        let host = host.strip_prefix('*').unwrap_or(&host);
        if host.contains('*') {
            faults.add(&place, "host", "has a `*` that is not its first label");
            continue;
        }
        match hosts.clone().with(host, port, dialect) {
            Ok(more) => hosts = more,
            Err(error) => faults.0.push(format!("{place}: {error}")),
        }
    }
    Arc::new(hosts)
}

fn regions(sections: &Sections) -> Vec<(String, Option<u16>, String)> {
    let named = sections.providers.iter().filter_map(|it| {
        let region = it.region.clone()?;
        let (host, port) = host_and_port(it).ok()?;
        let host = if host.starts_with('.') { format!("*{host}") } else { host };
        Some((host, port, region))
    });
    named.collect()
}

/// Returns host and port of an entry; `host` or `port` may hold the port.
fn host_and_port(provider: &ProviderConfig) -> Result<(String, Option<u16>), String> {
    let host = provider.host.trim().trim_end_matches('.').to_lowercase();
    if host.contains('/') || host.contains(char::is_whitespace) || host.is_empty() {
        return Err("is not the name of a host: no scheme, no path".to_owned());
    }
    let bracketed = host.strip_prefix('[').and_then(|it| it.split_once(']'));
    let (name, port) = match (bracketed, host.rsplit_once(':')) {
        (Some((name, port)), _) => (name, port.strip_prefix(':')),
        (None, Some((name, port))) if !name.contains(':') => (name, Some(port)),
        _ => (host.as_str(), None),
    };
    let Some(port) = port else { return Ok((name.to_owned(), provider.port)) };
    let port: u16 = port.parse().map_err(|_error| format!("has `{port}` for a port"))?;
    if provider.port.is_some_and(|other| other != port) {
        return Err("and `port` name different ports".to_owned());
    }
    Ok((name.to_owned(), Some(port)))
}

/// Adds a fault for each name without a matching provider.
pub(crate) fn check_providers(
    sections: &Sections,
    place: &str,
    key: &str,
    names: &[String],
    faults: &mut Faults,
) {
    let unlisted = ["vllm", "llama_cpp", "lmstudio", "tgi", "gcp.gen_ai", "gcp.vertex_ai"];
    let hosts = Hosts::builtin();
    let mut known: Vec<&str> = hosts.host_patterns().map(|it| it.provider).collect();
    known.extend(unlisted);
    for name in names {
        let folded = name.to_lowercase();
        if known.iter().any(|it| crate::glob::matches(&folded, it)) {
            continue;
        }
        let dialect = sections.providers.iter().filter_map(|it| it.dialect.as_deref());
        let alike = known.iter().find(|it| it.split(['.', '_']).any(|part| part == folded));
        let meant = alike.map(|it| format!("; `{it}` is one")).unwrap_or_default();
        let spoken = dialect.clone().any(|it| it == folded);
        let hint = if spoken { "; it is a dialect" } else { "" };
        faults.add(place, key, &format!("names `{name}`, which is no provider{meant}{hint}"));
    }
}
