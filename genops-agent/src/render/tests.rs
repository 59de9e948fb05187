#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test ends where it does not hold"
)]

use expect_test::{Expect, expect};

use super::*;
use crate::config::Config;
use crate::replay::tests::{awus, chat};

#[track_caller]
fn check(model: &str, output: Output, colour: bool, expected: &Expect) {
    let awus = awus(&Config::default(), &chat("/usr/bin/python3.11", model));
    let mut renderer = Renderer::new(output, colour);
    let mut text = String::new();
    for awu in &awus {
        renderer.render(awu, &mut text);
    }
    expected.assert_eq(&text.replace('\x1b', "<escape>"));
}

#[test]
fn a_line_of_the_table_says_who_what_and_how_much() {
    check(
        "gpt-4o-mini",
        Output::Table,
        false,
        &expect![[r"
        TIME UTC  PROCESS               PRINCIPAL               PROVIDER      MODEL                          IN      OUT    COST USD   SECONDS  DECISION
        10:00:00  python3.11 4242       python3.11/python3.11   openai        gpt-4o-mini                     8        2    0.000002     0.299  WARNING x_unmapped_principal
    "]],
    );
}

#[test]
fn a_terminal_gets_colour() {
    check(
        "gpt-4o-mini",
        Output::Table,
        true,
        &expect![[r"
        <escape>[1mTIME UTC  PROCESS               PRINCIPAL               PROVIDER      MODEL                          IN      OUT    COST USD   SECONDS  DECISION<escape>[0m
        10:00:00  python3.11 4242       python3.11/python3.11   openai        gpt-4o-mini                     8        2    0.000002     0.299  <escape>[33mWARNING x_unmapped_principal<escape>[0m
    "]],
    );
}

#[test]
fn what_a_peer_wrote_does_not_steer_the_terminal() {
    check(
        r"evil\u001b[2J\u202e",
        Output::Table,
        false,
        &expect![[r"
        TIME UTC  PROCESS               PRINCIPAL               PROVIDER      MODEL                          IN      OUT    COST USD   SECONDS  DECISION
        10:00:00  python3.11 4242       python3.11/python3.11   openai        evil�[2J�                       8        2           -     0.299  WARNING x_unmapped_principal
    "]],
    );
}

#[test]
fn the_json_line_has_every_attribute_and_nothing_unknown() {
    let awus = awus(&Config::default(), &chat("/usr/bin/python3.11", "gpt-4o-mini"));
    let [awu] = awus.as_slice() else { panic!("{} AWUs", awus.len()) };
    let mut line = String::new();
    json(awu, &mut line);
    let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&line).unwrap();
    assert_eq!(object.len(), awu.attributes().len() + 2, "no key twice, none left out");
    for (key, value) in &object {
        assert!(!value.is_null(), "{key} is null");
    }
    for (key, _) in awu.attributes() {
        assert!(object.contains_key(key), "{key} is missing");
    }
    assert_eq!(object["trace_id"].as_str().map(str::len), Some(32));
}

#[test]
fn otlp_json_has_the_span_with_its_events() {
    let awus = awus(&Config::default(), &chat("/usr/bin/python3.11", "gpt-4o-mini"));
    let [awu] = awus.as_slice() else { panic!("{} AWUs", awus.len()) };
    let mut line = String::new();
    otlp::line(awu, &mut line);
    let request: serde_json::Value = serde_json::from_str(&line).unwrap();
    let span = request.pointer("/resourceSpans/0/scopeSpans/0/spans/0").unwrap();
    assert_eq!(span.get("traceId").unwrap(), &serde_json::json!(hex(&awu.id.trace)));
    let names: Vec<&str> = span
        .get("events")
        .and_then(serde_json::Value::as_array)
        .unwrap()
        .iter()
        .filter_map(|event| event.get("name")?.as_str())
        .collect();
    let expected: Vec<&str> = awu.events().iter().map(|event| event.name).collect();
    assert_eq!(names, expected);
    assert!(names.contains(&"genops.policy.evaluated"));
    let has = |key: &str, value: serde_json::Value| {
        let wanted = serde_json::json!({"key": key, "value": value});
        let attributes = span.get("attributes").and_then(serde_json::Value::as_array);
        assert!(attributes.unwrap().contains(&wanted), "{wanted}");
    };
    has("gen_ai.usage.input_tokens", serde_json::json!({"intValue": "8"}));
    has("gen_ai.request.model", serde_json::json!({"stringValue": "gpt-4o-mini"}));
    let stops = serde_json::json!({"arrayValue": {"values": [{"stringValue": "stop"}]}});
    has("gen_ai.response.finish_reasons", stops);
}
