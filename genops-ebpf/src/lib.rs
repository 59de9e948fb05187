//! Empty library target: lets Cargo track the crate as a build dependency of the agent.
#![no_std]
