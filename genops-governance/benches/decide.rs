//! Cost of a decision, a reservation and a reload: `cargo xtask bench governance`.
//!
//! 1,000 policies over 199 teams, 6 of the policies concern the principal; the request included:
//! each round goes from bytes on the wire to the outputs, with a new context. With `--tiny` each
//! part runs a few times only, as a check.

#![expect(clippy::unwrap_used, reason = "a benchmark fails by panic")]
#![expect(clippy::print_stdout, reason = "its result")]
#![expect(clippy::disallowed_methods, reason = "it measures time")]

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use genops_governance::{
    AwuId, BudgetConfig, ConnId, ConnectionOpen, Demand, Engine, GrantBudgetConfig, GrantConfig,
    GrantRateConfig, HoldLevel, HumanConfig, Ledger, MatchConfig, Mechanism, Mode, Now, Per,
    PolicyConfig, PolicyText, PrincipalConfig, ProcessFacts, ProcessKey, ScopeConfig, Sections,
    Settings, Unit,
};
use genops_protocols::Direction;

const BOT: ProcessKey = ProcessKey { pid: 4242, start_ns: 7 };

/// A goal at the median and at the 99th percentile, in nanoseconds.
type Goal = (Option<u64>, Option<u64>);

const DECISION: Goal = (Some(15_000), Some(50_000));
const RESERVATION: Goal = (Some(1_000), None);
const RELOAD: Goal = (Some(300_000_000), Some(300_000_000));
const NONE: Goal = (None, None);

fn main() {
    let asked = |option: &str| std::env::args().any(|it| it == option);
    // Cargo passes `--bench` for a measurement; `cargo test` only checks the program.
    let tiny = asked("--tiny") || !asked("--bench");
    let rounds = if tiny { 20 } else { 20_000 };
    let sections = sections();
    let before = resident_kib();
    println!("| what | p50 | goal | p99 | goal | of |\n| --- | --- | --- | --- | --- | --- |");
    let settings = Settings::compile(&sections).unwrap();
    let loaded = resident_kib();
    decisions("decide, no policy at all", &Settings::compile(&bare()).unwrap(), rounds, NONE);
    decisions("decide, 6 of 1,000 policies apply", &settings, rounds, DECISION);
    for (name, of) in CHAINS {
        decisions(name, &Settings::compile(&granted(of)).unwrap(), rounds, NONE);
    }
    beside_a_reload(&sections, &settings, rounds);
    reservations(rounds);
    let reloads = (0..if tiny { 1 } else { 20 })
        .map(|_| nanoseconds(|| drop(Settings::compile(&sections).unwrap())));
    report("reload: read and compile 1,000 policies", reloads.collect(), RELOAD);
    many_grants(if tiny { 1 } else { 5 });
    swap(&settings, if tiny { 1 } else { 20 });
    let (end, most) = (resident_kib(), peak_kib());
    println!(
        "\nmemory: {before} KiB without policies, {loaded} KiB with 1,000, {end} KiB at the end, \
         {most} KiB at most"
    );
}

/// Chains of grants: the length of each, and whether each link has a budget and a rate.
const CHAINS: [(&str, (usize, bool)); 4] = [
    ("decide, under one grant", (1, false)),
    ("decide, under a chain of four grants", (4, false)),
    ("decide, under one grant with budget and rate", (1, true)),
    ("decide, under a chain of four, each with budget and rate", (4, true)),
];

/// The bot under a chain of grants, each with a scope.
fn granted((length, limited): (usize, bool)) -> Sections {
    let list = |it: &[&str]| Some(it.iter().map(|it| (*it).to_owned()).collect());
    let budget = GrantBudgetConfig { limit: 1e6, unit: Unit::Usd, period: None, timezone: None };
    let rate = GrantRateConfig {
        requests: Some(1_000_000),
        per: Some(Per::Second),
        concurrent: Some(1_000_000),
        ..GrantRateConfig::default()
    };
    let grant = |number: usize| GrantConfig {
        name: format!("g{number}"),
        parent: (number > 0).then(|| format!("g{}", number - 1)),
        delegated_by: (number == 0).then(|| "alice".to_owned()),
        scope: ScopeConfig {
            providers: list(&["openai", "anthropic"]),
            models: list(&["gpt-4o*", "claude-*"]),
            operations: list(&["chat"]),
            endpoints: list(&["api.openai.com", "api.anthropic.com"]),
            max_cost: Some(5.0),
            ..ScopeConfig::default()
        },
        budget: limited.then(|| budget.clone()),
        rate: limited.then(|| rate.clone()),
        ..GrantConfig::default()
    };
    let human = HumanConfig {
        name: "alice".to_owned(),
        identity: "alice@example.com".to_owned(),
        ..HumanConfig::default()
    };
    let mut sections = Sections { require_authority: true, humans: vec![human], ..bare() };
    sections.grants = (0..length).map(grant).collect();
    let lowest = length.checked_sub(1).map(|it| format!("g{it}"));
    sections.principals.iter_mut().for_each(|it| it.grant.clone_from(&lowest));
    sections
}

