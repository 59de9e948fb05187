//! `prices`: shows the known price of a model, and the assumed price of a model without one.

use serde_json::{Value, json};

use genops_governance::Settings;
use genops_governance::prices::Listed;

use crate::cli::{self, ConfigFile, Failure, Format};
use crate::config::Config;

/// Look at prices
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Prices {
    /// Print the prices of a model, by provider, and the source of each
    Show(Show),
}

impl Prices {
    /// Runs the command.
    pub(crate) fn run(self) -> Result<(), Failure> {
        match self {
            Self::Show(show) => show.run(),
        }
    }
}

/// `prices show`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: genops-agent prices show gpt-4o-mini --provider openai")]
pub(crate) struct Show {
    /// Model, as named in requests.
    model: String,
    /// Provider, as in `gen_ai.provider.name`; default: every provider of the model.
    #[arg(long, value_name = "NAME")]
    provider: Option<String>,
    #[command(flatten)]
    config: ConfigFile,
    /// How to print the prices.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

impl Show {
    fn run(self) -> Result<(), Failure> {
        let Self { model, provider, config, output } = self;
        let settings = match &config.path {
            Some(path) => Config::load(path)?.settings(),
            None => Settings::compile(&genops_governance::Sections::default())
                .map_err(Failure::unreadable)?,
        };
        let unix_s = crate::clock::now().unix_ns / 1_000_000_000;
        let found = settings.prices().list(provider.as_deref(), &model, unix_s);
        if found.is_empty() {
            let by = provider.map(|it| format!(" of `{it}`")).unwrap_or_default();
            return Err(Failure::not_so(anyhow::anyhow!(
                "no price is known for `{model}`{by}: give it one under `prices.overrides`, or \
                 renew `prices.file`"
            )));
        }
        cli::print(|out| {
            found.iter().try_for_each(|it| match output {
                Format::Text => write!(out, "{}", text(&model, it)),
                Format::Json => writeln!(out, "{}", as_json(&model, it)),
            })
        })?;
        if found.iter().all(|it| it.assumed.is_some()) {
            return Err(Failure::not_so_as_said());
        }
        Ok(())
    }
}

fn text(model: &str, listed: &Listed) -> String {
    let Listed {
        provider,
        from,
        assumed,
        rates,
        context_tokens,
        max_output_tokens,
        max_seconds,
        tiers,
    } = listed;
    let mut lines = vec![format!("{provider} {model}: {from}")];
    if let Some(family) = assumed {
        let whose = if family.is_empty() {
            "its provider's dearest".to_owned()
        } else {
            format!("the dearest of `{family}*`")
        };
        lines.push(format!("  no price is known (x_price_unknown): taken is {whose}"));
    }
    lines.extend(rates.iter().map(|(rate, price)| format!("  {rate}: {price}")));
    let counts = [
        ("context_tokens", context_tokens),
        ("max_output_tokens", max_output_tokens),
        ("max_seconds", max_seconds),
    ];
    let counts = counts.into_iter().filter_map(|(name, it)| Some((name, (*it)?)));
    lines.extend(counts.map(|(name, count)| format!("  {name}: {count}")));
    if !tiers.is_empty() {
        lines.push(format!("  other prices for the service tiers: {}", tiers.join(", ")));
    }
    lines.join("\n") + "\n"
}

fn as_json(model: &str, listed: &Listed) -> Value {
    let Listed {
        provider,
        from,
        assumed,
        rates,
        context_tokens,
        max_output_tokens,
        max_seconds,
        tiers,
    } = listed;
    let rates: serde_json::Map<String, Value> =
        rates.iter().map(|(name, price)| (name.clone(), json!(price))).collect();
    let mut out = json!({"provider": provider, "model": model, "from": from, "usd": rates});
    if let Some(fields) = out.as_object_mut() {
        let optional = [
            ("assumed", assumed.as_ref().map(|family| json!(format!("{family}*")))),
            ("context_tokens", context_tokens.map(Value::from)),
            ("max_output_tokens", max_output_tokens.map(Value::from)),
            ("max_seconds", max_seconds.map(Value::from)),
            ("service_tiers", (!tiers.is_empty()).then(|| json!(tiers))),
        ];
        let known = optional.into_iter().filter_map(|(name, it)| Some((name.to_owned(), it?)));
        fields.extend(known);
    }
    out
}
