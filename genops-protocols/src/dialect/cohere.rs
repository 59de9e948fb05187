//! Cohere's API: chat, generation, embeddings and reranking, versions 1 and 2.

use super::{
    Bodies, Dialect, Endpoint, Paths, Target, read_answer, read_error, read_parameters, set,
};
use crate::call::{Call, Usage};
use crate::facts::{Facts, Field, List};
use crate::json::schema::{Slot, Want};

#[derive(Debug)]
pub(crate) struct Cohere;

impl Dialect for Cohere {
    fn endpoint(&self, target: &Target<'_>) -> Option<Endpoint> {
        let here = target.host_provider == Some("cohere");
        let free = target.host_provider.is_none();
        if !matches!(target.method, "POST" | "") || !(here || free) {
            return None;
        }
        let (api, operation) = match target.segments {
            [.., "v1", "chat"] => ("cohere.v1.chat", "chat"),
            [.., "v2", "chat"] => ("cohere.v2.chat", "chat"),
            [.., "v1", "generate"] => ("cohere.v1.generate", "text_completion"),
            [.., "v1", "embed"] => ("cohere.v1.embed", "embeddings"),
            [.., "v2", "embed"] => ("cohere.v2.embed", "embeddings"),
            [.., "v1", "rerank"] if here => ("cohere.v1.rerank", "rerank"),
            [.., "v2", "rerank"] if here => ("cohere.v2.rerank", "rerank"),
            [.., "v1", "classify"] if here => ("cohere.v1.classify", "classify"),
            _ => return None,
        };
        Some(Endpoint::new(&Cohere, api, operation).of("cohere"))
    }

    fn request_paths(&self) -> Paths {
        &[REQUEST]
    }

    fn response_paths(&self) -> Paths {
        &[RESPONSE]
    }

    fn confirms(&self, endpoint: &Endpoint, request: &Facts) -> bool {
        let has = |field| request.has(field);
        match endpoint.api {
            "cohere.v1.chat" => has(Field::HasMessage),
            "cohere.v2.chat" => has(Field::HasMessages) && has(Field::Model),
            "cohere.v1.generate" => has(Field::HasPrompt),
            "cohere.v1.embed" | "cohere.v2.embed" => has(Field::HasTexts),
            _ => has(Field::HasQuery) && has(Field::HasDocuments),
        }
    }

    fn guess(&self, Bodies { request, response }: &Bodies<'_>) -> Option<Endpoint> {
        let endpoint = |api, operation| Some(Endpoint::new(&Cohere, api, operation).of("cohere"));
        let billed = response.has(Field::BilledInput) || response.has(Field::BilledOutput);
        if response.has(Field::SearchUnits) && request.has(Field::HasQuery) {
            return if request.has(Field::MaxTokens) || request.has(Field::ReturnDocuments) {
                endpoint("cohere.v1.rerank", "rerank")
            } else {
                endpoint("cohere.v2.rerank", "rerank")
            };
        }
        if request.has(Field::HasTexts) && billed {
            return endpoint("cohere.v2.embed", "embeddings");
        }
        let streamed = response.text(Field::Type).is_some_and(|name| {
            matches!(name, "message-start" | "content-start" | "content-delta" | "message-end")
        });
        if request.has(Field::HasMessages) && (billed || streamed) {
            return endpoint("cohere.v2.chat", "chat");
        }
        if request.has(Field::HasMessage) && (billed || response.has(Field::GenerationId)) {
            return endpoint("cohere.v1.chat", "chat");
        }
        None
    }

    fn read(&self, endpoint: &Endpoint, bodies: &Bodies<'_>, call: &mut Call) {
        let Bodies { request, response } = *bodies;
        read_parameters(request, call);
        read_answer(response, call);
        set(&mut call.request_model, request.text(Field::Model));
        set(&mut call.response_id, response.text(Field::ResponseId));
        set(&mut call.response_id, response.text(Field::Id));
        call.finish_reasons = response
            .text(Field::FinishReason)
            .map(str::to_owned)
            .into_iter()
            .chain(response.list(List::Reasons).map(str::to_owned))
            .collect();
        call.usage = usage(endpoint, response);
        read_error(response, call);
    }
}

