//! The sections of the configuration file that governance owns, field for field.
//!
//! Only shapes here; [`crate::Settings::compile`] says whether the values make sense. A key that
//! does not exist is an error: it is a typo in a policy.

use serde::Deserialize;

/// Whether refusals are carried out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Everything passes; what would have been refused is a warning.
    #[default]
    Observe,
    /// Refusals are carried out where the kernel can hold the request.
    Enforce,
}

impl Mode {
    /// The name, as in the configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Observe => "observe",
            Self::Enforce => "enforce",
        }
    }
}

/// What happens in enforce mode to a process that no configured principal matches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unmapped {
    /// It passes with a warning, if nothing else speaks against it.
    #[default]
    Warn,
    /// It is refused.
    Block,
}

/// What happens to a connection to a provider whose plaintext no probe reads: of it only process, provider,
/// time and bytes are known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Uninspectable {
    /// It passes, if nothing that is known speaks against it.
    Allow,
    /// Likewise, with a warning.
    #[default]
    Warn,
    /// In enforce mode it is ended before it carries a request.
    Block,
}

/// What happens to a TLS handshake of a process in enforce mode that no probe reads, and whose server name is absent,
/// hidden, or not what name servers or the hosts file call the address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unnamed {
    /// It passes, and nobody is told.
    #[default]
    Allow,
    /// It passes, with a warning.
    Warn,
    /// The connection is ended before it carries anything.
    Block,
}

/// What a request is assumed to cost when no price is known for its model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnknownModel {
    /// The dearest price of its provider, and a warning. Where the provider is not known either,
    /// it is accounted in tokens, and refused where a budget in USD applies; a server of your own
    /// (Ollama, vLLM, llama.cpp) draws nothing from such a budget.
    #[default]
    Conservative,
    /// It is refused.
    Block,
    /// Nothing in USD: it is accounted in tokens.
    TokensOnly,
}

/// How much is reserved for a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Estimate {
    /// As much as it can cost at most, as far as the request says.
    #[default]
    WorstCase,
    /// The 95th percentile of what this principal's calls to this model cost lately; the worst
    /// case until 20 of them are known.
    P95,
}

/// One entry of `principals`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrincipalConfig {
    /// What it is called.
    pub name: String,
    /// Which processes are it.
    #[serde(default, rename = "match")]
    pub matches: MatchConfig,
    /// `genops.team`.
    pub team: Option<String>,
    /// `genops.project`.
    pub project: Option<String>,
    /// `genops.environment`, where it differs from the file's.
    pub environment: Option<String>,
    /// `genops.cost_center`.
    pub cost_center: Option<String>,
    /// `genops.customer_id`.
    pub customer_id: Option<String>,
    /// `genops.feature`.
    pub feature: Option<String>,
    /// Where its requests say whom they are for, each by itself.
    #[serde(default)]
    pub attribution: AttributionConfig,
    /// The human who answers for it.
    pub delegated_by: Option<String>,
    /// From when its authority holds.
    pub not_before: Option<String>,
    /// Until when its authority holds.
    pub expires: Option<String>,
    /// Observe or enforce, where it differs from the file's.
    pub mode: Option<Mode>,
    /// The grant it acts under.
    pub grant: Option<String>,
    /// It is a sub-agent: only descendants of a process of this principal match, and everything
    /// that binds that principal binds them too.
    pub subagent_of: Option<String>,
}

/// Where requests say whom they are for: `header:NAME`, `baggage:KEY`, `body:PATH` or
/// `conversation`; the first that says something counts. It is the client's word: it splits what
/// the principal may use, and grants nothing.
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

/// What a request can be for.
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
    /// Every one.
    pub const ALL: [Self; 3] = [Self::CustomerId, Self::Feature, Self::SessionId];

    /// Its name in the configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::CustomerId => "customer_id",
            Self::Feature => "feature",
            Self::SessionId => "session_id",
        }
    }
}

