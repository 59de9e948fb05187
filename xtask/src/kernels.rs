//! Kernels of the virtual machines: versions, origin and the initial file system of a guest.
//!
//! The packages come through the machine's own `apt-get`, with separate directories and a separate
//! list of sources: the system stays unchanged, and no mirror is named here. The module does not
//! know the programs run in the guest.

use std::collections::{BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use serde::Deserialize;

use crate::{steps, workspace};

/// List of kernels, next to the program.
const LIST: &str = include_str!("../kernels.toml");
/// Modules needed by a guest: the root file system, and the socket diagnosis loaded elsewhere by
/// `modprobe`.
const MODULES: &[&str] = &["virtio_pci", "virtiofs", "tcp_diag"];
/// Mechanisms of the agent's `doctor` with a column in the README's table.
const COLUMNS: [&str; 2] = ["uprobes", "egress hold"];
/// Keyring with Debian's signatures of all releases.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The list of kernels.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Kernels {
    /// Slowdown of a guest against the host, as a factor.
    pub(crate) time_scale: u32,
    kernel: Vec<Kernel>,
}

/// Kernel, and the recorded test results.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Kernel {
    /// Name on the command line.
    pub(crate) line: String,
    version: String,
    suite: String,
    /// `NAME=VERSION`, in the form for `apt-get`.
    package: String,
    tried: String,
    /// Tests passed on the kernel at the recorded date, by parts of the names.
    passed: Vec<String>,
    /// Best mechanism for a denial.
    pub(crate) best_mechanism: String,
    /// Mechanisms of the agent's `doctor` missing on the kernel.
    pub(crate) lacks: BTreeSet<String>,
    /// Tests run on the kernel by `cargo xtask test`; if empty, the kernel is left out.
    pub(crate) selection: Vec<String>,
}

/// Files booted by QEMU.
#[derive(Debug)]
pub(crate) struct Image {
    pub(crate) kernel: PathBuf,
    pub(crate) initramfs: PathBuf,
}

impl Kernels {
    /// Reads the list.
    pub(crate) fn read() -> anyhow::Result<Self> {
        toml::from_str(LIST).context("xtask/kernels.toml")
    }

    /// Every kernel.
    pub(crate) fn all(&self) -> &[Kernel] {
        &self.kernel
    }

    /// Returns the kernel named `line`.
    pub(crate) fn named(&self, line: &str) -> anyhow::Result<&Kernel> {
        let known: Vec<_> = self.kernel.iter().map(|kernel| kernel.line.as_str()).collect();
        let found = self.kernel.iter().find(|kernel| kernel.line == line);
        found.with_context(|| format!("there is no kernel `{line}`, only {}", known.join(", ")))
    }
}

impl Kernel {
    /// Returns the row for the README's table of support.
    pub(crate) fn row(&self) -> String {
        let Self { line, version, tried, passed, lacks, best_mechanism, .. } = self;
        let has = |mechanism: &str| if lacks.contains(mechanism) { "no" } else { "yes" };
        let columns = COLUMNS.map(has).join(" | ");
        let passed = passed.join(" ");
        format!(
            "| {version} x86-64 | {columns} | {best_mechanism} | `cargo xtask vm --kernel {line} {passed}`, {tried} |"
        )
    }

    /// Returns the kernel and the initial file system; downloads and builds missing files.
    pub(crate) fn image(&self, command: &str) -> anyhow::Result<Image> {
        let unpacked = self.fetch()?;
        let kernel = only_file(&unpacked.join("boot"), "vmlinuz")?;
        let initramfs = self.initramfs(&unpacked, command)?;
        Ok(Image { kernel, initramfs })
    }

