//! Attribute names and event schemas as data (spec §7 and §8, OpenTelemetry's GenAI conventions).

/// The specification's version, on every unit.
pub const SPEC_VERSION: &str = "0.1.0";

/// An attribute's value, with its OpenTelemetry type.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A string.
    Str(String),
    /// An integer.
    Int(i64),
    /// A double.
    Double(f64),
    /// A truth value.
    Bool(bool),
    /// A list of strings.
    StrList(Vec<String>),
}

/// An attribute.
pub type Attribute = (&'static str, Value);

/// A span event.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Its name.
    pub name: &'static str,
    /// When, in nanoseconds since 1970.
    pub unix_ns: u64,
    /// What it says.
    pub attributes: Vec<Attribute>,
}
