//! One AWU as text: a JSON line, a line of the live table, or an OTLP/JSON document.
//!
//! Only spelling here. Which attributes there are, and what they are called, is the business of
//! `genops-governance`; a line has what [`Awu::attributes`] gives, in that order, and nothing is
//! invented. What a peer wrote (a model's name, say) reaches a terminal without its control
//! characters.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write};

use crate::foreign;
use genops_governance::{Attribute, Awu, Value};
use serde::Serialize as _;
use serde::ser::{SerializeMap as _, Serializer};

mod otlp;
mod printer;
mod table;

pub(crate) use printer::Printer;

/// How AWUs are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Output {
    /// A line of a table for people.
    Table,
    /// A JSON object a line; keys are attribute names.
    Json,
    /// OTLP/JSON, a request with one span a line, as an exporter would send it.
    Otlp,
    /// Not at all.
    None,
}

/// Turns AWUs into text.
#[derive(Debug)]
pub(crate) struct Renderer {
    output: Output,
    colour: bool,
    /// The table's head was written.
    begun: bool,
}

impl Renderer {
    /// For the standard output as it is: colour only on a terminal, and not where `NO_COLOR` is set.
    pub(crate) fn stdout(output: Output) -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self::new(output, wanted && io::stdout().is_terminal())
    }

    /// With or without colour.
    pub(crate) fn new(output: Output, colour: bool) -> Self {
        Self { output, colour, begun: false }
    }

    /// Appends the text of one AWU to `out`, line end included.
    pub(crate) fn render(&mut self, awu: &Awu, out: &mut String) {
        match self.output {
            Output::Table => {
                if !std::mem::replace(&mut self.begun, true) {
                    table::head(self.colour, out);
                }
                table::row(awu, self.colour, out);
            }
            Output::Json => json(awu, out),
            Output::Otlp => otlp::line(awu, out),
            Output::None => {}
        }
    }

    /// Writes one AWU.
    pub(crate) fn write(&mut self, awu: &Awu, to: &mut dyn Write) -> io::Result<()> {
        let mut text = String::with_capacity(1 << 10);
        self.render(awu, &mut text);
        to.write_all(text.as_bytes())
    }
}

/// The JSON line: the attributes, then the identity of the span.
pub(crate) fn json(awu: &Awu, out: &mut String) {
    let mut bytes = Vec::with_capacity(1 << 10);
    let mut serializer = serde_json::Serializer::new(&mut bytes);
    let line = Line(awu).serialize(&mut serializer);
    debug_assert!(line.is_ok(), "writing to memory does not fail, and every key is a string");
    out.push_str(&String::from_utf8_lossy(&bytes));
    out.push('\n');
}

struct Line<'a>(&'a Awu);

impl serde::Serialize for Line<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (key, value) in self.0.attributes() {
            match value {
                Value::Str(text) => map.serialize_entry(key, &text)?,
                Value::Int(number) => map.serialize_entry(key, &number)?,
                // JSON has no NaN and no infinity; a thing that is not known is absent.
                Value::Double(number) if !number.is_finite() => {}
                Value::Double(number) => map.serialize_entry(key, &number)?,
                Value::Bool(truth) => map.serialize_entry(key, &truth)?,
                Value::StrList(list) => map.serialize_entry(key, &list)?,
            }
        }
        map.serialize_entry("trace_id", &hex(&self.0.id.trace))?;
        map.serialize_entry("span_id", &hex(&self.0.id.span))?;
        map.end()
    }
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        write!(text, "{byte:02x}").expect("writing to a string does not fail");
    }
    text
}

/// The value of an attribute, where the AWU has it.
pub(crate) fn find<'a>(attributes: &'a [Attribute], key: &str) -> Option<&'a Value> {
    attributes.iter().find(|(name, _)| *name == key).map(|(_, value)| value)
}

/// The same, where it is a string.
pub(crate) fn find_str<'a>(attributes: &'a [Attribute], key: &str) -> Option<&'a str> {
    match find(attributes, key) {
        Some(Value::Str(text)) => Some(text),
        _ => None,
    }
}

/// The same, where it is an integer.
pub(crate) fn find_int(attributes: &[Attribute], key: &str) -> Option<i64> {
    match find(attributes, key) {
        Some(Value::Int(number)) => Some(*number),
        _ => None,
    }
}

/// The same, where it is a double.
pub(crate) fn find_double(attributes: &[Attribute], key: &str) -> Option<f64> {
    match find(attributes, key) {
        Some(Value::Double(number)) => Some(*number),
        _ => None,
    }
}

/// `text` without what a terminal would obey, and at most `width` characters long.
pub(crate) fn plain(text: &str, width: usize) -> String {
    let mut shown: String =
        text.chars().take(width).map(|c| if foreign::acts(c) { '\u{fffd}' } else { c }).collect();
    if text.chars().nth(width).is_some() {
        shown.pop();
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests;
