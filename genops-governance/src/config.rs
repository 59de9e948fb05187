//! Sections of the configuration file owned by governance, field for field.
//!
//! The module has shapes only; [`crate::Settings::compile`] checks the values. An unknown key is an
//! error, because an unknown key is a typo in a policy.

use serde::{Deserialize, Serialize};

/// Whether refusals are carried out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Every request passes; a refusal becomes a warning.
    #[default]
    Observe,
    /// Refusals are carried out if the kernel can hold the request.
    Enforce,
}

impl Mode {
    /// Returns the name used in the configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Observe => "observe",
            Self::Enforce => "enforce",
        }
    }
}

/// Treatment, in enforce mode, of a process matched by no configured principal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unmapped {
    /// The request passes with a warning, unless another rule refuses the request.
    #[default]
    Warn,
    /// The request is refused.
    Block,
}

/// Treatment of a connection to a provider if no probe reads the plaintext: only the process, the
/// provider, the time and the number of bytes are known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Uninspectable {
    /// The connection passes, unless a known fact leads to a refusal.
    Allow,
    /// The connection passes with a warning, unless a known fact leads to a refusal.
    #[default]
    Warn,
    /// In enforce mode, the connection is ended before carrying a request.
    Block,
}

/// Treatment of a TLS handshake by a process in enforce mode if no probe reads the process and the
/// server name is absent, hidden, or different from the name given to the address by name servers
/// or the hosts file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unnamed {
    /// The connection passes without a warning.
    #[default]
    Allow,
    /// The connection passes with a warning.
    Warn,
    /// The connection is ended before carrying any data.
    Block,
}

/// Cost assumed for a request to a model without a known price.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnknownModel {
    /// The highest price of the model's family, or else of the provider, and a warning. If the
    /// provider is unknown too, the request is accounted in tokens, and refused if a budget in USD
    /// applies. A self-hosted server (Ollama, vLLM, llama.cpp) draws nothing from a budget in USD.
    #[default]
    Conservative,
    /// The request is refused.
    Block,
    /// Nothing in USD: the request is accounted in tokens.
    TokensOnly,
}

/// Amount reserved for a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Estimate {
    /// The maximum possible cost, as far as the request sets bounds.
    #[default]
    WorstCase,
    /// The 95th percentile of the recent costs of the principal's calls to the model; the worst
    /// case until 20 calls are known.
    P95,
}

/// One entry of `principals`.
#[derive(Clone, Debug, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrincipalConfig {
    /// Name of the principal.
    pub name: String,
    /// Conditions for a process to belong to the principal.
    #[serde(default, rename = "match")]
    pub matches: MatchConfig,
    /// `genops.team`.
    pub team: Option<String>,
    /// `genops.project`.
    pub project: Option<String>,
    /// `genops.environment`, if different from the file's `environment`.
    pub environment: Option<String>,
    /// `genops.cost_center`.
    pub cost_center: Option<String>,
    /// `genops.customer_id`.
    pub customer_id: Option<String>,
    /// `genops.feature`.
    pub feature: Option<String>,
    /// Places in each request that say for whom the request is made.
    #[serde(default)]
    pub attribution: AttributionConfig,
    /// Human accountable for the principal.
    pub delegated_by: Option<String>,
    /// Start of the principal's authority.
    pub not_before: Option<String>,
    /// End of the principal's authority.
    pub expires: Option<String>,
    /// Observe or enforce, if different from the file's `mode`.
    pub mode: Option<Mode>,
    /// Grant under which the principal acts.
    pub grant: Option<String>,
    /// Parent principal of a sub-agent: only descendants of a process of the parent match, and
    /// every rule binding the parent binds the sub-agent too.
    pub subagent_of: Option<String>,
}

