//! Assembly of a request and its response on any transport: takes heads and bodies, yields a call.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::body::{Body, Hints};
use crate::call::{
    Call, Exchange, Kind, McpCall, OpenRequest, Request, RequestParams, Sink, Texts, Unreadable,
    Usage,
};
use crate::claims::{Claim, Wanted};
use crate::coding::Coding;
use crate::dialect::{self, Bodies, Endpoint, Target, jsonrpc};
use crate::facts::{Facts, Field};
use crate::harmless::{self, Listed};
use crate::hosts::{Hosts, region_of_host};
use crate::memory::{Memory, Share};
use crate::path::Path;

/// Facts of a connection needed by every exchange.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    pub(crate) hosts: Arc<Hosts>,
    pub(crate) server_name: Option<String>,
    pub(crate) remote: Option<SocketAddr>,
    pub(crate) text_limit: usize,
    /// Request bodies are hashed.
    pub(crate) digests: bool,
    pub(crate) wanted: Arc<Wanted>,
    pub(crate) memory: Arc<Memory>,
}

/// Fields read from the head of an HTTP/1 or HTTP/2 message.
#[expect(clippy::struct_excessive_bools, reason = "facts that do not hang together")]
#[derive(Clone, Debug, Default)]
pub(crate) struct Head {
    pub(crate) method: Option<String>,
    /// Path and query, or a whole URI.
    pub(crate) target: Option<String>,
    pub(crate) authority: Option<String>,
    /// Further host names in the head, if several.
    pub(crate) other_names: Vec<String>,
    /// The head breaks the grammar, and two parsers may read the head differently.
    pub(crate) malformed: bool,
    /// Extended CONNECT (RFC 8441), or another use of the connection than HTTP.
    pub(crate) protocol: Option<String>,
    /// The framing announces a body.
    pub(crate) has_body: bool,
    pub(crate) status: Option<u16>,
    pub(crate) content_type: Option<String>,
    pub(crate) coding: Option<Coding>,
    pub(crate) upgrade: Option<String>,
    pub(crate) websocket_deflate: bool,
    /// Length of the body announced by a field, in bytes.
    pub(crate) content_length: Option<u64>,
    pub(crate) session: Option<String>,
    pub(crate) protocol_version: Option<String>,
    pub(crate) rpc_method: Option<String>,
    pub(crate) error_type: Option<String>,
    pub(crate) measured: Measured,
    pub(crate) grpc_status: Option<String>,
    pub(crate) llama_cpp: bool,
    /// Values of the requested fields.
    pub(crate) claims: Vec<Claim>,
    pub(crate) wanted: Option<Arc<Wanted>>,
    /// Part of the head is not known: fields may be missing.
    pub(crate) partial: bool,
}

/// Tokens counted by Bedrock in fields of the head.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Measured {
    input: Option<u64>,
    output: Option<u64>,
    cache_read: Option<u64>,
    cache_write: Option<u64>,
}

impl Head {
    /// Longest field value read, in bytes.
    const VALUE_LIMIT: usize = 512;

    /// Creates the head of a request, with the fields to collect as claims.
    pub(crate) fn wanting(wanted: &Arc<Wanted>) -> Self {
        Self { wanted: Some(Arc::clone(wanted)), ..Self::default() }
    }

