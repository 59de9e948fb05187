//! Bounds and positions: input of a peer cannot make a connection grow, and the positions reported
//! for holding bytes back are right.

use std::io::Write as _;
use std::sync::Arc;

use genops_protocols::{
    Connection, ConnectionFacts, Direction, Exchange, Hosts, Kind, Request, Sink, Unreadable,
};

#[derive(Default)]
struct Told {
    requests: Vec<(u64, bool, u64, u64, Kind, Option<String>)>,
    texts: Vec<String>,
    truncated: bool,
    exchanges: Vec<Exchange>,
}

impl Sink for Told {
    fn request(&mut self, request: &Request<'_>) {
        let Request { call, complete, start, end, .. } = request;
        let model = call.request_model.clone();
        self.requests.push((call.exchange, *complete, *start, *end, call.kind, model));
        self.texts.extend(request.texts().map(str::to_owned));
        self.truncated |= request.texts_truncated();
        assert!(!format!("{request:?}").contains("secret words"), "Debug shows no text");
    }

    fn exchange(&mut self, exchange: Exchange) {
        self.exchanges.push(exchange);
    }
}

fn connection(from_start: bool) -> Connection {
    let server_name = Some("api.openai.com".to_owned());
    let facts = ConnectionFacts { server_name, remote: None, from_start };
    Connection::new(facts, Arc::new(Hosts::builtin()))
}

fn post(body_len: u64, headers: &str) -> Vec<u8> {
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: api.openai.com\r\n{headers}Content-Length: {body_len}\r\n\r\n"
    )
    .into_bytes()
}

fn beside(connection: &Connection) -> usize {
    connection.memory_bytes() - connection.retained_bytes()
}

#[test]
fn a_body_of_a_gigabyte_streams_through_in_constant_memory() {
    let (mut connection, mut told) = (connection(true), Told::default());
    let head = br#"{"model":"gpt-4o","messages":[{"role":"user","content":""#;
    let tail = br#""}],"stream":true}"#;
    let piece = vec![b'x'; 1 << 20];
    let len = (head.len() + tail.len()) as u64 + (1 << 30);
    connection.data(1, Direction::Egress, &post(len, ""), &mut told);
    connection.data(1, Direction::Egress, head, &mut told);
    let mut peak = 0;
    for _ in 0..1 << 10 {
        connection.data(1, Direction::Egress, &piece, &mut told);
        peak = peak.max(connection.memory_bytes());
    }
    connection.data(1, Direction::Egress, tail, &mut told);
    let [(0, true, 0, _, Kind::Inference, Some(model))] = told.requests.as_slice() else {
        panic!("{:?}", told.requests)
    };
    assert_eq!(model, "gpt-4o");
    assert!(told.truncated, "text past the limit is said to be missing");
    assert_eq!(told.texts.iter().map(String::len).sum::<usize>(), Connection::TEXT_LIMIT);
    let limit = 2 * Connection::TEXT_LIMIT + Connection::MEMORY_LIMIT + Connection::MESSAGE_LIMIT;
    assert!(peak < limit, "{peak} bytes");
}

#[test]
fn a_response_of_a_gigabyte_is_read_to_its_end() {
    let (mut connection, mut told) = (connection(true), Told::default());
    connection.data(1, Direction::Egress, &post(2, ""), &mut told);
    connection.data(1, Direction::Egress, b"{}", &mut told);
    let head = b"HTTP/1.1 200 OK\r\n\r\n{\"choices\":[{\"message\":{\"content\":\"";
    connection.data(2, Direction::Ingress, head, &mut told);
    let piece = vec![b'x'; 1 << 20];
    for _ in 0..1 << 10 {
        connection.data(2, Direction::Ingress, &piece, &mut told);
        assert!(beside(&connection) < Connection::MEMORY_LIMIT, "{}", beside(&connection));
    }
    let tail = br#""},"finish_reason":"stop"}],"model":"gpt-4o-2024-08-06"}"#;
    connection.data(3, Direction::Ingress, tail, &mut told);
    connection.close(4, &mut told);
    let [Exchange { call, response_complete: true }] = told.exchanges.as_slice() else {
        panic!("{:?}", told.exchanges)
    };
    assert_eq!(call.response_model.as_deref(), Some("gpt-4o-2024-08-06"));
    assert_eq!(call.finish_reasons, ["stop"]);
}

#[test]
fn a_bomb_stops_at_the_limit() {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    let zeros = vec![b' '; 1 << 20];
    for _ in 0..70 {
        encoder.write_all(&zeros).expect("memory takes it");
    }
    let bomb = encoder.finish().expect("memory takes it");
    let (mut connection, mut told) = (connection(true), Told::default());
    connection.data(1, Direction::Egress, &post(0, ""), &mut told);
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {}\r\n\r\n",
        bomb.len()
    );
    connection.data(1, Direction::Ingress, head.as_bytes(), &mut told);
    connection.data(1, Direction::Ingress, &bomb, &mut told);
    let [Exchange { call, .. }] = told.exchanges.as_slice() else { panic!("{:?}", told.exchanges) };
    assert_eq!(call.unreadable, Some(Unreadable::Bomb));
}

