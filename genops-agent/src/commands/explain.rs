//! `explain`: a unit in a paragraph, for the developer of a blocked call.
//!
//! Reads the evidence directory, not the running agent: the explanation covers recorded facts. The
//! command does not verify the records; `evidence verify` does.

use std::path::PathBuf;

use anyhow::{Context as _, anyhow};
use genops_evidence::Directory;
use genops_governance::{Explanation, ReasonCode};

use super::money;
use crate::cli::{self, Failure};
use crate::foreign::Line;
use crate::journal::entry::{Accounted, Decided, Entry, Kind, Text, What, Who};

/// Explain a decision: the request, the sender, the deciding policy, and the change needed to pass
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  genops-agent explain\n  genops-agent explain 4bf92f3577b34da6a3ce929d0e0e4736\n\n\
    Without an AWU it explains the last one that was not simply allowed."
)]
pub(crate) struct Explain {
    /// Trace id of the unit, with or without `-` and the span id; a beginning is enough.
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
        cli::print(|out| writeln!(out, "{}", Line(&story)))?;
        Ok(())
    }
}

/// Returns the records of the chosen unit.
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

/// Returns the last unit with a reason code in the decision.
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

/// Returns the paragraph; `None` without a decision, or the intent to refuse.
fn story(entries: &[Entry<'_>]) -> Option<String> {
    let of = |kind: Kind| entries.iter().find(|entry| entry.kind == kind);
    let Some(decision) = of(Kind::Decision) else { return of(Kind::Intent).map(undecided) };
    let dec = decision.dec.as_ref()?;
    let mut told = Explanation {
        awu: decision.awu.as_ref().map(ToString::to_string).unwrap_or_default(),
        when: Some(moment(decision.t)),
        ..Explanation::default()
    };
    decided(dec, &mut told);
    if let Some(who) = &decision.who {
        asker(who, &mut told);
    }
    if let Some(what) = &decision.what {
        asked(what, &mut told);
    }
    told.reason = detail(decision, "reason");
    told.approval_request = detail(decision, "approval_request");
    let reserved = entries.iter().filter(|entry| entry.kind == Kind::Reservation);
    let accounts: Vec<&Accounted<'_>> = reserved.flat_map(|entry| &entry.bud).collect();
    told.reserved = accounts.first().map(|account| amount(account, account.res));
    told.budgets = accounts.iter().filter_map(|account| budget(account)).collect();
    let when =
        of(Kind::Breach).map_or_else(|| timing(dec, decision.what.as_ref()).into(), breached);
    let after = entries.iter().filter_map(|entry| settled(entry));
    let sentences = [told.paragraph(), when].into_iter().chain(after);
    Some(sentences.collect::<Vec<_>>().join(" "))
}

/// Explains a unit about to be refused at the end of the agent.
fn undecided(intent: &Entry<'_>) -> String {
    let who = intent
        .who
        .as_ref()
        .map_or("an unidentified process".to_owned(), |it| format!("`{}`", it.prin));
    let code = detail(intent, "code").unwrap_or_default();
    let why = detail(intent, "reason").map(|it| format!(": {it}")).unwrap_or_default();
    format!(
        "At {} a request of {who} was about to be refused with {code}{why}. The agent ended before it could \
         say whether that kept it back.",
        moment(intent.t)
    )
}

/// Explains a breach: more bytes left than stated in the decision, or an answer came.
fn breached(breach: &Entry<'_>) -> String {
    if let Some(status) = detail(breach, "answered") {
        return format!(
            "But an answer (HTTP status {status}) came after that, so it may have run."
        );
    }
    let bytes = detail(breach, "above_bytes").unwrap_or_default();
    format!(
        "But {bytes} bytes of it left this host after that was written down, so it may have run."
    )
}

fn moment(unix_ns: u64) -> String {
    jiff::Timestamp::from_nanosecond(i128::from(unix_ns))
        .map_or_else(|_| unix_ns.to_string(), |time| format!("{time:.0}"))
}

fn text(text: Option<&Text<'_>>) -> Option<String> {
    text.map(ToString::to_string)
}

fn detail(entry: &Entry<'_>, key: &str) -> Option<String> {
    entry.det.get(&Text::from(key)).map(ToString::to_string)
}

fn decided(dec: &Decided<'_>, told: &mut Explanation) {
    let Decided { result, code, policy, matched, bundle: _, epoch: _, prevented: _ } = dec;
    told.result = result.to_string();
    told.code = text(code.as_ref());
    told.policy = text(policy.as_ref());
    told.matched = matched.iter().map(ToString::to_string).collect();
}

fn asker(who: &Who<'_>, told: &mut Explanation) {
    told.principal = Some(who.prin.to_string());
    told.team = text(who.team.as_ref());
    told.project = text(who.proj.as_ref());
    told.pid = who.pid;
    told.exe = text(who.exe.as_ref());
    told.chain = who.chain.iter().map(ToString::to_string).collect();
}

fn asked(what: &What<'_>, told: &mut Explanation) {
    told.operation = text(what.op.as_ref());
    told.provider = text(what.prov.as_ref());
    told.model = text(what.model.as_ref());
    told.region = text(what.region.as_ref());
}

/// Returns a sentence on the timeliness of the decision.
fn timing(dec: &Decided<'_>, what: Option<&What<'_>>) -> &'static str {
    let held = what.is_some_and(|what| what.mechanism.as_str() != "none");
    if dec.code.as_ref().is_some_and(|it| it.as_str() == ReasonCode::NOT_PREVENTED.as_str()) {
        return "Nothing shows that the refusal kept it back, so it counts as run.";
    }
    match (dec.prevented, held) {
        (true, _) => "Not a byte of the request left this host.",
        (false, true) => "The request was held until that was decided.",
        (false, false) => "The request was observed and not held, so it ran.",
    }
}

