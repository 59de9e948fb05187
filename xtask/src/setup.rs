//! Installation of the requirements of the build and the tests; installs nothing if all are
//! present.
//!
//! The kernel programs need a compiler with `core` for `bpfel-unknown-none` and a linker for LLVM
//! bitcode. Two ways are supported: rustup's nightly with `rust-src`, the usual way, and on Debian
//! 12 the distribution's packages with a prebuilt `core`. Anything else is refused with a helpful
//! sentence.
//!
//! `bpf-linker` goes to cargo's own directory, as in a developer's installation, shared by all
//! checkouts. An existing `bpf-linker` for another LLVM is left alone: the new linker then goes to
//! `.cache/tools`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail, ensure};

use crate::{steps, workspace};

/// Debian 12's packages for the kernel programs.
const DEBIAN_BPF: &[&str] = &[
    "rustc-web",
    "cargo-web",
    "rust-web-clippy",
    "libstd-rust-web-dev-bpf",
    "llvm-22",
    "llvm-22-dev",
];
/// Debian's packages for all other compiled code.
const DEBIAN_BUILD: &[&str] = &["gcc", "g++", "libc6-dev", "make", "pkg-config"];
/// Debian's packages for the clients and peers of the tests and the demo.
const DEBIAN_CLIENTS: &[&str] = &[
    "curl",
    "e2fsprogs",
    "gnutls-bin",
    "libssl-dev",
    "python3",
    "python3-venv",
    "util-linux",
    "libcap2-bin",
    "iproute2",
];
/// Debian's packages for the virtual machines; QEMU brings the server of a shared file system.
const DEBIAN_MACHINES: &[&str] =
    &["qemu-system-x86", "busybox-static", "debian-archive-keyring", "iproute2", "xz-utils"];
const BPF_LINKER_VERSION: &str = "0.13.0";
/// Directory of `llvm-config` in Debian's LLVM 22.
const LLVM_BIN: &str = "/usr/lib/llvm-22/bin";
/// Name of Debian's compiler in rustup.
const LINKED_TOOLCHAIN: &str = "genops-bpf";

/// Toolchain of the kernel programs.
#[derive(Debug)]
pub(crate) struct Toolchain {
    /// Name of a rustup toolchain; `genops-agent/build.rs` reads the name from
    /// `GENOPS_BPF_TOOLCHAIN`.
    pub(crate) name: String,
    /// Directories to put in front of `PATH`.
    pub(crate) path: Vec<PathBuf>,
}

/// Finds the toolchain of the kernel programs on the machine, and installs missing parts.
pub(crate) fn toolchain() -> anyhow::Result<Toolchain> {
    if let Some(name) = std::env::var_os("GENOPS_BPF_TOOLCHAIN") {
        let name = name.into_string().ok().context("GENOPS_BPF_TOOLCHAIN is not UTF-8")?;
        ensure!(
            works("rustup", &["run", &name, "rustc", "-V"]),
            "GENOPS_BPF_TOOLCHAIN: rustup has no `{name}`"
        );
        return Ok(Toolchain { name, path: Vec::new() });
    }
    ensure!(
        works("rustup", &["--version"]),
        "rustup is missing; it selects the compiler of the kernel programs"
    );
    if nightly_has_source() {
        if !works("bpf-linker", &["--version"]) {
            let mut install = workspace::cargo();
            steps::run("install bpf-linker", install.args(["install", "--locked", "bpf-linker"]))?;
        }
        return Ok(Toolchain { name: "nightly".to_owned(), path: Vec::new() });
    }
    ensure!(
        is_debian_12(),
        "the kernel programs need nightly with its source: \
         `rustup toolchain install nightly --component rust-src`, then run this again"
    );
    debian_packages(&[DEBIAN_BUILD, DEBIAN_BPF].concat())?;
    if !works("rustup", &["run", LINKED_TOOLCHAIN, "rustc", "-V"]) {
        let mut link = Command::new("rustup");
        steps::run(
            "name Debian's compiler",
            link.args(["toolchain", "link", LINKED_TOOLCHAIN, "/usr"]),
        )?;
    }
    Ok(Toolchain { name: LINKED_TOOLCHAIN.to_owned(), path: linker_for_debian()? })
}

/// Installs the real clients of the tests: curl, a virtual environment with the Python SDKs, and
/// Node.js.
pub(crate) fn clients() -> anyhow::Result<()> {
    if is_debian() {
        debian_packages(&[DEBIAN_BUILD, DEBIAN_CLIENTS].concat())?;
    }
    python_clients()?;
    node_clients()
}

fn python_clients() -> anyhow::Result<()> {
    let wanted = workspace::root().join("tests/clients/requirements.txt");
    let installed = venv().join("requirements.txt");
    let text = std::fs::read_to_string(&wanted).with_context(|| format!("{}", wanted.display()))?;
    if std::fs::read_to_string(&installed).is_ok_and(|installed| installed == text) {
        return Ok(());
    }
    // The distribution's interpreter maps the distribution's libssl, as most programs do.
    let system = Path::new("/usr/bin/python3");
    let python = if system.exists() { system } else { Path::new("python3") };
    steps::run(
        "make a Python environment",
        Command::new(python).args(["-m", "venv", "--clear"]).arg(venv()),
    )?;
    let mut pip = Command::new(venv().join("bin/python3"));
    pip.args(["-m", "pip", "install", "--only-binary", ":all:", "--requirement"]).arg(&wanted);
    steps::run("install the Python clients", &mut pip)?;
    std::fs::write(&installed, text).with_context(|| format!("{}", installed.display()))
}

