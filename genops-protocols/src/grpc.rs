//! Reader of gRPC bodies ([length-prefixed messages][grpc] of protobuf), for APIs with gRPC
//! clients: wanted fields at wanted paths, by field number.
//!
//! A message is held until whole, up to [`Decoder::MESSAGE_LIMIT`]; a longer or compressed message
//! is skipped, and the skip is reported.
//!
//! [grpc]: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md

use crate::call::Texts;
use crate::facts::Facts;
use crate::json::schema::Want;

/// Wanted fields of messages: paths of field numbers.
pub(crate) type Table = &'static [(&'static [u32], Want)];

/// Splits a body into messages and reads the messages, through pieces of any size.
#[derive(Debug)]
pub(crate) struct Decoder {
    table: Table,
    held: Vec<u8>,
    /// Bytes left of a skipped message.
    skip: usize,
    skipped: bool,
    lost: bool,
}

impl Decoder {
    /// Longest message read, in bytes.
    pub(crate) const MESSAGE_LIMIT: usize = 16 << 10;
    const PREFIX: usize = 5;

    pub(crate) fn new(table: Table) -> Self {
        Self { table, held: Vec::new(), skip: 0, skipped: false, lost: false }
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        size_of::<Self>() + self.held.capacity()
    }

    /// Returns whether a message was not read.
    pub(crate) fn skipped(&self) -> bool {
        self.skipped
    }

    /// Takes a gap: only lengths mark messages, so the rest is lost.
    pub(crate) fn gap(&mut self) {
        self.held = Vec::new();
        self.lost = true;
    }

    pub(crate) fn feed(
        &mut self,
        mut bytes: &[u8],
        facts: &mut Facts,
        mut texts: Option<&mut Texts>,
    ) {
        while !bytes.is_empty() && !self.lost {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = bytes.get(skipped..).unwrap_or_default();
            let wanted = self.wanted();
            let missing = wanted.saturating_sub(self.held.len()).min(bytes.len());
            let (taken, rest) = bytes.split_at_checked(missing).unwrap_or_default();
            self.held.extend_from_slice(taken);
            bytes = rest;
            self.gathered(facts, texts.as_deref_mut());
        }
    }

    /// Returns the bytes of prefix and message together, as far as known.
    fn wanted(&self) -> usize {
        self.message_len().map_or(Self::PREFIX, |len| Self::PREFIX + len)
    }

    fn message_len(&self) -> Option<usize> {
        let length = self.held.get(1..)?.first_chunk()?;
        usize::try_from(u32::from_be_bytes(*length)).ok()
    }

    fn gathered(&mut self, facts: &mut Facts, mut texts: Option<&mut Texts>) {
        let Some(len) = self.message_len() else { return };
        let compressed = self.held.first() != Some(&0);
        if len > Self::MESSAGE_LIMIT || compressed {
            self.skip = len;
            self.skipped = true;
            self.held.clear();
        } else if self.held.len() == Self::PREFIX + len {
            let message = self.held.get(Self::PREFIX..).unwrap_or_default();
            read(message, self.table, &mut Vec::new(), facts, &mut texts);
            self.held.clear();
        }
    }
}

/// Reads a message at a path; skips unknown fields, stops at a damaged field.
fn read(
    mut message: &[u8],
    table: Table,
    path: &mut Vec<u32>,
    facts: &mut Facts,
    texts: &mut Option<&mut Texts>,
) {
    while let Some(tag) = varint(&mut message) {
        let Ok(number) = u32::try_from(tag >> 3) else { return };
        path.push(number);
        let want = table.iter().find(|(wanted, _)| *wanted == path.as_slice()).map(|it| it.1);
        let below = table
            .iter()
            .any(|(wanted, _)| wanted.len() > path.len() && wanted.starts_with(path.as_slice()));
        let more = match tag & 7 {
            0 => varint(&mut message).map(|value| {
                if let Some(Want::Keep(field)) = want {
                    facts.keep_count(field, value);
                }
            }),
            1 => skip(&mut message, 8),
            5 => skip(&mut message, 4),
            2 => varint(&mut message)
                .and_then(|len| message.split_at_checked(usize::try_from(len).ok()?))
                .map(|(value, rest)| {
                    message = rest;
                    match want {
                        Some(want) => keep(value, want, facts, texts),
                        None if below => read(value, table, path, facts, texts),
                        None => {}
                    }
                }),
            _ => None,
        };
        path.pop();
        if more.is_none() {
            return;
        }
    }
}

fn keep(value: &[u8], want: Want, facts: &mut Facts, texts: &mut Option<&mut Texts>) {
    match want {
        Want::Prose | Want::ProseAnd(_) => {
            if let Want::ProseAnd(field) = want {
                facts.keep_count(field, 1);
            }
            if let Some(texts) = texts {
                texts.begin();
                texts.push(value);
                texts.end();
            }
        }
        Want::Keep(field) if value.len() <= Facts::TEXT_LIMIT => {
            facts.keep_text(field, &String::from_utf8_lossy(value));
        }
        Want::Append(list) if value.len() <= Facts::TEXT_LIMIT => {
            facts.append(list, &String::from_utf8_lossy(value));
        }
        _ => {}
    }
}

fn skip(message: &mut &[u8], len: usize) -> Option<()> {
    *message = message.get(len..)?;
    Some(())
}

fn varint(message: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = message.split_first()?;
        *message = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::{Field, List};

    const TABLE: Table = &[
        (&[1], Want::Keep(Field::Model)),
        (&[2, 1], Want::Prose),
        (&[2, 3], Want::Append(List::Names)),
        (&[4, 1], Want::Keep(Field::PromptCount)),
    ];

    #[test]
    fn wanted_fields_are_read_however_the_body_is_cut() {
        let mut body = vec![0, 0, 0, 0, 22];
        body.extend_from_slice(b"\x0a\x03abc\x12\x09\x0a\x02hi\x1a\x03add\x22\x04\x08\xac\x02\x10");
        let mut skipped = vec![1, 0, 0, 0, 3, 9, 9, 9];
        skipped.extend_from_slice(&body);
        assert_eq!(body.len(), 27);
        for at in 0..=skipped.len() {
            let (mut decoder, mut facts) = (Decoder::new(TABLE), Facts::default());
            let mut texts = Texts::new(100);
            let (head, tail) = skipped.split_at(at);
            decoder.feed(head, &mut facts, Some(&mut texts));
            decoder.feed(tail, &mut facts, Some(&mut texts));
            assert_eq!(facts.text(Field::Model), Some("abc"), "cut at byte {at}");
            assert_eq!(facts.count(Field::PromptCount), Some(300));
            assert_eq!(facts.list(List::Names).collect::<Vec<_>>(), ["add"]);
            assert_eq!(texts.iter().collect::<Vec<_>>(), ["hi"]);
            assert!(decoder.skipped());
        }
    }
}
