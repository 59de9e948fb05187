//! Export of AWUs to an OTLP collector: a span per AWU, with its events.
//!
//! [`Exporter::try_send`] never waits: the AWU becomes a span in a bounded queue, and a span beyond
//! the limit is counted as lost. A separate thread runs the tokio runtime required by OTLP,
//! collects batches, and sends each with the retries of the OTLP specification. `genops-governance`
//! determines the content of an AWU; the exporter only converts to OpenTelemetry's types.

use std::borrow::Cow;
use std::error::Error;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, anyhow};
use genops_governance::{Attribute, Awu, Event, Value};
use opentelemetry::trace::{
    SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState,
};
use opentelemetry::{Array, InstrumentationScope, KeyValue, StringValue};
use opentelemetry_http::hyper::HyperClient;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::tonic_types::metadata::MetadataMap;
use opentelemetry_otlp::tonic_types::transport::ClientTlsConfig;
use opentelemetry_otlp::{
    RetryPolicy, SpanExporter as OtlpExporter, WithExportConfig as _, WithHttpConfig as _,
    WithTonicConfig as _,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanExporter as _, SpanLinks};
use tokio::sync::mpsc;

use crate::config::{Otlp, Protocol};
use crate::metrics::Metrics;

/// Most spans in a request.
const BATCH: usize = 512;

/// Longest wait of a span for the rest of a batch.
const BATCH_DELAY: Duration = Duration::from_secs(1);

/// Time limit for retrying a batch over HTTP while the collector is away. Meanwhile the queue
/// fills, and further spans are counted as lost.
const RETRY_BUDGET: Duration = Duration::from_mins(1);

/// Retries of a batch after the first try.
const RETRIES: usize = 15;

/// Longest pause between two tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Exporter of spans. Dropping without [`shutdown`](Self::shutdown) loses queued spans.
#[derive(Debug)]
pub(crate) struct Exporter {
    queue: mpsc::Sender<SpanData>,
    thread: JoinHandle<()>,
    metrics: Arc<Metrics>,
    scope: InstrumentationScope,
}

impl Exporter {
    /// Starts the sending thread.
    ///
    /// # Errors
    ///
    /// Fails if the endpoint or a header is not usable, or an `https` endpoint finds no root
    /// certificates. An unreachable collector is no error: the collector may come up later.
    pub(crate) fn start(otlp: &Otlp, metrics: Arc<Metrics>) -> anyhow::Result<Self> {
        let (queue, spans) = mpsc::channel(otlp.queue);
        let (started, outcome) = std::sync::mpsc::channel();
        let (its_otlp, its_metrics) = (otlp.clone(), Arc::clone(&metrics));
        let thread = std::thread::Builder::new().name("otlp".to_owned()).spawn(move || {
            let prepared = prepare(&its_otlp);
            let (outcome, ready) = match prepared {
                Ok(ready) => (Ok(()), Some(ready)),
                Err(error) => (Err(error), None),
            };
            if started.send(outcome).is_ok()
                && let Some((runtime, exporter)) = ready
            {
                runtime.block_on(send(spans, &exporter, &its_metrics));
            }
        })?;
        outcome.recv().map_err(|_| anyhow!("the OTLP thread ended at its start"))??;
        let scope = InstrumentationScope::builder("genops-agent")
            .with_version(env!("CARGO_PKG_VERSION"))
            .build();
        Ok(Self { queue, thread, metrics, scope })
    }

    /// Queues an AWU; false if the queue was full (counted as lost).
    pub(crate) fn try_send(&self, awu: &Awu) -> bool {
        let Ok(place) = self.queue.try_reserve() else {
            self.metrics.lost_export_queue_full.increment();
            return false;
        };
        place.send(span(awu, self.scope.clone()));
        true
    }

    /// Sends queued spans, for at most `timeout`; false if the time was too short.
    pub(crate) fn shutdown(self, timeout: Duration) -> bool {
        let Self { queue, thread, .. } = self;
        drop(queue);
        let deadline = Instant::now() + timeout;
        while !thread.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        thread.is_finished()
    }
}

type Ready = (tokio::runtime::Runtime, OtlpExporter);

