//! Compares the accounting of calls in six places, to the nano-USD: the provider's own count,
//! units, spans, metrics, evidence and accounts.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use genops_tests::agent::{Agent, Launch, program};
use genops_tests::clients::{node, python};
use genops_tests::collector::{Collector, Span};
use genops_tests::provider::{Provider, Request};
use serde_json::Value;

use crate::support::text;

const PATIENCE: Duration = Duration::from_secs(30);

/// Nano-USD of an input and of an output token, by the beginning of a model's name. No provider has
/// the same prices.
const PRICES: [(&str, i64, i64); 3] =
    [("gpt-", 155, 613), ("claude-", 803, 4_019), ("gemini-", 71, 307)];
const CONFIGURATION: &str = r#"
mode: enforce
on_timeout: closed
hold_deadline_ms: 20000
principals:
  - {name: everybody, match: {user: root}, team: research, project: notes}
budgets:
  - {name: all, team: research, unit: USD, limit: 100, period: total}
prices:
  overrides:
    - {model: "gpt-*", input_per_million: 0.155, output_per_million: 0.613}
    - {model: "claude-*", input_per_million: 0.803, output_per_million: 4.019}
    - {model: "gemini-*", input_per_million: 0.071, output_per_million: 0.307}
"#;

/// Agent sending spans to a collector, and programs using the clients' libraries since before the
/// agent's start.
pub(crate) struct Audited {
    pub(crate) agent: Agent,
    pub(crate) collector: Collector,
    _idle: Vec<Idle>,
}

impl Audited {
    /// Starts an agent with the prices of `PRICES`.
    pub(crate) fn with_prices() -> anyhow::Result<Self> {
        Self::start(CONFIGURATION)
    }

    pub(crate) fn start(configuration: &str) -> anyhow::Result<Self> {
        let collector = Collector::start()?;
        let idle = vec![
            Idle::start(
                Command::new(python()?)
                    .args(["-c", "import ssl, sys; print(flush=True); sys.stdin.read()"]),
            )?,
            Idle::start(
                Command::new(node()?).args(["-e", "console.log(); process.stdin.resume()"]),
            )?,
        ];
        let launch = Launch { telemetry: collector.telemetry(), ..Launch::default() };
        let agent = Agent::launch(configuration, &launch)?;
        Ok(Self { agent, collector, _idle: idle })
    }

    /// Stops the agent. Fails unless all places agree on the requests to `providers`.
    pub(crate) fn agrees_with(mut self, providers: &[&Provider]) -> anyhow::Result<Summary> {
        let requests: Vec<_> = providers.iter().flat_map(|it| it.log.requests()).collect();
        let count = requests.len();
        self.agent.wait_for(count, PATIENCE, |_| true)?;
        let spans = self.collector.wait_for(count, PATIENCE)?;
        let units = self.agent.awus();
        let charged: Charges = units.iter().map(charge_of).collect::<anyhow::Result<_>>()?;
        let exported: Charges = spans.iter().map(charge_of_span).collect::<anyhow::Result<_>>()?;
        let strays: Vec<_> =
            units.iter().filter(|it| text(it, "gen_ai.response.id").is_none()).take(3).collect();
        ensure!(units.len() == count, "{} units of {count} requests: {strays:#?}", units.len());
        ensure!(charged.len() == count && charged == exported, "spans differ from units");
        let total = charged.values().map(|it| it.actual).sum();
        let account = accounts()?.remove("all").context("an account")?;
        ensure!(
            (account.reserved, account.consumed) == (0, total),
            "the account has {account:?}, units are {total} nano-USD together"
        );
        self.metrics_agree(count)?;
        self.agent.stop()?;
        let summary = Summary::of(&units, &requests)?;
        evidence_agrees(&self.agent, &charged)?;
        ensure!(summary.total == total, "{} and {total} nano-USD", summary.total);
        Ok(summary)
    }

