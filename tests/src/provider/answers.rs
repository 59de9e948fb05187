//! What the APIs answer: bodies in the shape that the providers' own references show.
//!
//! Text is fixed; token counts follow from the request, so that two requests of different length differ.

use bytes::Bytes;
use serde_json::{Value, json};

/// One piece of a streamed answer is one token here.
const PIECES: &[&str] = &["The", " capital", " of", " France", " is", " Paris", "."];
/// Unix seconds of every `created`.
const CREATED: u64 = 1_764_000_000;

/// An answer with what the log says about it.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) model: Option<String>,
    pub(super) input_tokens: Option<u64>,
    pub(super) output_tokens: Option<u64>,
    pub(super) framing: Framing,
    pub(super) payload: Payload,
}

/// How a JSON body is delimited over HTTP/1.1. Both are seen in the wild.
#[derive(Clone, Copy, Debug)]
pub(super) enum Framing {
    Sized,
    Chunked,
}

#[derive(Debug)]
pub(super) enum Payload {
    Json(Value),
    /// Server-sent events, each with its empty line.
    Events(Vec<Bytes>),
}

/// What a request says that an answer depends on.
struct Asked<'a> {
    body: &'a Value,
    model: &'a str,
    stream: bool,
    input_tokens: u64,
    /// Cut to what the request allows.
    pieces: &'static [&'static str],
}

impl Answer {
    /// The answer to one request.
    pub(super) fn to(method: &str, path: &str, body: &[u8]) -> Self {
        if (method, path) == ("GET", "/v1/models") {
            return Self::plain(200, Framing::Sized, models());
        }
        let Ok(body) = serde_json::from_slice::<Value>(body) else {
            return Self::plain(
                400,
                Framing::Sized,
                error("We could not parse the JSON body of your request."),
            );
        };
        let Some(asked) = Asked::read(&body) else {
            return Self::plain(400, Framing::Sized, error("you must provide a model parameter"));
        };
        match (method, path) {
            ("POST", "/v1/chat/completions") => asked.openai_chat(),
            ("POST", "/v1/responses") => asked.openai_responses(),
            ("POST", "/v1/embeddings") => asked.openai_embeddings(),
            ("POST", "/v1/messages") => asked.anthropic_messages(),
            // Whatever is not served was asked for all the same.
            _ => {
                let unknown = Self::plain(404, Framing::Sized, error("Unknown request URL"));
                Self { model: Some(asked.model.to_owned()), ..unknown }
            }
        }
    }

    fn plain(status: u16, framing: Framing, json: Value) -> Self {
        let payload = Payload::Json(json);
        Self { status, model: None, input_tokens: None, output_tokens: None, framing, payload }
    }
}

impl<'a> Asked<'a> {
    fn read(body: &'a Value) -> Option<Self> {
        let limit = ["max_tokens", "max_completion_tokens", "max_output_tokens"]
            .iter()
            .find_map(|key| body.get(key)?.as_u64())
            .and_then(|limit| usize::try_from(limit).ok())
            .unwrap_or(PIECES.len());
        Some(Self {
            body,
            model: body.get("model")?.as_str()?,
            stream: body.get("stream").and_then(Value::as_bool).unwrap_or(false),
            input_tokens: 8 + text_bytes(body) / 4,
            pieces: PIECES.get(..limit).unwrap_or(PIECES),
        })
    }

    fn output_tokens(&self) -> u64 {
        self.pieces.len() as u64
    }

    fn stopped_early(&self) -> bool {
        self.pieces.len() < PIECES.len()
    }

    fn answer(&self, framing: Framing, output_tokens: Option<u64>, payload: Payload) -> Answer {
        Answer {
            status: 200,
            model: Some(self.model.to_owned()),
            input_tokens: Some(self.input_tokens),
            output_tokens,
            framing,
            payload,
        }
    }

