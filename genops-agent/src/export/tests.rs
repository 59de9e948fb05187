//! Spans to real collectors on loopback, over HTTP/1.1 and over gRPC with HTTP/2.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test ends where it does not hold"
)]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value;
use opentelemetry_proto::tonic::trace::v1::{Span, span::SpanKind as WireKind};
use prost::Message as _;

use super::*;
use crate::config::Config;
use crate::replay::tests::{awus, chat};

/// Request received by a collector: headers by name, and the message.
type Got = (std::collections::BTreeMap<String, String>, ExportTraceServiceRequest);

/// Starts a collector that answers requests with `statuses` in order, then with 200.
fn http_collector(statuses: &'static [u16]) -> (SocketAddr, Receiver<Got>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, received) = channel();
    std::thread::spawn(move || {
        let mut statuses = statuses.iter();
        for stream in listener.incoming().map_while(Result::ok) {
            let mut reader = BufReader::new(stream);
            while let Some((headers, body)) = read_request(&mut reader) {
                let status = statuses.next().copied().unwrap_or(200);
                if status == 200 {
                    let request = ExportTraceServiceRequest::decode(body.as_slice()).unwrap();
                    sender.send((headers, request)).unwrap_or_default();
                }
                let answer = format!("HTTP/1.1 {status} -\r\nContent-Length: 0\r\n\r\n");
                reader.get_mut().write_all(answer.as_bytes()).unwrap();
            }
        }
    });
    (address, received)
}

fn read_request(
    reader: &mut BufReader<TcpStream>,
) -> Option<(std::collections::BTreeMap<String, String>, Vec<u8>)> {
    let mut headers = std::collections::BTreeMap::new();
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    headers.insert("request".to_owned(), line.trim().to_owned());
    loop {
        line.clear();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let Some((name, value)) = line.trim().split_once(": ") else { break };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let length = headers.get("content-length")?.parse().ok()?;
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((headers, body))
}

/// Starts a gRPC collector for a single connection.
fn grpc_collector() -> (SocketAddr, Receiver<Got>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, received) = channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            listener.set_nonblocking(true).unwrap();
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let (stream, _) = listener.accept().await.unwrap();
            let mut connection = h2::server::handshake(stream).await.unwrap();
            while let Some(Ok((request, respond))) = connection.accept().await {
                tokio::spawn(answer_grpc(request, respond, sender.clone()));
            }
        });
    });
    (address, received)
}

async fn answer_grpc(
    request: Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
    sender: std::sync::mpsc::Sender<Got>,
) {
    let text = |value: &str| value.to_owned();
    let mut headers: std::collections::BTreeMap<String, String> = request
        .headers()
        .iter()
        .map(|(name, value)| (text(name.as_str()), text(value.to_str().unwrap_or_default())))
        .collect();
    headers.insert("request".to_owned(), request.uri().path().to_owned());
    let mut body = request.into_body();
    let mut message = Vec::new();
    while let Some(piece) = body.data().await {
        message.extend_from_slice(&piece.unwrap());
    }
    // A byte for compression and four bytes for the length precede the message.
    let request = ExportTraceServiceRequest::decode(message.get(5..).unwrap()).unwrap();
    let response = Response::builder().header("content-type", "application/grpc");
    let mut stream = respond.send_response(response.body(()).unwrap(), false).unwrap();
    stream.send_data(Bytes::from_static(&[0; 5]), false).unwrap();
    let trailers = Request::builder().header("grpc-status", "0").body(()).unwrap();
    stream.send_trailers(trailers.headers().clone()).unwrap();
    sender.send((headers, request)).unwrap_or_default();
}

/// Parses the `otlp` section as in a file.
fn otlp(yaml: &str) -> Otlp {
    let yaml = format!("telemetry:\n  otlp: {{{yaml}}}\n");
    Config::parse(Path::new("agent.yaml"), &yaml).unwrap().telemetry.otlp.unwrap()
}

/// Sends an AWU through a real exporter; returns the AWU and the received request.
fn send_one(otlp: &Otlp, received: &Receiver<Got>) -> (Awu, Got) {
    let awu = awus(&Config::default(), &chat("/usr/bin/python3", "gpt-4o-mini")).remove(0);
    let metrics = Arc::new(Metrics::default());
    let exporter = Exporter::start(otlp, Arc::clone(&metrics)).unwrap();
    assert!(exporter.try_send(&awu));
    assert!(exporter.shutdown(Duration::from_secs(20)), "it was not sent in time");
    let got = received.recv_timeout(Duration::from_secs(1)).unwrap();
    assert_eq!(metrics.exported_spans.get(), 1);
    assert_eq!(metrics.lost_export_failed.get(), 0);
    (awu, got)
}

