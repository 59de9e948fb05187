//! An OTLP collector: receives spans as protobuf over HTTP/1.1, and keeps attributes and events.
//!
//! The collector decodes the wire format itself, by field numbers, and not with the library that
//! encoded the spans. Tests compare the spans with the agent's other output.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde_json::{Map, Value};

use crate::patience::scaled;

/// Longest request body, in bytes.
const BODY_LIMIT: u64 = 64 << 20;

/// Attributes of a span or of an event of a span.
pub type Attributes = Map<String, Value>;

/// Span of a unit.
#[derive(Clone, Debug, Default)]
pub struct Span {
    /// Attributes of the span.
    pub attributes: Attributes,
    /// Events with name and attributes, in the order of the span.
    pub events: Vec<(String, Attributes)>,
}

/// Running collector, serving until the process ends.
#[derive(Debug)]
pub struct Collector {
    /// Address of the collector.
    pub address: SocketAddr,
    spans: Arc<Mutex<Vec<Span>>>,
}

impl Collector {
    /// Listens on a free port of the loopback interface.
    pub fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let spans = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&spans);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let kept = Arc::clone(&kept);
                std::thread::spawn(move || {
                    if let Err(error) = serve(&stream, &kept) {
                        eprintln!("collector: {error:#}");
                    }
                });
            }
        });
        Ok(Self { address, spans })
    }

    /// Returns the section `telemetry` of an agent sending to the collector; see
    /// `Launch::telemetry`.
    #[must_use]
    pub fn telemetry(&self) -> String {
        format!("otlp: {{endpoint: \"http://{}\"}}, ", self.address)
    }

    /// Waits until there are `count` spans, and returns all spans.
    pub fn wait_for(&self, count: usize, patience: Duration) -> anyhow::Result<Vec<Span>> {
        let deadline = Instant::now() + scaled(patience);
        loop {
            let spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if spans.len() >= count {
                return Ok(spans);
            }
            ensure!(Instant::now() < deadline, "{} of {count} spans arrived", spans.len());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Serves requests until the connection ends.
fn serve(stream: &TcpStream, kept: &Mutex<Vec<Span>>) -> anyhow::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut writer = stream;
    loop {
        let mut length = 0;
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        ensure!(line.starts_with("POST /v1/traces "), "a request for something else: {line}");
        loop {
            line.clear();
            ensure!(reader.read_line(&mut line)? > 0, "the connection ended inside a head");
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse()?;
            }
        }
        ensure!(length <= BODY_LIMIT, "a body of {length} bytes");
        let mut body = Vec::new();
        reader.by_ref().take(length).read_to_end(&mut body)?;
        let spans = read_request(&body).context("a request that is no OTLP")?;
        kept.lock().unwrap_or_else(PoisonError::into_inner).extend(spans);
        // An empty `ExportTraceServiceResponse`: all spans were accepted.
        let head =
            "HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: 0\r\n\r\n";
        writer.write_all(head.as_bytes())?;
    }
}

/// Content of a protobuf field.
#[derive(Clone, Copy, Debug)]
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// Splits a message into fields, each with its number.
fn fields(mut message: &[u8]) -> anyhow::Result<Vec<(u64, Field<'_>)>> {
    let mut fields = Vec::new();
    while !message.is_empty() {
        let key = varint(&mut message)?;
        let field = match key & 7 {
            0 => Field::Number(varint(&mut message)?),
            1 => Field::Number(u64::from_le_bytes(take(&mut message, 8)?.try_into()?)),
            2 => {
                let length = varint(&mut message)?;
                Field::Bytes(take(&mut message, usize::try_from(length)?)?)
            }
            5 => Field::Number(u32::from_le_bytes(take(&mut message, 4)?.try_into()?).into()),
            other => bail!("a field of wire type {other}"),
        };
        fields.push((key >> 3, field));
    }
    Ok(fields)
}

fn take<'a>(message: &mut &'a [u8], length: usize) -> anyhow::Result<&'a [u8]> {
    let (taken, rest) = message.split_at_checked(length).context("a message that breaks off")?;
    *message = rest;
    Ok(taken)
}

