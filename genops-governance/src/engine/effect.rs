//! Effect of a refusal: a unit counts as stopped if the kernel's counters show no byte sent,
//! otherwise as executed.
//!
//! If the caller reads counters back, the record before the verdict is an intent. The decision is
//! written when the effect is known: a refusal, or a permission with a remark and the worst case
//! set aside.

use genops_protocols::Call;

use super::core::{Core, Subject, as_unit};
use super::estimate::Ask;
use super::link::{Link, Opened, Refused, Running, Stake};
use super::{ConnId, Output};
use crate::awu::{AwuId, Mechanism, Outcome};
use crate::decision::{Decision, Permission, ReasonCode, Refusal};
use crate::record::{Inputs, Record, RecordKind};
use crate::time::Now;

/// Maximum number of connections remembered with stopped units, to detect bytes sent later.
const STOPPED_LIMIT: usize = 16_384;

/// State of a refused connection after the verdict, from the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effect {
    /// Mechanism behind the stop; `None` if the connection ended by itself, or nothing is known.
    pub mechanism: Mechanism,
    /// The bytes sent were counted; false if no socket of the connection is known, so the count is
    /// unknown.
    pub counted: bool,
    /// Stream position reached by egress; 0 if no byte of the held data has left.
    pub left_to: u64,
}

impl Effect {
    /// Returns the number of bytes sent at and above `position`, the start of the refused data.
    const fn above_bytes(self, position: u64) -> u64 {
        self.left_to.saturating_sub(position)
    }

    /// Returns true if no byte at or above `position`, the start of the refused data, has left.
    const fn is_prevented(self, position: u64) -> bool {
        self.counted && self.above_bytes(position) == 0
    }
}

/// Unit recorded as stopped without a byte sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stopped {
    awu: AwuId,
    /// Number of the request on the connection.
    exchange: u64,
    /// Stream position of the refused data's start.
    position: u64,
}

impl Core {
    /// Refuses a unit: recorded immediately, reported at the end of the turn or when the effect is
    /// known.
    #[expect(clippy::too_many_arguments, reason = "each is another thing")]
    pub(super) fn refuse(
        &mut self,
        now: Now,
        link: &mut Link,
        subject: &Subject,
        ask: &Ask<'_>,
        opened: Opened,
        refusal: Refusal,
        inputs: Inputs,
    ) {
        let call = ask.call;
        let waits = self.awaits_effects && link.mechanism() != Mechanism::None;
        let kind = if waits { RecordKind::Intent } else { RecordKind::Decision };
        // Bytes of an unfinished request that left before can't run without the request's end. If
        // the deadline let all of the request pass before the decision, everything from the first
        // byte on counts as left.
        let passed_whole = link.passed >= opened.end;
        let position = if passed_whole { opened.start } else { link.released.max(link.passed) };
        let mut record = Record::new(now, kind);
        self.fill(&mut record, link, &opened, call);
        let stake = if waits {
            record.detail = intent(position, &refusal);
            Some(Box::new((inputs, self.stake(now, subject, ask))))
        } else {
            record.inputs = Some(inputs);
            record.decision = Some(self.decided(&opened, &Decision::Refuse(refusal.clone())));
            None
        };
        Self::explain(&mut record, &opened);
        self.put(Vec::new(), [record]);
        link.over.insert(call.exchange);
        link.refused.push(Refused { opened, refusal, call: call.clone(), stake, position });
    }

    /// Refuses a unit. A unit begun by the server on its own runs all the same, and nothing more
    /// may leave on the connection.
    #[expect(clippy::too_many_arguments, reason = "each is another thing")]
    pub(super) fn turn_down(
        &mut self,
        now: Now,
        link: &mut Link,
        subject: &Subject,
        ask: &Ask<'_>,
        opened: Opened,
        refusal: Refusal,
        inputs: Inputs,
    ) {
        if !ask.under_way {
            return self.refuse(now, link, subject, ask, opened, refusal, inputs);
        }
        let call = ask.call;
        let mut record = Record::new(now, RecordKind::Intent);
        self.fill(&mut record, link, &opened, call);
        record.detail = intent(opened.start, &refusal);
        Self::explain(&mut record, &opened);
        self.put(Vec::new(), [record]);
        let stake = self.stake(now, subject, ask);
        let (awu, collateral) = (opened.id, link.units.len() as u64);
        let how = "its server had begun it by itself, from what had left before";
        let refused = (opened, refusal, call);
        let running = self.run_refused(now, link, how, refused, (inputs, stake));
        link.units.insert(call.exchange, running);
        if !link.closing && !std::mem::replace(&mut link.denied, true) {
            self.outputs.push_back(Output::Deny { conn: link.id, awu, collateral });
        }
    }

