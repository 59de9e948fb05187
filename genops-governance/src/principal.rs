//! Maps a process to a configured principal, or derives attribution from the process's identity.
//!
//! The module has the precedence of facts, not the discovery. The first principal matching the
//! process itself wins. Without a match, a process keeps the principal from before an `exec` or
//! from the starting process, or takes the parent's principal within the same unit and container.
//! Otherwise, team and project come from user, unit, namespace and executable. Placeholder values
//! are left out.

use std::sync::Arc;

use genops_protocols::{Call, ClaimSource, Wanted};

use crate::authority::{Chain, Grants};
use crate::awu::Attribution;
use crate::config::{AttributionConfig, Dimension, MatchConfig, Mode, PrincipalConfig, Sections};
use crate::glob;
use crate::process::ProcessFacts;
use crate::settings::Faults;
use crate::telemetry::says_something;

/// Governance identity of a process.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    /// Fixed for every unit begun while the identity holds.
    pub(crate) attribution: Arc<Attribution>,
    /// Index of the configured principal, matched or inherited.
    pub(crate) principal: Option<usize>,
    /// Whether the principal is inherited, not matched by the process itself.
    pub(crate) inherited: bool,
    /// Whether refusals are carried out.
    pub(crate) mode: Mode,
}

/// A configured principal.
#[derive(Clone, Debug)]
pub(crate) struct Principal {
    pub(crate) name: String,
    matches: MatchConfig,
    attribution: Arc<Attribution>,
    mode: Mode,
    /// Grants of the principal, including the grants of the superior principals.
    pub(crate) chain: Chain,
    /// Superior principal of a sub-agent.
    superior: Option<usize>,
    /// Places in requests that say for whom a request is made.
    sources: Vec<(Dimension, Vec<ClaimSource>)>,
}

/// All configured principals, and the values for processes without a principal.
#[derive(Clone, Debug, Default)]
pub(crate) struct Roster {
    principals: Vec<Principal>,
    environment: Option<String>,
    mode: Mode,
}

impl Roster {
    pub(crate) fn compile(sections: &Sections, grants: &Grants, faults: &mut Faults) -> Self {
        let environment = sections.environment.clone();
        let mut roster = Self { principals: Vec::new(), environment, mode: sections.mode };
        for (index, config) in sections.principals.iter().enumerate() {
            let place = Faults::entry("principals", index, &config.name);
            faults.name_is_new(
                &place,
                &config.name,
                |it| sections.principals.iter().take(it).any(|other| other.name == config.name),
                index,
            );
            for (key, value) in [
                ("team", &config.team),
                ("project", &config.project),
                ("environment", &config.environment),
                ("cost_center", &config.cost_center),
            ] {
                if let Some(value) = value.as_deref().filter(|it| !says_something(it)) {
                    faults.add(&place, key, &format!("is `{value}`, which says nothing"));
                }
            }
            let superior = roster.superior(config, &place, faults);
            let mut chain = grants.chain_of(config, &place, faults);
            if let Some(above) = superior.and_then(|it| roster.principals.get(it)) {
                chain.extend(&above.chain);
            }
            let mut sources = sources(config, &place, faults);
            if let Some(above) = superior.and_then(|it| roster.principals.get(it))
                && sources.is_empty()
            {
                sources.clone_from(&above.sources);
            }
            let principal = roster.principal(sections, config, chain, superior);
            let principal = Principal { sources, ..principal };
            if config.matches == MatchConfig::default() {
                faults.add(&place, "match", "names nothing, so no process would match");
            }
            roster.principals.push(principal);
        }
        roster
    }

    /// Returns the superior of a sub-agent. The superior must come earlier in the list, so that no
    /// cycle can exist.
    fn superior(
        &self,
        config: &PrincipalConfig,
        place: &str,
        faults: &mut Faults,
    ) -> Option<usize> {
        let name = config.subagent_of.as_ref()?;
        let found = self.principals.iter().position(|it| it.name == *name);
        if found.is_none() {
            faults.add(place, "subagent_of", &format!("names `{name}`, and none stands before it"));
        }
        found
    }

    fn principal(
        &self,
        sections: &Sections,
        config: &PrincipalConfig,
        chain: Chain,
        superior: Option<usize>,
    ) -> Principal {
        let PrincipalConfig {
            name,
            matches,
            team,
            project,
            environment,
            cost_center,
            customer_id,
            feature,
            mode,
            ..
        } = config.clone();
        let environment = environment.or_else(|| sections.environment.clone());
        let attribution = Arc::new(Attribution {
            team: team.or_else(|| Some(name.clone())),
            project: project.or_else(|| Some(name.clone())),
            environment: environment.or_else(|| Some(HOST.to_owned())),
            principal: name.clone(),
            mapped: true,
            cost_center,
            customer_id,
            feature,
            session_id: None,
            said: Vec::new(),
            chain: chain.names(),
            accountable: chain.accountable(),
        });
        let mode = mode.unwrap_or(self.mode);
        Principal { name, matches, attribution, mode, chain, superior, sources: Vec::new() }
    }

