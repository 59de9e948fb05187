//! The invariants of ARCHITECTURE.md, checked on the tree: each is something that must not be there.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};

use crate::kernels::{Kernel, Kernels};
use crate::licences::Metadata;
use crate::workspace;

/// What each crate may know of the others. A crate that is not named here may know all.
const MAY_USE: &[(&str, &[&str])] = &[
    ("genops-ebpf", &["genops-ebpf-common"]),
    ("genops-ebpf-common", &[]),
    ("genops-evidence", &[]),
    ("genops-governance", &["genops-protocols"]),
    ("genops-protocols", &[]),
    ("xtask", &[]),
];
/// Crates that compute and never wait.
const PURE: &[&str] = &["genops-evidence", "genops-governance", "genops-protocols"];
/// Crates that no pure crate may reach, however indirectly.
const IMPURE: &[&str] = &["async-io", "aya", "hyper", "mio", "reqwest", "socket2", "tokio"];
/// Crates whose code runs in the kernel, or is read from its memory.
const KERNEL_SIDE: &[&str] = &["genops-ebpf", "genops-ebpf-common"];
/// Code that must not be there, and why. The pieces are joined, so that this file does not contain it.
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

/// A file of the tree, as text.
struct Source {
    /// Relative to the repository.
    path: String,
    text: String,
}

/// Every broken invariant, one sentence each.
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
    Ok(complaints)
}

/// Every manifest inherits the lints and says the right licence.
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

/// Nothing depends on what it must not know.
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

/// Pure crates reach no runtime and no kernel, through whatever they depend on.
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

/// Every text file that is or would be committed.
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
        // What is no text, and what was deleted but not yet committed, has no lines to check.
        let text = std::fs::read_to_string(workspace::root().join(path)).ok()?;
        Some(Source { path: path.to_owned(), text })
    };
    Ok(list.split('\0').filter(|path| !path.is_empty()).filter_map(read).collect())
}

impl Source {
    fn complaints(&self) -> Vec<String> {
        let mut complaints = self.machine_paths();
        if Path::new(&self.path).extension().is_some_and(|extension| extension == "rs") {
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

    /// Paths of the machine that runs this: its checkout's directory, its user's home.
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

/// Whether a line of code opens something unsafe; the name of the lint does not.
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

/// The README says of each kernel what was found in its virtual machine.
fn support() -> anyhow::Result<Vec<String>> {
    let readme = std::fs::read_to_string(workspace::root().join("README.md"))?;
    let kernels = Kernels::read()?;
    let rows = kernels.all().iter().map(Kernel::row);
    let missing = rows.filter(|row| !readme.lines().any(|line| line == row));
    Ok(missing.map(|row| format!("README.md lacks this row of kernels.toml: {row}")).collect())
}

/// Every dialect has recorded exchanges: a directory with its name, or the protocol's, in its own.
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
