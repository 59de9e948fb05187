//! Every way for a call to end: the charge, the basis of the charge, and the reported cost.
//!
//! Prices: gpt-4o-mini 150 and 600, claude-haiku-4-5 1,000 and 5,000 nano-USD for a token of input
//! and output; tts-1 15,000 for a character; whisper-1 100,000 for a second of sound.

#![expect(clippy::unwrap_used, reason = "tests fail by panic")]
#![expect(clippy::needless_raw_string_hashes, reason = "as the snapshots are written")]

mod support;

use std::fmt::Write as _;

use expect_test::{Expect, expect};
use genops_governance::{ConnId, Estimate, Sections, Value};
use support::*;

/// Error code of a stream no longer wanted by the client (RFC 9113 §7).
const CANCEL: u8 = 8;

/// A chat request for a stream: 10 bytes of text, estimated at 3 tokens.
fn asked() -> Vec<u8> {
    let body = r#"{"model":"gpt-4o-mini","max_tokens":100,"service_tier":"default","stream":true,"messages":[{"role":"user","content":"Name a bay"}]}"#;
    request_to("/v1/chat/completions", body)
}

fn plain(path: &str, body: &str) -> Vec<u8> {
    request_to(path, body)
}

/// Returns the head of a stream of events.
fn head() -> Vec<u8> {
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        .to_vec()
}

fn chunk(text: &str) -> Vec<u8> {
    format!("{:x}\r\n{text}\r\n", text.len()).into_bytes()
}

/// Returns the events of a chat's stream, each a chunk.
fn events(all: &[&str]) -> Vec<u8> {
    all.iter().flat_map(|it| chunk(&format!("data: {it}\n\n"))).collect()
}

const ROLE: &str = r#"{"id":"c1","object":"chat.completion.chunk","model":"gpt-4o-mini","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}"#;
/// A chunk with 14 bytes of text: 4 tokens by estimate.
const TEXT: &str = r#"{"id":"c1","object":"chat.completion.chunk","model":"gpt-4o-mini","choices":[{"index":0,"delta":{"content":"Biscay is one."},"finish_reason":null}]}"#;
const STOP: &str = r#"{"id":"c1","object":"chat.completion.chunk","model":"gpt-4o-mini","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#;
const USAGE: &str = r#"{"id":"c1","object":"chat.completion.chunk","model":"gpt-4o-mini","choices":[],"usage":{"prompt_tokens":11,"completion_tokens":7,"total_tokens":18}}"#;
/// A chunk with usage so far: vLLM and others count in every chunk.
const SO_FAR: &str = r#"{"id":"c1","object":"chat.completion.chunk","model":"gpt-4o-mini","choices":[{"index":0,"delta":{"content":"Bis"},"finish_reason":null}],"usage":{"prompt_tokens":11,"completion_tokens":2,"total_tokens":13}}"#;

/// Sends a request, answers in pieces, and closes; returns the outcome in a line.
fn ends(name: &str, request: &[u8], answers: &[Vec<u8>]) -> String {
    ends_at("api.openai.com", name, |host, conn| {
        host.egress(conn, request);
        for answer in answers {
            host.ingress(conn, answer);
        }
    })
}

fn ends_at(server: &'static str, name: &str, run: impl FnOnce(&mut Host, ConnId)) -> String {
    let mut sections = enforcing();
    sections.budgets = vec![budget(100.0)];
    let mut host = Host::new(&sections);
    host.server_name = server;
    let conn = host.open(HELD);
    run(&mut host, conn);
    host.close(conn);
    let awu = host.awus.pop().unwrap();
    let mut line = format!("{name}:");
    let attributes = awu.attributes();
    let shown = |key: &str| attributes.iter().find(|(it, _)| *it == key).map(|(_, value)| value);
    let (_, account) =
        host.engine.ledger().accounts().next().unwrap_or_else(|| panic!("{name}: {}", host.text));
    assert_eq!(account.reserved, 0, "{name}");
    let reserved = awu.outcome.reservation().map(|it| it.amount);
    let reserved = reserved.unwrap_or_else(|| panic!("{name}: {}", host.text));
    let Some(actual) = awu.outcome.actual() else {
        assert_eq!((account.consumed(), awu.cost_nano_usd), (0, None), "{name}");
        return format!("{name}: released\n");
    };
    assert_eq!(account.consumed(), actual.amount, "{name}");
    assert!(actual.amount <= reserved, "{name}");
    let basis = actual.basis.as_str();
    let all = if basis == "reserved" && actual.amount == reserved { " (all)" } else { "" };
    write!(line, " {basis} {}{all}", actual.amount).unwrap();
    assert_eq!(actual.incomplete, basis != "reported", "{name}");
    if let Some(cost) = awu.cost_nano_usd {
        assert_eq!((basis, cost), ("reported", actual.amount), "{name}");
        line.push_str(", a cost");
    }
    let counts = ["gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens"].map(shown);
    for (count, sort) in counts.into_iter().zip(["in", "out"]) {
        if let Some(Value::Int(count)) = count {
            write!(line, ", {count} {sort}").unwrap();
        }
    }
    if let Some(Value::Str(error)) = shown("error.type") {
        write!(line, ", {error}").unwrap();
    }
    line + "\n"
}

