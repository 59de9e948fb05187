//! Kernel tests, or any command, on another kernel: QEMU without hardware virtualisation.
//!
//! The guest has the host's root file system, read-only, and so runs the very programs built and
//! installed on the host. The guest talks over a serial line, and the last line is the verdict. A
//! run without a chance of success is ended: a kernel panic, a silent guest, or a guest over the
//! time limit.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;

use crate::kernels::{Image, Kernel, Kernels};
use crate::{setup, workspace};

/// Maximum silence of a guest; a longer silence counts as a hang. The longest test of all is
/// shorter.
const SILENCE: Duration = Duration::from_mins(20);
/// Interval between looks at QEMU and the console.
const LOOK: Duration = Duration::from_millis(500);
/// Text before the exit status of the command.
const VERDICT: &str = "guest: ended with ";
/// Console messages of a kernel unable to go on.
const DEATHS: &[&str] = &["Kernel panic", "Oops:", "BUG:", "double fault"];
/// Lines of the console shown on a kernel's failure.
const CONSOLE_TAIL: usize = 60;
/// Paths of the shared file system's server in distributions.
const VIRTIOFSD: &[&str] = &["/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd"];
/// Serves the root file system from a private read-only bind mount.
const SERVE: &str = "mount -t tmpfs tmpfs /run && mkdir /run/root && mount --rbind / /run/root \
                     && mount -o remount,bind,ro /run/root && exec \"$@\"";

/// Run the tests on another kernel, in a virtual machine.
///
/// `cargo xtask vm --kernel 6.1 denial::` runs the tests with `denial::` in the name;
/// `cargo xtask vm --kernel 6.1 -- sh -c 'uname -r; $GENOPS_AGENT doctor'` runs a command.
#[derive(Debug, clap::Args)]
pub(crate) struct Vm {
    /// A kernel of xtask/kernels.toml: 5.10, 6.1, 6.12.
    #[arg(long)]
    kernel: String,
    /// Agent to test; otherwise `target/release/genops-agent` is built.
    #[arg(long)]
    agent: Option<PathBuf>,
    /// End the guest after the given number of minutes.
    #[arg(long, default_value_t = 60)]
    minutes: u64,
    /// Parts of the names of tests; without a part, all tests.
    filters: Vec<String>,
    /// A command to run in the guest instead.
    #[arg(last = true)]
    command: Vec<String>,
}

/// Compared part of the output of the agent's `doctor`.
#[derive(Debug, Deserialize)]
struct Doctor {
    best_mechanism: String,
    mechanisms: Vec<Mechanism>,
}

#[derive(Debug, Deserialize)]
struct Mechanism {
    name: String,
    available: bool,
}

impl Vm {
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        let kernels = Kernels::read()?;
        let kernel = kernels.named(&self.kernel)?;
        if let Some(reason) = unavailable() {
            bail!("{reason}");
        }
        setup::machines()?;
        let agent = if let Some(agent) = &self.agent {
            std::path::absolute(agent)?
        } else {
            workspace::build_release(&setup::toolchain()?)?;
            workspace::agent()
        };
        let mut script = environment(&agent, kernels.time_scale);
        if self.command.is_empty() {
            setup::clients()?;
            let tests = workspace::host_tests()?;
            script.push_str("\"$GENOPS_AGENT\" doctor --output json\n");
            script.push_str(&quoted([tests.display().to_string()].iter()));
            script.push_str(" --test-threads=1 --show-output --color never ");
            script.push_str(&quoted(self.filters.iter()));
        } else {
            script.push_str(&quoted(self.command.iter()));
        }
        let limit = Duration::from_mins(self.minutes);
        let lines = Guest::start(&kernel.image(&script)?)?.watch(limit)?;
        if self.command.is_empty() { judge(kernel, &lines) } else { Ok(()) }
    }
}

/// Returns the reason if the machine can't run a virtual machine.
pub(crate) fn unavailable() -> Option<String> {
    if std::env::consts::ARCH != "x86_64" {
        return Some("the kernels are for x86-64".to_owned());
    }
    if !workspace::is_root() {
        return Some("sharing the root file system needs root".to_owned());
    }
    (!setup::is_debian()).then(|| "the kernels are fetched with Debian's `apt-get`".to_owned())
}

