//! Effects of the configuration on real clients: content, approvals, rates, lineage, reloads, a
//! mixed run, and the same decisions from a recording.

use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use genops_tests::agent::{Agent, Launch, program};
use genops_tests::clients::{Finished, Stage, finish, run};
use genops_tests::provider::Behaviour;
use genops_tests::scratch::Scratch;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Map, Value, json};

use crate::support::{PRINCIPAL, assert_says, can_run, copy_of, text};

const CHAT: &str = "https://api.openai.com/v1/chat/completions";
const PATIENCE: Duration = Duration::from_secs(10);

/// Returns a chat completion by `curl`.
fn chat(stage: &Stage, model: &str, said: &str) -> Command {
    let messages = json!([{"role": "user", "content": said}]);
    stage.curl(CHAT, &json!({"model": model, "max_tokens": 50, "messages": messages}))
}

/// Runs a command of the agent and returns the output.
fn genops(arguments: &[&str]) -> anyhow::Result<Output> {
    Ok(Command::new(program()?).args(arguments).output()?)
}

fn said(output: &Output) -> String {
    let [out, err] = [&output.stdout, &output.stderr].map(|it| String::from_utf8_lossy(it));
    format!("{out}{err}")
}

/// Fails unless the unit of a finished call has the given result and reason code.
fn decided(agent: &Agent, call: &Finished, result: &str, code: Option<&str>) -> anyhow::Result<()> {
    let awu = agent.only_awu_of(call.pid)?;
    let found = (text(&awu, "genops.policy.result"), text(&awu, "genops.policy.reason_code"));
    ensure!(found == (Some(result), code), "{result} and {code:?} were due: {awu:#}");
    Ok(())
}

#[test]
fn denied_content_is_found_however_it_is_written() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let agent = Agent::start(
        r#"
mode: enforce
on_timeout: closed
hold_deadline_ms: 2000
principals:
  - {name: all, match: {user: root}, team: research}
policies:
  - {name: secrets, denied_content: ["(?i)streng geheim", "機密", "größe\\s+9"]}
"#,
    )?;
    let stage = Stage::new()?;
    let long = format!("{} Streng Geheim", "a word and another ".repeat(5_000));
    // `requests` escapes characters outside ASCII, the SDK does not; the long text takes many
    // writes.
    for (sdk, said) in [
        ("requests", "機密の資料"),
        ("openai", "die größe  9"),
        ("openai", long.as_str()),
        ("aiohttp", "STRENG GEHEIM"),
    ] {
        let call = run(&mut stage.python(sdk, &["--text", said])?)?;
        decided(&agent, &call, "BLOCKED", Some("POLICY_DENY_CONTENT"))?;
    }
    let escaped = r#"{"model":"gpt-4o-mini","messages":[{"role":"user","content":[{"type":"text","text":"\u0073treng\u0020geheim"}]}]}"#;
    let mut curl = stage.command("curl");
    curl.args([
        "--silent",
        "--header",
        "Content-Type: application/json",
        "--data-binary",
        escaped,
        CHAT,
    ]);
    decided(&agent, &run(&mut curl)?, "BLOCKED", Some("POLICY_DENY_CONTENT"))?;
    ensure!(stage.provider.log.request_count() == 0, "a request arrived");
    let call = run(&mut stage.python("openai", &["--text", "die größe 8"])?)?.succeeded()?;
    decided(&agent, &call, "ALLOWED", None)
}

