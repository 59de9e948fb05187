//! Reranking under `/rerank`, as offered by Jina, Voyage, llama.cpp, vLLM and others.

use super::{Bodies, Dialect, Endpoint, Paths, Target, openai_usage, read_answer, read_error};
use super::{read_parameters, set};
use crate::call::{Call, Usage};
use crate::facts::{Facts, Field};
use crate::json::schema::Want;

#[derive(Debug)]
pub(crate) struct Rerank;

impl Dialect for Rerank {
    fn endpoint(&self, target: &Target<'_>) -> Option<Endpoint> {
        let post = matches!(target.method, "POST" | "");
        match target.segments {
            [.., "rerank"] if post => Some(Endpoint::new(&Rerank, "rerank", "rerank")),
            _ => None,
        }
    }

    fn request_paths(&self) -> Paths {
        &[REQUEST]
    }

    fn response_paths(&self) -> Paths {
        &[RESPONSE]
    }

    fn confirms(&self, _endpoint: &Endpoint, request: &Facts) -> bool {
        request.has(Field::HasQuery) && request.has(Field::HasDocuments)
    }

    fn guess(&self, Bodies { request, response }: &Bodies<'_>) -> Option<Endpoint> {
        let asked = request.has(Field::HasQuery) && request.has(Field::HasDocuments);
        let answered = response.has(Field::HasResults)
            || response.has(Field::HasData)
            || response.has(Field::HasError);
        (asked && request.has(Field::Model) && answered)
            .then(|| Endpoint::new(&Rerank, "rerank", "rerank"))
    }

    fn read(&self, _endpoint: &Endpoint, bodies: &Bodies<'_>, call: &mut Call) {
        let Bodies { request, response } = *bodies;
        read_parameters(request, call);
        read_answer(response, call);
        set(&mut call.request_model, request.text(Field::Model));
        let usage = openai_usage(response);
        call.usage = Usage {
            input_tokens: usage.input_tokens.or(usage.total_tokens),
            total_tokens: usage.total_tokens,
            ..Usage::default()
        };
        read_error(response, call);
    }
}

const REQUEST: &[(&str, Want)] = &[
    ("model", Want::Keep(Field::Model)),
    ("query", Want::ProseAnd(Field::HasQuery)),
    ("documents.**", Want::ProseAnd(Field::HasDocuments)),
];

const RESPONSE: &[(&str, Want)] = &[("results", Want::Keep(Field::HasResults))];