/// Installs Node.js as built by the makers, with OpenSSL inside, and an SDK.
fn node_clients() -> anyhow::Result<()> {
    let clients = workspace::root().join("tests/clients");
    let installed = clients.join("node_modules/.package-lock.json");
    let wanted = clients.join("package-lock.json");
    let changed = |path: &Path| path.metadata().and_then(|metadata| metadata.modified());
    if changed(&installed).is_ok_and(|at| changed(&wanted).is_ok_and(|wanted| at >= wanted)) {
        return Ok(());
    }
    if is_debian() && !works("npm", &["--version"]) {
        debian_packages(&["npm"])?;
    }
    let mut npm = Command::new("npm");
    npm.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"]).current_dir(clients);
    steps::run("install the Node.js clients", &mut npm)?;
    Ok(())
}

/// Installs the packages for booting other kernels.
pub(crate) fn machines() -> anyhow::Result<()> {
    if is_debian() { debian_packages(DEBIAN_MACHINES) } else { Ok(()) }
}

/// The Python environment of the clients.
pub(crate) fn venv() -> PathBuf {
    workspace::cache().join("venv")
}

/// Returns true if `program` runs with the arguments and succeeds.
pub(crate) fn works(program: &str, arguments: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

fn nightly_has_source() -> bool {
    let sysroot =
        Command::new("rustup").args(["run", "nightly", "rustc", "--print", "sysroot"]).output();
    sysroot.is_ok_and(|output| {
        let sysroot = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        output.status.success()
            && Path::new(&sysroot).join("lib/rustlib/src/rust/library/core").exists()
    })
}

pub(crate) fn is_debian() -> bool {
    os_release("ID").is_some_and(|id| id == "debian")
}

fn is_debian_12() -> bool {
    is_debian() && os_release("VERSION_ID").is_some_and(|version| version == "12")
}

fn os_release(key: &str) -> Option<String> {
    let text = std::fs::read_to_string("/etc/os-release").ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?;
    Some(value.trim_matches('"').to_owned())
}

fn debian_packages(wanted: &[&str]) -> anyhow::Result<()> {
    let missing: Vec<_> = wanted.iter().copied().filter(|package| !is_installed(package)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    ensure!(
        workspace::is_root(),
        "these packages are missing: `sudo apt-get install {list}`, then run this again"
    );
    let apt_get = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
        command
    };
    // If the package list can't be renewed, the old list may still be new enough.
    if let Err(error) = steps::run("renew the package lists", &mut apt_get(&["update"])) {
        eprintln!("    {error:#}");
    }
    let mut install = apt_get(&["install", "--yes", "--no-install-recommends"]);
    steps::run(&format!("install {list}"), install.args(missing))?;
    Ok(())
}

fn is_installed(package: &str) -> bool {
    let query =
        Command::new("dpkg-query").args(["-W", "-f", "${db:Status-Status}", package]).output();
    query.is_ok_and(|output| output.stdout == b"installed")
}

/// Installs a `bpf-linker` for the output of Debian's compiler. Returns directories to put in front
/// of `PATH`.
fn linker_for_debian() -> anyhow::Result<Vec<PathBuf>> {
    let ours = workspace::cache().join("tools");
    let found = in_path("bpf-linker");
    if found.as_deref().is_some_and(links_llvm_22) {
        return Ok(Vec::new());
    }
    let bin = ours.join("bin");
    if links_llvm_22(&bin.join("bpf-linker")) {
        return Ok(vec![bin]);
    }
    let mut install = workspace::cargo();
    install.args(["install", "--locked", "bpf-linker", "--version", BPF_LINKER_VERSION]);
    // With the default feature, `bpf-linker` links LLVM 22 all the same, and then fails on every
    // memset.
    install.args(["--no-default-features", "--features", "llvm-22"]);
    install.env("PATH", workspace::path_with(&[LLVM_BIN.into()])?).env_remove("CARGO_TARGET_DIR");
    if found.is_some() {
        install.arg("--root").arg(&ours);
    }
    steps::run("build bpf-linker (about 3 minutes)", &mut install)?;
    if found.is_some() {
        return Ok(vec![bin]);
    }
    if in_path("bpf-linker").is_none() {
        bail!("bpf-linker was installed to cargo's bin directory, which is not in PATH");
    }
    Ok(Vec::new())
}

fn in_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|directory| directory.join(program))
        .find(|path| path.is_file())
}

fn links_llvm_22(linker: &Path) -> bool {
    let version = Command::new(linker).arg("--version").output();
    let right = version.is_ok_and(|output| {
        String::from_utf8_lossy(&output.stdout).trim().ends_with(BPF_LINKER_VERSION)
    });
    let libraries = Command::new("ldd").arg(linker).output();
    right
        && libraries
            .is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("libLLVM.so.22"))
}