/// 10,000 grants: 100 of a human, each above 99 others.
fn many_grants(rounds: u32) {
    let mut sections = granted((1, true));
    let one = sections.grants.pop().unwrap();
    let grant = |number: usize| GrantConfig {
        name: format!("g{number}"),
        parent: (!number.is_multiple_of(100)).then(|| format!("g{}", number - number % 100)),
        delegated_by: (number.is_multiple_of(100)).then(|| "alice".to_owned()),
        ..one.clone()
    };
    sections.grants = (0..10_000).map(grant).collect();
    let before = resident_kib();
    let kept = Settings::compile(&sections).unwrap();
    let grown = resident_kib() - before;
    let times = (0..rounds).map(|_| nanoseconds(|| drop(Settings::compile(&sections).unwrap())));
    let times: Vec<u64> = times.collect();
    report("read and compile 10,000 grants", times, (Some(200_000_000), None));
    decisions("decide, with 10,000 grants", &kept, 20, NONE);
    println!("| memory of 10,000 grants | {grown} KiB | | | | |");
}

/// Measures the same decisions while another thread compiles policies without a pause.
fn beside_a_reload(sections: &Sections, settings: &Settings, rounds: u64) {
    let (stop, stopped) = (AtomicBool::new(false), Ordering::Relaxed);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(stopped) {
                drop(Settings::compile(sections).unwrap());
            }
        });
        decisions("decide, while 1,000 policies are compiled", settings, rounds, DECISION);
        stop.store(true, stopped);
    });
}

/// Four shapes of rules, as counted in `governance.md`.
fn sections() -> Sections {
    let mut cedar = String::new();
    for number in 0..994 {
        let team = number % 199;
        let condition = match number % 4 {
            0 => "context.model like \"o9*\"",
            1 => "context.region == \"us-gov\"",
            2 => "context.est_nano_usd > 900000000000",
            _ => "context.est_tokens > 90000000",
        };
        writeln!(
            cedar,
            "@id(\"p{number}\") @reason_code(\"POLICY_DENY_MODEL\")\nforbid (principal in \
             GenOps::Team::\"team-{team}\", action == GenOps::Action::\"invoke\", resource)\nwhen \
             {{ {condition} }};"
        )
        .unwrap();
    }
    let policy = PolicyConfig {
        name: "everyone".to_owned(),
        denied_models: vec!["*-pro".to_owned()],
        ..PolicyConfig::default()
    };
    let policy_files = vec![PolicyText { name: "bench.cedar".to_owned(), text: cedar }];
    Sections { policies: vec![policy], policy_files, ..bare() }
}

fn bare() -> Sections {
    let principal = PrincipalConfig {
        name: "bot".to_owned(),
        matches: MatchConfig { user: Some("bot".to_owned()), ..MatchConfig::default() },
        team: Some("team-7".to_owned()),
        project: Some("bench".to_owned()),
        ..PrincipalConfig::default()
    };
    Sections {
        mode: Mode::Enforce,
        environment: Some("bench".to_owned()),
        principals: vec![principal],
        budgets: vec![BudgetConfig {
            name: "all".to_owned(),
            limit: 1_000_000.0,
            ..BudgetConfig::default()
        }],
        ..Sections::default()
    }
}

fn engine(settings: &Settings) -> Engine {
    let mut engine = Engine::new(settings.clone(), Ledger::new(), [1; 32]);
    let user = Some("bot".to_owned());
    engine.process(now(1), ProcessFacts { user, ..ProcessFacts::bare(BOT, "bot") });
    engine
}