#[test]
fn endless_heads_frames_and_lists_stay_within_the_limit() {
    let mut frames = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    for _ in 0..64 {
        frames.extend_from_slice(&[0, 0x40, 0, 9, 0, 0, 0, 0, 1]);
        frames.extend_from_slice(&[0x40; 0x4000]);
    }
    let headless = [b"GET /".as_slice(), &vec![b'a'; 1 << 20]].concat();
    for bytes in [headless, frames, vec![0; 1 << 20], b"{".repeat(1 << 20)] {
        for direction in [Direction::Egress, Direction::Ingress] {
            for from_start in [true, false] {
                let (mut connection, mut told) = (connection(from_start), Told::default());
                for piece in bytes.chunks(4096) {
                    connection.data(1, direction, piece, &mut told);
                    assert!(beside(&connection) < Connection::MEMORY_LIMIT);
                }
                connection.close(1, &mut told);
            }
        }
    }
    let (mut connection, mut told) = (connection(true), Told::default());
    let tools =
        br#"{"choices":[{"message":{"tool_calls":[{"function":{"name":"aaaaaaaaaaaa"}}]}}]}"#;
    let body = [b"data: ".as_slice(), tools, b"\n\n"].concat().repeat(20_000);
    connection.data(1, Direction::Egress, &post(0, ""), &mut told);
    connection.data(1, Direction::Ingress, b"HTTP/1.1 200 OK\r\n\r\n", &mut told);
    connection.data(1, Direction::Ingress, &body, &mut told);
    assert!(connection.memory_bytes() < 2 * Connection::MEMORY_LIMIT);
}

#[test]
fn positions_tell_what_is_open_and_what_may_leave() {
    let (mut connection, mut told) = (connection(true), Told::default());
    assert!(connection.egress().open.is_none());
    let body = br#"{"model":"gpt-4o","messages":[{"role":"user","content":"secret words"}]}"#;
    let request = [post(body.len() as u64, "").as_slice(), body].concat();
    let (head, rest) = request.split_at(10);
    connection.data_at(1, Direction::Egress, 0, head, &mut told);
    let open = connection.egress().open.expect("a head has begun");
    assert_eq!((open.exchange, open.start, open.call.kind), (0, 0, Kind::Other));
    let (middle, last) = rest.split_at(rest.len() - 5);
    connection.data_at(1, Direction::Egress, 10, middle, &mut told);
    let egress = connection.egress();
    let open = egress.open.expect("the body has not ended");
    assert_eq!(egress.received, request.len() as u64 - 5);
    assert_eq!(open.call.request_model.as_deref(), Some("gpt-4o"));
    assert_eq!(open.call.kind, Kind::Inference);
    assert_eq!(open.body_bytes, body.len() as u64 - 5);
    // Given twice: nothing new.
    connection.data_at(1, Direction::Egress, 10, middle, &mut told);
    assert!(told.requests.is_empty());
    connection.data_at(1, Direction::Egress, request.len() as u64 - 5, last, &mut told);
    let end = request.len() as u64;
    let model = Some("gpt-4o".to_owned());
    assert_eq!(told.requests, [(0, true, 0, end, Kind::Inference, model)]);
    assert_eq!(told.texts, ["secret words"]);
    assert!(connection.egress().open.is_none());
    // The next request begins at the end of the first.
    connection.data_at(1, Direction::Egress, end, &request, &mut told);
    assert_eq!(told.requests.last().map(|it| (it.0, it.2, it.3)), Some((1, end, 2 * end)));
}

#[test]
fn what_was_pipelined_behind_an_upgrade_ends_with_it() {
    for protocol in ["websocket", "h2c", "else"] {
        let (mut connection, mut told) = (connection(true), Told::default());
        let asked = format!(
            "GET /v1/realtime?model=m HTTP/1.1\r\nHost: api.openai.com\r\nUpgrade: {protocol}\r\n\r\n"
        );
        connection.data(1, Direction::Egress, asked.as_bytes(), &mut told);
        for (sent, len) in [("{}", 2), ("{\"model\":", 40)] {
            connection.data(1, Direction::Egress, &post(len, ""), &mut told);
            connection.data(1, Direction::Egress, sent.as_bytes(), &mut told);
        }
        let answer = format!("HTTP/1.1 101 Switching Protocols\r\nUpgrade: {protocol}\r\n\r\n");
        connection.data(2, Direction::Ingress, answer.as_bytes(), &mut told);
        connection.close(3, &mut told);
        let requests: Vec<_> = told.requests.iter().map(|it| (it.0, it.1)).collect();
        assert_eq!(requests, [(0, true), (1, true), (2, false)], "{protocol}");
        let mut ended: Vec<_> = told.exchanges.iter().map(|it| it.call.exchange).collect();
        ended.sort_unstable();
        assert_eq!(ended, [0, 1, 2], "{protocol}");
    }
}

#[test]
fn a_key_written_with_escapes_or_twice_is_still_that_key() {
    for body in [
        r#"{"mod\u0065l":"gpt-4o","messages":[{"role":"user","cont\u0065nt":"secret words"}]}"#,
        r#"{"model":"cheap","messages":[{"role":"user","content":"secr\u0065t words"}],"model":"gpt-4o"}"#,
    ] {
        let (mut connection, mut told) = (connection(true), Told::default());
        let request = [post(body.len() as u64, "").as_slice(), body.as_bytes()].concat();
        connection.data(1, Direction::Egress, &request, &mut told);
        assert_eq!(told.requests.first().and_then(|it| it.5.as_deref()), Some("gpt-4o"));
        assert_eq!(told.texts, ["secret words"]);
    }
}

#[test]
fn the_servers_side_is_left_alone() {
    let request = post(2, "");
    for (direction, other) in [(Direction::Ingress, Direction::Egress)] {
        for from_start in [true, false] {
            let (mut connection, mut told) = (connection(from_start), Told::default());
            connection.data(1, direction, &request, &mut told);
            connection.data(1, direction, b"{}", &mut told);
            connection.data(1, other, b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", &mut told);
            assert!(connection.egress().open.is_none());
            connection.close(1, &mut told);
            assert!(told.requests.is_empty() && told.exchanges.is_empty());
        }
    }
}
