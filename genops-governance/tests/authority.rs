//! Authority: calls inside and outside of a chain of grants.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests fail by panic")]

mod support;

use expect_test::{Expect, expect};
use genops_governance::{
    GrantBudgetConfig, GrantConfig, GrantRateConfig, MatchConfig, Per, PolicyText, PrincipalConfig,
    ProcessFacts, ProcessKey, ReasonCode, ScopeConfig, Sections, Unit,
};
use support::{BOT, HELD, Host, bot, chat, enforcing, human, ok};

const MODELS: [&str; 3] = ["gpt-4o-mini", "gpt-4o", "o3"];

fn grant(name: &str, parent: Option<&str>, models: &[&str]) -> GrantConfig {
    let list = models.iter().map(|it| (*it).to_owned()).collect();
    GrantConfig {
        name: name.to_owned(),
        parent: parent.map(str::to_owned),
        delegated_by: parent.is_none().then(|| "dana@example.org".to_owned()),
        scope: ScopeConfig { models: Some(list), ..ScopeConfig::default() },
        ..GrantConfig::default()
    }
}

/// The bot acts under `team`; the parent of `team` is `house`.
fn granted() -> Sections {
    let mut sections = Sections { humans: vec![human("dana@example.org")], ..enforcing() };
    sections.grants =
        vec![grant("house", None, &["gpt-4o*"]), grant("team", Some("house"), &["gpt-4o-mini"])];
    sections.principals = vec![PrincipalConfig { grant: Some("team".to_owned()), ..bot() }];
    sections
}

/// Returns the decision on a call for each of [`MODELS`].
fn decided(sections: &Sections, process: ProcessFacts) -> String {
    let mut host = Host::new(sections);
    let key = process.key;
    host.engine.process(host.now, process);
    let mut lines = Vec::new();
    for model in MODELS {
        let conn = host.open_for(Some(key), HELD);
        host.egress(conn, &chat(model, "hello")).close(conn);
        let awu = host.awus.pop().unwrap();
        let decision = awu.outcome.decision();
        let code = decision.reason().map_or("", ReasonCode::as_str);
        let by = awu.grounds.policy.as_deref().unwrap_or_default();
        let line = format!("{model}: {} {code} {by}", decision.result().as_str());
        lines.push(line.trim_end().to_owned());
    }
    lines.join("\n")
}

#[track_caller]
fn check(sections: &Sections, expected: &Expect) {
    expected.assert_eq(&decided(sections, support::facts()));
}

fn cedar(text: &str) -> PolicyText {
    PolicyText { name: "rules.cedar".to_owned(), text: text.to_owned() }
}

