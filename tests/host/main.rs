//! Tests on this host's kernel: the agent as a process, real clients, a real TLS provider.
//!
//! They need root. Where it is missing each says so and is counted as skipped. They run one at a time
//! (`--test-threads=1`): there is one kernel.

mod absence;
mod budget;
mod calls;
mod compare;
mod death;
mod denial;
mod elsewhere;
mod evidence;
mod evidence_damage;
mod evidence_disk;
mod explained;
mod governance;
mod hostile;
mod kinds;
mod lineage;
mod load;
mod naming;
mod privilege;
mod send_hook;
mod siege;
mod signal;
mod storm;
mod support;
mod unread;
mod usage;
