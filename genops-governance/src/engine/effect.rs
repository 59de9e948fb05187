//! What a refusal came to: a unit is stopped where the kernel's counters show that nothing of it left,
//! and ran where they do not.
//!
//! Where the caller reads counters back, what is written before the verdict is an intent. The decision is
//! written when the effect is known: a refusal, or a permission with a remark and the worst case set aside.

use genops_protocols::Call;

use super::core::{Core, Subject};
use super::estimate::Ask;
use super::link::{Link, Opened, Refused, Running, Stake};
use super::{ConnId, Output};
use crate::awu::{AwuId, Mechanism, Outcome};
use crate::decision::{Decision, Permission, ReasonCode, Refusal};
use crate::record::{Inputs, Record, RecordKind};
use crate::time::Now;

/// Most connections whose stopped units are remembered, for what leaves of them later.
const STOPPED_LIMIT: usize = 16_384;

/// What the kernel says of a refused connection after the verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effect {
    /// By which mechanism it was stopped; `None` where it ended by itself, or nothing is known.
    pub mechanism: Mechanism,
    /// What left was counted; false where no socket of it is known, so that nobody can say.
    pub counted: bool,
    /// Bytes that left above what was released.
    pub above_bytes: u64,
}

impl Effect {
    /// Nothing that was refused has left.
    #[must_use]
    pub fn is_prevented(self) -> bool {
        self.counted && self.above_bytes == 0
    }
}

impl Core {
    /// Refuses a unit: written down now, told at the end of the turn, or when its effect is known.
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
        let mut record = Record::new(now, kind);
        self.fill(&mut record, link, &opened, call);
        let stake = if waits {
            record.detail = intent(link, &refusal);
            Some(Box::new((inputs, self.stake(now, subject, ask))))
        } else {
            record.inputs = Some(inputs);
            record.decision = Some(self.decided(&opened, &Decision::Refuse(refusal.clone())));
            None
        };
        Self::explain(&mut record, &opened);
        self.put(Vec::new(), [record]);
        link.over.insert(call.exchange);
        link.refused.push(Refused { opened, refusal, call: call.clone(), stake });
    }

    /// What is set aside for a refused unit, should it have left after all.
    fn stake(&self, now: Now, subject: &Subject, ask: &Ask<'_>) -> Stake {
        let demands = self.demands(now, subject, ask);
        let reservation = self.reservation(now, ask, &demands);
        let price = ask.estimate.price.as_ref().map(|it| it.price.clone());
        Stake { demands, reservation, price, asked: ask.asked }
    }

    /// Tells the units that were refused in this turn, or has the caller look at what left of them.
    pub(super) fn tell_refused(&mut self, now: Now, link: &mut Link, collateral: u64) {
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

    /// Decides, for good, what was refused on a connection. `closed`: it has ended.
    pub(super) fn settle_refused(
        &mut self,
        now: Now,
        link: &mut Link,
        effect: Effect,
        closed: bool,
    ) {
        for refused in std::mem::take(&mut link.awaiting) {
            let Refused { mut opened, refusal, call, stake } = refused;
            let Some((inputs, stake)) = stake.map(|it| *it) else { continue };
            // What it was held by, unless it did not get as far.
            if effect.mechanism != Mechanism::EgressHold {
                opened.enforcement.mechanism = effect.mechanism;
            }
            let effect = Effect { mechanism: opened.enforcement.mechanism, ..effect };
            if effect.is_prevented() {
                let mut record = Record::new(now, RecordKind::Decision);
                self.fill(&mut record, link, &opened, &call);
                record.inputs = Some(inputs);
                record.decision = Some(self.decided(&opened, &Decision::Refuse(refusal.clone())));
                record.detail = effects(effect);
                Self::explain(&mut record, &opened);
                self.put(Vec::new(), [record]);
                self.remember(link.id, opened.id);
                self.tell(now, link, opened, refusal, call);
            } else {
                self.admit(now, link, effect, (opened, refusal, call), (inputs, stake), closed);
            }
        }
    }

    /// What was refused has left, or nobody can show that it has not.
    fn admit(
        &mut self,
        now: Now,
        link: &mut Link,
        effect: Effect,
        (mut opened, refusal, call): (Opened, Refusal, Call),
        (inputs, stake): (Inputs, Stake),
        closed: bool,
    ) {
        let code = refusal.reason().as_str();
        let how = if effect.counted {
            format!("{} bytes of it had left before it was stopped", effect.above_bytes)
        } else {
            "no socket of its connection is known, so nothing shows that it was stopped".to_owned()
        };
        let why = opened.grounds.reason.take().unwrap_or_default();
        opened.grounds.reason = Some(format!("refused ({code}: {why}), but {how}"));
        opened.grounds.signal = None;
        opened.enforcement.mechanism = Mechanism::None;
        let left = &mut opened.enforcement.bytes_before_decision;
        *left = left.saturating_add(effect.above_bytes);
        let Stake { demands, reservation, price, asked } = stake;
        let mut log = Vec::new();
        self.ledger.reserve_unchecked(now.unix_ns, opened.id, &demands, &mut log);
        let permission = Permission::Warn(ReasonCode::NOT_PREVENTED);
        self.write_permit(now, link, &opened, &permission, &reservation, inputs, log, &call);
        let running = Running {
            opened,
            permission,
            reservation,
            shares: demands.iter().map(|it| it.unit).collect(),
            sent: true,
            withheld: false,
            price,
            asked,
            limits: Vec::new(),
            target: None,
        };
        if closed {
            self.finish(now, link, running, call, false);
        } else {
            link.over.remove(&call.exchange);
            link.units.insert(call.exchange, running);
        }
    }

    fn remember(&mut self, conn: ConnId, awu: AwuId) {
        if self.stopped.len() < STOPPED_LIMIT || self.stopped.contains_key(&conn) {
            self.stopped.entry(conn).or_default().push(awu);
        }
    }

    /// Bytes of a connection left after it was written down that none had: each unit that was said to be
    /// stopped on it is named.
    pub(super) fn breach(&mut self, now: Now, conn: ConnId, effect: Effect) {
        let breach = |awu: AwuId| {
            let mut record = Record::new(now, RecordKind::Breach);
            record.awu = Some(awu);
            record.detail = effects(effect);
            record
        };
        let records: Vec<Record> =
            self.stopped.remove(&conn).into_iter().flatten().map(breach).collect();
        self.put(Vec::new(), records);
    }
}

/// What an intent says: up to where the connection may go on, and why no further.
fn intent(link: &Link, refusal: &Refusal) -> Vec<(&'static str, String)> {
    vec![
        ("verdict", "refuse".to_owned()),
        ("position", link.released.max(link.passed).to_string()),
        ("code", refusal.reason().as_str().to_owned()),
    ]
}

fn effects(effect: Effect) -> Vec<(&'static str, String)> {
    vec![
        ("above_bytes", effect.above_bytes.to_string()),
        ("acted", effect.mechanism.as_str().to_owned()),
    ]
}
