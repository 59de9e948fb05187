//! Checks input of a client: read if a single reading exists, else reported as unreadable.

use std::sync::Arc;

use genops_protocols::{Connection, ConnectionFacts, Direction, Exchange, Hosts, Request, Sink};

/// Readability and requested model of each reported request.
#[derive(Default)]
struct Told(Vec<(bool, Option<String>)>);

impl Sink for Told {
    fn request(&mut self, request: &Request<'_>) {
        let call = request.call;
        let read = call.unreadable.is_none() && request.complete;
        self.0.push((read, call.request_model.clone()));
    }

    fn exchange(&mut self, _exchange: Exchange) {}
}

fn connection() -> Connection {
    let server_name = Some("api.openai.com".to_owned());
    let facts = ConnectionFacts { server_name, remote: None, from_start: true };
    Connection::new(facts, Arc::new(Hosts::builtin()))
}

/// Reads input of a client, whole and byte by byte: the cuts must not matter.
fn told(sent: &[u8]) -> Vec<(bool, Option<String>)> {
    let read = |size: usize| {
        let (mut connection, mut told) = (connection(), Told::default());
        sent.chunks(size).for_each(|piece| {
            connection.data(1, Direction::Egress, piece, &mut told);
        });
        connection.close(2, &mut told);
        told.0
    };
    let whole = read(sent.len());
    assert_eq!(read(1), whole, "cut into bytes: {}", String::from_utf8_lossy(sent));
    whole
}

#[track_caller]
fn reads(sent: &[u8]) {
    let told = told(sent);
    let shown = String::from_utf8_lossy(sent);
    assert!(!told.is_empty() && told.iter().all(|(read, _)| *read), "{told:?}: {shown}");
}

#[track_caller]
fn refuses(sent: &[u8]) {
    let told = told(sent);
    let shown = String::from_utf8_lossy(sent);
    assert!(told.iter().any(|(read, _)| !*read), "{told:?}: {shown}");
}

const BODY: &str = r#"{"model":"o4-mini","messages":[{"role":"user","content":"tea"}]}"#;