fn prepare(otlp: &Otlp) -> anyhow::Result<Ready> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the OTLP runtime")?;
    let entered = runtime.enter();
    let mut exporter = match otlp.protocol {
        Protocol::HttpProtobuf => http(otlp),
        Protocol::Grpc => grpc(otlp),
    }
    .with_context(|| format!("telemetry.otlp: {}", otlp.endpoint))?;
    exporter.set_resource(&resource(otlp));
    drop(entered);
    Ok((runtime, exporter))
}

fn is_https(otlp: &Otlp) -> bool {
    otlp.endpoint.starts_with("https://")
}

fn http(otlp: &Otlp) -> anyhow::Result<OtlpExporter> {
    let endpoint = if otlp.endpoint.ends_with("/v1/traces") {
        otlp.endpoint.clone()
    } else {
        format!("{}/v1/traces", otlp.endpoint)
    };
    // The builder decodes percent-encoding, and the values are not encoded: escape `%`.
    let literal = |value: &str| value.replace('%', "%25");
    let headers = otlp.headers.iter().map(|(name, value)| (name.to_owned(), literal(value)));
    Ok(OtlpExporter::builder()
        .with_http()
        .with_http_client(Telling::new(http_client(otlp)?, &otlp.endpoint))
        .with_endpoint(endpoint)
        .with_timeout(RETRY_BUDGET)
        .with_headers(headers.collect())
        .with_retry_policy(retry_policy())
        .build()?)
}

/// Builds the client, with TLS only for an `https` endpoint: the root certificates take memory.
fn http_client(otlp: &Otlp) -> anyhow::Result<Arc<dyn HttpClient>> {
    if !is_https(otlp) {
        return Ok(Arc::new(HyperClient::with_default_connector(otlp.timeout, None)));
    }
    let connector = hyper_rustls::HttpsConnectorBuilder::new()
        .with_native_roots()
        .context("no root certificates; install the package ca-certificates")?
        .https_only()
        .enable_http1()
        .build();
    Ok(Arc::new(HyperClient::new(connector, otlp.timeout, None)))
}

/// A client that reports an unreachable collector on the standard error, because the OTLP exporter
/// hides the reason.
#[derive(Debug)]
struct Telling {
    client: Arc<dyn HttpClient>,
    endpoint: String,
    /// Time of the last message; an absent collector is not news each second.
    told: Mutex<Option<Instant>>,
}

impl Telling {
    /// Shortest time between two messages.
    const PAUSE: Duration = Duration::from_mins(5);

    fn new(client: Arc<dyn HttpClient>, endpoint: &str) -> Self {
        Self { client, endpoint: endpoint.to_owned(), told: Mutex::new(None) }
    }

    fn tell(&self, why: &str) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_none_or(|at| at.elapsed() > Self::PAUSE) {
            *told = Some(Instant::now());
            eprintln!(
                "genops-agent: telemetry.otlp: {}: {why}; spans are tried again",
                self.endpoint
            );
        }
    }

    async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let answer = self.client.send_bytes(request).await;
        match &answer {
            Ok(response) if response.status().is_success() => {
                *self.told.lock().unwrap_or_else(PoisonError::into_inner) = None;
            }
            Ok(response) => self.tell(&format!("it answers {}", response.status())),
            Err(error) => self.tell(&with_causes(error.as_ref())),
        }
        answer
    }
}

/// Joins an error and its causes on a single line.
fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

