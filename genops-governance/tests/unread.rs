//! Requests not read whole, readable in two ways, or with an unknown operation: refused by every
//! rule about models, content or cost, and by a budget.

#![expect(clippy::unwrap_used, reason = "tests fail by panic")]

mod support;

use genops_governance::{Sections, Value};
use support::{HELD, Host, budget, chat, enforcing, policy, request_to};

/// Result and reason of the first unit; empty: there is none, and everything may leave.
fn outcome(sections: &Sections, request: &[u8]) -> String {
    outcome_at("api.openai.com", sections, request)
}

/// The same on a connection to another server.
fn outcome_at(server_name: &'static str, sections: &Sections, request: &[u8]) -> String {
    let mut host = Host::new(sections);
    host.server_name = server_name;
    let conn = host.open(HELD);
    host.egress(conn, request);
    host.close(conn);
    let Some(unit) = host.awus.first() else { return String::new() };
    let said = |name: &str| {
        unit.attributes().into_iter().find_map(|(key, value)| match value {
            Value::Str(text) if key == name => Some(text.clone()),
            _ => None,
        })
    };
    said("genops.policy.result").unwrap()
}

/// Every kind of rule in need of the request's content.
fn rules() -> Vec<Sections> {
    vec![
        policy(|it| it.allowed_models = Some(vec!["*".to_owned()])),
        policy(|it| it.denied_models = vec!["no-such".to_owned()]),
        policy(|it| it.denied_content = vec!["no such text".to_owned()]),
        policy(|it| it.max_cost = Some(1_000_000.0)),
        Sections { budgets: vec![budget(1_000_000.0)], ..enforcing() },
    ]
}

#[track_caller]
fn refused(request: &[u8]) {
    for (index, sections) in rules().iter().enumerate() {
        let text = String::from_utf8_lossy(request);
        assert_eq!(outcome(sections, request), "BLOCKED", "rule {index}: {text}");
    }
}

#[track_caller]
fn passes(request: &[u8]) {
    for (index, sections) in rules().iter().enumerate() {
        let text = String::from_utf8_lossy(request);
        assert_ne!(outcome(sections, request), "BLOCKED", "rule {index}: {text}");
    }
}

#[track_caller]
fn refused_body(body: &str) {
    refused(&request_to("/v1/chat/completions", body));
}

#[test]
fn what_is_read_whole_and_asks_for_what_is_allowed_passes() {
    passes(&chat("gpt-4o-mini", "hello"));
    passes(&request_to(
        "/v1/chat/completions",
        "\u{feff}{\"model\":\"gpt-4o-mini\",\"messages\":[],\"service_tier\":\"default\"}",
    ));
    let empty_lines = [b"\r\n".repeat(20), chat("gpt-4o-mini", "hello")].concat();
    passes(&empty_lines);
}