    pub(crate) fn get(&self, index: usize) -> Option<&Principal> {
        self.principals.get(index)
    }

    /// Returns the index of the configured principal with the name.
    pub(crate) fn position(&self, name: &str) -> Option<usize> {
        self.principals.iter().position(|it| it.name == name)
    }

    /// Calls `tell` for every configured principal, with the names of the principal and the
    /// superiors.
    pub(crate) fn each(&self, mut tell: impl FnMut(&Attribution, &[String])) {
        for (index, principal) in self.principals.iter().enumerate() {
            let lineage: Vec<String> =
                self.lineage(Some(index)).map(|it| it.name.clone()).collect();
            tell(&principal.attribution, &lineage);
        }
    }

    /// Returns the principal and all superiors, the principal first.
    pub(crate) fn lineage(&self, index: Option<usize>) -> impl Iterator<Item = &Principal> {
        let first = index.and_then(|it| self.principals.get(it));
        std::iter::successors(first, |it| it.superior.and_then(|at| self.principals.get(at)))
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.principals.iter().map(|it| it.name.as_str())
    }

    pub(crate) fn names_any(&self) -> bool {
        !self.principals.is_empty()
    }

    /// Returns every place in requests that may say for whom a request is made.
    pub(crate) fn wanted(&self) -> Wanted {
        let all = self.principals.iter().flat_map(|it| &it.sources).flat_map(|(_, it)| it);
        all.cloned().collect()
    }

    /// Resolves a process; `inherited` is the principal if the process itself matches none.
    pub(crate) fn identify(&self, facts: &ProcessFacts, inherited: Option<usize>) -> Identity {
        let own = self.principals.iter().position(|it| {
            it.fits(facts) && it.superior.is_none_or(|above| self.descends(inherited, above))
        });
        match own.or(inherited).and_then(|it| Some((it, self.principals.get(it)?))) {
            Some((index, principal)) => Identity {
                attribution: Arc::clone(&principal.attribution),
                principal: Some(index),
                inherited: own.is_none(),
                mode: principal.mode,
            },
            None => Identity {
                attribution: Arc::new(self.derive(facts)),
                principal: None,
                inherited: false,
                mode: self.mode,
            },
        }
    }

    /// Returns whether `of` is `above` or a sub-agent of `above`.
    fn descends(&self, of: Option<usize>, above: usize) -> bool {
        let is = |it: &Principal| self.principals.get(above).is_some_and(|at| at.name == it.name);
        self.lineage(of).any(is)
    }

    /// Derives attribution from the process's own identity.
    fn derive(&self, facts: &ProcessFacts) -> Attribution {
        let project = project_of(facts);
        let team = team_of(facts).or_else(|| project.clone());
        let environment =
            self.environment.clone().or_else(|| Some(environment_of(facts).to_owned()));
        let known = [&team, &project].into_iter().flatten().map(String::as_str);
        let name = known.collect::<Vec<_>>().join("/");
        Attribution { principal: name, team, project, environment, ..Attribution::default() }
    }
}

/// Maximum length of a customer, feature or session, in bytes.
const SAID_LIMIT: usize = 128;

fn sources(
    config: &PrincipalConfig,
    place: &str,
    faults: &mut Faults,
) -> Vec<(Dimension, Vec<ClaimSource>)> {
    let AttributionConfig { customer_id, feature, session_id } = &config.attribution;
    let lists = [
        (Dimension::CustomerId, customer_id, &config.customer_id),
        (Dimension::Feature, feature, &config.feature),
        (Dimension::SessionId, session_id, &None),
    ];
    let mut all = Vec::new();
    for (dimension, texts, fixed) in lists {
        let key = format!("attribution.{}", dimension.as_str());
        if fixed.is_some() && !texts.is_empty() {
            let why = "names where requests say it, and the principal has one that is fixed";
            faults.add(place, &key, why);
        }
        let parsed = texts.iter().filter_map(|text| {
            let parsed: Result<ClaimSource, _> = text.parse();
            parsed.map_err(|error| faults.add(place, &key, &format!("holds {error}"))).ok()
        });
        let parsed: Vec<ClaimSource> = parsed.collect();
        if !parsed.is_empty() {
            all.push((dimension, parsed));
        }
    }
    all
}

