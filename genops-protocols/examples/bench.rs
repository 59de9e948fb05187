//! Measures the speed of the decoders, beside a floor of the same run. Prints a JSON line for each.
//!
//! `cargo run --release -p genops-protocols --example bench [PART-OF-A-NAME]`. The bodies come from
//! the recordings beside the project (`../shared/corpus`) if present, else are made up. The floor
//! of plain bytes is `memchr` over the same bytes, of coded bytes the decompressor alone.
#![expect(clippy::print_stdout, reason = "an example that prints")]
#![expect(clippy::disallowed_methods, reason = "a benchmark reads a clock and its files")]
#![expect(clippy::indexing_slicing, reason = "of JSON values, which yields null")]
#![expect(clippy::cast_precision_loss, reason = "rates need no more than three digits")]

#[path = "../tests/recording/mod.rs"]
#[expect(dead_code, reason = "only the base64 of it is used here")]
mod recording;

use std::alloc::System;
use std::collections::BTreeMap;
use std::hint::black_box;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use genops_protocols::{
    Connection, ConnectionFacts, Direction, Exchange, Hosts, Kind, Request, Sink,
};
use serde_json::{Value, json};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Duration of measuring each side of a comparison.
const TIME: Duration = Duration::from_millis(700);

/// Bytes passed on at a time: a TLS record.
const PIECE: usize = 16 << 10;

#[derive(Default)]
struct Count {
    calls: u64,
}

impl Sink for Count {
    fn request(&mut self, request: &Request<'_>) {
        black_box(request.texts().map(str::len).sum::<usize>());
    }

    fn exchange(&mut self, exchange: Exchange) {
        self.calls += u64::from(exchange.call.kind == Kind::Inference);
    }
}

/// Bytes of a connection, in order.
type Stream = Vec<(Direction, Vec<u8>)>;

fn decode(streams: &[Stream], hosts: &Arc<Hosts>) -> Count {
    let mut count = Count::default();
    for stream in streams {
        let mut connection = Connection::new(ConnectionFacts::default(), Arc::clone(hosts));
        for (direction, bytes) in stream {
            for piece in bytes.chunks(PIECE) {
                connection.data(1, *direction, piece, &mut count);
            }
        }
        connection.close(2, &mut count);
    }
    count
}

/// Measures runs per second.
fn rate(mut run: impl FnMut()) -> f64 {
    run();
    let start = Instant::now();
    let mut runs = 0_u32;
    while start.elapsed() < TIME {
        run();
        runs += 1;
    }
    f64::from(runs) / start.elapsed().as_secs_f64()
}

fn report(name: &str, streams: &[Stream], bytes: usize, floor: impl FnMut()) {
    if std::env::args().nth(1).is_some_and(|part| !name.contains(&part)) {
        return;
    }
    let hosts = Arc::new(Hosts::builtin());
    let region = Region::new(ALLOCATOR);
    let calls = decode(streams, &hosts).calls;
    let allocations = region.change().allocations as f64;
    let own = rate(|| {
        black_box(decode(streams, &hosts).calls);
    });
    let floor = rate(floor);
    let line = json!({
        "name": name,
        "bytes": bytes,
        "calls": calls,
        "bytes_per_s": (own * bytes as f64).round(),
        "floor_bytes_per_s": (floor * bytes as f64).round(),
        "ratio": (own / floor * 1000.0).round() / 1000.0,
        "allocations_per_call": (allocations / calls.max(1) as f64).round(),
    });
    println!("{line}");
}

/// Finds every line end in the same bytes with `memchr`.
fn scan(streams: &[Stream]) {
    for (_, bytes) in streams.iter().flatten() {
        for at in memchr::memchr_iter(b'\n', bytes) {
            black_box(at);
        }
    }
}

fn total(streams: &[Stream]) -> usize {
    streams.iter().flatten().map(|(_, bytes)| bytes.len()).sum()
}

/// Connections of a recording.
fn recorded(name: &str) -> Option<Vec<Stream>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/corpus");
    let text = std::fs::read_to_string(root.join(name)).ok()?;
    let mut streams: BTreeMap<String, Stream> = BTreeMap::new();
    for line in text.lines() {
        let record: Value = serde_json::from_str(line).ok()?;
        let Some(data) = record["data"].as_str() else { continue };
        let direction =
            if record["dir"] == "egress" { Direction::Egress } else { Direction::Ingress };
        let stream = streams.entry(record["conn"].as_str()?.to_owned()).or_default();
        let bytes = recording::decode_base64(data);
        match stream.last_mut() {
            Some((last, joined)) if *last == direction => joined.extend(bytes),
            _ => stream.push((direction, bytes)),
        }
    }
    Some(streams.into_values().collect())
}

/// Plain event streams among the responses of a recording.
fn event_streams(streams: &[Stream]) -> Vec<Vec<u8>> {
    let mut bodies = Vec::new();
    for stream in streams {
        let ingress: Vec<u8> = stream
            .iter()
            .filter(|(direction, _)| *direction == Direction::Ingress)
            .flat_map(|(_, bytes)| bytes.clone())
            .collect();
        let mut rest = ingress.as_slice();
        while let Some((head, body, after)) = response(rest) {
            let lower = head.to_ascii_lowercase();
            if lower.contains("text/event-stream") && !lower.contains("content-encoding") {
                bodies.push(body);
            }
            rest = after;
        }
    }
    bodies
}

