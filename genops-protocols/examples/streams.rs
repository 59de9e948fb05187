//! Prints a recording of 1,000 streamed calls, in the form written by `record` and read by
//! `replay`.
//!
//! `cargo run -p genops-protocols --example streams > calls.jsonl`: the recording of the figure in
//! `docs/benchmarks.md`. A hundred connections of ten calls each take turns between the forms of
//! OpenAI and Anthropic, with 60 events of text each, an event a chunk and a chunk a record.
#![expect(clippy::print_stdout, reason = "an example that prints")]

use serde_json::{Value, json};

/// 2026-11-22T10:00:00Z.
const START_NS: u64 = 1_795_341_600_000_000_000;
const CONNECTIONS: u64 = 100;
const CALLS_EACH: u64 = 10;
/// Events of text in an answer.
const EVENTS: usize = 60;

/// Target and body of a call, and the events of the answer.
struct Call {
    host: &'static str,
    path: &'static str,
    body: Value,
    events: Vec<String>,
}

fn messages(number: u64) -> (String, String) {
    let system = "You answer in short sentences. ".repeat(20);
    (system, format!("Tell me about item {number}. ").repeat(40))
}

fn openai(number: u64) -> Call {
    let id = format!("chatcmpl-{number:06}");
    let event = |delta: Value, finish: Option<&str>, usage: Value| {
        let choices = match &usage {
            Value::Null => {
                json!([{"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish}])
            }
            _ => json!([]),
        };
        let chunk = json!({
            "id": id, "object": "chat.completion.chunk", "created": 1_795_341_600,
            "model": "gpt-4o-mini-2024-07-18", "service_tier": "default",
            "system_fingerprint": "fp_560af6e559", "choices": choices, "usage": usage,
        });
        format!("data: {chunk}\n\n")
    };
    let role =
        event(json!({"role": "assistant", "content": "", "refusal": null}), None, Value::Null);
    let text =
        (0..EVENTS).map(|it| event(json!({"content": format!(" word{it}")}), None, Value::Null));
    let usage = json!({
        "prompt_tokens": 412 + number % 7, "completion_tokens": 61, "total_tokens": 473 + number % 7,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
    });
    let end = [event(json!({}), Some("stop"), Value::Null), event(json!({}), None, usage)];
    let events = [role].into_iter().chain(text).chain(end).chain(["data: [DONE]\n\n".to_owned()]);
    let (system, user) = messages(number);
    let body = json!({
        "model": "gpt-4o-mini", "max_tokens": 512, "stream": true,
        "stream_options": {"include_usage": true},
        "messages": [{"role": "system", "content": system}, {"role": "user", "content": user}],
    });
    Call { host: "api.openai.com", path: "/v1/chat/completions", body, events: events.collect() }
}

fn anthropic(number: u64) -> Call {
    let event = |kind: &str, rest: Value| {
        let mut data = json!({"type": kind});
        if let (Some(data), Value::Object(rest)) = (data.as_object_mut(), rest) {
            data.extend(rest);
        }
        format!("event: {kind}\ndata: {data}\n\n")
    };
    let start = json!({"message": {
        "id": format!("msg_{number:06}"), "type": "message", "role": "assistant",
        "model": "claude-haiku-4-5-20251001", "content": [], "stop_reason": null, "stop_sequence": null,
        "usage": {"input_tokens": 390 + number % 5, "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0, "output_tokens": 1, "service_tier": "standard"},
    }});
    let begun = json!({"index": 0, "content_block": {"type": "text", "text": ""}});
    let text =
        |it| json!({"index": 0, "delta": {"type": "text_delta", "text": format!(" word{it}")}});
    let delta = json!({
        "delta": {"stop_reason": "end_turn", "stop_sequence": null}, "usage": {"output_tokens": 62},
    });
    let head = [
        event("message_start", start),
        event("content_block_start", begun),
        event("ping", json!({})),
    ];
    let text = (0..EVENTS).map(|it| event("content_block_delta", text(it)));
    let end = [
        event("content_block_stop", json!({"index": 0})),
        event("message_delta", delta),
        event("message_stop", json!({})),
    ];
    let (system, user) = messages(number);
    let body = json!({
        "model": "claude-haiku-4-5", "max_tokens": 512, "stream": true, "system": system,
        "messages": [{"role": "user", "content": user}],
    });
    let events = head.into_iter().chain(text).chain(end).collect();
    Call { host: "api.anthropic.com", path: "/v1/messages", body, events }
}

/// Encodes base64 ([RFC 4648 §4](https://www.rfc-editor.org/rfc/rfc4648#section-4)).
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let byte = |at: usize| u32::from(three.get(at).copied().unwrap_or(0));
        let word = byte(0) << 16 | byte(1) << 8 | byte(2);
        for digit in 0..4_usize {
            let index = (word >> (18 - 6 * digit)) as usize & 0x3f;
            let known = ALPHABET.get(index).filter(|_| digit <= three.len());
            out.push(known.map_or('=', |it| char::from(*it)));
        }
    }
    out
}

fn data(conn: &str, direction: &str, time_ns: u64, bytes: &str) {
    let data = base64(bytes.as_bytes());
    let line =
        json!({"type": "data", "conn": conn, "dir": direction, "time_ns": time_ns, "data": data});
    println!("{line}");
}

fn main() {
    let mut time_ns = START_NS;
    for connection in 0..CONNECTIONS {
        let conn = format!("c{connection}");
        for turn in 0..CALLS_EACH {
            let number = connection * CALLS_EACH + turn;
            let call = if connection % 2 == 0 { openai(number) } else { anthropic(number) };
            let Call { host, path, body, events } = call;
            time_ns += 1_000_000;
            if turn == 0 {
                let open = json!({
                    "type": "open", "conn": conn, "time_ns": time_ns, "pid": 4242, "comm": "python3",
                    "exe": "/usr/bin/python3", "remote": "192.0.2.1:443", "server_name": host, "tls": true,
                });
                println!("{open}");
            }
            let body = body.to_string();
            let head = format!(
                "POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            );
            let request = format!("{head}Content-Length: {}\r\n\r\n{body}", body.len());
            data(&conn, "egress", time_ns, &request);
            time_ns += 200_000_000;
            let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n\
                Transfer-Encoding: chunked\r\n\r\n";
            data(&conn, "ingress", time_ns, head);
            for event in events {
                time_ns += 10_000_000;
                data(&conn, "ingress", time_ns, &format!("{:x}\r\n{event}\r\n", event.len()));
            }
            time_ns += 1_000_000;
            data(&conn, "ingress", time_ns, "0\r\n\r\n");
        }
        println!("{}", json!({"type": "close", "conn": conn, "time_ns": time_ns}));
    }
}
