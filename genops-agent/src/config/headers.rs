//! OTLP headers: given by file, by environment variable, or, if not secret, in place.
//!
//! A value `${NAME}` is the environment variable `NAME`; `headers_file` has a `Name: value` per
//! line. Neither a value nor its length is ever shown.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_saphyr::Spanned;

use super::{Refusal, Sources};

/// Headers with values; `Debug` shows no values.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Headers {
    values: BTreeMap<String, String>,
    /// Name of a header in the configuration itself that looks like a secret.
    literal_secret: Option<String>,
}

impl Headers {
    /// Names and values.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.values.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Tells whether any header looks like a secret.
    pub(super) fn any_secret(&self) -> bool {
        self.values.keys().any(|name| is_secret(name))
    }

    /// Returns the name of a secret-looking header in the configuration itself.
    pub(super) fn literal_secret(&self) -> Option<&str> {
        self.literal_secret.as_deref()
    }
}

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.values.keys()).finish()
    }
}

/// A value as written in the file, not shown.
#[derive(Deserialize)]
#[serde(transparent)]
pub(super) struct Given(String);

impl fmt::Debug for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("..")
    }
}

fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ["auth", "key", "token", "secret", "password", "cookie"].iter().any(|word| name.contains(word))
}

/// Resolves references and checks names and values.
pub(super) fn settle(
    config: &Path,
    given: BTreeMap<String, Spanned<Given>>,
    file: Option<Spanned<PathBuf>>,
    sources: &Sources,
) -> Result<Headers, Refusal> {
    let mut headers = Headers::default();
    for (name, value) in given {
        let line = value.referenced.line();
        let Given(value) = value.value;
        let variable = value.strip_prefix("${").and_then(|rest| rest.strip_suffix('}'));
        if variable.is_none() && is_secret(&name) {
            headers.literal_secret = Some(name.clone());
        }
        let value = match variable {
            None => value,
            Some(variable) => sources.variable(variable).ok_or_else(|| {
                let message = format!(
                    "`telemetry.otlp.headers.{name}`: the environment variable `{variable}` is not set"
                );
                (line, message)
            })?,
        };
        insert(&mut headers, &name, value).map_err(|message| (line, message))?;
    }
    if let Some(file) = file {
        let line = file.referenced.line();
        let path = config.parent().unwrap_or(Path::new("")).join(&file.value);
        read_file(&path, &mut headers, sources)
            .map_err(|message| (line, format!("`telemetry.otlp.headers_file`: {message}")))?;
    }
    Ok(headers)
}

fn read_file(path: &Path, headers: &mut Headers, sources: &Sources) -> Result<(), String> {
    let text = sources.file(path).map_err(|error| error.to_string())?;
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let place = format!("{}:{}", path.display(), index + 1);
        let (name, value) =
            line.split_once(':').ok_or_else(|| format!("{place}: expected `Name: value`"))?;
        insert(headers, name.trim(), value.trim().to_owned())
            .map_err(|message| format!("{place}: {message}"))?;
    }
    Ok(())
}

fn insert(headers: &mut Headers, name: &str, value: String) -> Result<(), String> {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if name.is_empty() || !name.bytes().all(token) {
        return Err(format!(
            "header `{name}`: the name may have letters, digits, `-`, `_` and `.`"
        ));
    }
    if !value.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        return Err(format!("header `{name}`: the value may have printable ASCII characters only"));
    }
    headers.values.insert(name.to_ascii_lowercase(), value);
    Ok(())
}
