//! Answers of the APIs: bodies in the shape shown by the providers' own references.
//!
//! Text is fixed; token counts follow from the request, so that two requests of different length
//! differ.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use serde_json::{Value, json};

/// Text of an answer.
const SHORT: &str = "The capital of France is Paris.";
/// Text of an answer to a request containing [`AT_LENGTH`].
const LONG: &str = "The river that runs through the town was once the only road between the hills and the sea. \
    Boats carried wool, salt and letters; the old warehouses still stand along the northern bank, and on market days \
    people meet there as they did three hundred years ago.";
const AT_LENGTH: &str = "at length";
/// Most letters of a word in a token.
const TOKEN_LETTERS: usize = 10;
/// Tokens of a request in addition to the tokens of its texts.
const FRAME_TOKENS: u64 = 8;
/// Tokens in a streamed piece of Gemini.
const GEMINI_GROUP: usize = 8;
/// Unix time of every `created`, in seconds.
const CREATED: u64 = 1_764_000_000;

/// Answers of the process so far; the number makes the id of each answer unique.
static ANSWERS: AtomicU64 = AtomicU64::new(0);

/// Answer with the facts for the log.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) id: Option<String>,
    pub(super) model: Option<String>,
    pub(super) input_tokens: Option<u64>,
    pub(super) output_tokens: Option<u64>,
    /// Input tokens counted by the provider, reported in the answer or not.
    pub(super) counted_input: u64,
    pub(super) framing: Framing,
    pub(super) payload: Payload,
}

/// Delimiting of a JSON body over HTTP/1.1. Both are seen in the wild.
#[derive(Clone, Copy, Debug)]
pub(super) enum Framing {
    Sized,
    Chunked,
}

#[derive(Debug)]
pub(super) enum Payload {
    Json(Value),
    /// Server-sent events.
    Events(Vec<Event>),
}

/// Piece of a streamed answer.
#[derive(Clone, Debug)]
pub(super) struct Event {
    /// The event, with the empty line at the end.
    pub(super) bytes: Bytes,
    /// Output tokens in the event.
    pub(super) tokens: u64,
    /// Whether the event reports the usage of the whole answer.
    pub(super) tells: bool,
}

impl Event {
    fn making(self, tokens: usize) -> Self {
        Self { tokens: tokens as u64, ..self }
    }

    fn telling(self) -> Self {
        Self { tells: true, ..self }
    }
}

impl From<Bytes> for Event {
    fn from(bytes: Bytes) -> Self {
        Self { bytes, tokens: 0, tells: false }
    }
}

/// Facts of a request deciding the answer.
struct Asked<'a> {
    body: &'a Value,
    /// Number of the answer, unique in the process.
    number: u64,
    model: &'a str,
    stream: bool,
    input_tokens: u64,
    /// Text of the answer, a token each, cut to the limit in the request.
    pieces: Vec<&'static str>,
    stopped_early: bool,
}

impl Answer {
    /// Returns the answer to a request.
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
        let Some(asked) = Asked::read(path, &body) else {
            return Self::plain(400, Framing::Sized, error("you must provide a model parameter"));
        };
        match (method, path) {
            ("POST", "/v1/chat/completions") => asked.openai_chat(),
            ("POST", "/v1/responses") => asked.openai_responses(),
            ("POST", "/v1/embeddings") => asked.openai_embeddings(),
            ("POST", "/v1/messages") => asked.anthropic_messages(),
            ("POST", _) if gemini_model(path).is_some() => asked.gemini(),
            // The log names the model also if the endpoint is unknown.
            _ => {
                let unknown = Self::plain(404, Framing::Sized, error("Unknown request URL"));
                Self { model: Some(asked.model.to_owned()), ..unknown }
            }
        }
    }

    fn plain(status: u16, framing: Framing, json: Value) -> Self {
        let payload = Payload::Json(json);
        Self {
            status,
            id: None,
            model: None,
            input_tokens: None,
            output_tokens: None,
            counted_input: 0,
            framing,
            payload,
        }
    }
}

