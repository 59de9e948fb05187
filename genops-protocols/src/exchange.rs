//! One request and its response, whatever carried them: heads and bodies in, a call out.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::body::{Body, Hints};
use crate::call::{
    Call, Exchange, Kind, McpCall, OpenRequest, Request, RequestParams, Sink, Texts, Unreadable,
    Usage,
};
use crate::coding::Coding;
use crate::dialect::{self, Bodies, Endpoint, Target, jsonrpc};
use crate::facts::{Facts, Field};
use crate::hosts::{Hosts, region_of_host};

/// What a connection knows that its exchanges need.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    pub(crate) hosts: Arc<Hosts>,
    pub(crate) server_name: Option<String>,
    pub(crate) remote: Option<SocketAddr>,
    pub(crate) text_limit: usize,
}

/// What is read of a message's head. Field names and values of HTTP/1 and HTTP/2 alike.
#[derive(Clone, Debug, Default)]
pub(crate) struct Head {
    pub(crate) method: Option<String>,
    /// Path and query, or a whole URI.
    pub(crate) target: Option<String>,
    pub(crate) authority: Option<String>,
    pub(crate) status: Option<u16>,
    pub(crate) content_type: Option<String>,
    pub(crate) coding: Option<Coding>,
    pub(crate) upgrade: Option<String>,
    pub(crate) websocket_deflate: bool,
    pub(crate) session: Option<String>,
    pub(crate) protocol_version: Option<String>,
    pub(crate) rpc_method: Option<String>,
    pub(crate) error_type: Option<String>,
    pub(crate) measured: Measured,
    pub(crate) grpc_status: Option<String>,
    pub(crate) llama_cpp: bool,
    /// Part of the head is not known: fields may be missing.
    pub(crate) partial: bool,
}

/// Tokens that Bedrock counts in fields of the head.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Measured {
    input: Option<u64>,
    output: Option<u64>,
    cache_read: Option<u64>,
    cache_write: Option<u64>,
}

impl Head {
    /// Longest field value read.
    const VALUE_LIMIT: usize = 512;

    /// Takes one field; `name` in any case.
    pub(crate) fn field(&mut self, name: &[u8], value: &[u8]) {
        let mut lower = [0_u8; 40];
        let Some(lower) = lower.get_mut(..name.len()) else { return };
        lower.copy_from_slice(name);
        lower.make_ascii_lowercase();
        let Ok(value) = std::str::from_utf8(value) else { return };
        let value = value.trim();
        let text = || (value.len() <= Self::VALUE_LIMIT).then(|| value.to_owned());
        match &*lower {
            b"host" | b":authority" => self.authority = text(),
            b":method" => self.method = text(),
            b":path" => self.target = Some(value.to_owned()),
            b":status" => self.status = value.parse().ok(),
            b"content-type" => self.content_type = text(),
            b"content-encoding" => self.coding = Some(Coding::from_field(value)),
            b"upgrade" => self.upgrade = text(),
            b"sec-websocket-extensions" => {
                self.websocket_deflate = value.contains("permessage-deflate");
            }
            b"mcp-session-id" => self.session = text(),
            b"mcp-protocol-version" => self.protocol_version = text(),
            b"mcp-method" => self.rpc_method = text(),
            b"x-amzn-errortype" => {
                self.error_type = text().map(|it| it.split(':').next().unwrap_or("").to_owned());
            }
            b"x-amzn-bedrock-input-token-count" => self.measured.input = value.parse().ok(),
            b"x-amzn-bedrock-output-token-count" => self.measured.output = value.parse().ok(),
            b"x-amzn-bedrock-cache-read-input-token-count" => {
                self.measured.cache_read = value.parse().ok();
            }
            b"x-amzn-bedrock-cache-write-input-token-count" => {
                self.measured.cache_write = value.parse().ok();
            }
            b"grpc-status" => self.grpc_status = text(),
            b"server" => self.llama_cpp = value.eq_ignore_ascii_case("llama.cpp"),
            _ => {}
        }
    }

    fn hints(&self) -> Hints {
        let coding = match self.coding {
            None if self.partial => None,
            coding => Some(coding.unwrap_or_default()),
        };
        Hints { content_type: self.content_type.clone(), coding, grpc: None }
    }
}

