//! Laws for every sequence of events: bytes cut, lost, timed out or late, clocks set, periods
//! ending, and the agent killed in the middle of a write.

#![expect(clippy::unwrap_used, reason = "tests fail by panic")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use genops_governance::{
    AwuId, BudgetConfig, ConnId, Engine, HoldLevel, Ledger, Mode, Output, RateLimitConfig,
    RecordKind, Sections, Settings, Unit, time::Period,
};
use genops_protocols::Direction;
use proptest::prelude::*;
use support::{HELD, Host, budget, chat, ok, policy};

const CONNECTIONS: usize = 3;

/// Event of a sequence.
#[derive(Clone, Debug)]
enum Step {
    /// The next bytes of a connection's script leave the program.
    Send {
        conn: usize,
        bytes: usize,
    },
    /// The server answers.
    Answer {
        conn: usize,
    },
    /// The server sends rubbish.
    Rubbish {
        conn: usize,
        bytes: Vec<u8>,
    },
    /// Capture lost some of the script.
    Lose {
        conn: usize,
        bytes: usize,
        known: bool,
    },
    /// The kernel's deadline came.
    TimeOut {
        conn: usize,
        passed: bool,
    },
    /// The evidence could not be made durable.
    Withhold {
        conn: usize,
    },
    Close {
        conn: usize,
    },
    Wait {
        ms: u64,
    },
    /// Hours pass: periods end.
    Sleep {
        hours: u64,
    },
    /// The wall clock is set back.
    SetBack {
        minutes: u64,
    },
    /// The agent is killed while writing the consequences of the next bytes, after `written`
    /// thousandths of the data to write, and starts again.
    Kill {
        conn: usize,
        bytes: usize,
        written: usize,
    },
    /// Other settings: observe, or enforce again.
    Reload {
        observe: bool,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let conn = 0..CONNECTIONS;
    prop_oneof![
        12 => (conn.clone(), 1..400usize).prop_map(|(conn, bytes)| Step::Send { conn, bytes }),
        5 => conn.clone().prop_map(|conn| Step::Answer { conn }),
        1 => (conn.clone(), proptest::collection::vec(any::<u8>(), 1..40))
            .prop_map(|(conn, bytes)| Step::Rubbish { conn, bytes }),
        1 => (conn.clone(), 1..80usize, any::<bool>())
            .prop_map(|(conn, bytes, known)| Step::Lose { conn, bytes, known }),
        1 => (conn.clone(), any::<bool>()).prop_map(|(conn, passed)| Step::TimeOut { conn, passed }),
        1 => conn.clone().prop_map(|conn| Step::Withhold { conn }),
        1 => conn.clone().prop_map(|conn| Step::Close { conn }),
        2 => (1..2_000u64).prop_map(|ms| Step::Wait { ms }),
        1 => (1..40u64).prop_map(|hours| Step::Sleep { hours }),
        1 => (1..200u64).prop_map(|minutes| Step::SetBack { minutes }),
        1 => (conn, 1..400usize, 0..=1_000usize)
            .prop_map(|(conn, bytes, written)| Step::Kill { conn, bytes, written }),
        1 => any::<bool>().prop_map(|observe| Step::Reload { observe }),
    ]
}

fn sections(observe: bool) -> Sections {
    let limit = RateLimitConfig {
        name: "few".to_owned(),
        requests: Some(6),
        concurrent: Some(3),
        ..RateLimitConfig::default()
    };
    let of = |name: &str, period| BudgetConfig {
        name: name.to_owned(),
        period: Some(period),
        timezone: Some("Europe/Berlin".to_owned()),
        ..budget(0.000_7)
    };
    let hourly = BudgetConfig { unit: Unit::Tokens, limit: 900.0, ..of("hourly", Period::Hour) };
    let ever = BudgetConfig { project: Some("refunds".to_owned()), ..of("ever", Period::Total) };
    Sections {
        mode: if observe { Mode::Observe } else { Mode::Enforce },
        budgets: vec![budget(0.000_5), hourly, ever, of("weekly", Period::Week)],
        rate_limits: vec![limit],
        ..policy(|it| it.denied_models = vec!["*-pro".to_owned()])
    }
}

/// The settings compiled once: enforcing and observing.
static SETTINGS: LazyLock<[Settings; 2]> =
    LazyLock::new(|| [false, true].map(|it| Settings::compile(&sections(it)).unwrap()));

fn settings(observe: bool) -> Settings {
    let [enforcing, observing] = &*SETTINGS;
    if observe { observing.clone() } else { enforcing.clone() }
}

/// Returns the bytes sent by a program on a connection: calls, denied calls, and a request other
/// than a call.
fn script() -> Vec<u8> {
    let other = b"GET /v1/models HTTP/1.1\r\nHost: api.openai.com\r\n\r\n".to_vec();
    let calls = ["gpt-4o-mini", "gpt-4o-mini", "gpt-5-pro", "gpt-4o-mini"];
    calls.iter().flat_map(|it| [chat(it, "hello"), other.clone()].concat()).collect()
}

/// State observed during a sequence.
#[derive(Default)]
struct Watch {
    released: BTreeMap<ConnId, u64>,
    sent: BTreeMap<ConnId, u64>,
    denied: BTreeSet<ConnId>,
    decided: BTreeSet<AwuId>,
    told: BTreeSet<AwuId>,
    exchanges: BTreeSet<(String, u64)>,
    /// Content of the agent's disk.
    file: Vec<u8>,
    /// Usage according to evidence, by budget and period.
    used: BTreeMap<(String, String), i64>,
    /// Units running when the agent was killed: nobody reports the end.
    untold: BTreeSet<AwuId>,
}

impl Watch {
    fn see(&mut self, output: Output) -> Result<(), TestCaseError> {
        match output {
            Output::Release { conn, to } => {
                prop_assert!(!self.denied.contains(&conn), "released after a denial");
                prop_assert!(self.released.insert(conn, to).unwrap_or(0) < to);
                prop_assert!(to <= self.sent.get(&conn).copied().unwrap_or(0));
            }
            Output::Deny { conn, awu, .. } => {
                prop_assert!(self.denied.insert(conn), "denied twice");
                prop_assert!(self.decided.contains(&awu));
            }
            Output::Check { .. } => prop_assert!(false, "nobody reads counters here"),
            Output::Ledger(entry) => self.file.extend(entry.encode()),
            Output::Record(record) => match record.kind {
                RecordKind::Decision => {
                    prop_assert!(self.decided.insert(record.awu.unwrap()), "decided twice");
                }
                RecordKind::Reconciliation => {
                    for it in record.accounts {
                        let Some(budget) = it.budget else { continue };
                        let place = (budget, it.period.unwrap_or_default());
                        *self.used.entry(place).or_default() += it.actual.unwrap_or(it.reserved);
                    }
                }
                _ => {}
            },
            Output::Awu(awu) => {
                prop_assert!(self.told.insert(awu.id), "told twice");
                let place = (awu.conn.clone(), awu.call.exchange);
                prop_assert!(self.exchanges.insert(place), "two units of one exchange");
            }
        }
        Ok(())
    }
}

struct Run {
    host: Host,
    watch: Watch,
    conns: Vec<(ConnId, usize)>,
    /// Nanoseconds the wall clock was set back.
    back_ns: u64,
    /// Number of starts of the agent.
    starts: u8,
}

/// A connection is not held: nothing can be prevented there.
const HOLDS: [HoldLevel; CONNECTIONS] = [HELD, HELD, HoldLevel::None];

impl Run {
    fn new() -> Self {
        let mut host = Host::with(settings(false), Ledger::new());
        let mut watch = Watch { file: Ledger::new().snapshot(), ..Watch::default() };
        watch.file.extend(host.ledger.drain(..).flat_map(|it| it.encode()));
        let conns = HOLDS.map(|hold| (host.open(hold), 0)).to_vec();
        Self { host, watch, conns, back_ns: 0, starts: 1 }
    }

