//! The subcommands that are little more than their arguments and their output.

pub(crate) mod check;
pub(crate) mod doctor;
pub(crate) mod run;
