//! Small recordings made by the tests, replayed through the whole engine, and the corpus if
//! present.

#![allow(clippy::unwrap_used, reason = "a test ends where it does not hold")]

use std::path::Path;

use expect_test::{Expect, expect};
use genops_governance::Awu;
use serde_json::{Map, Value};

use super::*;
use crate::recording::{Direction as Side, Writer};

/// Replays `recording`; returns the AWUs.
pub(crate) fn awus(config: &Config, recording: &[u8]) -> Vec<Awu> {
    let mut awus = Vec::new();
    let mut replayer = Replayer::new(config, |output| {
        if let Output::Awu(awu) = output {
            awus.push(awu.as_ref().clone());
        }
        Ok(())
    });
    replayer.replay(Reader::new(recording)).expect("the recording is well-formed");
    awus
}

/// A chat completion of `model` by `exe`, in the published format.
pub(crate) fn chat(exe: &str, model: &str) -> Vec<u8> {
    let open = Open {
        pid: Some(4242),
        comm: Some("python3".to_owned()),
        exe: Some(exe.to_owned()),
        remote: Some("192.0.2.1:443".parse().unwrap()),
        server_name: Some("api.openai.com".to_owned()),
        tls: Some(true),
        ..Open::default()
    };
    let mut writer = Writer::new(Vec::new());
    writer.open(START_NS, "c1", &open).unwrap();
    exchange(&mut writer, "c1", model);
    writer.close(START_NS + 400_000_000, "c1").unwrap();
    writer.into_inner()
}

/// 2026-11-22T10:00:00Z.
const START_NS: u64 = 1_795_341_600_000_000_000;

fn exchange(writer: &mut Writer<Vec<u8>>, conn: &str, model: &str) {
    let request = format!(
        r#"{{"model":"{model}","max_tokens":100,"messages":[{{"role":"user","content":"Hello"}}]}}"#
    );
    let response = format!(
        r#"{{"id":"chatcmpl-1","object":"chat.completion","model":"{model}-2024-07-18","choices":[{{"index":0,"message":{{"role":"assistant","content":"Hi"}},"finish_reason":"stop"}}],"usage":{{"prompt_tokens":8,"completion_tokens":2,"total_tokens":10}}}}"#
    );
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: api.openai.com\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{request}",
        request.len()
    );
    let response = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{response}",
        response.len()
    );
    writer.data(START_NS + 1_000_000, conn, Side::Egress, request.as_bytes()).unwrap();
    writer.data(START_NS + 300_000_000, conn, Side::Ingress, response.as_bytes()).unwrap();
}

fn config(yaml: &str) -> Config {
    Config::parse(Path::new("agent.yaml"), yaml).unwrap()
}

/// Replays twice with equal results, and shows the named keys of each AWU.
#[track_caller]
fn check(yaml: &str, recording: &[u8], keys: &[&str], expected: &Expect) {
    let config = config(yaml);
    let lines = |awus: Vec<Awu>| -> Vec<String> {
        awus.iter()
            .map(|awu| {
                let mut line = String::new();
                render::json(awu, &mut line);
                line
            })
            .collect()
    };
    let first = lines(awus(&config, recording));
    assert_eq!(lines(awus(&config, recording)), first, "a replay is the same each time");
    let shown = first.iter().map(|line| {
        let awu: Map<String, Value> = serde_json::from_str(line).unwrap();
        let pairs = keys.iter().filter_map(|key| Some(format!("{key}={}", awu.get(*key)?)));
        pairs.collect::<Vec<_>>().join(" ") + "\n"
    });
    expected.assert_eq(&shown.collect::<String>());
}

const WHAT: &[&str] = &[
    "conn",
    "exchange",
    "process.pid",
    "gen_ai.provider.name",
    "gen_ai.request.model",
    "gen_ai.usage.input_tokens",
    "gen_ai.usage.output_tokens",
    "genops.policy.result",
    "genops.policy.reason_code",
    "genops.enforcement.mechanism",
];

pub(crate) const ENFORCED: &str = r#"
environment: test
mode: enforce
principals:
  - {name: bot, match: {exe: "/usr/bin/python3*"}, team: payments, project: refunds}
policies:
  - {name: small-models, principal: bot, denied_models: ["*-pro"]}
"#;

