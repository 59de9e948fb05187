//! The part of a configuration used for decisions, as bytes for evidence: enough to decide again.
//!
//! The format is JSON: the sections as the file has them, and the named Cedar files. The sections
//! on telemetry, evidence and capture are left out, and with them all possible secrets. If JSON
//! would change the meaning (`user: 0777` is a text), the sections are kept as YAML.

use std::path::Path;

use genops_governance::{PolicyText, PriceTable, Sections, Settings};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{File, LoadError, Sources, explain};

/// Sections without effect on decisions.
const APART: [&str; 3] = ["telemetry", "evidence", "capture"];

#[derive(Serialize, Deserialize)]
struct Recipe {
    /// Version of the agent, which supplies the built-in providers and prices.
    agent: String,
    config: Value,
    /// Name and text of each Cedar file.
    policy_files: Vec<(String, String)>,
    /// The price file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    price_table: Option<PriceTable>,
}

/// Writes the recipe of a file with these sections. `None` if reading the recipe would give other
/// sections.
pub(super) fn write(text: &str, sections: &Sections) -> Option<Vec<u8>> {
    let mut config: Value = explain::parse(text).ok()?;
    if let Some(keys) = config.as_object_mut() {
        keys.retain(|key, _| !is_apart(key));
    }
    [config, Value::String(as_written(text))].into_iter().find_map(|config| {
        let files = sections.policy_files.iter();
        let recipe = Recipe {
            agent: env!("CARGO_PKG_VERSION").to_owned(),
            config,
            policy_files: files.map(|file| (file.name.clone(), file.text.clone())).collect(),
            price_table: sections.price_table.clone(),
        };
        let bytes = serde_json::to_vec(&recipe).ok()?;
        let again = sections_of(&bytes).ok()?;
        (again == *sections).then_some(bytes)
    })
}

/// Whether a section is left out of the recipe.
fn is_apart(key: &str) -> bool {
    APART.contains(&key) || key == "policy_files"
}

/// Returns the lines of the deciding sections, without comments. A file of one mapping in braces
/// gives no lines; the comparison in `write` then fails.
fn as_written(text: &str) -> String {
    let mut apart = true;
    let mut kept = String::new();
    for line in text.lines() {
        let begins = line.starts_with(|first: char| first.is_alphanumeric() || first == '_');
        if begins {
            apart = line.split_once(':').is_none_or(|(key, _)| is_apart(key.trim()));
        }
        if !apart && !line.trim_start().starts_with('#') {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    kept
}

/// Reads a recipe: the settings, and the version of the agent that wrote the recipe.
///
/// # Errors
///
/// A sentence, if the bytes are no recipe or the present version refuses the content.
pub(crate) fn read(bytes: &[u8]) -> Result<(Settings, String), String> {
    let sections = sections_of(bytes)?;
    let settings = Settings::compile(&sections).map_err(|error| error.to_string())?;
    let recipe: Recipe = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    Ok((settings, recipe.agent))
}

fn sections_of(bytes: &[u8]) -> Result<Sections, String> {
    let Recipe { agent: _, config, policy_files, price_table } =
        serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let text = match config {
        Value::Null => String::new(),
        Value::String(as_written) => as_written,
        // JSON is YAML.
        config => config.to_string(),
    };
    let file: File = explain::parse(&text).map_err(|fault| fault.message)?;
    let (_, sections) = file
        .split(Path::new(""), &Sources::default())
        .map_err(|error: LoadError| error.to_string())?;
    let file = |(name, text)| PolicyText { name, text };
    let policy_files = policy_files.into_iter().map(file).collect();
    Ok(Sections { policy_files, price_table, ..sections })
}
