//! The call of each unmodified client is reported: provider, model, both token counts, process and
//! principal.

use std::process::Command;

use anyhow::ensure;
use genops_tests::agent::Agent;
use genops_tests::clients::{Stage, python, run};
use serde_json::json;

use crate::support::{PRINCIPAL, as_answered, assert_says, can_run, only, which};

/// Observing configuration with two principals, matched by executable.
const OBSERVING: &str = r#"
mode: observe
principals:
  - {name: shell, match: {exe: "*/curl"}, team: platform, project: scripts}
  - {name: assistant, match: {exe: "*/python3*"}, team: research, project: notes}
policies:
  - {name: everybody, allowed_providers: [openai, anthropic]}
"#;

/// Makes a call with an observing agent, and compares the unit with the request seen by the
/// provider.
fn check(
    client: impl FnOnce(&Stage) -> anyhow::Result<Command>,
    program: &str,
    principal: &str,
) -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let stage = Stage::new()?;
    let agent = Agent::shared(OBSERVING)?;
    let finished = run(&mut client(&stage)?)?.succeeded()?;
    let awu = agent.only_awu_of(finished.pid)?;
    let exe = if program == "python3" { python()?.canonicalize()? } else { which(program)? };
    let request = only(stage.provider.log.requests())?;
    let mut expected = as_answered(&request, &finished, &exe)?;
    expected.push((PRINCIPAL, principal.into()));
    assert_says(&awu, &expected);
    ensure!(agent.losses()?.is_empty(), "lost: {:?}", agent.losses()?);
    Ok(())
}

fn check_python(sdk: &str, arguments: &[&str]) -> anyhow::Result<()> {
    check(|stage| stage.python(sdk, arguments), "python3", "assistant")
}

#[test]
fn curl_is_reported() -> anyhow::Result<()> {
    let body = json!({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}]});
    check(
        |stage| Ok(stage.curl("https://api.openai.com/v1/chat/completions", &body)),
        "curl",
        "shell",
    )
}

#[test]
fn curl_that_streams_is_reported() -> anyhow::Result<()> {
    let body = json!({
        "model": "claude-haiku-4-5", "max_tokens": 50, "stream": true,
        "messages": [{"role": "user", "content": "Hello"}],
    });
    check(|stage| Ok(stage.curl("https://api.anthropic.com/v1/messages", &body)), "curl", "shell")
}

#[test]
fn the_openai_sdk_is_reported() -> anyhow::Result<()> {
    check_python("openai", &[])
}

#[test]
fn the_openai_sdk_that_streams_is_reported() -> anyhow::Result<()> {
    check_python("openai", &["--stream"])
}

#[test]
fn the_openai_sdk_with_the_responses_api_is_reported() -> anyhow::Result<()> {
    check_python("openai", &["--api", "responses"])
}

#[test]
fn the_openai_sdk_that_streams_responses_is_reported() -> anyhow::Result<()> {
    check_python("openai", &["--api", "responses", "--stream"])
}

#[test]
fn the_openai_sdk_with_embeddings_is_reported() -> anyhow::Result<()> {
    check_python("openai", &["--api", "embeddings", "--model", "text-embedding-3-small"])
}

#[test]
fn the_anthropic_sdk_is_reported() -> anyhow::Result<()> {
    check_python("anthropic", &["--model", "claude-haiku-4-5"])
}

#[test]
fn the_anthropic_sdk_that_streams_is_reported() -> anyhow::Result<()> {
    check_python("anthropic", &["--model", "claude-haiku-4-5", "--stream"])
}

#[test]
fn requests_is_reported() -> anyhow::Result<()> {
    check_python("requests", &[])
}

#[test]
fn requests_that_streams_is_reported() -> anyhow::Result<()> {
    check_python("requests", &["--stream"])
}

#[test]
fn httpx_is_reported() -> anyhow::Result<()> {
    check_python("httpx", &[])
}

#[test]
fn aiohttp_on_an_event_loop_is_reported() -> anyhow::Result<()> {
    check_python("aiohttp", &[])
}

/// Listing models costs nothing and asks no model.
#[test]
fn a_list_of_models_is_no_inference() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let stage = Stage::new()?;
    let mut agent = Agent::start(OBSERVING)?;
    run(&mut stage.python("openai", &["--api", "models"])?)?.succeeded()?;
    let call = run(&mut stage.python("openai", &[])?)?.succeeded()?;
    agent.only_awu_of(call.pid)?;
    let inference =
        agent.awus().iter().filter(|awu| awu.get("gen_ai.usage.input_tokens").is_some()).count();
    assert_eq!(inference, 1, "{:#?}", agent.awus());
    let (status, _) = agent.stop()?;
    ensure!(status.success(), "SIGTERM ends the agent with 0, not {status}");
    Ok(())
}
