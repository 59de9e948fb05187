//! Decisions and reasons (spec §4 and §5). Combinations forbidden by the specification cannot be
//! expressed: a reason is present exactly if required.

use std::fmt;

/// Reason for a result other than `ALLOWED` (spec §5.2).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ReasonCode {
    /// Nothing is left of a budget, or a request would cost more than the maximum for a request.
    BudgetExceeded,
    /// Some amount is left, but less than the maximum cost of the request.
    BudgetReservationFailed,
    /// The principal may not use the model or the provider.
    PolicyDenyModel,
    /// The principal may not use the region.
    PolicyDenyRegion,
    /// The principal may not send the text to the model.
    PolicyDenyContent,
    /// Too many requests.
    RateLimited,
    /// A latency target was missed.
    SlaLatencyViolation,
    /// The provider failed before.
    ProviderErrorUpstream,
    /// The accounts could not be kept.
    AccountingInvariantViolation,
    /// An extension: `x_` and lower-case alphanumerics or underscores.
    Extension(Extension),
}

/// Name of an extension code; only names permitted by the specification can be built.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Extension(std::borrow::Cow<'static, str>);

macro_rules! extensions {
    ($($(#[$doc:meta])* $name:ident = $text:literal;)*) => {
        impl ReasonCode { $($(#[$doc])* pub const $name: Self = Self::Extension(Extension(std::borrow::Cow::Borrowed($text)));)* }
    };
}

extensions! {
    /// Nothing is known of the client.
    IDENTITY_UNRESOLVED = "x_identity_unresolved";
    /// No configured principal matches the process.
    UNMAPPED_PRINCIPAL = "x_unmapped_principal";
    /// No grant or no policy permits the request.
    NO_AUTHORITY = "x_no_authority";
    /// A grant of the chain has expired or is not yet valid.
    AUTHORITY_EXPIRED = "x_authority_expired";
    /// A grant of the chain was revoked.
    AUTHORITY_REVOKED = "x_authority_revoked";
    /// The request exceeds a grant of the chain, or the chain is too long.
    DELEGATION_EXCEEDED = "x_delegation_exceeded";
    /// A policy could not be evaluated.
    POLICY_ERROR = "x_policy_error";
    /// A human must approve first.
    APPROVAL_REQUIRED = "x_approval_required";
    /// Too many requests at the same time.
    CONCURRENCY_EXCEEDED = "x_concurrency_exceeded";
    /// No price is known for the model.
    PRICE_UNKNOWN = "x_price_unknown";
    /// Most of a budget is used.
    BUDGET_THRESHOLD = "x_budget_threshold";
    /// No decision came in time, and the configuration refuses in the case of a timeout.
    DECISION_TIMEOUT = "x_decision_timeout";
    /// A connection to a provider without a plaintext reader.
    UNINSPECTABLE = "x_uninspectable";
    /// The names in a request belong to two providers.
    PROVIDERS_DIFFER = "x_providers_differ";
    /// The request was refused, and nothing shows that the refusal kept the request back.
    NOT_PREVENTED = "x_not_prevented";
    /// Another request on the same connection was refused, and nothing more of it may leave.
    CONNECTION_DENIED = "x_connection_denied";
    /// More refusals of the user in a second than permitted: the kernel refused a connect to the
    /// provider.
    TOO_MANY_REFUSALS = "x_too_many_refusals";
}

impl ReasonCode {
    /// Codes of the specification, in the specification's order.
    pub const STANDARD: [(&'static str, Self); 9] = [
        ("BUDGET_EXCEEDED", Self::BudgetExceeded),
        ("BUDGET_RESERVATION_FAILED", Self::BudgetReservationFailed),
        ("POLICY_DENY_MODEL", Self::PolicyDenyModel),
        ("POLICY_DENY_REGION", Self::PolicyDenyRegion),
        ("POLICY_DENY_CONTENT", Self::PolicyDenyContent),
        ("RATE_LIMITED", Self::RateLimited),
        ("SLA_LATENCY_VIOLATION", Self::SlaLatencyViolation),
        ("PROVIDER_ERROR_UPSTREAM", Self::ProviderErrorUpstream),
        ("ACCOUNTING_INVARIANT_VIOLATION", Self::AccountingInvariantViolation),
    ];

    /// Parses a code; `None` if the specification has no code of the name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if let Some((_, code)) = Self::STANDARD.iter().find(|(name, _)| *name == text) {
            return Some(code.clone());
        }
        let rest = text.strip_prefix("x_")?;
        let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        let extension = !rest.is_empty() && rest.bytes().all(fits);
        extension.then(|| Self::Extension(Extension(text.to_owned().into())))
    }

    /// Returns the code as spelled in telemetry.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::BudgetExceeded => "BUDGET_EXCEEDED",
            Self::BudgetReservationFailed => "BUDGET_RESERVATION_FAILED",
            Self::PolicyDenyModel => "POLICY_DENY_MODEL",
            Self::PolicyDenyRegion => "POLICY_DENY_REGION",
            Self::PolicyDenyContent => "POLICY_DENY_CONTENT",
            Self::RateLimited => "RATE_LIMITED",
            Self::SlaLatencyViolation => "SLA_LATENCY_VIOLATION",
            Self::ProviderErrorUpstream => "PROVIDER_ERROR_UPSTREAM",
            Self::AccountingInvariantViolation => "ACCOUNTING_INVARIANT_VIOLATION",
            Self::Extension(Extension(name)) => name,
        }
    }
}

impl fmt::Display for ReasonCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The four results of spec §4.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PolicyResult {
    /// May run.
    Allowed,
    /// Must not run.
    Blocked,
    /// May run, with a warning for a human to look at.
    Warning,
    /// Must not run now.
    RateLimited,
}

impl PolicyResult {
    /// Returns the result as spelled in telemetry.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "ALLOWED",
            Self::Blocked => "BLOCKED",
            Self::Warning => "WARNING",
            Self::RateLimited => "RATE_LIMITED",
        }
    }
}

/// A permission: the unit of work runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Permission {
    /// Without a warning.
    Allow,
    /// With a warning.
    Warn(ReasonCode),
}

/// A refusal: the unit of work does not run. A reason is always present.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// By policy, authority or budget.
    Block(ReasonCode),
    /// By rate or concurrency.
    LimitRate(ReasonCode),
}

impl Refusal {
    /// Returns the reason.
    #[must_use]
    pub fn reason(&self) -> &ReasonCode {
        match self {
            Self::Block(code) | Self::LimitRate(code) => code,
        }
    }
}

/// A finished evaluation. A reason is present exactly if the specification demands a reason (§5.3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The unit may run.
    Permit(Permission),
    /// The unit must not run.
    Refuse(Refusal),
}

impl Decision {
    /// Returns the result as named in telemetry.
    #[must_use]
    pub fn result(&self) -> PolicyResult {
        match self {
            Self::Permit(Permission::Allow) => PolicyResult::Allowed,
            Self::Permit(Permission::Warn(_)) => PolicyResult::Warning,
            Self::Refuse(Refusal::Block(_)) => PolicyResult::Blocked,
            Self::Refuse(Refusal::LimitRate(_)) => PolicyResult::RateLimited,
        }
    }

    /// Returns the reason, unless allowed.
    #[must_use]
    pub fn reason(&self) -> Option<&ReasonCode> {
        match self {
            Self::Permit(Permission::Allow) => None,
            Self::Permit(Permission::Warn(code)) => Some(code),
            Self::Refuse(refusal) => Some(refusal.reason()),
        }
    }
}
