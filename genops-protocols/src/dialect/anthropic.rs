//! Anthropic's API: messages with thinking, caching and tools, and the legacy completions; also
//! Claude on Vertex AI, with the model in the path.

use super::{
    Bodies, Dialect, Endpoint, Paths, Target, anthropic_usage, percent_decode, read_answer,
};
use super::{read_error, read_parameters, set};
use crate::call::{Call, Usage};
use crate::facts::{Facts, Field, List};
use crate::json::schema::{Slot, Want};

#[derive(Debug)]
pub(crate) struct Anthropic;

impl Dialect for Anthropic {
    fn endpoint(&self, target: &Target<'_>) -> Option<Endpoint> {
        if !matches!(target.method, "POST" | "") {
            return None;
        }
        let messages = || Endpoint::new(&Anthropic, "anthropic.messages", "chat").of("anthropic");
        match target.segments {
            [.., "v1" | "anthropic", "messages"] => Some(messages()),
            ["messages"] if target.host_provider == Some("anthropic") => Some(messages()),
            [.., "v1", "messages", "batches"] => Some(
                Endpoint::new(&Anthropic, "anthropic.messages.batches", "batch").of("anthropic"),
            ),
            [.., "v1", "complete"] => Some(
                Endpoint::new(&Anthropic, "anthropic.complete", "text_completion").of("anthropic"),
            ),
            [.., "locations", region, "publishers", "anthropic", "models", model] => {
                let (model, method) = model.rsplit_once(':').or(model.rsplit_once("%3A"))?;
                if matches!(model, "count-tokens" | "count_tokens") {
                    return Some(messages().of("gcp.vertex_ai").harmless());
                }
                matches!(method, "rawPredict" | "streamRawPredict").then(|| Endpoint {
                    provider: Some("gcp.vertex_ai"),
                    model: Some(percent_decode(model)),
                    stream: method == "streamRawPredict",
                    region: Some((*region).to_owned()),
                    ..messages()
                })
            }
            _ => None,
        }
    }

    fn request_paths(&self) -> Paths {
        &[REQUEST]
    }

    fn response_paths(&self) -> Paths {
        &[RESPONSE]
    }

    fn confirms(&self, endpoint: &Endpoint, request: &Facts) -> bool {
        let model = request.has(Field::Model) || endpoint.model.is_some();
        match endpoint.api {
            "anthropic.messages.batches" => request.has(Field::HasRequests),
            "anthropic.messages" => {
                model && request.has(Field::HasMessages) && request.has(Field::MaxTokens)
            }
            _ => model && request.has(Field::HasPrompt) && request.has(Field::MaxTokens),
        }
    }

    fn guess(&self, Bodies { request, response }: &Bodies<'_>) -> Option<Endpoint> {
        let messages = || Some(Endpoint::new(&Anthropic, "anthropic.messages", "chat"));
        let kind = response.text(Field::Type).unwrap_or_default();
        let typed = match kind {
            "message" => response.has(Field::InputTokens),
            "message_start"
            | "content_block_start"
            | "content_block_delta"
            | "content_block_stop"
            | "message_delta"
            | "message_stop" => true,
            _ => false,
        };
        if typed && (request.has(Field::HasMessages) || response.has(Field::Model)) {
            return messages();
        }
        if kind == "completion" && request.has(Field::HasPrompt) {
            return Some(Endpoint::new(&Anthropic, "anthropic.complete", "text_completion"));
        }
        // An error has a type too; no other API has a type at the top of an error.
        let failed = kind == "error" && response.has(Field::ErrorType);
        (failed && request.has(Field::HasMessages) && request.has(Field::MaxTokens))
            .then(messages)
            .flatten()
    }

    fn read(&self, endpoint: &Endpoint, bodies: &Bodies<'_>, call: &mut Call) {
        let Bodies { request, response } = *bodies;
        read_parameters(request, call);
        read_answer(response, call);
        let asked = request.text(Field::Model).or(endpoint.model.as_deref());
        set(&mut call.request_model, asked);
        call.usage = anthropic_usage(response);
        if endpoint.operation == Some("batch") {
            call.usage = Usage::default();
        }
        read_items(response, call);
        read_error(response, call);
    }
}

