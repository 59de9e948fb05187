//! `explain`: one unit in a paragraph, for the developer whose call was blocked.
//!
//! Reads the evidence directory, not the running agent: what is explained is what was recorded.
//! It does not verify the records; `evidence verify` does.

use std::path::PathBuf;

use anyhow::{Context as _, anyhow};
use genops_evidence::Directory;

use super::money;
use crate::cli::{self, Failure};
use crate::journal::entry::{Accounted, Decided, Entry, Inputs, Kind, Text, What, Who};

/// Say who asked for what, what was decided by which policy, and what would have to change
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  genops-agent explain\n  genops-agent explain 4bf92f3577b34da6a3ce929d0e0e4736\n\n\
    Without an AWU it explains the last one that was not simply allowed."
)]
pub(crate) struct Explain {
    /// Trace id of the unit, with or without `-` and its span id; a beginning is enough.
    #[arg(value_name = "AWU")]
    awu: Option<String>,
    /// Evidence directory.
    #[arg(long, value_name = "DIRECTORY", default_value = "/var/lib/genops/evidence")]
    directory: PathBuf,
}

impl Explain {
    /// Runs the command.
    pub(crate) fn run(self) -> Result<(), Failure> {
        let Self { awu, directory } = self;
        let records = records(&directory, awu.as_deref())
            .with_context(|| format!("{}", directory.display()))
            .map_err(Failure::unreadable)?;
        let entries: Vec<Entry<'_>> =
            records.iter().filter_map(|record| serde_json::from_slice(record).ok()).collect();
        let Some(story) = story(&entries) else {
            let wanted = awu.map_or_else(
                || "no unit was refused or warned about".to_owned(),
                |awu| format!("there is no unit `{awu}`"),
            );
            return Err(Failure::not_so(anyhow!("{wanted} in {}", directory.display())));
        };
        cli::print(|out| writeln!(out, "{story}"))?;
        Ok(())
    }
}

/// The records of the unit that is meant.
fn records(directory: &std::path::Path, awu: Option<&str>) -> anyhow::Result<Vec<Vec<u8>>> {
    let wanted = match awu {
        Some(awu) => awu.to_ascii_lowercase(),
        None => match last_remarkable(directory)? {
            Some(awu) => awu,
            None => return Ok(Vec::new()),
        },
    };
    let mut found: Vec<(String, Vec<u8>)> = Vec::new();
    each(directory, |record| {
        let Ok(entry) = serde_json::from_slice::<Entry<'_>>(record) else { return };
        if let Some(awu) = entry.awu.filter(|awu| awu.as_str().starts_with(&wanted)) {
            found.push((awu.as_str().to_owned(), record.to_vec()));
        }
    })?;
    if let [(first, _), .., (last, _)] = found.as_slice() {
        anyhow::ensure!(first == last, "`{wanted}` stands for several units; give more of it");
    }
    Ok(found.into_iter().map(|(_, record)| record).collect())
}

/// The last unit whose decision has a reason code.
fn last_remarkable(directory: &std::path::Path) -> anyhow::Result<Option<String>> {
    let mut last = None;
    each(directory, |record| {
        let Ok(entry) = serde_json::from_slice::<Entry<'_>>(record) else { return };
        let remarkable = entry.dec.as_ref().is_some_and(|dec| dec.code.is_some());
        if let Some(awu) = entry.awu.filter(|_| remarkable) {
            last = Some(awu.as_str().to_owned());
        }
    })?;
    Ok(last)
}

fn each(directory: &std::path::Path, mut each: impl FnMut(&[u8])) -> anyhow::Result<()> {
    anyhow::ensure!(directory.is_dir(), "no such directory");
    let directory = Directory::new(directory);
    let size = directory.checkpoint()?.head.size;
    directory.records(0, size, |_, record| each(record))?;
    directory.unpublished(size, |_, record| each(record))?;
    Ok(())
}