    /// Returns the reservation for a refused unit in case the unit left after all.
    fn stake(&self, now: Now, subject: &Subject, ask: &Ask<'_>) -> Stake {
        let demands = self.demands(now, subject, ask);
        let reservation = self.reservation(now, ask, &demands);
        let price = ask.estimate.price.as_ref().map(|it| it.price.clone());
        let worst_nano_usd = ask.estimate.worst_nano_usd;
        Stake { demands, reservation, worst_nano_usd, price, asked: ask.asked }
    }

    /// Reports the units refused in the turn, or asks the caller to read back the bytes sent.
    pub(super) fn tell_refused(&mut self, now: Now, link: &mut Link, collateral: u64) {
        if link.refused.is_empty() {
            return;
        }
        let before = link.awaiting.len();
        for mut refused in std::mem::take(&mut link.refused) {
            refused.opened.enforcement.collateral = collateral;
            if refused.stake.is_some() {
                link.awaiting.push(refused);
            } else {
                let Refused { opened, refusal, call, .. } = refused;
                self.tell(now, link, opened, refusal, call);
            }
        }
        if link.awaiting.len() > before {
            self.outputs.push_back(Output::Check { conn: link.id });
        }
    }

    fn tell(&mut self, now: Now, link: &Link, opened: Opened, refusal: Refusal, call: Call) {
        let awu = self.awu(now, link, opened, Outcome::Refused(refusal), call, false);
        self.outputs.push_back(Output::Awu(Box::new(awu)));
    }

    /// Makes the final decision on the refused units of a connection. `closed`: the connection has
    /// ended.
    pub(super) fn settle_refused(
        &mut self,
        now: Now,
        link: &mut Link,
        effect: Effect,
        closed: bool,
    ) {
        for refused in std::mem::take(&mut link.awaiting) {
            let Refused { mut opened, refusal, call, stake, position } = refused;
            let Some((inputs, stake)) = stake.map(|it| *it) else { continue };
            // The holding mechanism, unless the hold did not get as far.
            if effect.mechanism != Mechanism::EgressHold {
                opened.enforcement.mechanism = effect.mechanism;
            }
            let effect = Effect { mechanism: opened.enforcement.mechanism, ..effect };
            if effect.is_prevented(position) {
                let mut record = Record::new(now, RecordKind::Decision);
                self.fill(&mut record, link, &opened, &call);
                record.inputs = Some(inputs);
                record.decision = Some(self.decided(&opened, &Decision::Refuse(refusal.clone())));
                record.detail = effects(effect, position);
                Self::explain(&mut record, &opened);
                self.put(Vec::new(), [record]);
                let stopped = Stopped { awu: opened.id, exchange: call.exchange, position };
                self.remember(link.id, stopped);
                self.tell(now, link, opened, refusal, call);
            } else {
                let refused = (opened, refusal, call);
                self.admit(now, link, (effect, position), refused, (inputs, stake), closed);
            }
        }
    }

    /// Accounts for a refused unit as executed: bytes left, or nothing shows a stop.
    fn admit(
        &mut self,
        now: Now,
        link: &mut Link,
        (effect, position): (Effect, u64),
        (mut opened, refusal, call): (Opened, Refusal, Call),
        (inputs, stake): (Inputs, Stake),
        closed: bool,
    ) {
        let above_bytes = effect.above_bytes(position);
        let how = if effect.counted {
            format!("{above_bytes} bytes of it had left before it was stopped")
        } else {
            "no socket of its connection is known, so nothing shows that it was stopped".to_owned()
        };
        let left = &mut opened.enforcement.bytes_before_decision;
        *left = left.saturating_add(above_bytes);
        let refused = (opened, refusal, &call);
        let running = self.run_refused(now, link, &how, refused, (inputs, stake));
        if closed {
            self.finish(now, link, running, call, false);
        } else {
            link.over.remove(&call.exchange);
            link.units.insert(call.exchange, running);
        }
    }