/// One exchange in the making.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each half ends, and ends well, on its own")]
pub(crate) struct Transaction {
    call: Call,
    endpoint: Option<Endpoint>,
    /// The endpoint follows from path and host; bodies need not confirm it.
    certain: bool,
    /// Provider that the host stands for.
    host_provider: Option<&'static str>,
    /// What heads say of an MCP exchange.
    mcp_head: Option<McpCall>,
    request: Option<Body>,
    response: Option<Body>,
    start: u64,
    request_body_bytes: u64,
    request_ended: bool,
    request_complete: bool,
    response_ended: bool,
    response_complete: bool,
    /// When the last byte of the response's body came.
    last_data_ns: u64,
    reported: bool,
    pub(crate) websocket_deflate: bool,
}

impl Transaction {
    /// Begins with the first byte of a request at stream position `start`.
    pub(crate) fn new(exchange: u64, at_ns: u64, start: u64) -> Self {
        let call = Call { exchange, request_at_ns: at_ns, request_seen: true, ..Call::default() };
        Self {
            call,
            endpoint: None,
            certain: false,
            host_provider: None,
            mcp_head: None,
            request: None,
            response: None,
            start,
            request_body_bytes: 0,
            request_ended: false,
            request_complete: false,
            response_ended: false,
            response_complete: false,
            last_data_ns: 0,
            reported: false,
            websocket_deflate: false,
        }
    }

    /// Begins with a response whose request was not seen.
    pub(crate) fn unasked(at_ns: u64) -> Self {
        let mut it = Self::new(0, at_ns, 0);
        it.call.request_seen = false;
        it.request_ended = true;
        it
    }

    /// The handshake of an API whose messages are requests and responses.
    pub(crate) fn is_realtime(&self) -> bool {
        self.endpoint.as_ref().is_some_and(|endpoint| {
            matches!(endpoint.api, "openai.realtime" | "openai.responses" | "gemini.live")
        })
    }

    /// A turn on the connection of which this is the handshake.
    pub(crate) fn turn(&self, exchange: u64, context: &Context) -> Self {
        let mut turn = Self::new(exchange, self.call.request_at_ns, 0);
        turn.host_provider = self.host_provider;
        turn.certain = true;
        turn.endpoint =
            self.endpoint.clone().map(|endpoint| Endpoint { kind: Kind::Inference, ..endpoint });
        let Call { server_address, server_port, method, path, provider, region, .. } = &self.call;
        turn.call.server_address.clone_from(server_address);
        turn.call.server_port = *server_port;
        turn.call.method.clone_from(method);
        turn.call.path.clone_from(path);
        turn.call.provider.clone_from(provider);
        turn.call.region.clone_from(region);
        turn.call.status = self.call.status;
        let texts = Texts::new(context.text_limit);
        turn.request = Some(Body::of_messages(&dialect::REQUESTS, Some(texts)));
        turn.refresh();
        turn
    }

    pub(crate) fn begin_at(&mut self, at_ns: u64, start: u64) {
        self.call.request_at_ns = at_ns;
        self.start = start;
    }

    /// The messages sent so far ask for a response.
    pub(crate) fn asks(&self) -> bool {
        let Some(facts) = self.request.as_ref().map(Body::facts) else { return false };
        facts.text(Field::Type) == Some("response.create") || facts.has(Field::ClientContent)
    }

    /// Takes the messages of the server as the response.
    pub(crate) fn answer(&mut self, answer: Body) {
        self.response = Some(answer);
    }

    pub(crate) fn call(&self) -> &Call {
        &self.call
    }

    pub(crate) fn call_mut(&mut self) -> &mut Call {
        &mut self.call
    }

    pub(crate) fn number(&mut self, exchange: u64) {
        self.call.exchange = exchange;
    }

    pub(crate) fn request_ended(&self) -> bool {
        self.request_ended
    }

    pub(crate) fn response_ended(&self) -> bool {
        self.response_ended
    }

    pub(crate) fn response_began(&self) -> bool {
        self.call.status.is_some() || self.response.is_some()
    }

