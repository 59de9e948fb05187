//! IBM watsonx.ai: text generation, chat and embeddings.

use super::{Bodies, Dialect, Endpoint, Paths, Target, openai_usage, read_answer, read_error};
use super::{read_parameters, set};
use crate::call::{Call, Usage};
use crate::facts::{Facts, Field, List};
use crate::json::schema::Want;

#[derive(Debug)]
pub(crate) struct Watsonx;

impl Dialect for Watsonx {
    fn endpoint(&self, target: &Target<'_>) -> Option<Endpoint> {
        if !matches!(target.method, "POST" | "") {
            return None;
        }
        let action = match target.segments {
            ["ml", _, "generation", "text"] => "generation",
            ["ml", _, "generation", "text_stream"] => "generation_stream",
            ["ml", _, "text", action] | ["ml", _, "deployments", _, "text", action] => *action,
            _ => return None,
        };
        let (api, operation, stream) = match action {
            "generation" => ("watsonx.generation", "text_completion", false),
            "generation_stream" => ("watsonx.generation", "text_completion", true),
            "chat" => ("watsonx.chat", "chat", false),
            "chat_stream" => ("watsonx.chat", "chat", true),
            "embeddings" => ("watsonx.embeddings", "embeddings", false),
            "rerank" => ("watsonx.rerank", "rerank", false),
            _ => return None,
        };
        Some(Endpoint::new(&Watsonx, api, operation).of("ibm.watsonx.ai").streaming(stream))
    }

    fn request_paths(&self) -> Paths {
        &[REQUEST]
    }

    fn response_paths(&self) -> Paths {
        &[RESPONSE]
    }

    fn confirms(&self, _endpoint: &Endpoint, request: &Facts) -> bool {
        request.has(Field::ModelId)
    }

    fn guess(&self, Bodies { request, response }: &Bodies<'_>) -> Option<Endpoint> {
        let generated = request.has(Field::ModelId) && response.has(Field::WatsonxOutput);
        generated.then(|| {
            Endpoint::new(&Watsonx, "watsonx.generation", "text_completion").of("ibm.watsonx.ai")
        })
    }

    fn read(&self, endpoint: &Endpoint, bodies: &Bodies<'_>, call: &mut Call) {
        let Bodies { request, response } = *bodies;
        read_parameters(request, call);
        read_answer(response, call);
        set(&mut call.request_model, request.text(Field::ModelId));
        set(&mut call.response_model, response.text(Field::ModelId));
        call.stream |= endpoint.stream;
        let reasons = response.text(Field::ResultReason).map(str::to_owned);
        call.finish_reasons.extend(reasons);
        let shared = openai_usage(response);
        call.usage = Usage {
            input_tokens: response.count(Field::WatsonxInput).or(shared.input_tokens),
            output_tokens: response.count(Field::WatsonxOutput).or(shared.output_tokens),
            ..shared
        };
        read_error(response, call);
    }
}

const REQUEST: &[(&str, Want)] = &[
    ("model_id", Want::Keep(Field::ModelId)),
    ("input.**", Want::ProseAnd(Field::HasInput)),
    ("inputs.**", Want::ProseAnd(Field::HasInputs)),
    ("parameters.max_new_tokens", Want::Keep(Field::MaxTokens)),
    ("parameters.temperature", Want::Keep(Field::Temperature)),
    ("parameters.top_p", Want::Keep(Field::TopP)),
    ("parameters.top_k", Want::Keep(Field::TopK)),
    ("parameters.random_seed", Want::Keep(Field::Seed)),
    ("parameters.stop_sequences.*", Want::Append(List::Stop)),
];

const RESPONSE: &[(&str, Want)] = &[
    ("model_id", Want::Keep(Field::ModelId)),
    ("results.*.generated_token_count", Want::Keep(Field::WatsonxOutput)),
    ("results.*.input_token_count", Want::Keep(Field::WatsonxInput)),
    ("results.*.stop_reason", Want::Keep(Field::ResultReason)),
    ("input_token_count", Want::Keep(Field::WatsonxInput)),
    ("errors.*.code", Want::Keep(Field::ErrorCode)),
];
