//! Connections without readable plaintext: a single unit each, decided by principal, server and
//! time.

use std::sync::Arc;

use genops_protocols::{Call, Direction, Kind};

use super::core::{Core, Subject};
use super::decide::Objection;
use super::estimate::{Ask, Guess};
use super::link::Link;
use super::{Beforehand, ConnId, Contacted, Unread};
use crate::config::{Mode, Uninspectable, Unnamed};
use crate::decision::ReasonCode;
use crate::ledger::{Account, Demand};
use crate::process::ProcessKey;
use crate::record::{Record, RecordKind, Texts};
use crate::time::Now;

/// `gen_ai.operation.name` of data sent and not explained by plaintext.
const UNEXPLAINED: &str = "x_unexplained";

/// `gen_ai.operation.name` of a handshake with an unconfirmed server name.
pub(super) const UNNAMED: &str = "x_unnamed";

/// Data sent by a socket without plaintext to explain the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unexplainable {
    /// Reason, as named in `genops.capture.reason`.
    pub reason: &'static str,
    /// The data was stopped for good; otherwise the data has left.
    pub stopped: bool,
}

/// Judgement on a connection.
pub(super) enum Judged {
    /// The connection is ended.
    Refused(Objection),
    /// The connection continues; an objection becomes a warning.
    Passes(Option<Objection>),
}

impl Core {
    /// See [`super::Engine::opaque`].
    pub(super) fn open_opaque(&mut self, now: Now, link: &mut Link, contacted: Contacted<'_>) {
        let Contacted { server, provider, beforehand, times } = contacted;
        link.times = times;
        let call = call_of(provider, server, now.mono_ns);
        self.decide_opaque(now, link, &call, beforehand);
    }

    /// See [`super::Engine::unexplained`].
    pub(super) fn open_unexplained(
        &mut self,
        now: Now,
        link: &mut Link,
        server: Option<&str>,
        provider: &str,
        unread: Unexplainable,
    ) {
        let operation = Some(UNEXPLAINED.to_owned());
        let provider = Some(provider.to_owned()).filter(|it| !it.is_empty());
        let call = Call { operation, provider, ..call_of("", server, now.mono_ns) };
        link.unread = Some(unread.reason);
        let beforehand = if unread.stopped { Beforehand::Refused } else { Beforehand::Nothing };
        self.decide_opaque(now, link, &call, beforehand);
    }

    /// See [`super::Engine::unnamed`].
    pub(super) fn open_unnamed(&mut self, now: Now, link: &mut Link, server: Option<&str>) {
        self.start(now);
        let subject = self.subject(link);
        let operation = Some(UNNAMED.to_owned());
        let call = Call { operation, provider: None, ..call_of("", server, now.mono_ns) };
        link.opaque = Some(call.clone());
        let ask = self.ask_of(&subject, &call);
        let judged = self.judge_unnamed(&subject, server, link.can_prevent(u64::MAX));
        self.apply_to_all(now, link, &subject, &ask, judged);
    }

    /// Judges a handshake with a server name confirmed by nobody.
    pub(super) fn judge_unnamed(
        &self,
        subject: &Subject,
        server: Option<&str>,
        preventable: bool,
    ) -> Judged {
        let why = match server {
            Some(_) => "no name server or hosts file has said that this server is at this address",
            None => "it says no server name",
        };
        let objection = Objection::block(ReasonCode::UNINSPECTABLE, None, why);
        let ends = self.settings.0.unnamed == Unnamed::Block;
        if ends && preventable && subject.identity.mode == Mode::Enforce {
            Judged::Refused(objection)
        } else {
            Judged::Passes(Some(objection))
        }
    }

    fn decide_opaque(&mut self, now: Now, link: &mut Link, call: &Call, beforehand: Beforehand) {
        self.start(now);
        let subject = self.subject(link);
        link.opaque = Some(call.clone());
        let ask = self.ask_of(&subject, call);
        let preventable = link.can_prevent(u64::MAX);
        let judged = match self.judge_host(now, &subject, &ask, preventable) {
            // The configuration has changed since.
            Judged::Passes(_) if beforehand == Beforehand::Refused => {
                let why =
                    "the kernel refused it, as it had been told before the configuration changed";
                Judged::Refused(Objection::block(ReasonCode::CONNECTION_DENIED, None, why))
            }
            Judged::Passes(_) if beforehand == Beforehand::TooMany => {
                let why = "more than 100 requests of this user were refused within a second, so that \
                           connects to this provider are refused for the next";
                Judged::Refused(Objection::block(ReasonCode::TOO_MANY_REFUSALS, None, why))
            }
            _ if beforehand == Beforehand::Undecided => {
                let why = "no agent was there to decide, and the timeout is closed";
                Judged::Refused(Objection::block(ReasonCode::DECISION_TIMEOUT, None, why))
            }
            judged => judged,
        };
        self.apply_to_all(now, link, &subject, &ask, judged);
    }

    /// Ends a connection, or releases all egress.
    fn apply_to_all(
        &mut self,
        now: Now,
        link: &mut Link,
        subject: &Subject,
        ask: &Ask<'_>,
        judged: Judged,
    ) {
        match judged {
            Judged::Refused(objection) => {
                self.refuse_opaque(now, link, subject, ask, &objection);
                self.deny(now, link);
            }
            Judged::Passes(warning) => {
                self.permit_opaque(now, link, subject, ask, warning);
                self.let_go(link);
            }
        }
    }

