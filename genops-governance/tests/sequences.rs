//! Laws that hold for every sequence of events, however bytes are cut, lost, timed out or late.

#![expect(clippy::unwrap_used, reason = "tests fail by panic")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use genops_governance::{
    AwuId, ConnId, Entry, HoldLevel, Ledger, Mode, Output, RateLimitConfig, RecordKind, Sections,
    Settings,
};
use genops_protocols::Direction;
use proptest::prelude::*;
use support::{HELD, Host, budget, chat, ok, policy};

const CONNECTIONS: usize = 3;

/// One thing that happens.
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
        1 => conn.prop_map(|conn| Step::Close { conn }),
        2 => (1..2_000u64).prop_map(|ms| Step::Wait { ms }),
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
    Sections {
        mode: if observe { Mode::Observe } else { Mode::Enforce },
        budgets: vec![budget(0.000_5)],
        rate_limits: vec![limit],
        ..policy(|it| it.denied_models = vec!["*-pro".to_owned()])
    }
}

/// The same, compiled once: enforcing and observing.
static SETTINGS: LazyLock<[Settings; 2]> =
    LazyLock::new(|| [false, true].map(|it| Settings::compile(&sections(it)).unwrap()));

fn settings(observe: bool) -> Settings {
    let [enforcing, observing] = &*SETTINGS;
    if observe { observing.clone() } else { enforcing.clone() }
}

/// What a program sends on one connection: calls, denied calls, and a request that is no call.
fn script() -> Vec<u8> {
    let other = b"GET /v1/models HTTP/1.1\r\nHost: api.openai.com\r\n\r\n".to_vec();
    let calls = ["gpt-4o-mini", "gpt-4o-mini", "gpt-5-pro", "gpt-4o-mini"];
    calls.iter().flat_map(|it| [chat(it, "hello"), other.clone()].concat()).collect()
}

/// What is watched while it happens.
#[derive(Default)]
struct Watch {
    released: BTreeMap<ConnId, u64>,
    sent: BTreeMap<ConnId, u64>,
    denied: BTreeSet<ConnId>,
    decided: BTreeSet<AwuId>,
    told: BTreeSet<AwuId>,
    exchanges: BTreeSet<(String, u64)>,
    entries: Vec<Entry>,
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
            Output::Ledger(entry) => self.entries.push(entry),
            Output::Record(record) => {
                if record.kind == RecordKind::Decision {
                    prop_assert!(self.decided.insert(record.awu.unwrap()), "decided twice");
                }
            }
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
}

impl Run {
    fn new() -> Self {
        let mut host = Host::with(settings(false), Ledger::new());
        let mut watch = Watch::default();
        watch.entries.append(&mut host.ledger);
        // One of them is not held: there, nothing can be prevented.
        let holds = [HELD, HELD, HoldLevel::None];
        let conns = holds.map(|hold| (host.open(hold), 0)).to_vec();
        Self { host, watch, conns }
    }

    fn step(&mut self, step: &Step) -> Result<(), TestCaseError> {
        let Self { host, watch, conns } = self;
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
                let hold = if *conn == 2 { HoldLevel::None } else { HELD };
                *slot = (host.open(hold), 0);
            }
            Step::Wait { ms } => host.wait_ms(*ms),
            Step::Reload { observe } => {
                host.engine.reload(now, settings(*observe));
            }
        }
        self.drain()
    }

    fn drain(&mut self) -> Result<(), TestCaseError> {
        let outputs: Vec<Output> = self.host.engine.outputs().collect();
        for output in outputs {
            self.watch.see(output)?;
        }
        for (_, account) in self.host.engine.ledger().accounts() {
            prop_assert!(account.reserved >= 0);
            prop_assert!(account.reserved + account.spent <= account.limit);
        }
        Ok(())
    }

    fn finish(mut self) -> Result<(), TestCaseError> {
        self.host.engine.finish(self.host.now);
        self.drain()?;
        prop_assert_eq!(&self.watch.decided, &self.watch.told);
        prop_assert_eq!(self.host.engine.ledger().open().count(), 0);
        let mut file = Ledger::new().snapshot();
        file.extend(self.watch.entries.iter().flat_map(Entry::encode));
        let restored = Ledger::restore(&file).unwrap().ledger;
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
