//! `why`: reason for the refusal of the caller's own call, for anyone and without root.
//!
//! Asks the running agent. Refusals from before the agent's start are in evidence, readable with
//! `genops-agent explain`.

use std::path::PathBuf;

use anyhow::{Context as _, anyhow};

use crate::cli::{self, Failure, Format};
use crate::foreign::Line;
use crate::refusals::{OF_USER, Refusal};
use crate::user_socket;

/// Say why your own call was refused, and what to change
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  genops-agent why\n  genops-agent why 4711\n  \
    genops-agent why --all --output json\n\n\
    Needs no privilege, and shows the calls of the caller's own user only. The socket of the agent is \
    /run/genops/user.sock, or what GENOPS_USER_SOCKET names. Exit code: 1 if there is no such refusal.")]
pub(crate) struct Why {
    /// Number of the process, or the beginning of the id of the refused call; default: the last
    /// refusal.
    #[arg(value_name = "PID|ID", conflicts_with = "all")]
    which: Option<String>,
    /// Every kept refusal, newest first.
    #[arg(long)]
    all: bool,
    /// How to print refusals.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

impl Why {
    /// Runs the command.
    pub(crate) fn run(self) -> Result<(), Failure> {
        let Self { which, all, output } = self;
        let socket = std::env::var_os(user_socket::SOCKET_VARIABLE);
        let socket = socket.map_or_else(|| PathBuf::from(user_socket::SOCKET), PathBuf::from);
        let refusals = user_socket::why(&socket)
            .with_context(|| {
                format!(
                    "{}: no agent answers there (its `telemetry.user_socket`; {} names another one)",
                    socket.display(),
                    user_socket::SOCKET_VARIABLE
                )
            })
            .map_err(Failure::run)?
            .map_err(|why| Failure::run(anyhow!("{}: {why}", socket.display())))?;
        let chosen = chosen(&refusals, which.as_deref(), all);
        if chosen.is_empty() {
            return Err(Failure::not_so(anyhow!(none_of(&refusals, which.as_deref()))));
        }
        cli::print(|out| {
            chosen.iter().enumerate().try_for_each(|(index, refusal)| match output {
                Format::Text => {
                    if index > 0 {
                        writeln!(out)?;
                    }
                    text(refusal, out)
                }
                Format::Json => {
                    serde_json::to_writer(&mut *out, refusal)?;
                    writeln!(out)
                }
            })
        })?;
        Ok(())
    }
}

/// Returns the chosen refusals: of a process, of an id, else the last refusal.
fn chosen<'a>(refusals: &'a [Refusal], which: Option<&str>, all: bool) -> Vec<&'a Refusal> {
    let Some(which) = which else {
        return refusals.iter().take(if all { usize::MAX } else { 1 }).collect();
    };
    let of_process = which
        .parse()
        .ok()
        .map(|pid: u32| refusals.iter().filter(move |it| it.pid == Some(pid)).collect::<Vec<_>>());
    match of_process {
        Some(of_process) if !of_process.is_empty() => of_process,
        _ => {
            let id = which.to_ascii_lowercase();
            refusals.iter().filter(|it| it.awu.starts_with(&id)).collect()
        }
    }
}

fn none_of(refusals: &[Refusal], which: Option<&str>) -> String {
    match which {
        Some(which) => format!(
            "none of your {} refused calls has the pid, or an id that begins with, `{which}`",
            refusals.len()
        ),
        None => format!(
            "no call of yours was refused since the agent started (it keeps the last {OF_USER} of each user)"
        ),
    }
}

/// Writes the verdict, then the mend, then time, program and id of the call.
fn text(refusal: &Refusal, out: &mut dyn std::io::Write) -> std::io::Result<()> {
    writeln!(out, "{}", Line(refusal.verdict()))?;
    writeln!(out, "{}", Line(&refusal.mend))?;
    let time = refusal.time.as_deref().unwrap_or("an unknown time");
    writeln!(out, "At {time}: {}, id {}", Line(refusal.program()), refusal.short())
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    fn refusal(awu: &str, pid: u32) -> Refusal {
        Refusal {
            awu: awu.to_owned(),
            time: Some("2026-11-22T10:00:00Z".to_owned()),
            unix_ns: 0,
            result: "BLOCKED".to_owned(),
            code: Some("POLICY_DENY_MODEL".to_owned()),
            policy: Some("small-models.denied_models".to_owned()),
            reason: Some("these models are denied: *-pro".to_owned()),
            mend: "To run, ask for another model.".to_owned(),
            pid: Some(pid),
            exe: Some("/usr/bin/python3".to_owned()),
            principal: Some("bot".to_owned()),
            provider: Some("openai".to_owned()),
            model: Some("o1-\u{1b}[31mpro".to_owned()),
        }
    }

    #[test]
    fn the_verdict_comes_first_and_the_mend_second() {
        let mut out = Vec::new();
        text(&refusal("4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7", 4_242), &mut out)
            .expect("memory");
        expect![[r"
            BLOCKED with POLICY_DENY_MODEL by `small-models.denied_models`: these models are denied: *-pro
            To run, ask for another model.
            At 2026-11-22T10:00:00Z: /usr/bin/python3, pid 4242, id 4bf92f35
        "]]
        .assert_eq(&String::from_utf8_lossy(&out));
    }

    #[test]
    fn a_number_is_a_process_first_and_else_the_beginning_of_an_id() {
        let refusals = [refusal("42aa", 7), refusal("43bb", 42), refusal("43cc", 42)];
        let ids = |which: Option<&str>, all: bool| -> Vec<&str> {
            chosen(&refusals, which, all).into_iter().map(|it| it.awu.as_str()).collect()
        };
        assert_eq!(ids(None, false), ["42aa"]);
        assert_eq!(ids(None, true), ["42aa", "43bb", "43cc"]);
        assert_eq!(ids(Some("42"), false), ["43bb", "43cc"]);
        assert_eq!(ids(Some("42A"), false), ["42aa"]);
        assert_eq!(ids(Some("43"), false), ["43bb", "43cc"]);
        assert_eq!(ids(Some("9"), false), [] as [&str; 0]);
    }
}
