//! Set-up, build, test and measurement commands of the workspace: `cargo xtask help`.

fn main() {}