    fn openai_chat(&self) -> Answer {
        let reason = if self.stopped_early() { "length" } else { "stop" };
        let usage = json!({
            "prompt_tokens": self.input_tokens, "completion_tokens": self.output_tokens(),
            "total_tokens": self.input_tokens + self.output_tokens(),
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": 0, "audio_tokens": 0,
                "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0,
            },
        });
        let head = |object: &str| {
            json!({
                "id": "chatcmpl-GenOpsTest01", "object": object, "created": CREATED,
                "model": dated(self.model), "service_tier": "default", "system_fingerprint": "fp_560af6e559",
            })
        };
        if !self.stream {
            let body = with(
                head("chat.completion"),
                json!({
                    "choices": [{
                        "index": 0, "logprobs": null, "finish_reason": reason,
                        "message": {
                            "role": "assistant", "content": self.pieces.concat(), "refusal": null, "annotations": [],
                        },
                    }],
                    "usage": usage,
                }),
            );
            return self.answer(Framing::Chunked, Some(self.output_tokens()), Payload::Json(body));
        }
        let asked_usage =
            self.body.pointer("/stream_options/include_usage") == Some(&Value::Bool(true));
        let chunk = |delta: Value, reason: Option<&str>| {
            let mut chunk = with(
                head("chat.completion.chunk"),
                json!({
                    "choices": [{"index": 0, "delta": delta, "logprobs": null, "finish_reason": reason}],
                }),
            );
            if asked_usage {
                chunk = with(chunk, json!({"usage": null}));
            }
            data(&chunk)
        };
        let mut events =
            vec![chunk(json!({"role": "assistant", "content": "", "refusal": null}), None)];
        events.extend(self.pieces.iter().map(|piece| chunk(json!({"content": piece}), None)));
        events.push(chunk(json!({}), Some(reason)));
        if asked_usage {
            events.push(data(&with(
                head("chat.completion.chunk"),
                json!({"choices": [], "usage": usage}),
            )));
        }
        events.push(Bytes::from_static(b"data: [DONE]\n\n"));
        let output_tokens = asked_usage.then(|| self.output_tokens());
        Answer {
            input_tokens: asked_usage.then_some(self.input_tokens),
            ..self.answer(Framing::Chunked, output_tokens, Payload::Events(events))
        }
    }

    fn openai_responses(&self) -> Answer {
        let message = json!({
            "id": "msg_genops_test_01", "type": "message", "status": "completed", "role": "assistant",
            "content": [{"type": "output_text", "text": self.pieces.concat(), "annotations": []}],
        });
        let response = |status: &str, output: Value, usage: Value| {
            json!({
                "id": "resp_genops_test_01", "object": "response", "created_at": CREATED, "status": status,
                "error": null, "incomplete_details": null, "instructions": null, "metadata": {},
                "model": dated(self.model), "output": output, "parallel_tool_calls": true, "temperature": 1.0,
                "tool_choice": "auto", "tools": [], "top_p": 1.0, "usage": usage,
            })
        };
        let usage = json!({
            "input_tokens": self.input_tokens, "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": self.output_tokens(), "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self.input_tokens + self.output_tokens(),
        });
        let done = response("completed", json!([message]), usage);
        if !self.stream {
            return self.answer(Framing::Chunked, Some(self.output_tokens()), Payload::Json(done));
        }
        let begun = response("in_progress", json!([]), Value::Null);
        let place = json!({"item_id": "msg_genops_test_01", "output_index": 0, "content_index": 0});
        let mut sequence = 0;
        let mut event = |name: &str, fields: Value| {
            let event =
                named(name, &with(json!({"type": name, "sequence_number": sequence}), fields));
            sequence += 1;
            event
        };
        let mut events = vec![
            event("response.created", json!({"response": begun})),
            event("response.in_progress", json!({"response": begun})),
        ];
        for piece in self.pieces {
            events.push(event(
                "response.output_text.delta",
                with(place.clone(), json!({"delta": piece, "logprobs": []})),
            ));
        }
        events.push(event(
            "response.output_text.done",
            with(place, json!({"text": self.pieces.concat(), "logprobs": []})),
        ));
        events
            .push(event("response.output_item.done", json!({"output_index": 0, "item": message})));
        events.push(event("response.completed", json!({"response": done})));
        self.answer(Framing::Chunked, Some(self.output_tokens()), Payload::Events(events))
    }

    fn openai_embeddings(&self) -> Answer {
        let vector: Vec<f64> = (0..8).map(|index| f64::from(index) / 64.0 - 0.0625).collect();
        // The SDK asks for base64 of little-endian floats and turns it back itself.
        let base64 = self.body.get("encoding_format").and_then(Value::as_str) == Some("base64");
        let embedding = if base64 { json!(EIGHT_FLOATS_BASE64) } else { json!(vector) };
        let body = json!({
            "object": "list", "model": self.model,
            "data": [{"object": "embedding", "index": 0, "embedding": embedding}],
            "usage": {"prompt_tokens": self.input_tokens, "total_tokens": self.input_tokens},
        });
        self.answer(Framing::Sized, None, Payload::Json(body))
    }

    fn anthropic_messages(&self) -> Answer {
        let reason = if self.stopped_early() { "max_tokens" } else { "end_turn" };
        let message = |content: Value, reason: Option<&str>, output_tokens: u64| {
            json!({
                "id": "msg_01GenOpsTest", "type": "message", "role": "assistant", "model": self.model,
                "content": content, "stop_reason": reason, "stop_sequence": null,
                "usage": {
                    "input_tokens": self.input_tokens, "cache_creation_input_tokens": 0,
                    "cache_read_input_tokens": 0, "output_tokens": output_tokens, "service_tier": "standard",
                },
            })
        };
        let output_tokens = self.output_tokens();
        if !self.stream {
            let content = json!([{"type": "text", "text": self.pieces.concat()}]);
            let body = message(content, Some(reason), output_tokens);
            return self.answer(Framing::Sized, Some(output_tokens), Payload::Json(body));
        }
        let event = |name: &str, fields: Value| named(name, &with(json!({"type": name}), fields));
        let mut events = vec![
            event("message_start", json!({"message": message(json!([]), None, 1)})),
            event(
                "content_block_start",
                json!({"index": 0, "content_block": {"type": "text", "text": ""}}),
            ),
            event("ping", json!({})),
        ];
        for piece in self.pieces {
            let delta = json!({"type": "text_delta", "text": piece});
            events.push(event("content_block_delta", json!({"index": 0, "delta": delta})));
        }
        events.push(event("content_block_stop", json!({"index": 0})));
        events.push(event(
            "message_delta",
            json!({
                "delta": {"stop_reason": reason, "stop_sequence": null}, "usage": {"output_tokens": output_tokens},
            }),
        ));
        events.push(event("message_stop", json!({})));
        self.answer(Framing::Chunked, Some(output_tokens), Payload::Events(events))
    }
}