#[test]
fn an_approved_call_runs_once_and_names_the_approval() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let agent = Agent::start(
        r#"
mode: enforce
on_timeout: closed
hold_deadline_ms: 2000
principals:
  - {name: shell, match: {exe: "*/curl"}, team: platform, delegated_by: alice@example.com}
policies:
  - {name: dear, principal: shell, approval_above: 0.00001}
"#,
    )?;
    let stage = Stage::new()?;
    let ask = || run(&mut chat(&stage, "gpt-4o", "Hello"));
    let blocked = |call: &Finished| decided(&agent, call, "BLOCKED", Some("x_approval_required"));
    let first = ask()?;
    blocked(&first)?;
    let awu = agent.only_awu_of(first.pid)?;
    let request = text(&awu, "genops.approval.request").context("what to approve")?.to_owned();
    let approve = |by: &str, seconds: &str| {
        genops(&["approve", &request, "--by", by, "--max-usd", "1.00", "--seconds", seconds])
    };
    let own = approve(" Alice@EXAMPLE.com", "60")?;
    ensure!(own.status.code() == Some(1), "who answers for it approved it: {}", said(&own));
    // An expired approval does not count.
    ensure!(approve("bob@example.com", "1")?.status.success(), "no approval");
    std::thread::sleep(Duration::from_millis(1_500));
    blocked(&ask()?)?;
    let given = approve("bob@example.com", "60")?;
    ensure!(given.status.success(), "{}", said(&given));
    // Another request for the same model is not approved.
    blocked(&run(&mut chat(&stage, "gpt-4o", "Goodbye"))?)?;
    let second = ask()?.succeeded()?;
    let awu = agent.only_awu_of(second.pid)?;
    let id = text(&awu, "genops.approval.id").context("the approval's name")?;
    ensure!(said(&given).contains(id), "{} does not name {id}", said(&given));
    assert_says(&awu, &[("genops.policy.result", "ALLOWED".into())]);
    // The approval holds for a single call.
    blocked(&ask()?)?;
    ensure!(stage.provider.log.request_count() == 1, "one was approved");
    let directory = agent.evidence();
    let why = genops(&["explain", "--directory", directory.to_str().context("a path")?])?;
    ensure!(
        said(&why).contains(&request) && said(&why).contains("dear.approval_above"),
        "{}",
        said(&why)
    );
    Ok(())
}

#[test]
fn rates_and_what_runs_at_the_same_time_are_limited() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let agent = Agent::start(
        r#"
mode: enforce
on_timeout: closed
hold_deadline_ms: 2000
principals:
  - {name: shell, match: {exe: "*/curl"}, team: platform}
  - {name: assistant, match: {exe: "*/python3*"}, team: research}
rate_limits:
  - {name: three-an-hour, principal: shell, requests: 3, per: hour}
  - {name: one-of-research, team: research, provider: openai, concurrent: 1}
"#,
    )?;
    let stage = Stage::new()?;
    for _ in 0..3 {
        let call = run(&mut chat(&stage, "gpt-4o-mini", "Hello"))?.succeeded()?;
        decided(&agent, &call, "ALLOWED", None)?;
    }
    let call = run(&mut chat(&stage, "gpt-4o-mini", "Hello"))?;
    decided(&agent, &call, "RATE_LIMITED", Some("RATE_LIMITED"))?;
    // Another principal has a separate count; the call goes on until the provider ends the answer.
    let before = stage.provider.log.connections().len();
    let head =
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n".to_vec();
    stage.provider.behave(Behaviour::Script { bytes: head, hang: true });
    let mut running = stage.python("openai", &[])?.spawn()?;
    let arrived =
        || stage.provider.log.connections().iter().skip(before).any(|it| it.application_bytes > 0);
    wait_until("the first call arrives", arrived)?;
    let call = run(&mut stage.python("openai", &[])?)?;
    decided(&agent, &call, "RATE_LIMITED", Some("x_concurrency_exceeded"))?;
    let pid = running.id();
    running.kill()?;
    running.wait()?;
    agent.wait_for(1, PATIENCE, |awu| awu.get("process.pid") == Some(&pid.into()))?;
    stage.provider.behave(Behaviour::Answer);
    let call = run(&mut stage.python("openai", &[])?)?.succeeded()?;
    decided(&agent, &call, "ALLOWED", None)
}

