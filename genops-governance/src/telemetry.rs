//! Attribute names and event schemas as data (spec §7 and §8, and the semantic conventions for
//! generative AI).
//!
//! The JSON line and the span both iterate over the output of [`Awu::attributes`] and
//! [`Awu::events`]. Unknown values are absent.

use genops_protocols::{Call, RequestParams, Usage};

use crate::awu::{Attribution, Awu, BudgetView, CaptureLevel, Mechanism, Network, Outcome};
use crate::hex::hex;

/// The specification's version, on every unit.
pub const SPEC_VERSION: &str = "0.1.0";

/// An attribute's value, with its OpenTelemetry type.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A string.
    Str(String),
    /// An integer.
    Int(i64),
    /// A double.
    Double(f64),
    /// A truth value.
    Bool(bool),
    /// A list of strings.
    StrList(Vec<String>),
}

/// An attribute.
pub type Attribute = (&'static str, Value);

/// Placeholder texts without a meaning (§9.1 #8).
const PLACEHOLDERS: [&str; 14] = [
    "unknown",
    "none",
    "null",
    "n/a",
    "na",
    "default",
    "undefined",
    "unset",
    "tbd",
    "todo",
    "-",
    "placeholder",
    "changeme",
    "nil",
];

/// Returns whether a text is neither empty nor a placeholder.
pub(crate) fn says_something(text: &str) -> bool {
    let plain = text.trim().to_lowercase();
    !plain.is_empty() && !PLACEHOLDERS.contains(&plain.as_str())
}

/// A span event.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Name of the event.
    pub name: &'static str,
    /// Time of the event, in nanoseconds since 1970.
    pub unix_ns: u64,
    /// Attributes of the event.
    pub attributes: Vec<Attribute>,
}

/// Attributes in the order of insertion, without absent values.
#[derive(Default)]
struct Attributes(Vec<Attribute>);

impl Attributes {
    fn text(&mut self, name: &'static str, value: impl Into<String>) {
        self.0.push((name, Value::Str(value.into())));
    }

    fn text_if(&mut self, name: &'static str, value: Option<&String>) {
        if let Some(value) = value.filter(|it| !it.is_empty()) {
            self.text(name, value);
        }
    }

    fn int(&mut self, name: &'static str, value: u64) {
        self.0.push((name, Value::Int(i64::try_from(value).unwrap_or(i64::MAX))));
    }

    fn int_if(&mut self, name: &'static str, value: Option<u64>) {
        if let Some(value) = value {
            self.int(name, value);
        }
    }

    fn double(&mut self, name: &'static str, value: f64) {
        self.0.push((name, Value::Double(value)));
    }

    fn double_if(&mut self, name: &'static str, value: Option<f64>) {
        if let Some(value) = value.filter(|it| it.is_finite()) {
            self.double(name, value);
        }
    }

    /// Inserts a flag only if the value is true.
    fn flag(&mut self, name: &'static str, value: bool) {
        if value {
            self.0.push((name, Value::Bool(true)));
        }
    }

    fn list(&mut self, name: &'static str, value: &[String]) {
        if !value.is_empty() {
            self.0.push((name, Value::StrList(value.to_vec())));
        }
    }
}

impl Awu {
    /// Returns the name of the span: `{operation} {model}`.
    #[must_use]
    pub fn name(&self) -> String {
        let operation = self.call.operation.as_deref().unwrap_or("inference");
        match &self.call.request_model {
            Some(model) => format!("{operation} {model}"),
            None => operation.to_owned(),
        }
    }

    /// Returns whether the span's status is an error: the provider or the connection failed, or the
    /// unit was refused.
    #[must_use]
    pub fn is_error(&self) -> bool {
        self.error_type().is_some()
    }

