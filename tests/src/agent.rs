//! The agent as users run it: a process with a configuration file, JSON lines and a metrics port.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::channel;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::patience::scaled;
use crate::scratch::Scratch;

/// Longest time until the agent is ready. Far above the goal of a second: a busy machine is no
/// failure.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// Longest time for the agent to drain and end after SIGTERM.
const STOP_PATIENCE: Duration = Duration::from_secs(15);

/// Returns the agent's program: `GENOPS_AGENT`, or the release build of this workspace, or the
/// debug build.
pub fn program() -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os("GENOPS_AGENT") {
        return Ok(path.into());
    }
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"), PathBuf::from);
    ["release", "debug"]
        .iter()
        .map(|profile| target.join(profile).join("genops-agent"))
        .find(|path| path.exists())
        .context("no genops-agent is built: run `cargo xtask build`")
}

/// Pin setting of agents in tests without a `pin_directory`. Nothing stays in the kernel: programs
/// left by a test would go on refusing the programs of the next test, and the agents of all tests
/// would share a directory.
const UNPINNED: &str = "pin_directory: none\n";

/// Options to start an [`Agent`] other than the defaults.
#[derive(Clone, Debug, Default)]
pub struct Launch {
    /// The agent's program, if other than [`program`].
    pub program: Option<PathBuf>,
    /// Program and arguments starting the agent appended to them, for example `setpriv`.
    pub wrapper: Vec<OsString>,
    /// Arguments appended to `run --config FILE`.
    pub arguments: Vec<OsString>,
    /// Keep the human-readable output, line by line, instead of JSON.
    pub readable: bool,
    /// Keys of the configuration section `evidence`, in YAML flow style: `key: value, `.
    pub evidence: &'static str,
    /// Further keys of `evidence`, known only when the test runs.
    pub more_evidence: String,
    /// Keys of the configuration section `telemetry`, in the form of `more_evidence`.
    pub telemetry: String,
    /// Evidence directory, for example of an earlier agent; `None`: a directory of the agent's own.
    pub evidence_in: Option<PathBuf>,
}

/// Running agent with its own evidence directory and metrics port; killed on drop.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    launch: Launch,
    scratch: Scratch,
    evidence: PathBuf,
    metrics: SocketAddr,
    lines: Arc<Lines>,
    /// Time from the start of the process until `/readyz` answered 200.
    pub ready_after: Duration,
}

/// The agent of the last [`Agent::shared`], with its configuration.
static SHARED: Mutex<Option<(String, Arc<Agent>)>> = Mutex::new(None);

#[derive(Debug, Default)]
struct Lines {
    lines: Mutex<Vec<String>>,
    changed: Condvar,
}

impl Agent {
    /// Starts an agent with `configuration` (YAML without `telemetry` and `evidence`) and waits
    /// until the agent is ready.
    pub fn start(configuration: &str) -> anyhow::Result<Self> {
        Self::launch(configuration, &Launch::default())
    }

    /// Returns an agent with `configuration`, and keeps the agent of the previous test if the
    /// configurations are equal: the kernel takes seconds to detach the probes of an ended agent.
    /// Units and losses of earlier tests stay. The agent ends with the test program, or before
    /// another agent starts.
    pub fn shared(configuration: &str) -> anyhow::Result<Arc<Self>> {
        let known = SHARED.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((of, agent)) = known
            && of == configuration
            && matches!(agent.get("/readyz"), Ok((200, _)))
        {
            return Ok(agent);
        }
        let agent = Arc::new(Self::launch_with_the_program(configuration)?);
        let shared = (configuration.to_owned(), Arc::clone(&agent));
        *SHARED.lock().unwrap_or_else(PoisonError::into_inner) = Some(shared);
        Ok(agent)
    }