/// Places in a request that say for whom the request is made: `header:NAME`, `baggage:KEY`,
/// `body:PATH` or `conversation`. The first place with a value counts. The value is a claim by the
/// client: the claim splits the principal's allowance, and grants nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttributionConfig {
    /// For `genops.customer_id`.
    #[serde(default)]
    pub customer_id: Vec<String>,
    /// For `genops.feature`.
    #[serde(default)]
    pub feature: Vec<String>,
    /// For `genops.session_id`.
    #[serde(default)]
    pub session_id: Vec<String>,
}

/// Attribute for splitting limits among requests: customer, feature or session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dimension {
    /// `genops.customer_id`.
    CustomerId,
    /// `genops.feature`.
    Feature,
    /// `genops.session_id`.
    SessionId,
}

impl Dimension {
    /// Every dimension.
    pub const ALL: [Self; 3] = [Self::CustomerId, Self::Feature, Self::SessionId];

    /// Returns the name used in the configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::CustomerId => "customer_id",
            Self::Feature => "feature",
            Self::SessionId => "session_id",
        }
    }
}

/// Conditions on a process. All given conditions must hold; `*` stands for any text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MatchConfig {
    /// Name or number of the user. For a process in a container, the condition counts only together
    /// with `container`, `namespace` or `service_account`.
    pub user: Option<String>,
    /// Path of the executable. On the host, the process must run the very file that the host has,
    /// or had, under the path. In a container, the path is the path inside the container, and the
    /// condition counts only together with `container`, `namespace` or `service_account`, as for
    /// `user`.
    pub exe: Option<String>,
    /// systemd unit.
    pub systemd_unit: Option<String>,
    /// Container id.
    pub container: Option<String>,
    /// Kubernetes namespace.
    pub namespace: Option<String>,
    /// Kubernetes service account.
    pub service_account: Option<String>,
}

impl MatchConfig {
    /// Returns whether a program under the path can match the `exe` condition.
    #[must_use]
    pub fn may_be_program(&self, path: &str) -> bool {
        self.exe.as_deref().is_some_and(|it| crate::glob::matches(it, path))
    }
}

/// One entry of `humans`: a person from whom authority can come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HumanConfig {
    /// Name of the human.
    pub name: String,
    /// Identity of the human at the identity provider, for example an address.
    pub identity: String,
    /// Public keys of the human, as written by `ssh-keygen`.
    #[serde(default)]
    pub keys: Vec<String>,
    /// User name of the human on the host.
    pub unix_user: Option<String>,
}

/// One entry of `grants`: authority delegated by a human or a principal.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrantConfig {
    /// Name of the grant.
    pub name: String,
    /// Parent grant, narrowed by the grant; absent for a root grant.
    pub parent: Option<String>,
    /// Delegator. For a root grant, the delegator must be one of `humans`.
    pub delegated_by: Option<String>,
    /// Accountable human, one of `humans`; for a root grant, `delegated_by` unless given.
    pub accountable: Option<String>,
    /// Start of the grant.
    pub not_before: Option<String>,
    /// End of the grant.
    pub expires: Option<String>,
    /// Maximum number of further grants in a chain below the grant.
    #[serde(alias = "depth")]
    pub max_depth: Option<u32>,
    /// Whether the grant was revoked.
    #[serde(default)]
    pub revoked: bool,
    /// Scope of the grant.
    #[serde(default)]
    pub scope: ScopeConfig,
    /// Amount usable under the grant and all grants below together.
    pub budget: Option<GrantBudgetConfig>,
    /// Request rate under the grant and all grants below together.
    pub rate: Option<GrantRateConfig>,
    /// Purpose of the grant.
    pub purpose: Option<String>,
}

/// Amount usable under a grant and the grants below together.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrantBudgetConfig {
    /// Limit, in `unit`.
    pub limit: f64,
    /// `USD`, `tokens` or `compute_seconds`.
    #[serde(default)]
    pub unit: Unit,
    /// Period of the limit; no end unless given.
    pub period: Option<crate::time::Period>,
    /// Time zone of the period's borders; UTC unless given.
    pub timezone: Option<String>,
}

