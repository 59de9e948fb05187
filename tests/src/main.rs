//! Peers for tests, the demonstration and the measurements, as programs: `genops-tests help`.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use genops_tests::bench::Bench;
use genops_tests::client::Client;
use genops_tests::demo::Demo;
use genops_tests::provider::{Options, Provider};

/// Peers for the tests of the GenOps agent.
#[derive(Debug, Parser)]
enum Command {
    /// Serve the OpenAI and Anthropic APIs over TLS until standard input ends.
    Provider(Serve),
    /// Serve a site without AI over TLS with the system's libssl, until standard input ends.
    Unrelated {
        /// Address to listen on.
        #[arg(long)]
        listen: SocketAddr,
        /// Write the certificate for clients to trust to the file.
        #[arg(long)]
        root: PathBuf,
    },
    /// Call a provider, and print latencies as JSON.
    Client(Client),
    /// Map libssl, do nothing, and end with standard input.
    Idle,
    /// Show the main job: an allowed call, a blocked call, a call over budget, and the evidence.
    Demo(Demo),
    /// Measure the agent beside its floors.
    Bench(Bench),
}

#[derive(Debug, clap::Args)]
struct Serve {
    /// Address to listen on.
    #[arg(long, default_value = "127.0.0.1:8443")]
    listen: SocketAddr,
    /// Write the certificate for clients to trust to the file.
    #[arg(long)]
    root: PathBuf,
    /// Append connections and requests to the file, as JSON lines.
    #[arg(long)]
    log: Option<PathBuf>,
    /// Offer HTTP/2.
    #[arg(long)]
    http2: bool,
    /// Pause before each piece of a stream, in milliseconds.
    #[arg(long, default_value_t = 20)]
    piece_delay_ms: u64,
    /// Average time of an answer, in milliseconds.
    #[arg(long, default_value_t = 0)]
    think_ms: u64,
}

fn main() -> ExitCode {
    let result = match Command::parse() {
        Command::Provider(serve) => serve.run(),
        Command::Unrelated { listen, root } => unrelated(listen, &root),
        Command::Client(client) => client.run(),
        Command::Idle => idle(),
        Command::Demo(demo) => demo.run(),
        Command::Bench(bench) => bench.run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("genops-tests: {error:#}");
            ExitCode::FAILURE
        }
    }
}

impl Serve {
    fn run(self) -> anyhow::Result<()> {
        let Self { listen, root, log, http2, piece_delay_ms, think_ms } = self;
        let piece_delay = Duration::from_millis(piece_delay_ms);
        let think = Duration::from_millis(think_ms);
        let provider =
            Provider::start(&Options { listen, http2, piece_delay, think, log, marker: None })?;
        provider.write_root(&root)?;
        writeln!(std::io::stdout(), "listening on {}", provider.address)?;
        until_input_ends()
    }
}

fn unrelated(listen: SocketAddr, root: &Path) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "listening on {}", genops_tests::unrelated::serve(listen, root)?)?;
    until_input_ends()
}

fn idle() -> anyhow::Result<()> {
    // The library is linked anyway; naming its version keeps the linker from leaving it out.
    writeln!(std::io::stdout(), "{}", openssl::version::version())?;
    until_input_ends()
}

fn until_input_ends() -> anyhow::Result<()> {
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