    /// Ends the agent of the last [`Agent::shared`], for a test with a client older than the agent.
    pub fn end_shared() {
        drop(SHARED.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// Starts an agent that the kernel ends with the test program: Rust drops no static.
    fn launch_with_the_program(configuration: &str) -> anyhow::Result<Self> {
        let wrapper = ["setpriv", "--pdeathsig", "KILL", "--"].map(OsString::from).to_vec();
        let launch = Launch { wrapper, ..Launch::default() };
        let configuration = configuration.to_owned();
        let (give, take) = channel();
        // The signal comes at the end of the starting thread: the thread of a test ends too soon.
        std::thread::spawn(move || {
            let _gone = give.send(Self::launch(&configuration, &launch));
            loop {
                std::thread::park();
            }
        });
        take.recv()?
    }

    /// Starts an agent as [`Agent::start`] does, with the options of `launch`.
    pub fn launch(configuration: &str, launch: &Launch) -> anyhow::Result<Self> {
        Self::end_shared();
        let scratch = Scratch::new("agent")?;
        let metrics = free_address()?;
        let config = scratch.join("config.yaml");
        let evidence = launch.evidence_in.clone().unwrap_or_else(|| scratch.join("evidence"));
        let pins = if configuration.contains("pin_directory:") { "" } else { UNPINNED };
        let text = format!(
            "{configuration}\n{pins}telemetry: {{{}metrics_listen: \"{metrics}\"}}\nevidence: {{{}{}directory: \"{}\"}}\n",
            launch.telemetry,
            launch.evidence,
            launch.more_evidence,
            evidence.display()
        );
        std::fs::write(&config, text)?;
        let lines = Arc::new(Lines::default());
        let started = Instant::now();
        let child = spawn(launch, &scratch, &lines)?;
        let launch = launch.clone();
        let mut agent =
            Self { child, launch, scratch, evidence, metrics, lines, ready_after: Duration::ZERO };
        agent.wait_until_ready(started)?;
        agent.ready_after = started.elapsed();
        Ok(agent)
    }

    /// Starts the agent again on the same files after the end of the first process, and waits until
    /// the agent is ready. New lines are appended to the lines of the first process.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        let started = Instant::now();
        self.child = spawn(&self.launch, &self.scratch, &self.lines)?;
        self.wait_until_ready(started)
    }

    /// Restarts the agent as [`Agent::restart`] does, with another program: an upgrade.
    pub fn restart_as(&mut self, program: &Path) -> anyhow::Result<()> {
        self.launch.program = Some(program.to_owned());
        self.restart()
    }

    fn wait_until_ready(&mut self, started: Instant) -> anyhow::Result<()> {
        loop {
            if matches!(self.get("/readyz"), Ok((200, _))) {
                self.ready_after = started.elapsed();
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("the agent ended with {status}: {}", self.stderr());
            }
            if started.elapsed() > scaled(START_PATIENCE) {
                let (status, reason) = self.get("/readyz").unwrap_or_default();
                bail!("the agent is not ready ({status}: {reason}): {}", self.stderr());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Process id of the agent.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Evidence directory of the agent.
    #[must_use]
    pub fn evidence(&self) -> PathBuf {
        self.evidence.clone()
    }

    /// The configuration file.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.scratch.join("config.yaml")
    }

    /// Standard error of the agent so far.
    #[must_use]
    pub fn stderr(&self) -> String {
        std::fs::read_to_string(self.scratch.join("stderr")).unwrap_or_default()
    }

    /// Lines of standard output so far.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.lines.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// AI Workload Units reported so far.
    #[must_use]
    pub fn awus(&self) -> Vec<Value> {
        self.lines().iter().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Waits until `count` units satisfy `wanted` and returns all matching units. Fails after
    /// `patience` with the last 20 lines and standard error.
    pub fn wait_for(
        &self,
        count: usize,
        patience: Duration,
        wanted: impl Fn(&Value) -> bool,
    ) -> anyhow::Result<Vec<Value>> {
        let deadline = Instant::now() + scaled(patience);
        let mut lines = self.lines.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let mut seen = 0;
        let mut found = Vec::new();
        loop {
            for line in lines.iter().skip(seen) {
                if let Ok(awu) = serde_json::from_str(line)
                    && wanted(&awu)
                {
                    found.push(awu);
                }
            }
            seen = lines.len();
            if found.len() >= count {
                return Ok(found);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let all =
                    lines.iter().rev().take(20).map(String::as_str).collect::<Vec<_>>().join("\n");
                drop(lines);
                bail!(
                    "{} of {count} units reported; last lines:\n{all}\nstderr: {}",
                    found.len(),
                    self.stderr()
                );
            }
            lines = self
                .lines
                .changed
                .wait_timeout(lines, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Waits up to 5 s for the unit of process `pid`. Fails if the process has a second unit 50 ms
    /// later.
    pub fn only_awu_of(&self, pid: u32) -> anyhow::Result<Value> {
        let of_pid =
            |awu: &Value| awu.get("process.pid").and_then(Value::as_u64) == Some(pid.into());
        self.wait_for(1, Duration::from_secs(5), of_pid)?;
        std::thread::sleep(scaled(Duration::from_millis(50)));
        let mut awus = self.awus();
        awus.retain(of_pid);
        ensure!(awus.len() == 1, "process {pid} made one call, reported were {awus:#?}");
        awus.pop().context("one unit")
    }

    /// Reads a page of the agent's HTTP server: status and body.
    pub fn get(&self, path: &str) -> anyhow::Result<(u16, String)> {
        let mut stream = TcpStream::connect_timeout(&self.metrics, scaled(Duration::from_secs(1)))?;
        stream.set_read_timeout(Some(scaled(Duration::from_secs(2))))?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
            self.metrics
        )?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let (head, body) = text.split_once("\r\n\r\n").context("no end of the head")?;
        let status = head.split(' ').nth(1).context("no status")?.parse()?;
        Ok((status, body.to_owned()))
    }

    /// Reads the samples of `/metrics`: name with labels, and value.
    pub fn metrics(&self) -> anyhow::Result<Vec<(String, f64)>> {
        let (status, body) = self.get("/metrics")?;
        ensure!(status == 200, "/metrics says {status}");
        let sample = |line: &str| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        };
        Ok(body.lines().filter(|line| !line.starts_with('#')).filter_map(sample).collect())
    }

    /// Returns the loss counters other than zero.
    pub fn losses(&self) -> anyhow::Result<Vec<(String, f64)>> {
        let mut losses = self.metrics()?;
        losses.retain(|(name, _)| name.starts_with(LOSS_METRIC));
        ensure!(!losses.is_empty(), "/metrics has no `{LOSS_METRIC}`");
        losses.retain(|&(_, value)| value != 0.0);
        Ok(losses)
    }

    /// Resident memory of the agent, in KiB.
    pub fn resident_kib(&self) -> anyhow::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line =
            status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }

    /// CPU time of all threads of the agent, in nanoseconds.
    pub fn cpu_ns(&self) -> anyhow::Result<u64> {
        crate::process::cpu_ns(self.pid())
    }

    /// Sends SIGTERM, waits, and returns the exit status and every line of output. The agent's
    /// files stay until the agent is dropped.
    pub fn stop(&mut self) -> anyhow::Result<(ExitStatus, Vec<String>)> {
        self.signal(Signal::TERM)?;
        let deadline = Instant::now() + scaled(STOP_PATIENCE);
        loop {
            if let Some(status) = self.child.try_wait()? {
                // The reader thread sees the end of the pipe a moment later.
                std::thread::sleep(Duration::from_millis(50));
                return Ok((status, self.lines()));
            }
            ensure!(
                Instant::now() < deadline,
                "the agent goes on after SIGTERM: {}",
                self.stderr()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Kills the agent without a chance to clean up.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Sends a signal to the agent.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw).context("a pid")?;
        Ok(kill_process(pid, signal)?)
    }
}

/// Starts the agent with the configuration in `scratch`; the output is appended to `lines`.
fn spawn(launch: &Launch, scratch: &Scratch, lines: &Arc<Lines>) -> anyhow::Result<Child> {
    let program = launch.program.clone().map_or_else(program, Ok)?;
    let mut command = match launch.wrapper.split_first() {
        None => Command::new(&program),
        Some((wrapper, arguments)) => {
            let mut command = Command::new(wrapper);
            command.args(arguments).arg(&program);
            command
        }
    };
    command.args(["run".as_ref(), "--config".as_ref(), scratch.join("config.yaml").as_os_str()]);
    if !launch.arguments.iter().any(|it| it == "--output") {
        command.args(["--output", if launch.readable { "table" } else { "json" }]);
    }
    command.args(&launch.arguments).stdin(Stdio::null()).stdout(Stdio::piped());
    command.stderr(File::options().create(true).append(true).open(scratch.join("stderr"))?);
    let mut child = command.spawn().with_context(|| format!("{}", program.display()))?;
    let stdout = child.stdout.take().context("the agent's output is a pipe")?;
    let (writer, readable) = (Arc::clone(lines), launch.readable);
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if readable {
                eprintln!("  {line}");
            }
            writer.lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            writer.changed.notify_all();
        }
    });
    Ok(child)
}

/// Prefix of the agent's loss counters, labelled by cause.
const LOSS_METRIC: &str = "genops_agent_lost";

impl Drop for Agent {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(Some(_)))
            && let Err(error) = self.kill()
        {
            eprintln!("agent {}: {error}", self.pid());
        }
    }
}

/// Returns a loopback address with a free port.
pub fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}