/// The paragraph; `None` without a decision.
fn story(entries: &[Entry<'_>]) -> Option<String> {
    let decision = entries.iter().find(|entry| entry.kind == Kind::Decision)?;
    let dec = decision.dec.as_ref()?;
    let mut sentences = vec![asked(decision), decided(dec, decision.what.as_ref())];
    sentences.extend(decision.inputs.as_ref().map(sized));
    for entry in entries {
        sentences.extend(entry.bud.iter().map(|account| accounted(entry.kind, account)));
    }
    sentences.extend(dec.code.as_ref().map(|code| {
        let by = dec.policy.as_ref().map(Text::as_str);
        format!("To change that: {}.", mend(code.as_str(), by, decision))
    }));
    Some(sentences.join(" "))
}

/// Who asked for what.
fn asked(entry: &Entry<'_>) -> String {
    let time = jiff::Timestamp::from_nanosecond(i128::from(entry.t))
        .map_or_else(|_| entry.t.to_string(), |time| format!("{time:.0}"));
    let who = entry.who.as_ref().map_or_else(|| "somebody unknown".to_owned(), described);
    let Some(What { op, prov, model, server, region, .. }) = &entry.what else {
        return format!("At {time}, {who} asked for something that is not recorded.");
    };
    let named = |label: &str, text: &Option<Text<'_>>| {
        text.as_ref().map(|text| format!(" {label} `{text}`")).unwrap_or_default()
    };
    format!(
        "At {time}, {who} asked{}{}{}{}{}.",
        named("for", op),
        named("of model", model),
        named("from", prov),
        named("at", server),
        named("in region", region),
    )
}

/// `refund-bot (team payments, process 4242 /usr/bin/python3)`.
fn described(who: &Who<'_>) -> String {
    let Who { prin, mapped, team, proj, pid, exe, user, unit, ns, chain, .. } = who;
    let mut facts = Vec::new();
    let mut add = |label: &str, text: Option<String>| {
        facts.extend(text.map(|text| format!("{label} {text}")));
    };
    add("team", team.as_ref().map(ToString::to_string));
    add("project", proj.as_ref().map(ToString::to_string));
    add("process", pid.map(|pid| pid.to_string()));
    add("executable", exe.as_ref().map(ToString::to_string));
    add("user", user.as_ref().map(ToString::to_string));
    add("unit", unit.as_ref().map(ToString::to_string));
    add("namespace", ns.as_ref().map(ToString::to_string));
    let grants: Vec<&str> = chain.iter().map(Text::as_str).collect();
    add("under grant", (!grants.is_empty()).then(|| grants.join(", handed down by ")));
    let known = if *mapped { "" } else { ", whom no configured principal matches" };
    format!("`{prin}` ({}){known}", facts.join(", "))
}

/// What was decided, and whether that was in time.
fn decided(dec: &Decided<'_>, what: Option<&What<'_>>) -> String {
    let Decided { result, code, policy, matched, prevented, .. } = dec;
    let code = code.as_ref().map(|code| format!(" ({code})")).unwrap_or_default();
    let by = policy.as_ref().map(|policy| format!(" by `{policy}`")).unwrap_or_default();
    let others: Vec<String> = matched
        .iter()
        .filter(|id| Some(*id) != policy.as_ref())
        .map(|id| format!("`{id}`"))
        .collect();
    let others = if others.is_empty() {
        String::new()
    } else {
        format!("; {} matched too", others.join(", "))
    };
    let held = what.is_some_and(|what| what.rung.as_str() != "none");
    let when = match (prevented, held) {
        (true, _) => ", before a byte of it left this host",
        (false, true) => "; it was held until then",
        (false, false) => "; it was observed, not held, so the request ran",
    };
    format!("It was {result}{code}{by}{others}{when}.")
}

fn sized(inputs: &Inputs<'_>) -> String {
    let Inputs { tok_in, tok_out, cost, content, appr, left, .. } = inputs;
    let cost = cost.map(|cost| format!(", {} USD", money::usd(cost))).unwrap_or_default();
    let rules: Vec<&str> = content.iter().map(Text::as_str).collect();
    let rules = (!rules.is_empty()).then(|| format!("content rules matched: {}", rules.join(", ")));
    let approval = appr.as_ref().map(|id| format!("approval {id} was used"));
    let left = (*left > 0).then(|| format!("{left} bytes had left before the decision"));
    let most = format!("It was taken for at most {tok_in} tokens in and {tok_out} out{cost}");
    let parts: Vec<String> =
        std::iter::once(most).chain([rules, approval, left].into_iter().flatten()).collect();
    parts.join("; ") + "."
}

