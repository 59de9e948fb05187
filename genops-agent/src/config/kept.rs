//! The last configuration in force, with all files read for it, for a start at which the present
//! configuration can't be used.
//!
//! The copy lies in `state` beside the budget accounts, readable by the agent alone, because of
//! possible secrets. Keys and credentials given by path are not included.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Config, LoadError};

/// File name of the copy in the state directory.
const NAME: &str = "configuration";

/// State directory unless the configuration names another.
const STATE: &str = "/var/lib/genops/state";

/// Longest kept configuration read, in bytes.
const LIMIT: u64 = 256 << 20;

/// Source of a configuration: the present files, or a kept copy.
#[derive(Default)]
pub(super) struct Sources {
    /// Kept copy; if present, no file is read.
    past: Option<Texts>,
    read: RefCell<Texts>,
}

/// The configuration, its files by path, and environment variables.
#[derive(Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct Texts {
    /// Text of the configuration itself.
    text: String,
    files: BTreeMap<PathBuf, String>,
    variables: BTreeMap<String, String>,
}

impl fmt::Debug for Texts {
    /// Shows paths only: the texts may be secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.files.keys()).finish()
    }
}

impl Sources {
    /// Returns all texts read so far, together with the configuration's own `text`.
    pub(super) fn into_read(self, text: &str) -> Texts {
        Texts { text: text.to_owned(), ..self.read.into_inner() }
    }

    /// Reads a file.
    pub(super) fn file(&self, path: &Path) -> Result<String, LoadError> {
        let whole = absolute(path);
        let text = match &self.past {
            None => super::read(path)?,
            Some(past) => past.files.get(&whole).cloned().ok_or_else(|| LoadError::Unreadable {
                path: path.display().to_string(),
                reason: "it was not kept".to_owned(),
            })?,
        };
        self.read.borrow_mut().files.insert(whole, text.clone());
        Ok(text)
    }

    /// Returns the Cedar files of a path: the path itself, or the files of the directory.
    pub(super) fn cedar_files(&self, path: PathBuf) -> Result<Vec<PathBuf>, LoadError> {
        let whole = absolute(&path);
        let mut files = match &self.past {
            None if path.is_dir() => super::cedar_files(&path)?,
            Some(past) if !past.files.contains_key(&whole) => {
                let inside = past.files.keys().filter(|it| it.parent() == Some(whole.as_path()));
                inside.filter_map(|it| Some(path.join(it.file_name()?))).collect()
            }
            _ => vec![path],
        };
        files.sort();
        Ok(files)
    }

    /// Reads an environment variable.
    pub(super) fn variable(&self, name: &str) -> Option<String> {
        let value = match &self.past {
            None => std::env::var(name).ok()?,
            Some(past) => past.variables.get(name)?.clone(),
        };
        self.read.borrow_mut().variables.insert(name.to_owned(), value.clone());
        Some(value)
    }
}

/// Makes a path absolute, so that every spelling of a path finds the same text.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// Format on disk.
#[derive(Deserialize, Serialize)]
struct Kept {
    /// The file given by `--config`.
    config: PathBuf,
    texts: Texts,
}

/// Returns the state directory of a configuration.
pub(crate) fn state_of(config: &Config) -> PathBuf {
    let evidence = &config.evidence.directory;
    evidence.parent().unwrap_or(evidence).join("state")
}

/// Keeps a copy of a configuration in force.
///
/// # Errors
///
/// Fails if the copy can't be written.
pub(crate) fn keep(path: &Path, config: &Config) -> io::Result<()> {
    let kept = Kept { config: absolute(path), texts: config.texts.clone() };
    let state = state_of(config);
    DirBuilder::new().recursive(true).mode(0o700).create(&state)?;
    let (file, beside) = (state.join(NAME), state.join(format!("{NAME}.new")));
    let _none = fs::remove_file(&beside);
    let mut options = OpenOptions::new();
    let mut to = options.write(true).create_new(true).mode(0o600).open(&beside)?;
    to.write_all(&serde_json::to_vec(&kept)?)?;
    to.sync_all()?;
    fs::rename(&beside, &file)
}

/// Returns the last configuration in force, if the file at `path` can't be used.
///
/// # Errors
///
/// The reason for having no such copy.
pub(crate) fn last_good(path: &Path) -> Result<Config, String> {
    let mut why = format!("none was kept in {STATE}");
    for state in states(path) {
        match read_in(&state, &absolute(path)) {
            Ok(Some(kept)) => {
                let text = kept.texts.text.clone();
                let sources = Sources { past: Some(kept.texts), read: RefCell::default() };
                return Config::parse_from(path, &text, sources)
                    .map_err(|error| format!("the one that was kept is refused, too: {error}"));
            }
            Ok(None) => {}
            Err(error) => why = format!("{}: {error}", state.join(NAME).display()),
        }
    }
    Err(why)
}

