//! Decodes a recording and prints each model call as one JSON line.
//!
//! `cargo run --release -p genops-protocols --example replay -- FILE [--all]`: the decoding half
//! of `genops-agent replay`, without who asked and what was decided. `--all` prints exchanges of
//! every kind.
#![expect(clippy::print_stdout, reason = "an example that prints")]

use std::collections::HashMap;
use std::io::BufRead;
use std::sync::Arc;

use genops_protocols::{
    Call, Connection, ConnectionFacts, Direction, Exchange, Hosts, Kind, Request, Sink,
};
use serde_json::{Map, Value, json};

struct Print<'a> {
    connection: &'a str,
    all: bool,
}

impl Sink for Print<'_> {
    fn request(&mut self, _request: &Request<'_>) {}

    fn exchange(&mut self, Exchange { call, .. }: Exchange) {
        if self.all || call.kind == Kind::Inference {
            println!("{}", line(self.connection, &call, self.all));
        }
    }
}

fn line(connection: &str, call: &Call, all: bool) -> Value {
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
        put("kind", json!(format!("{:?}", call.kind)));
        put("api", json!(call.api));
        put("stream_response", json!(call.stream_response));
        put("server_tool_calls", json!(call.server_tool_calls));
        put("unreadable", call.unreadable.map(|it| json!(format!("{it:?}"))).unwrap_or_default());
        put("mcp", call.mcp.as_ref().map(|it| json!(format!("{it:?}"))).unwrap_or_default());
    }
    Value::Object(line)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let file = arguments.next().ok_or("usage: replay FILE [--all]")?;
    let all = arguments.next().is_some_and(|it| it == "--all");
    let hosts = Arc::new(Hosts::builtin());
    let mut connections: HashMap<String, Connection> = HashMap::new();
    for text in std::io::BufReader::new(std::fs::File::open(file)?).lines() {
        let record: Value = serde_json::from_str(&text?)?;
        let text = |key: &str| record.get(key).and_then(Value::as_str);
        let name = text("conn").unwrap_or_default().to_owned();
        let at_ns = record.get("time_ns").and_then(Value::as_u64).unwrap_or(0);
        let direction =
            if text("dir") == Some("egress") { Direction::Egress } else { Direction::Ingress };
        let mut sink = Print { connection: &name, all };
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
                connection.data(at_ns, direction, &bytes, &mut sink);
            }
            Some("gap") => {
                let bytes = record.get("bytes").and_then(Value::as_u64);
                connection.gap(at_ns, direction, bytes, &mut sink);
            }
            _ => connection.close(at_ns, &mut sink),
        }
    }
    Ok(())
}

fn decode_base64(text: &str) -> Vec<u8> {
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
