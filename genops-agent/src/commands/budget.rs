//! `budget`: shows the accounts of the running agent, and changes allocations.

use std::path::PathBuf;

use anyhow::{Context as _, anyhow};

use super::money;
use crate::cli::{self, Failure, Format};
use crate::control::{self, Account, Answer, Request};

/// Show the running agent's budgets, or change the allocation of a budget in the present period
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  genops-agent budget\n  \
    genops-agent budget --adjust payments-daily --by-amount 25.00 --by alice@example.com --why \"incident 4711\"\n\n\
    An adjustment is evidence: who, how much and why are recorded before it takes effect.")]
pub(crate) struct Budget {
    /// Budget to change.
    #[arg(long, value_name = "NAME", requires_all = ["by_amount", "by", "why"])]
    adjust: Option<String>,
    /// By how much, in the budget's unit: USD, tokens or seconds; less than 0 takes away.
    #[arg(long, value_name = "AMOUNT", allow_negative_numbers = true, requires = "adjust")]
    by_amount: Option<String>,
    /// Who orders the change.
    #[arg(long, value_name = "WHO", requires = "adjust")]
    by: Option<String>,
    /// Reason for the change.
    #[arg(long, value_name = "TEXT", requires = "adjust")]
    why: Option<String>,
    /// The agent's socket.
    #[arg(long, value_name = "PATH", default_value = control::SOCKET)]
    socket: PathBuf,
    /// How to print the accounts.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

impl Budget {
    /// Runs the command.
    pub(crate) fn run(self) -> Result<(), Failure> {
        let Self { adjust, by_amount, by, why, socket, output } = self;
        let accounts = accounts(&socket)?;
        let accounts = match (adjust, by_amount, by, why) {
            (Some(budget), Some(amount), Some(by), Some(why)) => {
                let own = accounts.iter().find(|it| it.budget == budget && !it.superseded);
                let unit = own.map(|it| it.unit.clone());
                let delta = match unit.as_deref() {
                    Some("tokens") => amount.parse().ok(),
                    _ => money::parse_usd(&amount),
                };
                let delta = delta
                    .ok_or_else(|| {
                        anyhow!("--by-amount: `{amount}` is not an amount such as 25.00")
                    })
                    .map_err(Failure::unreadable)?;
                super::ask(&socket, &Request::AdjustBudget { budget, delta, by, why })?;
                self::accounts(&socket)?
            }
            _ => accounts,
        };
        cli::print(|out| match output {
            Format::Text => {
                writeln!(out, "{}", line(HEAD.map(str::to_owned)))?;
                accounts.iter().try_for_each(|account| writeln!(out, "{}", line(cells(account))))
            }
            Format::Json => accounts.iter().try_for_each(|account| {
                serde_json::to_writer(&mut *out, account)?;
                writeln!(out)
            }),
        })?;
        Ok(())
    }
}

/// Asks the agent for the accounts.
fn accounts(socket: &std::path::Path) -> Result<Vec<Account>, Failure> {
    let Answer::Done(accounts) = super::ask(socket, &Request::Budgets {})? else {
        return Err(Failure::run(anyhow!("the agent refused")));
    };
    serde_json::from_value(accounts).context("the agent's answer").map_err(Failure::run)
}

const HEAD: [&str; 7] =
    ["BUDGET", "PERIOD", "ALLOCATED", "RESERVED", "CONSUMED", "REMAINING", "UNIT"];

fn cells(account: &Account) -> [String; 7] {
    let Account { budget, period, unit, allocated, reserved, consumed, remaining, .. } = account;
    let amount = |amount: &i64| match unit.as_str() {
        "USD" | "compute_seconds" => money::usd(*amount),
        _ => amount.to_string(),
    };
    let [allocated, reserved, consumed, remaining] =
        [allocated, reserved, consumed, remaining].map(amount);
    let (budget, period) = (budget.clone(), period.clone());
    let unit = if account.superseded { format!("{unit} (before)") } else { unit.clone() };
    [budget, period, allocated, reserved, consumed, remaining, unit]
}

fn line([budget, period, allocated, reserved, consumed, remaining, unit]: [String; 7]) -> String {
    format!(
        "{budget:<28} {period:<8} {allocated:>14} {reserved:>14} {consumed:>14} {remaining:>14} {unit}"
    )
}