fn varint(message: &mut &[u8]) -> anyhow::Result<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = take(message, 1)?.first().copied().unwrap_or_default();
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    bail!("a number of more than ten bytes")
}

/// Returns the messages in the fields with `number`.
fn parts(message: &[u8], number: u64) -> anyhow::Result<Vec<&[u8]>> {
    let parts = fields(message)?.into_iter().filter_map(|(it, field)| match field {
        Field::Bytes(bytes) if it == number => Some(bytes),
        _ => None,
    });
    Ok(parts.collect())
}

/// `ExportTraceServiceRequest`: `resource_spans` (1), `scope_spans` (2), `spans` (2).
fn read_request(message: &[u8]) -> anyhow::Result<Vec<Span>> {
    let mut spans = Vec::new();
    for resource in parts(message, 1)? {
        for scope in parts(resource, 2)? {
            for span in parts(scope, 2)? {
                spans.push(read_span(span)?);
            }
        }
    }
    Ok(spans)
}

/// `Span`: `attributes` (9), `events` (11) with `name` (2) and `attributes` (3).
fn read_span(message: &[u8]) -> anyhow::Result<Span> {
    let mut events = Vec::new();
    for event in parts(message, 11)? {
        let name = parts(event, 2)?.concat();
        events.push((String::from_utf8(name)?, read_attributes(event, 3)?));
    }
    Ok(Span { attributes: read_attributes(message, 9)?, events })
}

/// `KeyValue`: `key` (1), `value` (2).
fn read_attributes(message: &[u8], number: u64) -> anyhow::Result<Attributes> {
    let mut attributes = Attributes::new();
    for pair in parts(message, number)? {
        let key = String::from_utf8(parts(pair, 1)?.concat())?;
        attributes.insert(key, read_value(&parts(pair, 2)?.concat())?);
    }
    Ok(attributes)
}

/// `AnyValue`: a string (1), a truth value (2), an integer (3), a double (4) or a list (5).
fn read_value(message: &[u8]) -> anyhow::Result<Value> {
    let Some((number, field)) = fields(message)?.pop() else { return Ok(Value::Null) };
    Ok(match (number, field) {
        (1, Field::Bytes(text)) => std::str::from_utf8(text)?.into(),
        (2, Field::Number(truth)) => (truth != 0).into(),
        (3, Field::Number(integer)) => integer.cast_signed().into(),
        (4, Field::Number(bits)) => f64::from_bits(bits).into(),
        (5, Field::Bytes(list)) => {
            let items = parts(list, 1)?;
            items.into_iter().map(read_value).collect::<anyhow::Result<Vec<_>>>()?.into()
        }
        other => bail!("a value that is {other:?}"),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{read_value, varint};

    #[test]
    fn numbers_of_several_bytes_are_read() -> anyhow::Result<()> {
        // The example of the protobuf documentation: 150.
        assert_eq!(varint(&mut [0x96, 0x01].as_slice())?, 150);
        assert!(varint(&mut [0x96].as_slice()).is_err());
        assert!(varint(&mut [0xff; 11].as_slice()).is_err());
        Ok(())
    }

    #[test]
    fn each_type_of_value_is_read() -> anyhow::Result<()> {
        let double = [&[4 << 3 | 1], 0.25_f64.to_le_bytes().as_slice()].concat();
        let list = [5 << 3 | 2, 6, 1 << 3 | 2, 4, 1 << 3 | 2, 2, b'h', b'i'];
        for (message, value) in [
            (&[1 << 3 | 2, 2, b'h', b'i'][..], json!("hi")),
            (&[2 << 3, 1], json!(true)),
            (&[3 << 3, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1], json!(-1)),
            (&double, json!(0.25)),
            (&list, json!(["hi"])),
        ] {
            assert_eq!(read_value(message)?, value);
        }
        assert!(read_value(&[6 << 3 | 2, 0]).is_err());
        Ok(())
    }
}
