//! Repetition of a recorded decision, with the steps of [`super::decide`] on the content of the
//! record.
//!
//! Principal, purpose, expected usage and engine state are taken from the record; identity, grants,
//! policies, limits, budgets and prices come from the settings. Under other settings, the result is
//! the decision those settings would have produced.

use std::sync::{Arc, OnceLock};

use genops_protocols::Call;

use super::core::{Core, Subject, failure_key, provider_key, target_key};
use super::decide::{Done, Objection};
use super::estimate::{Ask, Guess};
use super::opaque::{Judged, UNNAMED};
use crate::awu::{Attribution, AwuId, CaptureLevel, OTHERS};
use crate::config::Mode;
use crate::decision::{Decision, Permission, PolicyResult, ReasonCode};
use crate::ledger::Ledger;
use crate::policy::Opinion;
use crate::prices::Found;
use crate::process::{ProcessFacts, ProcessKey};
use crate::rate::Meter;
use crate::record::{Inputs, Record, Seen, Texts, What};
use crate::settings::Settings;
use crate::sla;
use crate::time::Now;

/// Result of a repeated decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Again {
    /// Result of the decision.
    pub result: PolicyResult,
    /// Reason code; absent for an allowed call.
    pub reason: Option<ReasonCode>,
    /// Policy, grant, budget or limit behind the decision.
    pub policy: Option<String>,
    /// Every matching policy.
    pub matched: Vec<String>,
}

impl Again {
    /// Returns the result for a request the kernel did not keep back in spite of a refusal.
    fn not_prevented(self) -> Self {
        match self.result {
            PolicyResult::Blocked | PolicyResult::RateLimited => Self {
                result: PolicyResult::Warning,
                reason: Some(ReasonCode::NOT_PREVENTED),
                ..self
            },
            PolicyResult::Allowed | PolicyResult::Warning => self,
        }
    }
}

impl Settings {
    /// Repeats the decision of a record. `None`: the record holds no decision.
    #[must_use]
    pub fn decide_again(&self, record: &Record) -> Option<Again> {
        self.decide_once_more(record, false)
    }

    /// Returns the decision of other settings than the recorded settings on a recorded request,
    /// with the recorded usage of the budgets and the limits of the new settings.
    #[must_use]
    pub fn decide_otherwise(&self, record: &Record) -> Option<Again> {
        self.decide_once_more(record, true)
    }

    fn decide_once_more(&self, record: &Record, otherwise: bool) -> Option<Again> {
        let who = &record.who.as_ref()?.attribution;
        let (what, inputs) = (record.what.as_ref()?, record.inputs.as_ref()?);
        record.decision.as_ref()?;
        let mut core = Core::new(self.clone(), Ledger::new(), [0; 32]);
        let subject = core.recalled(who);
        let call = call(what, inputs);
        let ask = core.asked(who, &call, what, inputs);
        core.recall(record.at, &subject, &ask, &inputs.seen, otherwise);
        let again = core.again(record.at, &subject, &ask, inputs);
        let reason = record.decision.as_ref().and_then(|it| it.reason.as_ref());
        Some(if reason == Some(&ReasonCode::NOT_PREVENTED) { again.not_prevented() } else { again })
    }

    /// Returns the attribution of a configured principal, without the accountable human. `None`:
    /// the name is not configured.
    #[must_use]
    pub fn attribution(&self, principal: &str) -> Option<Attribution> {
        let index = self.0.roster.position(principal)?;
        let attribution = self.0.roster.get(index)?.attribution();
        Some(Attribution { accountable: None, ..attribution.clone() })
    }
}

fn call(what: &What, inputs: &Inputs) -> Call {
    Call {
        provider: what.provider.clone(),
        operation: what.operation.clone(),
        request_model: what.model.clone(),
        server_address: what.server.clone(),
        stream: inputs.seen.stream,
        request_bytes: inputs.request_bytes,
        ..Call::default()
    }
}

impl Core {
    /// Returns the subject named in a record.
    fn recalled(&self, who: &Attribution) -> Subject {
        let roster = &self.settings.0.roster;
        let principal = roster.position(&who.principal).filter(|_| who.mapped);
        let known = principal.and_then(|it| roster.get(it));
        let identity = crate::principal::Identity {
            attribution: Arc::new(who.clone()),
            principal,
            inherited: false,
            mode: known.map_or(self.settings.mode(), crate::principal::Principal::mode),
        };
        let lineage = roster.lineage(principal).map(|it| it.name.clone()).collect();
        let facts = ProcessFacts::bare(ProcessKey { pid: 0, start_ns: 0 }, "");
        let nameless = who.project.is_none();
        Subject { facts, identity, lineage, slice: OnceLock::new(), nameless }
    }

