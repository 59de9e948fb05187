//! A disk no longer taking evidence: full, or read-only after an error. `evidence.on_failure`
//! decides about requests, and the agent reports the failure.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use genops_tests::agent::{Agent, Launch};
use genops_tests::clients::{Stage, run};
use genops_tests::scratch::Scratch;

use crate::evidence::{both_accept, eventually, evidence, utf8};
use crate::support::can_run;

const RULES: &str = "mode: enforce\npolicies: [{name: no-pro, denied_models: [\"*-pro\"]}]";

/// Runs a program to the end. Fails unless the program succeeded.
fn done(program: &str, arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new(program).args(arguments).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {arguments:?}: {said}");
    Ok(())
}

/// Small file system for a test, unmounted on drop.
struct Mount {
    at: PathBuf,
    _scratch: Scratch,
}

impl Mount {
    /// Mounts a file system in memory.
    fn in_memory() -> anyhow::Result<Self> {
        let scratch = Scratch::new("disk")?;
        let at = scratch.join("mounted");
        std::fs::create_dir(&at)?;
        done("mount", &["-t", "tmpfs", "-o", "size=48m", "genops-test", utf8(&at)?])?;
        Ok(Self { at, _scratch: scratch })
    }

    /// Mounts ext4 in a file, read-only after an error.
    fn on_a_loop_device() -> anyhow::Result<Self> {
        let scratch = Scratch::new("disk")?;
        let (at, image) = (scratch.join("mounted"), scratch.join("image"));
        std::fs::create_dir(&at)?;
        File::create(&image)?.set_len(48 << 20)?;
        done("mkfs.ext4", &["-q", "-F", utf8(&image)?])?;
        done("mount", &["-o", "loop,errors=remount-ro", utf8(&image)?, utf8(&at)?])?;
        Ok(Self { at, _scratch: scratch })
    }

    /// Fills the remaining space with a file, and returns the path of the file.
    fn fill(&self) -> anyhow::Result<PathBuf> {
        let path = self.at.join("filler");
        let mut file = File::create(&path)?;
        for size in [1 << 16, 1 << 10, 1] {
            while file.write_all(&vec![b'x'; size]).is_ok() {}
        }
        Ok(path)
    }

    /// Triggers an error of the file system, as a bad disk would.
    fn break_it(&self) -> anyhow::Result<()> {
        let source = Command::new("findmnt").args(["-no", "SOURCE"]).arg(&self.at).output()?;
        let source = String::from_utf8(source.stdout)?;
        let device = source.trim().rsplit('/').next().context("a device")?.to_owned();
        let trigger = format!("/sys/fs/ext4/{device}/trigger_fs_error");
        std::fs::write(&trigger, "1").with_context(|| trigger)
    }