    pub(crate) fn open(&self) -> Option<OpenRequest<'_>> {
        (!self.request_ended).then_some(OpenRequest {
            exchange: self.call.exchange,
            start: self.start,
            call: &self.call,
            body_bytes: self.request_body_bytes,
        })
    }

    pub(crate) fn start(&self) -> u64 {
        self.start
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        let bodies = [&self.request, &self.response];
        size_of::<Self>()
            + bodies.into_iter().flatten().map(Body::memory_bytes).sum::<usize>()
            + self.call.memory_bytes()
    }

    pub(crate) fn retained_bytes(&self) -> usize {
        let bodies = [&self.request, &self.response];
        bodies.into_iter().flatten().map(Body::retained_bytes).sum::<usize>()
            + self.call.memory_bytes()
    }

    /// The request's head is known.
    pub(crate) fn request_head(&mut self, head: &Head, context: &Context) {
        self.call.method.clone_from(&head.method);
        self.locate(head, context);
        self.route(head);
        let mcp = head.session.is_some() || head.rpc_method.is_some();
        if self.endpoint.is_none() && mcp {
            self.endpoint = Some(jsonrpc::JsonRpc::named(Kind::Mcp));
            self.certain = true;
        }
        if mcp || head.protocol_version.is_some() {
            let call = self.mcp_head.get_or_insert_default();
            call.session_id.clone_from(&head.session);
            call.protocol_version.clone_from(&head.protocol_version);
            call.method.clone_from(&head.rpc_method);
        }
        let texts = Texts::new(context.text_limit);
        let grpc = self.endpoint.as_ref().and_then(|endpoint| endpoint.grpc).map(|it| it.request);
        let hints = Hints { grpc, ..head.hints() };
        self.request = Some(Body::new(&dialect::REQUESTS, hints, Some(texts)));
        self.refresh();
    }

    /// Who is addressed: the head says, else the connection.
    fn locate(&mut self, head: &Head, context: &Context) {
        let absolute = head.target.as_deref().and_then(|target| {
            let (_, rest) = target.split_once("://")?;
            rest.split(['/', '?']).next()
        });
        let named = absolute.or(head.authority.as_deref()).map(split_port);
        let (host, port) = match named {
            Some((host, port)) => (Some(host.to_owned()), port),
            None => (context.server_name.clone(), None),
        };
        let remote_port = context.remote.map(|remote| remote.port());
        let by_address = context.remote.map(|remote| remote.ip().to_string());
        self.call.server_port = port.or(remote_port);
        self.call.server_address = host.or(by_address);
        let find = |host: Option<&str>| {
            host.and_then(|host| {
                let find = |port| context.hosts.find(host, port);
                find(self.call.server_port).or_else(|| find(remote_port))
            })
        };
        let known = find(self.call.server_address.as_deref())
            .or_else(|| find(context.server_name.as_deref()));
        self.host_provider = known.map(|known| known.provider);
        self.call.provider = self.host_provider.map(str::to_owned);
        let region = self.call.server_address.as_deref().and_then(region_of_host);
        self.call.region = region.map(str::to_owned);
    }

    fn route(&mut self, head: &Head) {
        let Some(target) = head.target.as_deref() else { return };
        let after_authority = match target.split_once("://") {
            Some((_, rest)) => rest.find('/').and_then(|at| rest.get(at..)).unwrap_or("/"),
            None => target,
        };
        let path = after_authority.split(['?', '#']).next().unwrap_or_default();
        self.call.path = Some(path.to_owned());
        let segments: Vec<&str> =
            path.split('/').filter(|name| !name.is_empty()).take(32).collect();
        let target = Target {
            method: head.method.as_deref().unwrap_or_default(),
            host_provider: self.host_provider,
            segments: &segments,
        };
        // Azure AI serves both flavours under one host name.
        if self.host_provider == Some("azure.ai.inference") && segments.first() == Some(&"openai") {
            self.host_provider = Some("azure.ai.openai");
        }
        self.endpoint = dialect::endpoint(&target);
        self.certain = self.host_provider.is_some();
        if let Some(model) =
            after_authority.split_once('?').and_then(|(_, query)| query_model(query))
            && let Some(endpoint) = &mut self.endpoint
        {
            endpoint.model.get_or_insert(model);
        }
    }

    pub(crate) fn request_data(&mut self, bytes: &[u8]) {
        self.request_body_bytes += bytes.len() as u64;
        if let Some(body) = &mut self.request {
            body.feed(bytes);
        }
    }

    pub(crate) fn response_head(&mut self, head: &Head, at_ns: u64) {
        self.call.status = head.status.or(self.call.status);
        if let Some(session) = &head.session {
            self.mcp_head.get_or_insert_default().session_id = Some(session.clone());
        }
        let grpc = self.endpoint.as_ref().and_then(|endpoint| endpoint.grpc).map(|it| it.response);
        let hints = Hints { grpc, ..head.hints() };
        let mut body = Body::new(&dialect::RESPONSES, hints, None);
        let facts = body.facts_mut();
        let Measured { input, output, cache_read, cache_write } = head.measured;
        let measured = [
            (Field::MetricInput, input),
            (Field::MetricOutput, output),
            (Field::MetricCacheRead, cache_read),
            (Field::MetricCacheWrite, cache_write),
        ];
        for (field, count) in measured {
            if let Some(count) = count {
                facts.keep_count(field, count);
            }
        }
        if let Some(error) = &head.error_type {
            facts.keep_text(Field::ErrorType, error);
        }
        if head.llama_cpp {
            facts.keep_text(Field::HasTimings, "server");
        }
        self.response = Some(body);
        self.call.end_at_ns = Some(at_ns);
    }

    pub(crate) fn response_data(&mut self, at_ns: u64, bytes: &[u8]) {
        self.call.first_chunk_at_ns.get_or_insert(at_ns);
        self.last_data_ns = at_ns;
        if let Some(body) = &mut self.response {
            body.feed(bytes);
        }
    }

    /// Fields after the body: where gRPC says how it went.
    pub(crate) fn response_trailers(&mut self, head: &Head) {
        let status = head.grpc_status.as_deref().filter(|status| *status != "0");
        if let (Some(body), Some(status)) = (&mut self.response, status) {
            body.facts_mut().keep_text(Field::ErrorType, status);
        }
    }

    /// Bytes of the request's body are missing.
    pub(crate) fn request_gap(&mut self, bytes: Option<u64>) {
        self.missing(bytes);
        if let Some(body) = &mut self.request {
            body.gap();
        }
    }

    /// Bytes of the response's body are missing.
    pub(crate) fn response_gap(&mut self, bytes: Option<u64>) {
        self.missing(bytes);
        if let Some(body) = &mut self.response {
            body.gap();
        }
    }

    pub(crate) fn missing(&mut self, bytes: Option<u64>) {
        self.call.missing_bytes = self.call.missing_bytes.saturating_add(bytes.unwrap_or(0));
        self.unreadable(Unreadable::Gap);
    }

    pub(crate) fn unreadable(&mut self, reason: Unreadable) {
        self.call.unreadable.get_or_insert(reason);
    }

    /// The request ended, or no more of it can be read.
    pub(crate) fn end_request(&mut self, end: u64, complete: bool, sink: &mut dyn Sink) {
        if self.request_ended {
            return;
        }
        self.request_ended = true;
        self.request_complete = complete;
        if let Some(body) = &mut self.request {
            body.end(complete);
        }
        self.refresh();
        let none = Texts::default();
        let texts = self.request.as_ref().and_then(Body::texts).unwrap_or(&none);
        sink.request(&Request { call: &self.call, complete, start: self.start, end, texts });
        if let Some(body) = &mut self.request {
            body.drop_texts();
        }
        self.report(sink);
    }

    /// The response ended, or no more of it can be read.
    pub(crate) fn end_response(&mut self, at_ns: u64, complete: bool, sink: &mut dyn Sink) {
        if self.response_ended {
            return;
        }
        self.response_ended = true;
        if let Some(body) = &mut self.response {
            body.end(complete);
            self.call.end_at_ns = Some(at_ns);
        }
        self.refresh();
        let over = !complete && self.is_over();
        if over && self.last_data_ns > 0 {
            self.call.end_at_ns = Some(self.last_data_ns);
        }
        self.response_complete = complete || over;
        self.report(sink);
    }

    /// The API says that the answer is whole: what the transport does after that changes nothing.
    fn is_over(&self) -> bool {
        let Some(body) = &self.response else { return false };
        let Call { finish_reasons, usage, choices, stream_response, .. } = &self.call;
        let asked = choices.and_then(|it| usize::try_from(it).ok()).unwrap_or(1).max(1);
        let counted = usage.input_tokens.is_some() && usage.output_tokens.is_some();
        body.is_over() || *stream_response && counted && finish_reasons.len() >= asked
    }

    fn report(&mut self, sink: &mut dyn Sink) {
        if self.request_ended && self.response_ended && self.call.request_seen && !self.reported {
            self.reported = true;
            let call = self.call.clone();
            sink.exchange(Exchange { call, response_complete: self.response_complete });
        }
    }

    /// Hands out an exchange whose request was not seen.
    pub(crate) fn report_unasked(mut self, end: u64, sink: &mut dyn Sink) {
        let none = Texts::default();
        sink.request(&Request { call: &self.call, complete: false, start: end, end, texts: &none });
        self.response_ended = true;
        let Self { call, response_complete, .. } = self;
        sink.exchange(Exchange { call, response_complete });
    }

    /// Something was kept since the last time.
    pub(crate) fn refresh_if_changed(&mut self) {
        let changed = |body: &mut Option<Body>| {
            body.as_mut().is_some_and(|body| body.facts_mut().take_dirty())
        };
        let (request, response) = (changed(&mut self.request), changed(&mut self.response));
        if request || response {
            self.refresh();
        }
    }

    /// Reads what is known of both bodies into the call.
    fn refresh(&mut self) {
        let Self { call, request, response, endpoint, certain, host_provider, mcp_head, .. } = self;
        let none = Facts::default();
        let bodies = Bodies {
            request: request.as_ref().map_or(&none, Body::facts),
            response: response.as_ref().map_or(&none, Body::facts),
        };
        for body in [&*request, &*response].into_iter().flatten() {
            call.unreadable = call.unreadable.or(body.unreadable());
        }
        call.stream_response = response.as_ref().is_some_and(Body::is_stream);
        call.written_bytes = bodies.response.written_bytes();
        let known = match endpoint {
            Some(known) if *certain || is_confirmed(known, &bodies, call) => Some(known.clone()),
            Some(_) => dialect::guess(&bodies).filter(|it| it.kind != Kind::Inference),
            None => guess(call, *host_provider, response.is_some(), &bodies),
        };
        let Some(known) = known else {
            let managed = host_provider.is_some() && call.path.is_some();
            forget(call);
            call.kind = if managed { Kind::Management } else { Kind::Other };
            (call.api, call.operation, call.mcp) = (None, None, None);
            return;
        };
        call.kind = known.kind;
        call.api = Some(known.api);
        let operation = known.operation.filter(|_| known.kind == Kind::Inference);
        call.operation = operation.map(str::to_owned);
        call.provider = host_provider.or(known.provider).map(str::to_owned);
        if known.region.is_some() {
            call.region.clone_from(&known.region);
        }
        forget(call);
        call.mcp.clone_from(mcp_head);
        known.dialect.read(&known, &bodies, call);
        let exception = response.as_ref().and_then(Body::exception);
        let status = call.status.filter(|&status| status >= 400);
        call.error_type = exception
            .map(str::to_owned)
            .or(call.error_type.take())
            .or_else(|| status.map(|status| status.to_string()));
    }
}