#[test]
fn a_call_is_reported_with_who_what_and_how_much() {
    check(
        "",
        &chat("/usr/bin/python3", "gpt-4o-mini"),
        WHAT,
        &expect![[r#"
            conn="c1" exchange=0 process.pid=4242 gen_ai.provider.name="openai" gen_ai.request.model="gpt-4o-mini" gen_ai.usage.input_tokens=8 gen_ai.usage.output_tokens=2 genops.policy.result="WARNING" genops.policy.reason_code="x_unmapped_principal" genops.enforcement.mechanism="none"
        "#]],
    );
}

#[test]
fn what_a_policy_allows_passes_and_what_it_denies_is_blocked() {
    check(
        ENFORCED,
        &chat("/usr/bin/python3", "gpt-4o-mini"),
        WHAT,
        &expect![[r#"
        conn="c1" exchange=0 process.pid=4242 gen_ai.provider.name="openai" gen_ai.request.model="gpt-4o-mini" gen_ai.usage.input_tokens=8 gen_ai.usage.output_tokens=2 genops.policy.result="ALLOWED" genops.enforcement.mechanism="egress_hold"
    "#]],
    );
    check(
        ENFORCED,
        &chat("/usr/bin/python3", "gpt-4o-pro"),
        WHAT,
        &expect![[r#"
        conn="c1" exchange=0 process.pid=4242 gen_ai.provider.name="openai" gen_ai.request.model="gpt-4o-pro" genops.policy.result="BLOCKED" genops.policy.reason_code="POLICY_DENY_MODEL" genops.enforcement.mechanism="egress_hold"
    "#]],
    );
}

#[test]
fn a_recording_that_says_it_was_not_held_is_not_blocked() {
    let recording = String::from_utf8(chat("/usr/bin/python3", "gpt-4o-pro")).unwrap();
    let observed = recording.replacen("\"tls\":true", "\"tls\":true,\"hold\":\"none\"", 1);
    assert_ne!(observed, recording);
    check(
        ENFORCED,
        observed.as_bytes(),
        WHAT,
        &expect![[r#"
        conn="c1" exchange=0 process.pid=4242 gen_ai.provider.name="openai" gen_ai.request.model="gpt-4o-pro" gen_ai.usage.input_tokens=8 gen_ai.usage.output_tokens=2 genops.policy.result="WARNING" genops.policy.reason_code="POLICY_DENY_MODEL" genops.enforcement.mechanism="none"
    "#]],
    );
}

#[test]
fn a_stream_without_an_open_is_read_and_nobody_is_blamed() {
    let mut writer = Writer::new(Vec::new());
    exchange(&mut writer, "late", "gpt-4o-mini");
    check(
        "",
        &writer.into_inner(),
        WHAT,
        &expect![[r#"
        conn="late" exchange=0 gen_ai.provider.name="openai" gen_ai.request.model="gpt-4o-mini" gen_ai.usage.input_tokens=8 gen_ai.usage.output_tokens=2 genops.policy.result="WARNING" genops.policy.reason_code="x_identity_unresolved" genops.enforcement.mechanism="none"
    "#]],
    );
}

#[test]
fn an_end_without_a_close_still_reports_what_was_open() {
    let mut writer = Writer::new(Vec::new());
    exchange(&mut writer, "c1", "gpt-4o-mini");
    let whole = String::from_utf8(writer.into_inner()).unwrap();
    let request = whole.lines().next().unwrap();
    check(
        "",
        request.as_bytes(),
        &["conn", "gen_ai.request.model", "error.type"],
        &expect![[r#"
        conn="c1" gen_ai.request.model="gpt-4o-mini" error.type="connection_closed"
    "#]],
    );
}

#[test]
fn a_broken_line_ends_the_replay_after_what_was_complete() {
    let mut recording = chat("/usr/bin/python3", "gpt-4o-mini");
    recording.extend_from_slice(b"{\"type\":\"data\"\n");
    let mut count = 0;
    let config = Config::default();
    let mut replayer = Replayer::new(&config, |output| {
        count += usize::from(matches!(output, Output::Awu(_)));
        Ok(())
    });
    let end = replayer.replay(Reader::new(recording.as_slice()));
    let Err(ReplayError::Recording(error)) = end else { panic!("the line was taken") };
    drop(replayer);
    expect!["line 5: column 0: EOF while parsing an object"].assert_eq(&error.to_string());
    assert_eq!(count, 1);
}

/// Half a second at 0.002 USD, of a budget of a minute.
#[test]
fn a_call_to_an_own_server_is_paid_by_the_second() {
    let yaml = r#"
mode: enforce
principals:
  - {name: bot, match: {exe: "/usr/bin/python3*"}, team: payments, project: refunds}
providers:
  - {host: llm.internal, dialect: vllm}
budgets:
  - {name: gpu, team: payments, unit: compute_seconds, limit: 60, period: hour}
prices:
  default_max_seconds: 40
  overrides:
    - {provider: vllm, model: "own-*", per_second: 0.002}
"#;
    let open = Open {
        exe: Some("/usr/bin/python3".to_owned()),
        server_name: Some("llm.internal".to_owned()),
        ..Open::default()
    };
    let mut writer = Writer::new(Vec::new());
    for conn in ["c1", "c2"] {
        writer.open(START_NS, conn, &open).unwrap();
        let request = r#"{"model":"own-8b","messages":[{"role":"user","content":"Hello"}]}"#;
        let head = "POST /v1/chat/completions HTTP/1.1\r\nHost: llm.internal\r\n";
        let request = format!("{head}Content-Length: {}\r\n\r\n{request}", request.len());
        writer.data(START_NS, conn, Side::Egress, request.as_bytes()).unwrap();
    }
    let answer = r#"{"object":"chat.completion","model":"own-8b","choices":[{"index":0,"message":{"role":"assistant","content":"Hi"},"finish_reason":"stop"}],"usage":{"prompt_tokens":8,"completion_tokens":2}}"#;
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{answer}", answer.len());
    writer.data(START_NS + 500_000_000, "c1", Side::Ingress, answer.as_bytes()).unwrap();
    let keys = [
        "conn",
        "genops.policy.result",
        "genops.policy.reason",
        "genops.accounting.unit",
        "genops.accounting.reserved",
        "genops.accounting.actual",
        "genops.accounting.basis",
        "genops.budget.remaining",
        "genops.cost.total",
        "genops.usage.compute_seconds",
    ];
    check(
        yaml,
        &writer.into_inner(),
        &keys,
        &expect![[r#"
            conn="c2" genops.policy.result="BLOCKED" genops.policy.reason="of 60 seconds there are 20 seconds left, and this request may need 40 seconds"
            conn="c1" genops.policy.result="ALLOWED" genops.accounting.unit="compute_seconds" genops.accounting.reserved=40.0 genops.accounting.actual=0.5 genops.accounting.basis="reported" genops.budget.remaining=20.0 genops.cost.total=0.001 genops.usage.compute_seconds=0.5
        "#]],
    );
}

/// Replays the three recordings of the corpus, and finds every labelled exchange.
#[test]
fn every_exchange_of_the_corpus_is_found() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/corpus");
    if !corpus.is_dir() {
        eprintln!("skipped: the corpus is not at {}", corpus.display());
        return;
    }
    for name in ["http1", "http2", "midway"] {
        let labels = std::fs::read_to_string(corpus.join(format!("{name}.labels.jsonl"))).unwrap();
        let reader = Reader::open(&corpus.join(format!("{name}.jsonl"))).unwrap();
        let mut found = std::collections::HashSet::new();
        let config = Config::default();
        let mut replayer = Replayer::new(&config, |output| {
            let Output::Awu(awu) = output else { return Ok(()) };
            let attributes = awu.attributes();
            let conn = render::find_str(&attributes, "conn").map(str::to_owned);
            // A label of a stream joined midway has no number: any unit matches.
            found.insert((conn.clone(), None));
            found.insert((conn, render::find_int(&attributes, "exchange")));
            Ok(())
        });
        assert!(replayer.replay(reader).is_ok());
        drop(replayer);
        let inference = labels.lines().filter_map(|line| {
            let label: Map<String, Value> = serde_json::from_str(line).ok()?;
            let wanted = label.get("kind")?.as_str()? == "inference";
            let conn = label.get("conn")?.as_str()?.to_owned();
            wanted.then(|| (Some(conn), label.get("exchange").and_then(Value::as_i64)))
        });
        let missed: Vec<_> = inference.filter(|label| !found.contains(label)).collect();
        assert!(missed.is_empty(), "{name}: {} missed, such as {:?}", missed.len(), missed.first());
    }
}