    /// Kills the agent after writing `written` thousandths of the pending ledger data, and before
    /// carrying out any output.
    fn kill(&mut self, written: usize) -> Result<(), TestCaseError> {
        let outputs: Vec<Output> = self.host.engine.outputs().collect();
        let mut pending = Vec::new();
        for output in &outputs {
            if let Output::Ledger(entry) = output {
                pending.extend(entry.encode());
            }
        }
        pending.truncate(pending.len() * written / 1_000);
        self.watch.file.extend(pending);
        let restored = Ledger::restore(&self.watch.file).unwrap();
        self.watch.file.truncate(self.watch.file.len() - restored.torn_bytes);
        self.watch.untold.extend(self.watch.decided.difference(&self.watch.told));
        self.starts += 1;
        let (now, next) = (self.host.now, self.host.next);
        self.host.engine = Engine::new(settings(false), restored.ledger, [0x80 | self.starts; 32]);
        self.host.next = next;
        self.host.engine.process(now, support::facts());
        self.conns = HOLDS.map(|hold| (self.host.open(hold), 0)).to_vec();
        self.drain()?;
        prop_assert_eq!(self.host.engine.ledger().open().count(), 0);
        Ok(())
    }

    fn step(&mut self, step: &Step) -> Result<(), TestCaseError> {
        let Self { host, watch, conns, .. } = self;
        let now = host.now;
        let at = now.mono_ns;
        match step {
            Step::Send { conn, bytes } => {
                let (id, done) = conns.get_mut(*conn).unwrap();
                let script = script();
                let end = (*done + bytes).min(script.len());
                let piece = script.get(*done..end).unwrap_or_default();
                *done = end;
                *watch.sent.entry(*id).or_default() += piece.len() as u64;
                host.engine.data(now, *id, at, Direction::Egress, piece);
            }
            Step::Answer { conn } => {
                let (id, _) = conns.get(*conn).unwrap();
                host.engine.data(now, *id, at, Direction::Ingress, &ok());
            }
            Step::Rubbish { conn, bytes } => {
                let (id, _) = conns.get(*conn).unwrap();
                host.engine.data(now, *id, at, Direction::Ingress, bytes);
            }
            Step::Lose { conn, bytes, known } => {
                let (id, done) = conns.get_mut(*conn).unwrap();
                let lost = (*bytes).min(script().len() - *done);
                *done += lost;
                *watch.sent.entry(*id).or_default() += lost as u64;
                let lost = known.then_some(lost as u64);
                host.engine.gap(now, *id, at, Direction::Egress, lost);
            }
            Step::TimeOut { conn, passed } => {
                let (id, _) = conns.get(*conn).unwrap();
                let to = watch.sent.get(id).copied().unwrap_or(0);
                host.engine.timed_out(now, *id, to, *passed);
                if *passed {
                    let released = watch.released.entry(*id).or_default();
                    *released = (*released).max(to);
                }
            }
            Step::Withhold { conn } => host.engine.withhold(now, conns.get(*conn).unwrap().0),
            Step::Close { conn } => {
                let slot = conns.get_mut(*conn).unwrap();
                host.engine.close(now, slot.0, at);
                *slot = (host.open(*HOLDS.get(*conn).unwrap()), 0);
            }
            Step::Wait { ms } => self.wait(*ms),
            Step::Sleep { hours } => self.wait(hours * 3_600_000),
            Step::SetBack { minutes } => {
                self.back_ns += minutes * 60 * 1_000_000_000;
                self.wait(0);
            }
            Step::Kill { conn, bytes, written } => {
                let (id, done) = conns.get_mut(*conn).unwrap();
                let script = script();
                let piece = script.get(*done..(*done + bytes).min(script.len()));
                host.engine.data(now, *id, at, Direction::Egress, piece.unwrap_or_default());
                return self.kill(*written);
            }
            Step::Reload { observe } => {
                host.engine.reload(now, settings(*observe));
            }
        }
        self.drain()
    }