/// Request rate under a grant and the grants below together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrantRateConfig {
    /// Number of requests for each `per`.
    pub requests: Option<u32>,
    /// Unit of time; a minute unless given.
    pub per: Option<Per>,
    /// Number of requests allowed at once after a pause; `requests` unless given.
    pub burst: Option<u32>,
    /// Maximum number of requests running at the same time.
    pub concurrent: Option<u32>,
}

/// Scope of a grant. An absent list covers everything.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ScopeConfig {
    /// Providers.
    pub providers: Option<Vec<String>>,
    /// Models; `*` stands for any text.
    pub models: Option<Vec<String>>,
    /// Regions; `*` stands for any text.
    pub regions: Option<Vec<String>>,
    /// Operations, for example `chat`.
    pub operations: Option<Vec<String>>,
    /// Endpoints, for example `api.openai.com` or `POST /v1/chat/*`; `*` stands for any text.
    pub endpoints: Option<Vec<String>>,
    /// Maximum cost of a request, in USD.
    pub max_cost: Option<f64>,
}

/// One entry of `budgets`.
#[derive(Clone, Debug, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BudgetConfig {
    /// Name of the budget.
    pub name: String,
    /// Team to count. Without team, project, principal and cost center, the budget counts everyone.
    pub team: Option<String>,
    /// Project to count.
    pub project: Option<String>,
    /// Principal to count.
    pub principal: Option<String>,
    /// Cost center to count.
    pub cost_center: Option<String>,
    /// Only calls to the provider.
    pub provider: Option<String>,
    /// Only calls to the models; `*` stands for any text.
    pub model: Option<String>,
    /// Only calls of the customer.
    pub customer_id: Option<String>,
    /// Only calls of the feature.
    pub feature: Option<String>,
    /// Dimension with a limit for each value: each customer, feature or session has the whole
    /// limit.
    pub per: Option<Dimension>,
    /// `USD`, `tokens` or `compute_seconds`.
    #[serde(default)]
    pub unit: Unit,
    /// Limit, in `unit`.
    pub limit: f64,
    /// Period of the limit.
    pub period: Option<crate::time::Period>,
    /// Time zone of the period's borders; UTC unless given.
    pub timezone: Option<String>,
    /// Percentages of the limit from which calls get a warning.
    #[serde(default)]
    pub thresholds: Vec<u8>,
}

/// Unit counted by a budget.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, serde::Serialize,
)]
pub enum Unit {
    /// Money, held in nano-USD.
    #[default]
    #[serde(rename = "USD")]
    Usd,
    /// Input and output tokens together.
    #[serde(rename = "tokens")]
    Tokens,
    /// Duration of requests in seconds, held in nanoseconds: the price basis of self-hosted
    /// servers.
    #[serde(rename = "compute_seconds")]
    ComputeSeconds,
}

impl Unit {
    /// Returns the unit as spelled in telemetry.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Usd => "USD",
            Self::Tokens => "tokens",
            Self::ComputeSeconds => "compute_seconds",
        }
    }

    /// Formats an amount of the unit in words: `0.0125 USD`, `300 tokens`, `2.5 seconds`.
    #[must_use]
    pub fn in_words(self, amount: i64) -> String {
        match self {
            Self::Usd => format!("{} USD", crate::money::format_usd(amount)),
            Self::Tokens => format!("{amount} tokens"),
            Self::ComputeSeconds => format!("{} seconds", crate::money::format_usd(amount)),
        }
    }

    /// Converts an amount of the unit to a double for telemetry.
    #[must_use]
    pub fn to_double(self, amount: i64) -> f64 {
        match self {
            Self::Usd | Self::ComputeSeconds => crate::money::to_usd(amount),
            #[expect(clippy::cast_precision_loss, reason = "telemetry wants a double")]
            Self::Tokens => amount as f64,
        }
    }
}

