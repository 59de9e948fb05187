//! Fifty processes, fourteen of them adversaries trying to get round the agent, two in each of
//! seven ways, while the others go on working. Nothing forbidden arrives, nobody else is harmed,
//! and the evidence agrees with the provider's own log, line by line.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use genops_tests::agent::{Agent, program};
use genops_tests::client::Attempt;
use genops_tests::clients::{Stage, finish, script};
use genops_tests::patience::scaled;
use genops_tests::scratch::Scratch;
use serde_json::Value;

use crate::compare::agree;
use crate::support::{can_run, copy_of, int, text};

/// Text that no adversary may get to a provider, in the name of a model or in a message.
const MARKER: &str = "7f3a-forbidden";
/// Beginning of the model in a cover request, replaced by the adversary with another request. The
/// TLS library takes no byte of the cover request: the agent may release the cover request, nothing
/// arrives, and nothing is charged.
const COVER: &str = "gpt-4o-cover-";
/// Way of each adversary; see `clients/adversary.py`. `shown` is a program under the path of a
/// program allowed to call.
const ADVERSARIES: [(&str, &str); 14] = [
    ("A", "bio"),
    ("A", "child"),
    ("B", "early"),
    ("B", "retry"),
    ("C", "blank"),
    ("C", "crooked"),
    ("D", "host"),
    ("D", SHOWN),
    ("E", FLOOD),
    ("E", KNOCK),
    ("F", "pieces"),
    ("F", "late"),
    ("G", "secret"),
    ("G", "costly"),
];
const SHOWN: &str = "shown";
const FLOOD: &str = "names";
const KNOCK: &str = "knock";
const BYSTANDERS: usize = 36;
/// Requests of a bystander, requests per second, and n: each n-th request is refused by a policy.
const REQUESTS: usize = 24;
const RATE: f64 = 2.0;
const DENY_EVERY: usize = 8;
/// Duration of the attacks: as long as the bystanders are at work.
const SIEGE: Duration = Duration::from_secs(12);
const ROUNDS: usize = 3;
/// Deadline of the hold. Unexplained bytes wait for the whole deadline; on two cores shared by
/// fifty processes, a verdict takes time.
const HOLD: Duration = Duration::from_secs(4);
/// Upper limit of the agent's resident memory, in KiB.
const MEMORY_LIMIT_KIB: u64 = 128 << 10;
/// User id of the first adversary; each adversary has a different user id.
const FIRST_USER: usize = 41_000;

/// `clerk` is the path of a program allowed to call, and not of any adversary.
fn configuration(clerk: &str) -> String {
    format!(
        "mode: enforce\non_timeout: closed\nuninspectable: block\nunmapped: block\n\
         hold_deadline_ms: {}\n\
         principals:\n\
         - {{name: crowd, match: {{exe: \"*/genops-tests\"}}, team: work, project: siege}}\n\
         - {{name: tools, match: {{exe: \"*/python3*\"}}, team: tools, project: siege}}\n\
         - {{name: clerk, match: {{exe: {clerk}}}, team: work, project: desk}}\n\
         policies:\n\
         - {{name: no-forbidden, denied_models: [\"*forbidden*\"]}}\n\
         - {{name: no-pro, denied_models: [\"*-pro\"]}}\n\
         - {{name: no-secrets, denied_content: [\"secret 7f3a\"]}}\n\
         - {{name: thrift, max_cost: 0.5}}\n\
         - {{name: one-provider, principal: tools, denied_providers: [anthropic]}}\n\
         prices:\n  overrides:\n  \
         - {{model: \"gpt-4o-mini*\", input_per_million: 1, output_per_million: 1}}\n  \
         - {{model: \"{COVER}*\", input_per_million: 1, output_per_million: 1}}\n",
        scaled(HOLD).as_millis()
    )
}

/// Shows `curl` under the clerk's path, and calls with `curl` as another user until the time is
/// over.
const CALL_AS_CLERK: &str = r#"
mount --bind "$(command -v curl)" "$1" && made=0 && end=$(($(date +%s) + $2))
while [ "$(date +%s)" -lt "$end" ]; do
  made=$((made + 1))
  body='{"model":"gpt-4o-mini-shown-'$$-$made'","messages":[{"role":"user","content":"'$3'"}]}'
  setpriv --reuid="$4" --clear-groups "$1" --silent --max-time 20 --output /dev/null \
    --header 'Content-Type: application/json' --data "$body" "$5"
  sleep 0.05
done
printf '{"made": %d}\n' "$made"
"#;

/// Participants of a round.
struct Siege {
    stage: Stage,
    /// Provider closed to the adversaries; nobody else calls the provider.
    closed: Stage,
    /// Programs of the adversaries and of the clerk, readable by every user.
    arms: Scratch,
    clerk: String,
}

