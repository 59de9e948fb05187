//! Provider-specific usage counts and the cost: counts and nano-USD by hand from the price list.
//! The ends of calls are in `ends.rs`, payment by time in `seconds.rs`; forms differing only in the
//! counts are in `tests/captures`.

#![expect(clippy::unwrap_used, reason = "tests fail by panic")]

mod support;

use genops_governance::{Awu, ConnectionUpdate, ProviderConfig, Sections, Value};
use support::*;

/// A call, and the expected result.
struct Case {
    name: &'static str,
    server: &'static str,
    path: &'static str,
    asks: &'static str,
    answers: &'static str,
    /// Input and output.
    tokens: (i64, i64),
    nano_usd: i64,
}

fn call(sections: &Sections, server: &'static str, path: &str, asks: &str, answers: &str) -> Awu {
    let mut host = Host::new(sections);
    host.server_name = server;
    let conn = host.open(HELD);
    let remote = Some("203.0.113.9:443".parse().unwrap());
    host.engine.learn(host.now, conn, ConnectionUpdate { remote, ..ConnectionUpdate::default() });
    let head =
        format!("POST {path} HTTP/1.1\r\nHost: {server}\r\nContent-Type: application/json\r\n");
    let request = format!("{head}Content-Length: {}\r\n\r\n{asks}", asks.len());
    host.egress(conn, request.as_bytes()).ingress(conn, &answer(200, answers)).close(conn);
    host.awus.pop().unwrap()
}

fn value(awu: &Awu, name: &str) -> Option<Value> {
    awu.attributes().into_iter().find(|(it, _)| *it == name).map(|(_, value)| value)
}

fn check(case: &Case) {
    let Case { name, server, path, asks, answers, tokens, nano_usd } = case;
    let awu = call(&enforcing(), server, path, asks, answers);
    let count = |name: &str| match value(&awu, name) {
        Some(Value::Int(count)) => count,
        _ => 0,
    };
    let counts = (count("gen_ai.usage.input_tokens"), count("gen_ai.usage.output_tokens"));
    assert_eq!((counts, awu.cost_nano_usd), (*tokens, Some(*nano_usd)), "{name}");
    assert_eq!(awu.outcome.actual().map(|it| it.amount), Some(*nano_usd), "{name}");
}

#[test]
fn what_a_cache_takes_has_its_own_rates() {
    check(&Case {
        name: "written, as OpenAI counts it",
        server: "api.openai.com",
        path: "/v1/responses",
        asks: r#"{"model":"gpt-5.6-luna","input":"Which bay?","max_output_tokens":300}"#,
        answers: r#"{"id":"r1","object":"response","status":"completed","model":"gpt-5.6-luna","output":[],"usage":{"input_tokens":5000,"input_tokens_details":{"cached_tokens":1000,"cache_write_tokens":3000},"output_tokens":200,"output_tokens_details":{"reasoning_tokens":0},"total_tokens":5200}}"#,
        tokens: (5_000, 200),
        // 1,000 plain at 200, 1,000 read at 20, 3,000 written at 250, 200 out at 1,200.
        nano_usd: 200_000 + 20_000 + 750_000 + 240_000,
    });
    check(&Case {
        name: "for an hour, at Anthropic",
        server: "api.anthropic.com",
        path: "/v1/messages",
        asks: r#"{"model":"claude-haiku-4-5","max_tokens":30,"messages":[{"role":"user","content":"Which bay?"}]}"#,
        answers: r#"{"id":"m1","type":"message","role":"assistant","model":"claude-haiku-4-5","content":[],"stop_reason":"end_turn","usage":{"input_tokens":50,"cache_creation_input_tokens":600,"cache_creation":{"ephemeral_5m_input_tokens":200,"ephemeral_1h_input_tokens":400},"cache_read_input_tokens":0,"output_tokens":20}}"#,
        tokens: (650, 20),
        // 50 plain at 1,000, 200 at 1,250, 400 at 2,000, 20 out at 5,000.
        nano_usd: 50_000 + 250_000 + 800_000 + 100_000,
    });
    check(&Case {
        name: "for an hour, at Bedrock",
        server: "bedrock-runtime.eu-west-1.amazonaws.com",
        path: "/model/global.anthropic.claude-haiku-4-5-20251001-v1:0/converse",
        asks: r#"{"inferenceConfig":{"maxTokens":20},"messages":[{"role":"user","content":[{"text":"Which bay?"}]}]}"#,
        answers: r#"{"output":{"message":{"role":"assistant","content":[{"text":"Fundy"}]}},"stopReason":"end_turn","usage":{"inputTokens":100,"outputTokens":10,"totalTokens":810,"cacheReadInputTokens":0,"cacheWriteInputTokens":700,"cacheDetails":[{"ttl":"1h","inputTokens":400},{"ttl":"5m","inputTokens":300}]}}"#,
        tokens: (800, 10),
        nano_usd: 100_000 + 375_000 + 800_000 + 50_000,
    });
}