/// What a process must be like. All that are given must hold; `*` stands for any text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MatchConfig {
    /// Name of the user, or its number. In a container it counts only together with `container`,
    /// `namespace` or `service_account`.
    pub user: Option<String>,
    /// Path of the executable: the very file that the host has there, or had. In a container, as
    /// with `user`, its path in there.
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
    /// Whether a program of this path would be asked for.
    #[must_use]
    pub fn may_be_program(&self, path: &str) -> bool {
        self.exe.as_deref().is_some_and(|it| crate::glob::matches(it, path))
    }
}

/// One entry of `grants`: authority handed down by somebody.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrantConfig {
    /// What it is called.
    pub name: String,
    /// The grant it narrows; a root grant has none.
    pub parent: Option<String>,
    /// Who hands it down. A root grant's must be a human.
    pub delegated_by: Option<String>,
    /// The human who answers for it; of a root grant `delegated_by` unless given.
    pub accountable: Option<String>,
    /// From when it holds.
    pub not_before: Option<String>,
    /// Until when it holds.
    pub expires: Option<String>,
    /// How many further grants may hang below it.
    pub max_depth: Option<u32>,
    /// It was taken back.
    #[serde(default)]
    pub revoked: bool,
    /// What it covers.
    #[serde(default)]
    pub scope: ScopeConfig,
}

/// What a grant covers. A list that is absent covers everything.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScopeConfig {
    /// Providers.
    pub providers: Option<Vec<String>>,
    /// Models; `*` stands for any text.
    pub models: Option<Vec<String>>,
    /// Regions; `*` stands for any text.
    pub regions: Option<Vec<String>>,
    /// Operations, such as `chat`.
    pub operations: Option<Vec<String>>,
    /// Most one request may cost, in USD.
    pub max_cost: Option<f64>,
}

/// One entry of `budgets`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BudgetConfig {
    /// What it is called.
    pub name: String,
    /// Whose: without any of these, everyone's.
    pub team: Option<String>,
    /// Whose.
    pub project: Option<String>,
    /// Whose.
    pub principal: Option<String>,
    /// Whose.
    pub cost_center: Option<String>,
    /// For calls to this provider.
    pub provider: Option<String>,
    /// For calls to these models; `*` stands for any text.
    pub model: Option<String>,
    /// For calls of this customer.
    pub customer_id: Option<String>,
    /// For calls of this feature.
    pub feature: Option<String>,
    /// The limit holds for each customer, feature or session by itself.
    pub per: Option<Dimension>,
    /// `USD` or `tokens`.
    #[serde(default)]
    pub unit: Unit,
    /// How much.
    pub limit: f64,
    /// For how long.
    pub period: Option<crate::time::Period>,
    /// Time zone of the period's borders; UTC unless given.
    pub timezone: Option<String>,
    /// Percentages of the limit from which calls are warnings.
    #[serde(default)]
    pub thresholds: Vec<u8>,
}

/// What a budget counts.
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
}

impl Unit {
    /// The unit as telemetry spells it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Usd => "USD",
            Self::Tokens => "tokens",
        }
    }

    /// An amount of this unit in words: `0.0125 USD`, `300 tokens`.
    #[must_use]
    pub fn in_words(self, amount: i64) -> String {
        match self {
            Self::Usd => format!("{} USD", crate::money::format_usd(amount)),
            Self::Tokens => format!("{amount} tokens"),
        }
    }

    /// An amount of this unit as the double that telemetry wants.
    #[must_use]
    pub fn to_double(self, amount: i64) -> f64 {
        match self {
            Self::Usd => crate::money::to_usd(amount),
            #[expect(clippy::cast_precision_loss, reason = "telemetry wants a double")]
            Self::Tokens => amount as f64,
        }
    }
}

