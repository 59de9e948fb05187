//! Checks of deny.toml: licences, sources, and permitted dependencies.
//!
//! If cargo-deny is installed, cargo-deny does the check. Building cargo-deny takes longer than all
//! tests, so otherwise the same file is evaluated here. Advisories are not checked, because a build
//! may have no network.

use std::collections::HashMap;

use anyhow::Context as _;
use serde::Deserialize;
use spdx::{Expression, ParseMode};

use crate::{setup, workspace};

#[derive(Debug, Deserialize)]
struct Deny {
    licenses: Licences,
    bans: Bans,
}

#[derive(Debug, Deserialize)]
struct Licences {
    allow: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Bans {
    deny: Vec<Ban>,
}

/// Crate banned as a dependency, except of the wrappers.
#[derive(Debug, Deserialize)]
struct Ban {
    #[serde(rename = "crate")]
    name: String,
    #[serde(default)]
    wrappers: Vec<String>,
}

/// Evaluated part of `cargo metadata`.
#[derive(Debug, Deserialize)]
pub(crate) struct Metadata {
    pub(crate) packages: Vec<Package>,
    pub(crate) resolve: Resolve,
    pub(crate) workspace_members: Vec<String>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Package {
    pub(crate) id: String,
    pub(crate) name: String,
    version: String,
    pub(crate) license: Option<String>,
    source: Option<String>,
    pub(crate) manifest_path: String,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Resolve {
    pub(crate) nodes: Vec<Node>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Node {
    pub(crate) id: String,
    pub(crate) deps: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Dependency {
    pub(crate) pkg: String,
    pub(crate) dep_kinds: Vec<DependencyKind>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct DependencyKind {
    /// Absent for a normal dependency.
    pub(crate) kind: Option<String>,
}

impl Metadata {
    pub(crate) fn read() -> anyhow::Result<Self> {
        let mut command = workspace::cargo();
        command.args(["metadata", "--format-version", "1", "--locked"]);
        command.args(["--filter-platform", "x86_64-unknown-linux-gnu"]);
        let output = command.output().context("cargo metadata")?;
        anyhow::ensure!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// Returns every package by id.
    pub(crate) fn by_id(&self) -> HashMap<&str, &Package> {
        self.packages.iter().map(|package| (package.id.as_str(), package)).collect()
    }
}

/// Returns the complaints about the dependency tree.
pub(crate) fn check() -> anyhow::Result<Vec<String>> {
    if setup::works("cargo", &["deny", "--version"]) {
        let mut deny = workspace::cargo();
        let output = deny.args(["deny", "check", "bans", "licenses", "sources"]).output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        return Ok(if output.status.success() { Vec::new() } else { vec![said] });
    }
    let path = workspace::root().join("deny.toml");
    let text = std::fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
    let deny: Deny = toml::from_str(&text).context("deny.toml")?;
    let metadata = Metadata::read()?;
    let mut complaints = Vec::new();
    for package in metadata.packages.iter().filter(|package| package.source.is_some()) {
        complaints.extend(package.complaint(&deny.licenses.allow));
    }
    complaints.extend(deny.bans.deny.iter().flat_map(|ban| ban.complaints(&metadata)));
    Ok(complaints)
}

impl Package {
    fn complaint(&self, allowed: &[String]) -> Option<String> {
        let Self { id: _, name, version, license, source, manifest_path: _ } = self;
        if !source.as_ref()?.starts_with("registry+") {
            return Some(format!("{name} {version} does not come from the registry"));
        }
        let Some(license) = license else {
            return Some(format!("{name} {version} names no licence"));
        };
        let Ok(expression) = Expression::parse_mode(license, ParseMode::LAX) else {
            return Some(format!("{name} {version}: `{license}` is not an SPDX expression"));
        };
        let fits = expression.evaluate(|wanted| allowed.contains(&wanted.to_string()));
        (!fits).then(|| format!("{name} {version}: `{license}` is not among the allowed licences"))
    }
}

impl Ban {
    fn complaints(&self, metadata: &Metadata) -> Vec<String> {
        let packages = metadata.by_id();
        let name_of = |id: &str| packages.get(id).map_or("", |package| package.name.as_str());
        let users = metadata.resolve.nodes.iter().filter(|node| {
            node.deps.iter().any(|dependency| name_of(&dependency.pkg) == self.name)
        });
        let strangers = users
            .map(|node| name_of(&node.id))
            .filter(|user| !self.wrappers.iter().any(|it| it == user));
        strangers.map(|user| format!("{user} may not depend on {}", self.name)).collect()
    }
}