fn wait_until(what: &str, holds: impl Fn() -> bool) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        ensure!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// A process started by a supervisor acts for the supervisor: as a child, in the supervisor's
/// place, or in another session. A sub-agent acts as itself, and is bound by the supervisor's
/// policies as well.
#[test]
fn a_process_acts_for_the_one_that_started_it() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let agent = Agent::start(
        r#"
mode: enforce
on_timeout: closed
hold_deadline_ms: 2000
principals:
  - {name: supervisor, match: {exe: "*/supervisor"}, team: payments, project: refunds}
  - {name: helper, match: {exe: "*/helper"}, team: payments, project: help, subagent_of: supervisor}
policies:
  - {name: small, principal: supervisor, denied_models: ["*-pro"]}
"#,
    )?;
    let (stage, scratch) = (Stage::new()?, Scratch::new("lineage")?);
    let supervisor = copy_of("sh", &scratch, "supervisor")?;
    let helper = copy_of("curl", &scratch, "helper")?;
    // Returns a shell command for a call with `program`; the model names the case.
    let call = |program: &str, model: &str| {
        let body = json!({"model": model, "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]});
        format!(
            "{program} --silent --max-time 20 --data-binary '{body}' -H 'Content-Type: application/json' {CHAT}"
        )
    };
    for (name, script, principal, result) in [
        ("child", format!("{}; true", call("curl", "child")), "supervisor", "ALLOWED"),
        (
            "in-place",
            format!("sleep 1; exec {}", call("curl", "in-place")),
            "supervisor",
            "ALLOWED",
        ),
        ("session", format!("setsid {}; true", call("curl", "session")), "supervisor", "ALLOWED"),
        ("small-pro", format!("{}; true", call("curl", "small-pro")), "supervisor", "BLOCKED"),
        ("sub-agent", format!("{}; true", call(&helper, "sub-agent")), "helper", "ALLOWED"),
        ("sub-pro", format!("{}; true", call(&helper, "sub-pro")), "helper", "BLOCKED"),
    ] {
        let mut command = stage.command(&supervisor);
        command.args(["-c", &script]);
        let finished = run(&mut command)?;
        let of_case = |awu: &Value| text(awu, "gen_ai.request.model") == Some(name);
        let found = agent
            .wait_for(1, PATIENCE, of_case)
            .with_context(|| format!("{name}: {}", finished.stderr()))?;
        let expected = [(PRINCIPAL, principal), ("genops.policy.result", result)];
        for awu in found {
            // The price of these models is unknown: a warning, and no refusal.
            let result = if result == "ALLOWED" { "WARNING" } else { result };
            let expected = expected
                .map(|(key, value)| (key, if value == "ALLOWED" { result } else { value }.into()));
            assert_says(&awu, &expected);
        }
    }
    // Without a supervisor above, the helper is nobody's sub-agent.
    let mut alone = stage.command("sh");
    alone.args(["-c", &call(&helper, "alone")]);
    run(&mut alone)?;
    let found =
        agent.wait_for(1, PATIENCE, |awu| text(awu, "gen_ai.request.model") == Some("alone"))?;
    let principal = found.first().and_then(|awu| text(awu, PRINCIPAL));
    ensure!(principal.is_some_and(|it| it.ends_with("/helper")), "{found:#?}");
    Ok(())
}

/// Replaces the agent's configuration atomically by a changed configuration.
fn replace(agent: &Agent, change: impl FnOnce(String) -> String) -> anyhow::Result<()> {
    let path = agent.config();
    let beside = path.with_extension("beside");
    std::fs::write(&beside, change(std::fs::read_to_string(&path)?))?;
    Ok(std::fs::rename(&beside, &path)?)
}

fn metric(agent: &Agent, name: &str) -> Option<f64> {
    let found = agent.metrics().ok()?.into_iter().find(|(it, _)| it == name);
    found.map(|(_, value)| value)
}

/// A client calls three times on a connection; between the calls the configuration is broken, then
/// repaired and made stricter.
#[test]
fn a_changed_configuration_counts_for_the_next_call_on_an_open_connection() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut agent = Agent::start(
        "mode: observe\nhold_deadline_ms: 2000\nprincipals:\n  - {name: assistant, match: {exe: \"*/python3*\"}, team: research, project: notes}\npolicies:\n  - {name: rule, denied_models: [nothing]}",
    )?;
    let stage = Stage::new()?;
    let client = stage.python("openai", &["--repeat", "3", "--pause", "2"])?.spawn()?;
    let pid = client.id();
    let count = |wanted: usize| {
        agent.wait_for(wanted, PATIENCE, |awu| awu.get("process.pid") == Some(&pid.into()))
    };
    count(1)?;
    replace(&agent, |text| text.replace("denied_models", "denied_modles"))?;
    let refused = "genops_agent_configuration_refused";
    wait_until("the broken configuration is refused", || metric(&agent, refused) == Some(1.0))?;
    count(2)?;
    replace(&agent, |text| {
        text.replace("denied_modles: [nothing]", "denied_models: [\"gpt-4o*\"]")
            .replace("observe", "enforce")
    })?;
    wait_until("the mended one is in force", || metric(&agent, refused) == Some(0.0))?;
    let awus = count(3)?;
    let expected = [
        ("genops.policy.result", "BLOCKED"),
        ("genops.policy.reason_code", "POLICY_DENY_MODEL"),
        ("genops.enforcement.mechanism", "egress_hold"),
        ("genops.compliance", "full"),
    ];
    assert_says(
        awus.last().context("three calls")?,
        &expected.map(|(key, value)| (key, value.into())),
    );
    finish(client)?;
    ensure!(
        stage.provider.log.request_count() == 2,
        "{} arrived",
        stage.provider.log.request_count()
    );
    ensure!(stage.provider.log.connections().len() == 1, "it was one connection");
    ensure!(agent.stderr().contains("did you mean `denied_models`?"), "{}", agent.stderr());
    agent.stop()?;
    let directory = agent.evidence();
    let shown = said(&genops(&["evidence", "show", directory.to_str().context("a path")?])?);
    ensure!(shown.contains("policy_refused"), "{shown}");
    Ok(())
}