fn now(mono_ns: u64) -> Now {
    Now { mono_ns, unix_ns: 1_795_341_600_000_000_000 + mono_ns }
}

/// From the last byte of a held request to the `Release`.
fn decisions(name: &str, settings: &Settings, rounds: u64, goal: Goal) {
    let body = r#"{"model":"gpt-4o-mini","max_tokens":100,"messages":[{"role":"user","content":"hello"}]}"#;
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: api.openai.com\r\nContent-Type: \
         application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut engine = engine(settings);
    let mut times = Vec::new();
    for number in 0..rounds {
        let conn = ConnId(number);
        let open = ConnectionOpen {
            name: String::new(),
            process: Some(BOT),
            pid: None,
            comm: None,
            exe: None,
            server_name: None,
            local: None,
            remote: None,
            from_start: true,
            hold: HoldLevel::Held(Mechanism::EgressHold),
        };
        let at = now(number * 1_000);
        engine.open(at, conn, open);
        let (head, last) = request.as_bytes().split_at(request.len() - 1);
        engine.data(at, conn, at.mono_ns, Direction::Egress, head);
        times.push(nanoseconds(|| {
            engine.data(at, conn, at.mono_ns, Direction::Egress, last);
        }));
        assert!(engine.outputs().count() > 0);
        engine.close(at, conn, at.mono_ns);
        engine.outputs().for_each(drop);
    }
    report(name, times, goal);
}

fn reservations(rounds: u64) {
    let mut ledger = Ledger::new();
    let (budget, unit) = ("all".to_owned(), Unit::Usd);
    let key = genops_governance::AccountKey { budget, part: None, start_s: 0, unit };
    let demand = Demand {
        key,
        end_s: i64::MAX,
        period: "total".to_owned(),
        unit: Unit::Usd,
        limit: i64::MAX / 2,
        amount: 10,
    };
    let mut log = Vec::new();
    let mut times = Vec::new();
    for number in 0..rounds {
        let mut awu = AwuId { trace: [1; 16], span: [2; 8] };
        awu.span.copy_from_slice(&number.to_be_bytes());
        let demands = std::slice::from_ref(&demand);
        times.push(nanoseconds(|| ledger.reserve(1, awu, demands, &mut log).unwrap()));
        ledger.settle(1, awu, Some(vec![10]), &mut log);
        log.clear();
    }
    report("reserve in one budget", times, RESERVATION);
}

/// Cost of a reload to the deciding thread, with 500 processes known.
fn swap(settings: &Settings, rounds: u32) {
    let mut engine = engine(settings);
    for pid in 0..500 {
        let key = ProcessKey { pid, start_ns: u64::from(pid) };
        engine.process(now(2), ProcessFacts::bare(key, "worker"));
    }
    let times = (0..rounds).map(|_| {
        let next = settings.clone();
        nanoseconds(|| engine.reload(now(3), next))
    });
    let times = times.collect();
    report("reload: put it in force, 500 processes known", times, NONE);
}

fn nanoseconds(work: impl FnOnce()) -> u64 {
    let start = Instant::now();
    work();
    u64::try_from(start.elapsed().as_nanos()).unwrap()
}

fn report(name: &str, mut times: Vec<u64>, (p50_goal, p99_goal): Goal) {
    times.sort_unstable();
    let at = |percent: usize| times.get((times.len() - 1) * percent / 100).copied().unwrap();
    let goal = |goal: Option<u64>, measured: u64| match goal {
        None => String::new(),
        Some(goal) if measured <= goal => format!("{}: met", microseconds(goal)),
        Some(goal) => format!("{}: missed", microseconds(goal)),
    };
    let (p50, p99) = (at(50), at(99));
    println!(
        "| {name} | {} | {} | {} | {} | {} |",
        microseconds(p50),
        goal(p50_goal, p50),
        microseconds(p99),
        goal(p99_goal, p99),
        times.len()
    );
}

fn microseconds(ns: u64) -> String {
    format!("{}.{} µs", ns / 1_000, ns % 1_000 / 100)
}

fn resident_kib() -> u64 {
    status("VmRSS:")
}

fn peak_kib() -> u64 {
    status("VmHWM:")
}

fn status(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|it| it.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
