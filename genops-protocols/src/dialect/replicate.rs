//! Replicate: predictions.

use super::{
    Bodies, Dialect, Endpoint, Paths, Target, read_answer, read_error, read_parameters, set,
};
use crate::call::{Call, Usage};
use crate::facts::{Facts, Field};
use crate::json::schema::Want;

#[derive(Debug)]
pub(crate) struct Replicate;

impl Dialect for Replicate {
    fn endpoint(&self, target: &Target<'_>) -> Option<Endpoint> {
        let endpoint = Endpoint::new(&Replicate, "replicate.predictions", "prediction");
        let endpoint = endpoint.of("replicate");
        if !matches!(target.method, "POST" | "") {
            return None;
        }
        match target.segments {
            ["v1", "models", owner, name, "predictions"] => {
                Some(endpoint.model(Some(format!("{owner}/{name}"))))
            }
            ["v1", "deployments", _, _, "predictions"] | ["v1", "predictions"] => Some(endpoint),
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
        request.has(Field::HasInput) && (request.has(Field::Version) || endpoint.model.is_some())
    }

    fn guess(&self, Bodies { request, response }: &Bodies<'_>) -> Option<Endpoint> {
        let started = response.has(Field::Version) && response.has(Field::Status);
        (started && request.has(Field::Version) && request.has(Field::HasInput)).then(|| {
            Endpoint::new(&Replicate, "replicate.predictions", "prediction").of("replicate")
        })
    }

    fn read(&self, endpoint: &Endpoint, bodies: &Bodies<'_>, call: &mut Call) {
        let Bodies { request, response } = *bodies;
        read_parameters(request, call);
        read_answer(response, call);
        let version = request.text(Field::Version).or_else(|| request.text(Field::Model));
        set(&mut call.request_model, endpoint.model.as_deref().or(version));
        set(&mut call.response_status, response.text(Field::Status));
        call.usage = Usage {
            input_tokens: response.count(Field::PredictedInput),
            output_tokens: response.count(Field::PredictedOutput),
            ..Usage::default()
        };
        read_error(response, call);
    }
}

const REQUEST: &[(&str, Want)] =
    &[("version", Want::Keep(Field::Version)), ("input.**", Want::ProseAnd(Field::HasInput))];

const RESPONSE: &[(&str, Want)] = &[
    ("version", Want::Keep(Field::Version)),
    ("status", Want::Keep(Field::Status)),
    ("metrics.input_token_count", Want::Keep(Field::PredictedInput)),
    ("metrics.output_token_count", Want::Keep(Field::PredictedOutput)),
];
