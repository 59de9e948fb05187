//! Decodes a recording and prints each model call as one JSON line.
//!
//! `cargo run --release -p genops-protocols --example replay -- FILE [--all]`: the decoding half
//! of `genops-agent replay`, without who asked and what was decided. `--all` prints exchanges of
//! every kind.
#![expect(clippy::print_stdout, reason = "an example that prints")]
#![expect(clippy::disallowed_methods, reason = "an example reads its file")]
#![expect(clippy::expect_used, reason = "a recording that is none ends the run")]

#[path = "../tests/recording/mod.rs"]
mod recording;

use recording::{Cut, replay};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let file = arguments.next().ok_or("usage: replay FILE [--all]")?;
    let all = arguments.next().is_some_and(|it| it == "--all");
    for line in replay(&std::fs::read_to_string(file)?, all, Cut::Never).lines {
        println!("{line}");
    }
    Ok(())
}
