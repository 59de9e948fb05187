//! OTLP/JSON to units, limited to the parts needed by the rules.

use serde_json::Value as Json;

use super::Unreadable;

/// Attribute value with type.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Text(String),
    Int(i64),
    Double(f64),
    Bool(bool),
    /// A list of strings.
    List(Vec<String>),
    Other,
}

impl Value {
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) => "string",
            Self::Int(_) => "int",
            Self::Double(_) => "double",
            Self::Bool(_) => "bool",
            Self::List(_) | Self::Other => "list or map",
        }
    }
}

/// Attributes in the order of the export.
#[derive(Clone, Debug, Default)]
pub(super) struct Attributes(Vec<(String, Value)>);

impl Attributes {
    pub(super) fn get(&self, name: &str) -> Option<&Value> {
        self.0.iter().find(|(it, _)| it == name).map(|(_, value)| value)
    }

    /// Returns the names occurring more than once (OpenTelemetry: keys MUST be unique).
    pub(super) fn repeated(&self) -> Vec<&str> {
        let before = |at: usize, name: &str| self.0.iter().take(at).any(|(it, _)| it == name);
        let all = self.0.iter().enumerate();
        all.filter(|(at, (name, _))| before(*at, name))
            .map(|(_, (name, _))| name.as_str())
            .collect()
    }

    pub(super) fn text(&self, name: &str) -> Option<&str> {
        match self.get(name)? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Returns the texts of a list attribute.
    pub(super) fn list(&self, name: &str) -> &[String] {
        match self.get(name) {
            Some(Value::List(texts)) => texts,
            _ => &[],
        }
    }

    pub(super) fn double(&self, name: &str) -> Option<f64> {
        match self.get(name)? {
            Value::Double(number) => Some(*number),
            _ => None,
        }
    }

    pub(super) fn int(&self, name: &str) -> Option<i64> {
        match self.get(name)? {
            Value::Int(number) => Some(*number),
            _ => None,
        }
    }

    pub(super) fn is_true(&self, name: &str) -> bool {
        self.get(name) == Some(&Value::Bool(true))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value))
    }
}

/// A span event.
#[derive(Clone, Debug)]
pub(super) struct Event {
    pub(super) name: String,
    /// Nanoseconds since 1970; 0 if absent.
    pub(super) unix_ns: u64,
    pub(super) attributes: Attributes,
}

/// A span with `genops.` attributes.
#[derive(Clone, Debug)]
pub(super) struct Unit {
    /// `TRACE/SPAN`.
    pub(super) name: String,
    pub(super) trace: String,
    pub(super) span: String,
    pub(super) end_unix_ns: u64,
    pub(super) attributes: Attributes,
    pub(super) events: Vec<Event>,
}

impl Unit {
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.attributes.text(name)
    }

    /// Returns the events named `name`.
    pub(super) fn events<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Event> {
        self.events.iter().filter(move |it| it.name == name)
    }
}

/// Reads a document, or lines of documents.
pub(super) fn read(json: &str) -> Result<Vec<Unit>, Unreadable> {
    let mut units = Vec::new();
    let mut seen = false;
    let documents = serde_json::Deserializer::from_str(json).into_iter::<Json>();
    for document in documents {
        let document = document.map_err(|error| Unreadable::Json {
            line: error.line(),
            column: error.column(),
            why: error.to_string().split(" at line ").next().unwrap_or_default().to_owned(),
        })?;
        let spans = document.get("resourceSpans").and_then(Json::as_array);
        seen |= spans.is_some();
        for resource in spans.into_iter().flatten() {
            read_resource(resource, &mut units);
        }
    }
    if seen { Ok(units) } else { Err(Unreadable::NoSpans) }
}

fn read_resource(resource: &Json, units: &mut Vec<Unit>) {
    let shared = attributes(resource.get("resource"));
    let scopes = resource.get("scopeSpans").and_then(Json::as_array);
    for scope in scopes.into_iter().flatten() {
        let spans = scope.get("spans").and_then(Json::as_array);
        for span in spans.into_iter().flatten() {
            let mut own = attributes(Some(span));
            let governed = |it: &Attributes| it.iter().any(|(name, _)| name.starts_with("genops."));
            if !governed(&own) {
                continue;
            }
            // Attributes of a resource hold for the resource's spans, unless a span overrides the
            // attribute.
            let inherited = shared.iter().filter(|(name, _)| own.get(name).is_none());
            let inherited: Vec<(String, Value)> =
                inherited.map(|(name, value)| (name.to_owned(), value.clone())).collect();
            own.0.extend(inherited);
            units.push(unit(span, own));
        }
    }
}

fn unit(span: &Json, attributes: Attributes) -> Unit {
    let text = |name: &str| span.get(name).and_then(Json::as_str).unwrap_or_default().to_owned();
    let (trace, id) = (text("traceId"), text("spanId"));
    let events = span.get("events").and_then(Json::as_array);
    let event = |it: &Json| Event {
        name: it.get("name").and_then(Json::as_str).unwrap_or_default().to_owned(),
        unix_ns: nanoseconds(it, "timeUnixNano"),
        attributes: self::attributes(Some(it)),
    };
    Unit {
        name: format!("{trace}/{id}"),
        trace,
        span: id,
        end_unix_ns: nanoseconds(span, "endTimeUnixNano"),
        attributes,
        events: events.into_iter().flatten().map(event).collect(),
    }
}

/// Returns nanoseconds. Numbers of 64 bits are texts in OTLP/JSON; plain numbers are accepted too.
fn nanoseconds(of: &Json, name: &str) -> u64 {
    match of.get(name) {
        Some(Json::String(text)) => text.parse().unwrap_or(0),
        Some(number) => number.as_u64().unwrap_or(0),
        None => 0,
    }
}

fn attributes(of: Option<&Json>) -> Attributes {
    let list = of.and_then(|it| it.get("attributes")).and_then(Json::as_array);
    let pair = |it: &Json| {
        let name = it.get("key")?.as_str()?.to_owned();
        Some((name, it.get("value").map_or(Value::Other, value)))
    };
    Attributes(list.into_iter().flatten().filter_map(pair).collect())
}

fn value(json: &Json) -> Value {
    let Some((kind, value)) = json.as_object().and_then(|it| it.iter().next()) else {
        return Value::Other;
    };
    let found = match (kind.as_str(), value) {
        ("stringValue", Json::String(text)) => Some(Value::Text(text.clone())),
        ("boolValue", Json::Bool(truth)) => Some(Value::Bool(*truth)),
        ("intValue", Json::String(text)) => text.parse().ok().map(Value::Int),
        ("intValue", number) => number.as_i64().map(Value::Int),
        ("doubleValue", number) => number.as_f64().map(Value::Double),
        ("arrayValue", list) => list.get("values").and_then(Json::as_array).map(|it| texts(it)),
        _ => None,
    };
    found.unwrap_or(Value::Other)
}

/// Returns the strings of a list.
fn texts(list: &[Json]) -> Value {
    let text = |it: &Json| Some(it.get("stringValue")?.as_str()?.to_owned());
    Value::List(list.iter().filter_map(text).collect())
}
