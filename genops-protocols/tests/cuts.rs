//! Checks a connection for the same reports however the bytes were cut.

use std::sync::Arc;

use genops_protocols::{
    Call, Connection, ConnectionFacts, Direction, Exchange, Hosts, Kind, Request, Sink, Unreadable,
};

/// A reported request: number, completeness, start and end.
type Asked = (u64, bool, u64, u64);

#[derive(Default)]
struct Told {
    requests: Vec<Asked>,
    calls: Vec<Call>,
}

impl Sink for Told {
    fn request(&mut self, request: &Request<'_>) {
        let Request { call, complete, start, end, .. } = request;
        self.requests.push((call.exchange, *complete, *start, *end));
    }

    fn exchange(&mut self, exchange: Exchange) {
        self.calls.push(exchange.call);
    }
}

/// Bytes of a direction; `Err`: number of missing bytes.
type Step = (Direction, Result<Vec<u8>, u64>);

fn run(steps: &[Step], len: usize) -> Told {
    let server_name = Some("api.openai.com".to_owned());
    let facts = ConnectionFacts { server_name, ..ConnectionFacts::default() };
    let mut connection = Connection::new(facts, Arc::new(Hosts::builtin()));
    let mut told = Told::default();
    for (direction, step) in steps {
        match step {
            Ok(bytes) => {
                for piece in bytes.chunks(len) {
                    connection.data(1, *direction, piece, &mut told);
                }
            }
            Err(missing) => connection.gap(1, *direction, Some(*missing), &mut told),
        }
    }
    connection.close(1, &mut told);
    told
}

/// Returns the reports of `steps`, checked to be the same for pieces of any length.
#[track_caller]
fn told(steps: &[Step]) -> Told {
    let whole = run(steps, usize::MAX);
    let longest = steps.iter().filter_map(|(_, step)| step.as_ref().ok()).map(Vec::len).max();
    for len in 1..longest.unwrap_or(1) {
        let cut = run(steps, len);
        assert_eq!(cut.requests, whole.requests, "pieces of {len}");
        assert_eq!(cut.calls, whole.calls, "pieces of {len}");
    }
    whole
}

fn sent(bytes: impl Into<Vec<u8>>) -> Step {
    (Direction::Egress, Ok(bytes.into()))
}

fn received(bytes: impl Into<Vec<u8>>) -> Step {
    (Direction::Ingress, Ok(bytes.into()))
}

/// Encodes a text message of WebSocket; `first` is the first byte of the frame.
fn message(first: u8, mask: &[u8], payload: &[u8]) -> Vec<u8> {
    let len = u8::try_from(payload.len()).expect("short") | if mask.is_empty() { 0 } else { 0x80 };
    [&[first, len], mask, payload].concat()
}

/// The handshake of a realtime session, with or without compression.
fn handshake(extensions: &str) -> [Step; 2] {
    let asked = "GET /v1/realtime?model=m HTTP/1.1\r\nHost: api.openai.com\r\n\
        Upgrade: websocket\r\n\r\n";
    let answered =
        format!("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n{extensions}\r\n");
    [sent(asked), received(answered)]
}

const TEXT: u8 = 0x81;
const COMPRESSED_TEXT: u8 = 0xc1;
const DEFLATE: &str = "Sec-WebSocket-Extensions: permessage-deflate\r\n";
/// A block of a type unknown to deflate, and further bytes never reached.
const DAMAGED: &[u8] = b"\x07 nothing of this can be decompressed";
const ASKS: &[u8] = br#"{"type":"response.create"}"#;

#[test]
fn a_message_that_cannot_be_decompressed_ends_where_its_frame_does() {
    for extensions in [DEFLATE, ""] {
        let damaged = message(COMPRESSED_TEXT, &[0; 4], DAMAGED);
        let asks = message(TEXT, &[0; 4], ASKS);
        let [asked, answered] = handshake(extensions);
        let (_, Ok(head)) = &asked else { panic!("the handshake has bytes") };
        let start = head.len() as u64;
        let middle = start + damaged.len() as u64;
        let end = middle + asks.len() as u64;
        let told = told(&[asked, answered, sent([damaged, asks].concat())]);
        let turns = told.requests.get(1..).unwrap_or_default();
        assert_eq!(turns, [(1, false, start, middle), (2, true, middle, end)], "{extensions}");
        let unread: Vec<_> = told.calls.iter().map(|call| call.unreadable).collect();
        assert_eq!(unread, [None, Some(Unreadable::Body), None], "{extensions}");
    }
}

