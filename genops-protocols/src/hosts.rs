//! Hosts of AI providers, and path endings of AI APIs on any host.
//!
//! To add a provider with a known dialect, add a line to `BUILTIN`. Names are compared, never
//! resolved.

use std::borrow::Cow;
use std::collections::HashMap;

use crate::dialect;
use crate::harmless;
use crate::path::Path;

/// Path endings of AI APIs on any host. Cut the query before comparing.
///
/// Endings with a leading colon are Google's custom methods.
pub const API_PATH_SUFFIXES: &[&str] = &[
    "/chat/completions",
    "/completions",
    "/responses",
    "/responses/compact",
    "/embeddings",
    "/images/generations",
    "/images/edits",
    "/images/variations",
    "/audio/speech",
    "/audio/transcriptions",
    "/audio/translations",
    "/moderations",
    "/realtime",
    "/v1/messages",
    "/v1/complete",
    "/v1/generate",
    "/v1/chat",
    "/v2/chat",
    "/v1/embed",
    "/v2/embed",
    "/rerank",
    "/api/chat",
    "/api/generate",
    "/api/embed",
    "/api/embeddings",
    "/converse",
    "/converse-stream",
    "/invoke",
    "/invoke-with-response-stream",
    "/text/generation",
    "/text/generation_stream",
    "/text/chat",
    "/text/chat_stream",
    "/predictions",
    "/interactions",
    ":generateContent",
    ":streamGenerateContent",
    ":embedContent",
    ":batchEmbedContents",
    ":predict",
    ":rawPredict",
    ":streamRawPredict",
];

/// Pattern of the hosts of a provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostPattern<'a> {
    /// Lower case. The whole name; or, if starting with `.` or `-`, the end of the name.
    pub suffix: &'a str,
    /// Lower case. Start of the name, e.g. `bedrock-runtime.`; empty for any.
    pub prefix: &'a str,
    /// Required port; `None` for any.
    pub port: Option<u16>,
    /// `gen_ai.provider.name` of the hosts.
    pub provider: &'a str,
}

impl HostPattern<'_> {
    /// Returns whether the pattern is the end of a name, not a whole name.
    fn is_ending(&self) -> bool {
        self.suffix.starts_with(['.', '-'])
    }

    /// Returns whether a host matches. `host` must be lower case and without port.
    #[must_use]
    pub fn matches(&self, host: &str, port: Option<u16>) -> bool {
        let by_port = self.port.is_none() || self.port == port;
        let by_name = if self.is_ending() {
            host.len() > self.suffix.len() + self.prefix.len()
                && host.ends_with(self.suffix)
                && host.starts_with(self.prefix)
        } else {
            host == self.suffix
        };
        by_port && by_name
    }
}

/// An unknown dialect name in a configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown dialect `{dialect}` of host `{host}`; known are {known}")]
pub struct UnknownDialect {
    /// Name, as given.
    pub dialect: String,
    /// Host given with the name.
    pub host: String,
    /// Known names, separated by commas.
    pub known: String,
}

/// Hosts of AI providers: the built-in list and the additions of the configuration.
#[derive(Clone, Debug)]
pub struct Hosts {
    /// Of two matching entries the later wins: entries of the configuration are at the end.
    entries: Vec<Entry>,
    /// Entries with a whole name, by name.
    names: HashMap<Cow<'static, str>, Vec<usize>>,
    /// Entries with the end of a name, by the last two labels; by the empty string if either is
    /// partial.
    endings: HashMap<Box<str>, Vec<usize>>,
    /// Harmless endpoints of the configuration: host as in an entry, method, pattern of the path.
    harmless: Vec<(String, String, String)>,
}

/// An unreadable line of `harmless`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a method and a whole path, such as `POST /v1/files/*`")]
pub struct HarmlessFault(pub String);

#[derive(Clone, Debug)]
struct Entry {
    suffix: Cow<'static, str>,
    prefix: &'static str,
    port: Option<u16>,
    provider: &'static str,
}

/// Facts of a known host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KnownHost {
    pub(crate) provider: &'static str,
}

impl Hosts {
    /// Returns the providers known to the crate.
    #[must_use]
    pub fn builtin() -> Self {
        let entry = |&(prefix, suffix, port, provider): &Builtin| Entry {
            suffix: Cow::Borrowed(suffix),
            prefix,
            port,
            provider,
        };
        let mut hosts = Self {
            entries: Vec::with_capacity(BUILTIN.len()),
            names: HashMap::with_capacity(BUILTIN.len()),
            endings: HashMap::new(),
            harmless: Vec::new(),
        };
        BUILTIN.iter().rev().map(entry).for_each(|it| hosts.add(it));
        hosts
    }