/// One entry of `rate_limits`.
#[derive(Clone, Debug, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimitConfig {
    /// Name of the rate limit.
    pub name: String,
    /// Principal to count. Without a principal and a team, the limit counts all principals
    /// together.
    pub principal: Option<String>,
    /// Team to count.
    pub team: Option<String>,
    /// Only calls to the provider.
    pub provider: Option<String>,
    /// Only calls of the customer.
    pub customer_id: Option<String>,
    /// Only calls of the feature.
    pub feature: Option<String>,
    /// Number of requests for each `per`.
    pub requests: Option<u32>,
    /// `second`, `minute`, `hour` or `day`; or `customer_id`, `feature` or `session_id`, if the
    /// limit holds for each value separately; or a list with a time and a dimension.
    #[serde(default)]
    pub per: PerConfig,
    /// Number of requests allowed at once after a pause; `requests` unless given.
    pub burst: Option<u32>,
    /// Maximum number of requests running at the same time.
    pub concurrent: Option<u32>,
}

/// Unit of time of a rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Per {
    /// One second.
    Second,
    /// 60 seconds.
    Minute,
    /// 3,600 seconds.
    Hour,
    /// 86,400 seconds.
    Day,
}

impl Per {
    /// Returns the name used in the configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Second => "second",
            Self::Minute => "minute",
            Self::Hour => "hour",
            Self::Day => "day",
        }
    }
}

/// Unit of time of a rate, and the dimension with a count for each value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PerConfig {
    /// Unit of time; a minute unless given.
    pub time: Option<Per>,
    /// Dimension with a count for each value.
    pub each: Option<Dimension>,
}

impl From<Per> for PerConfig {
    fn from(time: Per) -> Self {
        Self { time: Some(time), each: None }
    }
}

impl PerConfig {
    fn take<E: serde::de::Error>(&mut self, word: &str) -> Result<(), E> {
        let known = [
            ("second", Per::Second),
            ("minute", Per::Minute),
            ("hour", Per::Hour),
            ("day", Per::Day),
        ];
        let time = known.iter().find(|(name, _)| *name == word).map(|(_, per)| *per);
        let each = Dimension::ALL.into_iter().find(|it| it.as_str() == word);
        let twice = match (time, each) {
            (Some(time), _) => self.time.replace(time).is_some(),
            (None, Some(each)) => self.each.replace(each).is_some(),
            (None, None) => {
                let names = known.iter().map(|(name, _)| *name);
                let all: Vec<&str> = names.chain(Dimension::ALL.map(Dimension::as_str)).collect();
                return Err(E::custom(format!("`{word}` is none of {}", all.join(", "))));
            }
        };
        if twice { Err(E::custom(format!("`{word}` is the second of its sort"))) } else { Ok(()) }
    }
}

impl<'de> Deserialize<'de> for PerConfig {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Words;
        impl<'de> serde::de::Visitor<'de> for Words {
            type Value = PerConfig;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a word such as `minute` or `customer_id`, or a list of one of each")
            }

            fn visit_str<E: serde::de::Error>(self, word: &str) -> Result<PerConfig, E> {
                let mut per = PerConfig::default();
                per.take(word).map(|()| per)
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(
                self,
                mut words: A,
            ) -> Result<PerConfig, A::Error> {
                let mut per = PerConfig::default();
                while let Some(word) = words.next_element::<String>()? {
                    per.take(&word)?;
                }
                Ok(per)
            }
        }
        deserializer.deserialize_any(Words)
    }
}