fn head(line: &str, fields: &str, body: &str) -> Vec<u8> {
    format!("{line}\r\n{fields}Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

fn with(fields: &str) -> Vec<u8> {
    let fields = format!("Host: api.openai.com\r\n{fields}");
    head("POST /v1/chat/completions HTTP/1.1", &fields, BODY)
}

fn target(target: &str) -> Vec<u8> {
    head(&format!("POST {target} HTTP/1.1"), "Host: api.openai.com\r\n", BODY)
}

fn chunked(body: &str) -> Vec<u8> {
    let fields = "Host: api.openai.com\r\nTransfer-Encoding: chunked";
    format!("POST /v1/chat/completions HTTP/1.1\r\n{fields}\r\n\r\n{body}").into_bytes()
}

#[test]
fn fields_that_only_some_servers_heed_or_read_otherwise_are_refused() {
    reads(&with(""));
    reads(&with("Connection: keep-alive, Upgrade, HTTP2-Settings\r\nTE: trailers\r\n"));
    reads(&with("Expect: 100-continue\r\nX_Own: 1\r\n"));
    for odd in [
        "Connection: close, Content-Length\r\n",
        "Connection: content-type\r\nContent-Type: application/json\r\n",
        "Expect: 100-continue, more\r\n",
        "Expect: 417\r\n",
        "Content_Length: 3\r\n",
        "Transfer_Encoding: chunked\r\n",
        "X_HTTP_Method_Override: DELETE\r\n",
        "Content-Type:\u{a0}application/json\r\nContent-Type: text/plain\r\n",
        "Host: api.openai.com\r\n",
        "Upgrade: h2c\r\nUpgrade: websocket\r\n",
    ] {
        refuses(&with(odd));
    }
    let padded = format!("Content-Type: text/plain; a={}\r\n", "b".repeat(520));
    refuses(&with(&padded));
    let length = BODY.len();
    for spelt in [
        format!("{length}\u{a0}"),
        format!("+{length}"),
        format!("{length}, {length}"),
        "0x1".into(),
    ] {
        let line = "POST /v1/chat/completions HTTP/1.1\r\nHost: api.openai.com";
        refuses(format!("{line}\r\nContent-Length: {spelt}\r\n\r\n{BODY}").as_bytes());
    }
}

#[test]
fn a_name_of_the_host_is_a_name_and_perhaps_a_port() {
    let named = |host: &str| head("POST /v1/chat/completions HTTP/1.1", host, BODY);
    reads(&named("Host: api.openai.com:443\r\n"));
    reads(&named("Host: API.openai.com.\r\n"));
    reads(&named("Host: [2001:db8::1]:443\r\n"));
    for odd in ["me@api.openai.com", "api.openai.com, b", "api.openai.com/x", "a b", "a:b", "[::1"]
    {
        refuses(&named(&format!("Host: {odd}\r\n")));
    }
}

#[test]
fn a_target_is_in_one_of_the_forms_that_there_are() {
    reads(&target("/v1/chat/completions?api-version=1&tag=a|b"));
    reads(&target("https://api.openai.com/v1/chat/completions"));
    reads(&target("/v1/%63hat/completions"));
    for odd in [
        "/v1/chat/completions#part",
        "/v1/files#/../chat/completions",
        "/v1/chat/completions?a#b",
        "v1/chat/completions",
        "gopher://api.openai.com/v1/chat/completions",
        "https:/v1/chat/completions",
        "http://me@api.openai.com/v1/chat/completions",
        "/v1/chat/completions\u{e9}",
        "/v1/chat/completions\"",
        "/v1/%+5chat/completions",
        "/v1/chat/completions?%24httpMethod=GET",
        "/v1/chat/completions?_method=DELETE",
    ] {
        refuses(&target(odd));
    }
}

#[test]
fn chunks_end_where_the_grammar_ends_them() {
    let whole = |size: &str, after: &str| chunked(&format!("{size}\r\n{BODY}\r\n{after}"));
    let size = format!("{:x}", BODY.len());
    reads(&whole(&size, "0\r\n\r\n"));
    reads(&whole(&format!("{size} ; a=b;c"), "00\r\nX-Sum: a b\r\n\r\n"));
    for odd in [format!("{size} 0"), format!("{size};a=\"b\""), format!("{size}\tx"), "0x40".into()]
    {
        refuses(&whole(&odd, "0\r\n\r\n"));
    }
    for odd in [
        "0\r\nno field\r\n\r\n",
        "0\r\nX: a\r\n b\r\n\r\n",
        "0\r\n: a\r\n\r\n",
        "0\r\nX: \0\r\n\r\n",
    ] {
        refuses(&whole(&size, odd));
    }
}

fn body(body: &str) -> Vec<u8> {
    head("POST /v1/chat/completions HTTP/1.1", "Host: api.openai.com\r\n", body)
}

#[test]
fn a_text_has_one_reading_or_is_refused() {
    reads(&body(BODY));
    reads(&body(r#"{"model":"o4-mini","messages":[{"content":"\ud83c\udf75 \ud83c half"}]}"#));
    for odd in [
        r#"{"model":"o4-mini","mod\u0065l\u0000":"o3"}"#,
        r#"{"model":"o4-mini","mo\udc00del":"o3"}"#,
        r#"{"model":"o4-mini","mo\ud800":"o3"}"#,
        r#"{"model":"o4\ud800-mini"}"#,
        r#"{"model":"o4-mini\u0000"}"#,
        r#"{"model":["o3"]}"#,
        r#"{"model":{"id":"o3"}}"#,
        r#"{"model":3}"#,
        "{\"model\":\"o4-mini\",\"user\":\"a\nb\"}",
        "{\"model\":\"o4-mini\",\"us\ner\":1}",
    ] {
        refuses(&body(odd));
    }
    refuses(&body(&format!(r#"{{"model":"{}"}}"#, "m".repeat(600))));
    for odd in [&b"\xff"[..], b"\xc1\xad", b"\xed\xa0\x80", b"\xe2\x84"] {
        let text = [br#"{"model":"o4-mini","user":""#, odd, br#""}"#].concat();
        let line = "POST /v1/chat/completions HTTP/1.1\r\nHost: api.openai.com";
        let head = format!("{line}\r\nContent-Length: {}\r\n\r\n", text.len());
        refuses(&[head.as_bytes(), &text].concat());
    }
}

#[test]
fn json_that_is_said_to_be_a_form_names_no_model_as_one() {
    let said = |text: &str| {
        let kind = "Content-Type: application/x-www-form-urlencoded\r\n";
        head("POST /v1/chat/completions HTTP/1.1", &format!("Host: api.openai.com\r\n{kind}"), text)
    };
    reads(&said(BODY));
    reads(&said(r#"{"model":"o4-mini","user":"this & that = more & models=2"}"#));
    refuses(&said(r#"{"model":"o4-mini","user":"&model=o3&"}"#));
    refuses(&said(r#"{"model":"o4-mini","user":"a=b&%6d%6Fdel=o3&"}"#));
}

fn form(parts: &str) -> Vec<u8> {
    let fields = "Host: api.openai.com\r\nContent-Type: multipart/form-data; boundary=line\r\n";
    head("POST /v1/audio/transcriptions HTTP/1.1", fields, parts)
}

#[test]
fn a_form_has_the_parts_that_everybody_finds_in_it() {
    let part = |fields: &str| {
        let file =
            "--line\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\nx";
        format!("{file}\r\n--line\r\n{fields}\r\n\r\nwhisper-1\r\n--line")
    };
    let name = "Content-Disposition: form-data; name=\"model\"";
    reads(&form(&format!("{}--\r\n", part(name))));
    reads(&form(&format!(
        "{}--",
        part(&format!("{name}\r\nContent-Type: text/plain; charset=utf-8"))
    )));
    for odd in [
        format!("{}-\r\n", part(name)),
        format!("{}--\r\n--line\r\nmore", part(name)),
        format!("before\r\n{}--\r\n", part(name)),
        format!("{}--\r\n", part("Content-Disposition : form-data; name=\"model\"")),
        format!("{}--\r\n", part(&format!("X: y\n{name}"))),
        format!("{}--\r\n", part("Content-Disposition: form-data; name*=utf-8''model")),
        format!("{}--\r\n", part(&format!("{name}\r\nContent-Type: text/plain; charset=utf-7"))),
    ] {
        refuses(&form(&odd));
    }
    let related = "Host: api.openai.com\r\nContent-Type: multipart/related; boundary=line\r\n";
    let parts = format!("{}--\r\n", part(name));
    refuses(&head("POST /v1/audio/transcriptions HTTP/1.1", related, &parts));
}

fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).expect("small").to_be_bytes();
    [&len[1..], &[kind, flags, 0, 0, 0, stream], payload].concat()
}

/// A header block without index and without Huffman.
fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).expect("short")], text.as_bytes()].concat();
    let field = |(name, value): &(&str, &str)| [vec![0], text(name), text(value)].concat();
    fields.iter().flat_map(field).collect()
}

const ASKED: [(&str, &str); 4] = [
    (":method", "POST"),
    (":scheme", "https"),
    (":path", "/v1/chat/completions"),
    (":authority", "api.openai.com"),
];

fn http2(frames: &[Vec<u8>]) -> Vec<u8> {
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    [preface, frame(4, 0, 0, &[]), frames.concat()].concat()
}

/// Encodes a request with further fields after the required fields.
fn asked_with(more: &[(&str, &str)]) -> Vec<u8> {
    asked(&[&ASKED, more].concat())
}

fn asked(fields: &[(&str, &str)]) -> Vec<u8> {
    http2(&[frame(1, 4, 1, &block(fields)), frame(0, 1, 1, BODY.as_bytes())])
}

#[test]
fn a_header_block_of_http2_has_what_it_needs_once_and_nothing_else() {
    let length = BODY.len().to_string();
    reads(&asked(&ASKED));
    reads(&asked_with(&[("te", "trailers"), ("content-length", &length), ("x", "")]));
    for odd in [
        ("te", "gzip"),
        ("x", " a"),
        ("x", "a\t"),
        ("x:y", "a"),
        ("X-Y", "a"),
        (":scheme", "https"),
        ("content-length", "0"),
        ("content-length", "99"),
        ("content-length", "+1"),
        ("host", "elsewhere.example"),
        ("expect", "a"),
    ] {
        refuses(&asked_with(&[odd]));
    }
    for missing in 0..3 {
        let mut fields = ASKED.to_vec();
        fields.remove(missing);
        refuses(&asked(&fields));
    }
    let twice = [&ASKED[..2], &[(":path", "/v1/models")], &ASKED[2..]].concat();
    refuses(&asked(&twice));
    let twice = [&ASKED[..], &ASKED[3..]].concat();
    refuses(&asked(&twice));
    for path in ["", "v1/chat/completions", "https://api.openai.com/v1/chat/completions", "*"] {
        let mut fields = ASKED;
        fields[2].1 = path;
        refuses(&asked(&fields));
    }
}

#[test]
fn what_follows_a_request_on_its_stream_of_http2_is_trailers_or_a_fault() {
    let (begin, data) = (frame(1, 4, 1, &block(&ASKED)), frame(0, 0, 1, BODY.as_bytes()));
    let more = |flags: u8, fields: &[(&str, &str)]| {
        http2(&[begin.clone(), data.clone(), frame(1, flags, 1, &block(fields))])
    };
    reads(&more(5, &[("x-sum", "1")]));
    refuses(&more(5, &ASKED));
    refuses(&more(4, &[("x-sum", "1")]));
    refuses(&more(5, &[("transfer-encoding", "chunked")]));
    // A body longer than announced, in a request harmless whatever the body says.
    let mut fields = ASKED.to_vec();
    fields[0].1 = "DELETE";
    fields.push(("content-length", "0"));
    refuses(&asked(&fields));
}

#[test]
fn a_block_that_never_ended_is_told_when_the_connection_closes() {
    let begun = http2(&[frame(1, 0, 1, &block(&ASKED))]);
    assert_eq!(told(&begun), [(false, None)]);
}

#[test]
fn what_a_peer_sends_does_not_say_which_end_this_host_is() {
    let facts = ConnectionFacts {
        server_name: Some("api.openai.com".to_owned()),
        from_start: false,
        ..ConnectionFacts::default()
    };
    let mut connection = Connection::new(facts, Arc::new(Hosts::builtin()));
    let mut told = Told::default();
    let ping = frame(6, 0, 0, &[0; 8]);
    connection.data(1, Direction::Ingress, &ping, &mut told);
    connection.data(1, Direction::Ingress, &frame(1, 5, 1, &block(&ASKED)), &mut told);
    connection.data(2, Direction::Egress, &ping, &mut told);
    connection.data(2, Direction::Egress, &frame(1, 4, 3, &block(&ASKED)), &mut told);
    connection.data(2, Direction::Egress, &frame(0, 1, 3, BODY.as_bytes()), &mut told);
    assert_eq!(told.0, [(true, Some("o4-mini".to_owned()))]);
}

/// A frame of a client, with a mask of zeros.
fn message(first: u8, text: &[u8]) -> Vec<u8> {
    let len = u8::try_from(text.len()).expect("short");
    assert!(len < 126, "one byte of length");
    [&[first, 0x80 | len, 0, 0, 0, 0], text].concat()
}

/// Returns the reports for messages on a realtime connection.
fn session(messages: &[Vec<u8>]) -> Vec<(bool, Option<String>)> {
    let (mut connection, mut told) = (connection(), Told::default());
    let ask = "GET /v1/realtime?model=gpt-realtime HTTP/1.1\r\nHost: api.openai.com\r\n\
               Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    connection.data(1, Direction::Egress, ask.as_bytes(), &mut told);
    let answer = "HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                  Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n";
    connection.data(2, Direction::Ingress, answer.as_bytes(), &mut told);
    told.0.clear();
    for message in messages {
        connection.data(3, Direction::Egress, message, &mut told);
    }
    connection.close(4, &mut told);
    told.0
}

const ASK: &[u8] = br#"{"type":"response.create"}"#;

#[test]
fn a_message_of_a_session_is_whole_and_sound_or_told_to_be_unreadable() {
    let model = || Some("gpt-realtime".to_owned());
    assert_eq!(session(&[message(0x81, ASK)]), [(true, model())]);
    assert_eq!(session(&[message(0x01, &ASK[..9]), message(0x80, &ASK[9..])]), [(true, model())]);
    // The message never ends, or the connection ends first.
    assert_eq!(session(&[message(0x01, ASK)]), [(false, model())]);
    assert_eq!(session(&[message(0x81, ASK)[..12].to_vec()]), [(false, model())]);
    for odd in [
        message(0x80, ASK),
        message(0xa1, ASK),
        message(0x83, ASK),
        message(0x09, ASK),
        [&[0x81, 26][..], ASK].concat(),
        [&[0x81, 0xfe, 0, 26, 0, 0, 0, 0][..], ASK].concat(),
    ] {
        assert_eq!(session(&[odd]), [(false, model())]);
    }
    assert_eq!(session(&[message(0x01, b"{"), message(0x81, ASK)]), [(false, model())]);
}

#[test]
fn compressed_data_that_ends_itself_is_read_and_nothing_behind_it() {
    let deflated = |bytes: &[u8]| {
        let mut encoder =
            flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut encoder, bytes).expect("memory");
        encoder.finish().expect("memory")
    };
    let ended = deflated(ASK);
    let padded = [ended.as_slice(), &[0]].concat();
    let again = [message(0xc1, &ended), message(0xc1, &padded)];
    assert!(session(&again).iter().all(|(read, _)| *read));
    assert_eq!(session(&again).len(), 2);
    let harmless = deflated(br#"{"type":"session.update"}"#);
    let behind = [harmless.as_slice(), &ended].concat();
    assert_eq!(session(&[message(0xc1, &behind)]).first().map(|(read, _)| *read), Some(false));
}