impl<'a> Asked<'a> {
    fn read(path: &'a str, body: &'a Value) -> Option<Self> {
        let keys = [
            "/max_tokens",
            "/max_completion_tokens",
            "/max_output_tokens",
            "/generationConfig/maxOutputTokens",
        ];
        let limit = keys.iter().find_map(|key| body.pointer(key)?.as_u64());
        let mut pieces = tokens(if asks_at_length(body) { LONG } else { SHORT });
        let whole = pieces.len();
        pieces.truncate(limit.and_then(|limit| limit.try_into().ok()).unwrap_or(whole));
        let (named, streams) = gemini_model(path).unzip();
        Some(Self {
            body,
            number: ANSWERS.fetch_add(1, Ordering::Relaxed),
            model: named.or_else(|| body.get("model")?.as_str())?,
            stream: streams.unwrap_or(body.get("stream").and_then(Value::as_bool).unwrap_or(false)),
            input_tokens: FRAME_TOKENS + text_tokens(body),
            stopped_early: pieces.len() < whole,
            pieces,
        })
    }

    fn output_tokens(&self) -> u64 {
        self.pieces.len() as u64
    }

    /// Returns the id of the answer, with the prefix of the API.
    fn id(&self, beginning: &str) -> String {
        format!("{beginning}GenOpsTest{:06}", self.number)
    }

    fn answer(
        &self,
        id: Option<String>,
        framing: Framing,
        output_tokens: Option<u64>,
        payload: Payload,
    ) -> Answer {
        Answer {
            status: 200,
            id,
            model: Some(self.model.to_owned()),
            input_tokens: Some(self.input_tokens),
            output_tokens,
            counted_input: self.input_tokens,
            framing,
            payload,
        }
    }