fn budget(account: &Accounted<'_>) -> Option<String> {
    let name = account.name.as_ref()?;
    let period = account.period.as_ref().map(|it| format!(" ({it})")).unwrap_or_default();
    let left = account.rem.map(|rem| format!(", which has {} left", amount(account, rem)));
    Some(format!("`{name}`{period}{}", left.unwrap_or_default()))
}

/// Explains the end of the reservation.
fn settled(entry: &Entry<'_>) -> Option<String> {
    let account = entry.bud.first()?;
    match (entry.kind, account.act) {
        (Kind::Release, _) => Some("What was set aside was set free again.".to_owned()),
        (Kind::Reconciliation, Some(used)) if account.inc => Some(format!(
            "{} were charged, because what it really used never became known.",
            amount(account, used)
        )),
        (Kind::Reconciliation, Some(used)) => {
            Some(format!("In the end it used {}.", amount(account, used)))
        }
        _ => None,
    }
}

fn amount(account: &Accounted<'_>, amount: i64) -> String {
    match account.unit.as_str() {
        "nUSD" => format!("{} USD", money::usd(amount)),
        "ns" => format!("{} seconds", money::usd(amount)),
        other => format!("{amount} {other}"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it does not hold")]

    use expect_test::{Expect, expect};
    use genops_governance::{Now, Output};

    use super::*;
    use crate::config::Config;
    use crate::journal::{Journal, Opening};
    use crate::recording::Reader;
    use crate::replay::Replayer;
    use crate::replay::tests::{ENFORCED, chat};

    /// Replays a chat with `model` into an evidence directory and explains the last
    /// remarkable unit.
    #[track_caller]
    fn check(yaml: &str, model: &str, expected: &Expect) {
        expected.assert_eq(&told(&replayed(yaml, model)));
    }

    fn told(records: &[Vec<u8>]) -> String {
        let entries: Vec<Entry<'_>> =
            records.iter().map(|record| serde_json::from_slice(record).unwrap()).collect();
        story(&entries).unwrap_or_default()
    }

    fn replayed(yaml: &str, model: &str) -> Vec<Vec<u8>> {
        let folder = tempfile::tempdir().unwrap();
        let config = Config::parse(std::path::Path::new("agent.yaml"), yaml).unwrap();
        let opening = Opening { origin: Some("example.org/test".to_owned()), ..Opening::default() };
        let (mut journal, _) = Journal::open(folder.path(), opening, Now::default()).unwrap();
        let mut replayer = Replayer::new(&config, |output| {
            if let Output::Record(record) = output {
                journal.record(record).unwrap();
            }
            Ok(())
        });
        replayer.replay(Reader::new(chat("/usr/bin/python3", model).as_slice())).unwrap();
        drop(replayer);
        journal.commit().unwrap();
        journal.close(Now::default()).unwrap();
        records(folder.path(), None).unwrap()
    }

    /// Returns the decision's record with another kind and other details.
    fn instead(decision: &[u8], kind: &str, det: serde_json::Value) -> Vec<u8> {
        let mut record: serde_json::Value = serde_json::from_slice(decision).unwrap();
        let fields = record.as_object_mut().unwrap();
        fields.remove("dec");
        fields.insert("type".to_owned(), kind.into());
        fields.insert("det".to_owned(), det);
        serde_json::to_vec(&record).unwrap()
    }

    #[test]
    fn a_refusal_is_explained_by_what_came_of_it() {
        let decided = replayed(ENFORCED, "gpt-4o-pro");
        let decision = decided.first().unwrap();
        let why = serde_json::json!({"code": "POLICY_DENY_MODEL", "reason": "it is denied"});
        expect!["At 2026-11-22T10:00:00Z a request of `bot` was about to be refused with POLICY_DENY_MODEL: it is denied. The agent ended before it could say whether that kept it back."].assert_eq(&told(&[instead(decision, "intent", why)]));
        let bytes = serde_json::json!({"above_bytes": "73", "acted": "egress_hold"});
        let breached = told(&[decision.clone(), instead(decision, "breach", bytes)]);
        expect![
            "But 73 bytes of it left this host after that was written down, so it may have run."
        ]
        .assert_eq(breached.split_once("changed. ").unwrap().1);
        let status = serde_json::json!({"answered": "200"});
        let answered = told(&[decision.clone(), instead(decision, "breach", status)]);
        expect!["But an answer (HTTP status 200) came after that, so it may have run."]
            .assert_eq(answered.split_once("changed. ").unwrap().1);
    }

    #[test]
    fn a_refused_call_is_explained_with_its_mend() {
        check(
            ENFORCED,
            "gpt-4o-pro",
            &expect![
                "At 2026-11-22T10:00:00Z `bot` (team payments, project refunds, /usr/bin/python3, pid 4242) asked openai for gpt-4o-pro (chat). It was BLOCKED with POLICY_DENY_MODEL by `small-models.denied_models`: these models are denied: *-pro; it asks openai for gpt-4o-pro. To run, ask for a model and provider that `small-models.denied_models` permits, or have it changed. Not a byte of the request left this host."
            ],
        );
    }

    #[test]
    fn a_call_over_budget_is_explained_with_what_is_left() {
        let budget = "budgets:\n  - {name: tiny, team: payments, limit: 0.00001, period: day}\n";
        check(
            &format!("{ENFORCED}{budget}"),
            "gpt-4o-mini",
            &expect![
                "At 2026-11-22T10:00:00Z `bot` (team payments, project refunds, /usr/bin/python3, pid 4242) asked openai for gpt-4o-mini (chat). It was BLOCKED with BUDGET_RESERVATION_FAILED by `tiny`: of 0.00001 USD there are 0.00001 USD left, and this request may need 0.00014975 USD. To run, it needs a smaller worst case (a lower limit on output tokens, a shorter prompt, a cheaper model), the next period, or more in `tiny`. Not a byte of the request left this host."
            ],
        );
    }

    #[test]
    fn an_observed_call_is_explained_with_what_it_used() {
        check(
            "",
            "gpt-4o-mini",
            &expect![
                "At 2026-11-22T10:00:00Z `python3/python3` (team python3, project python3, /usr/bin/python3, pid 4242) asked openai for gpt-4o-mini (chat). It was WARNING with x_unmapped_principal: no configured principal matches the process. 0.00014975 USD were set aside for it. Add it to `principals` to give it a name and a team. The request was observed and not held, so it ran. In the end it used 0.0000024 USD."
            ],
        );
    }

    #[test]
    fn where_all_was_allowed_there_is_nothing_to_explain() {
        check(ENFORCED, "gpt-4o-mini", &expect![[""]]);
    }
}
