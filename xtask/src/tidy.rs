//! Checks of the invariants of ARCHITECTURE.md on the tree: each check finds something forbidden.

mod pointers;
mod words;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};

use crate::kernels::{Kernel, Kernels};
use crate::licences::Metadata;
use crate::workspace;

/// Permitted dependencies of each crate on the others. A crate missing in the list may depend on
/// all.
const MAY_USE: &[(&str, &[&str])] = &[
    ("genops-ebpf", &["genops-ebpf-common"]),
    ("genops-ebpf-common", &[]),
    ("genops-evidence", &[]),
    ("genops-governance", &["genops-protocols"]),
    ("genops-protocols", &[]),
    ("xtask", &[]),
];
/// Crates for computation only, without waiting.
const PURE: &[&str] = &["genops-evidence", "genops-governance", "genops-protocols"];
/// Crates no pure crate may depend on, even indirectly.
const IMPURE: &[&str] = &["async-io", "aya", "hyper", "mio", "reqwest", "socket2", "tokio"];
/// Crates with code running in the kernel, or with data read from kernel memory.
const KERNEL_SIDE: &[&str] = &["genops-ebpf", "genops-ebpf-common"];
/// Forbidden code, with the reason. The pieces are joined, so the file itself passes the check.
const FORBIDDEN_CODE: &[(&[&str], &str)] = &[
    (
        &["#[uret", "probe"],
        "return probes are killed by seccomp filters of existing containers: probe RET",
    ),
    (&["bpf_probe_write", "_user("], "a workload's memory is never written to"),
    (&["to", "do!("], "unfinished code"),
    (&["unimple", "mented!("], "unfinished code"),
    (&["FIX", "ME"], "unfinished code"),
    (&["#[ig", "nore"], "a test that is switched off"),
];

/// Maximum width of a comment line without a URL, in columns: `rustfmt` wraps code
/// only.
const COLUMNS: usize = 100;

/// A file of the tree, as text.
struct Source {
    /// Path relative to the repository's root.
    path: String,
    text: String,
}

/// Returns every broken invariant, a sentence each.
pub(crate) fn check() -> anyhow::Result<Vec<String>> {
    let metadata = Metadata::read()?;
    let sources = sources()?;
    let mut complaints = Vec::new();
    complaints.extend(manifests(&metadata)?);
    complaints.extend(directions(&metadata));
    complaints.extend(purity(&metadata));
    for source in &sources {
        complaints.extend(source.complaints());
    }
    complaints.extend(captures()?);
    complaints.extend(support()?);
    complaints.extend(pointers::check(&sources));
    complaints.extend(words::check(&sources));
    Ok(complaints)
}

/// Checks that every manifest inherits the lints and names the right licence.
fn manifests(metadata: &Metadata) -> anyhow::Result<Vec<String>> {
    let mut complaints = Vec::new();
    for package in &metadata.packages {
        if !metadata.workspace_members.contains(&package.id) {
            continue;
        }
        let name = &package.name;
        let manifest: toml::Table =
            toml::from_str(&std::fs::read_to_string(&package.manifest_path)?)?;
        let inherits = manifest
            .get("lints")
            .and_then(|lints| lints.get("workspace"))
            .and_then(toml::Value::as_bool);
        if inherits != Some(true) {
            complaints.push(format!("{name}: its manifest lacks `[lints] workspace = true`"));
        }
        let licence =
            if KERNEL_SIDE.contains(&name.as_str()) { "MIT OR GPL-2.0-only" } else { "Apache-2.0" };
        if package.license.as_deref() != Some(licence) {
            complaints.push(format!("{name}: its licence must be `{licence}`"));
        }
    }
    Ok(complaints)
}

