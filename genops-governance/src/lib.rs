//! Model calls, who makes them, and policy -> decisions and accounts.
//!
//! [`Engine`] owns every connection. It takes captured bytes, facts about processes and the time,
//! and gives [`Output`]s: what may leave the host, what must not, what to write down, and the
//! finished [`Awu`]s. Sans-io and deterministic: the same inputs and state give the same outputs,
//! byte for byte. It knows no HTTP (that is `genops-protocols`) and no file.

#![forbid(unsafe_code)]

mod approval;
mod awu;
mod config;
mod decision;
mod engine;
mod ledger;
pub mod money;
mod process;
mod record;
mod settings;
pub mod telemetry;
pub mod time;

pub use approval::{Approval, Binding};
pub use awu::{Attribution, Awu, AwuId, CaptureLevel, HoldLevel, NotAnId, Rung};
pub use config::{
    BudgetConfig, Enforcement, Estimate, GrantConfig, MatchConfig, Mode, OnTimeout, Per,
    PolicyConfig, PolicyText, PriceConfig, PricesConfig, PrincipalConfig, ProviderConfig,
    RateLimitConfig, ScopeConfig, Sections, SlaConfig, TierConfig, Unit, UnknownModel, Unmapped,
};
pub use decision::{Decision, Permission, PolicyResult, ReasonCode, Refusal};
pub use engine::{ConnId, ConnectionOpen, ConnectionUpdate, Engine, Output};
pub use ledger::{
    Account, AccountKey, Change, Demand, Entry, Ledger, RestoreError, Restored, Share, Shortfall,
};
pub use process::{Ancestor, ProcessFacts, ProcessKey};
pub use record::{Accounted, Decided, Inputs, Record, RecordKind, What, Who};
pub use settings::{ConfigError, Settings};
pub use telemetry::{Attribute, Event, Value};
pub use time::Now;
