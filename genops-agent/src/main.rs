//! `genops-agent`: governs the AI calls of a host's unmodified programs.
//!
//! The only crate that touches the world: kernel, files, clock, network. What it decides, it decides in
//! `genops-governance`; what it reads, it reads in `genops-protocols`.

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
mod render;
mod replay;
mod run;
mod runtimes;
mod top;

fn main() -> std::process::ExitCode {
    cli::main()
}
