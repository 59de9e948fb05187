//! Realtime sessions: turns begun by the server, and transcriptions of the sound.
//!
//! Prices: gpt-4o-mini 150 and 600 nano-USD for a token of input and output; whisper-1 100,000 for
//! a second of sound.

#![expect(clippy::unwrap_used, reason = "tests fail by panic")]
#![expect(clippy::needless_raw_string_hashes, reason = "as the snapshots are written")]

mod support;

use expect_test::{Expect, expect};
use genops_governance::{Awu, ConnId, Effect, Mechanism, Output, RecordKind, Sections, Value};
use support::*;

const HEARD: &str = r#"{"type":"input_audio_buffer.append","audio":"AAAA"}"#;
const CREATED: &str = r#"{"type":"response.created","response":{"id":"r1","object":"realtime.response","status":"in_progress","usage":null}}"#;
const DONE: &str = r#"{"type":"response.done","response":{"id":"r1","object":"realtime.response","status":"completed","usage":{"input_tokens":11,"output_tokens":7,"total_tokens":18}}}"#;
const BY_DURATION: &str = r#"{"type":"conversation.item.input_audio_transcription.completed","item_id":"i1","content_index":0,"transcript":"A bay","usage":{"type":"duration","seconds":3}}"#;
const BY_TOKENS: &str = r#"{"type":"conversation.item.input_audio_transcription.completed","item_id":"i1","content_index":0,"transcript":"A bay","usage":{"type":"tokens","total_tokens":52,"input_tokens":40,"input_token_details":{"text_tokens":8,"audio_tokens":32},"output_tokens":12}}"#;

/// A frame with a text: masked with zeros, as sent by a client, or not masked.
fn message(text: &str, client: bool) -> Vec<u8> {
    let mask = if client { 0x80 } else { 0 };
    let length = match u8::try_from(text.len()) {
        Ok(short @ 0..126) => vec![mask | short],
        _ => [&[mask | 0x7e][..], &u16::try_from(text.len()).unwrap().to_be_bytes()].concat(),
    };
    let key = if client { vec![0; 4] } else { Vec::new() };
    [vec![0x81], length, key, text.as_bytes().to_vec()].concat()
}

