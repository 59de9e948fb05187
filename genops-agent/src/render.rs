//! Text forms of an AWU: a JSON line, a line of the live table, or an OTLP/JSON document.
//!
//! Only spelling happens here. `genops-governance` defines the attributes and their names; a line
//! has the attributes of [`Awu::attributes`], in the same order, and no others. Text written by a
//! peer (a model's name, say) reaches a terminal without control characters.

use std::io::{self, IsTerminal as _, Write};

use crate::foreign;
use genops_governance::{Attribute, Awu, Value, hex};
use serde::ser::{SerializeMap as _, Serializer};

mod otlp;
mod printer;
mod table;

pub(crate) use printer::Printer;

/// Output format of AWUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Output {
    /// A line of a table for people.
    Table,
    /// A JSON object per line; keys are attribute names.
    Json,
    /// OTLP/JSON, a request with a single span per line, as sent by an exporter.
    Otlp,
    /// No output.
    None,
}

/// Renderer of AWUs.
#[derive(Debug)]
pub(crate) struct Renderer {
    output: Output,
    colour: bool,
    /// Whether the table's head was written.
    begun: bool,
}

impl Renderer {
    /// Returns a renderer for the standard output: colour only on a terminal, and only without
    /// `NO_COLOR`.
    pub(crate) fn stdout(output: Output) -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self::new(output, wanted && io::stdout().is_terminal())
    }

    /// Returns a renderer with or without colour.
    pub(crate) fn new(output: Output, colour: bool) -> Self {
        Self { output, colour, begun: false }
    }

    /// Appends the text of an AWU to `out`, line end included.
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

    /// Writes an AWU.
    pub(crate) fn write(&mut self, awu: &Awu, to: &mut dyn Write) -> io::Result<()> {
        let mut text = String::with_capacity(1 << 10);
        self.render(awu, &mut text);
        to.write_all(text.as_bytes())
    }
}

/// Appends the JSON line: the attributes, then the identity of the span.
pub(crate) fn json(awu: &Awu, out: &mut String) {
    let line = serde_json::to_string(&Line(awu));
    debug_assert!(line.is_ok(), "writing to memory does not fail, and every key is a string");
    out.push_str(&line.unwrap_or_default());
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
                // JSON has no NaN and no infinity; an unknown value is absent.
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

/// Returns the value of an attribute, if present.
pub(crate) fn find<'a>(attributes: &'a [Attribute], key: &str) -> Option<&'a Value> {
    attributes.iter().find(|(name, _)| *name == key).map(|(_, value)| value)
}

/// Returns the value of an attribute, if present and a string.
pub(crate) fn find_str<'a>(attributes: &'a [Attribute], key: &str) -> Option<&'a str> {
    match find(attributes, key) {
        Some(Value::Str(text)) => Some(text),
        _ => None,
    }
}

/// Returns the value of an attribute, if present and an integer.
pub(crate) fn find_int(attributes: &[Attribute], key: &str) -> Option<i64> {
    match find(attributes, key) {
        Some(Value::Int(number)) => Some(*number),
        _ => None,
    }
}

/// Returns the value of an attribute, if present and a double.
pub(crate) fn find_double(attributes: &[Attribute], key: &str) -> Option<f64> {
    match find(attributes, key) {
        Some(Value::Double(number)) => Some(*number),
        _ => None,
    }
}

/// Returns `text` without characters acting on a terminal, and at most `width` characters long.
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
