//! A process serving several customers: each customer has a limit, and invented customers get no
//! more than the limit of the process itself.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use genops_tests::clients::{Stage, python, run, script};
use serde_json::{Value, json};

use crate::books::{Audited, accounts};
use crate::support::{can_run, text};

/// Seven tokens of output, at a cent each: a call costs 0.07 USD, and 14 calls cost 0.98 USD.
const CONFIGURATION: &str = r#"
mode: enforce
on_timeout: closed
hold_deadline_ms: 20000
principals:
  - name: desk
    match: {exe: "*/python3*"}
    team: sales
    attribution: {customer_id: ["header:x-customer"]}
budgets:
  - {name: whole, principal: desk, unit: USD, limit: 4, period: total}
  - {name: part, principal: desk, unit: USD, limit: 1, period: total, per: customer_id}
prices:
  overrides:
    - {model: gpt-4o-mini, input_per_million: 0, output_per_million: 10000}
"#;
const NANO_USD_A_CALL: i64 = 70_000_000;
/// Calls for each customer, by turns, and the number of calls paid by a dollar.
const CALLS: usize = 16;
const PAID: usize = 14;
const CUSTOMERS: [&str; 3] = ["ada", "bob", "cyd"];
/// Unknown customers, a call each. Four dollars pay 57 calls; 42 have been made for the known
/// customers.
const FORGED: usize = 20;
const FORGED_PAID: usize = 15;

/// Returns the number of released calls of a customer, and the exceeded budgets of the refused
/// calls.
fn outcome<'a>(units: impl Iterator<Item = &'a Value>) -> (usize, Vec<&'a str>) {
    let (through, refused): (Vec<_>, Vec<_>) =
        units.partition(|it| text(it, "genops.policy.result") != Some("BLOCKED"));
    (through.len(), refused.iter().filter_map(|it| text(it, "genops.policy.name")).collect())
}

#[test]
fn each_customer_of_a_process_is_stopped_at_its_own_dollar() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let audited = Audited::start(CONFIGURATION)?;
    let stage = Stage::new()?;
    let mut names = CUSTOMERS.repeat(CALLS).into_iter().map(str::to_owned).collect::<Vec<_>>();
    names.extend((0..FORGED).map(|number| format!("made-up-{number}")));
    let mut client = stage.command(python()?);
    client.arg(script("money.py")).arg(format!("customers.call:{}", names.len()));
    client.args(["--most", "7", "--customer"]).args(&names);
    run(&mut client)?.succeeded()?;

    let units = audited.agent.wait_for(names.len(), Duration::from_secs(10), |_| true)?;
    let of = |name: &str| {
        let key = name.to_owned();
        units.iter().filter(move |it| text(it, "genops.customer_id") == Some(&key))
    };
    for name in CUSTOMERS {
        let part = format!("part[{name}]");
        let expected = (PAID, vec![part.as_str(); CALLS - PAID]);
        let found = outcome(of(name));
        ensure!(found == expected, "{name}: {found:?}: {:#?}", of(name).next_back());
        for unit in of(name) {
            let source = text(unit, "genops.attribution.source");
            ensure!(source == Some("client"), "{source:?}: {unit:#}");
        }
    }
    let made_up = |it: &&Value| {
        text(it, "genops.customer_id").is_some_and(|name| name.starts_with("made-up-"))
    };
    let found = outcome(units.iter().filter(made_up));
    let expected = (FORGED_PAID, vec!["whole"; FORGED - FORGED_PAID]);
    ensure!(found == expected, "made up: {found:?}");
    let arrived = stage.provider.log.request_count();
    ensure!(arrived == PAID * CUSTOMERS.len() + FORGED_PAID, "{arrived} arrived");

    let accounts = accounts()?;
    let mut expected: BTreeMap<_, _> =
        CUSTOMERS.iter().map(|it| (format!("part[{it}]"), PAID)).collect();
    expected.insert("whole".to_owned(), arrived);
    for (name, calls) in expected {
        let account = accounts.get(&name).with_context(|| format!("no {name}"))?;
        let used = i64::try_from(calls)? * NANO_USD_A_CALL;
        ensure!((account.reserved, account.consumed) == (0, used), "{name}: {account:?}");
    }
    alerts_name_the_part(&audited, names.len())?;
    ensure!(audited.agent.losses()?.is_empty(), "lost: {:?}", audited.agent.losses()?);
    Ok(())
}

/// Each refusal for a shortfall has an alert about the customer's part of the budget, with the
/// remaining amount.
fn alerts_name_the_part(audited: &Audited, count: usize) -> anyhow::Result<()> {
    let spans = audited.collector.wait_for(count, Duration::from_secs(10))?;
    let refused: Vec<_> = spans
        .iter()
        .filter(|it| {
            it.attributes.get("genops.policy.result") == Some(&json!("BLOCKED"))
                && it.attributes.get("genops.customer_id") == Some(&json!("bob"))
        })
        .collect();
    ensure!(refused.len() == CALLS - PAID, "{} spans of bob's are refused", refused.len());
    for span in refused {
        let mut alerts = span.events.iter().filter(|(name, _)| name == "genops.budget.alert");
        let (_, alert) = alerts.next().with_context(|| format!("no alert: {span:#?}"))?;
        let expected = [
            ("genops.budget.name", json!("part[bob]")),
            ("genops.budget.unit", json!("USD")),
            ("genops.budget.remaining", json!(0.02)),
        ];
        let right = expected.iter().all(|(key, value)| alert.get(*key) == Some(value));
        ensure!(right && alerts.next().is_none(), "{alert:#?}");
    }
    Ok(())
}