fn only_span(request: &ExportTraceServiceRequest) -> &Span {
    let spans: Vec<&Span> = request
        .resource_spans
        .iter()
        .flat_map(|resource| &resource.scope_spans)
        .flat_map(|scope| &scope.spans)
        .collect();
    let [span] = spans.as_slice() else { panic!("{} spans", spans.len()) };
    span
}

/// Compares the span with the AWU: identity, times, attributes, events.
fn assert_same(awu: &Awu, span: &Span) {
    assert_eq!(span.trace_id, awu.id.trace);
    assert_eq!(span.span_id, awu.id.span);
    assert_eq!(span.kind, WireKind::Client as i32);
    assert_eq!(span.name, awu.name());
    assert_eq!(span.start_time_unix_nano, awu.start_unix_ns);
    assert_eq!(span.end_time_unix_nano, awu.end_unix_ns);
    let wanted: Vec<&str> =
        awu.attributes().iter().map(|(key, _)| *key).filter(|key| belongs_on_a_span(key)).collect();
    let got: Vec<&str> = span.attributes.iter().map(|pair| pair.key.as_str()).collect();
    assert_eq!(got, wanted);
    let tokens = span.attributes.iter().find(|pair| pair.key == "gen_ai.usage.input_tokens");
    let value = tokens.and_then(|pair| pair.value.clone()?.value);
    assert_eq!(value, Some(any_value::Value::IntValue(8)));
    let events: Vec<(&str, u64)> =
        span.events.iter().map(|event| (event.name.as_str(), event.time_unix_nano)).collect();
    let wanted: Vec<(&str, u64)> =
        awu.events().iter().map(|event| (event.name, event.unix_ns)).collect();
    assert_eq!(events, wanted);
    assert!(!events.is_empty());
}

#[test]
fn a_span_travels_over_http_with_its_headers_and_resource() {
    let (address, received) = http_collector(&[]);
    let otlp = otlp(&format!(
        r#"endpoint: "http://{address}", headers: {{x-scope: "50%41"}}, resource: {{deployment: test}}"#
    ));
    let (awu, (headers, request)) = send_one(&otlp, &received);
    assert_eq!(headers["request"], "POST /v1/traces HTTP/1.1");
    assert_eq!(headers["content-type"], "application/x-protobuf");
    assert_eq!(headers["x-scope"], "50%41");
    let resource = request.resource_spans[0].resource.as_ref().unwrap();
    let value = |key: &str| {
        let pair = resource.attributes.iter().find(|pair| pair.key == key)?;
        match pair.value.clone()?.value? {
            any_value::Value::StringValue(text) => Some(text),
            _ => None,
        }
    };
    assert_eq!(value("service.name").as_deref(), Some("genops-agent"));
    assert_eq!(value("deployment").as_deref(), Some("test"));
    assert!(value("host.name").is_some());
    assert_same(&awu, only_span(&request));
}

#[test]
fn a_span_travels_over_grpc_with_its_headers() {
    let (address, received) = grpc_collector();
    let otlp = otlp(&format!(
        r#"endpoint: "http://{address}", protocol: grpc, headers: {{x-scope: tenant}}"#
    ));
    let (awu, (headers, request)) = send_one(&otlp, &received);
    assert_eq!(headers["request"], "/opentelemetry.proto.collector.trace.v1.TraceService/Export");
    assert_eq!(headers["x-scope"], "tenant");
    assert_same(&awu, only_span(&request));
}

#[test]
fn a_collector_that_is_busy_is_tried_again() {
    let (address, received) = http_collector(&[503, 502]);
    let (awu, (_, request)) =
        send_one(&otlp(&format!(r#"endpoint: "http://{address}""#)), &received);
    assert_same(&awu, only_span(&request));
}

#[test]
fn what_the_collector_refuses_or_the_queue_cannot_take_is_counted() {
    let (address, received) = http_collector(&[400, 400, 400, 400]);
    let otlp = otlp(&format!(r#"endpoint: "http://{address}", queue: 1"#));
    let awu = awus(&Config::default(), &chat("/usr/bin/python3", "gpt-4o-mini")).remove(0);
    let metrics = Arc::new(Metrics::default());
    let exporter = Exporter::start(&otlp, Arc::clone(&metrics)).unwrap();
    let taken = (0..1_000).filter(|_| exporter.try_send(&awu)).count() as u64;
    assert!(exporter.shutdown(Duration::from_secs(20)));
    assert!(received.try_recv().is_err());
    assert_eq!(metrics.lost_export_failed.get(), taken);
    assert_eq!(metrics.lost_export_queue_full.get(), 1_000 - taken);
    assert_eq!(metrics.exported_spans.get(), 0);
}
