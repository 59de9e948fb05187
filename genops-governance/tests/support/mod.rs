//! Test host: an engine, a clock moved by the test, and HTTP exchanges as input.

#![allow(dead_code, reason = "each test binary uses another part")]
#![allow(unreachable_pub, reason = "a module of several test binaries")]
#![allow(missing_docs, reason = "tests")]

use std::fmt::Write as _;

use expect_test::Expect;
use genops_governance::{
    Again, Awu, BudgetConfig, ConnId, ConnectionOpen, Engine, Entry, HoldLevel, HumanConfig,
    Ledger, MatchConfig, Mechanism, Mode, Now, Output, PolicyConfig, PrincipalConfig, ProcessFacts,
    ProcessKey, Record, Sections, Settings, Value, time::Period,
};
use genops_protocols::Direction;

/// 2026-11-22T10:00:00Z.
pub const START: u64 = 1_795_341_600_000_000_000;

pub const BOT: ProcessKey = ProcessKey { pid: 4242, start_ns: 7 };

/// Test host: an engine, a clock moved by the test, and the output.
pub struct Host {
    pub engine: Engine,
    pub now: Now,
    pub next: u64,
    /// Server name of the connections opened from now on.
    pub server_name: &'static str,
    pub text: String,
    pub awus: Vec<Awu>,
    pub ledger: Vec<Entry>,
}

/// Returns the facts of [`BOT`].
pub fn facts() -> ProcessFacts {
    let exe = Some("/usr/bin/python3.11".to_owned());
    let user = Some("svc-refund".to_owned());
    ProcessFacts { exe, user, ..ProcessFacts::bare(BOT, "python3") }
}

pub fn now(mono_ns: u64) -> Now {
    Now { mono_ns, unix_ns: START + mono_ns }
}

impl Host {
    pub fn new(sections: &Sections) -> Self {
        Self::on(sections, Ledger::new())
    }

    pub fn on(sections: &Sections, ledger: Ledger) -> Self {
        Self::with(Settings::compile(sections).unwrap(), ledger)
    }

    pub fn with(settings: Settings, ledger: Ledger) -> Self {
        let mut engine = Engine::new(settings, ledger, [7; 32]);
        engine.process(now(1), facts());
        let (text, awus, ledger) = (String::new(), Vec::new(), Vec::new());
        let server_name = "api.openai.com";
        let mut host = Self { engine, now: now(1), next: 0, server_name, text, awus, ledger };
        host.drain();
        host.text.clear();
        host
    }

    pub fn wait_ms(&mut self, ms: u64) {
        self.now = now(self.now.mono_ns + ms * 1_000_000);
    }

    pub fn open(&mut self, hold: HoldLevel) -> ConnId {
        self.open_for(Some(BOT), hold)
    }

    pub fn open_for(&mut self, process: Option<ProcessKey>, hold: HoldLevel) -> ConnId {
        self.next += 1;
        self.open_as(ConnId(self.next), process, hold)
    }

    pub fn open_as(
        &mut self,
        conn: ConnId,
        process: Option<ProcessKey>,
        hold: HoldLevel,
    ) -> ConnId {
        let open = ConnectionOpen {
            name: format!("c{}", conn.0),
            process,
            pid: None,
            comm: None,
            exe: None,
            server_name: Some(self.server_name.to_owned()),
            local: None,
            remote: None,
            from_start: true,
            hold,
        };
        self.engine.open(self.now, conn, open);
        conn
    }

    pub fn egress(&mut self, conn: ConnId, bytes: &[u8]) -> &mut Self {
        self.engine.data(self.now, conn, self.now.mono_ns, Direction::Egress, bytes);
        self.drain();
        self
    }

    pub fn ingress(&mut self, conn: ConnId, bytes: &[u8]) -> &mut Self {
        self.engine.data(self.now, conn, self.now.mono_ns, Direction::Ingress, bytes);
        self.drain();
        self
    }

    pub fn close(&mut self, conn: ConnId) -> &mut Self {
        self.engine.close(self.now, conn, self.now.mono_ns);
        self.drain();
        self
    }

