//! What a decision, a reservation and a reload cost: `cargo xtask bench governance`.
//!
//! 1,000 policies over 199 teams, of which 6 concern the principal; the request included: its
//! context is built anew each time, from bytes on the wire to the outputs. With `--tiny` each
//! part runs a few times only, to see that it works.

#![expect(clippy::unwrap_used, reason = "a benchmark fails by panic")]
#![expect(clippy::print_stdout, reason = "its result")]
#![expect(clippy::disallowed_methods, reason = "it measures time")]

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use genops_governance::{
    AwuId, BudgetConfig, ConnId, ConnectionOpen, Demand, Engine, HoldLevel, Ledger, MatchConfig,
    Mechanism, Mode, Now, PolicyConfig, PolicyText, PrincipalConfig, ProcessFacts, ProcessKey,
    Sections, Settings, Unit,
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
    // Cargo says so where it is to measure; `cargo test` only wants to see that it works.
    let tiny = asked("--tiny") || !asked("--bench");
    let rounds = if tiny { 20 } else { 20_000 };
    let sections = sections();
    let before = resident_kib();
    println!("| what | p50 | goal | p99 | goal | of |\n| --- | --- | --- | --- | --- | --- |");
    let settings = Settings::compile(&sections).unwrap();
    let loaded = resident_kib();
    decisions("decide, no policy at all", &Settings::compile(&bare()).unwrap(), rounds, NONE);
    decisions("decide, 6 of 1,000 policies apply", &settings, rounds, DECISION);
    beside_a_reload(&sections, &settings, rounds);
    reservations(rounds);
    let reloads = (0..if tiny { 1 } else { 20 })
        .map(|_| nanoseconds(|| drop(Settings::compile(&sections).unwrap())));
    report("reload: read and compile 1,000 policies", reloads.collect(), RELOAD);
    swap(&settings, if tiny { 1 } else { 20 });
    let (end, most) = (resident_kib(), peak_kib());
    println!(
        "\nmemory: {before} KiB without policies, {loaded} KiB with 1,000, {end} KiB at the end, \
         {most} KiB at most"
    );
}

/// The same decisions while another thread compiles policies without a pause.
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

/// Four shapes of rules, as `governance.md` counts them.
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

/// From the last byte of a held request to its `Release`.
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
    let key = genops_governance::AccountKey { budget: "all".to_owned(), part: None, start_s: 0 };
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

/// What a reload costs the thread that decides, with 500 processes known.
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
