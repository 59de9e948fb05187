//! Dialects: the meaning of paths and bodies in the API of each provider.
//!
//! To add a dialect: write a module here implementing [`Dialect`], add the dialect to [`DIALECTS`],
//! and put a recorded exchange under `tests/captures/`. Nothing else changes. A provider with a
//! known dialect needs only a host in `hosts.rs`.

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

/// Every dialect, most specific first: the first dialect recognising a request reads the request.
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

/// Meaning of a path.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    pub(crate) dialect: &'static dyn Dialect,
    pub(crate) api: &'static str,
    /// `None` for MCP and A2A; used only for inference.
    pub(crate) operation: Option<&'static str>,
    pub(crate) kind: Kind,
    /// Provider if the host names none: the flavour of the API.
    pub(crate) provider: Option<&'static str>,
    /// Model named by the path.
    pub(crate) model: Option<String>,
    /// The path alone asks for a stream.
    pub(crate) stream: bool,
    pub(crate) region: Option<String>,
    /// Wanted fields of the bodies, for gRPC.
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

    /// Marks the handshake of a WebSocket: the turns are the calls, not the handshake.
    pub(crate) fn handshake(self) -> Self {
        Self { kind: Kind::Management, ..self }
    }

    /// Marks an endpoint without work for a model, such as counting tokens.
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

/// Facts of a request line.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target<'a> {
    pub(crate) method: &'a str,
    /// Provider of the host.
    pub(crate) host_provider: Option<&'a str>,
    /// Non-empty segments of the path, as sent.
    pub(crate) segments: &'a [&'a str],
}

/// Both bodies of an exchange, as far as read, with facts from the heads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bodies<'a> {
    pub(crate) request: &'a Facts,
    pub(crate) response: &'a Facts,
}

/// Tables of paths with the value wanted at each.
pub(crate) type Paths = &'static [&'static [(&'static str, Want)]];

/// API of a provider or of a family of providers.
pub(crate) trait Dialect: Debug + Sync {
    /// Returns the meaning of a request by path. Only for inference, MCP or A2A: any other request
    /// to a provider is management.
    fn endpoint(&self, target: &Target<'_>) -> Option<Endpoint>;

    /// Returns the wanted values of request bodies.
    fn request_paths(&self) -> Paths;

    /// Returns the wanted values of response bodies: whole bodies, and events of streams.
    fn response_paths(&self) -> Paths;

    /// Returns whether the request body fits the endpoint. Asked for unknown hosts.
    fn confirms(&self, endpoint: &Endpoint, request: &Facts) -> bool;

    /// Guesses the endpoint from the bodies alone, if the path is unknown. `None` if in doubt.
    fn guess(&self, bodies: &Bodies<'_>) -> Option<Endpoint>;

    /// Reads the facts into the call. Called again as facts are added.
    fn read(&self, endpoint: &Endpoint, bodies: &Bodies<'_>, call: &mut Call);
}

/// Paths of [`crate::claims::BODY_PATHS`]; strings below each path are text.
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

/// Names for a configuration, each with the provider meant.
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

/// Returns the meaning of a request by path.
pub(crate) fn endpoint(target: &Target<'_>) -> Option<Endpoint> {
    DIALECTS.iter().find_map(|dialect| dialect.endpoint(target))
}

/// Guesses the endpoint from the bodies alone.
pub(crate) fn guess(bodies: &Bodies<'_>) -> Option<Endpoint> {
    DIALECTS.iter().find_map(|dialect| dialect.guess(bodies))
}

/// Returns the most likely endpoint of a request to a provider, or to an unknown peer (""), if
/// neither path nor response are known: for a decision before the request leaves. Only for shapes
/// unique to inference.
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

/// Decodes percent-encoding ([RFC 3986 §2.1](https://www.rfc-editor.org/rfc/rfc3986#section-2.1)).
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

/// Reads the parameters spelled alike by most dialects.
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
    // A server honours a single limit of the two, and the choice is unknown.
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

/// Reads the facts of responses named alike by most dialects.
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

/// Reads the provider's error, as spelled by most dialects: the type, else the status, else the
/// code.
pub(crate) fn read_error(response: &Facts, call: &mut Call) {
    let failed = call.status.is_some_and(|status| status >= 400);
    if !failed && !response.has(Field::HasError) && !response.has(Field::ErrorType) {
        return;
    }
    let code = response.written(Field::ErrorCode).filter(|code| code != "0");
    // An error without details, within an answer begun well.
    let nameless = (!failed && response.has(Field::HasError)).then(|| "_OTHER".to_owned());
    call.error_type = response
        .text(Field::ErrorType)
        .map(str::to_owned)
        .or_else(|| response.text(Field::ErrorStatus).map(str::to_owned))
        .or(code)
        .or(nameless);
}

/// Returns tokens as counted by OpenAI and compatible APIs: input includes cached tokens.
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

/// Returns parts of the tokens, and other counts, under names shared by dialects.
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

/// Returns the duration of the input audio, in milliseconds.
fn seconds(response: &Facts) -> Option<u64> {
    /// Longer than any recording accepted by an API, in seconds.
    const LONGEST_S: f64 = 1e6;
    let seconds = response.number(Field::AudioSeconds)?;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked to be in range"
    )]
    (0.0..LONGEST_S).contains(&seconds).then_some((seconds * 1_000.0).round() as u64)
}

/// Adds reasoning counted by the provider beside the answer. Recognised by the total, or by more
/// reasoning than answer; without a total, `apart` gives the practice of the provider.
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

/// Returns tokens as counted by Anthropic: the reported input excludes cache reads and writes.
pub(crate) fn anthropic_usage(response: &Facts) -> Usage {
    // Counts of the answer alone, or of all passes for the answer: the sum of the passes was
    // billed.
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

/// Sets `slot` if a text is known; otherwise keeps the old value.
pub(crate) fn set(slot: &mut Option<String>, text: Option<&str>) {
    if let Some(text) = text {
        *slot = Some(text.to_owned());
    }
}