fn environment(agent: &Path, time_scale: u32) -> String {
    let venv = setup::venv();
    let variables = [
        ("GENOPS_AGENT", agent.display().to_string()),
        ("GENOPS_VENV", venv.display().to_string()),
        ("GENOPS_TEST_TIME_SCALE", time_scale.to_string()),
    ];
    let export =
        |(name, value): (&str, String)| format!("export {name}={}\n", quoted([value].iter()));
    variables.map(export).concat()
}

/// Quotes words for a shell.
fn quoted<'a>(words: impl Iterator<Item = &'a String>) -> String {
    let word = |word: &String| format!("'{}'", word.replace('\'', r"'\''"));
    words.map(word).collect::<Vec<_>>().join(" ")
}

/// Fails unless tests were run and the agent's `doctor` agrees with the list of kernels.
fn judge(kernel: &Kernel, lines: &[String]) -> anyhow::Result<()> {
    let ran = lines
        .iter()
        .any(|line| line.starts_with("test result: ok. ") && !line.contains("ok. 0 passed"));
    ensure!(ran, "no test has such a name");
    let doctor = lines.iter().find(|line| line.starts_with("{\"kernel\":"));
    let doctor: Doctor = serde_json::from_str(doctor.context("the agent's doctor said nothing")?)?;
    let missing = doctor.mechanisms.iter().filter(|it| !it.available).map(|it| it.name.clone());
    let missing = missing.collect();
    let Kernel { line, best_mechanism, lacks, .. } = kernel;
    ensure!(
        doctor.best_mechanism == *best_mechanism && *lacks == missing,
        "xtask/kernels.toml says of {line}: best_mechanism {best_mechanism}, lacks {lacks:?}; doctor says: best_mechanism {}, lacks {missing:?}",
        doctor.best_mechanism
    );
    Ok(())
}

/// Running machine, ended on drop.
struct Guest {
    qemu: Child,
    /// Server of the root file system.
    files: Child,
    place: PathBuf,
    lines: Receiver<String>,
}

impl Guest {
    fn start(image: &Image) -> anyhow::Result<Self> {
        let place = std::env::temp_dir().join(format!("genops-vm-{}", std::process::id()));
        std::fs::create_dir_all(&place)?;
        let socket = place.join("root.sock");
        let mut files = serve(&socket, &place.join("virtiofsd.log"))?;
        let started = qemu(image, &socket, &place.join("console"));
        let mut qemu = match started {
            Ok(qemu) => qemu,
            Err(error) => {
                end(&mut files);
                return Err(error);
            }
        };
        let lines = read(qemu.stdout.take().context("QEMU's output is a pipe")?);
        Ok(Self { qemu, files, place, lines })
    }

    /// Prints the guest's lines until the end, and returns the lines; fails unless the guest ended
    /// well.
    fn watch(self, limit: Duration) -> anyhow::Result<Vec<String>> {
        let begun = Instant::now();
        let mut heard = begun;
        let mut lines = Vec::new();
        loop {
            match self.lines.recv_timeout(LOOK) {
                Ok(line) => {
                    writeln!(std::io::stdout(), "{line}")?;
                    heard = Instant::now();
                    lines.push(line);
                }
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    self.is_alive()?;
                    ensure!(heard.elapsed() < SILENCE, "the guest hangs: nothing for {SILENCE:?}");
                    ensure!(begun.elapsed() < limit, "the guest goes on after {limit:?}");
                }
            }
        }
        self.is_alive()?;
        let mut verdicts = lines.iter().filter_map(|line| line.strip_prefix(VERDICT));
        match (verdicts.next(), verdicts.next()) {
            (Some("0"), None) => Ok(lines),
            (Some(status), None) => bail!("the command in the guest ended with {status}"),
            (None, _) => bail!("the guest ended without a verdict\n{}", self.console()),
            (Some(_), Some(_)) => bail!("the guest gave two verdicts"),
        }
    }

    fn is_alive(&self) -> anyhow::Result<()> {
        let console = self.console();
        let died = DEATHS.iter().find(|death| console.contains(**death));
        died.map_or(Ok(()), |death| bail!("the guest's kernel died ({death})\n{console}"))
    }

    /// Returns the last lines of the kernel's console.
    fn console(&self) -> String {
        let bytes = std::fs::read(self.place.join("console")).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<_> = text.lines().collect();
        lines
            .iter()
            .skip(lines.len().saturating_sub(CONSOLE_TAIL))
            .copied()
            .collect::<Vec<_>>()
            .join("\n")
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        end(&mut self.qemu);
        end(&mut self.files);
        if let Err(error) = std::fs::remove_dir_all(&self.place) {
            eprintln!("{}: {error}", self.place.display());
        }
    }
}