    fn add(&mut self, entry: Entry) {
        let at = self.entries.len();
        if entry.pattern().is_ending() {
            self.endings.entry(last_two_labels(&entry.suffix).into()).or_default().push(at);
        } else {
            self.names.entry(entry.suffix.clone()).or_default().push(at);
        }
        self.entries.push(entry);
    }

    /// Adds a host of the configuration; `.example.com` stands for every name below.
    pub fn with(
        mut self,
        host: &str,
        port: Option<u16>,
        dialect: &str,
    ) -> Result<Self, UnknownDialect> {
        let Some(provider) = dialect::provider_of_name(dialect) else {
            return Err(UnknownDialect {
                dialect: dialect.to_owned(),
                host: host.to_owned(),
                known: dialect::names().collect::<Vec<_>>().join(", "),
            });
        };
        let suffix = Cow::Owned(host.to_ascii_lowercase());
        self.add(Entry { suffix, prefix: "", port, provider });
        Ok(self)
    }

    /// Adds an endpoint of a host needing no decision, such as `POST /v1/files/*`: `*` matches a
    /// single segment, `**` at the end all further segments.
    ///
    /// # Errors
    ///
    /// The line, if not a method and a whole path.
    pub fn with_harmless(mut self, host: &str, line: &str) -> Result<Self, HarmlessFault> {
        let read = harmless::parse(line).ok_or_else(|| HarmlessFault(line.to_owned()))?;
        let (method, pattern) = read;
        self.harmless.push((host.to_ascii_lowercase(), method.to_owned(), pattern.to_owned()));
        Ok(self)
    }

    /// Returns whether the configuration lists the endpoint as harmless.
    pub(crate) fn is_harmless(&self, host: &str, method: &str, path: &Path) -> bool {
        let host = host.to_ascii_lowercase();
        self.harmless.iter().any(|(suffix, verb, pattern)| {
            let whole = HostPattern { suffix, prefix: "", port: None, provider: "" };
            whole.matches(&host, None) && verb == method && harmless::matches(pattern, path)
        })
    }

    /// Returns every pattern, for filters before decoding.
    pub fn host_patterns(&self) -> impl Iterator<Item = HostPattern<'_>> {
        self.entries.iter().rev().map(Entry::pattern)
    }

    /// Finds a host; `host` in any case, without port.
    pub(crate) fn find(&self, host: &str, port: Option<u16>) -> Option<KnownHost> {
        let host = host.to_ascii_lowercase();
        let fits = |at: &usize| {
            self.entries.get(*at).is_some_and(|entry| entry.pattern().matches(&host, port))
        };
        let last = |all: &[usize]| all.iter().copied().rfind(|at| fits(at));
        let named = self.names.get(host.as_str()).and_then(|all| last(all));
        let ending = |labels: &str| self.endings.get(labels).and_then(|all| last(all));
        let ending = ending("").max(ending(last_two_labels(&host)));
        let entry = self.entries.get(named.max(ending)?)?;
        Some(KnownHost { provider: entry.provider })
    }
}

impl Default for Hosts {
    fn default() -> Self {
        Self::builtin()
    }
}

impl Entry {
    fn pattern(&self) -> HostPattern<'_> {
        let Self { suffix, prefix, port, provider } = self;
        HostPattern { suffix, prefix, port: *port, provider }
    }
}

/// Returns the text after the second-last dot; empty with fewer than two dots.
fn last_two_labels(name: &str) -> &str {
    name.rmatch_indices('.').nth(1).and_then(|(at, _)| name.get(at + 1..)).unwrap_or_default()
}

/// Returns the region in a host name, for providers with regions in host names.
pub(crate) fn region_of_host(host: &str) -> Option<&str> {
    let labels = || host.split('.');
    let region = if host.ends_with(".amazonaws.com")
        || host.ends_with(".amazonaws.com.cn")
        || host.ends_with(".api.aws")
    {
        let mut after = labels().skip_while(|label| !label.starts_with("bedrock"));
        after.next()?;
        after.next()?
    } else if let Some(region) = host.strip_suffix("-aiplatform.googleapis.com") {
        region
    } else if let Some(rest) = host.strip_suffix(".rep.googleapis.com") {
        rest.strip_prefix("aiplatform.")?
    } else if let Some(region) = host.strip_suffix(".ml.cloud.ibm.com") {
        region
    } else {
        host.strip_suffix(".api.cognitive.microsoft.com")?
    };
    let plausible = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    (!region.is_empty() && region.bytes().all(plausible)).then_some(region)
}

