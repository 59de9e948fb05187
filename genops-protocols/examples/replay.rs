//! Decodes a recording and prints each model call as a JSON line.
//!
//! `cargo run --release -p genops-protocols --example replay -- FILE [--all] [--cut BYTES]
//! [--cut-at BYTE]`: the decoding half of `genops-agent replay`, without principals and decisions.
//! `--all` prints exchanges of every kind; the other options cut the recorded bytes; the result
//! must be the same.
#![expect(clippy::print_stdout, reason = "an example that prints")]
#![expect(clippy::disallowed_methods, reason = "an example reads its file")]
#![expect(clippy::expect_used, reason = "a recording that is none ends the run")]

#[path = "../tests/recording/mod.rs"]
mod recording;

use recording::{Cut, replay};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let usage = "usage: replay FILE [--all] [--cut BYTES] [--cut-at BYTE]";
    let file = arguments.first().ok_or(usage)?;
    let all = arguments.iter().any(|it| it == "--all");
    let number = |name: &str| -> Option<usize> {
        arguments.iter().skip_while(|it| *it != name).nth(1)?.parse().ok()
    };
    let cut = match (number("--cut"), number("--cut-at")) {
        (Some(len), _) => Cut::Every(len.max(1)),
        (None, Some(at)) => Cut::At(at),
        (None, None) => Cut::Never,
    };
    for line in replay(&std::fs::read_to_string(file)?, all, cut).lines {
        println!("{line}");
    }
    Ok(())
}
