//! Count of pronouns and similar words in documents and doc comments.
//!
//! Each counted word sends the reader back to look for a noun. Code between backticks does not
//! count.

use std::collections::HashSet;

use super::{Source, is_kind};

/// Counted words.
const COUNTED: &[&str] = &[
    "it", "its", "they", "them", "their", "this", "that", "these", "those", "what", "which", "who",
    "whose", "whoever", "one", "such",
];

/// Kind of text, with the bound on counted words.
struct Measure {
    name: &'static str,
    /// Returns the counted part of a source.
    text: fn(&Source) -> Option<String>,
    /// Counted words among 10,000 at commit a33c41e.
    base: usize,
    /// Maximum of counted words among 10,000 today. Lower the bound after a rewrite, and never
    /// raise a bound.
    bound: usize,
}

/// The goal of each kind is a third of the base.
const MEASURES: &[Measure] = &[
    Measure { name: "documents", text: document, base: 941, bound: 120 },
    Measure { name: "doc comments", text: doc_comments, base: 1165, bound: 100 },
];

/// Prints a figure for each kind of text; returns a sentence for each kind above the bound.
pub(super) fn check(sources: &[Source]) -> Vec<String> {
    let mut complaints = Vec::new();
    for Measure { name, text, base, bound } in MEASURES {
        let figure = among_ten_thousand(sources.iter().filter_map(text));
        let [now, base, most] = [figure, *base, *bound].map(per_mille);
        eprintln!("        {name}: {now} pronouns in 1,000 words (bound {most}, base {base})");
        if figure > *bound {
            complaints.push(format!(
                "{name} have {now} of `it`, `that`, `what`, .. in 1,000 words, and {most} are allowed: \
                 name the actor and the object"
            ));
        }
    }
    complaints
}

/// Returns true for documents for readers: in the repository's root and in `docs`, except the list
/// of past changes.
pub(super) fn is_document(path: &str) -> bool {
    let name = path.strip_prefix("docs/").unwrap_or(path);
    is_kind(name, "md") && !name.contains('/') && name != "CHANGELOG.md"
}

fn document(source: &Source) -> Option<String> {
    is_document(&source.path).then(|| source.text.clone())
}

fn doc_comments(source: &Source) -> Option<String> {
    if !is_kind(&source.path, "rs") {
        return None;
    }
    let lines = source.text.lines().map(str::trim_start);
    let comments = lines
        .filter_map(|line| line.strip_prefix("///").or_else(|| line.strip_prefix("//!")))
        .collect::<Vec<_>>();
    Some(comments.join("\n"))
}

fn among_ten_thousand(texts: impl Iterator<Item = String>) -> usize {
    let counted: HashSet<&str> = COUNTED.iter().copied().collect();
    let (mut all, mut hits) = (0_usize, 0_usize);
    for text in texts {
        let prose = prose(&text);
        for word in words(&prose) {
            all += 1;
            hits += usize::from(counted.contains(word.to_ascii_lowercase().as_str()));
        }
    }
    hits * 10_000 / all.max(1)
}

/// Returns the text without code: neither fenced blocks nor text between backticks on a line.
fn prose(text: &str) -> String {
    let mut prose = String::new();
    let mut in_code = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        } else if !in_code {
            prose.extend(line.split('`').step_by(2));
            prose.push('\n');
        }
    }
    prose
}

/// Returns the runs of letters, digits, hyphens and apostrophes starting with a letter.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|letter: char| !letter.is_ascii_alphanumeric() && !"_-'".contains(letter))
        .filter(|word| word.starts_with(|letter: char| letter.is_ascii_alphabetic()))
}

fn per_mille(among_ten_thousand: usize) -> String {
    format!("{}.{}", among_ten_thousand / 10, among_ten_thousand % 10)
}

#[cfg(test)]
mod tests {
    use super::{among_ten_thousand, is_document, per_mille};

    #[track_caller]
    fn check(text: &str, expected: &str) {
        assert_eq!(per_mille(among_ten_thousand(std::iter::once(text.to_owned()))), expected);
    }

    #[test]
    fn code_does_not_count() {
        check("It holds the packet.", "250.0");
        check("`it` holds the packet of `this` socket", "0.0");
        check("The agent:\n```\nwhat is this\n```\nit runs", "250.0");
        check("the agent's units, 14 of them", "200.0");
        check("", "0.0");
    }

    #[test]
    fn documents_are_those_for_readers() {
        assert!(is_document("README.md") && is_document("docs/limits.md"));
        assert!(!is_document("CHANGELOG.md") && !is_document("tests/captures/README.md"));
    }
}
