//! `genops-agent`: governs the AI calls of a host's unmodified programs.
//!
//! The only crate with access to kernel, files, clock and network. Decisions are made in
//! `genops-governance`; bytes are parsed in `genops-protocols`.

#![forbid(unsafe_code)]

mod aside;
mod cli;
mod clock;
mod commands;
mod config;
mod control;
mod discovery;
mod doctor;
mod evidence;
mod export;
mod foreign;
mod guard;
mod identity;
mod journal;
mod kernel;
mod ledger_file;
mod metrics;
mod record;
mod recording;
mod refusals;
mod render;
mod replay;
mod run;
mod runtimes;
mod service;
mod space;
mod top;
mod user_socket;

fn main() -> std::process::ExitCode {
    cli::main()
}
