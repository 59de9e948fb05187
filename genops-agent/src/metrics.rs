//! The agent's own metrics: counters, gauges, two histograms, readiness.
//!
//! Every possible failure in the running loop has a counter with a cause here; counting neither
//! allocates nor locks. [`render`](Metrics::render) writes the Prometheus text format, [`listener`]
//! serves the text. Cost and content of AWUs are telemetry and go through
//! [`export`](crate::export), not here.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

pub(crate) mod listener;

/// A count from the start of the agent; never goes down.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    /// Adds 1.
    pub(crate) fn increment(&self) {
        self.add(1);
    }

    /// Adds `count`.
    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Relaxed);
    }

    /// Takes over a total counted elsewhere (in the kernel). Never goes down.
    pub(crate) fn observe_total(&self, total: u64) {
        self.0.fetch_max(total, Relaxed);
    }

    /// The count so far.
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A number that goes up and down.
#[derive(Debug, Default)]
pub(crate) struct Gauge(AtomicU64);

impl Gauge {
    /// Sets the present value.
    pub(crate) fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    /// Returns the present value.
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Distribution of durations, in buckets from 10 µs to 10 s.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    /// Observations in each bucket of [`Self::BOUNDS_US`], then those above all bounds.
    buckets: [AtomicU64; Self::BOUNDS_US.len() + 1],
    sum_ns: AtomicU64,
}

impl Histogram {
    /// Upper bounds, in microseconds.
    const BOUNDS_US: [u64; 16] = [
        10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000,
        1_000_000, 10_000_000,
    ];

    /// Adds a duration.
    pub(crate) fn observe(&self, took: Duration) {
        let took_ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let at = Self::BOUNDS_US.partition_point(|bound_us| bound_us * 1_000 < took_ns);
        if let Some(bucket) = self.buckets.get(at) {
            bucket.fetch_add(1, Relaxed);
        }
        self.sum_ns.fetch_add(took_ns, Relaxed);
    }

    fn render(&self, out: &mut String, name: &str, help: &str) {
        header(out, name, "histogram", help);
        let mut count = 0;
        for (bucket, bound_us) in self.buckets.iter().zip(Self::BOUNDS_US) {
            count += bucket.load(Relaxed);
            line(out, &format!("{name}_bucket{{le=\"{}\"}}", seconds(bound_us * 1_000)), count);
        }
        count += self.buckets.last().map_or(0, |bucket| bucket.load(Relaxed));
        line(out, &format!("{name}_bucket{{le=\"+Inf\"}}"), count);
        line(out, &format!("{name}_sum"), seconds(self.sum_ns.load(Relaxed)));
        line(out, &format!("{name}_count"), count);
    }
}