    fn launch(&self, evidence: &'static str) -> Launch {
        let evidence_in = Some(self.at.join("evidence"));
        Launch { evidence, evidence_in, ..Launch::default() }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // An agent being killed may still hold the mount.
        for _ in 0..50 {
            if done("umount", &[&self.at.to_string_lossy()]).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        eprintln!("{} stays mounted", self.at.display());
    }
}

/// Makes calls on a connection; returns false if a call failed.
fn calls(stage: &Stage, count: usize) -> anyhow::Result<bool> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_genops-tests"));
    command.args(["client", "--address", &stage.provider.address.to_string(), "--root"]);
    command.arg(stage.root()).args(["--requests", &count.to_string()]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Ok(run(&mut command)?.output.status.success())
}

/// Waits until `/readyz` answers 503 with `reason`, because evidence cannot be written.
fn says_so(agent: &Agent, reason: &str) -> anyhow::Result<()> {
    eventually("an answer that it is not ready", || {
        let (status, said) = agent.get("/readyz")?;
        Ok((status == 503 && said.contains(reason)).then_some(()))
    })
}

fn is_counted(agent: &Agent) -> anyhow::Result<()> {
    let lost = agent.losses()?;
    ensure!(lost.iter().any(|(name, _)| name.contains("evidence_unwritable")), "{lost:?}");
    Ok(())
}

/// Fails unless the evidence left by the agent verifies, and has a gap if and only if `gap` is set.
fn holds(directory: &Path, gap: bool) -> anyhow::Result<()> {
    both_accept(directory)?;
    let shown = evidence(&["show", utf8(directory)?, "--type", "gap"])?;
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    ensure!(shown.contains("the disk did not take evidence") == gap, "{shown}");
    Ok(())
}

#[test]
fn on_a_full_disk_held_requests_are_refused_until_there_is_room() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (stage, mount) = (Stage::new()?, Mount::in_memory()?);
    let mut agent = Agent::launch(RULES, &mount.launch("segment_bytes: 1048576, "))?;
    ensure!(calls(&stage, 5)?, "a call failed while there was room");
    let filler = mount.fill()?;
    // Space already reserved is used up first.
    ensure!(!calls(&stage, 5_000)?, "every call ran, though the disk is full");
    says_so(&agent, "No space left on device")?;
    is_counted(&agent)?;
    let before = stage.provider.log.request_count();
    ensure!(!calls(&stage, 1)?, "a call ran without its evidence");
    ensure!(stage.provider.log.request_count() == before, "a refused call reached the provider");
    std::fs::remove_file(filler)?;
    eventually("a call that runs again", || Ok(calls(&stage, 1)?.then_some(())))?;
    eventually(
        "an answer that it is ready",
        || Ok((agent.get("/readyz")?.0 == 200).then_some(())),
    )?;
    let (status, _) = agent.stop()?;
    ensure!(status.success(), "{status}: {}", agent.stderr());
    both_accept(&agent.evidence())
}

#[test]
fn on_a_full_disk_requests_go_on_where_the_configuration_says_so() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (stage, mount) = (Stage::new()?, Mount::in_memory()?);
    let mut agent =
        Agent::launch(RULES, &mount.launch("segment_bytes: 1048576, on_failure: continue, "))?;
    ensure!(calls(&stage, 5)?, "a call failed while there was room");
    let filler = mount.fill()?;
    // Enough to fill the buffer in memory as well: then records are lost, and counted.
    for _ in 0..6 {
        ensure!(calls(&stage, 1_500)?, "a call failed, though evidence may be missing");
    }
    says_so(&agent, "")?;
    is_counted(&agent)?;
    std::fs::remove_file(filler)?;
    ensure!(calls(&stage, 5)?, "a call failed when there was room again");
    eventually(
        "an answer that it is ready",
        || Ok((agent.get("/readyz")?.0 == 200).then_some(())),
    )?;
    let (status, _) = agent.stop()?;
    ensure!(status.success(), "{status}: {}", agent.stderr());
    holds(&agent.evidence(), true)
}

#[test]
#[expect(clippy::print_stdout, reason = "the test runner counts what is skipped by this line")]
fn on_a_disk_that_became_read_only_held_requests_are_refused() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mount = match Mount::on_a_loop_device() {
        Ok(mount) => mount,
        Err(error) => {
            println!("skipped: no file system on a loop device here: {error:#}");
            return Ok(());
        }
    };
    let stage = Stage::new()?;
    let launch = mount.launch("segment_bytes: 1048576, ");
    let mut agent = Agent::launch(RULES, &launch)?;
    ensure!(calls(&stage, 5)?, "a call failed while the disk was writable");
    mount.break_it()?;
    ensure!(!calls(&stage, 5_000)?, "every call ran, though the disk is read-only");
    says_so(&agent, "Read-only file system")?;
    is_counted(&agent)?;
    agent.kill()?;
    // Durable records are there and readable; a new start reports the error.
    both_accept(&agent.evidence())?;
    match Agent::launch(RULES, &launch) {
        Ok(_) => bail!("an agent starts on a read-only disk"),
        Err(error) => ensure!(error.to_string().contains("Read-only file system"), "{error}"),
    }
    Ok(())
}
