//! Explains a decision in a paragraph to the developer of the call: the client and the request, the
//! decision by policy, grant and budget, and the necessary change.
//!
//! Built from plain fields, so that evidence records, JSON lines and spans can be explained.

use std::fmt::Write as _;

use crate::awu::Awu;
use crate::decision::ReasonCode;

/// Known fields of a decision. `None` means not known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Explanation {
    /// Unit.
    pub awu: String,
    /// Time of the decision, in RFC 3339 format.
    pub when: Option<String>,
    /// The principal.
    pub principal: Option<String>,
    /// `genops.team`.
    pub team: Option<String>,
    /// `genops.project`.
    pub project: Option<String>,
    /// Pid of the process.
    pub pid: Option<u32>,
    /// Path of the executable.
    pub exe: Option<String>,
    /// Grants, the principal's own first.
    pub chain: Vec<String>,
    /// Human accountable for the principal.
    pub accountable: Option<String>,
    /// `gen_ai.operation.name`.
    pub operation: Option<String>,
    /// `gen_ai.provider.name`.
    pub provider: Option<String>,
    /// `gen_ai.request.model`.
    pub model: Option<String>,
    /// Region.
    pub region: Option<String>,
    /// `ALLOWED`, `BLOCKED`, `WARNING` or `RATE_LIMITED`.
    pub result: String,
    /// The reason code.
    pub code: Option<String>,
    /// Deciding policy, grant, budget or limit.
    pub policy: Option<String>,
    /// Reason, in words.
    pub reason: Option<String>,
    /// All matching policies.
    pub matched: Vec<String>,
    /// Budgets drawn on, each in words.
    pub budgets: Vec<String>,
    /// Amount reserved, in words.
    pub reserved: Option<String>,
    /// Request to approve.
    pub approval_request: Option<String>,
}

impl Explanation {
    /// Builds the explanation of a finished unit.
    #[must_use]
    pub fn of(awu: &Awu) -> Self {
        let decision = awu.outcome.decision();
        let who = &awu.attribution;
        let reservation = awu.outcome.reservation();
        let budget = reservation.and_then(|it| it.budget.as_ref());
        Self {
            awu: awu.id.to_string(),
            when: Some(crate::time::format_moment(awu.grounds.unix_ns)),
            principal: Some(who.principal.clone()).filter(|it| !it.is_empty()),
            team: who.team.clone(),
            project: who.project.clone(),
            pid: awu.pid,
            exe: awu.exe.clone(),
            chain: who.chain.clone(),
            accountable: who.accountable.clone(),
            operation: awu.call.operation.clone(),
            provider: awu.call.provider.clone(),
            model: awu.call.request_model.clone(),
            region: awu.region.clone(),
            result: decision.result().as_str().to_owned(),
            code: decision.reason().map(|it| it.as_str().to_owned()),
            policy: awu.grounds.policy.clone(),
            reason: awu.grounds.reason.clone(),
            matched: awu.grounds.matched.clone(),
            budgets: budget
                .map(|it| {
                    let left = it.unit.in_words(it.remaining);
                    format!("`{}` ({}), which has {left} left", it.name, it.period)
                })
                .into_iter()
                .collect(),
            reserved: reservation.map(|it| it.unit.in_words(it.amount)),
            approval_request: awu.grounds.approval_request.clone(),
        }
    }

    /// Returns the paragraph.
    #[must_use]
    pub fn paragraph(&self) -> String {
        let mut text = self.who();
        let _infallible = write!(text, " {}", self.what());
        text.push_str(&self.decided());
        let mend = self.mend();
        if !mend.is_empty() {
            let _infallible = write!(text, " {mend}");
        }
        text
    }

    fn who(&self) -> String {
        let mut text = match &self.when {
            Some(when) => format!("At {when} "),
            None => String::new(),
        };
        let principal = self.principal.as_deref().unwrap_or("an unidentified process");
        let _infallible = write!(text, "`{principal}`");
        let about: Vec<String> = [
            self.team.as_ref().map(|it| format!("team {it}")),
            self.project.as_ref().map(|it| format!("project {it}")),
            self.exe.clone(),
            self.pid.map(|it| format!("pid {it}")),
        ]
        .into_iter()
        .flatten()
        .collect();
        if !about.is_empty() {
            let _infallible = write!(text, " ({})", about.join(", "));
        }
        if !self.chain.is_empty() {
            let _infallible = write!(text, ", acting under {}", self.chain.join(" under "));
        }
        if let Some(human) = &self.accountable {
            let _infallible = write!(text, ", for whom {human} answers");
        }
        if !self.chain.is_empty() || self.accountable.is_some() {
            text.push(',');
        }
        text
    }

    fn what(&self) -> String {
        let provider = self.provider.as_deref().unwrap_or("an AI provider");
        let model = self.model.as_deref().unwrap_or("a model that could not be read");
        let mut text = format!("asked {provider} for {model}");
        if let Some(operation) = &self.operation {
            let _infallible = write!(text, " ({operation})");
        }
        if let Some(region) = &self.region {
            let _infallible = write!(text, " in {region}");
        }
        text
    }