    /// Returns the unpacked package; downloads the package the first time.
    pub(crate) fn fetch(&self) -> anyhow::Result<PathBuf> {
        let name = self.package.replace(['=', '~'], "_");
        let place = workspace::cache().join("vm").join(name);
        if place.exists() {
            return Ok(place);
        }
        let download = workspace::cache().join("vm/download");
        recreate(&download)?;
        let apt = Apt::of(&self.suite)?;
        steps::run(&format!("read the packages of {}", self.suite), apt.get().arg("update"))?;
        let mut fetch = apt.get();
        fetch.arg("download").arg(&self.package).current_dir(&download);
        steps::run(&format!("fetch Linux {}", self.version), &mut fetch)?;
        let package = only_file(&download, "linux-image")?;
        let partial = download.join("unpacked");
        let mut unpack = Command::new("dpkg-deb");
        steps::run("unpack it", unpack.arg("--extract").arg(&package).arg(&partial))?;
        std::fs::rename(&partial, &place).with_context(|| format!("{}", place.display()))?;
        std::fs::remove_dir_all(&download)?;
        Ok(place)
    }

    /// Builds the initial file system: busybox, the modules, and two scripts; everything else is on
    /// the host's file system.
    fn initramfs(&self, unpacked: &Path, command: &str) -> anyhow::Result<PathBuf> {
        let place = workspace::cache().join("vm").join(format!("initramfs-{}", self.line));
        recreate(&place)?;
        for directory in ["bin", "modules", "dev"] {
            std::fs::create_dir(place.join(directory))?;
        }
        std::fs::copy("/bin/busybox", place.join("bin/busybox")).context("/bin/busybox")?;
        std::fs::write(place.join("main"), include_str!("../guest/main.sh"))?;
        std::fs::write(place.join("command"), command)?;
        let init = place.join("init");
        std::fs::write(&init, include_str!("../guest/init.sh"))?;
        run(Command::new("chmod").arg("+x").arg(&init))?;
        for (index, module) in modules(&unpacked.join("lib/modules"))?.iter().enumerate() {
            std::fs::write(place.join(format!("modules/{index:02}")), module)?;
        }
        let archive = place.with_extension("cpio");
        let pack = r#"cd "$1" && find . | busybox cpio -o -H newc > "$2""#;
        run(Command::new("sh").args(["-c", pack, "sh"]).arg(&place).arg(&archive))?;
        Ok(archive)
    }
}

/// `apt-get` with a single Debian suite, from the mirror used by the machine.
struct Apt {
    options: Vec<String>,
}

impl Apt {
    fn of(suite: &str) -> anyhow::Result<Self> {
        let place = workspace::cache().join("vm/apt").join(suite);
        for directory in ["state/lists/partial", "cache/archives/partial"] {
            std::fs::create_dir_all(place.join(directory))?;
        }
        let sources = place.join("debian.sources");
        let mirror = mirror()?;
        let text = format!(
            "Types: deb\nURIs: {mirror}\nSuites: {suite}\nComponents: main\nSigned-By: {KEYRING}\n"
        );
        std::fs::write(&sources, text)?;
        let place = place.display();
        let options = [
            format!("Dir::Etc::SourceList={place}/debian.sources"),
            "Dir::Etc::SourceParts=-".to_owned(),
            format!("Dir::State={place}/state"),
            format!("Dir::Cache={place}/cache"),
            // The rights of the directory above are the checkout's affair.
            "APT::Sandbox::User=root".to_owned(),
        ];
        Ok(Self { options: options.to_vec() })
    }

    fn get(&self) -> Command {
        let mut command = Command::new("apt-get");
        for option in &self.options {
            command.args(["-o", option]);
        }
        command
    }
}

/// Returns the mirror of the machine's own Debian packages.
fn mirror() -> anyhow::Result<String> {
    let format = "$(ORIGIN) $(COMPONENT) $(CODENAME) $(REPO_URI)";
    let output = Command::new("apt-get").args(["indextargets", "--format", format]).output()?;
    let text = String::from_utf8(output.stdout)?;
    let mirrors = text.lines().filter_map(|line| line.strip_prefix("Debian main "));
    // The suites of security updates are elsewhere.
    let mut main = mirrors.filter(|line| !line.contains("-security"));
    let mirror = main.find_map(|line| line.split(' ').nth(1));
    Ok(mirror
        .context("this machine has no package list of Debian's: run `apt-get update`")?
        .to_owned())
}

