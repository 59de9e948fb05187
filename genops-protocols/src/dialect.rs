//! The dialects: what the paths and bodies of each provider's API mean.
//!
//! To add one: write a module here that implements [`Dialect`], add it to [`DIALECTS`], and put a
//! recorded exchange under `tests/captures/`. Nothing else changes. A provider that speaks a
//! dialect we have needs only its host in `hosts.rs`.

mod aleph_alpha;
mod anthropic;
mod bedrock;
mod cohere;
mod gemini;
mod huggingface;
pub(crate) mod jsonrpc;
mod ollama;
mod openai;
mod replicate;
mod rerank;
mod watsonx;

use std::fmt::Debug;
use std::sync::LazyLock;

use crate::call::{Call, Kind, Usage};
use crate::facts::{Facts, Field, List};
use crate::grpc;
use crate::json::Schema;
use crate::json::schema::Want;

/// Every dialect, most specific first: the first that recognises a request reads it.
pub(crate) const DIALECTS: &[&dyn Dialect] = &[
    &jsonrpc::JsonRpc,
    &bedrock::Bedrock,
    &gemini::Gemini,
    &anthropic::Anthropic,
    &watsonx::Watsonx,
    &replicate::Replicate,
    &huggingface::HuggingFace,
    &cohere::Cohere,
    &ollama::Ollama,
    &aleph_alpha::AlephAlpha,
    &rerank::Rerank,
    &openai::OpenAi,
];

/// What a path asks for.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    pub(crate) dialect: &'static dyn Dialect,
    pub(crate) api: &'static str,
    /// `None` for what is not inference.
    pub(crate) operation: Option<&'static str>,
    pub(crate) kind: Kind,
    /// Provider where the host says none: the flavour of the API.
    pub(crate) provider: Option<&'static str>,
    /// Model that the path names.
    pub(crate) model: Option<String>,
    /// The path alone asks for a stream.
    pub(crate) stream: bool,
    pub(crate) region: Option<String>,
    /// What is wanted of its bodies where it speaks gRPC.
    pub(crate) grpc: Option<Messages>,
}

/// Wanted fields of the messages of a gRPC method.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Messages {
    pub(crate) request: grpc::Table,
    pub(crate) response: grpc::Table,
}

impl Endpoint {
    pub(crate) fn new(
        dialect: &'static dyn Dialect,
        api: &'static str,
        operation: &'static str,
    ) -> Self {
        Self {
            dialect,
            api,
            operation: Some(operation),
            kind: Kind::Inference,
            provider: None,
            model: None,
            stream: false,
            region: None,
            grpc: None,
        }
    }

    /// The handshake of a WebSocket: its turns are the calls, it is none.
    pub(crate) fn handshake(self) -> Self {
        Self { kind: Kind::Management, ..self }
    }

    /// What no model works for, such as counting tokens.
    pub(crate) fn harmless(self) -> Self {
        Self { kind: Kind::Management, ..self }
    }

    pub(crate) fn of(self, provider: &'static str) -> Self {
        Self { provider: Some(provider), ..self }
    }

    pub(crate) fn model(self, model: Option<String>) -> Self {
        Self { model, ..self }
    }

    pub(crate) fn streaming(self, stream: bool) -> Self {
        Self { stream, ..self }
    }
}

/// What a request line says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target<'a> {
    pub(crate) method: &'a str,
    /// Provider that the host stands for.
    pub(crate) host_provider: Option<&'a str>,
    /// Non-empty segments of the path, as sent.
    pub(crate) segments: &'a [&'a str],
}

/// Both bodies of an exchange, as far as read, and what heads say of them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bodies<'a> {
    pub(crate) request: &'a Facts,
    pub(crate) response: &'a Facts,
}