/// One entry of `rate_limits`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimitConfig {
    /// What it is called.
    pub name: String,
    /// Whose: each team, principal or provider named has its own count; none: everyone together.
    pub principal: Option<String>,
    /// Whose.
    pub team: Option<String>,
    /// For calls to this provider.
    pub provider: Option<String>,
    /// For calls of this customer.
    pub customer_id: Option<String>,
    /// For calls of this feature.
    pub feature: Option<String>,
    /// How many requests a `per`.
    pub requests: Option<u32>,
    /// `second`, `minute`, `hour` or `day`; `customer_id`, `feature` or `session_id`, if it holds
    /// for each by itself; or one of both, as a list.
    #[serde(default)]
    pub per: PerConfig,
    /// How many may come at once after a pause; `requests` unless given.
    pub burst: Option<u32>,
    /// How many may run at the same time.
    pub concurrent: Option<u32>,
}

/// What a rate is counted by.
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

/// What a rate is counted by, and for each of what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PerConfig {
    /// The time; a minute unless given.
    pub time: Option<Per>,
    /// For each of these by itself.
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

/// One entry of `policies`: the short form.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyConfig {
    /// What it is called.
    pub name: String,
    /// Whom it binds; neither a principal nor a team: everyone.
    pub principal: Option<String>,
    /// Whom it binds.
    pub team: Option<String>,
    /// Only these providers.
    pub allowed_providers: Option<Vec<String>>,
    /// Not these providers.
    #[serde(default)]
    pub denied_providers: Vec<String>,
    /// Only these models; `*` stands for any text.
    pub allowed_models: Option<Vec<String>>,
    /// Not these models.
    #[serde(default)]
    pub denied_models: Vec<String>,
    /// Only these regions; a region that is not known is not among them.
    pub allowed_regions: Option<Vec<String>>,
    /// Not these regions.
    #[serde(default)]
    pub denied_regions: Vec<String>,
    /// Regular expressions that the text sent to the model must not match.
    #[serde(default)]
    pub denied_content: Vec<String>,
    /// Most one request may cost, in USD.
    pub max_cost: Option<f64>,
    /// From which worst-case cost on, in USD, a human must approve; 0 means always.
    pub approval_above: Option<f64>,
    /// Whether a violation is refused or only a warning.
    #[serde(default)]
    pub enforcement: Enforcement,
    /// Sent to a process whose request this policy refuses; none unless given.
    pub signal: Option<Signal>,
}

/// What ends a process. It follows a refusal and stops nothing itself: the request was held before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Signal {
    /// The process may clean up.
    Term,
    /// It may not.
    Kill,
}

impl Signal {
    /// Every signal that there is.
    pub const ALL: [Self; 2] = [Self::Term, Self::Kill];

    /// The signal as telemetry and annotations spell it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Term => "TERM",
            Self::Kill => "KILL",
        }
    }
}

/// What a violation of a policy leads to.
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
#[derive(Clone, Debug, Default)]
pub struct PolicyText {
    /// Where it was read: what error messages call it.
    pub name: String,
    /// What it says.
    pub text: String,
}

/// One entry of `sla`: a latency target.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SlaConfig {
    /// `genops.sla.tier`.
    pub tier: String,
    /// For calls of this principal.
    pub principal: Option<String>,
    /// For calls to these models; `*` stands for any text.
    pub model: Option<String>,
    /// Longest time from the request's first byte to the response's last, in milliseconds.
    pub latency_target_ms: u64,
}

/// The `prices` section.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PricesConfig {
    /// What an unknown model is assumed to cost.
    #[serde(default)]
    pub unknown_model: UnknownModel,
    /// How much is reserved.
    #[serde(default)]
    pub estimate: Estimate,
    /// Output tokens assumed when the request sets no limit and the model's is not known; the
    /// model's context window, or the most that its provider has of any model, unless given.
    pub default_max_output_tokens: Option<u64>,
    /// Price data beside the built-in ones: a file of the `genai-prices` project's form, which
    /// comes before them.
    pub file: Option<String>,
    /// SHA-256 of that file, in hexadecimal digits.
    pub sha256: Option<String>,
    /// Ed25519 key, in base64, that the file is signed with; the signature, in base64, is beside it
    /// under its name and `.sig`.
    pub public_key: Option<String>,
    /// Prices that replace or add to the built-in ones; first match wins.
    #[serde(default)]
    pub overrides: Vec<PriceConfig>,
}

