//! Pairs of a JSON text still provable after a gap.
//!
//! If the end of the text is known, the last byte closes the outermost object. From there the text
//! can be read backwards without doubt: a string begins at the nearest earlier quote preceded by an
//! even number of backslashes. The last pairs of the outermost object are therefore known, as far
//! as whole pairs were kept. Nothing else is known.

use super::{ROOT, Reader, Scanner, Schema};

/// Maximum bytes kept of the end of a text with a gap.
pub(crate) const TAIL_LIMIT: usize = 16 << 10;

/// Keeps the last [`TAIL_LIMIT`] bytes of the input.
pub(crate) fn keep(tail: &mut Vec<u8>, bytes: &[u8]) {
    let bytes = bytes.get(bytes.len().saturating_sub(TAIL_LIMIT)..).unwrap_or(bytes);
    let excess = (tail.len() + bytes.len()).saturating_sub(TAIL_LIMIT);
    tail.drain(..excess.min(tail.len()));
    tail.extend_from_slice(bytes);
}

/// Reads the last pairs of a text; `tail` holds the end of the text.
pub(crate) fn read(tail: &[u8], schema: &'static Schema, reader: &mut impl Reader) {
    let mut scanner = Scanner::new(schema);
    for (key, value) in pairs(tail).into_iter().rev() {
        let node = schema.child(ROOT, key);
        scanner.begin_at(node);
        scanner.feed(value, reader);
        scanner.finish(reader);
    }
}

/// Returns the pairs of the outermost object, last first. Of an outermost array, takes the last
/// element.
fn pairs(text: &[u8]) -> Vec<(&[u8], &[u8])> {
    let mut found = Vec::new();
    let mut end = trim(text, text.len());
    if last(text, end) == Some(b']') {
        end = trim(text, end - 1);
    }
    if last(text, end) != Some(b'}') {
        return found;
    }
    end = trim(text, end - 1);
    while let Some((pair, before)) = pair(text, end) {
        found.push(pair);
        end = trim(text, before);
        if last(text, end) != Some(b',') {
            break;
        }
        end = trim(text, end - 1);
    }
    found
}

type Pair<'a> = (&'a [u8], &'a [u8]);

/// Returns the pair ending at `end`, and the start of the pair.
fn pair(text: &[u8], end: usize) -> Option<(Pair<'_>, usize)> {
    let value_start = value_start(text, end)?;
    let colon = trim(text, value_start);
    if last(text, colon)? != b':' {
        return None;
    }
    let key_end = trim(text, colon - 1);
    let key_start = string_start(text, key_end)?;
    // The byte before the pair must be known: otherwise the key may be longer.
    let before = trim(text, key_start);
    matches!(last(text, before), Some(b',' | b'{')).then_some(())?;
    let key = text.get(key_start + 1..key_end - 1)?;
    Some(((key, text.get(value_start..end)?), key_start))
}

fn value_start(text: &[u8], end: usize) -> Option<usize> {
    match last(text, end)? {
        b'"' => string_start(text, end),
        b'}' | b']' => container_start(text, end),
        _ => {
            let mut start = end;
            while matches!(last(text, start)?, b'0'..=b'9' | b'a'..=b'z' | b'E' | b'+' | b'-' | b'.')
            {
                start -= 1;
            }
            (start < end).then_some(start)
        }
    }
}

fn container_start(text: &[u8], end: usize) -> Option<usize> {
    let (mut at, mut depth) = (end, 0_usize);
    loop {
        match last(text, at)? {
            b'"' => at = string_start(text, at)?,
            byte => {
                at -= 1;
                match byte {
                    b'}' | b']' => depth += 1,
                    b'{' | b'[' => depth = depth.checked_sub(1)?,
                    _ => {}
                }
            }
        }
        if depth == 0 {
            return Some(at);
        }
    }
}

/// Returns the start of the string ending at `end`.
fn string_start(text: &[u8], end: usize) -> Option<usize> {
    if last(text, end)? != b'"' {
        return None;
    }
    let mut before = end - 1;
    loop {
        let at = memchr::memrchr(b'"', text.get(..before)?)?;
        let backslashes = text.get(..at)?.iter().rev().take_while(|&&byte| byte == b'\\').count();
        if backslashes == at {
            return None; // nothing but backslashes up to the hole: there may be more
        }
        if backslashes % 2 == 0 {
            return Some(at);
        }
        before = at;
    }
}

fn last(text: &[u8], end: usize) -> Option<u8> {
    text.get(end.checked_sub(1)?).copied()
}

/// Returns `end`, moved before any white space.
fn trim(text: &[u8], end: usize) -> usize {
    let head = text.get(..end).unwrap_or(text);
    head.trim_ascii_end().len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &[(&str, &str)]) {
        let found = pairs(text.as_bytes());
        let found: Vec<(String, String)> = found
            .iter()
            .map(|(key, value)| {
                (String::from_utf8_lossy(key).into(), String::from_utf8_lossy(value).into())
            })
            .collect();
        let expected: Vec<(String, String)> =
            expected.iter().map(|&(key, value)| (key.into(), value.into())).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn the_last_pairs_are_proved_from_the_end() {
        check(
            r#"st "x": 1}], "model": "a\"b", "usage": {"in": [1, "}"]} , "n":-1.5e3, "ok": true }
            "#,
            &[
                ("ok", "true"),
                ("n", "-1.5e3"),
                ("usage", r#"{"in": [1, "}"]}"#),
                ("model", r#""a\"b""#),
            ],
        );
    }

    #[test]
    fn a_quote_that_may_be_escaped_before_the_hole_proves_nothing() {
        check(r#"\\", "model": "x"}"#, &[("model", r#""x""#)]);
        check(r#"\"model": "x"}"#, &[]);
        check(r#"odel": "x"}"#, &[]);
        check(r#""model": "x"}"#, &[]);
    }

    #[test]
    fn what_does_not_end_in_an_object_proves_nothing() {
        check(r#""model": "x""#, &[]);
        check("", &[]);
        check("]", &[]);
    }
}
