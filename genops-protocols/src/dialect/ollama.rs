//! Ollama's native API. The OpenAI-compatible API uses the OpenAI dialect.

use super::{
    Bodies, Dialect, Endpoint, Paths, Target, read_answer, read_error, read_parameters, set,
};
use crate::call::{Call, Usage};
use crate::facts::{Facts, Field, List};
use crate::json::schema::{Slot, Want};

#[derive(Debug)]
pub(crate) struct Ollama;

impl Dialect for Ollama {
    fn endpoint(&self, target: &Target<'_>) -> Option<Endpoint> {
        if !matches!(target.method, "POST" | "")
            || target.host_provider.is_some_and(|name| name != "ollama")
        {
            return None;
        }
        let (api, operation) = match target.segments {
            [.., "api", "chat"] => ("ollama.chat", "chat"),
            [.., "api", "generate"] => ("ollama.generate", "text_completion"),
            [.., "api", "embed"] => ("ollama.embed", "embeddings"),
            [.., "api", "embeddings"] => ("ollama.embeddings", "embeddings"),
            _ => return None,
        };
        Some(Endpoint::new(&Ollama, api, operation).of("ollama"))
    }

    fn request_paths(&self) -> Paths {
        &[REQUEST]
    }

    fn response_paths(&self) -> Paths {
        &[RESPONSE]
    }

    fn confirms(&self, endpoint: &Endpoint, request: &Facts) -> bool {
        let has = |field| request.has(field);
        has(Field::Model)
            && match endpoint.api {
                "ollama.chat" => has(Field::HasMessages),
                "ollama.embed" => has(Field::HasInput),
                _ => has(Field::HasPrompt),
            }
    }

    fn guess(&self, Bodies { request, response }: &Bodies<'_>) -> Option<Endpoint> {
        let endpoint = |api, operation| Some(Endpoint::new(&Ollama, api, operation).of("ollama"));
        if !response.has(Field::EvalDuration) && !response.has(Field::Done) {
            return None;
        }
        if request.has(Field::HasMessages) {
            endpoint("ollama.chat", "chat")
        } else if request.has(Field::HasPrompt) {
            endpoint("ollama.generate", "text_completion")
        } else if request.has(Field::HasInput) && response.has(Field::HasEmbeddings) {
            endpoint("ollama.embed", "embeddings")
        } else {
            None
        }
    }

    fn read(&self, endpoint: &Endpoint, bodies: &Bodies<'_>, call: &mut Call) {
        let Bodies { request, response } = *bodies;
        read_parameters(request, call);
        read_answer(response, call);
        call.max_output_tokens = request.count(Field::MaxTokens);
        set(&mut call.request_model, request.text(Field::Model));
        call.finish_reasons =
            response.text(Field::FinishReason).map(str::to_owned).into_iter().collect();
        // Generation streams unless told otherwise.
        let writes = endpoint.operation != Some("embeddings");
        call.stream = writes && request.flag(Field::Stream).unwrap_or(request.has(Field::Model));
        call.usage = Usage {
            input_tokens: response.count(Field::EvalPrompt),
            output_tokens: response.count(Field::EvalOutput).filter(|_| writes),
            ..Usage::default()
        };
        read_error(response, call);
    }
}

const REQUEST: &[(&str, Want)] = &[
    ("model", Want::Keep(Field::Model)),
    ("stream", Want::Keep(Field::Stream)),
    ("messages.**", Want::ProseAnd(Field::HasMessages)),
    ("prompt.**", Want::ProseAnd(Field::HasPrompt)),
    ("input.**", Want::ProseAnd(Field::HasInput)),
    ("system.**", Want::ProseAnd(Field::HasSystem)),
    ("options.temperature", Want::Keep(Field::Temperature)),
    ("options.top_p", Want::Keep(Field::TopP)),
    ("options.top_k", Want::Keep(Field::TopK)),
    ("options.num_predict", Want::Keep(Field::MaxTokens)),
    ("options.seed", Want::Keep(Field::Seed)),
    ("options.stop.*", Want::Append(List::Stop)),
    ("format", Want::Keep(Field::OutputFormat)),
];

const RESPONSE: &[(&str, Want)] = &[
    ("model", Want::Keep(Field::Model)),
    ("done", Want::Keep(Field::Done)),
    ("done_reason", Want::Keep(Field::FinishReason)),
    ("prompt_eval_count", Want::Keep(Field::EvalPrompt)),
    ("eval_count", Want::Keep(Field::EvalOutput)),
    ("total_duration", Want::Keep(Field::EvalDuration)),
    ("message.tool_calls.*", Want::Item(List::Tools)),
    ("message.tool_calls.*.function.name", Want::Slot(Slot::Name)),
    ("embeddings", Want::Keep(Field::HasEmbeddings)),
    ("message.content", Want::Written),
    ("response", Want::Written),
];