    fn openai_chat(&self) -> Answer {
        let reason = if self.stopped_early { "length" } else { "stop" };
        let usage = json!({
            "prompt_tokens": self.input_tokens, "completion_tokens": self.output_tokens(),
            "total_tokens": self.input_tokens + self.output_tokens(),
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": 0, "audio_tokens": 0,
                "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0,
            },
        });
        let id = self.id("chatcmpl-");
        let head = |object: &str| {
            json!({
                "id": id, "object": object, "created": CREATED,
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
            let (output_tokens, body) = (Some(self.output_tokens()), Payload::Json(body));
            return self.answer(Some(id), Framing::Chunked, output_tokens, body);
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
        let made = |piece| chunk(json!({"content": piece}), None).making(1);
        events.extend(self.pieces.iter().map(made));
        events.push(chunk(json!({}), Some(reason)));
        if asked_usage {
            let last = with(head("chat.completion.chunk"), json!({"choices": [], "usage": usage}));
            events.push(data(&last).telling());
        }
        events.push(Bytes::from_static(b"data: [DONE]\n\n").into());
        let output_tokens = asked_usage.then(|| self.output_tokens());
        Answer {
            input_tokens: asked_usage.then_some(self.input_tokens),
            ..self.answer(Some(id), Framing::Chunked, output_tokens, Payload::Events(events))
        }
    }

    fn openai_responses(&self) -> Answer {
        let id = self.id("resp_");
        let message = json!({
            "id": "msg_genops_test_01", "type": "message", "status": "completed", "role": "assistant",
            "content": [{"type": "output_text", "text": self.pieces.concat(), "annotations": []}],
        });
        let response = |status: &str, output: Value, usage: Value| {
            json!({
                "id": id, "object": "response", "created_at": CREATED, "status": status,
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
            let (output_tokens, done) = (Some(self.output_tokens()), Payload::Json(done));
            return self.answer(Some(id), Framing::Chunked, output_tokens, done);
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
        for piece in &self.pieces {
            let fields = with(place.clone(), json!({"delta": piece, "logprobs": []}));
            events.push(event("response.output_text.delta", fields).making(1));
        }
        events.push(event(
            "response.output_text.done",
            with(place, json!({"text": self.pieces.concat(), "logprobs": []})),
        ));
        events
            .push(event("response.output_item.done", json!({"output_index": 0, "item": message})));
        events.push(event("response.completed", json!({"response": done})).telling());
        let output_tokens = Some(self.output_tokens());
        self.answer(Some(id), Framing::Chunked, output_tokens, Payload::Events(events))
    }

    fn openai_embeddings(&self) -> Answer {
        let vector: Vec<f64> = (0..8).map(|index| f64::from(index) / 64.0 - 0.0625).collect();
        // The SDK asks for base64 of little-endian floats and decodes the text itself.
        let base64 = self.body.get("encoding_format").and_then(Value::as_str) == Some("base64");
        let embedding = if base64 { json!(EIGHT_FLOATS_BASE64) } else { json!(vector) };
        let body = json!({
            "object": "list", "model": self.model,
            "data": [{"object": "embedding", "index": 0, "embedding": embedding}],
            "usage": {"prompt_tokens": self.input_tokens, "total_tokens": self.input_tokens},
        });
        self.answer(None, Framing::Sized, None, Payload::Json(body))
    }

    fn anthropic_messages(&self) -> Answer {
        let reason = if self.stopped_early { "max_tokens" } else { "end_turn" };
        let id = self.id("msg_01");
        let message = |content: Value, reason: Option<&str>, output_tokens: u64| {
            json!({
                "id": id, "type": "message", "role": "assistant", "model": self.model,
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
            let (output_tokens, body) = (Some(output_tokens), Payload::Json(body));
            return self.answer(Some(id), Framing::Sized, output_tokens, body);
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
        for piece in &self.pieces {
            let delta = json!({"index": 0, "delta": {"type": "text_delta", "text": piece}});
            events.push(event("content_block_delta", delta).making(1));
        }
        events.push(event("content_block_stop", json!({"index": 0})));
        let delta = event(
            "message_delta",
            json!({
                "delta": {"stop_reason": reason, "stop_sequence": null}, "usage": {"output_tokens": output_tokens},
            }),
        );
        events.push(delta.telling());
        events.push(event("message_stop", json!({})));
        self.answer(Some(id), Framing::Chunked, Some(output_tokens), Payload::Events(events))
    }

    /// Answers as `generateContent` and `streamGenerateContent?alt=sse` do; nothing follows the
    /// last event.
    fn gemini(&self) -> Answer {
        let id = self.id("gemini-");
        let reason = if self.stopped_early { "MAX_TOKENS" } else { "STOP" };
        let chunk = |text: &str, output_tokens: usize, reason: Option<&str>| {
            let mut candidate =
                json!({"content": {"parts": [{"text": text}], "role": "model"}, "index": 0});
            if let Some(reason) = reason {
                candidate = with(candidate, json!({"finishReason": reason}));
            }
            let total = self.input_tokens + output_tokens as u64;
            json!({
                "candidates": [candidate], "modelVersion": self.model, "responseId": id,
                "usageMetadata": {
                    "promptTokenCount": self.input_tokens, "candidatesTokenCount": output_tokens,
                    "totalTokenCount": total,
                },
            })
        };
        let whole = self.pieces.len();
        let output_tokens = Some(self.output_tokens());
        if !self.stream {
            let body = Payload::Json(chunk(&self.pieces.concat(), whole, Some(reason)));
            return self.answer(Some(id), Framing::Chunked, output_tokens, body);
        }
        let mut events: Vec<Event> = Vec::new();
        let mut made = 0;
        for group in self.pieces.chunks(GEMINI_GROUP) {
            made += group.len();
            let reason = Some(reason).filter(|_| made == whole);
            events.push(data(&chunk(&group.concat(), made, reason)).making(group.len()));
        }
        let last = events.pop().map(Event::telling);
        events.extend(last);
        self.answer(Some(id), Framing::Chunked, output_tokens, Payload::Events(events))
    }
}

/// Eight zeroes as little-endian `f32`, in base64.
const EIGHT_FLOATS_BASE64: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

/// Returns the dated snapshot answering for `model`.
fn dated(model: &str) -> String {
    match model {
        "gpt-4o-mini" => "gpt-4o-mini-2024-07-18".to_owned(),
        "gpt-4o" => "gpt-4o-2024-08-06".to_owned(),
        "gpt-4.1" => "gpt-4.1-2025-04-14".to_owned(),
        other => other.to_owned(),
    }
}

/// Returns the model in a path of Gemini, and whether the path asks for a stream.
fn gemini_model(path: &str) -> Option<(&str, bool)> {
    let rest = path.strip_prefix("/v1beta/").or(path.strip_prefix("/v1/"))?;
    let (model, method) = rest.strip_prefix("models/")?.split_once(':')?;
    match method {
        "generateContent" => Some((model, false)),
        "streamGenerateContent" => Some((model, true)),
        _ => None,
    }
}

/// Calls `each` with every string in the request.
fn texts<'a>(value: &'a Value, each: &mut impl FnMut(&'a str)) {
    match value {
        Value::String(text) => each(text),
        Value::Array(items) => items.iter().for_each(|it| texts(it, each)),
        Value::Object(fields) => fields.values().for_each(|it| texts(it, each)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn text_tokens(value: &Value) -> u64 {
    let mut count = 0;
    texts(value, &mut |text| count += tokens(text).len() as u64);
    count
}

fn asks_at_length(value: &Value) -> bool {
    let mut asks = false;
    texts(value, &mut |text| asks |= text.contains(AT_LENGTH));
    asks
}

/// Splits roughly as the tokenizers of models do: a word with the space before, a sign alone.
fn tokens(text: &str) -> Vec<&str> {
    let mut tokens = Vec::new();
    let (mut start, mut room) = (0, 0_usize);
    for (at, char) in text.char_indices() {
        let is_letter = char.is_alphanumeric();
        if is_letter && room > 0 {
            room -= 1;
            continue;
        }
        tokens.extend(text.get(start..at).filter(|it| !it.is_empty()));
        start = at;
        room = match char {
            _ if is_letter => TOKEN_LETTERS - 1,
            ' ' => TOKEN_LETTERS,
            _ => 0,
        };
    }
    tokens.extend(text.get(start..).filter(|it| !it.is_empty()));
    tokens
}

fn models() -> Value {
    let model =
        |id: &str| json!({"id": id, "object": "model", "created": CREATED, "owned_by": "system"});
    json!({"object": "list", "data": [model("gpt-4o-mini"), model("gpt-4o"), model("text-embedding-3-small")]})
}

fn error(message: &str) -> Value {
    json!({"error": {"message": message, "type": "invalid_request_error", "param": null, "code": null}})
}

/// Returns `base` extended and overwritten by the fields of `more`.
fn with(mut base: Value, more: Value) -> Value {
    if let (Value::Object(base), Value::Object(more)) = (&mut base, more) {
        base.extend(more);
    }
    base
}

fn data(json: &Value) -> Event {
    Bytes::from(format!("data: {json}\n\n")).into()
}

fn named(name: &str, json: &Value) -> Event {
    Bytes::from(format!("event: {name}\ndata: {json}\n\n")).into()
}

#[cfg(test)]
mod tests {
    use super::{Answer, Payload, SHORT, tokens};

    #[test]
    fn a_token_is_a_word_with_the_space_before_it_or_a_sign() {
        let pieces = ["The", " capital", " of", " France", " is", " Paris", "."];
        assert_eq!(tokens(SHORT), pieces);
        assert_eq!(tokens("x = incomprehensibly"), ["x", " ", "=", " incomprehe", "nsibly"]);
        assert_eq!(tokens(""), [""; 0]);
    }

    #[test]
    fn a_streamed_answer_costs_what_a_plain_one_does() {
        const GEMINI: &str = "/v1beta/models/m:";
        for path in ["/v1/chat/completions", "/v1/responses", "/v1/messages", GEMINI] {
            let ask = |stream: bool| {
                let body = format!(
                    r#"{{"model": "m", "stream": {stream}, "stream_options": {{"include_usage": true}}, "input": "Hello, you"}}"#
                );
                let method = if stream { "streamGenerateContent" } else { "generateContent" };
                let path = format!("{path}{}", if path == GEMINI { method } else { "" });
                Answer::to("POST", &path, body.as_bytes())
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
            let Payload::Events(events) = streamed.payload else { panic!("{path}: no events") };
            assert_eq!(events.iter().map(|it| it.tokens).sum::<u64>(), 7, "{path}");
            assert_eq!(events.iter().filter(|it| it.tells).count(), 1, "{path}");
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