/// Returns the wanted modules and the dependencies, each after the module's own dependencies. A
/// built-in module has no file.
fn modules(directory: &Path) -> anyhow::Result<Vec<Vec<u8>>> {
    let mut files = Vec::new();
    let mut open = vec![directory.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(&directory)? {
            let path = entry?.path();
            if path.is_dir() { open.push(path) } else { files.push(path) }
        }
    }
    let mut wanted: VecDeque<String> = MODULES.iter().rev().map(ToString::to_string).collect();
    let mut loaded: Vec<(String, Vec<u8>)> = Vec::new();
    while let Some(name) = wanted.pop_front() {
        // A module wanted again is needed earlier.
        let again = loaded.iter().position(|(it, _)| *it == name).map(|at| loaded.remove(at).1);
        let Some(bytes) = again.map_or_else(|| module(&files, &name), |it| Ok(Some(it)))? else {
            continue;
        };
        wanted.extend(dependencies(&bytes));
        loaded.push((name, bytes));
    }
    Ok(loaded.into_iter().rev().map(|(_, bytes)| bytes).collect())
}

/// Returns a module's file in the form for the kernel; `None` if there is no module of the name.
fn module(files: &[PathBuf], name: &str) -> anyhow::Result<Option<Vec<u8>>> {
    let is_it = |path: &&PathBuf| {
        let file = path.file_name().and_then(|file| file.to_str()).unwrap_or_default();
        file.split_once(".ko").is_some_and(|(stem, _)| stem.replace('-', "_") == name)
    };
    let Some(path) = files.iter().find(is_it) else { return Ok(None) };
    if path.extension().is_some_and(|extension| extension == "xz") {
        let output = Command::new("xz").arg("-dc").arg(path).output().context("xz")?;
        ensure!(output.status.success(), "{} cannot be unpacked", path.display());
        return Ok(Some(output.stdout));
    }
    Ok(Some(std::fs::read(path)?))
}

/// Returns the dependencies of a module: `depends=A,B` in the section `.modinfo`.
fn dependencies(module: &[u8]) -> Vec<String> {
    let mut entries = module.split(|&byte| byte == 0);
    let list = entries.find_map(|entry| entry.strip_prefix(b"depends="));
    let text = list.map(String::from_utf8_lossy).unwrap_or_default();
    text.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

fn only_file(directory: &Path, start: &str) -> anyhow::Result<PathBuf> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(start) {
            return Ok(entry.path());
        }
    }
    anyhow::bail!("{} has no {start}", directory.display())
}

fn recreate(directory: &Path) -> anyhow::Result<()> {
    if directory.exists() {
        std::fs::remove_dir_all(directory)?;
    }
    std::fs::create_dir_all(directory).with_context(|| format!("{}", directory.display()))
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let output =
        command.output().with_context(|| format!("{}", command.get_program().display()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {said}", command.get_program().display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Kernels, dependencies};

    #[test]
    fn dependencies_are_read_from_a_module() {
        let module = b"\x7fELF\0license=GPL\0depends=fuse,virtio\0retpoline=Y\0";
        assert_eq!(dependencies(module), ["fuse", "virtio"]);
        assert_eq!(dependencies(b"\0depends=\0"), Vec::<String>::new());
        assert_eq!(dependencies(b""), Vec::<String>::new());
    }

    #[test]
    fn the_list_can_be_read_and_has_each_kernel_once() -> anyhow::Result<()> {
        let kernels = Kernels::read()?;
        let mut lines: Vec<_> = kernels.all().iter().map(|it| it.line.as_str()).collect();
        lines.dedup();
        assert_eq!(lines.len(), kernels.all().len());
        assert!(kernels.named("2.6").is_err_and(|error| error.to_string().contains("6.1")));
        Ok(())
    }
}