/// Checks that no crate depends on a forbidden crate.
fn directions(metadata: &Metadata) -> Vec<String> {
    let packages = metadata.by_id();
    let mut complaints = Vec::new();
    for node in &metadata.resolve.nodes {
        let Some(package) = packages.get(node.id.as_str()) else { continue };
        let Some((name, allowed)) = MAY_USE.iter().find(|(name, _)| *name == package.name) else {
            continue;
        };
        for dependency in &node.deps {
            let Some(used) = packages.get(dependency.pkg.as_str()) else { continue };
            let is_ours = metadata.workspace_members.contains(&used.id);
            if is_ours && !allowed.contains(&used.name.as_str()) {
                complaints.push(format!("{name} may not know {}", used.name));
            }
        }
    }
    complaints
}

/// Checks that pure crates reach no runtime and no kernel through any dependency.
fn purity(metadata: &Metadata) -> Vec<String> {
    let packages = metadata.by_id();
    let name_of = |id: &str| packages.get(id).map_or("", |package| package.name.as_str());
    let mut complaints = Vec::new();
    for pure in PURE {
        let mut reached = HashSet::new();
        let mut open: Vec<&str> = metadata
            .resolve
            .nodes
            .iter()
            .map(|node| node.id.as_str())
            .filter(|id| name_of(id) == *pure)
            .collect();
        while let Some(id) = open.pop() {
            if !reached.insert(id) {
                continue;
            }
            let node = metadata.resolve.nodes.iter().find(|node| node.id == id);
            let dependencies = node.into_iter().flat_map(|node| &node.deps);
            let normal =
                dependencies.filter(|it| it.dep_kinds.iter().any(|kind| kind.kind.is_none()));
            open.extend(normal.map(|dependency| dependency.pkg.as_str()));
        }
        let names = reached.into_iter().map(name_of);
        let impure = names.filter(|name| IMPURE.contains(name));
        complaints.extend(impure.map(|name| format!("{pure} reaches {name}: it must stay pure")));
    }
    complaints
}

/// Returns every text file, committed or about to be committed.
fn sources() -> anyhow::Result<Vec<Source>> {
    let mut git = Command::new("git");
    git.args(["ls-files", "--cached", "--others", "--exclude-standard", "-z"])
        .current_dir(workspace::root());
    let output = git.output().context("git ls-files")?;
    ensure!(
        output.status.success(),
        "git ls-files: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    let list = String::from_utf8(output.stdout)?;
    let read = |path: &str| {
        // A file without text, or deleted but not yet committed, has no lines to check.
        let text = std::fs::read_to_string(workspace::root().join(path)).ok()?;
        Some(Source { path: path.to_owned(), text })
    };
    Ok(list.split('\0').filter(|path| !path.is_empty()).filter_map(read).collect())
}

impl Source {
    fn complaints(&self) -> Vec<String> {
        let mut complaints = self.machine_paths();
        if is_kind(&self.path, "rs") {
            complaints.extend(self.code());
        }
        complaints
    }

    fn at(&self, line: usize, what: &str) -> String {
        format!("{}:{}: {what}", self.path, line + 1)
    }

    fn code(&self) -> Vec<String> {
        let mut complaints = Vec::new();
        let kernel_side = KERNEL_SIDE.iter().any(|name| self.path.starts_with(&format!("{name}/")));
        for (number, line) in self.text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            for (pieces, why) in FORBIDDEN_CODE {
                if line.contains(&pieces.concat()) {
                    complaints.push(self.at(number, why));
                }
            }
            let is_wide = line.chars().count() > COLUMNS && !line.contains("://");
            if is_wide && line.trim_start().starts_with("//") {
                let wide = format!("a comment line is at most {COLUMNS} columns wide");
                complaints.push(self.at(number, &wide));
            }
            if !kernel_side && is_unsafe(code) {
                complaints
                    .push(self.at(number, "`unsafe` belongs into the two kernel crates only"));
            }
        }
        let is_tests = self.path.ends_with("tests.rs");
        if !is_tests && !self.text.starts_with("//!") && !self.text.starts_with("#!") {
            complaints.push(self.at(0, "a module starts by saying what it does and does not"));
        }
        let buffer =
            |line: &str| line.trim_end().ends_with(": Vec<u8>,") && line.starts_with("    ");
        let decoder = self.path.starts_with("genops-protocols/src/");
        if decoder && self.text.lines().any(buffer) && !self.text.contains("LIMIT") {
            complaints
                .push(self.at(0, "a buffer needs its limit beside it, as a constant named LIMIT"));
        }
        complaints
    }

    /// Finds paths of the current machine: the directory of the checkout, the home of the user.
    fn machine_paths(&self) -> Vec<String> {
        let root = workspace::root();
        let home = std::env::var_os("HOME").map(PathBuf::from);
        let places = root.parent().map(Path::to_owned).into_iter().chain(home);
        let places: Vec<String> = places
            .filter(|place| place.components().count() > 1)
            .map(|place| format!("{}/", place.display()))
            .collect();
        let mut complaints = Vec::new();
        for (number, line) in self.text.lines().enumerate() {
            for place in &places {
                let starts_a_path = |at: usize| {
                    let before = line.get(..at).and_then(|head| head.chars().next_back());
                    !before.is_some_and(|letter| {
                        letter.is_ascii_alphanumeric() || "/.}$*>".contains(letter)
                    })
                };
                if line.match_indices(place.as_str()).any(|(at, _)| starts_a_path(at)) {
                    complaints
                        .push(self.at(number, &format!("`{place}` is a path of this machine")));
                }
            }
        }
        complaints
    }
}