/// Returns the possible state directories: as named in the unusable file, then the default.
fn states(path: &Path) -> Vec<PathBuf> {
    let text = super::read(path).unwrap_or_default();
    let named = evidence_directory(&text).into_iter();
    let beside = named.filter_map(|it| Some(Path::new(&it).parent()?.join("state")));
    beside.chain([PathBuf::from(STATE)]).collect()
}

/// Finds the evidence directory in a text that may not be valid YAML.
fn evidence_directory(text: &str) -> Option<String> {
    let section = text.lines().skip_while(|line| !line.starts_with("evidence:"));
    let inside = |(at, line): &(usize, &str)| *at == 0 || line.starts_with([' ', '\t', '}', '#']);
    section.enumerate().take_while(inside).find_map(|(_, line)| {
        let (_, value) = line.split_once("directory:")?;
        let value = value.trim_start();
        let end = match value.chars().next()? {
            quote @ ('"' | '\'') => return value.get(1..)?.split(quote).next().map(str::to_owned),
            _ => value.find([',', '}', '#']).unwrap_or(value.len()),
        };
        value.get(..end).map(|it| it.trim().to_owned()).filter(|it| !it.is_empty())
    })
}

/// Reads the copy kept in `state`; `None` if absent or kept for another file than `path`.
fn read_in(state: &Path, path: &Path) -> Result<Option<Kept>, String> {
    let file = match fs::File::open(state.join(NAME)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(|error| error.to_string())?,
    };
    let about = file.metadata().map_err(|error| error.to_string())?;
    let own = rustix::process::geteuid().as_raw();
    if about.uid() != own || about.mode() & 0o077 != 0 {
        return Err("it is not the agent's own, or others may read or write it".to_owned());
    }
    let bytes = io::Read::take(file, LIMIT);
    let kept: Kept =
        serde_json::from_reader(io::BufReader::new(bytes)).map_err(|error| error.to_string())?;
    Ok((kept.config == path).then_some(kept))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it does not hold")]

    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// A configuration with every kind of referenced file, once in force.
    fn place() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("rules")).unwrap();
        let rule =
            "@id(\"no-gifts\") @reason_code(\"x_gift\")\nforbid (principal, action, resource);\n";
        fs::write(at("rules/gifts.cedar"), rule).unwrap();
        fs::write(at("headers"), "Authorization: Bearer of-tests\n").unwrap();
        let text = format!(
            "mode: enforce\npolicy_files: [rules]\ntelemetry:\n  otlp: {{endpoint: \"https://c.example\", headers_file: headers}}\nevidence:\n  directory: {}  # the log\n",
            at("log").display()
        );
        let path = at("agent.yaml");
        fs::write(&path, text).unwrap();
        let config = Config::load(&path).unwrap();
        keep(&path, &config).unwrap();
        (folder, path)
    }

    #[test]
    fn a_configuration_comes_back_whole_though_none_of_its_files_is_left() {
        let (folder, path) = place();
        let before = Config::load(&path).unwrap();
        fs::remove_dir_all(folder.path().join("rules")).unwrap();
        fs::remove_file(folder.path().join("headers")).unwrap();
        let text = fs::read_to_string(&path).unwrap().replacen("mode:", "mdoe:", 1);
        fs::write(&path, text).unwrap();
        assert!(Config::load(&path).is_err());
        let kept = last_good(&path).unwrap();
        assert_eq!(kept.hash, before.hash);
        assert_eq!(kept.settings().policy_count(), 1);
        let headers: Vec<_> = kept.telemetry.otlp.iter().flat_map(|it| it.headers.iter()).collect();
        assert_eq!(headers, [("authorization", "Bearer of-tests")]);
        assert!(!format!("{kept:?}").contains("of-tests"), "a secret is shown");
    }

    #[test]
    fn what_is_kept_is_the_agents_own_and_of_that_file_only() {
        let (folder, path) = place();
        let file = folder.path().join("state").join(NAME);
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
        let other = folder.path().join("other.yaml");
        fs::copy(&path, &other).unwrap();
        assert!(last_good(&other).is_err());
        fs::set_permissions(&file, fs::Permissions::from_mode(0o620)).unwrap();
        let why = last_good(&path).unwrap_err();
        assert!(why.contains("not the agent's own"), "{why}");
    }

    #[test]
    fn a_broken_text_still_says_where_its_evidence_is() {
        let of = |text: &str| evidence_directory(text).unwrap_or_default();
        assert_eq!(of("a: [\nevidence: {content: none, directory: \"/x/y\"}\n"), "/x/y");
        assert_eq!(of("evidence: {directory: /x/z, content: none}"), "/x/z");
        assert_eq!(of("evidence:\n  content: hash\n  directory: '/x/w' # here\nmode: [\n"), "/x/w");
        assert_eq!(of("other:\n  directory: /no\n"), "");
        assert_eq!(of("evidence:\nship:\n  directory: /no\n"), "");
    }
}