/// Reads tools and stop reason of a message, whole or streamed.
pub(super) fn read_items(response: &Facts, call: &mut Call) {
    call.finish_reasons = response.text(Field::StopReason).map(str::to_owned).into_iter().collect();
    for list in [List::Content, List::Announced] {
        for item in response.items(list) {
            match (item.kind.as_deref(), &item.name) {
                (Some("tool_use"), Some(name)) => call.tool_calls.push(name.clone()),
                (Some("server_tool_use" | "mcp_tool_use"), Some(name)) => {
                    call.server_tool_calls.push(name.clone());
                }
                _ => {}
            }
        }
    }
}

const REQUEST: &[(&str, Want)] = &[
    ("model", Want::Keep(Field::Model)),
    ("stream", Want::Keep(Field::Stream)),
    ("max_tokens", Want::Keep(Field::MaxTokens)),
    ("max_tokens_to_sample", Want::Keep(Field::MaxTokens)),
    ("stop_sequences.*", Want::Append(List::Stop)),
    ("anthropic_version", Want::Keep(Field::AnthropicVersion)),
    ("output_config.effort", Want::Keep(Field::ReasoningLevel)),
    ("system.**", Want::ProseAnd(Field::HasSystem)),
    ("messages.**", Want::ProseAnd(Field::HasMessages)),
    ("requests.**", Want::ProseAnd(Field::HasRequests)),
    ("requests.*.**", Want::Prose),
    ("requests.*.params.**", Want::Prose),
    ("requests.*.params.model", Want::Keep(Field::Model)),
];

const RESPONSE: &[(&str, Want)] = &[
    ("type", Want::Keep(Field::Type)),
    ("stop_reason", Want::Keep(Field::StopReason)),
    ("delta.stop_reason", Want::Keep(Field::StopReason)),
    ("content", Want::Keep(Field::HasContent)),
    ("content.*", Want::Item(List::Content)),
    ("content.*.id", Want::Slot(Slot::Id)),
    ("content.*.type", Want::Slot(Slot::Type)),
    ("content.*.name", Want::Slot(Slot::Name)),
    ("content_block", Want::Item(List::Announced)),
    ("content_block.id", Want::Slot(Slot::Id)),
    ("content_block.type", Want::Slot(Slot::Type)),
    ("content_block.name", Want::Slot(Slot::Name)),
    ("usage.cache_read_input_tokens", Want::Keep(Field::CacheRead)),
    ("usage.cache_creation_input_tokens", Want::Keep(Field::CacheWrite)),
    ("usage.output_tokens_details.thinking_tokens", Want::Keep(Field::ReasoningTokens)),
    ("message.usage.output_tokens_details.thinking_tokens", Want::Keep(Field::ReasoningTokens)),
    ("message.id", Want::Keep(Field::Id)),
    ("message.model", Want::Keep(Field::Model)),
    ("message.usage.input_tokens", Want::Keep(Field::InputTokens)),
    ("message.usage.output_tokens", Want::Keep(Field::OutputTokens)),
    ("message.usage.cache_read_input_tokens", Want::Keep(Field::CacheRead)),
    ("message.usage.cache_creation_input_tokens", Want::Keep(Field::CacheWrite)),
    ("usage.cache_creation.ephemeral_1h_input_tokens", Want::Keep(Field::CacheWriteHour)),
    ("message.usage.cache_creation.ephemeral_1h_input_tokens", Want::Keep(Field::CacheWriteHour)),
    ("usage.server_tool_use.web_search_requests", Want::Keep(Field::Searches)),
    ("message.usage.server_tool_use.web_search_requests", Want::Keep(Field::Searches)),
    ("usage.iterations", Want::Keep(Field::HasIterations)),
    ("usage.iterations.*.input_tokens", Want::Add(Field::IterationInput)),
    ("usage.iterations.*.output_tokens", Want::Add(Field::IterationOutput)),
    ("usage.iterations.*.cache_read_input_tokens", Want::Add(Field::IterationCacheRead)),
    ("usage.iterations.*.cache_creation_input_tokens", Want::Add(Field::IterationCacheWrite)),
    (
        "usage.iterations.*.cache_creation.ephemeral_1h_input_tokens",
        Want::Add(Field::IterationCacheWriteHour),
    ),
    ("delta.text", Want::Written),
    ("delta.thinking", Want::Written),
    ("delta.partial_json", Want::Written),
    ("content.*.text", Want::Written),
    ("content.*.thinking", Want::Written),
    ("message.usage.service_tier", Want::Keep(Field::ServiceTier)),
];