/// Returns the name in a field, unless the value is a placeholder or cannot be a name.
fn name_in(value: &str) -> Option<&str> {
    let value = value.trim();
    let fits = value.len() <= SAID_LIMIT && !value.chars().any(char::is_control);
    (fits && says_something(value)).then_some(value)
}

impl Principal {
    /// Returns the attribution of a request: the configured values, completed by the values claimed
    /// in the request. `None`: the request claims no value.
    pub(crate) fn attribute(&self, call: &Call) -> Option<Attribution> {
        let mut said: Option<Attribution> = None;
        for (dimension, sources) in &self.sources {
            let of = |source: &ClaimSource| match source {
                ClaimSource::Conversation => call.conversation_id.as_deref(),
                _ => call.claims.iter().find(|it| it.source == *source).map(|it| &*it.value),
            };
            let mut found = sources.iter().filter_map(|it| Some((it, name_in(of(it)?)?)));
            if let Some((source, value)) = found.next() {
                let own = said.get_or_insert_with(|| (*self.attribution).clone());
                own.take(*dimension, source, value);
            }
        }
        said
    }

    pub(crate) fn mode(&self) -> Mode {
        self.mode
    }

    pub(crate) fn attribution(&self) -> &Attribution {
        &self.attribution
    }

    /// Returns whether the process matches the principal. On the host, a path counts only if the
    /// host has the file under the path. In a container, paths and users come from the image, and
    /// count only for a match with container, namespace or service account.
    fn fits(&self, facts: &ProcessFacts) -> bool {
        let MatchConfig { user, exe, systemd_unit, container, namespace, service_account } =
            &self.matches;
        let uid = facts.uid.map(|it| it.to_string());
        let fits = |pattern: &Option<String>, fact: Option<&String>| match pattern {
            None => true,
            Some(pattern) => fact.is_some_and(|it| glob::matches(pattern, it)),
        };
        let placed = container.is_some() || namespace.is_some() || service_account.is_some();
        let by_user = !facts.is_contained() || placed;
        let by_exe = if facts.is_contained() { placed } else { !facts.exe_is_elsewhere };
        (user.is_none() || by_user)
            && (exe.is_none() || by_exe)
            && (fits(user, facts.user.as_ref()) || fits(user, uid.as_ref()))
            && fits(exe, facts.exe.as_ref())
            && fits(systemd_unit, facts.systemd_unit.as_ref())
            && fits(container, facts.container_id.as_ref())
            && fits(namespace, facts.namespace.as_ref())
            && fits(service_account, facts.service_account.as_ref())
            && self.matches != MatchConfig::default()
    }
}

/// Environment of a process outside of any container, unless configured.
const HOST: &str = "host";

/// Returns the team: namespace, or else systemd service, or else user.
fn team_of(facts: &ProcessFacts) -> Option<String> {
    let user = || facts.user.clone().or_else(|| facts.uid.map(|it| format!("uid-{it}")));
    let service = || facts.systemd_unit.as_deref().and_then(service_of);
    said(facts.namespace.clone()).or_else(service).or_else(|| said(user()))
}

/// Returns the project: the executable's name, or else the command name.
fn project_of(facts: &ProcessFacts) -> Option<String> {
    let exe = facts.exe.as_deref().map(|it| it.strip_suffix(" (deleted)").unwrap_or(it));
    let file = exe.and_then(|it| it.rsplit('/').next()).map(str::to_owned);
    said(file).or_else(|| said(Some(facts.comm.clone())))
}

/// Returns the environment.
fn environment_of(facts: &ProcessFacts) -> &'static str {
    if facts.pod_uid.is_some() || facts.namespace.is_some() {
        "kubernetes"
    } else if facts.container_id.is_some() {
        "container"
    } else {
        HOST
    }
}

/// Returns the service name: `refund` for `refund.service` and `refund@7.service`; sessions and
/// slices have no service name.
fn service_of(unit: &str) -> Option<String> {
    let name = unit.strip_suffix(".service")?;
    let name = name.split('@').next().unwrap_or(name);
    let generic = name == "user" || name == "session" || name == "init";
    (!generic).then(|| said(Some(name.to_owned()))).flatten()
}