/// A price file, as far as it is needed to look prices up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, serde::Serialize)]
pub struct PriceTable {
    /// Its path.
    pub file: String,
    /// SHA-256 of it, in hexadecimal digits.
    pub sha256: String,
    /// Its lines, as [`crate::prices::data::compile`] makes them.
    pub lines: String,
}

/// A price of your own: a contract, a discount, a model that you host.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PriceConfig {
    /// Of which provider; any unless given.
    pub provider: Option<String>,
    /// Of which models; `*` stands for any text.
    pub model: String,
    /// USD for a million input tokens.
    pub input_per_million: f64,
    /// USD for a million output tokens.
    pub output_per_million: f64,
    /// USD for a million input tokens read from a cache; as input unless given.
    pub cache_read_per_million: Option<f64>,
    /// USD for a million input tokens written to a cache; as input unless given.
    pub cache_write_per_million: Option<f64>,
    /// Most output tokens the model gives.
    pub max_output_tokens: Option<u64>,
}

/// One entry of `model_tiers`: a name for a group of models, `GenOps::Tier::"name"` in Cedar.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TierConfig {
    /// What it is called.
    pub name: String,
    /// Which models; `*` stands for any text.
    pub models: Vec<String>,
}

/// One entry of `providers`: an endpoint beside the built-in list, or more about one of it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProviderConfig {
    /// Host name.
    pub host: String,
    /// Port; any unless given.
    pub port: Option<u16>,
    /// Which API it speaks; may be left out where only the region of a known host is meant.
    pub dialect: Option<String>,
    /// Where it computes.
    pub region: Option<String>,
    /// Endpoints of it that need no decision, each a method and a path, such as `POST /v1/files/*`.
    #[serde(default)]
    pub harmless: Vec<String>,
}

/// What the kernel does when no decision came in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnTimeout {
    /// The request passes.
    #[default]
    Open,
    /// It does not.
    Closed,
}

/// Everything of the configuration that governance needs.
#[derive(Clone, Debug, Default)]
pub struct Sections {
    /// `genops.environment` where no principal says otherwise.
    pub environment: Option<String>,
    /// Observe or enforce.
    pub mode: Mode,
    /// What happens to unmapped processes in enforce mode.
    pub unmapped: Unmapped,
    /// What happens to connections whose plaintext is not read.
    pub uninspectable: Uninspectable,
    /// What happens to TLS handshakes that no probe reads and whose server name nobody has confirmed.
    pub unnamed: Unnamed,
    /// Whether a request that no Cedar `permit` covers is refused.
    pub default_deny: bool,
    /// Who is who.
    pub principals: Vec<PrincipalConfig>,
    /// Who may act for whom.
    pub grants: Vec<GrantConfig>,
    /// How much may be used.
    pub budgets: Vec<BudgetConfig>,
    /// How often.
    pub rate_limits: Vec<RateLimitConfig>,
    /// The short form of policies.
    pub policies: Vec<PolicyConfig>,
    /// Cedar files.
    pub policy_files: Vec<PolicyText>,
    /// Names for groups of models.
    pub model_tiers: Vec<TierConfig>,
    /// Endpoints beside the built-in list.
    pub providers: Vec<ProviderConfig>,
    /// Latency targets.
    pub sla: Vec<SlaConfig>,
    /// What things cost.
    pub prices: PricesConfig,
    /// What the file of `prices` says, read and checked by the caller.
    pub price_table: Option<PriceTable>,
}