#[test]
fn reasoning_that_is_counted_beside_the_answer_is_output() {
    check(&Case {
        name: "xAI",
        server: "api.x.ai",
        path: "/v1/chat/completions",
        asks: r#"{"model":"grok-4-1-fast","max_tokens":200,"messages":[{"role":"user","content":"Which bay?"}]}"#,
        answers: r#"{"id":"x1","object":"chat.completion","model":"grok-4-1-fast","choices":[{"index":0,"finish_reason":"stop","message":{"role":"assistant","content":"Fundy"}}],"usage":{"prompt_tokens":40,"completion_tokens":5,"total_tokens":135,"completion_tokens_details":{"reasoning_tokens":90}}}"#,
        tokens: (40, 95),
        nano_usd: 8_000 + 47_500,
    });
    check(&Case {
        name: "Perplexity, with searches and citations",
        server: "api.perplexity.ai",
        path: "/chat/completions",
        asks: r#"{"model":"sonar-deep-research","max_tokens":900,"messages":[{"role":"user","content":"Which bay?"}]}"#,
        answers: r#"{"id":"p1","object":"chat.completion","model":"sonar-deep-research","choices":[{"index":0,"finish_reason":"stop","message":{"role":"assistant","content":"Fundy"}}],"usage":{"prompt_tokens":10,"completion_tokens":100,"total_tokens":110,"citation_tokens":50,"num_search_queries":3,"reasoning_tokens":400}}"#,
        tokens: (10, 500),
        // 10 in at 2,000, 100 out at 8,000, 400 reasoned at 3,000, 50 cited at 2,000, 3 searches.
        nano_usd: 20_000 + 800_000 + 1_200_000 + 100_000 + 15_000_000,
    });
}

#[test]
fn a_call_costs_what_the_model_that_answered_does() {
    let asks = r#"{"model":"our-chat","max_tokens":20,"messages":[{"role":"user","content":"Which bay?"}]}"#;
    check(&Case {
        name: "a deployment",
        server: "bays.openai.azure.com",
        path: "/openai/deployments/our-chat/chat/completions?api-version=2024-10-21",
        asks,
        answers: r#"{"id":"a1","object":"chat.completion","model":"gpt-4o-2024-11-20","choices":[{"index":0,"finish_reason":"stop","message":{"role":"assistant","content":"Fundy"}}],"usage":{"prompt_tokens":100,"completion_tokens":10,"total_tokens":110}}"#,
        tokens: (100, 10),
        nano_usd: 250_000 + 100_000,
    });
    check(&Case {
        name: "a variant of a router",
        server: "openrouter.ai",
        path: "/api/v1/chat/completions",
        asks: r#"{"model":"google/gemini-2.5-flash:nitro","max_tokens":20,"messages":[{"role":"user","content":"Which bay?"}]}"#,
        answers: r#"{"id":"o1","object":"chat.completion","model":"google/gemini-2.5-flash:nitro","choices":[{"index":0,"finish_reason":"stop","message":{"role":"assistant","content":"Fundy"}}],"usage":{"prompt_tokens":100,"completion_tokens":10,"total_tokens":110}}"#,
        tokens: (100, 10),
        nano_usd: 30_000 + 25_000,
    });
    check(&Case {
        name: "with its publisher",
        server: "aiplatform.googleapis.com",
        path: "/v1/projects/p/locations/global/endpoints/openapi/chat/completions",
        asks: r#"{"model":"google/gemini-2.5-flash","max_tokens":20,"messages":[{"role":"user","content":"Which bay?"}]}"#,
        answers: r#"{"id":"v1","object":"chat.completion","model":"google/gemini-2.5-flash","choices":[{"index":0,"finish_reason":"stop","message":{"role":"assistant","content":"Fundy"}}],"usage":{"prompt_tokens":100,"completion_tokens":10,"total_tokens":110}}"#,
        tokens: (100, 10),
        nano_usd: 30_000 + 25_000,
    });
}