/// Nanoseconds as seconds in decimal, exactly.
fn seconds(ns: u64) -> String {
    let text = format!("{}.{:09}", ns / 1_000_000_000, ns % 1_000_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Declares [`Metrics`]: a family has a `HELP` line; its members are fields with their label.
macro_rules! metrics {
    ($($kind:ident $family:literal $help:literal {
        $($(#[$doc:meta])* $field:ident $(= $label:literal)?,)+
    })+) => {
        /// All counters and gauges, shared between the threads; each field is a separate atomic.
        #[derive(Debug, Default)]
        pub(crate) struct Metrics {
            $($($(#[$doc])* pub(crate) $field: $kind,)+)+
            /// Duration of holds on egress, from the kernel's hold to the release or the denial.
            pub(crate) hold: Histogram,
            /// Duration of commits until evidence is durable.
            pub(crate) evidence_commit: Histogram,
            /// Missing conditions of readiness.
            pub(crate) readiness: Readiness,
        }

        impl Metrics {
            fn render_numbers(&self, out: &mut String) {
                $(
                    header(out, $family, metrics!(@type $kind), $help);
                    $(line(out, concat!($family $(, "{", $label, "}")?), self.$field.get());)+
                )+
            }
        }
    };
    (@type Counter) => { "counter" };
    (@type Gauge) => { "gauge" };
}

metrics! {
    Counter "genops_agent_awus_total" "Finished AI Workload Units by policy result." {
        /// Let through without a reason code.
        awus_allowed = "result=\"ALLOWED\"",
        /// Let through, with a reason code.
        awus_warning = "result=\"WARNING\"",
        /// Stopped before a byte left.
        awus_blocked = "result=\"BLOCKED\"",
        /// Stopped because of a rate.
        awus_rate_limited = "result=\"RATE_LIMITED\"",
    }
    Counter "genops_agent_captured_bytes_total" "Plaintext bytes read from the kernel." {
        /// From clients.
        captured_egress_bytes = "direction=\"egress\"",
        /// From servers.
        captured_ingress_bytes = "direction=\"ingress\"",
    }
    Counter "genops_agent_socket_bytes_total" "Bytes that sockets to providers carried, by direction." {
        /// From clients.
        socket_egress_bytes = "direction=\"egress\"",
        /// From servers.
        socket_ingress_bytes = "direction=\"ingress\"",
    }
    Counter "genops_agent_unread_bytes_total"
        "Bytes that sockets to providers carried and that what was read can't account for, by direction." {
        /// From clients.
        unread_egress_bytes = "direction=\"egress\"",
        /// From servers.
        unread_ingress_bytes = "direction=\"ingress\"",
    }
    Counter "genops_agent_joins_total" "TLS connections to providers, by whether their socket was proved." {
        /// The socket is known.
        joins_proved = "outcome=\"proved\"",
        /// The socket never became known.
        joins_unknown = "outcome=\"unknown\"",
    }
    Counter "genops_agent_uninspectable_connections_total" "Connections to providers whose plaintext no probe reads." {
        /// Connections whose plaintext is not read.
        uninspectable_connections,
    }
    Counter "genops_agent_kernel_records_total" "Records read from the kernel's ring buffer." {
        /// Records read from the ring buffer.
        kernel_records,
    }
    Counter "genops_agent_forks_total" "Processes that were reported as started by one that was not decided yet." {
        /// Processes started by a process not decided yet.
        undecided_forks,
    }
    Counter "genops_agent_lost_total" "Things that were captured or finished and then lost, by cause." {
        /// Kernel: the ring buffer had no room.
        lost_ring_full = "cause=\"ring_full\"",
        /// Kernel: a program's memory could not be read.
        lost_unreadable = "cause=\"memory_unreadable\"",
        /// Kernel: a map had no room for the connection or call.
        lost_map_full = "cause=\"map_full\"",
        /// Kernel: a map had no room for the lineage of a process.
        lost_lineages = "cause=\"lineage_map_full\"",
        /// Kernel: a process or user had reached the connection quota.
        lost_over_quota = "cause=\"over_quota\"",
        /// A record of the ring buffer with an unexpected layout.
        lost_malformed = "cause=\"malformed_record\"",
        /// A connection beyond the limit.
        lost_connections = "cause=\"connection_limit\"",
        /// A span that found the export queue full.
        lost_export_queue_full = "cause=\"export_queue_full\"",
        /// A span refused by the collector, after all tries.
        lost_export_failed = "cause=\"export_failed\"",
        /// A line that found the output blocked.
        lost_print_queue_full = "cause=\"print_queue_full\"",
        /// A line for a `top` that reads too slowly.
        lost_top_queue_full = "cause=\"top_queue_full\"",
        /// A refusal missing from both `why` and the log.
        lost_refusal_queue_full = "cause=\"refusal_queue_full\"",
        /// An evidence record that could not be written.
        lost_evidence = "cause=\"evidence_unwritable\"",
    }
    Counter "genops_agent_message_limit_bytes_total"
        "Bytes of messages past the capture limit, not copied (usage figures are kept)." {
        /// Bytes of messages past the capture limit.
        over_message_limit_bytes,
    }
    Counter "genops_agent_exported_spans_total" "Spans that the OTLP collector took." {
        /// Spans accepted by the collector.
        exported_spans,
    }
    Counter "genops_agent_evidence_records_total" "Evidence records made durable." {
        /// Evidence records made durable.
        evidence_records,
    }
    Counter "genops_agent_evidence_shipped_objects_total" "Objects created in the copy of the evidence." {
        /// Objects created in the copy of the evidence.
        shipped_objects,
    }
    Counter "genops_agent_evidence_ship_failures_total" "Rounds of shipping evidence that failed." {
        /// Rounds of shipping evidence that failed.
        ship_failures,
    }
    Gauge "genops_agent_evidence_shipped_records" "Records below this index are whole in the copy of the evidence." {
        /// Records below this index are whole in the copy of the evidence.
        shipped_records,
    }
    Counter "genops_agent_holds_total" "Held requests by how the hold ended." {
        /// Released by a verdict.
        holds_released = "outcome=\"released\"",
        /// Denied by a verdict.
        holds_denied = "outcome=\"denied\"",
        /// Passed by the kernel's deadline.
        holds_timed_out_open = "outcome=\"timed_out_open\"",
        /// Refused by the kernel's deadline.
        holds_timed_out_closed = "outcome=\"timed_out_closed\"",
    }
    Counter "genops_agent_signals_total" "Signals for processes whose request a policy refused that asks for it." {
        /// Sent.
        signals_sent = "outcome=\"sent\"",
        /// Not permitted, or the process had ended.
        signals_failed = "outcome=\"failed\"",
    }
    Counter "genops_agent_collateral_exchanges_total"
        "Exchanges cut short because another one on their connection was denied." {
        /// Exchanges cut short because another exchange on the same connection was denied.
        collateral_exchanges,
    }
    Counter "genops_agent_policy_loads_total" "Configurations and policies loaded, by outcome." {
        /// Taken into use.
        policy_loads_accepted = "outcome=\"accepted\"",
        /// Refused; the previous configuration and policies stay in use.
        policy_loads_refused = "outcome=\"refused\"",
    }
    Counter "genops_agent_attach_failures_total" "Programs' files that no probe could be attached to." {
        /// Files with a failed attachment of probes.
        attach_failures,
    }
    Counter "genops_agent_scrapes_refused_total" "Requests to this listener refused: too many at once." {
        /// Requests to the listener refused.
        scrapes_refused,
    }
    Gauge "genops_agent_attached_files" "Files that carry probes." {
        /// Files that carry probes.
        attached_files,
    }
    Gauge "genops_agent_processes" "Processes known." {
        /// Processes known.
        processes,
    }
    Gauge "genops_agent_connections" "Connections tracked." {
        /// Connections tracked.
        connections,
    }
    Gauge "genops_agent_decoder_memory_bytes" "Memory held for decoding." {
        /// Memory held for decoding.
        decoder_memory_bytes,
    }
    Gauge "genops_agent_configuration_refused" "1 while what the configuration says now is refused, and the one before is in force." {
        /// 1 while the present configuration is refused.
        configuration_refused,
    }
    Gauge "genops_agent_enforcing" "1 where at least one principal is in enforce mode and egress can be held." {
        /// 1 if at least one principal is in enforce mode and egress can be held.
        enforcing,
    }
}

impl Metrics {
    /// Renders the Prometheus text format, version 0.0.4.
    pub(crate) fn render(&self) -> String {
        let mut out = String::with_capacity(8 << 10);
        header(&mut out, "genops_agent_build_info", "gauge", "The agent's version.");
        let version = env!("CARGO_PKG_VERSION");
        line(&mut out, &format!("genops_agent_build_info{{version=\"{version}\"}}"), 1);
        header(&mut out, "genops_agent_ready", "gauge", "1 once /readyz says 200.");
        line(&mut out, "genops_agent_ready", u8::from(self.readiness.missing().is_none()));
        self.render_numbers(&mut out);
        self.hold.render(
            &mut out,
            "genops_agent_hold_duration_seconds",
            "How long egress was held for a verdict.",
        );
        self.evidence_commit.render(
            &mut out,
            "genops_agent_evidence_commit_duration_seconds",
            "How long evidence took to become durable.",
        );
        render_process(&mut out);
        out
    }
}

/// Renders the agent's own memory and processor time, if `/proc` is readable.
fn render_process(out: &mut String) {
    let Ok(stat) = procfs::process::Process::myself().and_then(|me| me.stat()) else { return };
    let name = "process_resident_memory_bytes";
    header(out, name, "gauge", "Resident memory of the agent.");
    line(out, name, stat.rss * procfs::page_size());
    let name = "process_cpu_seconds_total";
    header(out, name, "counter", "Processor time of the agent.");
    let ticks = u128::from(stat.utime) + u128::from(stat.stime);
    let ns = ticks * 1_000_000_000 / u128::from(procfs::ticks_per_second().max(1));
    line(out, name, seconds(u64::try_from(ns).unwrap_or(u64::MAX)));
}

fn header(out: &mut String, name: &str, kind: &str, help: &str) {
    push(out, format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
}

fn line(out: &mut String, series: &str, value: impl std::fmt::Display) {
    push(out, format_args!("{series} {value}\n"));
}

fn push(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("writing to a string does not fail");
}

/// Missing conditions of readiness, and remarks.
#[derive(Debug)]
pub(crate) struct Readiness {
    missing: Mutex<BTreeMap<Part, String>>,
    remarks: Mutex<BTreeMap<Remark, String>>,
}

/// Subject of a remark shown by a ready agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Remark {
    /// The agent runs on an earlier configuration.
    Configuration,
    /// Enforcement missing while no agent runs.
    Absence,
}

/// A condition of readiness.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    /// Every probe for the programs running at the start is attached.
    Probes,
    /// Configuration and policies are loaded.
    Policy,
    /// The evidence log is open for writing.
    Evidence,
}

impl Default for Readiness {
    /// Waits for the probes and the policy.
    fn default() -> Self {
        let starting = || "not loaded yet".to_owned();
        let probes = (Part::Probes, "not attached yet".to_owned());
        let missing = Mutex::new(BTreeMap::from([probes, (Part::Policy, starting())]));
        Self { missing, remarks: Mutex::default() }
    }
}

impl Readiness {
    /// Marks `part` as fulfilled.
    pub(crate) fn reached(&self, part: Part) {
        self.missing.lock().unwrap_or_else(PoisonError::into_inner).remove(&part);
    }

    /// Marks `part` as missing, with the reason.
    pub(crate) fn waits(&self, part: Part, because: impl Into<String>) {
        self.missing.lock().unwrap_or_else(PoisonError::into_inner).insert(part, because.into());
    }

    /// Sets a remark, shown also by a ready agent; `None` removes the remark.
    pub(crate) fn remark(&self, remark: Remark, text: Option<String>) {
        let mut remarks = self.remarks.lock().unwrap_or_else(PoisonError::into_inner);
        match text {
            Some(text) => remarks.insert(remark, text),
            None => remarks.remove(&remark),
        };
    }

    /// Returns the remarks, a sentence each.
    pub(crate) fn remarks(&self) -> Vec<String> {
        self.remarks.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Returns the missing parts as a sentence; `None` when ready.
    pub(crate) fn missing(&self) -> Option<String> {
        let parts = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        let reasons: Vec<String> = parts
            .iter()
            .map(|(part, because)| match part {
                Part::Probes => format!("probes: {because}"),
                Part::Policy => format!("policy: {because}"),
                Part::Evidence => format!("evidence: {because}"),
            })
            .collect();
        (!reasons.is_empty()).then(|| reasons.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn every_family_has_a_help_a_type_and_a_unique_name() {
        let text = Metrics::default().render();
        let mut families = Vec::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                families.push(rest.split(' ').next().unwrap_or_default());
            } else if !line.starts_with('#') {
                let family = families.last().copied().unwrap_or_default();
                assert!(line.starts_with(family), "`{line}` is not under its family");
                let value = line.rsplit(' ').next().unwrap_or_default();
                assert!(value.parse::<f64>().is_ok(), "`{line}` has no number");
            }
        }
        let count = families.len();
        families.sort_unstable();
        families.dedup();
        assert_eq!(families.len(), count);
        assert_eq!(text.matches("# HELP ").count(), count);
    }

    #[test]
    fn counters_and_labels_are_written_as_prometheus_reads_them() {
        let metrics = Metrics::default();
        metrics.awus_blocked.increment();
        metrics.lost_ring_full.observe_total(7);
        metrics.lost_ring_full.observe_total(3);
        let text = metrics.render();
        let lines: Vec<&str> = text
            .lines()
            .filter(|line| line.starts_with("genops_agent_awus") || line.contains("\"ring_full\""))
            .collect();
        expect![[r#"
            genops_agent_awus_total{result="ALLOWED"} 0
            genops_agent_awus_total{result="WARNING"} 0
            genops_agent_awus_total{result="BLOCKED"} 1
            genops_agent_awus_total{result="RATE_LIMITED"} 0
            genops_agent_lost_total{cause="ring_full"} 7"#]]
        .assert_eq(&lines.join("\n"));
    }

    #[test]
    fn a_histogram_counts_up_to_each_bound() {
        let histogram = Histogram::default();
        for us in [10, 11, 90, 30_000_000] {
            histogram.observe(Duration::from_micros(us));
        }
        let mut text = String::new();
        histogram.render(&mut text, "h_seconds", "Help.");
        let lines: Vec<&str> = text
            .lines()
            .filter(|line| {
                !line.contains("le=\"0.0")
                    || line.contains("le=\"0.0000")
                    || line.contains("le=\"0.0001\"")
            })
            .collect();
        expect![[r#"
            # HELP h_seconds Help.
            # TYPE h_seconds histogram
            h_seconds_bucket{le="0.00001"} 1
            h_seconds_bucket{le="0.000025"} 2
            h_seconds_bucket{le="0.00005"} 2
            h_seconds_bucket{le="0.0001"} 3
            h_seconds_bucket{le="0.1"} 3
            h_seconds_bucket{le="0.25"} 3
            h_seconds_bucket{le="1"} 3
            h_seconds_bucket{le="10"} 3
            h_seconds_bucket{le="+Inf"} 4
            h_seconds_sum 30.000111
            h_seconds_count 4"#]]
        .assert_eq(&lines.join("\n"));
    }

    #[test]
    fn readiness_names_what_is_missing() {
        let readiness = Readiness::default();
        readiness.waits(Part::Probes, "3 of 7 programs attached");
        expect!["probes: 3 of 7 programs attached; policy: not loaded yet"]
            .assert_eq(&readiness.missing().unwrap_or_default());
        readiness.reached(Part::Probes);
        readiness.reached(Part::Policy);
        assert_eq!(readiness.missing(), None);
    }
}