    /// Returns `full` if decision and reservation came before execution, or else `partial` (spec
    /// §9).
    #[must_use]
    pub fn compliance(&self) -> &'static str {
        let Attribution { mapped, team, project, environment, .. } = &*self.attribution;
        // Attribution derived from a program's name is a guess.
        let attributed = *mapped && team.is_some() && project.is_some() && environment.is_some();
        let before = self.enforcement.before_execution();
        // No amount was really reserved for an exchange without plaintext.
        let blind = self.capture == CaptureLevel::Metadata && self.outcome.reservation().is_some();
        if attributed && before && !blind { "full" } else { "partial" }
    }

    fn error_type(&self) -> Option<String> {
        let known = self.call.error_type.clone();
        match &self.outcome {
            Outcome::Refused(refusal) => Some(refusal.reason().as_str().to_owned()),
            Outcome::NotExecuted(_, _) => known.or_else(|| Some("connection_closed".to_owned())),
            Outcome::Executed(_, _, _)
                if self.response_complete || self.capture == CaptureLevel::Metadata =>
            {
                known
            }
            Outcome::Executed(_, _, _) => known.or_else(|| Some("connection_closed".to_owned())),
        }
    }

    /// Returns all attributes, in a fixed order, each name once.
    #[must_use]
    pub fn attributes(&self) -> Vec<Attribute> {
        let mut out = Attributes::default();
        out.text("conn", &self.conn);
        out.int("exchange", self.call.exchange);
        out.int("time_ns", self.call.request_at_ns);
        transport(&self.call, &mut out);
        network(&self.network, &mut out);
        request(&self.call, &mut out);
        response(&self.call, &mut out);
        out.text_if("error.type", self.error_type().as_ref());
        out.int_if("process.pid", self.pid.map(u64::from));
        out.text_if("process.executable.path", self.exe.as_ref());
        self.attribution_attributes(&mut out);
        self.decision_attributes(&mut out);
        self.accounting_attributes(&mut out);
        self.usage_attributes(&mut out);
        self.sla_attributes(&mut out);
        self.enforcement_attributes(&mut out);
        out.0
    }

    fn attribution_attributes(&self, out: &mut Attributes) {
        let Attribution {
            principal,
            mapped: _,
            team,
            project,
            environment,
            cost_center,
            customer_id,
            feature,
            session_id,
            said,
            chain,
            accountable,
        } = &*self.attribution;
        out.text("genops.spec.version", SPEC_VERSION);
        out.text("genops.awu.id", self.id.to_string());
        out.text_if("genops.team", team.as_ref());
        out.text_if("genops.project", project.as_ref());
        out.text_if("genops.environment", environment.as_ref());
        out.text_if("genops.cost_center", cost_center.as_ref());
        out.text_if("genops.customer_id", customer_id.as_ref());
        out.text_if("genops.feature", feature.as_ref());
        out.text_if("genops.session_id", session_id.as_ref());
        if !said.is_empty() {
            out.text("genops.attribution.source", "client");
        }
        out.list("genops.attribution.fields", said);
        out.text_if("genops.principal", Some(principal));
        out.list("genops.delegation.chain", chain);
        out.text_if("genops.delegation.accountable", accountable.as_ref());
        out.text("genops.operation.name", self.name());
        out.text("genops.operation.type", operation_type(&self.call));
        out.text_if("genops.region", self.region.as_ref());
    }

    fn decision_attributes(&self, out: &mut Attributes) {
        let decision = self.outcome.decision();
        let grounds = &self.grounds;
        out.text("genops.policy.result", decision.result().as_str());
        if let Some(code) = decision.reason() {
            out.text("genops.policy.reason_code", code.as_str());
        }
        out.text_if("genops.policy.name", grounds.policy.as_ref());
        out.text_if("genops.policy.reason", grounds.reason.as_ref());
        out.list("genops.policy.matched", &grounds.matched);
        out.int("genops.policy.timestamp", grounds.unix_ns / 1_000_000);
        out.text("genops.policy.hash", hex(&grounds.policy_hash));
        out.text_if("genops.approval.request", grounds.approval_request.as_ref());
        out.text_if("genops.approval.id", grounds.approval.as_ref());
    }

    fn accounting_attributes(&self, out: &mut Attributes) {
        let Some(reservation) = self.outcome.reservation() else { return };
        let unit = reservation.unit;
        out.double("genops.accounting.reserved", unit.to_double(reservation.amount));
        out.text("genops.accounting.unit", unit.as_str());
        if let Some(actual) = self.outcome.actual() {
            out.double("genops.accounting.actual", unit.to_double(actual.amount));
            let delta = actual.amount.saturating_sub(reservation.amount);
            out.double("genops.accounting.reconciliation_delta", unit.to_double(delta));
            out.flag("genops.accounting.incomplete", actual.incomplete);
            out.text("genops.accounting.basis", actual.basis.as_str());
        }
        let released = matches!(self.outcome, Outcome::NotExecuted(_, _));
        out.flag("genops.accounting.released", released);
        out.text("genops.accounting.price_hash", hex(&self.grounds.price_hash));
        out.flag("genops.accounting.price_assumed", self.grounds.price_assumed);
        if let Some(budget) = &reservation.budget {
            budget_attributes(budget, out);
        }
        out.list("genops.budget.others", &names(&reservation.others));
    }

    fn usage_attributes(&self, out: &mut Attributes) {
        let Usage { input_tokens, output_tokens, .. } = self.call.usage;
        if let Some(cost) = self.cost_nano_usd {
            out.double("genops.cost.total", crate::money::to_usd(cost));
            out.text("genops.cost.currency", "USD");
            out.text_if("genops.cost.provider", self.call.provider.as_ref());
            let model = self.call.response_model.as_ref().or(self.call.request_model.as_ref());
            out.text_if("genops.cost.model", model);
        }
        out.int_if("genops.tokens.input", input_tokens);
        out.int_if("genops.tokens.output", output_tokens);
        let both = input_tokens.zip(output_tokens).map(|(a, b)| a.saturating_add(b));
        out.int_if("genops.tokens.total", both);
        let seconds = self.compute_ns.map(crate::money::to_usd);
        out.double_if("genops.usage.compute_seconds", seconds);
        out.list("genops.tool_calls", &self.call.tool_calls);
    }

    fn sla_attributes(&self, out: &mut Attributes) {
        let Some(sla) = &self.sla else { return };
        out.text("genops.sla.tier", &sla.tier);
        out.int("genops.sla.latency_target_ms", sla.target_ms);
        out.int("genops.sla.actual_latency_ms", sla.actual_ms);
        let met = sla.actual_ms <= sla.target_ms;
        out.0.push(("genops.sla.met", Value::Bool(met)));
    }

    fn enforcement_attributes(&self, out: &mut Attributes) {
        let enforcement = &self.enforcement;
        out.text("genops.mode", enforcement.mode.name());
        out.text("genops.compliance", self.compliance());
        out.text("genops.capture.level", self.capture.as_str());
        out.text_if("genops.capture.reason", self.capture_reason.map(str::to_owned).as_ref());
        if self.call.missing_bytes > 0 {
            out.int("genops.capture.missing_bytes", self.call.missing_bytes);
        }
        out.text("genops.enforcement.mechanism", enforcement.mechanism.as_str());
        let held = enforcement.mechanism != Mechanism::None;
        if held && enforcement.bytes_before_decision > 0 {
            let bytes = enforcement.bytes_before_decision;
            out.int("genops.enforcement.bytes_before_decision", bytes);
        }
        out.flag("genops.enforcement.timed_out", enforcement.timed_out);
        if enforcement.collateral > 0 {
            out.int("genops.enforcement.collateral", enforcement.collateral);
        }
        if let Some(signal) = self.signal() {
            out.text("genops.enforcement.signal", signal.as_str());
        }
    }

    /// Returns the span's events, in the order of time (spec §8).
    #[must_use]
    pub fn events(&self) -> Vec<Event> {
        let mut events = vec![self.evaluated()];
        if let Some(reservation) = self.outcome.reservation() {
            let mut out = Attributes::default();
            let unit = reservation.unit;
            out.double("genops.accounting.reserved", unit.to_double(reservation.amount));
            out.text("genops.accounting.unit", unit.as_str());
            if let Some(budget) = &reservation.budget {
                out.text("genops.budget.name", &budget.name);
                let remaining = budget.unit.to_double(budget.remaining);
                out.double("genops.budget.remaining", remaining);
            }
            out.list("genops.budget.others", &names(&reservation.others));
            let (name, unix_ns) = ("genops.budget.reservation", reservation.unix_ns);
            events.push(Event { name, unix_ns, attributes: out.0 });
        }
        events.extend(self.alerts());
        events.extend(self.reconciled());
        events.extend(self.cost_calculated());
        events
    }

    fn evaluated(&self) -> Event {
        let mut out = Attributes::default();
        let decision = self.outcome.decision();
        out.text("genops.policy.result", decision.result().as_str());
        if let Some(code) = decision.reason() {
            out.text("genops.policy.reason_code", code.as_str());
        }
        out.text_if("genops.policy.name", self.grounds.policy.as_ref());
        out.text_if("genops.policy.reason", self.grounds.reason.as_ref());
        let (name, unix_ns) = ("genops.policy.evaluated", self.grounds.unix_ns);
        Event { name, unix_ns, attributes: out.0 }
    }

    fn reconciled(&self) -> Option<Event> {
        let (reservation, actual) = (self.outcome.reservation()?, self.outcome.actual()?);
        let mut out = Attributes::default();
        let unit = reservation.unit;
        out.double("genops.accounting.actual", unit.to_double(actual.amount));
        out.double("genops.accounting.reserved", unit.to_double(reservation.amount));
        out.text("genops.accounting.unit", unit.as_str());
        let delta = actual.amount.saturating_sub(reservation.amount);
        out.double("genops.accounting.reconciliation_delta", unit.to_double(delta));
        out.flag("genops.accounting.incomplete", actual.incomplete);
        out.text("genops.accounting.basis", actual.basis.as_str());
        out.text_if("genops.budget.name", reservation.budget.as_ref().map(|it| &it.name));
        let (name, unix_ns) = ("genops.budget.reconciliation", actual.unix_ns);
        Some(Event { name, unix_ns, attributes: out.0 })
    }

    fn alerts(&self) -> impl Iterator<Item = Event> {
        self.grounds.alerts.iter().map(|budget| {
            let mut out = Attributes::default();
            budget_attributes(budget, &mut out);
            let (name, unix_ns) = ("genops.budget.alert", self.grounds.unix_ns);
            Event { name, unix_ns, attributes: out.0 }
        })
    }

    fn cost_calculated(&self) -> Option<Event> {
        let (cost, actual) = (self.cost_nano_usd?, self.outcome.actual()?);
        let mut out = Attributes::default();
        out.double("genops.cost.total", crate::money::to_usd(cost));
        out.text("genops.cost.currency", "USD");
        let (name, unix_ns) = ("genops.cost.calculated", actual.unix_ns);
        Some(Event { name, unix_ns, attributes: out.0 })
    }
}