/// Starts the server of the root file system and waits for the server's socket.
fn serve(socket: &Path, log: &Path) -> anyhow::Result<Child> {
    let server = VIRTIOFSD.iter().find(|path| Path::new(path).exists());
    let server = server.context("no virtiofsd is installed: run `cargo xtask setup`")?;
    let log_file = std::fs::File::create(log)?;
    let mut files = Command::new("unshare");
    files.args(["--mount", "--propagation", "private", "--", "sh", "-c", SERVE, "sh", server]);
    files.arg(format!("--socket-path={}", socket.display()));
    files.args(["-o", "source=/run/root,cache=always,sandbox=chroot"]);
    let mut files = files.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log_file).spawn()?;
    let begun = Instant::now();
    while !socket.exists() {
        if files.try_wait()?.is_some() || begun.elapsed() > Duration::from_secs(10) {
            end(&mut files);
            bail!("the root file system is not shared: {}", std::fs::read_to_string(log)?);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(files)
}

/// Boots the guest: the kernel's console goes to a file, the second serial line to the program.
fn qemu(image: &Image, socket: &Path, console: &Path) -> anyhow::Result<Child> {
    // QEMU ends with the program, however the program ends; the server of files ends with QEMU.
    let mut qemu = Command::new("setpriv");
    qemu.args(["--pdeathsig", "KILL", "--", "qemu-system-x86_64"]);
    // KVM is present on some machines and hangs. QEMU 7.2 gets the flags of `cmpxchg16b` wrong, and
    // Linux 6.12 uses `cmpxchg16b`.
    qemu.args(["-accel", "tcg", "-cpu", "max,-cx16", "-smp", "2", "-m", "3G"]);
    qemu.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
    qemu.args([
        "-object",
        "memory-backend-memfd,id=memory,size=3G,share=on",
        "-numa",
        "node,memdev=memory",
    ]);
    qemu.arg("-chardev").arg(format!("socket,id=files,path={}", socket.display()));
    qemu.args(["-device", "vhost-user-fs-pci,chardev=files,tag=host"]);
    qemu.arg("-serial").arg(format!("file:{}", console.display()));
    qemu.args(["-chardev", "stdio,id=lines,signal=off", "-serial", "chardev:lines"]);
    qemu.arg("-kernel").arg(&image.kernel).arg("-initrd").arg(&image.initramfs);
    qemu.args(["-append", "console=ttyS0 quiet panic=-1 lsm=lockdown,yama,integrity,apparmor,bpf"]);
    Ok(qemu.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?)
}

/// Returns the lines written by the guest, as the lines come.
fn read(output: ChildStdout) -> Receiver<String> {
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
            if sender.send(line).is_err() {
                return; // Nobody listens any more.
            }
        }
    });
    lines
}

fn end(child: &mut Child) {
    if let Err(error) = child.kill().and_then(|()| child.wait()) {
        eprintln!("process {}: {error}", child.id());
    }
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn words_are_quoted_for_a_shell() {
        let words = ["a b", "it's", ""].map(str::to_owned);
        assert_eq!(quoted(words.iter()), r"'a b' 'it'\''s' ''");
    }
}