#[test]
fn without_a_need_for_permission_a_grant_only_narrows() {
    check(
        &granted(),
        &expect![[r"
            gpt-4o-mini: ALLOWED
            gpt-4o: BLOCKED x_delegation_exceeded grant:team.models
            o3: BLOCKED x_delegation_exceeded grant:house.models"]],
    );
}

#[test]
fn where_authority_is_required_a_grant_permits_and_nothing_else_does() {
    let required = |sections| Sections { require_authority: true, ..sections };
    check(
        &required(granted()),
        &expect![[r"
            gpt-4o-mini: ALLOWED
            gpt-4o: BLOCKED x_no_authority grant:team.models
            o3: BLOCKED x_no_authority grant:team.models"]],
    );
    // A permit does not stand for a grant.
    let permits = cedar("@id(\"all\") permit (principal, action, resource);");
    let nobody = Sections { policy_files: vec![permits], ..required(enforcing()) };
    check(
        &nobody,
        &expect![[r"
            gpt-4o-mini: BLOCKED x_no_authority
            gpt-4o: BLOCKED x_no_authority
            o3: BLOCKED x_no_authority"]],
    );
    // Nor does a principal's own claim stand for a grant.
    let mut said = required(Sections { humans: vec![human("dana@example.org")], ..enforcing() });
    let by = Some("dana@example.org".to_owned());
    said.principals = vec![PrincipalConfig { delegated_by: by, ..bot() }];
    check(
        &said,
        &expect![[r"
            gpt-4o-mini: BLOCKED x_no_authority
            gpt-4o: BLOCKED x_no_authority
            o3: BLOCKED x_no_authority"]],
    );
}

#[test]
fn what_is_outside_of_every_grant_is_so_before_any_policy() {
    let forbids = cedar(
        "@id(\"no-4o\") @reason_code(\"POLICY_DENY_MODEL\") forbid (principal, action, resource) when \
         { context.model like \"gpt-4o*\" };",
    );
    let with = |sections| Sections { policy_files: vec![forbids.clone()], ..sections };
    check(
        &with(Sections { require_authority: true, ..granted() }),
        &expect![[r"
            gpt-4o-mini: BLOCKED POLICY_DENY_MODEL no-4o
            gpt-4o: BLOCKED x_no_authority grant:team.models
            o3: BLOCKED x_no_authority grant:team.models"]],
    );
}

#[test]
fn a_grant_permits_what_is_denied_by_default() {
    let denied = |sections| Sections { default_deny: true, ..sections };
    check(
        &denied(granted()),
        &expect![[r"
            gpt-4o-mini: ALLOWED
            gpt-4o: BLOCKED x_delegation_exceeded grant:team.models
            o3: BLOCKED x_delegation_exceeded grant:house.models"]],
    );
    let permits = cedar(
        "@id(\"o\") permit (principal, action, resource) when { context.model like \"o*\" };",
    );
    check(
        &Sections { policy_files: vec![permits], ..denied(enforcing()) },
        &expect![[r"
            gpt-4o-mini: BLOCKED x_no_authority
            gpt-4o: BLOCKED x_no_authority
            o3: ALLOWED"]],
    );
}

#[test]
fn a_sub_agent_is_held_to_the_grants_above_it_as_well() {
    let mut sections = Sections { require_authority: true, ..granted() };
    let exe = Some("/opt/reviewer".to_owned());
    sections.grants.push(grant("review", Some("house"), &["gpt-4o*"]));
    sections.principals.push(PrincipalConfig {
        name: "reviewer".to_owned(),
        matches: MatchConfig { exe: exe.clone(), ..MatchConfig::default() },
        subagent_of: Some("refund-bot".to_owned()),
        grant: Some("review".to_owned()),
        ..PrincipalConfig::default()
    });
    let key = ProcessKey { pid: 6100, start_ns: 12 };
    let facts = ProcessFacts { exe, parent: Some(BOT), ..ProcessFacts::bare(key, "reviewer") };
    let expected = expect![[r"
        gpt-4o-mini: ALLOWED
        gpt-4o: BLOCKED x_delegation_exceeded grant:team.models
        o3: BLOCKED x_no_authority grant:review.models"]];
    expected.assert_eq(&decided(&sections, facts));
}

#[test]
fn whoever_is_no_principal_has_no_authority() {
    let sections = Sections { require_authority: true, ..granted() };
    let key = ProcessKey { pid: 6200, start_ns: 13 };
    let expected = expect![[r"
        gpt-4o-mini: BLOCKED x_no_authority
        gpt-4o: BLOCKED x_no_authority
        o3: BLOCKED x_no_authority"]];
    expected.assert_eq(&decided(&sections, ProcessFacts::bare(key, "stranger")));
}

#[test]
fn of_whom_no_grant_is_the_connections_are_closed_for_good() {
    let mut sections = Sections { require_authority: true, ..granted() };
    let host = Host::new(&sections);
    assert_eq!(host.engine.denies_until(host.now, BOT, "openai"), None);
    sections.principals = vec![bot()];
    let host = Host::new(&sections);
    assert_eq!(host.engine.denies_until(host.now, BOT, "openai"), Some(u64::MAX));
}

#[test]
fn nobody_approves_what_they_handed_down_under_another_name() {
    let mut sections = granted();
    sections.humans[0].unix_user = Some("dpark".to_owned());
    sections.policies = vec![genops_governance::PolicyConfig {
        name: "ask".to_owned(),
        approval_above: Some(0.0),
        ..genops_governance::PolicyConfig::default()
    }];
    let mut host = Host::new(&sections);
    let conn = host.open(HELD);
    host.egress(conn, &chat("gpt-4o-mini", "hello")).close(conn);
    let request = host.awus.pop().unwrap().grounds.approval_request.unwrap();
    for (approver, is_taken) in [("dpark", false), ("dana", false), ("erin", true)] {
        let approval = genops_governance::Approval {
            id: "a".to_owned(),
            request: request.clone(),
            scope: genops_governance::Scope::Request,
            approver: approver.to_owned(),
            ceiling_nano_usd: 1_000_000_000,
            given_unix_ns: support::START,
            expires_unix_ns: support::START + 60_000_000_000,
        };
        let taken = host.engine.approve(host.now, approval, &[]);
        assert_eq!(taken.is_ok(), is_taken, "{approver}: {taken:?}");
    }
}

#[test]
fn nobody_approves_what_their_own_user_asks_for_under_another_name() {
    let kim = genops_governance::HumanConfig {
        name: "Kim Oduya".to_owned(),
        identity: "k.oduya@example.org".to_owned(),
        keys: Vec::new(),
        unix_user: Some("svc-refund".to_owned()),
    };
    let by_number =
        genops_governance::HumanConfig { unix_user: Some("4711".to_owned()), ..kim.clone() };
    for (human, numbered) in [(kim, false), (by_number, true)] {
        let mut sections = Sections { humans: vec![human], ..enforcing() };
        let matches =
            MatchConfig { exe: Some("/usr/bin/python3.11".to_owned()), ..MatchConfig::default() };
        sections.principals = vec![PrincipalConfig { matches, ..bot() }];
        sections.policies = vec![genops_governance::PolicyConfig {
            name: "ask".to_owned(),
            approval_above: Some(0.0),
            ..genops_governance::PolicyConfig::default()
        }];
        let mut host = Host::new(&sections);
        if numbered {
            let facts = ProcessFacts { uid: Some(4711), user: None, ..support::facts() };
            host.engine.process(support::now(2), facts);
        }
        let conn = host.open(HELD);
        host.egress(conn, &chat("gpt-4o-mini", "hello")).close(conn);
        let request = host.awus.pop().unwrap().grounds.approval_request.unwrap();
        for (approver, is_taken) in [
            ("k.oduya@example.org", false),
            ("kim oduya", false),
            ("Kim Oduya <kim@elsewhere.example>", false),
            ("erin@example.org", true),
        ] {
            let approval = genops_governance::Approval {
                id: "a".to_owned(),
                request: request.clone(),
                scope: genops_governance::Scope::Request,
                approver: approver.to_owned(),
                ceiling_nano_usd: 1_000_000_000,
                given_unix_ns: support::START,
                expires_unix_ns: support::START + 60_000_000_000,
            };
            let taken = host.engine.approve(host.now, approval, &[]);
            assert_eq!(taken.is_ok(), is_taken, "{approver} {numbered}: {taken:?}");
        }
    }
}

fn budgeted(name: &str, parent: Option<&str>, limit: f64) -> GrantConfig {
    let budget = GrantBudgetConfig { limit, unit: Unit::Usd, period: None, timezone: None };
    GrantConfig { budget: Some(budget), ..grant(name, parent, &["*"]) }
}

/// Two programs, each under an own grant, both grants below a common parent.
fn two_below_one(parent: GrantConfig, first: GrantConfig, second: GrantConfig) -> Host {
    let mut sections = Sections { humans: vec![human("dana@example.org")], ..enforcing() };
    let other = MatchConfig { exe: Some("/opt/other".to_owned()), ..MatchConfig::default() };
    sections.principals = vec![
        PrincipalConfig { grant: Some(first.name.clone()), ..bot() },
        PrincipalConfig {
            name: "other".to_owned(),
            matches: other,
            grant: Some(second.name.clone()),
            ..PrincipalConfig::default()
        },
    ];
    sections.grants = vec![parent, first, second];
    sections.require_authority = true;
    let mut host = Host::new(&sections);
    let facts =
        ProcessFacts { exe: Some("/opt/other".to_owned()), ..ProcessFacts::bare(OTHER, "o") };
    host.engine.process(host.now, facts);
    host
}

const OTHER: ProcessKey = ProcessKey { pid: 6300, start_ns: 14 };

/// Makes a call with an answer; returns the decision.
fn call(host: &mut Host, process: ProcessKey) -> String {
    let conn = host.open_for(Some(process), HELD);
    host.egress(conn, &chat("gpt-4o-mini", "hello")).ingress(conn, &ok()).close(conn);
    let awu = host.awus.pop().unwrap();
    let decision = awu.outcome.decision();
    let code = decision.reason().map_or("", ReasonCode::as_str);
    let by = awu.grounds.policy.as_deref().unwrap_or_default();
    format!("{} {code} {by}", decision.result().as_str()).trim_end().to_owned()
}

/// Each call reserves 93,750 nano-USD and costs 9,000 nano-USD.
#[test]
fn what_is_used_under_a_grant_is_used_of_all_above_it() {
    let mut host = two_below_one(
        budgeted("house", None, 0.000_12),
        budgeted("bots", Some("house"), 0.000_11),
        budgeted("others", Some("house"), 0.000_12),
    );
    assert_eq!(call(&mut host, BOT), "ALLOWED");
    assert_eq!(call(&mut host, OTHER), "ALLOWED");
    assert_eq!(call(&mut host, BOT), "ALLOWED");
    // The own budget has enough left, and the budget above has not.
    assert_eq!(call(&mut host, OTHER), "BLOCKED BUDGET_RESERVATION_FAILED grant:house");
    assert_eq!(call(&mut host, BOT), "BLOCKED BUDGET_RESERVATION_FAILED grant:bots");
    let accounts = host.engine.ledger().accounts();
    let lines: Vec<String> =
        accounts.map(|(key, it)| format!("{} {} {}", key.name(), it.spent, it.reserved)).collect();
    assert_eq!(lines, ["grant:bots 18000 0", "grant:house 27000 0", "grant:others 9000 0"]);
    // More for the budget above is more for the budgets below with some left.
    host.engine.adjust(host.now, "grant:house", 100_000, "dana", "month end").unwrap();
    assert_eq!(call(&mut host, OTHER), "ALLOWED");
    assert_eq!(call(&mut host, BOT), "BLOCKED BUDGET_RESERVATION_FAILED grant:bots");
}

fn rated(name: &str, parent: Option<&str>, requests: u32, concurrent: Option<u32>) -> GrantConfig {
    let rate =
        GrantRateConfig { requests: Some(requests), per: Some(Per::Hour), burst: None, concurrent };
    GrantConfig { rate: Some(rate), ..grant(name, parent, &["*"]) }
}

#[test]
fn whoever_asks_under_a_grant_counts_in_all_above_it() {
    let mut host = two_below_one(
        rated("house", None, 3, None),
        rated("bots", Some("house"), 2, None),
        rated("others", Some("house"), 3, None),
    );
    let called = [BOT, BOT, BOT, OTHER, OTHER, OTHER].map(|it| call(&mut host, it));
    let expected = [
        "ALLOWED",
        "ALLOWED",
        "RATE_LIMITED RATE_LIMITED grant:bots",
        "ALLOWED",
        "RATE_LIMITED RATE_LIMITED grant:house",
        "RATE_LIMITED RATE_LIMITED grant:house",
    ];
    assert_eq!(called, expected);
}

#[test]
fn no_more_run_under_a_grant_than_it_and_all_above_it_allow() {
    let mut host = two_below_one(
        rated("house", None, 100, Some(2)),
        rated("bots", Some("house"), 100, Some(1)),
        rated("others", Some("house"), 100, Some(2)),
    );
    let begin = |host: &mut Host, process| {
        let conn = host.open_for(Some(process), HELD);
        host.egress(conn, &chat("gpt-4o-mini", "hello"));
        conn
    };
    let first = begin(&mut host, BOT);
    assert_eq!(call(&mut host, BOT), "RATE_LIMITED x_concurrency_exceeded grant:bots");
    let second = begin(&mut host, OTHER);
    assert_eq!(call(&mut host, OTHER), "RATE_LIMITED x_concurrency_exceeded grant:house");
    host.ingress(first, &ok()).close(first);
    host.ingress(second, &ok()).close(second);
    host.awus.clear();
    assert_eq!(call(&mut host, BOT), "ALLOWED");
}

#[test]
fn a_grant_ends_with_the_first_of_those_above_it_and_begins_with_the_last() {
    let timed = |name: &str, parent: Option<&str>, from: &str, until: &str| GrantConfig {
        not_before: Some(format!("2026-11-22T10:{from}:00Z")),
        expires: Some(format!("2026-11-22T10:{until}:00Z")),
        ..grant(name, parent, &["*"])
    };
    let mut host = two_below_one(
        timed("house", None, "01", "04"),
        timed("bots", Some("house"), "02", "03"),
        grant("others", Some("house"), &["*"]),
    );
    let mut lines = Vec::new();
    for minute in 0..5 {
        let both = [BOT, OTHER].map(|it| call(&mut host, it));
        lines.push(format!("{minute} {}", both.join(", ")));
        host.wait_ms(60_000);
    }
    let expected = expect![[r"
        0 BLOCKED x_authority_expired bots, BLOCKED x_authority_expired house
        1 BLOCKED x_authority_expired bots, ALLOWED
        2 ALLOWED, ALLOWED
        3 BLOCKED x_authority_expired bots, ALLOWED
        4 BLOCKED x_authority_expired bots, BLOCKED x_authority_expired house"]];
    expected.assert_eq(&lines.join("\n"));
}

#[test]
fn a_grant_covers_the_endpoints_that_it_names() {
    let mut sections = granted();
    let endpoints = vec!["POST api.openai.com/v1/chat/*".to_owned()];
    sections.grants[0].scope.endpoints = Some(endpoints);
    sections.require_authority = true;
    let mut host = Host::new(&sections);
    let mut line = |path: &str| {
        let conn = host.open(HELD);
        let body = r#"{"model":"gpt-4o-mini","max_tokens":100,"input":"hello"}"#;
        host.egress(conn, &support::request_to(path, body)).close(conn);
        let awu = host.awus.pop().unwrap();
        awu.outcome.decision().reason().map(|_| awu.grounds.policy.clone().unwrap())
    };
    assert_eq!(line("/v1/chat/completions"), None);
    assert_eq!(line("/v1/responses").as_deref(), Some("grant:house.endpoints"));
    assert!(line("/v1/chat/../responses").is_some());
}