/// Adds a budget, with amounts in the budget's own unit.
fn budget_attributes(budget: &BudgetView, out: &mut Attributes) {
    let BudgetView { name, period, unit, allocated, consumed, reserved, remaining } = budget;
    out.text("genops.budget.name", name);
    out.text("genops.budget.period", period);
    out.text("genops.budget.unit", unit.as_str());
    for (name, amount) in [
        ("genops.budget.allocated", allocated),
        ("genops.budget.consumed", consumed),
        ("genops.budget.reserved", reserved),
        ("genops.budget.remaining", remaining),
    ] {
        out.double(name, unit.to_double(*amount));
    }
}

fn names(budgets: &[BudgetView]) -> Vec<String> {
    budgets.iter().map(|it| it.name.clone()).collect()
}

/// Returns `genops.operation.type` of a call.
pub(crate) fn operation_type(call: &Call) -> &'static str {
    match call.operation.as_deref() {
        Some("embeddings") => "embedding",
        Some("batch") => "batch",
        Some("fine_tune") => "fine_tune",
        Some("image_generation") => "image",
        Some("video_generation") => "video",
        Some("text_to_speech" | "audio_transcription" | "audio_translation") => "audio",
        Some("rerank") => "rerank",
        Some("moderation") => "moderation",
        _ => "inference",
    }
}