    fn asked<'a>(
        &self,
        who: &Attribution,
        call: &'a Call,
        what: &What,
        inputs: &Inputs,
    ) -> Ask<'a> {
        let prices = &self.settings.0.prices;
        let price = prices.find(call.provider.as_deref(), call.request_model.as_deref());
        Ask {
            call,
            who: Arc::new(who.clone()),
            readable: inputs.complete,
            inspectable: what.capture != CaptureLevel::Metadata,
            content: inputs.content.clone(),
            start: 0,
            end: 0,
            under_way: false,
            estimate: Guess {
                input_tokens: inputs.input_tokens,
                output_tokens: inputs.output_tokens,
                nano_usd: inputs.nano_usd,
                worst_nano_usd: inputs.worst_nano_usd.or(inputs.nano_usd),
                compute_ns: self.again_ns(call, inputs, price.as_ref()),
                price,
            },
            region: what.region.clone(),
            asked: (0, 0),
            texts: Texts::default(),
            digest: None,
        }
    }

    /// Returns the maximum duration of a request, even if no budget counted time at the recorded
    /// decision.
    fn again_ns(&self, call: &Call, inputs: &Inputs, price: Option<&Found>) -> Option<i64> {
        if call.operation.as_deref() == Some(Call::COUNT_TOKENS) {
            return inputs.compute_ns.or(Some(0));
        }
        let settings = &self.settings.0;
        let own_ns = price.and_then(|it| it.price.max_compute_ns);
        let longest_ns = settings.counts_time.then(|| own_ns.unwrap_or(settings.max_compute_ns));
        inputs.compute_ns.or(longest_ns)
    }

    /// Restores the recorded engine state.
    fn recall(&mut self, now: Now, subject: &Subject, ask: &Ask<'_>, seen: &Seen, otherwise: bool) {
        let who = subject.identity.attribution.principal.clone();
        let owner = subject.facts.owner();
        let provider = ask.call.provider.clone().unwrap_or_default();
        if let Some(p95) = seen.p95_latency_ms {
            self.latencies.note(&owner, &provider_key(&provider), p95);
        }
        let settings = self.settings.clone();
        let model = ask.call.request_model.as_deref();
        if let Some(target) = sla::find(&settings.0.targets, &subject.lineage, model) {
            self.latencies.note(&owner, &target_key(target, &who), u64::from(seen.slow));
        }
        if seen.failed {
            *self.failures.entry(&owner, &failure_key(&who, &provider)) = now.mono_ns;
        }
        self.recall_crowds(seen);
        let metered: Vec<Meter> =
            self.limits(subject, ask).into_iter().map(|(_, meter)| meter).collect();
        for meter in metered {
            if let Some(had) = seen.limits.iter().find(|it| it.limit == meter.name()) {
                let arrival_ns = now.mono_ns.saturating_add(had.ahead_ns);
                self.meters.recall(&meter, arrival_ns, had.running);
            }
        }
        for demand in self.demands(now, subject, ask) {
            if let Some(had) = seen.budgets.iter().find(|it| it.budget == demand.key.name()) {
                let used = had.allocated.saturating_sub(had.remaining);
                let allocated = if otherwise { demand.limit } else { had.allocated };
                self.ledger.recall(&demand, allocated, allocated.saturating_sub(used));
            }
        }
    }

    /// Restores the names of the limits and budgets with the request counted in the part shared by
    /// all further customers, features or sessions.
    fn recall_crowds(&mut self, seen: &Seen) {
        let limits = seen.limits.iter().map(|it| &it.limit);
        let names = limits.chain(seen.budgets.iter().map(|it| &it.budget));
        let end = format!("[{OTHERS}]");
        let crowded = names.filter_map(|it| it.strip_suffix(&end));
        self.crowded = crowded.map(str::to_owned).collect();
    }

    fn again(&mut self, now: Now, subject: &Subject, ask: &Ask<'_>, inputs: &Inputs) -> Again {
        let Inputs { approval, seen, .. } = inputs;
        if let Some(code) = &seen.settled {
            let objection = Objection::block(code.clone(), None, "");
            return told(Some(&objection), true, &Opinion::default());
        }
        if !ask.inspectable {
            let nothing = Opinion::default();
            let unnamed = ask.call.operation.as_deref() == Some(UNNAMED);
            let judged = if unnamed {
                self.judge_unnamed(subject, ask.call.server_address.as_deref(), seen.preventable)
            } else {
                self.judge_host(now, subject, ask, seen.preventable)
            };
            return match judged {
                Judged::Refused(objection) => told(Some(&objection), true, &nothing),
                Judged::Passes(None) => {
                    let demands = self.demands(now, subject, ask);
                    let warning = self.warning(now, subject, ask, &nothing, &demands);
                    told(warning.as_ref(), false, &nothing)
                }
                Judged::Passes(warning) => told(warning.as_ref(), false, &nothing),
            };
        }
        let approval = if seen.early { Some("") } else { approval.as_deref() };
        let opinion = self.opinion(now, subject, ask, approval);
        if seen.early {
            let objection = self.early_objection(now, subject, ask, &opinion);
            return told(objection.as_ref(), true, &opinion);
        }
        let id = AwuId { trace: [0; 16], span: [0; 8] };
        let mut done = Done::default();
        let objection = self.objection(now, id, subject, ask, &opinion, approval, &mut done);
        if objection.is_some() && subject.identity.mode == Mode::Enforce && seen.preventable {
            return told(objection.as_ref(), true, &opinion);
        }
        let mut log = Vec::new();
        let (_, warning) =
            self.weigh(now, id, subject, ask, &opinion, objection, &mut done, &mut log);
        told(warning.as_ref(), false, &opinion)
    }
}

fn told(objection: Option<&Objection>, refused: bool, opinion: &Opinion) -> Again {
    let decision = match objection {
        None => Decision::Permit(Permission::Allow),
        Some(it) if refused => Decision::Refuse(it.refusal()),
        Some(it) => Decision::Permit(Permission::Warn(it.code.clone())),
    };
    Again {
        result: decision.result(),
        reason: decision.reason().cloned(),
        policy: objection.and_then(|it| it.policy.clone()),
        matched: opinion.matched(),
    }
}