#[test]
fn a_hole_makes_one_request_of_whatever_is_asked_after_it() {
    let asks = message(TEXT, &[0; 4], ASKS);
    let [asked, answered] = handshake("");
    let (_, Ok(head)) = &asked else { panic!("the handshake has bytes") };
    let start = head.len() as u64;
    let middle = start + asks.len() as u64;
    for (begun, from) in [(&b""[..], middle), (&asks[..9], middle)] {
        let hole = (Direction::Egress, Err(40));
        let [asked, answered] = [asked.clone(), answered.clone()];
        let steps = [asked, answered, sent(asks.clone()), sent(begun), hole, sent(asks.clone())];
        let turns = told(&steps).requests.split_off(1);
        assert_eq!(turns, [(1, true, start, middle), (2, false, from, u64::MAX)]);
    }
}

#[test]
fn an_answer_goes_on_after_a_message_that_cannot_be_decompressed() {
    let [asked, answered] = handshake(DEFLATE);
    let damaged = message(COMPRESSED_TEXT, &[], DAMAGED);
    let done = br#"{"type":"response.done","response":{"id":"resp_1"}}"#;
    let answer = [damaged, message(TEXT, &[], done)].concat();
    let told = told(&[asked, answered, sent(message(TEXT, &[0; 4], ASKS)), received(answer)]);
    let turn = told.calls.last().expect("a turn");
    assert_eq!(turn.response_id.as_deref(), Some("resp_1"));
    assert_eq!(turn.unreadable, Some(Unreadable::Corrupt));
}

#[test]
fn what_half_a_body_looked_like_is_forgotten() {
    /// Encodes a frame of stream 1.
    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let len = u8::try_from(payload.len()).expect("short");
        [&[0, 0, len, kind, flags, 0, 0, 0, 1], payload].concat()
    }
    // POST without a target: only the body shows a request to a model.
    let head = frame(1, 0x4, &[0x83]);
    let body = frame(0, 0x1, br#"{"model":"gpt-4o","messages":[]}"#);
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let told = told(&[sent(*preface), sent([head, body].concat())]);
    let [call] = told.calls.as_slice() else { panic!("{:?}", told.calls) };
    assert_eq!((call.kind, call.unlisted), (Kind::Inference, false));
    assert_eq!(call.request_model.as_deref(), Some("gpt-4o"));
    assert_eq!(call.unlisted_model, None);
}

#[test]
fn of_two_reasons_the_first_is_told() {
    let request = "POST /v1/chat/completions HTTP/1.1\r\nHost: api.openai.com\r\n\
        Content-Length: 64\r\n\r\n{";
    let head = "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n";
    let text = br#"{"id":"chatcmpl-1","#;
    let len = u8::try_from(text.len()).expect("short");
    // A stored block with content, then a block of a type unknown to deflate.
    let gzip = b"\x1f\x8b\x08\0\0\0\0\0\0\xff";
    let damaged = [gzip.as_slice(), &[0, len, 0, !len, 0xff], text.as_slice(), &[7]].concat();
    let told =
        told(&[sent(request), received(head), received(damaged), (Direction::Egress, Err(8))]);
    let [call] = told.calls.as_slice() else { panic!("{:?}", told.calls) };
    assert_eq!(call.response_id.as_deref(), Some("chatcmpl-1"));
    assert_eq!(call.unreadable, Some(Unreadable::Corrupt));
}

#[test]
fn a_client_that_does_not_go_on_as_agreed_makes_one_request_of_all_that_follows() {
    let asked = "GET /v1/models HTTP/1.1\r\nHost: api.openai.com\r\nUpgrade: h2c\r\n\r\n";
    let answered = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n";
    let start = asked.len() as u64;
    let told =
        told(&[sent(asked), received(answered), sent("PRI * HTTP/2.0\r\n\r\nno more of it")]);
    assert_eq!(told.requests, [(0, true, 0, start), (1, false, start, u64::MAX)]);
}

#[test]
fn what_was_sent_before_a_connection_was_joined_is_no_hole() {
    let facts = ConnectionFacts {
        server_name: Some("api.openai.com".to_owned()),
        from_start: false,
        ..ConnectionFacts::default()
    };
    let mut connection = Connection::new(facts, Arc::new(Hosts::builtin()));
    let mut told = Told::default();
    // The answer to an unseen earlier request comes first.
    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
    connection.data_at(1, Direction::Ingress, 0, answer, &mut told);
    let request = b"POST /v1/chat/completions HTTP/1.1\r\nHost: api.openai.com\r\n\
        Content-Length: 18\r\n\r\n{\"model\":\"gpt-4o\"}";
    connection.data_at(2, Direction::Egress, 700, request, &mut told);
    let end = 700 + request.len() as u64;
    assert_eq!(told.requests, [(0, true, 700, end)]);
}