    fn wait(&mut self, ms: u64) {
        self.host.wait_ms(ms);
        self.host.now.unix_ns -= self.back_ns;
    }

    fn drain(&mut self) -> Result<(), TestCaseError> {
        let outputs: Vec<Output> = self.host.engine.outputs().collect();
        for output in outputs {
            self.watch.see(output)?;
        }
        let ledger = self.host.engine.ledger();
        for (key, account) in ledger.accounts() {
            prop_assert!(account.reserved >= 0);
            prop_assert!(account.reserved + account.spent <= account.limit);
            let place = (key.budget.clone(), account.period.clone());
            let used = self.watch.used.get(&place).copied().unwrap_or(0);
            // A kill between the accounts and the evidence leaves more in the accounts.
            let (consumed, killed) = (account.consumed(), self.starts > 1);
            prop_assert!(consumed == used || consumed > used && killed, "{place:?}: {used}");
        }
        Ok(())
    }

    fn finish(mut self) -> Result<(), TestCaseError> {
        self.host.engine.finish(self.host.now);
        self.drain()?;
        let told: BTreeSet<AwuId> = self.watch.told.union(&self.watch.untold).copied().collect();
        prop_assert_eq!(&self.watch.decided, &told);
        prop_assert_eq!(self.host.engine.ledger().open().count(), 0);
        let restored = Ledger::restore(&self.watch.file).unwrap().ledger;
        prop_assert_eq!(&restored, self.host.engine.ledger());
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn each_call_is_decided_once_told_once_and_accounted_for(
        steps in proptest::collection::vec(step(), 1..80)
    ) {
        let mut run = Run::new();
        for step in &steps {
            run.step(step)?;
        }
        run.finish()?;
    }
}
