//! The part of a configuration that decides, as bytes for evidence: enough to decide again.
//!
//! JSON: the sections as the file has them, and the Cedar files that it names. What concerns
//! telemetry, evidence and capture is left out, and with it everything that may be secret.

use std::path::Path;

use genops_governance::{PolicyText, Sections, Settings};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{File, LoadError, explain};

/// Sections that decide nothing.
const APART: [&str; 3] = ["telemetry", "evidence", "capture"];

#[derive(Serialize, Deserialize)]
struct Recipe {
    /// Version of the agent: it brings the built-in providers and prices.
    agent: String,
    config: Value,
    /// Name and text of each Cedar file.
    policy_files: Vec<(String, String)>,
}

/// The recipe of a file with these sections. `None` where it would not come to the same again.
pub(super) fn write(text: &str, sections: &Sections) -> Option<Vec<u8>> {
    let mut config: Value = explain::parse(text).ok()?;
    if let Some(keys) = config.as_object_mut() {
        keys.retain(|key, _| !APART.contains(&key.as_str()));
        keys.remove("policy_files");
    }
    let files = sections.policy_files.iter();
    let recipe = Recipe {
        agent: env!("CARGO_PKG_VERSION").to_owned(),
        config,
        policy_files: files.map(|file| (file.name.clone(), file.text.clone())).collect(),
    };
    let bytes = serde_json::to_vec(&recipe).ok()?;
    let again = sections_of(&bytes).ok()?;
    (format!("{again:?}") == format!("{sections:?}")).then_some(bytes)
}

/// What a recipe comes to: the settings, and the version of the agent that wrote it.
///
/// # Errors
///
/// A sentence, where it is none, or this version does not accept it any more.
pub(crate) fn read(bytes: &[u8]) -> Result<(Settings, String), String> {
    let sections = sections_of(bytes)?;
    let settings = Settings::compile(&sections).map_err(|error| error.to_string())?;
    let recipe: Recipe = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    Ok((settings, recipe.agent))
}

fn sections_of(bytes: &[u8]) -> Result<Sections, String> {
    let Recipe { agent: _, config, policy_files } =
        serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    // JSON is YAML.
    let text = if config.is_null() { String::new() } else { config.to_string() };
    let file: File = explain::parse(&text).map_err(|fault| fault.message)?;
    let (_, sections) = file.split(Path::new("")).map_err(|error: LoadError| error.to_string())?;
    let file = |(name, text)| PolicyText { name, text };
    Ok(Sections { policy_files: policy_files.into_iter().map(file).collect(), ..sections })
}
