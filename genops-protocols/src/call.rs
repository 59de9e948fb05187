//! What is known of one request and its response: the value this crate hands out.
//!
//! Nothing here holds payload text: names, counts, identifiers and times only, so that `Debug` of
//! every type but [`Request`] may be printed anywhere, and [`Request`] prints no text either.

use std::fmt;

use crate::claims::Claim;

/// Which way bytes went. Egress is what the client sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the client to the server.
    Egress,
    /// From the server to the client.
    Ingress,
}

/// What sort of exchange it is. Only [`Kind::Inference`] uses a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A model works: chat, completion, embedding, image, audio, rerank, moderation, agent run.
    Inference,
    /// An AI provider's API, but no model works: lists, files, polling, token counting.
    Management,
    /// Model Context Protocol over HTTP.
    Mcp,
    /// Agent2Agent protocol (JSON-RPC over HTTP).
    A2a,
    /// Not known to be any of the others.
    #[default]
    Other,
}

/// Tokens a provider reports for one call, with the semantic-convention meaning.
///
/// `None` means not reported, which is not zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// All input tokens, those read from or written to a cache included.
    pub input_tokens: Option<u64>,
    /// All output tokens, reasoning included.
    pub output_tokens: Option<u64>,
    /// Part of `input_tokens` that a cache served.
    pub cache_read_input_tokens: Option<u64>,
    /// Part of `input_tokens` that was written to a cache.
    pub cache_creation_input_tokens: Option<u64>,
    /// Part of `output_tokens` that is reasoning.
    pub reasoning_output_tokens: Option<u64>,
    /// The provider's own total, where it reports one.
    pub total_tokens: Option<u64>,
    /// Part of `input_tokens` that is audio.
    pub audio_input_tokens: Option<u64>,
    /// Part of `output_tokens` that is audio.
    pub audio_output_tokens: Option<u64>,
    /// Part of `cache_creation_input_tokens` that is kept for an hour.
    pub cache_creation_hour_input_tokens: Option<u64>,
    /// Part of `cache_read_input_tokens` that is audio.
    pub audio_cache_read_input_tokens: Option<u64>,
    /// Part of `input_tokens` that is pictures.
    pub image_input_tokens: Option<u64>,
    /// Part of `output_tokens` that is pictures.
    pub image_output_tokens: Option<u64>,
    /// Part of `cache_read_input_tokens` that is pictures.
    pub image_cache_read_input_tokens: Option<u64>,
    /// Part of `input_tokens` that is video.
    pub video_input_tokens: Option<u64>,
    /// Part of `output_tokens` that is video.
    pub video_output_tokens: Option<u64>,
    /// Tokens of citations, beside `output_tokens`.
    pub citation_tokens: Option<u64>,
    /// Searches of the web that the provider ran.
    pub web_searches: Option<u64>,
    /// Searches of stored files that the provider ran.
    pub file_searches: Option<u64>,
    /// Sound that was taken in, in milliseconds.
    pub audio_input_ms: Option<u64>,
    /// Pages of documents that were taken in.
    pub pages: Option<u64>,
}

/// Parameters of the request, as sent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RequestParams {
    /// Sampling temperature.
    pub temperature: Option<f64>,
    /// Nucleus sampling bound.
    pub top_p: Option<f64>,
    /// Sampling among the k most likely tokens.
    pub top_k: Option<u64>,
    /// Penalty on frequent tokens.
    pub frequency_penalty: Option<f64>,
    /// Penalty on tokens already present.
    pub presence_penalty: Option<f64>,
    /// Seed for reproducible sampling.
    pub seed: Option<i64>,
    /// Strings that end the output.
    pub stop_sequences: Vec<String>,
    /// Reasoning effort, exactly as sent.
    pub reasoning_level: Option<String>,
    /// Dimensions asked for an embedding.
    pub dimensions: Option<u64>,
    /// Encoding formats asked for an embedding.
    pub encoding_formats: Vec<String>,
    /// The stored response this request continues.
    pub previous_response_id: Option<String>,
    /// `text`, `json`, `image` or `speech`, where the request says so.
    pub output_type: Option<&'static str>,
    /// Service tier asked for.
    pub service_tier: Option<String>,
}

