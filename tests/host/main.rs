//! Tests on the kernel of the host: the agent as a process, real clients, a real TLS provider.
//!
//! The tests need root; without root, each test prints the reason and is counted as skipped. The
//! tests run one at a time (`--test-threads=1`), because there is only one kernel.

mod absence;
mod alerts;
mod books;
mod budget;
mod calls;
mod compare;
mod customers;
mod death;
mod denial;
mod deploy;
mod elsewhere;
mod evidence;
mod evidence_damage;
mod evidence_disk;
mod explained;
mod flood;
mod governance;
mod hostile;
mod kinds;
mod lineage;
mod load;
mod money;
mod naming;
mod privilege;
mod send_hook;
mod siege;
mod signal;
mod storm;
mod support;
mod unread;
mod usage;
mod why;
