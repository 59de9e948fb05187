//! A recorded decision in governance's form, for repetition. Fields without an effect on decisions
//! (process, capture, API flavour) are left out.

use genops_governance::{
    Attribution, CaptureLevel, Decided, Inputs, Mechanism, Now, PolicyResult, ReasonCode, Record,
    RecordKind, Seen, Texts, What, Who,
};

use super::entry::{self, Entry, Kind, Text};

/// The decision of a record; `None` for a record of another kind.
///
/// # Errors
///
/// A sentence, if the record lacks an input of the decision.
pub(crate) fn decision(entry: &Entry<'_>) -> Result<Option<Record>, String> {
    let (Kind::Decision, Some(who), Some(what), Some(inputs), Some(dec)) =
        (entry.kind, &entry.who, &entry.what, &entry.inputs, &entry.dec)
    else {
        return Ok(None);
    };
    if entry.cut {
        return Err("something in it was too long for a record and was cut".to_owned());
    }
    let code = |code: &Text<'_>| {
        ReasonCode::parse(code.as_str()).ok_or_else(|| format!("`{code}` is no reason code"))
    };
    let settled = inputs.after.as_ref().map(code).transpose()?;
    Ok(Some(Record {
        at: Now { mono_ns: entry.mono, unix_ns: entry.t },
        kind: RecordKind::Decision,
        awu: None,
        who: Some(asker(who)),
        what: Some(asked(what)),
        inputs: Some(seen(inputs, settled)),
        decision: Some(Decided {
            result: result(dec.result.as_str())?,
            reason: dec.code.as_ref().map(code).transpose()?,
            policy: owned(dec.policy.as_ref()),
            matched: dec.matched.iter().map(ToString::to_string).collect(),
            policy_hash: entry::parse_sha256(dec.bundle.as_str()).ok_or("no policy hash")?,
            epoch: dec.epoch,
            prevented: dec.prevented,
        }),
        accounts: Vec::new(),
        times: 1,
        detail: Vec::new(),
    }))
}

fn owned(text: Option<&Text<'_>>) -> Option<String> {
    text.map(ToString::to_string)
}

fn result(text: &str) -> Result<PolicyResult, String> {
    use PolicyResult::{Allowed, Blocked, RateLimited, Warning};
    let known = [Allowed, Blocked, Warning, RateLimited];
    let found = known.into_iter().find(|it| it.as_str() == text);
    found.ok_or_else(|| format!("`{text}` is no result"))
}

fn asker(who: &entry::Who<'_>) -> Who {
    Who {
        attribution: Attribution {
            principal: who.prin.to_string(),
            mapped: who.mapped,
            team: owned(who.team.as_ref()),
            project: owned(who.proj.as_ref()),
            environment: owned(who.env.as_ref()),
            cost_center: owned(who.cc.as_ref()),
            customer_id: owned(who.cust.as_ref()),
            feature: owned(who.feat.as_ref()),
            session_id: owned(who.sess.as_ref()),
            said: who.said.iter().map(ToString::to_string).collect(),
            chain: who.chain.iter().map(ToString::to_string).collect(),
            accountable: None,
        },
        process: None,
        pid: who.pid,
        exe: owned(who.exe.as_ref()),
        uid: who.uid,
        user: owned(who.user.as_ref()),
        systemd_unit: owned(who.unit.as_ref()),
        container_id: owned(who.ctr.as_ref()),
        pod_uid: owned(who.pod.as_ref()),
        namespace: owned(who.ns.as_ref()),
        cgroup: owned(who.cg.as_ref()),
    }
}

fn asked(what: &entry::What<'_>) -> What {
    What {
        operation: owned(what.op.as_ref()),
        operation_type: "",
        provider: owned(what.prov.as_ref()),
        model: owned(what.model.as_ref()),
        region: owned(what.region.as_ref()),
        server: owned(what.server.as_ref()),
        api: None,
        capture: CaptureLevel::Full,
        mechanism: Mechanism::None,
    }
}

fn seen(inputs: &entry::Inputs<'_>, settled: Option<ReasonCode>) -> Inputs {
    let metered = |it: &entry::Metered<'_>| genops_governance::Metered {
        limit: it.0.to_string(),
        ahead_ns: it.1,
        running: it.2,
    };
    let had = |it: &entry::Had<'_>| genops_governance::Had {
        budget: it.0.to_string(),
        allocated: it.1,
        remaining: it.2,
    };
    Inputs {
        input_tokens: inputs.tok_in,
        output_tokens: inputs.tok_out,
        nano_usd: inputs.cost,
        worst_nano_usd: inputs.worst,
        compute_ns: inputs.time,
        request_bytes: inputs.bytes,
        complete: inputs.whole,
        content: inputs.content.iter().map(ToString::to_string).collect(),
        approval: owned(inputs.appr.as_ref()),
        bytes_before_decision: inputs.left,
        seen: Seen {
            preventable: inputs.stop,
            settled,
            early: inputs.early,
            stream: inputs.stream,
            p95_latency_ms: inputs.p95,
            slow: inputs.slow,
            failed: inputs.failed,
            limits: inputs.lim.iter().map(metered).collect(),
            budgets: inputs.had.iter().map(had).collect(),
        },
        texts: Texts::default(),
    }
}