    /// Renders the output, a line for each; identities are left out. Every decision is repeated
    /// from the record, and must have the same result.
    pub fn drain(&mut self) {
        let outputs: Vec<Output> = self.engine.outputs().collect();
        for output in outputs {
            if let Output::Record(record) = &output {
                same_again(self.engine.settings(), record);
            }
            let out = &mut self.text;
            match output {
                Output::Release { conn, to } => writeln!(out, "release c{} to {to}", conn.0),
                Output::Deny { conn, collateral, .. } => {
                    writeln!(out, "deny c{} collateral {collateral}", conn.0)
                }
                Output::Check { conn } => writeln!(out, "check c{}", conn.0),
                Output::Ledger(entry) => {
                    self.ledger.push(entry);
                    Ok(())
                }
                Output::Record(record) => {
                    write!(out, "record {}", record.kind.as_str()).unwrap();
                    for account in &record.accounts {
                        let budget = account.budget.as_deref().unwrap_or("-");
                        let (reserved, actual) = (account.reserved, account.actual);
                        write!(out, " [{budget} {reserved} {actual:?}").unwrap();
                        write!(out, " left {:?}]", account.remaining).unwrap();
                    }
                    writeln!(out)
                }
                Output::Awu(awu) => {
                    let line = render(&awu);
                    self.awus.push(*awu);
                    writeln!(out, "{line}")
                }
            }
            .unwrap();
        }
    }

    #[track_caller]
    pub fn check(&mut self, expected: &Expect) {
        expected.assert_eq(&self.text);
        self.text.clear();
    }
}

/// Checks that repeating a recorded decision gives the recorded result.
fn same_again(settings: &Settings, record: &Record) {
    let again = settings.decide_again(record);
    let decided = record.decision.clone().map(|it| Again {
        result: it.result,
        reason: it.reason,
        policy: it.policy,
        matched: it.matched,
    });
    assert_eq!(again, decided, "{record:#?}");
}

/// Returns the attributes of a unit of interest to tests.
pub fn render(awu: &Awu) -> String {
    let mut line = String::from("awu");
    for (name, value) in awu.attributes() {
        let Some(name) = name.strip_prefix("genops.") else {
            if name == "error.type" {
                write!(line, " error={value:?}").unwrap();
            }
            continue;
        };
        let shown = [
            "policy.result",
            "policy.reason_code",
            "policy.name",
            "policy.reason",
            "accounting.reserved",
            "accounting.actual",
            "accounting.incomplete",
            "compliance",
            "capture.level",
            "enforcement.mechanism",
            "enforcement.timed_out",
            "enforcement.bytes_before_decision",
            "sla.met",
        ];
        if shown.contains(&name) {
            match value {
                Value::Str(text) => write!(line, "\n  {name}: {text}"),
                other => write!(line, "\n  {name}: {other:?}"),
            }
            .unwrap();
        }
    }
    line
}

pub const HELD: HoldLevel = HoldLevel::Held(Mechanism::EgressHold);

pub fn request_to(path: &str, body: &str) -> Vec<u8> {
    format!(
        "POST {path} HTTP/1.1\r\nHost: api.openai.com\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

pub fn chat(model: &str, text: &str) -> Vec<u8> {
    request_to(
        "/v1/chat/completions",
        &format!(
            r#"{{"model":"{model}","max_tokens":100,"service_tier":"default","messages":[{{"role":"user","content":"{text}"}}]}}"#
        ),
    )
}

pub fn answer(status: u16, body: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

pub fn ok() -> Vec<u8> {
    answer(
        200,
        r#"{"id":"r1","object":"chat.completion","model":"gpt-4o-mini-2024-07-18","service_tier":"default","choices":[{"index":0,"finish_reason":"stop","message":{"role":"assistant","content":"hi"}}],"usage":{"prompt_tokens":20,"completion_tokens":10,"total_tokens":30}}"#,
    )
}

pub fn bot() -> PrincipalConfig {
    let user = Some("svc-refund".to_owned());
    PrincipalConfig {
        name: "refund-bot".to_owned(),
        matches: MatchConfig { user, ..MatchConfig::default() },
        team: Some("payments".to_owned()),
        project: Some("refunds".to_owned()),
        ..PrincipalConfig::default()
    }
}

pub fn human(identity: &str) -> HumanConfig {
    let name = identity.split('@').next().unwrap_or_default().to_owned();
    HumanConfig { name, identity: identity.to_owned(), ..HumanConfig::default() }
}

pub fn enforcing() -> Sections {
    Sections {
        environment: Some("production".to_owned()),
        mode: Mode::Enforce,
        principals: vec![bot()],
        ..Sections::default()
    }
}

pub fn policy(change: impl FnOnce(&mut PolicyConfig)) -> Sections {
    let mut policy = PolicyConfig { name: "rules".to_owned(), ..PolicyConfig::default() };
    change(&mut policy);
    Sections { policies: vec![policy], ..enforcing() }
}

pub fn budget(limit: f64) -> BudgetConfig {
    BudgetConfig {
        name: "daily".to_owned(),
        team: Some("payments".to_owned()),
        limit,
        period: Some(Period::Day),
        ..BudgetConfig::default()
    }
}