    fn metrics_agree(&self, count: usize) -> anyhow::Result<()> {
        let metrics = self.agent.metrics()?;
        for name in ["genops_agent_awus_total", "genops_agent_exported_spans_total"] {
            let of_family = metrics.iter().filter(|(it, _)| it.starts_with(name));
            let sum: f64 = of_family.map(|(_, value)| value).sum();
            let said = format!("{sum}");
            ensure!(said == count.to_string(), "{name} is {said} after {count} units");
        }
        let losses = self.agent.losses()?;
        ensure!(losses.is_empty(), "lost: {losses:?}");
        Ok(())
    }
}

/// Number of units of each basis, and the total cost in nano-USD.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    pub(crate) reported: usize,
    pub(crate) estimated: usize,
    pub(crate) total: i64,
}

impl Summary {
    /// Compares each unit with the provider's count. Fails with up to five wrong units.
    fn of(units: &[Value], requests: &[Request]) -> anyhow::Result<Self> {
        let mut open: BTreeMap<_, _> =
            requests.iter().filter_map(|it| Some((it.id.as_deref()?, it))).collect();
        let (mut summary, mut wrong) = (Self::default(), Vec::new());
        for unit in units {
            let charge = charge_of(unit)?.1;
            let request = text(unit, "gen_ai.response.id").and_then(|id| open.remove(id));
            let fault = match request {
                None => Some("it is about no request".to_owned()),
                Some(request) => fault(unit, &charge, request)?,
            };
            wrong.extend(fault.map(|why| format!("{why}: {request:?} {unit:#}")));
            summary.total += charge.actual;
            match charge.basis.as_str() {
                "reported" => summary.reported += 1,
                _ => summary.estimated += 1,
            }
        }
        wrong.extend(open.into_values().map(|it| format!("no unit is about {it:?}")));
        let shown = wrong.iter().take(5).map(String::as_str).collect::<Vec<_>>().join("\n");
        ensure!(wrong.is_empty(), "{} of {} are wrong:\n{shown}", wrong.len(), requests.len());
        Ok(summary)
    }
}

/// Returns the fault of a unit, if any.
fn fault(unit: &Value, charge: &Charge, request: &Request) -> anyhow::Result<Option<String>> {
    let counted = counted(request)?;
    let Charge { actual, reserved, basis } = charge;
    if actual > reserved {
        return Ok(Some(format!("{actual} of {reserved} nano-USD are charged")));
    }
    let cost = unit.get("genops.cost.total").map(nano).transpose()?;
    Ok(if request.made.told() {
        let right = (counted, "reported", Some(counted));
        let found = (*actual, basis.as_str(), cost);
        (right != found).then(|| format!("counted {right:?}, said {found:?}"))
    } else {
        // Within 20 % of the count, and marked as an estimate.
        let near = (actual - counted).abs() * 5 <= counted;
        let right = near && basis == "estimated" && cost.is_none();
        (!right).then(|| format!("counted {counted}, said {actual} ({basis}), cost {cost:?}"))
    })
}

/// Cost by the provider's count, in nano-USD.
fn counted(request: &Request) -> anyhow::Result<i64> {
    let model = request.model.as_deref().context("a model")?;
    let (_, input, output) = PRICES.iter().find(|it| model.starts_with(it.0)).context("a price")?;
    let (read, made) = (request.counted_input, request.made.output_tokens());
    Ok(i64::try_from(read)? * input + i64::try_from(made)? * output)
}

/// Charge of a unit, in nano-USD.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Charge {
    actual: i64,
    reserved: i64,
    basis: String,
}

type Charges = BTreeMap<String, Charge>;