/// One JSON-RPC exchange of the Model Context Protocol or of Agent2Agent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct McpCall {
    /// JSON-RPC method of the client's message.
    pub method: Option<String>,
    /// JSON-RPC id as a string; absent for notifications.
    pub request_id: Option<String>,
    /// Session id header.
    pub session_id: Option<String>,
    /// Protocol version, from header or body.
    pub protocol_version: Option<String>,
    /// Tool called.
    pub tool: Option<String>,
    /// Prompt fetched.
    pub prompt: Option<String>,
    /// Resource read or subscribed to.
    pub resource_uri: Option<String>,
    /// JSON-RPC error code of the response.
    pub rpc_error_code: Option<i64>,
    /// `isError` of a tool result.
    pub tool_error: bool,
    /// The client's message was a response to a request of the server.
    pub client_response: bool,
    /// Methods of the messages that the server sent in this body, at most 64.
    pub server_messages: Vec<String>,
}

/// Why a body, or the rest of it, could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unreadable {
    /// The head breaks its protocol's grammar or is longer than the limit.
    Head,
    /// A content coding that is not implemented.
    Coding,
    /// The coded body is damaged.
    Corrupt,
    /// The coded body expands past the limit.
    Bomb,
    /// The decoded body is not what its type says.
    Body,
    /// Bytes are missing, and what follows could not be placed.
    Gap,
}

/// One request and its response, as known so far. `None` or empty means not known, never a guess.
#[expect(clippy::struct_excessive_bools, reason = "facts that do not hang together")]
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Call {
    /// 0-based order of the requests seen on this connection.
    pub exchange: u64,
    /// What sort of exchange it is.
    pub kind: Kind,
    /// API flavour, e.g. `openai.chat`.
    pub api: Option<&'static str>,
    /// The request itself was seen. False for a response whose request left before capture began.
    pub request_seen: bool,
    /// When the request's first byte was seen.
    pub request_at_ns: u64,
    /// When the first byte of the response's body was seen.
    pub first_chunk_at_ns: Option<u64>,
    /// When the response's last byte was seen.
    pub end_at_ns: Option<u64>,
    /// Host name the client addressed.
    pub server_address: Option<String>,
    /// Port the client addressed.
    pub server_port: Option<u16>,
    /// HTTP method.
    pub method: Option<String>,
    /// Path without query.
    pub path: Option<String>,
    /// HTTP status code.
    pub status: Option<u16>,
    /// `gen_ai.provider.name`.
    pub provider: Option<String>,
    /// `gen_ai.operation.name`.
    pub operation: Option<String>,
    /// Model asked for.
    pub request_model: Option<String>,
    /// Model that answered.
    pub response_model: Option<String>,
    /// The provider's id of the response.
    pub response_id: Option<String>,
    /// One per choice, in order, as the provider spells them.
    pub finish_reasons: Vec<String>,
    /// Names of the client's tools that the model called, in order.
    pub tool_calls: Vec<String>,
    /// Names or types of the tools that the provider ran itself, in order.
    pub server_tool_calls: Vec<String>,
    /// The request asked for a stream.
    pub stream: bool,
    /// The response's body is a stream.
    pub stream_response: bool,
    /// Limit on output tokens that the request set.
    pub max_output_tokens: Option<u64>,
    /// Number of choices asked for.
    pub choices: Option<u64>,
    /// Further parameters of the request.
    pub params: RequestParams,
    /// Tokens used.
    pub usage: Usage,
    /// The provider's error type or code, also from inside a stream; else the status code.
    pub error_type: Option<String>,
    /// Region, where host or path says so.
    pub region: Option<String>,
    /// Conversation or thread the request names.
    pub conversation_id: Option<String>,
    /// Status the API reports for the response, e.g. `completed`.
    pub response_status: Option<String>,
    /// Service tier that served.
    pub service_tier: Option<String>,
    /// `system_fingerprint` of the response.
    pub system_fingerprint: Option<String>,
    /// Bytes of the request on the wire, head and body.
    pub request_bytes: u64,
    /// Bytes of the response on the wire, head and body.
    pub response_bytes: u64,
    /// Bytes of this exchange that capture missed, as far as known.
    pub missing_bytes: u64,
    /// It goes to a provider, and is neither inference that a dialect knows nor on the list of what is
    /// harmless there: whoever governs decides it as a request that can't be read.
    pub unlisted: bool,
    /// What is unlisted only counts tokens.
    pub counts_tokens: bool,
    /// Model that something unlisted names, in body, path or query.
    pub unlisted_model: Option<String>,
    /// A second provider, where the names that are known of it (server name, address, `Host`,
    /// `:authority`, target) do not all belong to [`Self::provider`], or to the same region of it.
    pub other_provider: Option<String>,
    /// Models beside `request_model` that may answer as well, as the request names them.
    pub other_models: Vec<String>,
    /// What it reads lies at the provider, so its length is not known: an earlier response, a
    /// conversation, a file.
    pub input_by_reference: bool,
    /// Something of this exchange was lost or could not be read, and why.
    pub unreadable: Option<Unreadable>,
    /// Details of an MCP or A2A exchange.
    pub mcp: Option<McpCall>,
    /// Whom it is for, by the client's word: the fields that [`crate::Connection::want`] asked for.
    pub claims: Vec<Claim>,
    /// Bytes of text that the model wrote, as far as read: what an estimate goes by.
    pub written_bytes: u64,
}