/// The guard of the old deadline ends, and does not mistake the change for the end of the agent.
#[test]
fn requests_are_held_as_before_when_the_deadline_has_changed() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let agent = Agent::start(
        "mode: enforce\non_timeout: closed\nhold_deadline_ms: 2000\npolicies:\n  - {name: rule, denied_models: [\"*-pro\"]}",
    )?;
    let stage = Stage::new()?;
    replace(&agent, |text| text.replace("2000", "3000"))?;
    wait_until("the new deadline", || agent.stderr().contains("is in force"))?;
    std::thread::sleep(Duration::from_millis(200));
    let call = run(&mut stage.python("openai", &["--model", "o1-pro"])?)?;
    decided(&agent, &call, "BLOCKED", Some("POLICY_DENY_MODEL"))?;
    ensure!(stage.provider.log.request_count() == 0, "a denied request arrived");
    Ok(())
}

/// Configuration for every configurable result and reason, in a single run.
const MIXED: &str = r#"
environment: production
mode: enforce
on_timeout: closed
hold_deadline_ms: 2000
providers:
  - {host: api.anthropic.com, region: us-east-1}
humans:
  - {name: alice, identity: alice@example.com}
grants:
  - {name: old, delegated_by: alice@example.com, expires: 2026-01-01T00:00:00Z}
principals:
  - {name: late, match: {exe: "*/late"}, team: platform, project: scripts, grant: old}
  - {name: poor, match: {exe: "*/poor"}, team: poor, project: scripts}
  - {name: eager, match: {exe: "*/eager"}, team: platform, project: scripts}
  - {name: slow, match: {exe: "*/slow"}, team: platform, project: scripts}
  - {name: shell, match: {exe: "*/curl"}, team: platform, project: scripts}
budgets:
  - {name: poor-ever, team: poor, unit: USD, limit: 0.0001, thresholds: [1]}
rate_limits:
  - {name: once, principal: eager, requests: 1, per: day}
sla:
  - {tier: gold, principal: slow, latency_target_ms: 1}
policies:
  - {name: models, denied_models: ["*-pro"]}
  - {name: content, denied_content: ["secret"]}
  - {name: regions, denied_regions: ["us-*"]}
  - {name: dear, max_cost: 5.0}
  - {name: soon, denied_models: ["gpt-3.5*"], enforcement: warn}
  - {name: ask, principal: shell, approval_above: 1.0}
"#;

