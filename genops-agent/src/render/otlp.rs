//! An AWU as an OTLP/JSON export request, read by `genops-agent conformance` and any other checker
//! of spans.
//!
//! The [JSON encoding of OTLP][spec]: ids in hexadecimal, 64-bit integers as strings, keys in
//! lowerCamelCase.
//!
//! [spec]: https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding

use genops_governance::{Attribute, Awu, Event, Value, hex};
use serde_json::{Value as Json, json};

/// `SPAN_KIND_CLIENT`.
const CLIENT: u8 = 3;

/// `STATUS_CODE_ERROR`.
const ERROR: u8 = 2;

/// Appends the request as a single line.
pub(super) fn line(awu: &Awu, out: &mut String) {
    let request = json!({"resourceSpans": [{
        "resource": {"attributes": [attribute("service.name", &Value::Str("genops-agent".to_owned()))]},
        "scopeSpans": [{
            "scope": {"name": "genops-agent", "version": env!("CARGO_PKG_VERSION")},
            "spans": [span(awu)],
        }],
    }]});
    out.push_str(&request.to_string());
    out.push('\n');
}

fn span(awu: &Awu) -> Json {
    let mut span = json!({
        "traceId": hex(&awu.id.trace),
        "spanId": hex(&awu.id.span),
        "name": awu.name(),
        "kind": CLIENT,
        "startTimeUnixNano": awu.start_unix_ns.to_string(),
        "endTimeUnixNano": awu.end_unix_ns.to_string(),
        "attributes": attributes(&awu.attributes()),
        "events": awu.events().iter().map(event).collect::<Vec<_>>(),
    });
    if let (true, Json::Object(span)) = (awu.is_error(), &mut span) {
        span.insert("status".to_owned(), json!({"code": ERROR}));
    }
    span
}

fn event(Event { name, unix_ns, attributes: its }: &Event) -> Json {
    json!({"name": name, "timeUnixNano": unix_ns.to_string(), "attributes": attributes(its)})
}

fn attributes(attributes: &[Attribute]) -> Vec<Json> {
    let named = attributes.iter().filter(|(key, _)| crate::export::belongs_on_a_span(key));
    named.map(|(key, value)| attribute(key, value)).collect()
}

fn attribute(key: &str, value: &Value) -> Json {
    let value = match value {
        Value::Str(text) => json!({"stringValue": text}),
        Value::Int(number) => json!({"intValue": number.to_string()}),
        Value::Double(number) => json!({"doubleValue": number}),
        Value::Bool(truth) => json!({"boolValue": truth}),
        Value::StrList(list) => {
            let values: Vec<Json> = list.iter().map(|text| json!({"stringValue": text})).collect();
            json!({"arrayValue": {"values": values}})
        }
    };
    json!({"key": key, "value": value})
}
