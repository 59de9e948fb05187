//! Check of the files and tests named in documents: each must exist.
//!
//! Anchors within a page and external addresses are not checked.

use std::path::{Component, Path, PathBuf};

use super::{Source, is_kind, words::is_document};
use crate::workspace;

/// Returns a sentence for each link without a file, and for each name without a test.
pub(super) fn check(sources: &[Source]) -> Vec<String> {
    let documents = sources.iter().filter(|source| is_document(&source.path));
    documents.flat_map(|document| broken(document, sources)).collect()
}

fn broken(document: &Source, sources: &[Source]) -> Vec<String> {
    let mut complaints = Vec::new();
    for (number, line) in document.text.lines().enumerate() {
        for link in links(line).filter(|link| !leads_somewhere(&document.path, link)) {
            complaints.push(document.at(number, &format!("there is no file `{link}`")));
        }
        let code = line.split('`').skip(1).step_by(2).flat_map(str::split_whitespace);
        for name in code.filter(|name| !is_there(name, sources)) {
            complaints.push(document.at(number, &format!("there is no test or file `{name}`")));
        }
    }
    complaints
}

/// Returns the targets of inline links to files of the repository.
fn links(line: &str) -> impl Iterator<Item = &str> {
    let targets = line.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
    let files = targets.map(|(target, _)| target.split('#').next().unwrap_or_default());
    files.filter(|target| !target.is_empty() && !target.contains("://"))
}

fn leads_somewhere(document: &str, link: &str) -> bool {
    let folder = Path::new(document).parent().unwrap_or(Path::new(""));
    let mut path = PathBuf::new();
    for part in folder.join(link).components() {
        match part {
            Component::ParentDir if !path.pop() => return false,
            Component::ParentDir => {}
            part => path.push(part),
        }
    }
    workspace::root().join(path).exists()
}

/// Returns false if a piece of code names a missing test or source file.
fn is_there(name: &str, sources: &[Source]) -> bool {
    if is_kind(name, "rs") && !name.contains(['*', '{', '<']) && !name.contains("NAME") {
        let ending = format!("/{name}");
        return sources.iter().any(|it| it.path == name || it.path.ends_with(&ending));
    }
    let Some((module, test)) = test_name(name) else { return true };
    let [file, folder] = [format!("/{module}.rs"), format!("/{module}/")];
    let mut of_module =
        sources.iter().filter(|it| it.path.ends_with(&file) || it.path.contains(&folder));
    let function = format!("fn {test}");
    of_module.any(|source| source.text.contains(&function))
}

/// Splits `module::beginning_of_a_test_..` into the first module and the beginning of the test
/// name.
fn test_name(name: &str) -> Option<(&str, &str)> {
    let is_plain = |text: &str| {
        text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
    };
    let (module, _) = name.split_once("::")?;
    let (modules, test) = name.rsplit_once("::")?;
    let test = test.trim_end_matches("..");
    let named = modules.split("::").all(is_plain) && is_plain(test);
    (named && !module.is_empty()).then_some((module, test))
}

#[cfg(test)]
mod tests {
    use super::{Source, check};

    #[track_caller]
    fn complaints(text: &str) -> usize {
        let source = |path: &str, text: &str| Source { path: path.into(), text: text.into() };
        let tests = "#[test]\nfn a_late_answer_is_counted() {}";
        check(&[source("docs/page.md", text), source("tests/host/late.rs", tests)]).len()
    }

    #[test]
    fn a_named_test_exists() {
        assert_eq!(complaints("`late::`, `late::a_late_answer_..`, `late::a_late_answer_is`"), 0);
        assert_eq!(complaints("`early::`, `late::an_early_..`"), 2);
        assert_eq!(complaints("`Record::parse`, `late`, late::nothing"), 0);
    }

    #[test]
    fn a_named_file_exists() {
        assert_eq!(complaints("`host/late.rs`, `tests/host/late.rs`, `dialect/NAME.rs`"), 0);
        assert_eq!(complaints("`hostess/late.rs`, `ate.rs`"), 2);
        assert_eq!(complaints("[a](../README.md#licence), [b](https://example.org/x), [c](#d)"), 0);
        assert_eq!(complaints("[a](README.md), [b](../../README.md)"), 2);
    }
}
