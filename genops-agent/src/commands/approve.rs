//! `approve`: a human's approval of a single blocked request, for its next try, or of a request of
//! the same kind.

use std::path::PathBuf;

use anyhow::anyhow;

use super::money;
use crate::cli::{self, Failure};
use crate::control::{self, Answer, Request};

/// Approve one request blocked with `x_approval_required`
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: genops-agent approve 3f9a..c1 --by alice@example.com --max-usd 2.00\n\n\
    The approval is for the very request that was blocked, sent again without a change: its address and every byte \
    of its body. It is used once, holds for at most 15 minutes, and is evidence. `--kind` approves one request of \
    the same principal, chain, operation, provider and model instead, whatever it says. The request's number is `genops.approval.request` of the blocked unit; \
    `genops-agent explain` shows it too."
)]
pub(crate) struct Approve {
    /// `genops.approval.request` of the blocked unit.
    #[arg(value_name = "REQUEST")]
    request: String,
    /// Who approves: a human outside the request's own chain.
    #[arg(long, value_name = "WHO")]
    by: String,
    /// Maximum cost of the request, in USD.
    #[arg(long, value_name = "USD")]
    max_usd: String,
    /// How long the approval holds, in seconds.
    #[arg(long, value_name = "N", default_value_t = 900)]
    seconds: u64,
    /// Approve one request of the same kind, whatever the content.
    #[arg(long)]
    kind: bool,
    /// The agent's socket.
    #[arg(long, value_name = "PATH", default_value = control::SOCKET)]
    socket: PathBuf,
}

impl Approve {
    /// Runs the command.
    pub(crate) fn run(self) -> Result<(), Failure> {
        let Self { request, by, max_usd, seconds, kind, socket } = self;
        let ceiling_nano_usd = money::parse_usd(&max_usd)
            .filter(|ceiling| *ceiling >= 0)
            .ok_or_else(|| anyhow!("--max-usd: `{max_usd}` is not an amount such as 2.00"))
            .map_err(Failure::unreadable)?;
        let valid_seconds = seconds;
        let request = Request::Approve {
            approval_request: request,
            by,
            ceiling_nano_usd,
            valid_seconds,
            kind,
        };
        if let Answer::Done(approval) = super::ask(&socket, &request)? {
            let id = approval.get("id").and_then(serde_json::Value::as_str).unwrap_or_default();
            let id = id.to_owned();
            let what = if kind {
                "one request of its kind may be made"
            } else {
                "let the same request be made again"
            };
            cli::print(|out| writeln!(out, "approved as {id}; {what}"))?;
        }
        Ok(())
    }
}
