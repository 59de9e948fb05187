//! Governance of model calls: decides and accounts for requests by principal and policy.
//!
//! [`Engine`] owns every connection. The engine takes captured bytes, facts about processes and the
//! time, and gives [`Output`]s: verdicts on egress, evidence records and ledger changes to store,
//! and the finished [`Awu`]s. Sans-io and deterministic: the same inputs and state give the same
//! outputs, byte for byte. HTTP is decoded by `genops-protocols`; the crate reads no file.

#![forbid(unsafe_code)]

mod approval;
mod authority;
mod awu;
mod budget;
mod canonical;
mod config;
pub mod conformance;
mod decision;
mod engine;
mod explain;
mod glob;
mod hex;
mod ledger;
pub mod money;
mod policy;
pub mod prices;
mod principal;
mod process;
mod rate;
mod record;
mod settings;
mod shared;
mod sla;
pub mod telemetry;
pub mod time;

pub use approval::{Approval, LONGEST_NS as APPROVAL_LONGEST_NS, Scope};
pub use awu::{
    Actual, Attribution, Awu, AwuId, BudgetView, CaptureLevel, Grounds, Held, HoldLevel, Mechanism,
    Network, NotAnId, Outcome, Reservation, Sla,
};
pub use config::{
    AttributionConfig, BudgetConfig, Dimension, Enforcement, Estimate, GrantBudgetConfig,
    GrantConfig, GrantRateConfig, HumanConfig, MatchConfig, Mode, OnTimeout, Per, PerConfig,
    PolicyConfig, PolicyText, PriceConfig, PriceTable, PricesConfig, PrincipalConfig,
    ProviderConfig, RateLimitConfig, ScopeConfig, Sections, Signal, SlaConfig, TierConfig,
    Uninspectable, Unit, UnknownModel, Unmapped, Unnamed,
};
pub use decision::{Decision, Permission, PolicyResult, ReasonCode, Refusal};
pub use engine::{
    Again, Beforehand, ConnId, ConnectionOpen, ConnectionUpdate, Contacted, Effect, Engine, Output,
    Unexplainable, Unread,
};
pub use explain::Explanation;
pub use hex::hex;
pub use ledger::{
    Account, AccountKey, Change, Closed, Demand, Entry, Ledger, RestoreError, Restored, Share,
    Shortfall,
};
pub use process::{ANCESTRY_LIMIT, Ancestor, ProcessFacts, ProcessKey, User};
pub use record::{
    Accounted, Decided, Had, Inputs, Metered, Record, RecordKind, Seen, Texts, What, Who,
};
pub use settings::{ConfigError, Settings};
pub use telemetry::{Attribute, Event, Value};
pub use time::Now;