impl Call {
    /// `gen_ai.operation.name` of what counts tokens and runs nothing. It is no inference.
    pub const COUNT_TOKENS: &'static str = "x_count_tokens";

    /// `gen_ai.operation.name` of what goes to a provider and no dialect knows.
    pub const UNKNOWN: &'static str = "x_unknown";

    /// Bytes of memory its strings hold.
    pub(crate) fn memory_bytes(&self) -> usize {
        let optional = [
            &self.server_address,
            &self.method,
            &self.path,
            &self.provider,
            &self.operation,
            &self.request_model,
            &self.response_model,
            &self.response_id,
            &self.error_type,
            &self.region,
            &self.conversation_id,
            &self.other_provider,
            &self.unlisted_model,
            &self.response_status,
            &self.service_tier,
            &self.system_fingerprint,
            &self.params.reasoning_level,
            &self.params.previous_response_id,
            &self.params.service_tier,
        ];
        let lists = [
            &self.finish_reasons,
            &self.tool_calls,
            &self.server_tool_calls,
            &self.params.stop_sequences,
            &self.other_models,
            &self.params.encoding_formats,
        ];
        let strings = optional.into_iter().flatten().map(String::capacity).sum::<usize>();
        let listed = |list: &Vec<String>| {
            list.iter().map(|it| it.capacity() + size_of::<String>()).sum::<usize>()
        };
        let claims = self.claims.iter().map(|it| it.value.capacity() + size_of::<Claim>());
        let strings = strings + claims.sum::<usize>();
        strings + lists.into_iter().map(listed).sum::<usize>()
    }
}

/// A finished exchange: the call with everything known.
#[derive(Clone, Debug, PartialEq)]
pub struct Exchange {
    /// The call.
    pub call: Call,
    /// The response ended as its framing says. False: cut off, reset, or never came.
    pub response_complete: bool,
}

/// The text of one request: pieces in order, bounded.
#[derive(Clone, Default)]
pub(crate) struct Texts {
    /// Every finished piece is valid UTF-8.
    text: Vec<u8>,
    /// Where each piece starts in `text`.
    starts: Vec<u32>,
    open: bool,
    dropped_bytes: u64,
    limit: usize,
}

impl Texts {
    /// Most pieces kept apart; text past it joins the last piece.
    const PIECE_LIMIT: usize = 1 << 16;

    pub(crate) fn new(limit: usize) -> Self {
        Self { limit: limit.min(u32::MAX as usize), ..Self::default() }
    }

    pub(crate) fn begin(&mut self) {
        self.end();
        self.open = true;
        if self.starts.len() < Self::PIECE_LIMIT && self.limit > 0 {
            self.starts.push(u32::try_from(self.text.len()).unwrap_or(u32::MAX));
        }
    }

    /// Adds to the piece begun last; may be cut within a character.
    pub(crate) fn push(&mut self, piece: &[u8]) {
        let room = self.limit.saturating_sub(self.text.len());
        let (kept, dropped) = piece.split_at_checked(room).unwrap_or((piece, &[]));
        self.text.extend_from_slice(kept);
        self.dropped_bytes += dropped.len() as u64;
    }