fn charge_of(unit: &Value) -> anyhow::Result<(String, Charge)> {
    let of = |key: &str| unit.get(key).with_context(|| format!("no `{key}`: {unit:#}"));
    let amount = |key: &str| nano(of(key)?);
    let said = |key: &str| Ok::<_, anyhow::Error>(of(key)?.as_str().context("a text")?.to_owned());
    let charge = Charge {
        actual: amount("genops.accounting.actual")?,
        reserved: amount("genops.accounting.reserved")?,
        basis: said("genops.accounting.basis")?,
    };
    ensure!(said("genops.accounting.unit")? == "USD", "{unit:#}");
    Ok((said("genops.awu.id")?, charge))
}

fn charge_of_span(span: &Span) -> anyhow::Result<(String, Charge)> {
    charge_of(&Value::Object(span.attributes.clone()))
}

/// Converts USD to nano-USD.
pub(crate) fn nano(usd: &Value) -> anyhow::Result<i64> {
    let usd = usd.as_f64().context("a number")?;
    Ok(format!("{:.0}", usd * 1e9).parse()?)
}

/// Fails unless the log verifies, with each account following from the previous account, and has
/// the charge of each finished unit.
fn evidence_agrees(agent: &Agent, charged: &Charges) -> anyhow::Result<()> {
    let run = |command: &str, more: &[&str]| {
        let mut evidence = Command::new(program()?);
        evidence.args(["evidence", command]).arg(agent.evidence()).args(more);
        let said = evidence.output()?;
        let why = String::from_utf8_lossy(&said.stderr).into_owned();
        ensure!(said.status.success(), "evidence {command}: {why}");
        Ok(String::from_utf8(said.stdout)?)
    };
    run("verify", &[])?;
    let mut found = BTreeMap::new();
    for line in run("show", &["--output", "json"])?.lines() {
        let entry: Value = serde_json::from_str(line)?;
        if text(&entry, "type") != Some("reconciliation") {
            continue;
        }
        let amount = |key: &str| entry.pointer(&format!("/bud/0/{key}")).and_then(Value::as_i64);
        let id = text(&entry, "awu").context("a unit")?.to_owned();
        let amount = |key| amount(key).with_context(|| format!("no `{key}`: {entry:#}"));
        found.insert(id, (amount("act")?, amount("res")?));
    }
    let expected: BTreeMap<_, _> =
        charged.iter().map(|(id, it)| (id.clone(), (it.actual, it.reserved))).collect();
    let differ: Vec<_> =
        expected.iter().filter(|(id, amounts)| found.get(*id) != Some(*amounts)).take(5).collect();
    ensure!(found == expected, "evidence differs from units: {differ:?} of {}", found.len());
    Ok(())
}

/// Account as reported by the agent.
#[derive(Debug)]
pub(crate) struct Account {
    pub(crate) reserved: i64,
    pub(crate) consumed: i64,
}

/// Returns the accounts of the running agent, by budget.
pub(crate) fn accounts() -> anyhow::Result<BTreeMap<String, Account>> {
    let said = Command::new(program()?).args(["budget", "--output", "json"]).output()?;
    ensure!(said.status.success(), "budget: {}", String::from_utf8_lossy(&said.stderr));
    let mut accounts = BTreeMap::new();
    for line in String::from_utf8(said.stdout)?.lines() {
        let account: Value = serde_json::from_str(line)?;
        let of = |key: &str| account.get(key).and_then(Value::as_i64).context(key.to_owned());
        let name = text(&account, "budget").context("a name")?.to_owned();
        let (reserved, consumed) = (of("reserved")?, of("consumed")?);
        accounts.insert(name, Account { reserved, consumed });
    }
    Ok(accounts)
}

/// Program doing nothing.
struct Idle(Child);

impl Idle {
    /// Starts a program, and waits for a line of output.
    fn start(command: &mut Command) -> anyhow::Result<Self> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let output = child.stdout.take().context("a pipe")?;
        let idle = Self(child);
        let read = BufReader::new(output).read_line(&mut String::new())?;
        ensure!(read > 0, "it ended");
        Ok(idle)
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        // The program has ended, or ends now.
        let _ended = self.0.kill().and_then(|()| self.0.wait());
    }
}