/// Opens a session.
fn session(sections: &Sections) -> (Host, ConnId) {
    let mut host = Host::new(sections);
    let conn = host.open(HELD);
    let open = "GET /v1/realtime?model=gpt-4o-mini HTTP/1.1\r\nHost: api.openai.com\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n";
    host.egress(conn, open.as_bytes());
    host.ingress(conn, b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n");
    (host, conn)
}

fn broke() -> Sections {
    Sections { budgets: vec![budget(0.000_001)], ..enforcing() }
}

fn rich() -> Sections {
    Sections { budgets: vec![budget(100.0)], ..enforcing() }
}

/// Returns result, reason, amount and basis of a unit.
fn told(awu: &Awu) -> (&str, Option<String>, Option<(i64, &str)>) {
    let decision = awu.outcome.decision();
    let actual = awu.outcome.actual().map(|it| (it.amount, it.basis.as_str()));
    (decision.result().as_str(), decision.reason().map(ToString::to_string), actual)
}

#[test]
fn a_turn_that_the_server_began_is_charged_by_its_count_and_ends_the_connection() {
    let (mut host, conn) = session(&broke());
    host.egress(conn, &message(HEARD, true));
    host.text.clear();
    host.ingress(conn, &message(CREATED, false));
    host.check(&expect![[r#"
        record intent
        record decision
        record reservation [daily 16398250 None left Some(0)]
        deny c1 collateral 0
    "#]]);
    // Messages still read settle the unit; nothing more may leave.
    host.egress(conn, &message(HEARD, true));
    host.ingress(conn, &message(DONE, false));
    host.check(&expect![[r#"
        record reconciliation [daily 16398250 Some(5850) left Some(0)]
        awu
          policy.result: WARNING
          policy.reason_code: x_not_prevented
          policy.name: daily
          policy.reason: refused (BUDGET_RESERVATION_FAILED: of 0.000001 USD there are 0.000001 USD left, and this request may need 0.01639825 USD), but its server had begun it by itself, from what had left before
          accounting.reserved: Double(0.01639825)
          accounting.actual: Double(5.85e-6)
          compliance: partial
          capture.level: full
          enforcement.mechanism: none
    "#]]);
    host.close(conn);
    let (_, account) = host.engine.ledger().accounts().next().unwrap();
    assert_eq!((account.reserved, account.consumed()), (0, 5_850));
}

/// The same with effects read back: there is nothing to read, because the data has left.
#[test]
fn what_left_of_a_turn_that_the_server_began_needs_no_counter() {
    let mut host = Host::new(&broke());
    host.engine.await_effects();
    let conn = host.open(HELD);
    let open = "GET /v1/realtime?model=gpt-4o-mini HTTP/1.1\r\nHost: api.openai.com\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
    host.egress(conn, open.as_bytes());
    host.ingress(conn, b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n");
    host.egress(conn, &message(HEARD, true));
    host.ingress(conn, &message(CREATED, false));
    let stopped = Effect { mechanism: Mechanism::EgressHold, counted: true, left_to: 0 };
    host.engine.left(host.now, conn, stopped);
    host.close(conn);
    let awu = host.awus.pop().unwrap();
    let (result, reason, actual) = told(&awu);
    assert_eq!((result, reason.as_deref()), ("WARNING", Some("x_not_prevented")));
    let reserved = awu.outcome.reservation().unwrap().amount;
    assert_eq!(actual, Some((reserved, "reserved")));
    assert!(reserved > 1_000);
}

/// A second turn is charged too: the sound had left before the connection was refused for the first
/// turn.
#[test]
fn every_turn_that_the_server_begins_of_what_had_left_is_charged() {
    let (mut host, conn) = session(&broke());
    host.egress(conn, &message(HEARD, true));
    for _ in 0..2 {
        host.ingress(conn, &message(CREATED, false)).ingress(conn, &message(DONE, false));
    }
    let all: Vec<_> = host.awus.iter().map(told).collect();
    let expected = ("WARNING", Some("x_not_prevented".to_owned()), Some((5_850, "reported")));
    assert_eq!(all, [expected.clone(), expected]);
    // Requests by the client itself are kept back.
    host.egress(conn, &message(r#"{"type":"response.create"}"#, true));
    host.close(conn);
    assert_eq!(told(host.awus.last().unwrap()).0, "BLOCKED");
}

/// A permitted turn can't be kept back for want of evidence, because the bytes of the turn have
/// left.
#[test]
fn a_turn_that_the_server_began_runs_also_without_evidence() {
    let (mut host, conn) = session(&rich());
    host.egress(conn, &message(HEARD, true));
    host.ingress(conn, &message(CREATED, false));
    host.engine.withhold(host.now, conn);
    host.ingress(conn, &message(DONE, false));
    assert_eq!(told(host.awus.last().unwrap()), ("ALLOWED", None, Some((5_850, "reported"))));
}

/// Sends messages of both sides (the server's without mask), and checks the units.
#[track_caller]
fn check(messages: &[(&str, bool)], expected: &Expect) {
    let (mut host, conn) = session(&rich());
    for (text, client) in messages {
        let bytes = message(text, *client);
        if *client {
            host.egress(conn, &bytes)
        } else {
            host.ingress(conn, &bytes)
        };
    }
    host.close(conn);
    let mut lines = String::new();
    let mut sum = 0;
    for awu in &host.awus {
        let attributes = awu.attributes();
        let text = |key: &str| match attributes.iter().find(|(it, _)| *it == key) {
            Some((_, Value::Str(text))) => text.clone(),
            _ => "-".to_owned(),
        };
        let (result, reason, actual) = told(awu);
        let (amount, basis) = actual.unwrap();
        sum += amount;
        let line = format!(
            "{} {} {}: {result} {} {amount} {basis}, cost {:?}\n",
            awu.call.exchange,
            text("gen_ai.operation.name"),
            text("gen_ai.request.model"),
            reason.unwrap_or_default(),
            awu.cost_nano_usd
        );
        lines.push_str(&line);
    }
    expected.assert_eq(&lines);
    let (_, account) = host.engine.ledger().accounts().next().unwrap();
    assert_eq!((account.reserved, account.consumed()), (0, sum));
}

#[test]
fn what_writes_down_what_was_heard_is_charged_apart_by_its_own_model() {
    let old = r#"{"type":"session.update","session":{"input_audio_transcription":{"model":"whisper-1"}}}"#;
    let new = r#"{"type":"session.update","session":{"type":"realtime","audio":{"input":{"transcription":{"model":"gpt-4o-mini-transcribe","language":"en"}}}}}"#;
    check(
        &[
            (old, true),
            (HEARD, true),
            (CREATED, false),
            (BY_DURATION, false),
            (DONE, false),
            (new, true),
            (HEARD, true),
            (BY_TOKENS, false),
            (CREATED, false),
            (DONE, false),
        ],
        &expect![[r#"
            2 audio_transcription whisper-1: ALLOWED  300000 reported, cost Some(300000)
            1 chat gpt-4o-mini: ALLOWED  5850 reported, cost Some(5850)
            3 audio_transcription gpt-4o-mini-transcribe: ALLOWED  166000 reported, cost Some(166000)
            4 chat gpt-4o-mini: ALLOWED  5850 reported, cost Some(5850)
        "#]],
    );
    // The server's statement holds, and a token may have set up the session.
    let said = r#"{"type":"session.created","session":{"type":"realtime","audio":{"input":{"transcription":{"model":"whisper-1"}}}}}"#;
    check(
        &[(said, false), (HEARD, true), (BY_DURATION, false)],
        &expect![[r#"
            1 audio_transcription whisper-1: ALLOWED  300000 reported, cost Some(300000)
        "#]],
    );
}

#[test]
fn what_writes_down_what_was_heard_for_no_known_price_says_so() {
    let other = r#"{"type":"session.update","session":{"input_audio_transcription":{"model":"scribe-of-tomorrow"}}}"#;
    check(
        &[(other, true), (HEARD, true), (BY_TOKENS, false)],
        &expect![[r#"
            1 audio_transcription scribe-of-tomorrow: WARNING x_price_unknown 13200000 reported, cost None
        "#]],
    );
    check(
        &[(other, true), (HEARD, true), (BY_DURATION, false)],
        &expect![[r#"
            1 audio_transcription scribe-of-tomorrow: WARNING x_price_unknown 14550000 reserved, cost None
        "#]],
    );
}

/// A message keeps the number assigned at the start, whatever the server sends meanwhile.
#[test]
fn what_is_told_within_a_message_takes_no_number_of_its() {
    let (mut host, conn) = session(&rich());
    let ask = message(r#"{"type":"response.create","response":{"max_output_tokens":9}}"#, true);
    let (begun, rest) = ask.split_at(20);
    let named = r#"{"type":"session.updated","session":{"input_audio_transcription":{"model":"whisper-1"}}}"#;
    host.ingress(conn, &message(named, false));
    host.egress(conn, begun).ingress(conn, &message(BY_DURATION, false)).egress(conn, rest);
    host.ingress(conn, &message(CREATED, false)).ingress(conn, &message(DONE, false));
    let all: Vec<_> = host.awus.iter().map(|it| (it.call.exchange, told(it).0)).collect();
    assert_eq!(all, [(2, "ALLOWED"), (1, "ALLOWED")]);
}

/// The evidence tells why there was no refusal: the intent to refuse comes first.
#[test]
fn a_turn_that_the_server_began_has_an_intent_before_its_decision() {
    let (mut host, conn) = session(&broke());
    host.egress(conn, &message(HEARD, true));
    let bytes = message(CREATED, false);
    let at = host.now.mono_ns;
    host.engine.data(host.now, conn, at, genops_protocols::Direction::Ingress, &bytes);
    let kinds: Vec<RecordKind> = host
        .engine
        .outputs()
        .filter_map(|it| if let Output::Record(it) = it { Some(it.kind) } else { None })
        .collect();
    assert_eq!(kinds, [RecordKind::Intent, RecordKind::Decision, RecordKind::Reservation]);
}