/// Calls of the mixed run, one after another: program, model, text, and maximum tokens of the
/// answer.
fn mixed_calls() -> Vec<(&'static str, &'static str, &'static str, u64)> {
    vec![
        ("curl", "gpt-4o-mini", "Hello", 20),
        ("curl", "gpt-3.5-turbo", "Hello", 20),
        ("curl", "o1-pro", "Hello", 20),
        ("curl", "gpt-4o-mini", "a secret", 20),
        ("curl", "claude-haiku-4-5", "Hello", 20),
        ("curl", "gpt-4o", "Hello", 9_000_000),
        ("curl", "gpt-4o", "Hello", 110_000),
        ("late", "gpt-4o-mini", "Hello", 20),
        ("poor", "gpt-4o-mini", "Hello", 9_000),
        ("poor", "gpt-4o-mini", "Hi", 7),
        ("eager", "gpt-4o-mini", "Hello", 20),
        ("eager", "gpt-4o-mini", "Hello", 20),
        ("slow", "gpt-4o-mini", "Hello", 20),
        ("slow", "gpt-4o-mini", "Hello", 20),
        ("stranger", "gpt-4o-mini", "Hello", 20),
    ]
}

/// Makes the calls of the mixed run, and two calls failed by the provider: with an incomplete
/// answer, and with status 503 for overload. Returns the number of calls. With `linger`, the
/// programs stay long enough for two observers.
fn make_mixed_calls(stage: &Stage, scratch: &Scratch, linger: bool) -> anyhow::Result<usize> {
    let mut count = 0;
    let mut call = |program: &str, model: &str, said: &str, most: u64| -> anyhow::Result<()> {
        // A stream has pauses, so that the call takes longer than its target on any machine.
        let slow = program == "slow";
        let program =
            if program == "curl" { program.to_owned() } else { copy_of("curl", scratch, program)? };
        let url = if model.starts_with("claude") {
            "https://api.anthropic.com/v1/messages"
        } else {
            CHAT
        };
        let messages = json!([{"role": "user", "content": said}]);
        let mut body = json!({"model": model, "max_tokens": most, "messages": messages, "service_tier": "default"});
        if let Some(fields) = body.as_object_mut().filter(|_| slow) {
            fields.insert("stream".to_owned(), true.into());
            fields.insert("stream_options".to_owned(), json!({"include_usage": true}));
        }
        let mut curl = stage.command(program);
        curl.args(["--silent", "--max-time", "20", "--header", "Content-Type: application/json"]);
        curl.args(["--data-binary", &body.to_string(), url]);
        if linger {
            // Nobody listens on the port, and `curl` tries again a second later.
            curl.args([
                "--next",
                "--silent",
                "--retry",
                "1",
                "--retry-delay",
                "1",
                "--retry-connrefused",
            ]);
            curl.arg("http://127.0.0.1:9/");
        }
        run(&mut curl)?;
        count += 1;
        Ok(())
    };
    for (program, model, said, most) in mixed_calls() {
        call(program, model, said, most)?;
    }
    let broken =
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{\"id\":"
            .to_vec();
    stage.provider.behave(Behaviour::Script { bytes: broken, hang: false });
    call("curl", "gpt-4o-mini", "Hello", 20)?;
    let failed = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}".to_vec();
    stage.provider.behave(Behaviour::Script { bytes: failed, hang: false });
    call("curl", "gpt-4o-mini", "Hello", 20)?;
    stage.provider.behave(Behaviour::Answer);
    call("curl", "gpt-4o-mini", "Hello", 20)?;
    Ok(count)
}