impl Siege {
    fn new() -> anyhow::Result<Self> {
        let (stage, closed) = (Stage::watching(MARKER)?, Stage::watching(MARKER)?);
        let arms = Scratch::new("siege")?;
        for name in ["ways.py", "adversary.py"] {
            std::fs::copy(script(name), arms.join(name))?;
        }
        let clerk = copy_of("curl", &arms, "clerk")?;
        Ok(Self { stage, closed, arms, clerk })
    }

    fn logs(&self) -> [PathBuf; 2] {
        [self.stage.log_file(), self.closed.log_file()]
    }

    /// Starts an adversary with a separate user id.
    fn adversary(&self, way: &str, user: usize) -> anyhow::Result<Child> {
        let (user, seconds) = (user.to_string(), scaled(SIEGE).as_secs().to_string());
        if way == SHOWN {
            let mut command = self.stage.command("sh");
            command.args(["-c", CALL_AS_CLERK, "sh", &self.clerk, &seconds, MARKER, &user]);
            return Ok(command.arg("https://api.openai.com/v1/chat/completions").spawn()?);
        }
        let stage = if way == KNOCK { &self.closed } else { &self.stage };
        let mut command = stage.command("setpriv");
        command.args([&format!("--reuid={user}"), "--clear-groups", "/usr/bin/python3"]);
        command.arg(self.arms.join("adversary.py")).args([way, &seconds, MARKER]);
        Ok(command.spawn()?)
    }

    /// Makes a call with the library shared by all participants, to have the library probed:
    /// the agent finds a file never used before a moment after the first mapping.
    fn warm_up(&self) -> anyhow::Result<Vec<Attempt>> {
        reported(self.bystander(1)?)
    }

    /// Starts a client making allowed calls, and some refused calls.
    fn bystander(&self, requests: usize) -> anyhow::Result<Child> {
        let mut client = Command::new(env!("CARGO_BIN_EXE_genops-tests"));
        let address = self.stage.provider.address.to_string();
        client.args(["client", "--address", &address, "--root"]).arg(self.stage.root());
        client.args(["--requests", &requests.to_string(), "--rate", &RATE.to_string()]);
        client.args(["--deny-every", &DENY_EVERY.to_string()]).stdin(Stdio::null());
        Ok(client.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?)
    }

    /// Fails unless each allowed call of a bystander was answered and arrived, and each denied call
    /// failed. Prints the time of the longest call.
    fn nobody_is_harmed(&self, attempts: &[Attempt]) -> anyhow::Result<()> {
        ensure!(attempts.len() == 1 + BYSTANDERS * REQUESTS, "{} attempts", attempts.len());
        let harmed: Vec<_> =
            attempts.iter().filter(|it| it.answered == it.model.ends_with("-pro")).collect();
        ensure!(harmed.is_empty(), "{} calls did not end as they should: {harmed:?}", harmed.len());
        let longest = attempts.iter().map(|it| it.seconds).fold(0.0, f64::max);
        eprintln!("  bystanders: {} calls, the longest took {longest:.2} s", attempts.len());
        let arrived: BTreeSet<_> =
            self.stage.provider.log.requests().into_iter().filter_map(|it| it.model).collect();
        let missing = attempts.iter().find(|it| it.answered && !arrived.contains(&it.model));
        ensure!(missing.is_none(), "answered by nobody: {missing:?}");
        Ok(())
    }

    /// Fails if a byte of forbidden text, or a request to the closed provider, arrived.
    fn nothing_forbidden_arrived(&self) -> anyhow::Result<()> {
        for provider in [&self.stage.provider, &self.closed.provider] {
            let marked = provider.log.connections().into_iter().find(|it| it.marked);
            let start = marked.map(|it| String::from_utf8_lossy(&it.start).into_owned());
            ensure!(start.is_none(), "it arrived: {start:?}");
        }
        ensure!(self.closed.provider.log.request_count() == 0, "a closed provider was called");
        Ok(())
    }
}

/// Waits for a bystander and returns the results of its requests.
fn reported(bystander: Child) -> anyhow::Result<Vec<Attempt>> {
    let output = bystander.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "a bystander failed: {said}");
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Units with the facts to assign a unit to an adversary.
struct Units<'a> {
    all: &'a [Value],
    clerk: &'a str,
    known: BTreeSet<u64>,
}

impl Units<'_> {
    fn of(&self, way: &str, pid: u64) -> Vec<&Value> {
        let exe = |it: &Value| text(it, "process.executable.path").unwrap_or_default().to_owned();
        let of = |it: &&Value| match (way, int(it, "process.pid")) {
            (SHOWN, _) => exe(it) == self.clerk,
            // Its children are processes of their own, and go on with its connections.
            ("child", Some(of)) if !self.known.contains(&of) => exe(it).contains("python"),
            (_, of) => of == Some(pid),
        };
        self.all.iter().filter(of).collect()
    }
}

