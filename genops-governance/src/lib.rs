//! Model calls, who makes them, and policy -> decisions and accounts.
//!
//! [`Engine`] owns every connection. It takes captured bytes, facts about processes and the time,
//! and gives [`Output`]s: what may leave the host, what must not, what to write down, and the
//! finished [`Awu`]s. Sans-io and deterministic: the same inputs and state give the same outputs,
//! byte for byte. It knows no HTTP (that is `genops-protocols`) and no file.

#![forbid(unsafe_code)]

mod approval;
mod authority;
mod awu;
mod budget;
mod config;
pub mod conformance;
mod decision;
mod engine;
mod explain;
mod glob;
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
    AttributionConfig, BudgetConfig, Dimension, Enforcement, Estimate, GrantConfig, MatchConfig,
    Mode, OnTimeout, Per, PerConfig, PolicyConfig, PolicyText, PriceConfig, PriceTable,
    PricesConfig, PrincipalConfig, ProviderConfig, RateLimitConfig, ScopeConfig, Sections, Signal,
    SlaConfig, TierConfig, Uninspectable, Unit, UnknownModel, Unmapped, Unnamed,
};
pub use decision::{Decision, Permission, PolicyResult, ReasonCode, Refusal};
pub use engine::{
    Again, Beforehand, ConnId, ConnectionOpen, ConnectionUpdate, Effect, Engine, Output,
    Unexplainable, Unread,
};
pub use explain::Explanation;
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