/// Returns whether the operation answers with counted tokens.
pub(crate) fn has_output(call: &Call) -> bool {
    !matches!(call.operation.as_deref(), Some("embeddings" | "rerank" | "moderation"))
}

/// Adds both ends of the connection (semantic conventions for networks), and the bytes carried if
/// no exchange was read.
fn network(network: &Network, out: &mut Attributes) {
    let Network { local, remote, sent_bytes, received_bytes } = network;
    if let Some(remote) = remote {
        out.text("network.peer.address", remote.ip().to_string());
        out.int("network.peer.port", remote.port().into());
    }
    if let Some(local) = local {
        out.text("network.local.address", local.ip().to_string());
        out.int("network.local.port", local.port().into());
    }
    out.int_if("genops.network.sent_bytes", *sent_bytes);
    out.int_if("genops.network.received_bytes", *received_bytes);
}

fn transport(call: &Call, out: &mut Attributes) {
    out.text_if("server.address", call.server_address.as_ref());
    out.int_if("server.port", call.server_port.map(u64::from));
    out.text_if("http.request.method", call.method.as_ref());
    out.text_if("url.path", call.path.as_ref());
    out.int_if("http.response.status_code", call.status.map(u64::from));
}

fn request(call: &Call, out: &mut Attributes) {
    out.text_if("gen_ai.provider.name", call.provider.as_ref());
    out.text_if("gen_ai.operation.name", call.operation.as_ref());
    out.text_if("gen_ai.request.model", call.request_model.as_ref());
    out.flag("gen_ai.request.stream", call.stream);
    out.int_if("gen_ai.request.max_tokens", call.max_output_tokens);
    out.int_if("gen_ai.request.choice.count", call.choices.filter(|it| *it != 1));
    let RequestParams {
        temperature,
        top_p,
        top_k,
        frequency_penalty,
        presence_penalty,
        seed,
        stop_sequences,
        reasoning_level,
        dimensions,
        encoding_formats,
        previous_response_id,
        output_type,
        service_tier,
        ..
    } = &call.params;
    out.double_if("gen_ai.request.temperature", *temperature);
    out.double_if("gen_ai.request.top_p", *top_p);
    out.int_if("gen_ai.request.top_k", *top_k);
    out.double_if("gen_ai.request.frequency_penalty", *frequency_penalty);
    out.double_if("gen_ai.request.presence_penalty", *presence_penalty);
    if let Some(seed) = seed {
        out.0.push(("gen_ai.request.seed", Value::Int(*seed)));
    }
    out.list("gen_ai.request.stop_sequences", stop_sequences);
    out.text_if("gen_ai.request.reasoning.level", reasoning_level.as_ref());
    out.int_if("gen_ai.embeddings.dimension.count", *dimensions);
    out.list("gen_ai.request.encoding_formats", encoding_formats);
    out.text_if("gen_ai.request.previous_response.id", previous_response_id.as_ref());
    out.text_if("gen_ai.output.type", output_type.map(str::to_owned).as_ref());
    out.text_if("gen_ai.conversation.id", call.conversation_id.as_ref());
    out.text_if("openai.request.service_tier", service_tier.as_ref());
}