impl HttpClient for Telling {
    // Signature as `async_trait` expands `async fn send_bytes(&self, ..)`.
    fn send_bytes<'client, 'sent>(
        &'client self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'sent>>
    where
        'client: 'sent,
        Self: 'sent,
    {
        Box::pin(self.send(request))
    }
}

fn grpc(otlp: &Otlp) -> anyhow::Result<OtlpExporter> {
    let request = otlp
        .headers
        .iter()
        .fold(Request::builder(), |request, (name, value)| request.header(name, value))
        .body(())
        // The reason is not shown: the text might quote a secret.
        .map_err(|_| anyhow!("a name or value of `telemetry.otlp.headers` is not usable"))?;
    let mut builder = OtlpExporter::builder()
        .with_tonic()
        .with_endpoint(otlp.endpoint.clone())
        .with_timeout(otlp.timeout)
        .with_metadata(MetadataMap::from_headers(request.headers().clone()))
        .with_retry_policy(retry_policy());
    if is_https(otlp) {
        builder = builder.with_tls_config(ClientTlsConfig::new().with_native_roots());
    }
    Ok(builder.build()?)
}

fn retry_policy() -> RetryPolicy {
    RetryPolicy::recommended()
        .with_max_retries(RETRIES)
        .with_initial_delay(Duration::from_millis(200))
        .with_max_delay(LONGEST_PAUSE)
}

/// Resource of the spans: the agent on the host, and additions from configuration and environment.
fn resource(otlp: &Otlp) -> Resource {
    let system = rustix::system::uname();
    let host = system.nodename().to_string_lossy().into_owned();
    let architecture = match system.machine().to_bytes() {
        b"x86_64" => "amd64".to_owned(),
        b"aarch64" => "arm64".to_owned(),
        other => String::from_utf8_lossy(other).into_owned(),
    };
    let mut attributes = vec![
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("host.name", host),
        KeyValue::new("host.arch", architecture),
        KeyValue::new("os.type", "linux"),
        KeyValue::new("os.version", system.release().to_string_lossy().into_owned()),
    ];
    if let Ok(id) = std::fs::read_to_string("/etc/machine-id") {
        let id = id.trim().to_owned();
        attributes.extend((!id.is_empty()).then(|| KeyValue::new("host.id", id)));
    }
    let configured = otlp.resource.iter();
    attributes.extend(configured.map(|(key, value)| KeyValue::new(key.clone(), value.clone())));
    Resource::builder().with_service_name("genops-agent").with_attributes(attributes).build()
}

/// Collects batches and sends them, until the queue is closed and empty.
async fn send(mut spans: mpsc::Receiver<SpanData>, exporter: &OtlpExporter, metrics: &Metrics) {
    while let Some(first) = spans.recv().await {
        let mut batch = vec![first];
        let deadline = tokio::time::Instant::now() + BATCH_DELAY;
        while batch.len() < BATCH {
            match tokio::time::timeout_at(deadline, spans.recv()).await {
                Ok(Some(span)) => batch.push(span),
                Ok(None) | Err(_) => break,
            }
        }
        let count = batch.len() as u64;
        match exporter.export(batch).await {
            Ok(()) => metrics.exported_spans.add(count),
            Err(_) => metrics.lost_export_failed.add(count),
        }
    }
}

/// Whether an attribute of the JSON line belongs on the span. Attributes without a namespace are
/// excluded: they give the place in a recording, or repeat fields of the span.
pub(crate) fn belongs_on_a_span(key: &str) -> bool {
    key.contains('.')
}

/// Converts an AWU to an OpenTelemetry span.
fn span(awu: &Awu, scope: InstrumentationScope) -> SpanData {
    let context = SpanContext::new(
        TraceId::from_bytes(awu.id.trace),
        SpanId::from_bytes(awu.id.span),
        TraceFlags::SAMPLED,
        false,
        TraceState::default(),
    );
    let mut events = SpanEvents::default();
    events.events.extend(awu.events().into_iter().map(event));
    SpanData {
        span_context: context,
        parent_span_id: SpanId::INVALID,
        parent_span_is_remote: false,
        span_kind: SpanKind::Client,
        name: Cow::Owned(awu.name().clone()),
        start_time: time(awu.start_unix_ns),
        end_time: time(awu.end_unix_ns),
        attributes: attributes(awu.attributes()),
        dropped_attributes_count: 0,
        events,
        links: SpanLinks::default(),
        status: if awu.is_error() { Status::error("") } else { Status::Unset },
        instrumentation_scope: scope,
    }
}

fn event(Event { name, unix_ns, attributes: its }: Event) -> opentelemetry::trace::Event {
    opentelemetry::trace::Event::new(name, time(unix_ns), attributes(its), 0)
}

fn time(unix_ns: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_nanos(unix_ns)
}

fn attributes(attributes: Vec<Attribute>) -> Vec<KeyValue> {
    let named = attributes.into_iter().filter(|(key, _)| belongs_on_a_span(key));
    named.map(|(key, value)| KeyValue::new(key, typed(value))).collect()
}

fn typed(value: Value) -> opentelemetry::Value {
    match value {
        Value::Str(text) => text.into(),
        Value::Int(number) => number.into(),
        Value::Double(number) => number.into(),
        Value::Bool(truth) => truth.into(),
        Value::StrList(list) => opentelemetry::Value::Array(Array::String(
            list.into_iter().map(StringValue::from).collect(),
        )),
    }
}

#[cfg(test)]
mod tests;