/// One entry of `policies`: the short form of a policy.
#[derive(Clone, Debug, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyConfig {
    /// Name of the policy.
    pub name: String,
    /// Principal bound by the policy; without a principal and a team, the policy binds everyone.
    pub principal: Option<String>,
    /// Team bound by the policy.
    pub team: Option<String>,
    /// Only the listed providers.
    pub allowed_providers: Option<Vec<String>>,
    /// All but the listed providers.
    #[serde(default)]
    pub denied_providers: Vec<String>,
    /// Only the listed models; `*` stands for any text.
    pub allowed_models: Option<Vec<String>>,
    /// All but the listed models.
    #[serde(default)]
    pub denied_models: Vec<String>,
    /// Only the listed regions; an unknown region counts as not listed.
    pub allowed_regions: Option<Vec<String>>,
    /// All but the listed regions.
    #[serde(default)]
    pub denied_regions: Vec<String>,
    /// Regular expressions that must not match the text sent to the model.
    #[serde(default)]
    pub denied_content: Vec<String>,
    /// Maximum cost of a request, in USD.
    pub max_cost: Option<f64>,
    /// Worst-case cost, in USD, from which a human must approve; 0 means always.
    pub approval_above: Option<f64>,
    /// Whether a violation leads to a refusal or only to a warning.
    #[serde(default)]
    pub enforcement: Enforcement,
    /// Signal sent to a process after the policy refused a request of the process; none unless
    /// given.
    pub signal: Option<Signal>,
}

/// Signal ending a process. The signal follows a refusal and stops no request: the request was held
/// before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Signal {
    /// `SIGTERM`: the process may clean up.
    Term,
    /// `SIGKILL`: the process cannot clean up.
    Kill,
}

impl Signal {
    /// Every signal.
    pub const ALL: [Self; 2] = [Self::Term, Self::Kill];

    /// Returns the signal as spelled in telemetry and annotations.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Term => "TERM",
            Self::Kill => "KILL",
        }
    }
}

/// Consequence of a policy violation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Enforcement {
    /// A refusal.
    #[default]
    Block,
    /// A warning.
    Warn,
}

/// A Cedar file, read by the caller.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct PolicyText {
    /// Origin of the text; error messages use the name.
    pub name: String,
    /// Text of the file.
    pub text: String,
}

/// One entry of `sla`: a latency target.
#[derive(Clone, Debug, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SlaConfig {
    /// `genops.sla.tier`.
    pub tier: String,
    /// Only calls of the principal.
    pub principal: Option<String>,
    /// Only calls to the models; `*` stands for any text.
    pub model: Option<String>,
    /// Maximum time from the request's first byte to the response's last byte, in milliseconds.
    pub latency_target_ms: u64,
}

/// The `prices` section.
#[derive(Clone, Debug, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PricesConfig {
    /// Cost assumed for an unknown model.
    #[serde(default)]
    pub unknown_model: UnknownModel,
    /// Amount reserved for a request.
    #[serde(default)]
    pub estimate: Estimate,
    /// Output tokens assumed if the request sets no limit and the model's limit is unknown. Unless
    /// given: the model's context window, or the highest output limit among the provider's models.
    pub default_max_output_tokens: Option<u64>,
    /// Assumed maximum duration of a request, in seconds, if no price of the configuration gives a
    /// duration; [`Self::MAX_SECONDS`] unless given.
    pub default_max_seconds: Option<u64>,
    /// Price data beside the built-in table: a file in the form of the `genai-prices` project,
    /// taking precedence over the table.
    pub file: Option<String>,
    /// SHA-256 of `file`, in hexadecimal digits.
    pub sha256: Option<String>,
    /// Ed25519 key, in base64, of the signature on `file`. The signature, in base64, lies next to
    /// the file, under the file's name with `.sig` appended.
    pub public_key: Option<String>,
    /// Prices replacing or adding to the built-in prices; the first match wins.
    #[serde(default)]
    pub overrides: Vec<PriceConfig>,
}

impl PricesConfig {
    /// Default timeout of the common client libraries, in seconds ([`DEFAULT_TIMEOUT`][oa]); a
    /// retry is another request.
    ///
    /// [oa]: https://github.com/openai/openai-python/blob/main/src/openai/_constants.py
    pub const MAX_SECONDS: u64 = 600;
}

/// A price file, reduced to the data needed for price look-ups.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, serde::Serialize)]
pub struct PriceTable {
    /// Path of the file.
    pub file: String,
    /// SHA-256 of the file, in hexadecimal digits.
    pub sha256: String,
    /// Lines made from the file by [`crate::prices::data::compile`].
    pub lines: String,
}