/// Fails unless each bystander's request has a single unit, with the right result.
fn each_has_one_unit(attempts: &[Attempt], units: &[Value]) -> anyhow::Result<()> {
    let mut results: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for unit in units {
        let model = text(unit, "gen_ai.request.model").unwrap_or_default();
        let result = text(unit, "genops.policy.result").unwrap_or_default();
        results.entry(model).or_default().push(result);
    }
    for Attempt { model, .. } in attempts {
        let expected = if model.ends_with("-pro") { "BLOCKED" } else { "ALLOWED" };
        let found = results.get(model.as_str());
        ensure!(found == Some(&vec![expected]), "{model}: {found:?}");
    }
    Ok(())
}

/// Waits for the adversaries and returns the process id and way of each. Fails if an adversary made
/// no attempt.
fn have_tried(
    adversaries: Vec<(&str, &'static str, Child)>,
) -> anyhow::Result<Vec<(u64, &'static str)>> {
    let mut tried = Vec::new();
    for (kind, way, child) in adversaries {
        let finished = finish(child)?.succeeded().with_context(|| format!("{kind} {way}"))?;
        let report = finished.report()?;
        eprintln!("  {kind} {way}: {report}");
        ensure!(int(&report, "made") > Some(0), "{kind} {way} did nothing: {report}");
        tried.push((finished.pid.into(), way));
    }
    Ok(tried)
}

/// Fails unless every request of an adversary was refused, except cover requests.
fn all_were_refused(tried: &[(u64, &'static str)], units: &Units<'_>) -> anyhow::Result<()> {
    for (pid, way) in tried {
        let of = units.of(way, *pid);
        let is_cover = |it: &Value| {
            text(it, "gen_ai.request.model").is_some_and(|model| model.starts_with(COVER))
        };
        let is_refused = |it: &Value| text(it, "genops.policy.result") == Some("BLOCKED");
        let passed = of.iter().find(|it| !is_refused(it) && !is_cover(it));
        ensure!(passed.is_none(), "{way}: {passed:#?}");
        // An adversary making only TLS objects asks for nothing.
        ensure!(*way == FLOOD || !of.is_empty(), "{way}: no unit tells of it");
    }
    Ok(())
}

fn round() -> anyhow::Result<()> {
    let siege = Siege::new()?;
    let mut agent = Agent::start(&configuration(&siege.clerk))?;
    let mut attempts = siege.warm_up()?;
    let begun = Instant::now();
    let adversaries = (FIRST_USER..)
        .zip(ADVERSARIES)
        .map(|(user, (kind, way))| Ok((kind, way, siege.adversary(way, user)?)));
    let adversaries: Vec<_> = adversaries.collect::<anyhow::Result<_>>()?;
    let bystanders: Vec<_> =
        (0..BYSTANDERS).map(|_| siege.bystander(REQUESTS)).collect::<anyhow::Result<_>>()?;
    let known = adversaries.iter().map(|it| &it.2).chain(&bystanders).map(|it| it.id().into());
    let known: BTreeSet<u64> = known.collect();
    for bystander in bystanders {
        attempts.extend(reported(bystander)?);
    }
    let tried = have_tried(adversaries)?;
    eprintln!("  it took {:.1} s", begun.elapsed().as_secs_f64());

    siege.nothing_forbidden_arrived()?;
    siege.nobody_is_harmed(&attempts)?;
    let resident = agent.resident_kib()?;
    ensure!(resident < MEMORY_LIMIT_KIB, "the agent holds {resident} KiB");
    let asked: BTreeSet<_> = attempts.iter().map(|it| it.model.as_str()).collect();
    agent.wait_for(attempts.len(), Duration::from_secs(30), |awu| {
        text(awu, "gen_ai.request.model").is_some_and(|model| asked.contains(model))
    })?;
    // A refusal is reported when its effect is known, at most a second later.
    std::thread::sleep(scaled(Duration::from_millis(1_500)));
    let losses = agent.losses()?;
    agent.stop()?;
    let all = agent.awus();
    eprintln!("  {} units, {resident} KiB, lost: {losses:?}", all.len());
    each_has_one_unit(&attempts, &all)?;
    all_were_refused(&tried, &Units { all: &all, clerk: &siege.clerk, known })?;
    let verified =
        Command::new(program()?).args(["evidence", "verify"]).arg(agent.evidence()).output()?;
    ensure!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));
    agree(&agent.evidence(), &siege.logs())
}

#[test]
fn of_fifty_processes_fourteen_adversaries_get_nothing_through_and_the_log_is_true()
-> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    (1..=ROUNDS).try_for_each(|number| {
        eprintln!("round {number}");
        round().with_context(|| format!("round {number}"))
    })
}