    /// Reads a field; `name` in any case.
    pub(crate) fn field(&mut self, name: &[u8], value: &[u8]) {
        let mut lower = [0_u8; 48];
        let Some(lower) = lower.get_mut(..name.len()) else { return };
        lower.copy_from_slice(name);
        lower.make_ascii_lowercase();
        if let Some(wanted) = &self.wanted {
            wanted.header(lower, value, &mut self.claims);
        }
        if lower.contains(&b'_') {
            // Gateways passing fields on as variables do not distinguish `_` from `-`.
            lower.iter_mut().filter(|byte| **byte == b'_').for_each(|byte| *byte = b'-');
            self.malformed |= matters(lower);
            return;
        }
        let long = value.len() > Self::VALUE_LIMIT && lower != b":path";
        self.malformed |= long && matters(lower);
        let Ok(value) = std::str::from_utf8(value) else {
            self.malformed |= matters(lower);
            return;
        };
        // No other character is white space (RFC 9110 §5.6.3).
        let value = value.trim_matches([' ', '\t']);
        let text = || (value.len() <= Self::VALUE_LIMIT).then(|| value.to_owned());
        match &*lower {
            b"host" | b":authority" => self.name(value),
            b":method" => {
                self.malformed |= self.method.is_some();
                self.method = text();
            }
            b":path" => {
                self.malformed |= self.target.is_some();
                self.target = Some(value.to_owned());
            }
            b":status" => self.status = value.parse().ok(),
            b":protocol" => self.protocol = text(),
            b"content-type" => {
                self.malformed |= self.content_type.is_some();
                self.content_type = text();
            }
            b"content-encoding" => {
                let coding = Coding::from_field(value);
                self.coding = Some(match self.coding {
                    None | Some(Coding::Identity) => coding,
                    Some(_) => Coding::Unknown,
                });
            }
            // Some servers take the method from here (Google's APIs among them).
            b"x-http-method-override" | b"x-http-method" | b"x-method-override" => {
                self.malformed = true;
            }
            b"upgrade" => {
                self.malformed |= self.upgrade.is_some();
                self.upgrade = text();
            }
            b"content-length" => {
                let digits = value.bytes().all(|byte| byte.is_ascii_digit());
                let length = value.parse().ok().filter(|_| digits);
                self.malformed |= length.is_none() || self.content_length.is_some();
                self.content_length = length;
            }
            // Intermediaries drop the fields named here (RFC 9110 §7.6.1).
            b"connection" => {
                let names = value.split(',').map(|name| name.trim().to_ascii_lowercase());
                let of_hop = |name: &String| name != "upgrade";
                self.malformed |= names.filter(of_hop).any(|name| matters(name.as_bytes()));
            }
            b"expect" => self.malformed |= !value.eq_ignore_ascii_case("100-continue"),
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

    /// Takes the name of an addressed host. A second, different name makes the head malformed and
    /// is kept: every name counts.
    fn name(&mut self, name: &str) {
        /// Maximum number of other names kept; further names still make the head malformed.
        const LIMIT: usize = 8;
        self.malformed |= !name.is_empty() && !is_authority(name);
        match &self.authority {
            None if name.len() <= Self::VALUE_LIMIT => self.authority = Some(name.to_owned()),
            Some(known) if known.eq_ignore_ascii_case(name) => {}
            None | Some(_) => {
                self.malformed = true;
                if self.other_names.len() < LIMIT && name.len() <= Self::VALUE_LIMIT {
                    self.other_names.push(name.to_owned());
                }
            }
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

/// Returns whether the value of a field decides how a message is read.
fn matters(name: &[u8]) -> bool {
    matches!(
        name,
        b"host"
            | b":authority"
            | b":method"
            | b":path"
            | b":protocol"
            | b"content-type"
            | b"content-encoding"
            | b"content-length"
            | b"transfer-encoding"
            | b"upgrade"
            | b"expect"
            | b"x-http-method-override"
            | b"x-http-method"
            | b"x-method-override"
    )
}

/// Returns whether `text` is a host with an optional port and nothing else (RFC 9110 §7.2): no
/// user, no list, no blank.
fn is_authority(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port),
        _ => (text, ""),
    };
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let of_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let of_address = |byte: u8| byte.is_ascii_hexdigit() || b":.".contains(&byte);
    let host_fits = match address {
        Some(address) => !address.is_empty() && address.bytes().all(of_address),
        None => !host.is_empty() && host.bytes().all(of_name),
    };
    host_fits && port.bytes().all(|byte| byte.is_ascii_digit())
}

/// Returns whether servers may read a target in different ways. An odd target has none of the forms
/// of [RFC 9112 §3.2][rfc], has characters not allowed in a path, or has a parameter changing the
/// method. A query may hold any character except `#`, space and control characters.
///
/// [rfc]: https://www.rfc-editor.org/rfc/rfc9112#section-3.2
fn is_odd_target(method: &str, target: &str) -> bool {
    match (method, target) {
        ("CONNECT", _) if !target.starts_with('/') => return !is_authority(target),
        ("OPTIONS", "*") => return false,
        _ => {}
    }
    let (authority, rest) = match absolute_form(target) {
        Some((authority, rest)) => (Some(authority), rest),
        None => (None, target),
    };
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let of_path =
        |byte: u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/%[]|".contains(&byte);
    let rooted = path.starts_with('/') || path.is_empty() && authority.is_some();
    !rooted
        || authority.is_some_and(|authority| !is_authority(authority))
        || !path.bytes().all(of_path)
        || query.bytes().any(|byte| byte == b'#' || byte.is_ascii_control() || byte == b' ')
        || query.split('&').any(turns_method)
}

/// Returns whether a query parameter makes some servers use a method or fields other than sent.
fn turns_method(parameter: &str) -> bool {
    let name = parameter.split('=').next().unwrap_or_default();
    let name = dialect::percent_decode(name).to_ascii_lowercase();
    let names = ["$httpmethod", "$httpheaders", "$req", "_method", "x-http-method-override"];
    names.contains(&name.as_str())
}

/// How a request was made, and the entry in the list of harmless endpoints.
#[derive(Clone, Copy, Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "what is looked at, one by one")]
struct Manner {
    listed: Option<Listed>,
    /// GET, HEAD or OPTIONS.
    safe: bool,
    /// Another protocol than HTTP may follow.
    upgrade: bool,
    has_body: bool,
    /// Tunnel through a proxy other than a provider: the tunnelled traffic is judged separately.
    tunnel: bool,
    /// The purpose or the end of the request can be read in two ways.
    doubtful: bool,
}

/// An exchange being assembled.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each half ends, and ends well, on its own")]
pub(crate) struct Transaction {
    call: Call,
    endpoint: Option<Endpoint>,
    /// The endpoint follows from path and host; bodies need not confirm the endpoint.
    certain: bool,
    /// Provider of the host.
    host_provider: Option<&'static str>,
    /// Region named by the host.
    host_region: Option<String>,
    /// MCP facts from the heads.
    mcp_head: Option<McpCall>,
    request: Option<Body>,
    response: Option<Body>,
    start: u64,
    request_body_bytes: u64,
    /// Length of the request body announced by the head, in bytes.
    announced: Option<u64>,
    /// Share of both bodies in the common memory.
    memory: Share,
    manner: Manner,
    /// Model named by the query, else by the path.
    query_model: Option<String>,
    /// Claims read from the head; `wanted` lists the claims to read from the body.
    claims: Vec<Claim>,
    wanted: Arc<Wanted>,
    request_ended: bool,
    request_complete: bool,
    response_ended: bool,
    response_complete: bool,
    /// Capture time of the last byte of the response body.
    last_data_ns: u64,
    reported: bool,
    under_way: bool,
    pub(crate) websocket_deflate: bool,
}

/// Returns whether a query key is, or may decode to, the `intent` of a realtime session.
fn is_intent(key: &str) -> bool {
    key.eq_ignore_ascii_case("intent") || key.contains('%')
}

impl Transaction {
    /// Creates the transaction at the first byte of a request, at stream position `start`.
    pub(crate) fn new(exchange: u64, at_ns: u64, start: u64) -> Self {
        let call = Call { exchange, request_at_ns: at_ns, request_seen: true, ..Call::default() };
        Self {
            call,
            endpoint: None,
            certain: false,
            host_provider: None,
            host_region: None,
            mcp_head: None,
            request: None,
            response: None,
            start,
            request_body_bytes: 0,
            announced: None,
            memory: Share::default(),
            manner: Manner::default(),
            query_model: None,
            claims: Vec::new(),
            wanted: Arc::default(),
            request_ended: false,
            request_complete: false,
            response_ended: false,
            response_complete: false,
            last_data_ns: 0,
            reported: false,
            under_way: false,
            websocket_deflate: false,
        }
    }

    /// Creates the transaction for client bytes at position `start`, unreadable as a request: only
    /// the peer named by the connection is known.
    pub(crate) fn unread(exchange: u64, at_ns: u64, start: u64, context: &Context) -> Self {
        let mut it = Self::new(exchange, at_ns, start);
        it.unreadable(Unreadable::Head);
        it.request_head(&Head { partial: true, ..Head::default() }, context);
        it
    }

    /// Reports an unreadable request and ends the exchange: no response can be assigned to the
    /// request.
    pub(crate) fn tell_unread(mut self, at_ns: u64, end: u64, sink: &mut dyn Sink) {
        self.end_request(end, false, sink);
        self.end_response(at_ns, false, sink);
    }

    /// Creates the transaction of a response without a seen request.
    pub(crate) fn unasked(at_ns: u64) -> Self {
        let mut it = Self::new(0, at_ns, 0);
        it.call.request_seen = false;
        it.request_ended = true;
        it
    }

    /// Returns whether the exchange is the handshake of an API with requests and responses sent as
    /// messages.
    pub(crate) fn is_realtime(&self) -> bool {
        self.endpoint.as_ref().is_some_and(|endpoint| {
            matches!(endpoint.api, "openai.realtime" | "openai.responses" | "gemini.live")
        })
    }

    /// Creates a turn on the connection opened by the handshake.
    pub(crate) fn turn(&self, exchange: u64, context: &Context) -> Self {
        let mut turn = Self::new(exchange, self.call.request_at_ns, 0);
        turn.host_provider = self.host_provider;
        turn.host_region.clone_from(&self.call.region);
        turn.certain = true;
        turn.endpoint =
            self.endpoint.clone().map(|endpoint| Endpoint { kind: Kind::Inference, ..endpoint });
        let Call { server_address, server_port, method, path, .. } = &self.call;
        turn.call.server_address.clone_from(server_address);
        turn.call.server_port = *server_port;
        turn.call.method.clone_from(method);
        turn.call.path.clone_from(path);
        turn.call.other_provider.clone_from(&self.call.other_provider);
        turn.call.status = self.call.status;
        turn.claims.clone_from(&self.claims);
        turn.wanted = Arc::clone(&context.wanted);
        turn.memory = Share::of(&context.memory);
        let texts = Texts::new(context.text_limit);
        turn.request = Some(Body::of_messages(&dialect::REQUESTS, Some(texts)));
        turn.refresh();
        turn
    }

    pub(crate) fn begin_at(&mut self, at_ns: u64, start: u64) {
        self.call.request_at_ns = at_ns;
        self.start = start;
    }

    /// Marks the request as begun by the server itself.
    pub(crate) fn mark_under_way(&mut self) {
        self.under_way = true;
    }

    /// Turns the request into a transcription: a model other than the session's transcribes the
    /// audio, at a separate price.
    pub(crate) fn become_transcription(&mut self, model: String) {
        if let Some(endpoint) = &mut self.endpoint {
            endpoint.operation = Some("audio_transcription");
            endpoint.model = Some(model);
        }
    }

    /// Takes the name of the transcription model, if named by the messages since the last call.
    pub(crate) fn take_transcriber(&mut self) -> Option<String> {
        self.request.as_mut()?.facts_mut().take_text(Field::Transcriber)
    }

    /// Ends a message of the client. Returns whether the message could be read.
    pub(crate) fn end_message(&mut self) -> bool {
        self.request.as_mut().is_none_or(Body::end_message)
    }

    /// Returns whether the messages sent so far request a response.
    pub(crate) fn asks(&self) -> bool {
        let Some(facts) = self.request.as_ref().map(Body::facts) else { return false };
        facts.text(Field::Type) == Some("response.create") || facts.has(Field::ClientContent)
    }

    /// Takes the server's messages as the response.
    pub(crate) fn answer(&mut self, answer: Body) {
        self.response = Some(answer);
    }

    pub(crate) fn call(&self) -> &Call {
        &self.call
    }

    pub(crate) fn call_mut(&mut self) -> &mut Call {
        &mut self.call
    }

    pub(crate) fn into_call(self) -> Call {
        self.call
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
            texts: self.request.as_ref().and_then(Body::texts),
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

    /// Takes the head of the request.
    pub(crate) fn request_head(&mut self, head: &Head, context: &Context) {
        self.call.method.clone_from(&head.method);
        self.claims.clone_from(&head.claims);
        self.wanted = Arc::clone(&context.wanted);
        self.locate(head, context);
        self.route(head, context);
        let odd = head.target.as_deref().is_some_and(|target| {
            is_odd_target(head.method.as_deref().unwrap_or_default(), target)
        });
        let known = self.host_provider.is_some() || self.endpoint.is_some();
        if (head.malformed || odd) && known {
            self.doubt();
        }
        self.announced = head.content_length;
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
        self.memory = Share::of(&context.memory);
        let texts = Texts::new(context.text_limit);
        let grpc = self.endpoint.as_ref().and_then(|endpoint| endpoint.grpc).map(|it| it.request);
        let hints = Hints { grpc, ..head.hints() };
        let body = Body::new(&dialect::REQUESTS, hints, Some(texts));
        self.request = Some(if context.digests { body.with_digest() } else { body });
        self.refresh();
    }

    /// Determines the addressed provider. Every known name counts: the first provider name decides,
    /// with names of the connection before names of the head. A different provider is recorded as
    /// the second.
    fn locate(&mut self, head: &Head, context: &Context) {
        let absolute = head.target.as_deref().and_then(absolute_form).map(|(name, _)| name);
        let named = absolute.or(head.authority.as_deref()).map(split_port);
        let (host, port) = match named {
            Some((host, port)) => (Some(host.to_owned()), port),
            None => (context.server_name.clone(), None),
        };
        let remote_port = context.remote.map(|remote| remote.port());
        let by_address = context.remote.map(|remote| remote.ip().to_string());
        self.call.server_port = port.or(remote_port);
        let server_port = self.call.server_port;
        let find = |name: &str, port: Option<u16>| {
            let find = |port| context.hosts.find(name, port);
            let port = port.or(server_port);
            let other = remote_port.filter(|it| Some(*it) != port);
            let known = find(port).or_else(|| other.and_then(|_| find(other)));
            known.map(|known| known.provider)
        };
        let connection = [context.server_name.as_deref(), by_address.as_deref()];
        let of_head = absolute.into_iter().chain(head.authority.as_deref());
        let of_head = of_head.chain(head.other_names.iter().map(String::as_str)).map(split_port);
        let all = connection.into_iter().flatten().map(|name| (name, None)).chain(of_head);
        let known: Vec<(&str, &'static str)> =
            all.filter_map(|(name, port)| Some((name, find(name, port)?))).collect();
        self.host_provider = known.first().map(|(_, provider)| *provider);
        let region = |name: &str| region_of_host(&name.to_ascii_lowercase()).map(str::to_owned);
        let mut regions = known.iter().filter_map(|(name, _)| region(name));
        let first = regions.next();
        let elsewhere = regions.any(|it| Some(&it) != first.as_ref());
        let other = known.iter().find(|(_, it)| Some(*it) != self.host_provider);
        let other = other.or(known.last().filter(|_| elsewhere)).map(|(_, it)| (*it).to_owned());
        let host = match (&other, known.first()) {
            (Some(_), Some((name, _))) => Some((*name).to_owned()),
            _ => host,
        };
        self.call.other_provider = other;
        self.call.server_address = host.or(by_address);
        let of_address = self.call.server_address.as_deref().and_then(region_of_host);
        self.host_region = of_address.map(str::to_owned).or(first);
        let peer = context.server_name.as_deref();
        let provider_is_peer = peer.is_some_and(|name| find(name, None).is_some());
        let authority_form = head.target.as_deref().is_some_and(|it| !it.starts_with('/'));
        self.manner.tunnel = head.method.as_deref() == Some("CONNECT")
            && head.protocol.is_none()
            && authority_form
            && context.server_name.is_some()
            && !provider_is_peer;
    }

    fn route(&mut self, head: &Head, context: &Context) {
        let method = head.method.as_deref().unwrap_or_default();
        let upgrade = head.upgrade.as_deref().filter(|it| !it.eq_ignore_ascii_case("h2c"));
        self.manner.safe = matches!(method, "GET" | "HEAD" | "OPTIONS");
        self.manner.upgrade = upgrade.is_some() || head.protocol.is_some() || method == "CONNECT";
        self.manner.has_body = head.has_body;
        let Some(target) = head.target.as_deref() else { return };
        let after_authority = absolute_form(target).map_or(target, |(_, rest)| rest);
        let sent = after_authority.split(['?', '#']).next().unwrap_or_default();
        self.call.path = Some(if sent.is_empty() { "/".to_owned() } else { sent.to_owned() });
        let path = Path::normalise(sent);
        let segments: Vec<&str> = path.segments().collect();
        // Azure AI serves both flavours under the same host name.
        let openai = segments.first().is_some_and(|name| name.eq_ignore_ascii_case("openai"));
        if self.host_provider == Some("azure.ai.inference") && openai {
            self.host_provider = Some("azure.ai.openai");
        }
        let host_provider = self.host_provider;
        let endpoint =
            |segments: &[&str]| dialect::endpoint(&Target { method, host_provider, segments });
        self.endpoint = endpoint(&segments);
        if self.endpoint.is_none() && host_provider.is_some() {
            let lower = path.lower();
            self.endpoint = endpoint(&lower.segments().collect::<Vec<_>>());
        }
        self.certain = host_provider.is_some();
        if path.is_odd() && host_provider.is_some() {
            self.doubt();
        }
        let server = self.call.server_address.as_deref();
        let own = |name: Option<&str>| {
            name.is_some_and(|name| context.hosts.is_harmless(name, method, &path))
        };
        // An inference is never harmless.
        let inference = self.endpoint.as_ref().is_some_and(|it| it.kind == Kind::Inference);
        if path.is_plain() && host_provider.is_some() && !inference {
            self.manner.listed = harmless::listed(host_provider.unwrap_or_default(), method, &path)
                .or_else(|| {
                    let listed = own(server) || own(context.server_name.as_deref());
                    listed.then_some(Listed::Harmless)
                });
        }
        let query = after_authority.split_once('?').map(|(_, query)| query);
        let (model, clear) = query.map_or((None, true), query_model);
        // Only handshakes take the model from the query; elsewhere the query would hide the body's
        // model.
        if let Some(endpoint) = &mut self.endpoint
            && endpoint.kind != Kind::Inference
            && let Some(model) = &model
        {
            endpoint.model.get_or_insert_with(|| model.clone());
            if !clear && host_provider.is_some() {
                self.doubt();
            }
        }
        // A session with an intent other than conversation has turns not read here.
        let intent = query.is_some_and(|it| {
            it.split('&').any(|pair| pair.split('=').next().is_some_and(is_intent))
        });
        let realtime = self.endpoint.as_ref().is_some_and(|it| it.kind == Kind::Management);
        if intent && realtime {
            self.doubt();
        }
        let of_path = || {
            let mut named = path.segments().skip_while(|it| !matches!(*it, "models" | "model"));
            let model = named.nth(1)?;
            Some(model.split(':').next().unwrap_or(model).to_owned())
        };
        self.query_model = model.or_else(of_path);
        let handshake = self.endpoint.as_ref().is_some_and(|it| it.kind == Kind::Management);
        if self.manner.upgrade && !handshake && !self.manner.tunnel && host_provider.is_some() {
            self.doubt();
        }
    }

    /// Returns whether the request is harmless, by the list or as a plain question: no model works
    /// on the request, and nothing in the request can become work for a model.
    fn is_harmless(&self) -> bool {
        let Manner { listed, safe, upgrade, has_body, tunnel, doubtful } = self.manner;
        let handshake = self.endpoint.as_ref().is_some_and(|it| it.kind == Kind::Management);
        let plain = safe && !upgrade && !has_body && self.request_body_bytes == 0;
        let head = doubtful || self.call.unreadable == Some(Unreadable::Head);
        let handshake = handshake && !has_body && self.request_body_bytes == 0;
        let read = plain || handshake || listed == Some(Listed::Harmless);
        tunnel || read && !head && self.call.method.is_some()
    }

    pub(crate) fn request_data(&mut self, bytes: &[u8]) {
        let first = self.request_body_bytes == 0 && !bytes.is_empty();
        self.request_body_bytes += bytes.len() as u64;
        if let Some(body) = &mut self.request {
            body.feed(bytes);
        }
        if first {
            self.refresh();
        }
        self.account();
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
        self.account();
    }

    /// Accounts for the memory of both bodies. If the common memory is exhausted, both bodies give
    /// up decompression and prose.
    fn account(&mut self) {
        /// Bytes free for every exchange: only bytes beyond are counted.
        const FREE: usize = 64 << 10;
        let bodies = [&self.request, &self.response];
        let held = |body: &Body| body.shared_bytes();
        let bytes = bodies.into_iter().flatten().map(held).sum::<usize>();
        if !self.memory.set(bytes.saturating_sub(FREE)) {
            [&mut self.request, &mut self.response].into_iter().flatten().for_each(Body::give_up);
            self.memory.set(0);
        }
        self.heed_unreadable();
    }

    /// Copies the reason for unreadable bodies to the call. The first reason stays, so the copy
    /// can't wait for a refresh: the time of a refresh depends on how the bytes were cut.
    fn heed_unreadable(&mut self) {
        let mut of_bodies = [&self.request, &self.response].into_iter().flatten();
        let reason = of_bodies.find_map(Body::unreadable);
        self.call.unreadable = self.call.unreadable.or(reason);
    }

    /// Takes the fields after the body, with the status of gRPC.
    pub(crate) fn response_trailers(&mut self, head: &Head) {
        let status = head.grpc_status.as_deref().filter(|status| *status != "0");
        if let (Some(body), Some(status)) = (&mut self.response, status) {
            body.facts_mut().keep_text(Field::ErrorType, status);
        }
    }

    /// Records missing bytes of the request body.
    pub(crate) fn request_gap(&mut self, bytes: Option<u64>) {
        self.missing(bytes);
        if let Some(body) = &mut self.request {
            body.gap();
        }
    }

    /// Records missing bytes of the response body.
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

    /// Marks the request as ambiguous and not harmless: the head or the end can be read in two
    /// ways.
    pub(crate) fn doubt(&mut self) {
        self.manner.doubtful = true;
        self.unreadable(Unreadable::Head);
    }

    pub(crate) fn unreadable(&mut self, reason: Unreadable) {
        self.call.unreadable.get_or_insert(reason);
    }

    /// Ends and reports the request; `complete` is false if no more of the request can be read.
    pub(crate) fn end_request(&mut self, end: u64, complete: bool, sink: &mut dyn Sink) {
        if self.request_ended {
            return;
        }
        self.request_ended = true;
        self.request_complete = complete;
        let bytes = self.request_body_bytes;
        let whole = complete && self.call.unreadable != Some(Unreadable::Gap);
        if whole && self.announced.is_some_and(|announced| announced != bytes) {
            self.doubt();
        }
        if let Some(body) = &mut self.request {
            body.end(complete);
            let named = self.endpoint.as_ref().is_some_and(|endpoint| endpoint.model.is_some());
            let opaque = body.is_opaque() && self.host_provider.is_some();
            if opaque && !(named && body.is_media()) {
                self.unreadable(Unreadable::Body);
            }
        }
        self.refresh();
        let none = Texts::default();
        let texts = self.request.as_ref().and_then(Body::texts).unwrap_or(&none);
        let digest = self.request.as_ref().filter(|_| complete).and_then(Body::digest);
        let (call, start, under_way) = (&self.call, self.start, self.under_way);
        sink.request(&Request { call, complete, start, end, under_way, digest, texts });
        if let Some(body) = &mut self.request {
            body.drop_texts();
        }
        self.account();
        self.report(sink);
    }

    /// Ends the response; `complete` is false if no more of the response can be read.
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

    /// Returns whether the API marked the answer as whole: later events of the transport change
    /// nothing.
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

    /// Reports an exchange without a seen request.
    pub(crate) fn report_unasked(mut self, end: u64, sink: &mut dyn Sink) {
        let none = Texts::default();
        let request = Request {
            call: &self.call,
            complete: false,
            start: end,
            end,
            under_way: false,
            digest: None,
            texts: &none,
        };
        sink.request(&request);
        self.response_ended = true;
        let Self { call, response_complete, .. } = self;
        sink.exchange(Exchange { call, response_complete });
    }

    /// Refreshes the call if a body kept a fact since the last check.
    pub(crate) fn refresh_if_changed(&mut self) {
        let changed = |body: &mut Option<Body>| {
            body.as_mut().is_some_and(|body| body.facts_mut().take_dirty())
        };
        let (request, response) = (changed(&mut self.request), changed(&mut self.response));
        if request || response {
            self.refresh();
        }
    }

    /// Reads the facts of both bodies into the call. Number and times of refreshes depend on how
    /// the bytes were cut: no result of an earlier refresh may stay.
    fn refresh(&mut self) {
        self.heed_unreadable();
        forget(&mut self.call);
        self.call.provider = self.host_provider.map(str::to_owned);
        self.call.region.clone_from(&self.host_region);
        self.read_bodies();
        self.call.claims.clone_from(&self.claims);
        if let Some(body) = &self.request {
            self.wanted.body(body.facts(), &mut self.call.claims);
        }
        self.call.unlisted = self.host_provider.is_some()
            && self.call.request_seen
            && self.call.kind != Kind::Inference
            && !self.is_harmless();
        if !self.call.unlisted {
            return;
        }
        let none = Facts::default();
        let facts = self.request.as_ref().map_or(&none, Body::facts);
        let named = [Field::Model, Field::ModelId].into_iter().find_map(|it| facts.text(it));
        self.call.unlisted_model = named.map(str::to_owned).or_else(|| self.query_model.clone());
        self.call.counts_tokens = self.manner.listed == Some(Listed::Counts);
    }

    fn read_bodies(&mut self) {
        let Self { call, request, response, endpoint, certain, host_provider, mcp_head, .. } = self;
        let none = Facts::default();
        let bodies = Bodies {
            request: request.as_ref().map_or(&none, Body::facts),
            response: response.as_ref().map_or(&none, Body::facts),
        };
        call.stream_response = response.as_ref().is_some_and(Body::is_stream);
        call.written_bytes = bodies.response.written_bytes();
        let known = match endpoint {
            Some(known) if *certain || is_confirmed(known, &bodies, call) => Some(known.clone()),
            Some(_) => dialect::guess(&bodies).filter(|it| it.kind != Kind::Inference),
            None => guess(call, *host_provider, response.is_some(), &bodies),
        };
        let Some(known) = known else {
            let managed = host_provider.is_some() && call.path.is_some();
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

/// Clears the facts taken from bodies: the bodies are read anew, and may yield other facts by now.
fn forget(call: &mut Call) {
    call.request_model = None;
    call.response_model = None;
    call.response_id = None;
    call.finish_reasons.clear();
    call.tool_calls.clear();
    call.server_tool_calls.clear();
    call.stream = false;
    call.max_output_tokens = None;
    call.other_models.clear();
    call.input_by_reference = false;
    call.choices = None;
    call.params = RequestParams::default();
    call.usage = Usage::default();
    call.error_type = None;
    call.conversation_id = None;
    call.response_status = None;
    call.service_tier = None;
    call.system_fingerprint = None;
    call.unlisted_model = None;
    call.counts_tokens = false;
}

/// Returns whether the request body confirms the endpoint of the path, at an unknown host.
fn is_confirmed(endpoint: &Endpoint, bodies: &Bodies<'_>, call: &Call) -> bool {
    let unread = bodies.request.is_empty() && call.unreadable.is_some();
    let telling = endpoint.api == "openai.chat" || endpoint.model.is_some();
    endpoint.kind != Kind::Inference
        || endpoint.dialect.confirms(endpoint, bodies.request)
        || unread && telling
}

/// Guesses the endpoint of an exchange without a telling path.
fn guess(
    call: &Call,
    host_provider: Option<&'static str>,
    answered: bool,
    bodies: &Bodies<'_>,
) -> Option<Endpoint> {
    let guessed = dialect::guess(bodies).filter(|guess| {
        // Requests other than POST fetch stored data and ask no model.
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

/// Splits a target in absolute form ([RFC 9112 §3.2.2][rfc]) into authority and rest. The target
/// must begin with an HTTP scheme, so no text in a path or query is taken for a scheme.
///
/// [rfc]: https://www.rfc-editor.org/rfc/rfc9112#section-3.2.2
fn absolute_form(target: &str) -> Option<(&str, &str)> {
    let rest = ["http://", "https://"].into_iter().find_map(|scheme| {
        let start = target.get(..scheme.len())?;
        start.eq_ignore_ascii_case(scheme).then(|| target.get(scheme.len()..))?
    })?;
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    Some((rest.get(..end)?, rest.get(end..)?))
}

/// Splits a port off an authority ([RFC 3986
/// §3.2](https://www.rfc-editor.org/rfc/rfc3986#section-3.2)).
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

/// Returns the model named by a query, and whether every server reads the same model.
fn query_model(query: &str) -> (Option<String>, bool) {
    let mut named = query.split('&').filter_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        let name = dialect::percent_decode(name);
        let wanted = ["model", "deployment"].iter().any(|it| it.eq_ignore_ascii_case(&name));
        wanted.then_some(value)
    });
    let first = named.next();
    let model = first.map(dialect::percent_decode).filter(|it| it.len() <= Facts::TEXT_LIMIT);
    let clear = named.next().is_none() && first.is_some() == model.is_some();
    let clear = clear && !model.as_deref().is_some_and(|it| it.contains([';', '\u{fffd}', '\0']));
    (model, clear)
}