/// A configured price: a contract, a discount, or a self-hosted model.
#[derive(Clone, Debug, PartialEq, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PriceConfig {
    /// Provider; any unless given.
    pub provider: Option<String>,
    /// Models; `*` stands for any text.
    pub model: String,
    /// USD for a million input tokens; may be absent if a price per second is given, and is 0 then.
    pub input_per_million: Option<f64>,
    /// USD for a million output tokens; may be absent if a price per second is given, and is 0
    /// then.
    pub output_per_million: Option<f64>,
    /// USD for a million input tokens read from a cache; as input unless given.
    pub cache_read_per_million: Option<f64>,
    /// USD for a million input tokens written to a cache; as input unless given.
    pub cache_write_per_million: Option<f64>,
    /// USD for a second of a request's duration, from the first byte to the end of the answer.
    pub per_second: Option<f64>,
    /// Maximum output tokens of the model.
    pub max_output_tokens: Option<u64>,
    /// Maximum duration of a request, in seconds; the reservation is for the maximum duration.
    pub max_seconds: Option<u64>,
}

/// One entry of `model_tiers`: a name for a group of models, `GenOps::Tier::"name"` in Cedar.
#[derive(Clone, Debug, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TierConfig {
    /// Name of the tier.
    pub name: String,
    /// Models of the tier; `*` stands for any text.
    pub models: Vec<String>,
}

/// One entry of `providers`: an endpoint beside the built-in list, or more facts about a built-in
/// endpoint.
#[derive(Clone, Debug, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProviderConfig {
    /// Host name.
    pub host: String,
    /// Port; any unless given.
    pub port: Option<u16>,
    /// API spoken by the endpoint; may be absent if the entry only adds the region of a known host.
    pub dialect: Option<String>,
    /// Region of the endpoint's computation.
    pub region: Option<String>,
    /// Endpoints of the host that need no decision, each a method and a path, for example
    /// `POST /v1/files/*`.
    #[serde(default)]
    pub harmless: Vec<String>,
}

/// Kernel's verdict if no decision came in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnTimeout {
    /// The request is released.
    #[default]
    Open,
    /// The request is denied.
    Closed,
}

/// Every section of the configuration needed by governance.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Sections {
    /// `genops.environment`, unless a principal has another.
    pub environment: Option<String>,
    /// Observe or enforce.
    pub mode: Mode,
    /// Treatment of unmapped processes in enforce mode.
    pub unmapped: Unmapped,
    /// Treatment of connections without a plaintext reader.
    pub uninspectable: Uninspectable,
    /// Treatment of TLS handshakes without a probe and without a confirmed server name.
    pub unnamed: Unnamed,
    /// Whether to refuse a request covered by neither a Cedar `permit` nor a grant.
    pub default_deny: bool,
    /// Whether to refuse a request covered by no grant, even if a policy permits the request.
    pub require_authority: bool,
    /// Principals.
    pub principals: Vec<PrincipalConfig>,
    /// Humans.
    pub humans: Vec<HumanConfig>,
    /// Grants of authority.
    pub grants: Vec<GrantConfig>,
    /// Budgets.
    pub budgets: Vec<BudgetConfig>,
    /// Rate limits.
    pub rate_limits: Vec<RateLimitConfig>,
    /// Policies in the short form.
    pub policies: Vec<PolicyConfig>,
    /// Cedar files.
    pub policy_files: Vec<PolicyText>,
    /// Names for groups of models.
    pub model_tiers: Vec<TierConfig>,
    /// Endpoints beside the built-in list.
    pub providers: Vec<ProviderConfig>,
    /// Latency targets.
    pub sla: Vec<SlaConfig>,
    /// Prices.
    pub prices: PricesConfig,
    /// Contents of the file of `prices`, read and checked by the caller.
    pub price_table: Option<PriceTable>,
}