/// Eight zeroes as little-endian `f32`, in base64.
const EIGHT_FLOATS_BASE64: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

/// The model that answers is a dated snapshot of the one asked for.
fn dated(model: &str) -> String {
    match model {
        "gpt-4o-mini" => "gpt-4o-mini-2024-07-18".to_owned(),
        "gpt-4o" => "gpt-4o-2024-08-06".to_owned(),
        "gpt-4.1" => "gpt-4.1-2025-04-14".to_owned(),
        other => other.to_owned(),
    }
}

/// Bytes of every string in the request: longer input, more tokens.
fn text_bytes(value: &Value) -> u64 {
    match value {
        Value::String(text) => text.len() as u64,
        Value::Array(items) => items.iter().map(text_bytes).sum(),
        Value::Object(fields) => fields.values().map(text_bytes).sum(),
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
    }
}

fn models() -> Value {
    let model =
        |id: &str| json!({"id": id, "object": "model", "created": CREATED, "owned_by": "system"});
    json!({"object": "list", "data": [model("gpt-4o-mini"), model("gpt-4o"), model("text-embedding-3-small")]})
}

fn error(message: &str) -> Value {
    json!({"error": {"message": message, "type": "invalid_request_error", "param": null, "code": null}})
}

/// `base` with the fields of `more` put over it.
fn with(mut base: Value, more: Value) -> Value {
    if let (Value::Object(base), Value::Object(more)) = (&mut base, more) {
        base.extend(more);
    }
    base
}

fn data(json: &Value) -> Bytes {
    format!("data: {json}\n\n").into()
}

fn named(name: &str, json: &Value) -> Bytes {
    format!("event: {name}\ndata: {json}\n\n").into()
}

#[cfg(test)]
mod tests {
    use super::{Answer, Payload};

    #[test]
    fn a_streamed_answer_costs_what_a_plain_one_does() {
        for path in ["/v1/chat/completions", "/v1/responses", "/v1/messages"] {
            let ask = |stream: bool| {
                let body = format!(
                    r#"{{"model": "m", "stream": {stream}, "stream_options": {{"include_usage": true}}, "input": "Hello, you"}}"#
                );
                Answer::to("POST", path, body.as_bytes())
            };
            let (plain, streamed) = (ask(false), ask(true));
            assert!(matches!(
                (&plain.payload, &streamed.payload),
                (Payload::Json(_), Payload::Events(_))
            ));
            assert_eq!(plain.output_tokens, Some(7), "{path}");
            assert_eq!(
                (plain.input_tokens, plain.output_tokens),
                (streamed.input_tokens, streamed.output_tokens),
                "{path}"
            );
        }
    }

    #[test]
    fn usage_that_was_not_asked_for_is_not_said() {
        let body = br#"{"model": "m", "stream": true}"#;
        let Answer { input_tokens, output_tokens, .. } =
            Answer::to("POST", "/v1/chat/completions", body);
        assert_eq!((input_tokens, output_tokens), (None, None));
    }

    #[test]
    fn a_request_that_is_no_json_is_refused() {
        assert_eq!(Answer::to("POST", "/v1/messages", b"{").status, 400);
    }
}