/// Returns the billed tokens, else the counted tokens.
fn usage(endpoint: &Endpoint, response: &Facts) -> Usage {
    let count = |fields: &[Field]| fields.iter().find_map(|&field| response.count(field));
    let writes = matches!(endpoint.operation, Some("chat" | "text_completion"));
    Usage {
        input_tokens: count(&[Field::BilledInput, Field::CountedInput]),
        output_tokens: count(&[Field::BilledOutput, Field::CountedOutput]).filter(|_| writes),
        cache_read_input_tokens: response.count(Field::CachedTokens),
        ..Usage::default()
    }
}

const REQUEST: &[(&str, Want)] = &[
    ("model", Want::Keep(Field::Model)),
    ("stream", Want::Keep(Field::Stream)),
    ("message", Want::ProseAnd(Field::HasMessage)),
    ("messages.**", Want::ProseAnd(Field::HasMessages)),
    ("chat_history.**", Want::Prose),
    ("preamble", Want::Prose),
    ("query", Want::ProseAnd(Field::HasQuery)),
    ("documents.**", Want::ProseAnd(Field::HasDocuments)),
    ("texts.**", Want::ProseAnd(Field::HasTexts)),
    ("inputs.**", Want::ProseAnd(Field::HasInputs)),
    ("tool_results.**", Want::Prose),
    ("return_documents", Want::Keep(Field::ReturnDocuments)),
    ("p", Want::Keep(Field::TopP)),
    ("k", Want::Keep(Field::TopK)),
    ("stop_sequences.*", Want::Append(List::Stop)),
    ("embedding_types.*", Want::Append(List::EncodingFormats)),
    ("output_dimension", Want::Keep(Field::Dimensions)),
];

const RESPONSE: &[(&str, Want)] = &[
    ("id", Want::Keep(Field::Id)),
    ("response_id", Want::Keep(Field::ResponseId)),
    ("response.response_id", Want::Keep(Field::ResponseId)),
    ("generation_id", Want::Keep(Field::GenerationId)),
    ("finish_reason", Want::Keep(Field::FinishReason)),
    ("delta.finish_reason", Want::Keep(Field::FinishReason)),
    ("response.finish_reason", Want::Keep(Field::FinishReason)),
    ("message.tool_calls.*", Want::Item(List::Tools)),
    ("message.tool_calls.*.id", Want::Slot(Slot::Id)),
    ("message.tool_calls.*.function.name", Want::Slot(Slot::Name)),
    ("delta.message.tool_calls", Want::Item(List::Tools)),
    ("delta.message.tool_calls.id", Want::Slot(Slot::Id)),
    ("delta.message.tool_calls.function.name", Want::Slot(Slot::Name)),
    ("tool_calls.*", Want::Item(List::Tools)),
    ("tool_calls.*.name", Want::Slot(Slot::Name)),
    ("usage.billed_units.input_tokens", Want::Keep(Field::BilledInput)),
    ("usage.billed_units.output_tokens", Want::Keep(Field::BilledOutput)),
    ("usage.tokens.input_tokens", Want::Keep(Field::CountedInput)),
    ("usage.tokens.output_tokens", Want::Keep(Field::CountedOutput)),
    ("delta.message.content.text", Want::Written),
    ("usage.cached_tokens", Want::Keep(Field::CachedTokens)),
    ("delta.usage.billed_units.input_tokens", Want::Keep(Field::BilledInput)),
    ("delta.usage.billed_units.output_tokens", Want::Keep(Field::BilledOutput)),
    ("delta.usage.tokens.input_tokens", Want::Keep(Field::CountedInput)),
    ("delta.usage.tokens.output_tokens", Want::Keep(Field::CountedOutput)),
    ("delta.usage.cached_tokens", Want::Keep(Field::CachedTokens)),
    ("meta.billed_units.input_tokens", Want::Keep(Field::BilledInput)),
    ("meta.billed_units.output_tokens", Want::Keep(Field::BilledOutput)),
    ("meta.billed_units.search_units", Want::Keep(Field::SearchUnits)),
    ("meta.tokens.input_tokens", Want::Keep(Field::CountedInput)),
    ("meta.tokens.output_tokens", Want::Keep(Field::CountedOutput)),
    ("response.meta.billed_units.input_tokens", Want::Keep(Field::BilledInput)),
    ("response.meta.billed_units.output_tokens", Want::Keep(Field::BilledOutput)),
    ("response.meta.tokens.input_tokens", Want::Keep(Field::CountedInput)),
    ("response.meta.tokens.output_tokens", Want::Keep(Field::CountedOutput)),
];
