//! Hugging Face: tasks of the inference API, and text-generation-inference. The router is
//! OpenAI-compatible.

use super::{
    Bodies, Dialect, Endpoint, Paths, Target, read_answer, read_error, read_parameters, set,
};
use crate::call::{Call, Usage};
use crate::facts::{Facts, Field};
use crate::json::schema::Want;

#[derive(Debug)]
pub(crate) struct HuggingFace;

impl Dialect for HuggingFace {
    fn endpoint(&self, target: &Target<'_>) -> Option<Endpoint> {
        if !matches!(target.method, "POST" | "") {
            return None;
        }
        let here = target.host_provider == Some("huggingface");
        let embeds = Endpoint::new(&HuggingFace, "hf.feature-extraction", "embeddings");
        let writes = Endpoint::new(&HuggingFace, "hf.text-generation", "text_completion");
        let endpoint = match target.segments {
            [.., "models", owner, name, "pipeline", "feature-extraction"] => {
                embeds.model(Some(format!("{owner}/{name}")))
            }
            [.., "pipeline", "feature-extraction"] if here => embeds,
            ["pipeline", "feature-extraction", model @ ..] => embeds.model(Some(model.join("/"))),
            [.., "models", owner, name] if here => writes.model(Some(format!("{owner}/{name}"))),
            ["generate_stream"] => writes.streaming(true),
            ["generate"] => writes,
            _ => return None,
        };
        Some(endpoint.of("huggingface"))
    }

    fn request_paths(&self) -> Paths {
        &[REQUEST]
    }

    fn response_paths(&self) -> Paths {
        &[RESPONSE]
    }

    fn confirms(&self, _endpoint: &Endpoint, request: &Facts) -> bool {
        request.has(Field::HasInputs)
    }

    fn guess(&self, Bodies { request, response }: &Bodies<'_>) -> Option<Endpoint> {
        let generated = request.has(Field::HasInputs) && response.has(Field::HasGenerated);
        generated.then(|| {
            Endpoint::new(&HuggingFace, "hf.text-generation", "text_completion").of("huggingface")
        })
    }

    fn read(&self, endpoint: &Endpoint, bodies: &Bodies<'_>, call: &mut Call) {
        let Bodies { request, response } = *bodies;
        read_parameters(request, call);
        read_answer(response, call);
        set(&mut call.request_model, endpoint.model.as_deref());
        call.stream |= endpoint.stream;
        let reason = response.text(Field::ResultReason).map(str::to_owned);
        call.finish_reasons.extend(reason);
        call.usage =
            Usage { output_tokens: response.count(Field::GeneratedTokens), ..Usage::default() };
        read_error(response, call);
    }
}

const REQUEST: &[(&str, Want)] = &[
    ("inputs.**", Want::ProseAnd(Field::HasInputs)),
    ("parameters.max_new_tokens", Want::Keep(Field::MaxTokens)),
    ("parameters.temperature", Want::Keep(Field::Temperature)),
];

const RESPONSE: &[(&str, Want)] = &[
    ("generated_text", Want::Keep(Field::HasGenerated)),
    ("details.finish_reason", Want::Keep(Field::ResultReason)),
    ("details.generated_tokens", Want::Keep(Field::GeneratedTokens)),
    ("error_type", Want::Keep(Field::ErrorType)),
];