#[test]
fn the_export_of_a_mixed_run_complies_in_full() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let launch = Launch { arguments: vec!["--output".into(), "otlp".into()], ..Launch::default() };
    let mut agent = Agent::launch(MIXED, &launch)?;
    let (stage, scratch) = (Stage::new()?, Scratch::new("mixed")?);
    let count = make_mixed_calls(&stage, &scratch, false)?;
    agent.wait_for(count, PATIENCE, |_| true)?;
    let (_, lines) = agent.stop()?;
    ensure!(lines.len() == count, "{} of {count} units", lines.len());
    let export = lines.join("\n");
    // No principal is configured for the stranger: the call is governed, and attributed by a guess.
    let (strangers, named): (Vec<_>, Vec<_>) =
        lines.iter().map(String::as_str).partition(|it| it.contains("x_unmapped_principal"));
    ensure!(
        matches!(strangers.as_slice(), [it] if it.contains("\"stringValue\":\"partial\"")),
        "{strangers:?}"
    );
    let mut check = Command::new(program()?);
    check
        .args(["conformance", "-", "--require", "full"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut check = check.spawn()?;
    check.stdin.take().context("a pipe")?.write_all(named.join("\n").as_bytes())?;
    let report = check.wait_with_output()?;
    ensure!(report.status.success(), "{}", said(&report));
    for due in [
        "ALLOWED",
        "WARNING",
        "BLOCKED",
        "RATE_LIMITED",
        "POLICY_DENY_MODEL",
        "POLICY_DENY_CONTENT",
        "POLICY_DENY_REGION",
        "BUDGET_EXCEEDED",
        "BUDGET_RESERVATION_FAILED",
        "SLA_LATENCY_VIOLATION",
        "PROVIDER_ERROR_UPSTREAM",
        "x_approval_required",
        "x_authority_expired",
        "x_budget_threshold",
        "x_unmapped_principal",
    ] {
        ensure!(
            export.contains(&format!("\"stringValue\":\"{due}\"")),
            "no unit says {due}: {export}"
        );
    }
    ensure!(export.contains("genops.accounting.incomplete"), "no unit is incomplete");
    ensure!(export.contains("genops.sla.actual_latency_ms"), "no unit has its latency");
    Ok(())
}

/// Starts `record` beside the agent, and waits until the recording captures.
fn recorder(config: &Path, to: &Path) -> anyhow::Result<Child> {
    let mut command = Command::new(program()?);
    command.arg("record").arg("--config").arg(config).arg("--output").arg(to).stderr(Stdio::null());
    let child = command.spawn()?;
    wait_until("the recording begins", || to.exists())?;
    std::thread::sleep(Duration::from_secs(2));
    Ok(child)
}

/// Returns the attributes required to be equal in a run and in a replay: all but names, times,
/// attributes depending on durations, and the id of a request, derived from the host's own key.
fn comparable(awu: &Value) -> Map<String, Value> {
    const OTHER: [&str; 10] = [
        "conn",
        "time_ns",
        "genops.awu.id",
        "genops.approval.request",
        "trace_id",
        "span_id",
        "genops.policy.timestamp",
        "genops.sla.actual_latency_ms",
        "gen_ai.response.time_to_first_chunk",
        "genops.enforcement.bytes_before_decision",
    ];
    let mut all = awu.as_object().cloned().unwrap_or_default();
    // The time to retry depends on the time of the request.
    if let Some((before, _)) =
        text(awu, "genops.policy.reason").and_then(|it| it.split_once("; again in"))
    {
        all.insert("genops.policy.reason".to_owned(), before.into());
    }
    all.into_iter().filter(|(key, _)| !OTHER.contains(&key.as_str())).collect()
}

#[test]
fn a_replay_gives_the_units_of_the_run_decisions_included() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut agent = Agent::start(MIXED)?;
    let (stage, scratch) = (Stage::new()?, Scratch::new("replay")?);
    let recording = scratch.join("calls.jsonl");
    let mut recorder = recorder(&agent.config(), &recording)?;
    let count = make_mixed_calls(&stage, &scratch, true)?;
    let live = agent.wait_for(count, PATIENCE, |_| true)?;
    let pid = Pid::from_raw(i32::try_from(recorder.id())?).context("a pid")?;
    kill_process(pid, Signal::TERM)?;
    recorder.wait()?;
    agent.stop()?;
    let config = agent.config();
    let replayed = Command::new(program()?)
        .arg("replay")
        .arg(&recording)
        .arg("--config")
        .arg(&config)
        .args(["--output", "json"])
        .output()?;
    ensure!(replayed.status.success(), "{}", said(&replayed));
    let text = String::from_utf8(replayed.stdout)?;
    let replayed = text.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
    ensure!(
        replayed.len() == live.len(),
        "{} units, and {} in the replay",
        live.len(),
        replayed.len()
    );
    for (live, replayed) in live.iter().zip(&replayed) {
        let (live, replayed) = (comparable(live), comparable(replayed));
        let all = live.keys().chain(replayed.keys());
        let differ: Vec<_> = all.filter(|key| live.get(*key) != replayed.get(*key)).collect();
        ensure!(differ.is_empty(), "{differ:?} differ: {live:#?} and in the replay {replayed:#?}");
    }
    Ok(())
}
