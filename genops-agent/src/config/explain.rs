//! Turns the YAML reader's refusals into sentences with the key and the fix.
//!
//! An unknown key names the nearest known key. A message quotes only keys and enumeration values of
//! the file: any other value might be a secret.

use serde::de::DeserializeOwned;
use serde_saphyr::{Error, MessageFormatter as _, UserMessageFormatter};

/// A refusal and the line, counted from 1; 0: no particular line.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) line: u64,
    pub(super) message: String,
}

/// Reads a single YAML document; an empty document is as a document without keys.
pub(super) fn parse<T: DeserializeOwned + Default>(text: &str) -> Result<T, Fault> {
    let parsed: Result<Option<T>, Error> = serde_saphyr::from_str(text);
    parsed.map(Option::unwrap_or_default).map_err(|error| explain(text, &error))
}

fn explain(text: &str, error: &Error) -> Fault {
    let error = error.without_snippet();
    let (line, column) =
        error.location().map_or((0, 0), |location| (location.line(), location.column()));
    let key = key_at(text, line, column);
    let about = |message: String| match &key {
        Some(key) => format!("`{key}`: {message}"),
        None => message,
    };
    let message = match error {
        Error::SerdeUnknownField { field, expected, .. } => unknown_key(field, expected),
        Error::SerdeUnknownVariant { variant, expected, .. } => {
            let known = expected.join(", ");
            let nearest = nearest(variant, expected).unwrap_or_default();
            about(format!("`{variant}` is not one of {known}; did you mean `{nearest}`?"))
        }
        Error::SerdeMissingField { field, .. } => {
            format!("`{field}` is missing here; add `{field}: ..`")
        }
        Error::InvalidScalar { ty, .. } => about(format!("expected {}", wanted(ty))),
        Error::SerdeInvalidType { expected, .. } | Error::SerdeInvalidValue { expected, .. } => {
            about(format!("expected {}", wanted(expected)))
        }
        Error::Unexpected { expected, .. } => about(format!("expected {}", wanted(expected))),
        Error::ExternallyTaggedEnumExpectedScalarOrMapping { .. } => {
            about("expected one word".to_owned())
        }
        Error::NullIntoString { .. } => {
            about("expected text; remove the key or give it a value".to_owned())
        }
        Error::InvalidBooleanStrict { .. } => about("expected true or false".to_owned()),
        Error::DuplicateMappingKey { key: Some(key), .. } => {
            format!("`{key}` stands here twice; remove one")
        }
        Error::MultipleDocuments { .. } => {
            "a second document begins here; the file must hold one, remove the `---`".to_owned()
        }
        Error::Eof { .. } => "the file ends in the middle of something".to_owned(),
        other => UserMessageFormatter.format_message(other).into_owned(),
    };
    Fault { line, message }
}

/// "`mdoe` is not a key here; did you mean `mode`?"
fn unknown_key(field: &str, known: &[&str]) -> String {
    match nearest(field, known) {
        Some(nearest) if strsim::jaro_winkler(field, nearest) > 0.75 => {
            format!("`{field}` is not a key here; did you mean `{nearest}`?")
        }
        Some(nearest) => {
            let all = known.join(", ");
            format!("`{field}` is not a key here; the nearest is `{nearest}`, known are {all}")
        }
        None => format!("`{field}` is not a key here"),
    }
}

/// Returns the known word most similar to `word`.
fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let unlike = |candidate: &str| 1.0 - strsim::jaro_winkler(word, candidate);
    let edits = |candidate: &str| strsim::damerau_levenshtein(word, candidate);
    known
        .iter()
        .copied()
        .min_by(|a, b| unlike(a).total_cmp(&unlike(b)).then_with(|| edits(a).cmp(&edits(b))))
}

/// Describes the expected value in the file's terms.
fn wanted(kind: &str) -> String {
    match kind {
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number, 0 or more".to_owned(),
        "i8" | "i16" | "i32" | "i64" => "a whole number".to_owned(),
        "f32" | "f64" | "floating point" => "a number".to_owned(),
        "bool" | "boolean" => "true or false".to_owned(),
        "sequence start" => "a list: `- ..` on lines of their own, or [..]".to_owned(),
        "mapping start" => "keys and values: `key: value`".to_owned(),
        "string scalar" | "scalar" => "one value".to_owned(),
        other => other
            .strip_prefix("struct ")
            .map_or_else(|| other.to_owned(), |_| "keys and values: `key: value`".to_owned()),
    }
}

/// Returns the key of the value at a place: the last `word:` before on the same line, or the
/// `word:` at the end of the nearest non-blank line before.
fn key_at(text: &str, line: u64, column: u64) -> Option<String> {
    let index = usize::try_from(line).ok()?.checked_sub(1)?;
    let column = usize::try_from(column).ok()?;
    let here: String = text.lines().nth(index)?.chars().take(column.saturating_sub(1)).collect();
    last_key(&here).or_else(|| {
        let mut before = text.lines().take(index).collect::<Vec<_>>();
        while let Some(line) = before.pop() {
            if let Some(parent) = line.trim_end().strip_suffix(':') {
                return last_key(&format!("{parent}:"));
            }
            if !line.trim().is_empty() {
                return None;
            }
        }
        None
    })
}

fn last_key(text: &str) -> Option<String> {
    let (before, _) = text.rsplit_once(':')?;
    let is_key = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let start = before.rfind(|c: char| !is_key(c)).map_or(0, |at| at + 1);
    let key = before.get(start..).unwrap_or_default();
    (!key.is_empty()).then(|| key.to_owned())
}

/// Returns the line of `key` in the entry beginning at `line` and ending before `next`.
pub(super) fn line_of_key(text: &str, line: u64, next: Option<u64>, key: &str) -> Option<u64> {
    let from = usize::try_from(line.checked_sub(1)?).ok()?;
    let count = next.map_or(usize::MAX, |next| {
        usize::try_from(next.saturating_sub(line)).unwrap_or(usize::MAX).max(1)
    });
    let has_key = |text: &str| {
        text.match_indices(':')
            .any(|(at, _)| text.get(..=at).and_then(last_key).is_some_and(|found| found == key))
    };
    let found = text.lines().skip(from).take(count).position(has_key)?;
    Some(line + found as u64)
}