#[track_caller]
fn check(all: &[String], expected: &Expect) {
    expected.assert_eq(&all.concat());
}

#[test]
fn a_stream_is_charged_by_what_was_seen_of_it() {
    let end = b"0\r\n\r\n".to_vec();
    check(
        &[
            ends("before any byte of an answer", &asked(), &[]),
            ends("after the head", &asked(), &[head()]),
            ends("before any text", &asked(), &[head(), events(&[ROLE])]),
            ends("within the text", &asked(), &[head(), events(&[ROLE, TEXT])]),
            ends("within an event", &asked(), &[head(), events(&[ROLE, TEXT]), b"40\r\ndata: {\"id\":".to_vec()]),
            ends("counted so far", &asked(), &[head(), events(&[ROLE, SO_FAR])]),
            ends("counted, then more text", &asked(), &[head(), events(&[SO_FAR, TEXT])]),
            ends("within the count", &asked(), &[head(), events(&[ROLE, TEXT, STOP]), b"80\r\ndata: {\"object\":\"chat.completion.chunk\",\"usage\":{\"prompt_tokens\":1".to_vec()]),
            ends("after the count", &asked(), &[head(), events(&[ROLE, TEXT, STOP, USAGE])]),
            ends("after [DONE]", &asked(), &[head(), events(&[ROLE, TEXT, STOP, USAGE, "[DONE]"])]),
            ends("after [DONE], uncounted", &asked(), &[head(), events(&[ROLE, TEXT, STOP, "[DONE]"])]),
            ends("after the last chunk", &asked(), &[head(), events(&[ROLE, TEXT, STOP, USAGE, "[DONE]"]), end]),
        ],
        &expect![[r#"
            before any byte of an answer: reserved 96600 (all), connection_closed
            after the head: estimated 450, connection_closed
            before any text: estimated 450, connection_closed
            within the text: estimated 2850, connection_closed
            within an event: estimated 2850, connection_closed
            counted so far: estimated 2850, 11 in, 2 out, connection_closed
            counted, then more text: estimated 4650, 11 in, 2 out, connection_closed
            within the count: estimated 2850, connection_closed
            after the count: reported 5850, a cost, 11 in, 7 out
            after [DONE]: reported 5850, a cost, 11 in, 7 out
            after [DONE], uncounted: estimated 2850
            after the last chunk: reported 5850, a cost, 11 in, 7 out
        "#]],
    );
}

#[test]
fn what_a_messages_stream_counted_at_its_start_is_charged() {
    let body = r#"{"model":"claude-haiku-4-5","max_tokens":100,"stream":true,"messages":[{"role":"user","content":"Name a bay"}]}"#;
    let request = format!(
        "POST /v1/messages HTTP/1.1\r\nHost: api.anthropic.com\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let event = |data: &str| {
        let kind = data.split('"').nth(3).unwrap();
        chunk(&format!("event: {kind}\ndata: {data}\n\n"))
    };
    let start = event(
        r#"{"type":"message_start","message":{"id":"m1","type":"message","role":"assistant","model":"claude-haiku-4-5","content":[],"stop_reason":null,"usage":{"input_tokens":13,"output_tokens":2}}}"#,
    );
    let text = event(
        r#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"The bay of Fundy"}}"#,
    );
    let delta = event(
        r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":9}}"#,
    );
    let failed =
        event(r#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}"#);
    let stop = event(r#"{"type":"message_stop"}"#);
    let ends = |name: &str, answers: &[&Vec<u8>]| {
        ends_at("api.anthropic.com", name, |host, conn| {
            host.egress(conn, request.as_bytes()).ingress(conn, &head());
            for answer in answers {
                host.ingress(conn, answer);
            }
        })
    };
    check(
        &[
            ends("after the start", &[&start]),
            ends("within the text", &[&start, &text]),
            ends("failed within", &[&start, &text, &failed]),
            ends("after the count", &[&start, &text, &delta]),
            ends("after the stop", &[&start, &text, &delta, &stop]),
        ],
        &expect![[r#"
            after the start: estimated 23000, 13 in, 2 out, connection_closed
            within the text: estimated 33000, 13 in, 2 out, connection_closed
            failed within: estimated 33000, 13 in, 2 out, overloaded_error
            after the count: reported 58000, a cost, 13 in, 9 out
            after the stop: reported 58000, a cost, 13 in, 9 out
        "#]],
    );
}

#[test]
fn a_refusal_costs_nothing_however_it_ends() {
    let error = r#"{"error":{"message":"no","type":"odd_error"}}"#;
    let status = |code: u16| ends(&code.to_string(), &asked(), &[answer(code, error)]);
    let cut = |code: u16| {
        let whole = answer(code, error);
        let (begun, _) = whole.split_at(whole.len() - 9);
        ends(&format!("{code}, cut"), &asked(), &[begun.to_vec()])
    };
    let moved =
        b"HTTP/1.1 307 X\r\nLocation: https://elsewhere.example/\r\nContent-Length: 0\r\n\r\n";
    let one = plain(
        "/v1/chat/completions",
        r#"{"model":"gpt-4o-mini","max_tokens":100,"service_tier":"default","messages":[{"role":"user","content":"Name a bay"}]}"#,
    );
    check(
        &[
            status(400),
            status(429),
            status(500),
            status(529),
            cut(429),
            cut(503),
            ends("moved", &asked(), &[moved.to_vec()]),
            ends("200 with an error", &one, &[answer(200, error)]),
            ends(
                "200 with an error in a stream",
                &asked(),
                &[head(), events(&[error]), b"0\r\n\r\n".to_vec()],
            ),
        ],
        &expect![[r#"
            400: reported 0, a cost, odd_error
            429: reported 0, a cost, odd_error
            500: reported 0, a cost, odd_error
            529: reported 0, a cost, odd_error
            429, cut: reported 0, a cost, 429
            503, cut: reported 0, a cost, 503
            moved: reported 0, a cost
            200 with an error: reported 0, a cost, odd_error
            200 with an error in a stream: estimated 450, odd_error
        "#]],
    );
}

#[test]
fn an_answer_in_one_piece_is_made_to_its_end() {
    let one = plain(
        "/v1/chat/completions",
        r#"{"model":"gpt-4o-mini","max_tokens":100,"service_tier":"default","messages":[{"role":"user","content":"Name a bay"}]}"#,
    );
    let whole = ok();
    let at = |text: &str| {
        let at = whole.windows(text.len()).position(|it| it == text.as_bytes()).unwrap();
        whole.split_at(at + text.len()).0.to_vec()
    };
    check(
        &[
            ends("before the answer", &one, &[]),
            ends("after its head", &one, &[at("\r\n\r\n")]),
            ends("within its text", &one, &[at("\"content\":\"h")]),
            ends("within a count", &one, &[at("\"prompt_tokens\":20,\"completion_tokens\":1")]),
            ends("after the counts", &one, &[at("\"completion_tokens\":10,")]),
            ends("whole", &one, std::slice::from_ref(&whole)),
        ],
        &expect![[r#"
            before the answer: reserved 94500 (all), connection_closed
            after its head: reserved 94500 (all), connection_closed
            within its text: reserved 94500 (all), connection_closed
            within a count: reserved 94500 (all), 20 in, connection_closed
            after the counts: estimated 9000, 20 in, 10 out, connection_closed
            whole: reported 9000, a cost, 20 in, 10 out
        "#]],
    );
}

/// An HTTP/2 frame (RFC 9113 §4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length.get(1..).unwrap().to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// Header fields, plain and never indexed (RFC 7541 §6.2.3), as a HEADERS frame.
fn fields(stream: u32, all: &[(&str, &str)]) -> Vec<u8> {
    let text = |it: &str| [&[u8::try_from(it.len()).unwrap()], it.as_bytes()].concat();
    let block: Vec<u8> = all
        .iter()
        .flat_map(|(name, value)| [vec![0x10], text(name), text(value)].concat())
        .collect();
    frame(1, 4, stream, &block)
}

#[test]
fn a_stream_of_http2_ends_by_itself_or_by_either_side() {
    let request = || {
        let head = [
            (":method", "POST"),
            (":scheme", "https"),
            (":authority", "api.openai.com"),
            (":path", "/v1/chat/completions"),
            ("content-type", "application/json"),
        ];
        let sent = asked();
        let body = sent.windows(4).position(|it| it == b"\r\n\r\n").unwrap() + 4;
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        let body = frame(0, 1, 1, sent.get(body..).unwrap());
        [preface, frame(4, 0, 0, &[]), fields(1, &head), body].concat()
    };
    let answer = || fields(1, &[(":status", "200"), ("content-type", "text/event-stream")]);
    let data = |all: &[&str], flags: u8| {
        let text = all.iter().fold(String::new(), |text, it| text + "data: " + it + "\n\n");
        frame(0, flags, 1, text.as_bytes())
    };
    let reset = |code: u8| frame(3, 0, 1, &[0, 0, 0, code]);
    let away = |last: u8| frame(7, 0, 0, &[0, 0, 0, last, 0, 0, 0, 0]);
    let ends = |name: &str, answers: &[Vec<u8>], left: Option<Vec<u8>>| {
        ends_at("api.openai.com", name, |host, conn| {
            host.egress(conn, &request()).ingress(conn, &frame(4, 0, 0, &[]));
            for answer in answers {
                host.ingress(conn, answer);
            }
            if let Some(bytes) = left {
                host.egress(conn, &bytes);
            }
        })
    };
    check(
        &[
            ends("END_STREAM", &[answer(), data(&[TEXT, STOP, USAGE, "[DONE]"], 1)], None),
            ends(
                "cancelled after [DONE]",
                &[answer(), data(&[TEXT, STOP, USAGE, "[DONE]"], 0)],
                Some(reset(CANCEL)),
            ),
            ends(
                "cancelled after the count",
                &[answer(), data(&[TEXT, STOP, USAGE], 0)],
                Some(reset(CANCEL)),
            ),
            ends("cancelled within the text", &[answer(), data(&[TEXT], 0)], Some(reset(CANCEL))),
            ends("cancelled before the answer", &[], Some(reset(CANCEL))),
            ends(
                "reset by the server within the text",
                &[answer(), data(&[TEXT], 0), reset(2)],
                None,
            ),
            ends("reset by the server before the answer", &[reset(2)], None),
            ends("not begun with, by the reset", &[reset(7)], None),
            ends("not begun with, by GOAWAY", &[away(0)], None),
            ends(
                "GOAWAY, and then finished",
                &[away(1), answer(), data(&[TEXT, STOP, USAGE, "[DONE]"], 1)],
                None,
            ),
            ends("GOAWAY, and then left", &[answer(), data(&[TEXT], 0), away(1)], None),
        ],
        &expect![[r#"
            END_STREAM: reported 5850, a cost, 11 in, 7 out
            cancelled after [DONE]: reported 5850, a cost, 11 in, 7 out
            cancelled after the count: reported 5850, a cost, 11 in, 7 out
            cancelled within the text: estimated 2850, connection_closed
            cancelled before the answer: reserved 99600 (all), connection_closed
            reset by the server within the text: estimated 2850, connection_closed
            reset by the server before the answer: reserved 99600 (all), connection_closed
            not begun with, by the reset: released
            not begun with, by GOAWAY: released
            GOAWAY, and then finished: reported 5850, a cost, 11 in, 7 out
            GOAWAY, and then left: estimated 2850, connection_closed
        "#]],
    );
}

/// A WebSocket frame with a text: masked with zeros, as sent by a client, or not masked.
fn message(text: &str, client: bool) -> Vec<u8> {
    let mask = if client { 0x80 } else { 0 };
    let length = match u8::try_from(text.len()) {
        Ok(short @ 0..126) => vec![mask | short],
        _ => [&[mask | 0x7e][..], &u16::try_from(text.len()).unwrap().to_be_bytes()].concat(),
    };
    let key = if client { vec![0; 4] } else { Vec::new() };
    [vec![0x81], length, key, text.as_bytes().to_vec()].concat()
}

#[test]
fn a_turn_of_a_realtime_session_ends_with_its_own_event() {
    let open = "GET /v1/realtime?model=gpt-4o-mini HTTP/1.1\r\nHost: api.openai.com\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n";
    let opened = b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
    let ask = r#"{"type":"response.create","response":{"max_output_tokens":100,"instructions":"Name a bay"}}"#;
    let created = r#"{"type":"response.created","response":{"id":"r1","object":"realtime.response","status":"in_progress","usage":null}}"#;
    let delta =
        r#"{"type":"response.output_text.delta","response_id":"r1","delta":"Biscay is one."}"#;
    let done = r#"{"type":"response.done","response":{"id":"r1","object":"realtime.response","status":"completed","usage":{"input_tokens":11,"output_tokens":7,"total_tokens":18}}}"#;
    let ends = |name: &str, answers: &[&str]| {
        ends_at("api.openai.com", name, |host, conn| {
            host.egress(conn, open.as_bytes()).ingress(conn, opened);
            host.egress(conn, &message(ask, true));
            for answer in answers {
                host.ingress(conn, &message(answer, false));
            }
        })
    };
    check(
        &[
            ends("closed before the answer", &[]),
            ends("closed before any text", &[created]),
            ends("closed within the text", &[created, delta]),
            ends("done", &[created, delta, done]),
        ],
        &expect![[r#"
            closed before the answer: reserved 16408250 (all), connection_closed
            closed before any text: estimated 450, connection_closed
            closed within the text: estimated 2850, connection_closed
            done: reported 5850, a cost, 11 in, 7 out
        "#]],
    );
}

/// The usual cost of calls bounds the reservation for a call, and not the charge for a call cut
/// short.
#[test]
fn a_cut_answer_is_charged_beyond_what_such_calls_usually_cost() {
    let mut sections = Sections { budgets: vec![budget(100.0)], ..enforcing() };
    sections.prices.estimate = Estimate::P95;
    let mut host = Host::new(&sections);
    for _ in 0..150 {
        let conn = host.open(HELD);
        host.egress(conn, &asked());
        host.ingress(conn, &[head(), events(&[ROLE, TEXT, STOP, USAGE, "[DONE]"])].concat());
        host.close(conn);
    }
    let conn = host.open(HELD);
    host.egress(conn, &asked());
    let long: Vec<u8> = (0..20).flat_map(|_| events(&[TEXT])).collect();
    host.ingress(conn, &[head(), long].concat());
    host.close(conn);
    let awu = host.awus.last().unwrap();
    let actual = awu.outcome.actual().unwrap();
    // 3 tokens in the request, and 20 times 14 bytes in the answer: 70 tokens.
    assert_eq!(awu.outcome.reservation().unwrap().amount, 5_850);
    assert_eq!((actual.amount, actual.basis.as_str()), (450 + 70 * 600, "estimated"));
}

#[test]
fn pictures_and_sound_are_charged_by_what_they_are_paid_by() {
    let picture = plain(
        "/v1/images/generations",
        r#"{"model":"gpt-image-1","prompt":"A bay","size":"1024x1024","quality":"low"}"#,
    );
    let drawn = answer(
        200,
        r#"{"created":1,"data":[{"b64_json":"AAAA"}],"usage":{"input_tokens":9,"output_tokens":272,"total_tokens":281,"input_tokens_details":{"text_tokens":9,"image_tokens":0}}}"#,
    );
    let speech =
        plain("/v1/audio/speech", r#"{"model":"tts-1","voice":"alloy","input":"Name a bay"}"#);
    let sound =
        b"HTTP/1.1 200 OK\r\nContent-Type: audio/mpeg\r\nContent-Length: 4\r\n\r\n\xff\xfb\x90\x00";
    let (begun, _) = sound.split_at(sound.len() - 2);
    let part = "--b\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nwhisper-1\r\n--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\nContent-Type: audio/wav\r\n\r\nRIFF\r\n--b--\r\n";
    let listen = format!(
        "POST /v1/audio/transcriptions HTTP/1.1\r\nHost: api.openai.com\r\nContent-Type: multipart/form-data; boundary=b\r\nContent-Length: {}\r\n\r\n{part}",
        part.len()
    );
    let heard = answer(200, r#"{"text":"A bay","usage":{"type":"duration","seconds":1}}"#);
    let (misheard, _) = heard.split_at(heard.len() - 20);
    check(
        &[
            ends("a picture", &picture, std::slice::from_ref(&drawn)),
            ends("a picture nobody waited for", &picture, &[]),
            ends(
                "a picture refused",
                &picture,
                &[answer(400, r#"{"error":{"code":"moderation_blocked"}}"#)],
            ),
            ends("speech", &speech, &[sound.to_vec()]),
            ends("speech, cut", &speech, &[begun.to_vec()]),
            ends("speech nobody waited for", &speech, &[]),
            ends("a transcript", listen.as_bytes(), std::slice::from_ref(&heard)),
            ends("a transcript, cut", listen.as_bytes(), &[misheard.to_vec()]),
        ],
        &expect![[r#"
            a picture: reported 10925000, a cost, 9 in, 272 out
            a picture nobody waited for: reserved 657250000 (all), connection_closed
            a picture refused: reported 0, a cost, moderation_blocked
            speech: reported 150000, a cost
            speech, cut: estimated 150000, connection_closed
            speech nobody waited for: estimated 150000, connection_closed
            a transcript: reported 100000, a cost
            a transcript, cut: reserved 100000 (all), connection_closed
        "#]],
    );
}
