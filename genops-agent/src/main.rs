//! `genops-agent`: governs the AI calls of a host's unmodified programs.

fn main() {}
