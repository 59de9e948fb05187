//! Aleph Alpha: completions and embeddings.

use super::{
    Bodies, Dialect, Endpoint, Paths, Target, read_answer, read_error, read_parameters, set,
};
use crate::call::{Call, Usage};
use crate::facts::{Facts, Field, List};
use crate::json::schema::Want;

#[derive(Debug)]
pub(crate) struct AlephAlpha;

impl Dialect for AlephAlpha {
    fn endpoint(&self, target: &Target<'_>) -> Option<Endpoint> {
        let here = target.host_provider == Some("aleph_alpha");
        if !here || !matches!(target.method, "POST" | "") {
            return None;
        }
        let (api, operation) = match target.segments {
            ["complete"] => ("alephalpha.complete", "text_completion"),
            ["embed" | "semantic_embed" | "batch_semantic_embed"] => {
                ("alephalpha.embed", "embeddings")
            }
            _ => return None,
        };
        Some(Endpoint::new(&AlephAlpha, api, operation).of("aleph_alpha"))
    }

    fn request_paths(&self) -> Paths {
        &[REQUEST]
    }

    fn response_paths(&self) -> Paths {
        &[RESPONSE]
    }

    fn confirms(&self, _endpoint: &Endpoint, request: &Facts) -> bool {
        request.has(Field::HasPrompt) && request.has(Field::Model)
    }

    fn guess(&self, Bodies { request, response }: &Bodies<'_>) -> Option<Endpoint> {
        let completed = request.has(Field::HasPrompt) && response.has(Field::AlephOutput);
        completed.then(|| {
            Endpoint::new(&AlephAlpha, "alephalpha.complete", "text_completion").of("aleph_alpha")
        })
    }

    fn read(&self, _endpoint: &Endpoint, bodies: &Bodies<'_>, call: &mut Call) {
        let Bodies { request, response } = *bodies;
        read_parameters(request, call);
        read_answer(response, call);
        call.max_output_tokens = request.count(Field::MaxTokens);
        set(&mut call.request_model, request.text(Field::Model));
        set(&mut call.response_model, response.text(Field::ModelVersionName));
        call.finish_reasons = response.list(List::Reasons).map(str::to_owned).collect();
        call.usage = Usage {
            input_tokens: response.count(Field::AlephInput),
            output_tokens: response.count(Field::AlephOutput),
            ..Usage::default()
        };
        read_error(response, call);
    }
}

const REQUEST: &[(&str, Want)] = &[
    ("model", Want::Keep(Field::Model)),
    ("prompt.**", Want::ProseAnd(Field::HasPrompt)),
    ("maximum_tokens", Want::Keep(Field::MaxTokens)),
];

const RESPONSE: &[(&str, Want)] = &[
    ("model_version", Want::Keep(Field::ModelVersionName)),
    ("completions.*.finish_reason", Want::Append(List::Reasons)),
    ("num_tokens_prompt_total", Want::Keep(Field::AlephInput)),
    ("num_tokens_generated", Want::Keep(Field::AlephOutput)),
];