/// Forgets what bodies said before: they are read anew, and may say otherwise by now.
fn forget(call: &mut Call) {
    call.request_model = None;
    call.response_model = None;
    call.response_id = None;
    call.finish_reasons.clear();
    call.tool_calls.clear();
    call.server_tool_calls.clear();
    call.stream = false;
    call.max_output_tokens = None;
    call.choices = None;
    call.params = RequestParams::default();
    call.usage = Usage::default();
    call.error_type = None;
    call.conversation_id = None;
    call.response_status = None;
    call.service_tier = None;
    call.system_fingerprint = None;
}

/// The request body is what the path says, at a host that is nobody we know.
fn is_confirmed(endpoint: &Endpoint, bodies: &Bodies<'_>, call: &Call) -> bool {
    let unread = bodies.request.is_empty() && call.unreadable.is_some();
    let telling = endpoint.api == "openai.chat" || endpoint.model.is_some();
    endpoint.kind != Kind::Inference
        || endpoint.dialect.confirms(endpoint, bodies.request)
        || unread && telling
}

/// What an exchange is whose path says nothing.
fn guess(
    call: &Call,
    host_provider: Option<&'static str>,
    answered: bool,
    bodies: &Bodies<'_>,
) -> Option<Endpoint> {
    let guessed = dialect::guess(bodies).filter(|guess| {
        // Whoever fetches what is stored asks no model.
        let posts = call.method.as_deref().is_none_or(|it| it == "POST");
        let stranger = answered && posts && call.request_seen && host_provider.is_none();
        guess.kind != Kind::Inference || call.path.is_none() || stranger
    });
    let blind = call.path.is_none() && call.request_seen;
    guessed.or_else(|| {
        let provider = host_provider.unwrap_or_default();
        blind.then(|| dialect::suppose(provider, bodies.request)).flatten()
    })
}

/// Splits a port off an authority ([RFC 3986 §3.2](https://www.rfc-editor.org/rfc/rfc3986#section-3.2)).
fn split_port(authority: &str) -> (&str, Option<u16>) {
    let authority = authority.rsplit('@').next().unwrap_or(authority);
    match authority.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
            (trim_brackets(host), port.parse().ok())
        }
        _ => (trim_brackets(authority), None),
    }
}

fn trim_brackets(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

/// The model that a query names.
fn query_model(query: &str) -> Option<String> {
    let named = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name));
    let value = named("model=").or_else(|| named("deployment="))?;
    Some(dialect::percent_decode(value)).filter(|model| model.len() <= Facts::TEXT_LIMIT)
}
