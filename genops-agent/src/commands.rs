//! Subcommands consisting of little more than arguments and output.

use std::path::Path;

use anyhow::{Context as _, anyhow};

use crate::cli::Failure;
use crate::control::{self, Answer, Request};

pub(crate) mod approve;
pub(crate) mod budget;
pub(crate) mod check;
pub(crate) mod conformance;
pub(crate) mod doctor;
pub(crate) mod explain;
mod money;
pub(crate) mod policy;
pub(crate) mod prices;
pub(crate) mod report;
pub(crate) mod run;
pub(crate) mod unpin;
pub(crate) mod why;

/// Sends a request to the running agent; a refusal gives exit code 1.
fn ask(socket: &Path, request: &Request) -> Result<Answer, Failure> {
    let answer = control::ask(socket, request).with_context(|| {
        format!("{}: no agent answers there; start `genops-agent run`", socket.display())
    });
    match answer.map_err(Failure::run)? {
        Answer::Refused(why) => Err(Failure::not_so(anyhow!("{why}"))),
        done @ Answer::Done(_) => Ok(done),
    }
}
