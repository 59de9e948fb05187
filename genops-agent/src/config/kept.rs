//! The last configuration that was in force, with every file that it consists of, for a start at which the
//! present one can't be read.
//!
//! It lies beside the budget accounts, in `state`, readable by the agent alone: it may hold secrets. Keys and
//! credentials that are named by path are not part of it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Config, LoadError};

/// Its name in the state directory.
const NAME: &str = "configuration";

/// Where the state is unless the configuration says otherwise.
const STATE: &str = "/var/lib/genops/state";

/// Longest kept configuration that is read, in bytes.
const LIMIT: u64 = 256 << 20;

/// What a configuration is read from: the files as they are, or as they were.
#[derive(Default)]
pub(super) struct Sources {
    /// Nothing else is read.
    past: Option<Texts>,
    read: RefCell<Texts>,
}

/// The configuration, its files by path, and environment variables.
#[derive(Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct Texts {
    /// The configuration itself.
    text: String,
    files: BTreeMap<PathBuf, String>,
    variables: BTreeMap<String, String>,
}

impl fmt::Debug for Texts {
    /// They may be secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.files.keys()).finish()
    }
}

impl Sources {
    /// What was read.
    pub(super) fn into_read(self, text: &str) -> Texts {
        Texts { text: text.to_owned(), ..self.read.into_inner() }
    }

    /// The text of a file.
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

    /// The Cedar files that a path stands for: those in it, where it is a directory.
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

    /// An environment variable.
    pub(super) fn variable(&self, name: &str) -> Option<String> {
        let value = match &self.past {
            None => std::env::var(name).ok()?,
            Some(past) => past.variables.get(name)?.clone(),
        };
        self.read.borrow_mut().variables.insert(name.to_owned(), value.clone());
        Some(value)
    }
}

/// By whichever way it is named.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// As it is on disk.
#[derive(Deserialize, Serialize)]
struct Kept {
    /// The file that `--config` named.
    config: PathBuf,
    texts: Texts,
}

/// Where a configuration has its state.
pub(crate) fn state_of(config: &Config) -> PathBuf {
    let evidence = &config.evidence.directory;
    evidence.parent().unwrap_or(evidence).join("state")
}

/// Keeps a configuration that is in force.
///
/// # Errors
///
/// Where it can't be written.
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

/// The configuration that was in force last, where the one at `path` can't be used.
///
/// # Errors
///
/// Why there is none.
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

/// Where the state may be: as far as the file that can't be used says, and the usual place.
fn states(path: &Path) -> Vec<PathBuf> {
    let text = super::read(path).unwrap_or_default();
    let named = evidence_directory(&text).into_iter();
    let beside = named.filter_map(|it| Some(Path::new(&it).parent()?.join("state")));
    beside.chain([PathBuf::from(STATE)]).collect()
}

/// The evidence directory that a text says, though it may not be YAML.
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

/// What was kept there of the configuration at `path`.
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

    /// A configuration with all that it may consist of, in force once.
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