    /// Sets the worst case aside for a unit executed in spite of a refusal; `how` tells the cause.
    fn run_refused(
        &mut self,
        now: Now,
        link: &Link,
        how: &str,
        (mut opened, refusal, call): (Opened, Refusal, &Call),
        (inputs, stake): (Inputs, Stake),
    ) -> Running {
        let code = refusal.reason().as_str();
        let why = opened.grounds.reason.take().unwrap_or_default();
        opened.grounds.reason = Some(format!("refused ({code}: {why}), but {how}"));
        opened.grounds.signal = None;
        opened.enforcement.mechanism = Mechanism::None;
        let Stake { demands, reservation, worst_nano_usd, price, asked } = stake;
        let mut log = Vec::new();
        self.ledger.reserve_unchecked(now.unix_ns, opened.id, &demands, &mut log);
        let permission = Permission::Warn(ReasonCode::NOT_PREVENTED);
        self.write_permit(now, link, &opened, &permission, &reservation, inputs, log, call);
        Running {
            opened,
            permission,
            reservation,
            worst_nano_usd,
            shares: demands.iter().map(|it| it.unit).collect(),
            sent: true,
            withheld: false,
            price,
            asked,
            limits: Vec::new(),
            target: None,
        }
    }

    fn remember(&mut self, conn: ConnId, stopped: Stopped) {
        if self.stopped.len() < STOPPED_LIMIT || self.stopped.contains_key(&conn) {
            self.stopped.entry(conn).or_default().push(stopped);
        }
    }

    /// Takes the answer to a refused request: the request has arrived, whatever the counters of the
    /// connection's socket say.
    pub(super) fn answered_all_the_same(
        &mut self,
        now: Now,
        link: &mut Link,
        call: Call,
        complete: bool,
    ) {
        // A server ends an idle connection with an error, without any request. Beside lost bytes,
        // an answer may belong to another request.
        if call.missing_bytes > 0 || !call.status.is_some_and(|it| (200..300).contains(&it)) {
            return;
        }
        if let Some(at) = link.awaiting.iter().position(|it| it.call.exchange == call.exchange) {
            let Refused { opened, refusal, call: asked, stake, .. } = link.awaiting.remove(at);
            let Some(stake) = stake else { return };
            let refused = (opened, refusal, &asked);
            let running = self.run_refused(now, link, "it was answered", refused, *stake);
            return self.finish(now, link, running, as_unit(call), complete);
        }
        let Some(stopped) = self.stopped.get_mut(&link.id) else { return };
        let Some(at) = stopped.iter().position(|it| it.exchange == call.exchange) else { return };
        let mut record = Record::new(now, RecordKind::Breach);
        record.awu = Some(stopped.remove(at).awu);
        record.detail = call.status.map(|it| ("answered", it.to_string())).into_iter().collect();
        self.put(Vec::new(), [record]);
    }

    /// Records a breach for each unit recorded as stopped on the connection, if bytes of the unit
    /// left afterwards.
    pub(super) fn breach(&mut self, now: Now, conn: ConnId, effect: Effect) {
        let Some(stopped) = self.stopped.remove(&conn) else { return };
        let (left, kept): (Vec<_>, Vec<_>) =
            stopped.into_iter().partition(|it| !effect.is_prevented(it.position));
        let breach = |it: Stopped| {
            let mut record = Record::new(now, RecordKind::Breach);
            record.awu = Some(it.awu);
            record.detail = effects(effect, it.position);
            record
        };
        let records: Vec<Record> = left.into_iter().map(breach).collect();
        self.put(Vec::new(), records);
        if !kept.is_empty() {
            self.stopped.insert(conn, kept);
        }
    }
}

/// Returns the details of an intent: the last position the connection may send, and the reason.
fn intent(position: u64, refusal: &Refusal) -> Vec<(&'static str, String)> {
    vec![
        ("verdict", "refuse".to_owned()),
        ("position", position.to_string()),
        ("code", refusal.reason().as_str().to_owned()),
    ]
}

fn effects(effect: Effect, position: u64) -> Vec<(&'static str, String)> {
    vec![
        ("above_bytes", effect.above_bytes(position).to_string()),
        ("acted", effect.mechanism.as_str().to_owned()),
    ]
}