/// Prefix, suffix, port, provider.
type Builtin = (&'static str, &'static str, Option<u16>, &'static str);

/// The first match wins. Provider names are taken from the semantic conventions if defined there.
const BUILTIN: &[Builtin] = &[
    ("", "api.openai.com", None, "openai"),
    ("", ".api.openai.com", None, "openai"),
    // As a whole: the product is chats, and other requests to the host are not documented.
    ("", "chatgpt.com", None, "openai"),
    ("", ".openai.azure.com", None, "azure.ai.openai"),
    ("", ".openai.azure.us", None, "azure.ai.openai"),
    ("", ".services.ai.azure.com", None, "azure.ai.inference"),
    ("", ".models.ai.azure.com", None, "azure.ai.inference"),
    ("", ".inference.ml.azure.com", None, "azure.ai.inference"),
    ("", "models.inference.ai.azure.com", None, "azure.ai.inference"),
    ("", ".cognitiveservices.azure.com", None, "azure.ai.openai"),
    ("", ".api.cognitive.microsoft.com", None, "azure.ai.openai"),
    ("", "api.anthropic.com", None, "anthropic"),
    ("", ".anthropic.com", None, "anthropic"),
    ("", "generativelanguage.googleapis.com", None, "gcp.gemini"),
    ("", "cloudcode-pa.googleapis.com", None, "gcp.gemini"),
    ("", "-cloudcode-pa.googleapis.com", None, "gcp.gemini"),
    ("", "-cloudcode-pa.sandbox.googleapis.com", None, "gcp.gemini"),
    ("", "aiplatform.googleapis.com", None, "gcp.vertex_ai"),
    ("", "-aiplatform.googleapis.com", None, "gcp.vertex_ai"),
    ("aiplatform.", ".rep.googleapis.com", None, "gcp.vertex_ai"),
    ("bedrock-runtime.", ".amazonaws.com", None, "aws.bedrock"),
    ("bedrock-runtime-fips.", ".amazonaws.com", None, "aws.bedrock"),
    ("bedrock-agent-runtime.", ".amazonaws.com", None, "aws.bedrock"),
    ("bedrock-runtime.", ".amazonaws.com.cn", None, "aws.bedrock"),
    ("bedrock-runtime.", ".api.aws", None, "aws.bedrock"),
    ("bedrock-mantle.", ".api.aws", None, "aws.bedrock"),
    ("", "api.mistral.ai", None, "mistral_ai"),
    ("", "codestral.mistral.ai", None, "mistral_ai"),
    ("", "api.cohere.com", None, "cohere"),
    ("", "api.cohere.ai", None, "cohere"),
    ("", "api.groq.com", None, "groq"),
    ("", "api.deepseek.com", None, "deepseek"),
    ("", "api.x.ai", None, "x_ai"),
    ("", ".api.x.ai", None, "x_ai"),
    ("", "api.perplexity.ai", None, "perplexity"),
    ("", "api.together.xyz", None, "together_ai"),
    ("", "api.together.ai", None, "together_ai"),
    ("", "openrouter.ai", None, "openrouter"),
    ("", "router.huggingface.co", None, "huggingface"),
    ("", "api-inference.huggingface.co", None, "huggingface"),
    ("", "huggingface.co", None, "huggingface"),
    ("", ".endpoints.huggingface.cloud", None, "huggingface"),
    ("", "ollama.com", None, "ollama"),
    ("", ".ml.cloud.ibm.com", None, "ibm.watsonx.ai"),
    ("", "api.replicate.com", None, "replicate"),
    ("", ".replicate.net", None, "replicate"),
    ("", ".replicate.delivery", None, "replicate"),
    ("", "api.githubcopilot.com", None, "github_copilot"),
    ("", ".githubcopilot.com", None, "github_copilot"),
    ("", "copilot-proxy.githubusercontent.com", None, "github_copilot"),
    ("", "models.github.ai", None, "github_models"),
    ("", "api.cerebras.ai", None, "cerebras"),
    ("", "api.fireworks.ai", None, "fireworks"),
    ("", "api.deepinfra.com", None, "deepinfra"),
    ("", "api.sambanova.ai", None, "sambanova"),
    ("", "api.studio.nebius.ai", None, "nebius"),
    ("", "api.studio.nebius.com", None, "nebius"),
    ("", "api.tokenfactory.nebius.com", None, "nebius"),
    ("", "api.novita.ai", None, "novita"),
    ("", "api.hyperbolic.xyz", None, "hyperbolic"),
    ("", "api.lambda.ai", None, "lambda"),
    ("", "api.friendli.ai", None, "friendli"),
    ("", "inference.baseten.co", None, "baseten"),
    ("", ".api.baseten.co", None, "baseten"),
    ("", "integrate.api.nvidia.com", None, "nvidia"),
    ("", "ai.api.nvidia.com", None, "nvidia"),
    ("", "api.moonshot.ai", None, "moonshot_ai"),
    ("", "api.moonshot.cn", None, "moonshot_ai"),
    ("", "api.minimax.io", None, "minimax"),
    ("", "api.minimaxi.com", None, "minimax"),
    ("", "api.siliconflow.cn", None, "siliconflow"),
    ("", "api.siliconflow.com", None, "siliconflow"),
    ("", "dashscope.aliyuncs.com", None, "alibaba_cloud"),
    ("", "dashscope-intl.aliyuncs.com", None, "alibaba_cloud"),
    ("ark.", ".volces.com", None, "volcengine"),
    ("", "api.stepfun.com", None, "stepfun"),
    ("", "api.z.ai", None, "z_ai"),
    ("", "open.bigmodel.cn", None, "z_ai"),
    ("", "api.venice.ai", None, "venice"),
    ("", "api.writer.com", None, "writer"),
    ("", "api.voyageai.com", None, "voyageai"),
    ("", "api.jina.ai", None, "jina"),
    ("", "api.aleph-alpha.com", None, "aleph_alpha"),
    ("", "api.ai21.com", None, "ai21"),
    ("", "api.upstage.ai", None, "upstage"),
    ("", "api.reka.ai", None, "reka"),
    ("", "api.inceptionlabs.ai", None, "inception"),
    ("", "api.doubleword.ai", None, "doubleword"),
    ("", "api.inference.crusoecloud.com", None, "crusoe"),
    ("", "api.scaleway.ai", None, "scaleway"),
    ("", ".inference.heroku.com", None, "heroku"),
    ("", ".snowflakecomputing.com", None, "snowflake"),
    ("", "api.portkey.ai", None, "portkey"),
    ("", "gateway.pydantic.dev", None, "pydantic_gateway"),
    ("", "ai-gateway.vercel.sh", None, "vercel"),
    ("", "gateway.ai.cloudflare.com", None, "cloudflare"),
    ("", "api.elevenlabs.io", None, "elevenlabs"),
    ("", "api.stability.ai", None, "stability_ai"),
    ("", "localhost", Some(11434), "ollama"),
    ("", "127.0.0.1", Some(11434), "ollama"),
    ("", "::1", Some(11434), "ollama"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(host: &str, port: Option<u16>, expected: Option<&str>) {
        let found = Hosts::builtin().find(host, port).map(|known| known.provider);
        assert_eq!(found, expected, "{host}");
    }

    #[test]
    fn a_host_is_known_by_its_whole_name_or_by_its_ends() {
        check("API.OpenAI.com", None, Some("openai"));
        check("eu.api.openai.com", Some(443), Some("openai"));
        check("api.openai.com.evil.example", None, None);
        check("notapi.openai.community", None, None);
        check("bedrock-runtime.eu-west-1.amazonaws.com", None, Some("aws.bedrock"));
        check("s3.eu-west-1.amazonaws.com", None, None);
        check("us-east5-aiplatform.googleapis.com", None, Some("gcp.vertex_ai"));
        check("localhost", Some(11434), Some("ollama"));
        check("localhost", Some(8080), None);
    }

    #[test]
    fn a_configured_host_wins_and_a_wrong_dialect_is_named() {
        let hosts = Hosts::builtin().with("LLM.internal", Some(8000), "openai").expect("a dialect");
        assert_eq!(hosts.find("llm.internal", Some(8000)).map(|it| it.provider), Some("openai"));
        assert_eq!(hosts.find("llm.internal", Some(9000)), None);
        let below = |host: &str, ending: &str| {
            let hosts = Hosts::builtin().with(ending, None, "anthropic").expect("a dialect");
            hosts.find(host, None).map(|it| it.provider)
        };
        assert_eq!(below("llm.corp", ".corp"), Some("anthropic"));
        assert_eq!(below("a.llm.corp", ".corp"), Some("anthropic"));
        assert_eq!(below("a.b.llm.corp", ".llm.corp"), Some("anthropic"));
        assert_eq!(below("eu.api.openai.com", ".openai.com"), Some("anthropic"));
        assert_eq!(below("llm.corp", ".llm.corp"), None);
        let refusal = hosts.with("llm.internal", None, "opneai").expect_err("no dialect");
        assert!(refusal.to_string().starts_with("unknown dialect `opneai` of host `llm.internal`"));
    }

    #[test]
    fn the_region_is_read_where_the_host_names_it() {
        let region = |host| region_of_host(host);
        assert_eq!(region("bedrock-runtime.eu-west-1.amazonaws.com"), Some("eu-west-1"));
        assert_eq!(
            region("vpce-1.bedrock-runtime.us-east-1.vpce.amazonaws.com"),
            Some("us-east-1")
        );
        assert_eq!(region("europe-west4-aiplatform.googleapis.com"), Some("europe-west4"));
        assert_eq!(region("us-south.ml.cloud.ibm.com"), Some("us-south"));
        assert_eq!(region("bedrock-runtime.<aws_region>.amazonaws.com"), None);
        assert_eq!(region("api.openai.com"), None);
    }
}