#[test]
fn a_body_that_two_parsers_read_in_two_ways_is_refused() {
    refused_body(r#"{"model":"gpt-4o-mini","messages":[],"model":"gpt-4o-mini"}"#);
    refused_body(r#"{"model":"gpt-4o-mini","messages":[],"mOdel":"o1"}"#);
    refused_body(r#"{"model":"gpt-4o-mini","meſſages":[],"messages":[]}"#);
    refused_body(r#"{"model":"gpt-4o-mini","messages":[]} {"model":"o1"}"#);
    refused_body(r#"{"model":"gpt-4o-mini","seed":Infinity,"messages":[]}"#);
    refused_body(r#"{"model":"gpt-4o-mini","seed":01,"messages":[]}"#);
    refused_body(r#"{"model":"gpt-4o-mini","x":{"y":[1,}},"messages":[]}"#);
    refused_body(r#"{"model":"gpt-4o-mini","messages":["#);
    refused_body(&format!(
        r#"{{"model":"gpt-4o-mini","x":{}1{}}}"#,
        "[".repeat(600),
        "]".repeat(600)
    ));
    refused_body("{\0\"\0m\0\"\0:\0\"\0o\0\"\0}\0");
    refused_body("model=gpt-4o-mini&messages=hello");
    refused_body(r#"{"model":["o1"],"messages":[]}"#);
    refused_body(&format!(r#"{{"model":"{}","messages":[]}}"#, "o1".repeat(300)));
    refused_body(r#"{"model":"gpt-4o-mini","model\u0000":"o1","messages":[]}"#);
}

#[test]
fn a_head_that_two_parsers_read_in_two_ways_is_refused() {
    let head = |line: &str, fields: &str| {
        let body = r#"{"model":"gpt-4o-mini","messages":[],"service_tier":"default"}"#;
        let length = body.len();
        format!("{line}\r\nHost: api.openai.com\r\n{fields}Content-Length: {length}\r\n\r\n{body}")
            .into_bytes()
    };
    let post = "POST /v1/chat/completions HTTP/1.1";
    passes(&head(post, ""));
    passes(&head(post, &"X-Filler: 1\r\n".repeat(900)));
    passes(&head(post, &format!("X-Long: {}\r\n", "a".repeat(40_000))));
    refused(&head(post, &"X-Filler: 1\r\n".repeat(1_100)));
    refused(&head(post, &format!("X-Long: {}\r\n", "a".repeat(80_000))));
    refused(&head("POST  /v1/chat/completions HTTP/1.1", ""));
    refused(&head("POST /v1/chat/completions HTTP/1.3", ""));
    refused(&head("BREW /v1/chat/completions HTTP/1.1", ""));
    refused(&head("Post /v1/chat/completions HTTP/1.1", ""));
    refused(&head(post, "X-Fold: a\r\n b\r\n"));
    refused(&head(post, "X-Bare: a\n"));
    refused(&head(post, "Transfer-Encoding: chunked\r\n"));
    refused(&head(post, "Transfer-Encoding: identity\r\n"));
    refused(&head(post, "Content-Length: 0\r\n"));
    refused(&head(post, "X-HTTP-Method-Override: GET\r\n"));
    refused(&head(post, "Content-Type: application/json\r\nContent-Type: text/plain\r\n"));
    refused(&head(post, "Upgrade: something\r\n"));
    refused(&head("POST /v1/chat/completions/. HTTP/1.1", ""));
}

#[test]
fn an_endpoint_that_is_not_known_to_be_harmless_is_refused_and_the_others_pass() {
    refused(&request_to("/v1/no/such/endpoint", r#"{"model":"gpt-4o-mini"}"#));
    refused(&request_to("/v1/chat/completions/x/../../nothing", "{}"));
    refused(b"nothing that anybody speaks, or not yet\r\n\r\n");
    let bare = |method: &str, path: &str, fields: &str| {
        format!("{method} {path} HTTP/1.1\r\nHost: api.openai.com\r\n{fields}\r\n").into_bytes()
    };
    passes(&bare("GET", "/v1/models", ""));
    passes(&bare("GET", "/v1/models?at=http://elsewhere/x", ""));
    passes(&bare("DELETE", "/v1/files/f_1", ""));
    passes(&bare("POST", "/v1/responses/r_1/cancel", "Content-Length: 0\r\n"));
    refused(&bare("GET", "/v1/models", "Upgrade: websocket\r\n"));
    let with_body = bare("GET", "/v1/models", "Content-Length: 2\r\n");
    refused(&[with_body.as_slice(), b"{}"].concat());
    refused(&bare("POST", "/v1/responses/..%2fr_1/cancel", "Content-Length: 0\r\n"));
    // A session only transcribing speech has no readable turn.
    let socket = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
    passes(&bare("GET", "/v1/realtime?model=gpt-realtime", socket));
    refused(&bare("GET", "/v1/realtime?intent=transcription", socket));
    refused(&bare("GET", "/v1/realtime?model=gpt-realtime&Intent=transcription", socket));
    refused(&bare("GET", "/v1/realtime?%69ntent=transcription", socket));
    // A harmless request ends at the same place for every reader.
    refused(&bare("DELETE", "/v1/files/f_1", "Content_Length: 9\r\n"));
    refused(&bare("DELETE", "/v1/files/f_1", "Connection: content-length\r\n"));
    refused(&bare("DELETE", "/v1/files/f_1#/../../chat/completions", ""));
    refused(&bare("DELETE", "gopher://api.openai.com/v1/files/f_1", ""));
    refused(&bare("GET", "/v1/models?%24httpmethod=POST", ""));
}

#[test]
fn what_names_a_model_anew_or_has_one_run_is_not_harmless() {
    let refuses = |host: &'static str, path: &str| {
        let request =
            format!("POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 2\r\n\r\n{{}}");
        rules().iter().all(|it| outcome_at(host, it, request.as_bytes()) == "BLOCKED")
    };
    assert!(!refuses("huggingface.co", "/api/models/org/name/paths-info/main"));
    assert!(refuses("huggingface.co", "/api/jobs/org"));
    assert!(refuses("huggingface.co", "/api/spaces/org/name/commit/main"));
    assert!(refuses("ollama.com", "/api/copy"));
    assert!(refuses("chatgpt.com", "/backend-api/conversation"));
}

#[test]
fn names_of_two_providers_on_one_request_are_refused_without_any_rule() {
    let named = |host: &str, target: &str| {
        format!("POST {target} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 2\r\n\r\n{{}}")
    };
    let path = "/v1/chat/completions";
    let outcome = |host: &str, target: &str| outcome(&enforcing(), named(host, target).as_bytes());
    assert_eq!(outcome("api.mistral.ai", path), "BLOCKED");
    assert_eq!(outcome("api.openai.com", &format!("https://api.groq.com{path}")), "BLOCKED");
    assert_ne!(outcome("api.openai.com", &format!("HTTPS://api.openai.com{path}")), "BLOCKED");
    assert_ne!(outcome("nobody.example", path), "BLOCKED");
}

#[test]
fn a_rule_about_providers_alone_lets_pass_what_can_not_be_read() {
    let sections = policy(|it| it.allowed_providers = Some(vec!["openai".to_owned()]));
    let request = request_to("/v1/no/such/endpoint", "{}");
    assert_ne!(outcome(&sections, &request), "BLOCKED");
    let other = policy(|it| it.denied_providers = vec!["openai".to_owned()]);
    assert_eq!(outcome(&other, &request), "BLOCKED");
}

#[test]
fn every_model_that_may_answer_is_decided() {
    let sections = policy(|it| it.denied_models = vec!["*-pro".to_owned()]);
    let body = r#"{"model":"gpt-4o-mini","models":["gpt-4o","o3-pro"],"messages":[]}"#;
    assert_eq!(outcome(&sections, &request_to("/v1/chat/completions", body)), "BLOCKED");
}

#[test]
fn text_in_data_and_in_metadata_is_text() {
    let sections = policy(|it| it.denied_content = vec!["top secret".to_owned()]);
    for body in [
        r#"{"model":"m","messages":[],"metadata":{"note":"top secret"}}"#,
        r#"{"model":"m","messages":[{"content":[{"file":{"file_data":"top secret"}}]}]}"#,
        r#"{"model":"m","messages":[{"content":[{"image_url":{"url":"top secret"}}]}]}"#,
        r#"{"model":"m","messages":[{"tool_calls":[{"function":{"arguments":"top secret"}}]}]}"#,
    ] {
        let request = request_to("/v1/chat/completions", body);
        assert_eq!(outcome(&sections, &request), "BLOCKED", "{body}");
    }
}

#[test]
fn an_operator_may_call_an_endpoint_harmless() {
    let mut sections = policy(|it| it.allowed_models = Some(vec!["gpt-4o-mini".to_owned()]));
    let mine = serde_json::json!({"host": "api.openai.com", "harmless": ["POST /v1/mine/*"]});
    sections.providers.push(serde_json::from_value(mine).unwrap());
    assert_eq!(outcome(&sections, &request_to("/v1/mine/own", "{}")), "");
    assert_eq!(outcome(&sections, &request_to("/v1/other/own", "{}")), "BLOCKED");
}