    /// Judges a connection with only the host known.
    pub(super) fn judge_host(
        &self,
        now: Now,
        subject: &Subject,
        ask: &Ask<'_>,
        preventable: bool,
    ) -> Judged {
        let rule = self.settings.0.uninspectable;
        let objection = self
            .objection_to_host(now, subject, ask)
            .or_else(|| (rule == Uninspectable::Block).then(unread));
        match objection {
            Some(it) if preventable && subject.identity.mode == Mode::Enforce => {
                Judged::Refused(it)
            }
            it => Judged::Passes(it.or_else(|| (rule != Uninspectable::Allow).then(unread))),
        }
    }

    /// See [`super::Engine::denies_until`].
    pub(super) fn denies_until(
        &self,
        now: Now,
        process: ProcessKey,
        provider: &str,
    ) -> Option<u64> {
        let subject = self.processes.get(&process)?;
        if subject.identity.mode != Mode::Enforce {
            return None;
        }
        let call = call_of(provider, None, now.mono_ns);
        let ask = self.ask_of(subject, &call);
        let objection = self.objection_to_host(now, subject, &ask)?;
        let end = match objection.code {
            ReasonCode::BudgetExceeded => {
                let spent = self.spent(now, subject, &ask);
                spent.map(|it| unix_ns_of(it.end_s)).max()
            }
            code if code == ReasonCode::AUTHORITY_EXPIRED => {
                let principal = subject.identity.principal;
                principal
                    .and_then(|it| self.settings.0.roster.get(it))
                    .and_then(|it| it.chain.begins_after(now.unix_ns))
            }
            _ => None,
        };
        Some(end.unwrap_or(u64::MAX))
    }

    /// See [`super::Engine::note_unread`].
    pub(super) fn note_unread(&mut self, now: Now, conn: ConnId, unread: Unread) {
        self.start(now);
        let Unread { direction, passed_bytes, read_bytes } = unread;
        let direction = match direction {
            Direction::Egress => "egress",
            Direction::Ingress => "ingress",
        };
        let mut record = Record::new(now, RecordKind::Gap);
        record.detail = vec![
            ("conn", conn.0.to_string()),
            ("direction", direction.to_owned()),
            ("cause", "coverage".to_owned()),
            ("passed_bytes", passed_bytes.to_string()),
            ("read_bytes", read_bytes.to_string()),
            ("bytes", passed_bytes.saturating_sub(read_bytes).to_string()),
        ];
        self.put(Vec::new(), [record]);
    }

    /// See [`super::Engine::note_absence`].
    pub(super) fn note_absence(&mut self, now: Now) {
        self.start(now);
        let mut record = Record::new(now, RecordKind::Gap);
        record.detail = vec![("cause", "agent_absent".to_owned())];
        self.put(Vec::new(), [record]);
    }

    fn ask_of<'a>(&self, subject: &Subject, call: &'a Call) -> Ask<'a> {
        Ask {
            call,
            who: Arc::clone(&subject.identity.attribution),
            readable: false,
            inspectable: false,
            content: Vec::new(),
            start: 0,
            end: u64::MAX,
            under_way: false,
            // Nothing is reserved for uncountable usage.
            estimate: Guess { nano_usd: Some(0), worst_nano_usd: Some(0), ..Guess::default() },
            region: self.region(call),
            asked: (0, 0),
            texts: Texts::default(),
            digest: None,
        }
    }

    /// Returns the objection to every request to a host: identity, grants, policies on the host
    /// alone, exhausted budgets.
    fn objection_to_host(&self, now: Now, subject: &Subject, ask: &Ask<'_>) -> Option<Objection> {
        let mut opinion = self.opinion(now, subject, ask, None);
        opinion.refusals.retain(|it| it.of_host);
        opinion.approvals.clear();
        // A permit may look at the request.
        opinion.not_permitted = false;
        self.standing(now, subject, ask, &opinion, true).or_else(|| {
            let spent: Vec<Demand> = self.spent(now, subject, ask).collect();
            let budget = &spent.first()?.key.budget;
            let why = format!("nothing is left of the budget `{budget}`");
            let objection = Objection::block(ReasonCode::BudgetExceeded, Some(budget), why);
            Some(objection.short_of(self.views(&spent)))
        })
    }

    /// Returns the exhausted budgets needed by a request. Parts of a budget are left out, because
    /// customer, feature and session are unknown before the request is read.
    fn spent(
        &self,
        now: Now,
        subject: &Subject,
        ask: &Ask<'_>,
    ) -> impl Iterator<Item = Demand> + '_ {
        let all = self.demands(now, subject, ask).into_iter().filter(|it| it.key.part.is_none());
        all.filter(|demand| {
            let account = self.ledger.account(&demand.key);
            account.map_or(demand.limit, Account::remaining) <= 0
        })
    }
}

/// Nanoseconds since 1970; an earlier time is over.
fn unix_ns_of(end_s: i64) -> u64 {
    u64::try_from(end_s).unwrap_or(0).saturating_mul(1_000_000_000)
}

fn unread() -> Objection {
    let why = "no probe reads what this program sends, so no request of it can be decided";
    Objection::block(ReasonCode::UNINSPECTABLE, None, why)
}

/// Returns a call with only the provider known.
fn call_of(provider: &str, server: Option<&str>, at_ns: u64) -> Call {
    Call {
        kind: Kind::Inference,
        provider: Some(provider.to_owned()),
        server_address: server.map(str::to_owned),
        request_at_ns: at_ns,
        ..Call::default()
    }
}
