//! `check`: tells whether a configuration would be accepted, and with which meaning.

use std::io::Write;
use std::path::PathBuf;

use genops_governance::{OnTimeout, PricesConfig, Unit};
use serde_json::json;

use crate::cli::{self, Failure, Format};
use crate::config::{Config, Content, LoadError, Protocol};
use genops_governance::hex;

/// Say whether a configuration would be accepted, and change nothing
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: genops-agent check --config /etc/genops/agent.yaml\n\n\
    Reads the file, the policies and the header files that it names; touches neither the kernel \
    nor the network. Exit code 0: accepted, warnings included; 1: refused; 2: a file cannot be read.")]
pub(crate) struct Check {
    /// File to check.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// How to print the result.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

impl Check {
    /// Runs the command.
    pub(crate) fn run(self) -> Result<(), Failure> {
        let Self { config: path, output } = self;
        let place = path.display().to_string();
        let config = match Config::load(&path) {
            Ok(config) => config,
            Err(LoadError::Invalid(message)) if output == Format::Json => {
                let errors: Vec<&str> = message.lines().collect();
                let refusal = json!({"config": place, "accepted": false, "errors": errors});
                cli::print(|out| writeln!(out, "{refusal}"))?;
                return Err(Failure::not_so_as_said());
            }
            Err(error) => return Err(error.into()),
        };
        let facts = facts(&config);
        match output {
            Format::Text => cli::print(|out| text(&place, &facts, &config, out))?,
            Format::Json => cli::print(|out| {
                let facts: serde_json::Map<_, _> =
                    facts.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
                let Config { warnings, left_open, .. } = &config;
                let result = json!({"config": place, "accepted": true, "settings": facts, "warnings": warnings, "left_open": left_open});
                writeln!(out, "{result}")
            })?,
        };
        Ok(())
    }
}

/// Lists the endpoints open without a decision.
fn left_open(sections: &genops_governance::Sections) -> Vec<String> {
    let line = |it: &genops_governance::ProviderConfig| {
        let host = it.host.clone();
        it.harmless.clone().into_iter().map(move |line| format!("{line} at {host}"))
    };
    sections.providers.iter().flat_map(line).collect()
}

/// Returns the resulting settings, by name.
fn facts(config: &Config) -> Vec<(&'static str, serde_json::Value)> {
    let Config {
        environment,
        mode,
        on_timeout,
        hold_deadline,
        telemetry,
        evidence,
        capture,
        hash,
        ..
    } = config;
    let sections = config.sections();
    let mut facts = vec![
        ("mode", json!(mode.name())),
        ("require_authority", json!(sections.require_authority)),
        ("on_timeout", json!(timeout(*on_timeout))),
        ("hold_deadline_ms", json!(u64::try_from(hold_deadline.as_millis()).unwrap_or(u64::MAX))),
    ];
    facts.extend(environment.as_ref().map(|name| ("environment", json!(name))));
    facts.extend([
        ("providers", json!(sections.providers.len())),
        ("principals", json!(sections.principals.len())),
        ("humans", json!(sections.humans.len())),
        ("grants", json!(sections.grants.len())),
        ("budgets", json!(sections.budgets.len())),
    ]);
    if sections.budgets.iter().any(|it| it.unit == Unit::ComputeSeconds) {
        let seconds = sections.prices.default_max_seconds.unwrap_or(PricesConfig::MAX_SECONDS);
        facts.push(("seconds set aside", json!(seconds)));
    }
    facts.extend([
        ("rate_limits", json!(sections.rate_limits.len())),
        ("policies", json!(sections.policies.len())),
        ("policy_files", json!(sections.policy_files.len())),
        ("cedar_policies", json!(config.settings().policy_count())),
        ("sla", json!(sections.sla.len())),
    ]);
    let left_open = left_open(sections);
    if !left_open.is_empty() {
        facts.push(("left open", json!(left_open)));
    }
    if let Some(otlp) = &telemetry.otlp {
        let protocol = match otlp.protocol {
            Protocol::HttpProtobuf => "http/protobuf",
            Protocol::Grpc => "grpc",
        };
        facts.push(("otlp_endpoint", json!(otlp.endpoint)));
        facts.push(("otlp_protocol", json!(protocol)));
        // Names only: the values may be secret.
        let headers: Vec<&str> = otlp.headers.iter().map(|(name, _)| name).collect();
        facts.push(("otlp_headers", json!(headers)));
    }
    facts.extend(telemetry.metrics_listen.map(|at| ("metrics_listen", json!(at.to_string()))));
    let content = match evidence.content {
        Content::None => "none",
        Content::Hash => "hash",
        Content::Full => "full",
    };
    facts.extend([
        ("evidence_directory", json!(evidence.directory)),
        ("evidence_content", json!(content)),
        ("evidence_witnesses", json!(evidence.witnesses.len())),
        ("evidence_shipped", json!(evidence.ship.is_some())),
        ("message_limit_bytes", json!(capture.message_limit_bytes)),
        ("ring_bytes", json!(capture.ring_bytes)),
        ("nice", json!(capture.nice)),
        ("sha256", json!(hex(hash))),
    ]);
    facts
}

fn text(
    place: &str,
    facts: &[(&'static str, serde_json::Value)],
    config: &Config,
    out: &mut dyn Write,
) -> std::io::Result<()> {
    writeln!(out, "{place}: accepted")?;
    for (name, value) in facts {
        let value = match value {
            serde_json::Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        writeln!(out, "  {name:<20} {value}")?;
    }
    config.warnings.iter().try_for_each(|warning| writeln!(out, "warning: {warning}"))?;
    config.left_open.iter().try_for_each(|what| writeln!(out, "left open: {what}"))
}

fn timeout(on_timeout: OnTimeout) -> &'static str {
    match on_timeout {
        OnTimeout::Open => "open",
        OnTimeout::Closed => "closed",
    }
}
