//! Reads recordings and prints calls, for the example and the tests.

use std::collections::HashMap;
use std::sync::Arc;

use genops_protocols::{
    Call, Connection, ConnectionFacts, Direction, Exchange, Hosts, Kind, Request, Sink,
};
use serde_json::{Map, Value, json};

/// Cutting of a recording's bytes for the decoder.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Cut {
    /// As recorded.
    Never,
    /// Into pieces of the given number of bytes.
    Every(usize),
    /// Each piece in two, after the given number of bytes.
    At(usize),
}

struct Lines<'a> {
    connection: &'a str,
    all: bool,
    out: &'a mut Vec<Value>,
    texts: &'a mut Vec<String>,
}

impl Sink for Lines<'_> {
    fn request(&mut self, request: &Request<'_>) {
        if request.call.kind == Kind::Inference {
            self.texts.extend(request.texts().map(str::to_owned));
        }
    }

    fn exchange(&mut self, Exchange { call, response_complete }: Exchange) {
        if self.all || call.kind == Kind::Inference {
            self.out.push(line(self.connection, &call, response_complete, self.all));
        }
    }
}

/// Result of decoding a recording.
#[derive(Debug, Default)]
pub(crate) struct Replayed {
    /// A line per exchange, in order of completion.
    pub(crate) lines: Vec<Value>,
    /// Text sent to models.
    pub(crate) texts: Vec<String>,
    /// Maximum bytes held by a connection beside the data retained for use.
    pub(crate) peak_bytes: usize,
}

/// Decodes a recording. `all`: exchanges of every kind, with details.
pub(crate) fn replay(recording: &str, all: bool, cut: Cut) -> Replayed {
    let hosts = Arc::new(Hosts::builtin());
    let mut connections: HashMap<String, Connection> = HashMap::new();
    let mut replayed = Replayed::default();
    for text in recording.lines() {
        let record: Value = serde_json::from_str(text).expect("a recording is JSON lines");
        let text = |key: &str| record.get(key).and_then(Value::as_str);
        let name = text("conn").unwrap_or_default().to_owned();
        let at_ns = record.get("time_ns").and_then(Value::as_u64).unwrap_or(0);
        let direction =
            if text("dir") == Some("egress") { Direction::Egress } else { Direction::Ingress };
        let Replayed { lines: out, texts, peak_bytes } = &mut replayed;
        let mut sink = Lines { connection: &name, all, out, texts };
        if text("type") == Some("open") {
            let facts = ConnectionFacts {
                server_name: text("server_name").map(str::to_owned),
                remote: text("remote").and_then(|it| it.parse().ok()),
                from_start: false,
            };
            connections.insert(name.clone(), Connection::new(facts, Arc::clone(&hosts)));
            continue;
        }
        let Some(connection) = connections.get_mut(&name) else { continue };
        match text("type") {
            Some("data") => {
                let bytes = decode_base64(text("data").unwrap_or_default());
                for piece in pieces(&bytes, cut) {
                    connection.data(at_ns, direction, piece, &mut sink);
                }
            }
            Some("gap") => {
                let bytes = record.get("bytes").and_then(Value::as_u64);
                connection.gap(at_ns, direction, bytes, &mut sink);
            }
            _ => connection.close(at_ns, &mut sink),
        }
        let beside = connection.memory_bytes().saturating_sub(connection.retained_bytes());
        *peak_bytes = (*peak_bytes).max(beside);
    }
    replayed
}

fn pieces(bytes: &[u8], cut: Cut) -> Vec<&[u8]> {
    match cut {
        Cut::Never => vec![bytes],
        Cut::Every(len) => bytes.chunks(len).collect(),
        Cut::At(at) => {
            let (head, tail) = bytes.split_at(at.min(bytes.len()));
            vec![head, tail]
        }
    }
}

fn line(connection: &str, call: &Call, response_complete: bool, all: bool) -> Value {
    let mut line = Map::new();
    let mut put = |key: &str, value: Value| {
        let nothing = value.is_null() || value.as_array().is_some_and(Vec::is_empty);
        if !nothing {
            line.insert(key.to_owned(), value);
        }
    };
    put("conn", json!(connection));
    put("exchange", json!(call.exchange));
    put("time_ns", json!(call.request_at_ns));
    put("server.address", json!(call.server_address));
    put("server.port", json!(call.server_port));
    put("http.request.method", json!(call.method));
    put("url.path", json!(call.path));
    put("http.response.status_code", json!(call.status));
    put("gen_ai.provider.name", json!(call.provider));
    put("gen_ai.operation.name", json!(call.operation));
    put("gen_ai.request.model", json!(call.request_model));
    put("gen_ai.response.model", json!(call.response_model));
    put("gen_ai.response.id", json!(call.response_id));
    put("gen_ai.response.finish_reasons", json!(call.finish_reasons));
    put("gen_ai.usage.input_tokens", json!(call.usage.input_tokens));
    put("gen_ai.usage.output_tokens", json!(call.usage.output_tokens));
    put("gen_ai.usage.cache_read.input_tokens", json!(call.usage.cache_read_input_tokens));
    put("gen_ai.usage.reasoning.output_tokens", json!(call.usage.reasoning_output_tokens));
    put("gen_ai.request.stream", call.stream.then_some(json!(true)).unwrap_or_default());
    put("genops.tool_calls", json!(call.tool_calls));
    put("error.type", json!(call.error_type));
    if all {
        put("complete", json!(response_complete));
        put("kind", json!(format!("{:?}", call.kind)));
        put("api", json!(call.api));
        put("stream_response", json!(call.stream_response));
        put("server_tool_calls", json!(call.server_tool_calls));
        put("unreadable", call.unreadable.map(|it| json!(format!("{it:?}"))).unwrap_or_default());
        if let Some(mcp) = &call.mcp {
            put("mcp.method.name", json!(mcp.method));
            put("mcp.session.id", json!(mcp.session_id));
            put("mcp.protocol.version", json!(mcp.protocol_version));
            put("jsonrpc.request.id", json!(mcp.request_id));
            put("gen_ai.tool.name", json!(mcp.tool));
            put("mcp.server_messages", json!(mcp.server_messages));
        }
        put("max_output_tokens", json!(call.max_output_tokens));
        put("region", json!(call.region));
        put("cache_creation", json!(call.usage.cache_creation_input_tokens));
        let usage = &call.usage;
        put("cache_creation_hour", json!(usage.cache_creation_hour_input_tokens));
        put("audio_input", json!(usage.audio_input_tokens));
        put("audio_cached", json!(usage.audio_cache_read_input_tokens));
        put("image_output", json!(usage.image_output_tokens));
        put("citations", json!(usage.citation_tokens));
        put("web_searches", json!(usage.web_searches));
        put("audio_input_ms", json!(usage.audio_input_ms));
        put(
            "missing_bytes",
            (call.missing_bytes > 0).then_some(json!(call.missing_bytes)).unwrap_or_default(),
        );
    }
    Value::Object(line)
}

pub(crate) fn decode_base64(text: &str) -> Vec<u8> {
    let (mut out, mut bits, mut count) = (Vec::new(), 0_u32, 0);
    for byte in text.bytes() {
        let sextet = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => continue,
        };
        bits = bits << 6 | u32::from(sextet);
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count & 0xff) as u8);
        }
    }
    out
}