/// Returns true if a path has the extension.
fn is_kind(path: &str, extension: &str) -> bool {
    Path::new(path).extension().is_some_and(|found| found == extension)
}

/// Returns true if a line of code opens something unsafe; the name of the lint does not count.
fn is_unsafe(code: &str) -> bool {
    code.match_indices("unsafe").any(|(at, word)| {
        let before = code.get(..at).and_then(|head| head.chars().next_back());
        let after = code.get(at + word.len()..).unwrap_or_default().trim_start();
        let whole_word = !before
            .is_some_and(|letter| letter.is_alphanumeric() || letter == '_' || letter == '"');
        whole_word
            && ["{", "fn ", "impl", "extern", "trait ", "("]
                .iter()
                .any(|opening| after.starts_with(opening))
    })
}

/// Checks that the README states the results of each kernel's virtual machine.
fn support() -> anyhow::Result<Vec<String>> {
    let readme = std::fs::read_to_string(workspace::root().join("README.md"))?;
    let kernels = Kernels::read()?;
    let rows = kernels.all().iter().map(Kernel::row);
    let missing = rows.filter(|row| !readme.lines().any(|line| line == row));
    Ok(missing.map(|row| format!("README.md lacks this row of kernels.toml: {row}")).collect())
}

/// Checks that every dialect has recorded exchanges: a directory with the dialect's name, or the
/// protocol's (`mcp`), in the directory's name.
fn captures() -> anyhow::Result<Vec<String>> {
    let root = workspace::root();
    let captures = root.join("tests/captures");
    let mut recorded = Vec::new();
    for entry in std::fs::read_dir(&captures).with_context(|| format!("{}", captures.display()))? {
        recorded.push(entry?.file_name().to_string_lossy().into_owned());
    }
    let mut complaints = Vec::new();
    let dialects = root.join("genops-protocols/src/dialect");
    for entry in std::fs::read_dir(&dialects).with_context(|| format!("{}", dialects.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            continue;
        }
        let module = path.file_stem().and_then(|stem| stem.to_str()).context("a dialect's name")?;
        let name = if module == "jsonrpc" { "mcp".to_owned() } else { module.replace('_', "-") };
        if !recorded.iter().any(|directory| directory.contains(&name)) {
            complaints.push(format!("tests/captures has no exchange of the dialect `{name}`"));
        }
    }
    Ok(complaints)
}
