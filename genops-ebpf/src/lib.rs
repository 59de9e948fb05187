//! Empty: a library target lets Cargo track this crate as a build dependency of the agent.
#![no_std]
