//! Maximum answer of each model, in tokens: the possible usage of a request without a limit.
//!
//! `data/output_limits.tsv` is made from models.dev by `data/output_limits.py`: for a model, the
//! largest value documented by any provider; for a provider, the largest value documented for any
//! model. Names are compared without place, vendor, version and date, so a snapshot counts as the
//! model. No value is guessed downwards: an unknown limit is as large as possible.

use std::collections::HashMap;
use std::sync::LazyLock;

/// Table with a line for each model, and a line with `@` for each provider.
pub(super) const TABLE: &str = include_str!("../../data/output_limits.tsv");

static LIMITS: LazyLock<HashMap<&'static str, u64>> = LazyLock::new(|| {
    let lines = TABLE.lines().filter_map(|line| line.split_once('\t'));
    lines.filter_map(|(name, limit)| Some((name, limit.parse().ok()?))).collect()
});

static LARGEST: LazyLock<u64> = LazyLock::new(|| LIMITS.values().copied().max().unwrap_or(0));

/// Returns the documented limit of a model.
pub(super) fn of_model(model: &str) -> Option<u64> {
    LIMITS.get(bare(&model.to_lowercase())).copied()
}

/// Returns the largest limit of a provider's models; for a provider missing in the table, the
/// largest of all models.
pub(super) fn of_provider(provider: &str) -> u64 {
    LIMITS.get(format!("@{provider}").as_str()).copied().unwrap_or(*LARGEST)
}

/// Returns the largest limit of the models with names starting with `start`.
pub(super) fn of_family(start: &str) -> Option<u64> {
    let family = LIMITS.iter().filter(|(name, _)| name.starts_with(start));
    family.map(|(_, limit)| *limit).max()
}

/// Returns the name without the prefix for the place of computation; `None` without a prefix.
pub(super) fn without_place(name: &str) -> Option<&str> {
    PLACES.iter().find_map(|it| name.strip_prefix(it))
}

/// Prefixes of Bedrock model names for the place of computation, in front of the vendor.
const PLACES: [&str; 9] = ["global.", "us.", "eu.", "apac.", "au.", "jp.", "us-gov.", "ca.", "sa."];

/// Returns the bare model name: `us.anthropic.claude-haiku-4-5-20251001-v1:0` and
/// `anthropic/claude-haiku-4-5` are `claude-haiku-4-5`.
pub(super) fn bare(model: &str) -> &str {
    let name = model.rsplit('/').next().unwrap_or(model);
    let name = name.split('@').next().unwrap_or(name);
    let name = PLACES.iter().find_map(|it| name.strip_prefix(it)).unwrap_or(name);
    let name = without_vendor(name);
    let mut name = name.split(':').next().unwrap_or(name);
    loop {
        let version = without_end(name, |it| it.strip_prefix('v').is_some_and(is_number));
        let shorter = without_date(version);
        if shorter == name {
            return name;
        }
        name = shorter;
    }
}

/// Removes the vendor of `vendor.model`; in `qwen2.5`, the part after the point is a version.
fn without_vendor(name: &str) -> &str {
    let Some((vendor, model)) = name.split_once('.') else { return name };
    let word = vendor.trim_end_matches(|it: char| it.is_ascii_digit());
    let is_vendor = !word.is_empty() && word.bytes().all(|it| it.is_ascii_lowercase());
    let is_model = model.starts_with(|it: char| it.is_ascii_lowercase());
    if is_vendor && is_model { model } else { name }
}

/// Removes an ending like `-latest`, `-2024-08-06`, `-20251001` or `-0613`.
fn without_date(name: &str) -> &str {
    let digits = |it: &str| is_number(it) && (it.len() == 4 || it.len() == 8);
    let shorter = without_end(name, |it| it == "latest" || digits(it));
    if shorter != name {
        return shorter;
    }
    let dated = name.len().checked_sub(11).and_then(|at| name.split_at_checked(at));
    let dated = dated.filter(|(_, date)| {
        let shape = date.bytes().enumerate();
        shape.into_iter().all(|(at, it)| match at {
            0 | 5 | 8 => it == b'-',
            _ => it.is_ascii_digit(),
        })
    });
    dated.map_or(name, |(before, _)| before)
}

fn without_end(name: &str, superfluous: impl Fn(&str) -> bool) -> &str {
    match name.rsplit_once('-') {
        Some((before, end)) if superfluous(end) => before,
        _ => name,
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|it| it.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_its_model() {
        let names = [
            "us.anthropic.claude-haiku-4-5-20251001-v1:0",
            "anthropic/claude-haiku-4-5",
            "claude-haiku-4-5@20251001",
            "accounts/x/models/claude-haiku-4-5-latest",
            "Claude-Haiku-4-5",
        ];
        assert_eq!(names.map(of_model), [Some(64_000); 5]);
        let plain = ["gpt-4o-mini-2024-07-18", "gpt-4-0613", "qwen2.5-coder", "gpt-4.1", "o1", ""];
        let bare = plain.map(bare);
        assert_eq!(bare, ["gpt-4o-mini", "gpt-4", "qwen2.5-coder", "gpt-4.1", "o1", ""]);
    }

    #[test]
    fn the_table_is_in_order_and_its_names_are_bare() {
        let lines = TABLE.lines().skip(1);
        let (mut before, mut count) = ("", 0);
        for (name, limit) in lines.filter_map(|it| it.split_once('\t')) {
            assert!(before < name, "{before}, {name}");
            assert!(limit.parse::<u64>().is_ok_and(|it| it > 1), "{name}: {limit}");
            assert!(name.starts_with('@') || bare(name) == name, "{name}: {}", bare(name));
            before = name;
            count += 1;
        }
        assert_eq!((count, LIMITS.len()), (TABLE.lines().count() - 1, count));
    }

    #[test]
    fn no_model_is_above_its_provider() {
        let provider = |it: &str| of_provider(it);
        assert!(of_model("gpt-5-pro") <= Some(provider("openai")));
        assert!(of_model("claude-opus-5") <= Some(provider("anthropic")));
        assert_eq!(provider("somebody"), *LARGEST);
    }
}