/// Splits the first response off: head, body, rest.
fn response(bytes: &[u8]) -> Option<(String, Vec<u8>, &[u8])> {
    let end = memchr::memmem::find(bytes, b"\r\n\r\n")? + 4;
    let (head, mut rest) = bytes.split_at(end);
    let head = String::from_utf8_lossy(head).into_owned();
    let lower = head.to_ascii_lowercase();
    let mut body = Vec::new();
    if lower.contains("transfer-encoding: chunked") {
        loop {
            let line = memchr::memchr(b'\n', rest)?;
            let (size, after) = rest.split_at(line + 1);
            let size = usize::from_str_radix(std::str::from_utf8(size).ok()?.trim(), 16).ok()?;
            body.extend_from_slice(after.get(..size)?);
            rest = after.get(size + 2..)?;
            if size == 0 {
                break;
            }
        }
    } else if let Some((_, after)) = lower.split_once("content-length:") {
        let length = after.split("\r\n").next()?.trim().parse().ok()?;
        body.extend_from_slice(rest.get(..length)?);
        rest = rest.get(length..)?;
    }
    Some((head, body, rest))
}

/// Makes up an event stream of a chat, for runs without recordings.
fn made_up() -> Vec<u8> {
    let mut body = Vec::new();
    for index in 0..4000 {
        let chunk = json!({"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1,
            "model": "gpt-4o", "choices": [{"index": 0, "delta": {"content": format!(" w{index}")},
            "finish_reason": null}]});
        body.extend_from_slice(format!("data: {chunk}\n\n").as_bytes());
    }
    body.extend_from_slice(b"data: {\"id\":\"chatcmpl-1\",\"choices\":[],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":2}}\n\ndata: [DONE]\n\n");
    body
}

/// Makes up a call with `body` as response, in chunks of an event each, as sent by servers.
fn call(body: &[u8], coding: &str, chunk: usize) -> Stream {
    let question =
        br#"{"model":"gpt-4o","stream":true,"messages":[{"role":"user","content":"hi"}]}"#;
    let mut egress = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: api.openai.com\r\nContent-Length: {}\r\n\r\n",
        question.len()
    )
    .into_bytes();
    egress.extend_from_slice(question);
    let mut ingress = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n{coding}Transfer-Encoding: chunked\r\n\r\n"
    )
    .into_bytes();
    let mut rest = body;
    while !rest.is_empty() {
        let event = memchr::memmem::find(rest, b"\n\n").map_or(rest.len(), |at| at + 2);
        let len = if chunk == 0 { event } else { chunk.min(rest.len()) };
        let (piece, after) = rest.split_at(len);
        ingress.extend_from_slice(format!("{len:x}\r\n").as_bytes());
        ingress.extend_from_slice(piece);
        ingress.extend_from_slice(b"\r\n");
        rest = after;
    }
    ingress.extend_from_slice(b"0\r\n\r\n");
    vec![(Direction::Egress, egress), (Direction::Ingress, ingress)]
}

fn coded(what: &str, bodies: &[Vec<u8>]) -> Result<(), Box<dyn std::error::Error>> {
    let bytes = bodies.iter().map(Vec::len).sum();
    let mut gzip = Vec::new();
    let mut zstd = Vec::new();
    for body in bodies {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(body)?;
        gzip.push(encoder.finish()?);
        let mut out = vec![0; zstd_safe::compress_bound(body.len())];
        let len =
            zstd_safe::compress(out.as_mut_slice(), body, 3).map_err(zstd_safe::get_error_name)?;
        out.truncate(len);
        zstd.push(out);
    }
    let calls = |bodies: &[Vec<u8>], coding: &str| -> Vec<Stream> {
        bodies.iter().map(|it| call(it, &format!("Content-Encoding: {coding}\r\n"), 8192)).collect()
    };
    let mut room = vec![0; 16 << 10];
    report(&format!("gzip, {what}"), &calls(&gzip, "gzip"), bytes, || {
        for body in &gzip {
            let mut inflate = flate2::Decompress::new_gzip(15);
            loop {
                let from = usize::try_from(inflate.total_in()).unwrap_or(usize::MAX);
                let rest = body.get(from..).unwrap_or_default();
                let status = inflate.decompress(rest, &mut room, flate2::FlushDecompress::None);
                if !matches!(status, Ok(flate2::Status::Ok)) {
                    break;
                }
            }
        }
    });
    let mut room = vec![0; 16 << 10];
    report(&format!("zstd, {what}"), &calls(&zstd, "zstd"), bytes, || {
        for body in &zstd {
            let mut context = zstd_safe::DCtx::create();
            let mut input = zstd_safe::InBuffer::around(body);
            loop {
                let mut output = zstd_safe::OutBuffer::around(room.as_mut_slice());
                match context.decompress_stream(&mut output, &mut input) {
                    Ok(left) if left > 0 && output.pos() > 0 => {}
                    _ => break,
                }
            }
        }
    });
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let http1 = recorded("http1.jsonl");
    let bodies = match &http1 {
        Some(streams) => event_streams(streams),
        None => vec![made_up(); 8],
    };
    let events: Vec<Stream> = bodies.iter().map(|body| call(body, "", 0)).collect();
    report("http/1.1, plain events", &events, total(&events), || scan(&events));
    let long = [call(&made_up().repeat(64), "", 0)];
    report("http/1.1, one long event stream", &long, total(&long), || scan(&long));
    coded("events", &bodies)?;
    coded("one long event stream", &[made_up().repeat(64)])?;
    if let Some(http1) = http1 {
        report("http/1.1, recordings as they are", &http1, total(&http1), || scan(&http1));
    }
    if let Some(http2) = recorded("http2.jsonl") {
        report("http/2, recordings as they are", &http2, total(&http2), || scan(&http2));
    }
    Ok(())
}