/// Tables of paths and what is wanted there.
pub(crate) type Paths = &'static [&'static [(&'static str, Want)]];

/// One provider's API, or a family of them.
pub(crate) trait Dialect: Debug + Sync {
    /// What a request means, by its path. Only what uses a model, MCP or A2A: anything else of a
    /// provider is management.
    fn endpoint(&self, target: &Target<'_>) -> Option<Endpoint>;

    /// Wanted values of request bodies.
    fn request_paths(&self) -> Paths;

    /// Wanted values of response bodies: whole ones, and events of streams.
    fn response_paths(&self) -> Paths;

    /// The request body is one of this endpoint. Asked where the host is nobody we know.
    fn confirms(&self, endpoint: &Endpoint, request: &Facts) -> bool;

    /// What an exchange is by its bodies alone, where the path is not known. `None` unless they
    /// leave no doubt.
    fn guess(&self, bodies: &Bodies<'_>) -> Option<Endpoint>;

    /// Reads the facts into the call. Called again whenever there are more of them.
    fn read(&self, endpoint: &Endpoint, bodies: &Bodies<'_>, call: &mut Call);
}

/// [`crate::claims::BODY_PATHS`]; what else stands below them is text.
const CLAIMS: [&str; 32] = [
    "user.**",
    "user_id.**",
    "customer_id.**",
    "session_id.**",
    "safety_identifier.**",
    "prompt_cache_key.**",
    "metadata.user_id.**",
    "metadata.user.**",
    "metadata.customer_id.**",
    "metadata.customer.**",
    "metadata.tenant_id.**",
    "metadata.tenant.**",
    "metadata.account_id.**",
    "metadata.feature.**",
    "metadata.session_id.**",
    "metadata.conversation_id.**",
    "labels.user_id.**",
    "labels.customer_id.**",
    "labels.customer.**",
    "labels.tenant_id.**",
    "labels.tenant.**",
    "labels.account_id.**",
    "labels.feature.**",
    "labels.session_id.**",
    "requestMetadata.user_id.**",
    "requestMetadata.customer_id.**",
    "requestMetadata.customer.**",
    "requestMetadata.tenant_id.**",
    "requestMetadata.tenant.**",
    "requestMetadata.account_id.**",
    "requestMetadata.feature.**",
    "requestMetadata.session_id.**",
];

/// Wanted values of request bodies, of all dialects.
pub(crate) static REQUESTS: LazyLock<Schema> = LazyLock::new(|| {
    let of_dialects = DIALECTS.iter().flat_map(|dialect| dialect.request_paths().concat());
    let claims = CLAIMS.iter().zip(0..).map(|(path, index)| (*path, Want::Claim(index)));
    Schema::new(of_dialects.chain(claims))
});

/// Wanted values of response bodies, of all dialects.
pub(crate) static RESPONSES: LazyLock<Schema> = LazyLock::new(|| {
    Schema::new(DIALECTS.iter().flat_map(|dialect| dialect.response_paths().concat()))
});

/// Names a configuration may give, each with the provider it stands for.
const NAMES: &[(&str, &str)] = &[
    ("openai", "openai"),
    ("azure", "azure.ai.openai"),
    ("azure-inference", "azure.ai.inference"),
    ("anthropic", "anthropic"),
    ("gemini", "gcp.gemini"),
    ("vertex", "gcp.vertex_ai"),
    ("bedrock", "aws.bedrock"),
    ("mistral", "mistral_ai"),
    ("cohere", "cohere"),
    ("groq", "groq"),
    ("deepseek", "deepseek"),
    ("xai", "x_ai"),
    ("perplexity", "perplexity"),
    ("together", "together_ai"),
    ("openrouter", "openrouter"),
    ("huggingface", "huggingface"),
    ("ollama", "ollama"),
    ("vllm", "vllm"),
    ("llama-cpp", "llama_cpp"),
    ("watsonx", "ibm.watsonx.ai"),
    ("replicate", "replicate"),
    ("copilot", "github_copilot"),
];

pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    NAMES.iter().map(|&(name, _)| name)
}

pub(crate) fn provider_of_name(name: &str) -> Option<&'static str> {
    NAMES.iter().find(|&&(known, _)| known == name).map(|&(_, provider)| provider)
}

/// What a request means, by its path.
pub(crate) fn endpoint(target: &Target<'_>) -> Option<Endpoint> {
    DIALECTS.iter().find_map(|dialect| dialect.endpoint(target))
}

/// What an exchange is, by its bodies alone.
pub(crate) fn guess(bodies: &Bodies<'_>) -> Option<Endpoint> {
    DIALECTS.iter().find_map(|dialect| dialect.guess(bodies))
}

/// What a request to a provider, or to somebody whose name is lost as well (""), most likely is, where
/// neither path nor response are known: for whoever must decide before it leaves. Only shapes that
/// nothing but inference has.
pub(crate) fn suppose(provider: &'static str, request: &Facts) -> Option<Endpoint> {
    let has = |field| request.has(field);
    let endpoint = match provider {
        "anthropic" if has(Field::HasMessages) && has(Field::MaxTokens) => {
            Endpoint::new(&anthropic::Anthropic, "anthropic.messages", "chat")
        }
        "anthropic" | "aws.bedrock" | "cohere" | "gcp.gemini" | "gcp.vertex_ai" | "ollama" => {
            return None;
        }
        _ if has(Field::HasMessages) && has(Field::Model) => {
            Endpoint::new(&openai::OpenAi, "openai.chat", "chat")
        }
        _ if has(Field::HasInput) && has(Field::Model) && has(Field::Stream) => {
            Endpoint::new(&openai::OpenAi, "openai.responses", "chat")
        }
        _ => return None,
    };
    Some(endpoint)
}

/// Undoes percent-encoding ([RFC 3986 §2.1](https://www.rfc-editor.org/rfc/rfc3986#section-2.1)).
pub(crate) fn percent_decode(segment: &str) -> String {
    let bytes = segment.as_bytes();
    let (mut out, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while let Some(&byte) = bytes.get(at) {
        let hex = (byte == b'%')
            .then(|| segment.get(at + 1..at + 3))
            .flatten()
            .filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        out.push(hex.unwrap_or(byte));
        at += if hex.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Parameters that most dialects spell alike.
pub(crate) fn read_parameters(request: &Facts, call: &mut Call) {
    let params = &mut call.params;
    params.temperature = request.number(Field::Temperature);
    params.top_p = request.number(Field::TopP);
    params.top_k = request.count(Field::TopK);
    params.frequency_penalty = request.number(Field::FrequencyPenalty);
    params.presence_penalty = request.number(Field::PresencePenalty);
    params.seed = request.integer(Field::Seed);
    params.stop_sequences = request.list(List::Stop).map(str::to_owned).collect();
    params.reasoning_level = request.text(Field::ReasoningLevel).map(str::to_owned);
    params.dimensions = request.count(Field::Dimensions);
    params.encoding_formats = request.list(List::EncodingFormats).map(str::to_owned).collect();
    params.previous_response_id = request.text(Field::PreviousResponse).map(str::to_owned);
    params.service_tier = request.text(Field::ServiceTier).map(str::to_owned);
    params.output_type = match request.text(Field::OutputFormat) {
        Some("json_object" | "json_schema" | "json" | "application/json") => Some("json"),
        Some("text" | "text/plain") => Some("text"),
        _ => None,
    };
    // A server knows one of the two, and which is not said.
    let limits = [Field::MaxCompletionTokens, Field::MaxTokens];
    call.max_output_tokens = limits.into_iter().filter_map(|it| request.count(it)).max();
    let choices = [Field::ChoiceCount, Field::BestOf];
    call.choices = choices.into_iter().filter_map(|it| request.count(it)).max();
    call.other_models = request.list(List::Models).map(str::to_owned).collect();
    call.input_by_reference = request.has(Field::PreviousResponse)
        || request.has(Field::Conversation)
        || request.has(Field::Referred);
    call.conversation_id = request.text(Field::Conversation).map(str::to_owned);
    if let Some(stream) = request.flag(Field::Stream) {
        call.stream = stream;
    }
}

/// What most dialects call alike in responses.
pub(crate) fn read_answer(response: &Facts, call: &mut Call) {
    set(&mut call.response_id, response.text(Field::Id));
    set(&mut call.response_id, response.text(Field::FinalId));
    set(&mut call.response_model, response.text(Field::Model));
    set(&mut call.service_tier, response.text(Field::ServiceTier));
    set(&mut call.system_fingerprint, response.text(Field::Fingerprint));
    call.finish_reasons = response.reasons().map(str::to_owned).collect();
    call.tool_calls.clear();
    for item in response.items(List::Tools) {
        let Some(name) = item.name.clone().filter(|name| !name.is_empty()) else { continue };
        if item.kind.as_deref() == Some("server_tool_use") {
            call.server_tool_calls.push(name);
        } else {
            call.tool_calls.push(name);
        }
    }
}

/// The provider's error, as most dialects spell it: its type, else its code.
pub(crate) fn read_error(response: &Facts, call: &mut Call) {
    let failed = call.status.is_some_and(|status| status >= 400);
    if !failed && !response.has(Field::HasError) && !response.has(Field::ErrorType) {
        return;
    }
    let code = response.written(Field::ErrorCode).filter(|code| code != "0");
    // An error of which nothing is told within an answer that began well.
    let nameless = (!failed && response.has(Field::HasError)).then(|| "_OTHER".to_owned());
    call.error_type = response
        .text(Field::ErrorType)
        .map(str::to_owned)
        .or_else(|| response.text(Field::ErrorStatus).map(str::to_owned))
        .or(code)
        .or(nameless);
}

/// Tokens as OpenAI and those who follow it count them: input includes cached ones.
pub(crate) fn openai_usage(response: &Facts) -> Usage {
    let count = |fields: &[Field]| fields.iter().find_map(|&field| response.count(field));
    Usage {
        input_tokens: count(&[Field::PromptTokens, Field::InputTokens]),
        output_tokens: count(&[Field::CompletionTokens, Field::OutputTokens]),
        cache_read_input_tokens: count(&[Field::CachedTokens, Field::CacheRead]),
        cache_creation_input_tokens: count(&[Field::CacheWriteTokens, Field::CacheWrite]),
        reasoning_output_tokens: count(&[Field::ReasoningTokens]),
        total_tokens: count(&[Field::TotalTokens]),
        citation_tokens: count(&[Field::CitationTokens]),
        audio_input_ms: seconds(response),
        pages: count(&[Field::Pages]),
        ..shared_usage(response)
    }
}

/// Parts of the tokens, and what else is counted, under the names that dialects share.
pub(crate) fn shared_usage(response: &Facts) -> Usage {
    Usage {
        audio_input_tokens: response.count(Field::AudioInput),
        audio_output_tokens: response.count(Field::AudioOutput),
        audio_cache_read_input_tokens: response.count(Field::AudioCached),
        image_input_tokens: response.count(Field::ImageInput),
        image_output_tokens: response.count(Field::ImageOutput),
        image_cache_read_input_tokens: response.count(Field::ImageCached),
        video_input_tokens: response.count(Field::VideoInput),
        video_output_tokens: response.count(Field::VideoOutput),
        cache_creation_hour_input_tokens: response.count(Field::CacheWriteHour),
        web_searches: response.count(Field::Searches),
        ..Usage::default()
    }
}

/// How long the sound was that was taken in, in milliseconds.
fn seconds(response: &Facts) -> Option<u64> {
    /// Longer than any recording that an API takes.
    const LONGEST_S: f64 = 1e6;
    let seconds = response.number(Field::AudioSeconds)?;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked to be in range"
    )]
    (0.0..LONGEST_S).contains(&seconds).then_some((seconds * 1_000.0).round() as u64)
}

/// Adds reasoning that the provider counts beside the answer. Its total says so, or that there is
/// more of it than of the answer; without a total, `apart` says what the provider does.
pub(crate) fn add_reasoning(usage: &mut Usage, apart: bool) {
    let (Some(output), Some(reasoning)) = (usage.output_tokens, usage.reasoning_output_tokens)
    else {
        return;
    };
    let both = output.saturating_add(reasoning);
    let input = usage.input_tokens.unwrap_or(0);
    let beside = match usage.total_tokens {
        Some(total) if total == input.saturating_add(both) => true,
        Some(total) if total == input.saturating_add(output) => reasoning > output,
        _ => apart || reasoning > output,
    };
    if beside {
        usage.output_tokens = Some(both);
    }
}

/// Tokens as Anthropic counts them: input excludes what a cache served or took in.
pub(crate) fn anthropic_usage(response: &Facts) -> Usage {
    // The answer alone, or all the passes that it took: what was billed is their sum.
    let either = |passes: Field, answer: Field| {
        let (passes, answer) = (response.count(passes), response.count(answer));
        passes.max(answer)
    };
    let read = either(Field::IterationCacheRead, Field::CacheRead);
    let written = either(Field::IterationCacheWrite, Field::CacheWrite);
    let input = either(Field::IterationInput, Field::InputTokens);
    Usage {
        input_tokens: input.map(|fresh| {
            fresh.saturating_add(read.unwrap_or(0)).saturating_add(written.unwrap_or(0))
        }),
        output_tokens: either(Field::IterationOutput, Field::OutputTokens),
        cache_read_input_tokens: read,
        cache_creation_input_tokens: written,
        reasoning_output_tokens: response.count(Field::ReasoningTokens),
        total_tokens: response.count(Field::TotalTokens),
        cache_creation_hour_input_tokens: either(
            Field::IterationCacheWriteHour,
            Field::CacheWriteHour,
        ),
        web_searches: response.count(Field::Searches),
        ..Usage::default()
    }
}

/// Sets `slot` where something is known; what was known stays otherwise.
pub(crate) fn set(slot: &mut Option<String>, text: Option<&str>) {
    if let Some(text) = text {
        *slot = Some(text.to_owned());
    }
}