    /// Ends the piece begun last.
    pub(crate) fn end(&mut self) {
        if !std::mem::take(&mut self.open) {
            return;
        }
        let start = self.starts.last().map_or(0, |&start| start as usize);
        let Some(piece) = self.text.get(start..) else { return };
        if let Err(error) = std::str::from_utf8(piece) {
            if error.error_len().is_none() && self.dropped_bytes > 0 {
                self.text.truncate(start + error.valid_up_to());
                return;
            }
            let mended = String::from_utf8_lossy(piece).into_owned();
            self.text.truncate(start);
            self.text.extend_from_slice(mended.as_bytes());
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &str> {
        let ends = self.starts.iter().skip(1).copied().chain([u32::MAX]);
        self.starts.iter().zip(ends).filter_map(|(&start, end)| {
            let end = (end as usize).min(self.text.len());
            let piece = self.text.get(start as usize..end)?;
            std::str::from_utf8(piece).ok().filter(|piece| !piece.is_empty())
        })
    }

    pub(crate) fn dropped_bytes(&self) -> u64 {
        self.dropped_bytes
    }

    /// Frees what is kept, and keeps no more of it.
    pub(crate) fn give_up(&mut self) {
        self.dropped_bytes += self.text.len() as u64 + 1;
        self.text = Vec::new();
        self.starts = Vec::new();
        self.open = false;
        self.limit = 0;
    }

    pub(crate) fn len(&self) -> usize {
        self.text.len()
    }

    /// What was kept from byte `from` on, in its pieces. The last may be cut within a character.
    pub(crate) fn from(&self, from: usize) -> Vec<String> {
        let ends = self.starts.iter().skip(1).map(|it| *it as usize).chain([self.text.len()]);
        let pieces = self.starts.iter().map(|it| *it as usize).zip(ends);
        let late = pieces.filter(|(_, end)| *end > from);
        late.filter_map(|(start, end)| {
            let piece = self.text.get(start.max(from)..end)?;
            Some(String::from_utf8_lossy(piece).into_owned())
        })
        .collect()
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.text.capacity() + self.starts.capacity() * size_of::<u32>()
    }
}

impl fmt::Debug for Texts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Texts").field("bytes", &self.text.len()).finish_non_exhaustive()
    }
}

/// A request whose end was seen, or of which no more can be read.
pub struct Request<'a> {
    /// What is known of the call.
    pub call: &'a Call,
    /// The request's end was seen.
    pub complete: bool,
    /// Stream position of the request's first byte.
    pub start: u64,
    /// Stream position after the request's last byte. `u64::MAX`: nothing that the client sends
    /// from its start on can be read, however much will come; no other request follows.
    pub end: u64,
    /// SHA-256 over its body, transfer and content coding undone. None unless it was asked for
    /// ([`crate::Connection::keep_digests`]) and all of the body was read, and for a message of a WebSocket.
    pub digest: Option<[u8; 32]>,
    pub(crate) texts: &'a Texts,
}

impl<'a> Request<'a> {
    /// The text sent to the model, as borrowed pieces in order: messages, prompts, inputs, system.
    pub fn texts(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.texts.iter()
    }

    /// Text past the limit was dropped: [`Self::texts`] is not all of it.
    #[must_use]
    pub fn texts_truncated(&self) -> bool {
        self.texts.dropped_bytes() > 0
    }

    /// Bytes of text past the limit.
    #[must_use]
    pub fn texts_dropped_bytes(&self) -> u64 {
        self.texts.dropped_bytes()
    }
}

impl fmt::Debug for Request<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { call, complete, start, end, digest, texts } = self;
        f.debug_struct("Request")
            .field("call", call)
            .field("complete", complete)
            .field("start", start)
            .field("end", end)
            .field("digest", digest)
            .field("texts", texts)
            .finish()
    }
}

/// Receives what is decoded.
pub trait Sink {
    /// Once per exchange of any kind, when the request's end was seen, or when no more of it can
    /// be read (`complete` is false then). Always before [`Sink::exchange`].
    fn request(&mut self, request: &Request<'_>);

    /// Once per exchange, when the response ended, or never will.
    fn exchange(&mut self, exchange: Exchange);
}

/// How far egress was read: for whoever holds the bytes back.
#[derive(Clone, Copy, Debug)]
pub struct Egress<'a> {
    /// Stream position after the last byte seen.
    pub received: u64,
    /// The oldest request that has begun and not ended. `None`: nothing is open, and everything
    /// received may leave once the requests reported are decided.
    pub open: Option<OpenRequest<'a>>,
}

/// A request that has begun and not ended.
#[derive(Clone, Copy, Debug)]
pub struct OpenRequest<'a> {
    /// Its number on this connection.
    pub exchange: u64,
    /// Stream position of its first byte.
    pub start: u64,
    /// What is known of it so far.
    pub call: &'a Call,
    /// Bytes of its body seen so far.
    pub body_bytes: u64,
    pub(crate) texts: Option<&'a Texts>,
}

impl OpenRequest<'_> {
    /// Bytes of text seen so far, as far as they are kept.
    #[must_use]
    pub fn text_bytes(&self) -> usize {
        self.texts.map_or(0, Texts::len)
    }

    /// The text seen so far from this byte on, in its pieces; the last may still go on.
    #[must_use]
    pub fn texts_from(&self, from: usize) -> Vec<String> {
        self.texts.map(|texts| texts.from(from)).unwrap_or_default()
    }
}