    fn decided(&self) -> String {
        let mut text = format!(". It was {}", self.result);
        if let Some(code) = &self.code {
            let _infallible = write!(text, " with {code}");
        }
        if let Some(policy) = &self.policy {
            let _infallible = write!(text, " by `{policy}`");
        }
        if let Some(reason) = &self.reason {
            let _infallible = write!(text, ": {reason}");
        }
        text.push('.');
        let others = self.matched.iter().filter(|it| Some(*it) != self.policy.as_ref());
        let others: Vec<String> = others.map(|it| format!("`{it}`")).collect();
        if !others.is_empty() {
            let _infallible = write!(text, " {} matched too.", others.join(", "));
        }
        if let Some(reserved) = &self.reserved {
            let _infallible = write!(text, " {reserved} were set aside for it");
            if !self.budgets.is_empty() {
                let _infallible = write!(text, " from {}", self.budgets.join(" and "));
            }
            text.push('.');
        }
        text
    }

    /// Returns the change needed for a similar request to run, in a sentence or two. Empty if no
    /// reason code says more than the verdict.
    #[must_use]
    pub fn mend(&self) -> String {
        let Some(code) = self.code.as_deref().and_then(ReasonCode::parse) else {
            return String::new();
        };
        let by = self.policy.as_deref().unwrap_or("the configuration");
        let mut text = remedy(&code, by, self.approval_request.as_deref());
        let said = self.reason.as_deref().unwrap_or_default();
        if code != ReasonCode::PRICE_UNKNOWN && said.contains("x_price_unknown") {
            let _infallible = write!(text, " {NO_PRICE}");
        }
        text
    }
}

/// Advice for a model newer than the prices.
const NO_PRICE: &str = "No price is known for its model, so that of others was taken: renew \
                        `prices.file`, or give the model a price under `prices.overrides`; \
                        `genops-agent prices show MODEL` says what is known.";

/// Returns the change needed to remove a reason.
fn remedy(code: &ReasonCode, by: &str, request: Option<&str>) -> String {
    match code {
        ReasonCode::BudgetExceeded | ReasonCode::BudgetReservationFailed => format!(
            "To run, it needs a smaller worst case (a lower limit on output tokens, a shorter \
             prompt, a cheaper model), the next period, or more in `{by}`."
        ),
        ReasonCode::PolicyDenyModel => {
            format!("To run, ask for a model and provider that `{by}` permits, or have it changed.")
        }
        ReasonCode::PolicyDenyRegion => format!(
            "To run, use an endpoint in a region that `{by}` permits; where the region of a host \
             is not known, name it under `providers`."
        ),
        ReasonCode::PolicyDenyContent => {
            format!("To run, leave out the text that `{by}` forbids; evidence does not hold it.")
        }
        ReasonCode::RateLimited => format!("To run, wait; or have `{by}` raised."),
        ReasonCode::SlaLatencyViolation => {
            "Nothing was refused: earlier calls took longer than their target.".to_owned()
        }
        ReasonCode::ProviderErrorUpstream => {
            "Nothing was refused: the provider failed shortly before.".to_owned()
        }
        ReasonCode::AccountingInvariantViolation => {
            "To run, the evidence and the accounts must be writable again.".to_owned()
        }
        ReasonCode::Extension(_) => extension_remedy(code, by, request),
    }
}

fn extension_remedy(code: &ReasonCode, by: &str, request: Option<&str>) -> String {
    let known = [
        (
            ReasonCode::IDENTITY_UNRESOLVED,
            "To run, the process must be one that can be identified.",
        ),
        (ReasonCode::UNMAPPED_PRINCIPAL, "Add it to `principals` to give it a name and a team."),
        (
            ReasonCode::NO_AUTHORITY,
            "To run, a grant of its principal must cover it; with `default_deny` a policy may permit it \
             instead.",
        ),
        (ReasonCode::AUTHORITY_EXPIRED, "To run, the grant must be renewed."),
        (ReasonCode::AUTHORITY_REVOKED, "To run, the grant must be given again."),
        (ReasonCode::DELEGATION_EXCEEDED, "To run, stay within the grant, or have it widened."),
        (ReasonCode::POLICY_ERROR, "To run, the policy must be mended: an error never permits."),
        (ReasonCode::CONCURRENCY_EXCEEDED, "To run, wait until another call has ended."),
        (ReasonCode::PRICE_UNKNOWN, NO_PRICE),
        (ReasonCode::BUDGET_THRESHOLD, "Nothing was refused: most of the budget is used."),
        (ReasonCode::DECISION_TIMEOUT, "Try again; the decision came too late."),
        (ReasonCode::CONNECTION_DENIED, "Try again on a new connection."),
        (
            ReasonCode::TOO_MANY_REFUSALS,
            "Stop asking for what is refused, and try again a second later.",
        ),
        (ReasonCode::NOT_PREVENTED, "Expect the next one to be refused."),
    ];
    if *code == ReasonCode::APPROVAL_REQUIRED {
        let request = request.unwrap_or("the unit");
        return format!(
            "To run, somebody outside of its chain must approve `{request}` and the same request \
             must be sent again within the approval's time."
        );
    }
    let found = known.into_iter().find(|(it, _)| it == code);
    found.map_or_else(
        || format!("To run, it must no longer match `{by}`."),
        |(_, text)| text.to_owned(),
    )
}