#[test]
fn sound_and_pictures_have_their_own_rates() {
    check(&Case {
        name: "speech in a prompt",
        server: "generativelanguage.googleapis.com",
        path: "/v1beta/models/gemini-2.5-flash:generateContent",
        asks: r#"{"contents":[{"parts":[{"text":"Which bay?"}]}],"generationConfig":{"maxOutputTokens":40}}"#,
        answers: r#"{"candidates":[{"content":{"parts":[{"text":"Fundy"}]},"finishReason":"STOP"}],"usageMetadata":{"promptTokenCount":400,"candidatesTokenCount":20,"totalTokenCount":420,"promptTokensDetails":[{"modality":"AUDIO","tokenCount":320},{"modality":"TEXT","tokenCount":80}]},"modelVersion":"gemini-2.5-flash"}"#,
        tokens: (400, 20),
        nano_usd: 24_000 + 320_000 + 50_000,
    });
    check(&Case {
        name: "a picture drawn",
        server: "generativelanguage.googleapis.com",
        path: "/v1beta/models/gemini-2.5-flash-image:generateContent",
        asks: r#"{"contents":[{"parts":[{"text":"A bay"}]}],"generationConfig":{"maxOutputTokens":2000}}"#,
        answers: r#"{"candidates":[{"content":{"parts":[{"text":"."}]},"finishReason":"STOP"}],"usageMetadata":{"promptTokenCount":10,"candidatesTokenCount":1290,"totalTokenCount":1300,"candidatesTokensDetails":[{"modality":"IMAGE","tokenCount":1290}]},"modelVersion":"gemini-2.5-flash-image"}"#,
        tokens: (10, 1_290),
        nano_usd: 3_000 + 38_700_000,
    });
    check(&Case {
        name: "a picture changed",
        server: "api.openai.com",
        path: "/v1/images/edits",
        asks: r#"{"model":"gpt-image-1","prompt":"A bay","image":"AAAA"}"#,
        answers: r#"{"created":1,"data":[{"b64_json":"AAAA"}],"usage":{"input_tokens":120,"output_tokens":100,"total_tokens":220,"input_tokens_details":{"text_tokens":30,"image_tokens":90}}}"#,
        tokens: (120, 100),
        nano_usd: 150_000 + 900_000 + 4_000_000,
    });
}

#[test]
fn searches_and_a_compaction_are_in_the_cost() {
    check(&Case {
        name: "searches of Anthropic",
        server: "api.anthropic.com",
        path: "/v1/messages",
        asks: r#"{"model":"claude-haiku-4-5","max_tokens":30,"messages":[{"role":"user","content":"Which bay?"}]}"#,
        answers: r#"{"id":"m2","type":"message","role":"assistant","model":"claude-haiku-4-5","content":[],"stop_reason":"end_turn","usage":{"input_tokens":100,"output_tokens":10,"server_tool_use":{"web_search_requests":2}}}"#,
        tokens: (100, 10),
        nano_usd: 100_000 + 50_000 + 20_000_000,
    });
    check(&Case {
        name: "a search of OpenAI, and the page that it opens",
        server: "api.openai.com",
        path: "/v1/responses",
        asks: r#"{"model":"gpt-4o","service_tier":"default","input":"Which bay?","max_output_tokens":30}"#,
        answers: r#"{"id":"r2","object":"response","status":"completed","service_tier":"default","model":"gpt-4o-2024-11-20","output":[{"type":"web_search_call","id":"w1","status":"completed","action":{"type":"search","query":"bay"}},{"type":"web_search_call","id":"w2","status":"completed","action":{"type":"open_page","url":"https://example.org"}}],"usage":{"input_tokens":100,"output_tokens":10,"total_tokens":110}}"#,
        tokens: (100, 10),
        nano_usd: 250_000 + 100_000 + 10_000_000,
    });
    check(&Case {
        name: "a conversation that was compacted",
        server: "api.anthropic.com",
        path: "/v1/messages",
        asks: r#"{"model":"claude-haiku-4-5","max_tokens":400,"messages":[{"role":"user","content":"Which bay?"}]}"#,
        answers: r#"{"id":"m3","type":"message","role":"assistant","model":"claude-haiku-4-5","content":[],"stop_reason":"end_turn","usage":{"input_tokens":500,"output_tokens":40,"iterations":[{"type":"compaction","input_tokens":9000,"output_tokens":300},{"type":"message","input_tokens":500,"output_tokens":40}]}}"#,
        tokens: (9_500, 340),
        nano_usd: 9_500_000 + 1_700_000,
    });
}