/// Returns a value, unless the value is a placeholder, for example the namespace `default`.
fn said(value: Option<String>) -> Option<String> {
    value.filter(|it| says_something(it))
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;
    use crate::process::ProcessKey;

    /// Checks a process matched by no configured principal, changed by the test.
    #[track_caller]
    fn check(change: impl FnOnce(&mut ProcessFacts), expected: &Expect) {
        let key = ProcessKey { pid: 1, start_ns: 1 };
        let mut facts = ProcessFacts::bare(key, "python3");
        change(&mut facts);
        let Attribution { principal, team, project, environment, mapped, .. } =
            Roster::default().derive(&facts);
        assert!(!mapped);
        let said = |it: Option<String>| it.unwrap_or_else(|| "-".to_owned());
        let line = format!(
            "{principal}: team {} project {} environment {}",
            said(team),
            said(project),
            said(environment)
        );
        expected.assert_eq(&line);
    }

    #[expect(clippy::unnecessary_wraps, reason = "facts are optional")]
    fn some(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn team_and_project_come_from_the_process() {
        check(|_| {}, &expect!["python3/python3: team python3 project python3 environment host"]);
        check(
            |it| {
                it.exe = some("/usr/bin/python3.11 (deleted)");
                it.user = some("alice");
                it.systemd_unit = some("session-3.scope");
            },
            &expect!["alice/python3.11: team alice project python3.11 environment host"],
        );
        check(
            |it| it.uid = Some(1_000),
            &expect!["uid-1000/python3: team uid-1000 project python3 environment host"],
        );
        check(
            |it| {
                it.user = some("root");
                it.systemd_unit = some("refund@7.service");
                it.exe = some("/opt/refund/bin/server");
            },
            &expect!["refund/server: team refund project server environment host"],
        );
        check(
            |it| {
                it.namespace = some("payments");
                it.pod_uid = some("2c48913c");
                it.systemd_unit = some("kubelet.service");
            },
            &expect!["payments/python3: team payments project python3 environment kubernetes"],
        );
        check(
            |it| {
                it.namespace = some("default");
                it.user = some("alice");
            },
            &expect!["alice/python3: team alice project python3 environment kubernetes"],
        );
        check(
            |it| it.container_id = some("9bca8d63"),
            &expect!["python3/python3: team python3 project python3 environment container"],
        );
    }

    /// Returns whether a match fits a program at `/opt/desk/bot` of the user `desk`.
    fn fits(matches: MatchConfig, change: impl FnOnce(&mut ProcessFacts)) -> bool {
        let mut facts = ProcessFacts::bare(ProcessKey { pid: 1, start_ns: 1 }, "bot");
        facts.exe = some("/opt/desk/bot");
        facts.user = some("desk");
        facts.uid = Some(812);
        change(&mut facts);
        let config = PrincipalConfig { name: "desk".to_owned(), matches, ..Default::default() };
        let principals = vec![config];
        let sections = Sections { principals, ..Sections::default() };
        let roster = Roster::compile(&sections, &Grants::default(), &mut Faults::default());
        roster.identify(&facts, None).principal.is_some()
    }

    #[test]
    fn a_path_that_the_host_has_not_names_nobody() {
        let by = |exe: &str| MatchConfig { exe: some(exe), ..MatchConfig::default() };
        for pattern in ["/opt/desk/bot", "*/bot", "*"] {
            assert!(fits(by(pattern), |_| {}), "{pattern}");
            assert!(!fits(by(pattern), |it| it.exe_is_elsewhere = true), "{pattern}");
        }
        let by_user = MatchConfig { user: some("desk"), ..MatchConfig::default() };
        assert!(fits(by_user, |it| it.exe_is_elsewhere = true));
    }

    #[test]
    fn in_a_container_paths_and_users_count_only_with_a_place() {
        let by = [
            MatchConfig { exe: some("*/bot"), ..MatchConfig::default() },
            MatchConfig { user: some("desk"), ..MatchConfig::default() },
            MatchConfig { user: some("812"), ..MatchConfig::default() },
        ];
        for matches in by {
            assert!(fits(matches.clone(), |_| {}));
            assert!(!fits(matches.clone(), |it| it.container_id = some("77ab")), "{matches:?}");
            assert!(!fits(matches.clone(), |it| it.pod_uid = some("1")), "{matches:?}");
            let placed = MatchConfig { container: some("77*"), ..matches.clone() };
            assert!(fits(placed.clone(), |it| it.container_id = some("77ab")));
            assert!(!fits(placed, |it| it.container_id = some("88ab")));
            let named = MatchConfig { namespace: some("desk"), ..matches };
            let inside = |it: &mut ProcessFacts| {
                it.container_id = some("77ab");
                it.namespace = some("desk");
                it.exe_is_elsewhere = true;
            };
            assert!(fits(named, inside));
        }
    }

    #[test]
    fn a_process_of_which_nothing_is_known_has_no_placeholder() {
        check(|it| it.comm = String::new(), &expect![": team - project - environment host"]);
    }
}