fn accounted(kind: Kind, account: &Accounted<'_>) -> String {
    let Accounted { name, period, unit, res, act, rem, inc, .. } = account;
    let amount = |amount: i64| match unit.as_str() {
        "nUSD" => format!("{} USD", money::usd(amount)),
        other => format!("{amount} {other}"),
    };
    let budget = name.as_ref().map_or_else(
        || "Without a budget".to_owned(),
        |name| {
            let period = period.as_ref().map(|it| format!(" ({it})")).unwrap_or_default();
            format!("In budget `{name}`{period}")
        },
    );
    let what = match (kind, act) {
        (Kind::Release, _) => format!("{} were set free again", amount(*res)),
        (_, Some(act)) if *inc => {
            format!("{} were charged, because the real amount never became known", amount(*act))
        }
        (_, Some(act)) => format!("{} were used of {} set aside", amount(*act), amount(*res)),
        (_, None) => format!("{} were set aside", amount(*res)),
    };
    let left = rem.map(|rem| format!(", {} are left", amount(rem))).unwrap_or_default();
    format!("{budget}, {what}{left}.")
}

/// What would have to be different, by reason code.
fn mend(code: &str, by: Option<&str>, entry: &Entry<'_>) -> String {
    let by = by.unwrap_or("the one in force");
    let exe = entry.who.as_ref().and_then(|who| who.exe.as_ref()).map_or("..", Text::as_str);
    match code {
        "BUDGET_EXCEEDED" => format!(
            "wait for the next period of budget `{by}`, or have it raised: `genops-agent budget --adjust {by} --by-amount 10.00 --by YOU --why REASON`"
        ),
        "BUDGET_RESERVATION_FAILED" => format!(
            "ask for less (a smaller limit on output tokens, a shorter prompt): budget `{by}` has something left, but not what this request may cost at worst"
        ),
        "POLICY_DENY_MODEL" => format!(
            "use a model and provider that policy `{by}` allows, or have it changed; `genops-agent policy show --config FILE` prints it"
        ),
        "POLICY_DENY_REGION" => format!(
            "use an endpoint in a region that policy `{by}` allows, or say in `providers` where this one is"
        ),
        "POLICY_DENY_CONTENT" => {
            format!("leave out of the prompt what `denied_content` of policy `{by}` describes")
        }
        "RATE_LIMITED" | "x_concurrency_exceeded" => {
            format!("try again later or less often; `{by}` in `rate_limits` says how often")
        }
        "SLA_LATENCY_VIOLATION" => {
            format!("nothing was refused; target `{by}` in `sla` was missed")
        }
        "PROVIDER_ERROR_UPSTREAM" => "the provider failed; try again".to_owned(),
        "ACCOUNTING_INVARIANT_VIOLATION" => {
            "evidence could not be written; look at the disk, and at `/readyz` of the agent"
                .to_owned()
        }
        "x_unmapped_principal" => format!(
            "add an entry to `principals` whose `match` fits this process, such as `exe: {exe}`"
        ),
        "x_identity_unresolved" => {
            "the process was gone before its identity was read; nothing in the request helps"
                .to_owned()
        }
        "x_no_authority" => {
            "have a grant or a `permit` cover this operation, provider, model and region".to_owned()
        }
        "x_authority_expired" => {
            format!("have the grant or principal `{by}` prolonged (`expires`)")
        }
        "x_authority_revoked" => format!("the grant `{by}` was taken back; ask who handed it down"),
        "x_delegation_exceeded" => {
            format!("hang the grant nearer to its root, or raise `max_depth` of `{by}`")
        }
        "x_approval_required" => {
            let request =
                entry.det.get(&Text::from("approval_request")).map_or("REQUEST", Text::as_str);
            format!(
                "let a human outside the chain approve it: `genops-agent approve {request} --by WHO --max-usd AMOUNT`, then make the request again"
            )
        }
        "x_policy_error" => {
            format!("have policy `{by}` mended: it could not be evaluated, so it refuses")
        }
        "x_price_unknown" => "say in `prices.overrides` what this model costs".to_owned(),
        "x_budget_threshold" => {
            format!("nothing was refused; budget `{by}` passed one of its `thresholds`")
        }
        "x_decision_timeout" => {
            "the decision came too late; `on_timeout` says what happens then".to_owned()
        }
        "x_connection_denied" => {
            "another request on the same connection was refused; make this one again".to_owned()
        }
        _ => format!("ask who wrote policy `{by}`, which gave this reason"),
    }
}