#[test]
fn a_batch_is_a_unit_wherever_it_is_handed_in() {
    for (server, path, asks) in [
        ("api.anthropic.com", "/v1/messages/batches", r#"{"requests":[]}"#),
        ("api.openai.com", "/v1/batches", r#"{"input_file_id":"f1","endpoint":"/v1/responses"}"#),
        (
            "generativelanguage.googleapis.com",
            "/v1beta/models/gemini-2.5-flash:batchGenerateContent",
            r#"{"batch":{"displayName":"bays"}}"#,
        ),
    ] {
        let awu = call(&enforcing(), server, path, asks, r#"{"id":"b1"}"#);
        let kind = value(&awu, "genops.operation.type");
        assert_eq!(kind, Some(Value::Str("batch".to_owned())), "{server}");
    }
}

/// A WebSocket frame: masked with zeros, as sent by a client, or not masked.
fn message(text: &str, client: bool) -> Vec<u8> {
    let mask = if client { 0x80 } else { 0 };
    let length = match u8::try_from(text.len()) {
        Ok(short @ 0..126) => vec![mask | short],
        _ => [&[mask | 0x7e][..], &u16::try_from(text.len()).unwrap().to_be_bytes()].concat(),
    };
    let key = if client { vec![0; 4] } else { Vec::new() };
    [vec![0x81], length, key, text.as_bytes().to_vec()].concat()
}

/// A turn of a realtime session at a host, opened with a target.
fn turn(server: &'static str, target: &str, answers: &[&str]) -> Awu {
    let mut host = Host::new(&Sections { mode: genops_governance::Mode::Observe, ..enforcing() });
    host.server_name = server;
    let conn = host.open(HELD);
    let open = format!(
        "GET {target} HTTP/1.1\r\nHost: {server}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    );
    host.egress(conn, open.as_bytes());
    host.ingress(conn, b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n");
    host.egress(conn, &message(r#"{"type":"response.create"}"#, true));
    for answer in answers {
        host.ingress(conn, &message(answer, false));
    }
    host.close(conn);
    host.awus.pop().unwrap()
}

#[test]
fn a_turn_is_charged_its_own_counts_and_cached_sound_once() {
    let heard = r#"{"type":"conversation.item.input_audio_transcription.completed","item_id":"i1","transcript":"Which bay?","usage":{"type":"tokens","input_tokens":21,"output_tokens":4,"total_tokens":25}}"#;
    let done = r#"{"type":"response.done","response":{"id":"r1","object":"realtime.response","status":"completed","usage":{"total_tokens":1060,"input_tokens":1000,"output_tokens":60,"input_token_details":{"text_tokens":300,"audio_tokens":700,"cached_tokens":500,"cached_tokens_details":{"text_tokens":100,"audio_tokens":400}},"output_token_details":{"text_tokens":10,"audio_tokens":50}}}}"#;
    // 200 of text at 4,000, 300 of sound at 32,000, 500 cached at 400; 10 and 50 out at 16,000 and
    // 64,000.
    let nano_usd = 800_000 + 9_600_000 + 200_000 + 160_000 + 3_200_000;
    for answers in [vec![done], vec![heard, done]] {
        let awu = turn("api.openai.com", "/v1/realtime?model=gpt-realtime", &answers);
        assert_eq!(awu.cost_nano_usd, Some(nano_usd), "{}", answers.len());
        assert_eq!(awu.call.usage.input_tokens, Some(1_000));
    }
}

#[test]
fn a_turn_says_why_it_ended_and_a_deployment_is_its_model() {
    let cut = r#"{"type":"response.done","response":{"id":"r1","object":"realtime.response","status":"incomplete","status_details":{"type":"incomplete","reason":"content_filter"},"usage":{"input_tokens":5,"output_tokens":1,"total_tokens":6}}}"#;
    let failed = r#"{"type":"response.done","response":{"id":"r1","object":"realtime.response","status":"failed","status_details":{"type":"failed","error":{"type":"server_error","code":"session_lost"}},"usage":null}}"#;
    let target = "/openai/realtime?api-version=2025-04-01-preview&deployment=shore";
    let awu = turn("bays.openai.azure.com", target, &[cut]);
    assert_eq!(awu.call.finish_reasons, ["content_filter"]);
    assert_eq!(awu.call.request_model.as_deref(), Some("shore"));
    let awu = turn("bays.openai.azure.com", target, &[failed]);
    assert_eq!(value(&awu, "error.type"), Some(Value::Str("server_error".to_owned())));
}

/// Provider and region belong to an own host in every notation of the host.
#[test]
fn a_configured_host_is_one_with_its_port_and_with_all_names_below_it() {
    for (host, port) in [
        ("bay.internal", None),
        ("bay.internal:443", None),
        ("*.internal", None),
        ("bay.internal", Some(443)),
    ] {
        let provider = ProviderConfig {
            host: host.to_owned(),
            port,
            dialect: Some("vllm".to_owned()),
            region: Some("eu-7".to_owned()),
            ..ProviderConfig::default()
        };
        let sections = Sections { providers: vec![provider], ..enforcing() };
        let asks = r#"{"model":"own-8b","messages":[{"role":"user","content":"Which bay?"}]}"#;
        let awu = call(&sections, "bay.internal", "/v1/chat/completions", asks, "{}");
        assert_eq!(awu.call.provider.as_deref(), Some("vllm"), "{host}");
        assert_eq!(awu.region.as_deref(), Some("eu-7"), "{host}");
    }
}
