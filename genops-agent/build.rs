//! Compiles the kernel programs and leaves the object for the agent to embed.
//!
//! `AYA_BUILD_SKIP=1` leaves an empty object: everything but the kernel part works, and `run`
//! refuses the object. `GENOPS_BPF_TOOLCHAIN` names the rustup toolchain. Without the variable,
//! `genops-bpf` is taken if it exists (`cargo xtask build` links it on Debian), otherwise nightly.

use std::path::Path;
use std::process::Command;
use std::{env, fs};

use anyhow::{Context as _, Result};
use aya_build::{Package, Toolchain, build_ebpf};

const OBJECT: &str = "genops-ebpf";
const DEBIAN_TOOLCHAIN: &str = "genops-bpf";

fn main() -> Result<()> {
    let out = env::var_os("OUT_DIR").context("OUT_DIR is not set")?;
    fs::write(Path::new(&out).join(OBJECT), [])?;
    println!("cargo:rerun-if-changed=../genops-ebpf-common/src");
    println!("cargo:rerun-if-env-changed=GENOPS_BPF_TOOLCHAIN");
    let package = Package {
        name: OBJECT,
        root_dir: concat!(env!("CARGO_MANIFEST_DIR"), "/../genops-ebpf"),
        ..Package::default()
    };
    let chosen = env::var("GENOPS_BPF_TOOLCHAIN").ok().or_else(debian_toolchain);
    match &chosen {
        Some(name) => build_ebpf([package], Toolchain::Custom(name)),
        None => build_ebpf([package], Toolchain::Nightly),
    }
}

/// The linked Debian compiler, with `core` for the bpf target ready.
fn debian_toolchain() -> Option<String> {
    let listed = Command::new("rustup").args(["toolchain", "list"]).output().ok()?;
    String::from_utf8_lossy(&listed.stdout)
        .lines()
        .any(|line| line.split_whitespace().next() == Some(DEBIAN_TOOLCHAIN))
        .then(|| DEBIAN_TOOLCHAIN.to_owned())
}