fn response(call: &Call, out: &mut Attributes) {
    out.text_if("gen_ai.response.model", call.response_model.as_ref());
    out.text_if("gen_ai.response.id", call.response_id.as_ref());
    out.list("gen_ai.response.finish_reasons", &call.finish_reasons);
    let first = call.first_chunk_at_ns.filter(|_| call.stream);
    if let Some(elapsed) = first.and_then(|at| at.checked_sub(call.request_at_ns)) {
        #[expect(clippy::cast_precision_loss, reason = "exact up to 104 days")]
        let seconds = elapsed as f64 / 1e9;
        out.double("gen_ai.response.time_to_first_chunk", seconds);
    }
    let usage = &call.usage;
    out.int_if("gen_ai.usage.input_tokens", usage.input_tokens);
    out.int_if("gen_ai.usage.output_tokens", usage.output_tokens);
    // Parts of input and output, if present.
    for (name, count) in [
        ("gen_ai.usage.cache_read.input_tokens", usage.cache_read_input_tokens),
        ("gen_ai.usage.cache_write.input_tokens", usage.cache_creation_input_tokens),
        ("gen_ai.usage.reasoning.output_tokens", usage.reasoning_output_tokens),
        ("gen_ai.usage.audio.input_tokens", usage.audio_input_tokens),
        ("gen_ai.usage.audio.output_tokens", usage.audio_output_tokens),
        ("gen_ai.usage.audio.cache_read.input_tokens", usage.audio_cache_read_input_tokens),
        ("gen_ai.usage.image.input_tokens", usage.image_input_tokens),
        ("gen_ai.usage.image.output_tokens", usage.image_output_tokens),
        ("gen_ai.usage.image.cache_read.input_tokens", usage.image_cache_read_input_tokens),
        ("genops.usage.video.input_tokens", usage.video_input_tokens),
        ("genops.usage.video.output_tokens", usage.video_output_tokens),
        ("genops.usage.citation_tokens", usage.citation_tokens),
        ("genops.usage.web_searches", usage.web_searches),
        ("genops.usage.file_searches", usage.file_searches),
        ("genops.usage.audio_input_ms", usage.audio_input_ms),
        ("genops.usage.pages", usage.pages),
    ] {
        out.int_if(name, count.filter(|it| *it > 0));
    }
    out.text_if("openai.response.service_tier", call.service_tier.as_ref());
    out.text_if("openai.response.system_fingerprint", call.system_fingerprint.as_ref());
}
