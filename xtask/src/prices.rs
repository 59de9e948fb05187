//! Renewal of the compiled-in prices, with a report of the changes.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Context as _;

use crate::{steps, workspace};

/// Takes the newest data from the package registry, and prints the changes.
#[expect(clippy::print_stdout, reason = "the result of the command")]
pub(crate) fn renew() -> anyhow::Result<()> {
    let path = table();
    let read = || std::fs::read_to_string(&path).with_context(|| format!("{}", path.display()));
    let before = read()?;
    steps::run(
        "take the newest genai-prices",
        workspace::cargo().args(["update", "--package", "genai-prices"]),
    )?;
    steps::run(
        "compile the table",
        workspace::cargo().env("UPDATE_PRICES", "1").args([
            "test",
            "--package",
            "genops-governance",
            "--test",
            "price_table",
        ]),
    )?;
    let changes = changes(&before, &read()?);
    for line in &changes {
        println!("{line}");
    }
    println!("{} changes; review and commit {} with Cargo.lock", changes.len(), path.display());
    Ok(())
}

fn table() -> PathBuf {
    workspace::root().join("genops-governance/data/prices.tsv")
}

/// Returns the differences, a line each: `+ PROVIDER RULE`, `- PROVIDER RULE`, or both prices.
fn changes(before: &str, after: &str) -> Vec<String> {
    let (before, after) = (models(before), models(after));
    let mut changes = Vec::new();
    for (model, price) in &after {
        match before.get(model) {
            None => changes.push(format!("+ {model}: {price}")),
            Some(old) if old != price => changes.push(format!("  {model}: {old} -> {price}")),
            Some(_) => {}
        }
    }
    let gone = before.keys().filter(|model| !after.contains_key(*model));
    changes.extend(gone.map(|model| format!("- {model}")));
    changes
}

/// Returns the prices of each model in pico-USD, by provider and rule.
fn models(table: &str) -> BTreeMap<String, String> {
    let mut provider = "";
    let mut models = BTreeMap::new();
    for line in table.lines() {
        let (head, rest) = line.split_once('\t').unwrap_or((line, ""));
        match head.strip_prefix('@') {
            Some(name) => provider = name,
            None => {
                models.insert(format!("{provider} {head}"), rest.replace('\t', " | "));
            }
        }
    }
    models
}

#[cfg(test)]
mod tests {
    use super::changes;

    #[test]
    fn what_came_went_and_changed_is_told() {
        let before = "@acme\t\n=a\t0\t0 1,2\n=b\t0\t0 3\n";
        let after = "@acme\t\n=a\t0\t0 1,9\n=c\t0\t0 3\n";
        let expected = ["  acme =a: 0 | 0 1,2 -> 0 | 0 1,9", "+ acme =c: 0 | 0 3", "- acme =b"];
        assert_eq!(changes(before, after), expected);
    }
}
