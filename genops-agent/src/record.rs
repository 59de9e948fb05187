//! `record`: captured byte streams into a recording.
//!
//! The capture is `run`'s, with nothing decided and nothing held; this module names the streams,
//! keeps to the size that was asked for, and writes. A recording holds plaintext: the file is
//! readable by its owner only.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufWriter};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use genops_governance::{ConnId, ProcessFacts};

use crate::cli::{ConfigFile, Failure};
use crate::config::Config;
use crate::recording::{Direction, Open, Writer};

/// Write the captured byte streams to a recording
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: genops-agent record --output calls.jsonl --seconds 60\n\n\
    The recording holds what programs said to AI providers, in plain text: treat it as they would. \
    SIGTERM and SIGINT end it and complete the file. Read it with `genops-agent replay calls.jsonl`.")]
pub(crate) struct Record {
    /// File to create; one that exists is refused.
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    #[command(flatten)]
    config: ConfigFile,
    /// End by itself after so many seconds.
    #[arg(long, value_name = "N")]
    seconds: Option<u64>,
    /// End by itself before the file is larger than this.
    #[arg(long, value_name = "N", default_value_t = 1024)]
    max_mib: u64,
}

impl Record {
    /// Runs the command.
    pub(crate) fn run(self) -> Result<(), Failure> {
        let Self { output, config, seconds, max_mib } = self;
        let config = Config::load_or_default(config.path.as_deref())?;
        let place = output.display();
        let writer = match Writer::create(&output) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let taken = anyhow!("{place}: exists already; give another `--output`");
                return Err(Failure::unreadable(taken));
            }
            created => created.with_context(|| format!("{place}")).map_err(Failure::unreadable)?,
        };
        let recorder = Recorder::new(writer, max_mib.saturating_mul(1 << 20));
        let lines = crate::run::record(&config, recorder, seconds.map(Duration::from_secs))
            .map_err(Failure::run)?;
        eprintln!("{}: {lines} lines", output.display());
        Ok(())
    }
}

/// Writes streams as they are captured, in the order of their positions.
#[derive(Debug)]
pub(crate) struct Recorder {
    writer: Writer<BufWriter<File>>,
    /// Where each direction of each open connection stands.
    streams: HashMap<ConnId, Stream>,
    /// Bytes that may still be written.
    left: u64,
    latest_unix_ns: u64,
}

#[derive(Debug, Default)]
struct Stream {
    egress: u64,
    ingress: u64,
}

/// What is known of a connection when it is first seen, or what was learnt since.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts<'a> {
    /// The process.
    pub(crate) process: Option<&'a ProcessFacts>,
    /// Name that the client asked for.
    pub(crate) server_name: Option<&'a str>,
    /// The client's end.
    pub(crate) local: Option<std::net::SocketAddr>,
    /// The server's end.
    pub(crate) remote: Option<std::net::SocketAddr>,
    /// Seen from its first byte.
    pub(crate) from_start: bool,
}

/// What became of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    /// There is room for more.
    Left,
    /// The size that was asked for is reached: end the recording.
    Reached,
}

impl Recorder {
    /// A recorder that writes at most `limit` bytes, give or take a line.
    fn new(writer: Writer<BufWriter<File>>, limit: u64) -> Self {
        Self { writer, streams: HashMap::new(), left: limit, latest_unix_ns: 0 }
    }

    /// The latest time of any line.
    pub(crate) fn latest_unix_ns(&self) -> u64 {
        self.latest_unix_ns
    }

    /// A connection began, or more is known of it.
    pub(crate) fn open(&mut self, unix_ns: u64, conn: ConnId, facts: Facts<'_>) -> io::Result<()> {
        self.latest_unix_ns = self.latest_unix_ns.max(unix_ns);
        self.streams.entry(conn).or_default();
        let Facts { process, server_name, local, remote, from_start } = facts;
        let open = Open {
            local,
            remote,
            server_name: server_name.map(str::to_owned),
            tls: Some(true),
            from_start: Some(from_start),
            // Nothing is held here; a replay holds as a run with its configuration does.
            hold: None,
            ..process.map(Open::of).unwrap_or_default()
        };
        self.writer.open(unix_ns, &name(conn), &open)
    }

    /// Bytes at a stream position. What was written before is left out, a jump ahead is a gap.
    pub(crate) fn data_at(
        &mut self,
        unix_ns: u64,
        conn: ConnId,
        direction: Direction,
        offset: u64,
        bytes: &[u8],
    ) -> io::Result<Room> {
        self.latest_unix_ns = self.latest_unix_ns.max(unix_ns);
        let stream = self.streams.entry(conn).or_default();
        let position = match direction {
            Direction::Egress => &mut stream.egress,
            Direction::Ingress => &mut stream.ingress,
        };
        let end = offset.saturating_add(bytes.len() as u64);
        let missing = offset.saturating_sub(*position);
        let known = usize::try_from(position.saturating_sub(offset)).unwrap_or(usize::MAX);
        *position = end.max(*position);
        let name = name(conn);
        if missing > 0 {
            self.writer.gap(unix_ns, &name, direction, Some(missing))?;
        }
        let new = bytes.get(known..).unwrap_or_default();
        self.writer.data(unix_ns, &name, direction, new)?;
        // Base64 and the keys around it, roughly.
        self.left = self.left.saturating_sub(new.len() as u64 / 3 * 4 + 128);
        Ok(if self.left == 0 { Room::Reached } else { Room::Left })
    }

    /// Nothing more comes on this connection.
    pub(crate) fn close(&mut self, unix_ns: u64, conn: ConnId) -> io::Result<()> {
        self.streams.remove(&conn);
        self.writer.close(unix_ns, &name(conn))
    }

    /// Completes the file; how many lines it has.
    pub(crate) fn finish(mut self) -> io::Result<u64> {
        self.writer.flush()?;
        Ok(self.writer.lines())
    }
}

/// The name of a connection in its recording.
fn name(conn: ConnId) -> String {
    format!("c{}", conn.0)
}
