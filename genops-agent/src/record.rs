//! `record`: writes captured byte streams into a recording.
//!
//! The capture is `run`'s, without decisions and without holds. The module names the streams,
//! respects the requested size, and writes. A recording holds plaintext: the file is readable by
//! the owner only.

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
    /// File to create; an existing file is refused.
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    #[command(flatten)]
    config: ConfigFile,
    /// End after N seconds.
    #[arg(long, value_name = "N")]
    seconds: Option<u64>,
    /// End before the file is larger than N MiB.
    #[arg(long, value_name = "N", default_value_t = 1024)]
    max_mib: u64,
}

impl Record {
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

/// Writes captured streams in the order of their positions.
#[derive(Debug)]
pub(crate) struct Recorder {
    writer: Writer<BufWriter<File>>,
    /// Stream position of each direction of each open connection.
    streams: HashMap<ConnId, Stream>,
    /// Bytes still allowed.
    left: u64,
    latest_unix_ns: u64,
}

#[derive(Debug, Default)]
struct Stream {
    egress: u64,
    ingress: u64,
}

/// Facts about a connection, at the first sight or learnt later.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts<'a> {
    /// The process.
    pub(crate) process: Option<&'a ProcessFacts>,
    /// Server name requested by the client.
    pub(crate) server_name: Option<&'a str>,
    /// Address of the client.
    pub(crate) local: Option<std::net::SocketAddr>,
    /// Address of the server.
    pub(crate) remote: Option<std::net::SocketAddr>,
    /// Whether the connection was seen from its first byte.
    pub(crate) from_start: bool,
}

/// Room left after writing a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    /// There is room for more.
    Left,
    /// The requested size is reached: end the recording.
    Reached,
}

impl Recorder {
    /// Returns a recorder writing at most `limit` bytes, give or take a line.
    fn new(writer: Writer<BufWriter<File>>, limit: u64) -> Self {
        Self { writer, streams: HashMap::new(), left: limit, latest_unix_ns: 0 }
    }

    /// The latest time of any line.
    pub(crate) fn latest_unix_ns(&self) -> u64 {
        self.latest_unix_ns
    }

    /// Writes the beginning of a connection, or newly known facts.
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
            // Nothing is held here; a replay holds as a run with the replay's configuration does.
            hold: None,
            ..process.map(Open::of).unwrap_or_default()
        };
        self.writer.open(unix_ns, &name(conn), &open)
    }

    /// Writes bytes at a stream position. Already written bytes are left out, a jump ahead is a
    /// gap.
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
        // Base64 and the keys around the data, roughly.
        self.left = self.left.saturating_sub(new.len() as u64 / 3 * 4 + 128);
        Ok(if self.left == 0 { Room::Reached } else { Room::Left })
    }

    /// Writes the end of a connection.
    pub(crate) fn close(&mut self, unix_ns: u64, conn: ConnId) -> io::Result<()> {
        self.streams.remove(&conn);
        self.writer.close(unix_ns, &name(conn))
    }

    /// Completes the file; returns the number of lines.
    pub(crate) fn finish(mut self) -> io::Result<u64> {
        self.writer.flush()?;
        Ok(self.writer.lines())
    }
}

/// The name of a connection in its recording.
fn name(conn: ConnId) -> String {
    format!("c{}", conn.0)
}
