//! Types describing a request and its response: the output of the crate.
//!
//! Facts are names, counts, identifiers and times; only [`Request`] and [`OpenRequest`] hold
//! payload text. `Debug` of every type may be printed anywhere: [`Request`] prints the length of
//! the text, never the text.

use std::fmt;

use crate::claims::Claim;

/// Direction of bytes on a connection. The client sends egress.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the client to the server.
    Egress,
    /// From the server to the client.
    Ingress,
}

/// Kind of an exchange. Only [`Kind::Inference`] uses a model.
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
    /// None of the other kinds, as far as known.
    #[default]
    Other,
}

/// Token counts reported by a provider for a call, as defined by the OpenTelemetry semantic
/// conventions.
///
/// `None` means not reported, not zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// All input tokens, including tokens read from or written to a cache.
    pub input_tokens: Option<u64>,
    /// All output tokens, reasoning included.
    pub output_tokens: Option<u64>,
    /// Part of `input_tokens` served from a cache.
    pub cache_read_input_tokens: Option<u64>,
    /// Part of `input_tokens` written to a cache.
    pub cache_creation_input_tokens: Option<u64>,
    /// Part of `output_tokens` spent on reasoning.
    pub reasoning_output_tokens: Option<u64>,
    /// Total reported by the provider, if any.
    pub total_tokens: Option<u64>,
    /// Part of `input_tokens` for audio.
    pub audio_input_tokens: Option<u64>,
    /// Part of `output_tokens` for audio.
    pub audio_output_tokens: Option<u64>,
    /// Part of `cache_creation_input_tokens` cached for an hour.
    pub cache_creation_hour_input_tokens: Option<u64>,
    /// Part of `cache_read_input_tokens` for audio.
    pub audio_cache_read_input_tokens: Option<u64>,
    /// Part of `input_tokens` for images.
    pub image_input_tokens: Option<u64>,
    /// Part of `output_tokens` for images.
    pub image_output_tokens: Option<u64>,
    /// Part of `cache_read_input_tokens` for images.
    pub image_cache_read_input_tokens: Option<u64>,
    /// Part of `input_tokens` for video.
    pub video_input_tokens: Option<u64>,
    /// Part of `output_tokens` for video.
    pub video_output_tokens: Option<u64>,
    /// Tokens of citations, not part of `output_tokens`.
    pub citation_tokens: Option<u64>,
    /// Web searches run by the provider.
    pub web_searches: Option<u64>,
    /// Searches of stored files run by the provider.
    pub file_searches: Option<u64>,
    /// Duration of the input audio, in milliseconds.
    pub audio_input_ms: Option<u64>,
    /// Document pages taken as input.
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
    /// Stored response continued by the request.
    pub previous_response_id: Option<String>,
    /// `text`, `json`, `image` or `speech`, if named by the request.
    pub output_type: Option<&'static str>,
    /// Service tier asked for.
    pub service_tier: Option<String>,
}

/// A JSON-RPC exchange of the Model Context Protocol or of Agent2Agent.
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
    /// Methods of the messages sent by the server in the response body, at most 64.
    pub server_messages: Vec<String>,
}

/// Reason why a body, or the rest of a body, could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unreadable {
    /// The head breaks the grammar of the protocol or exceeds the size limit.
    Head,
    /// The content coding is not implemented.
    Coding,
    /// The coded body is damaged.
    Corrupt,
    /// The coded body expands past the limit.
    Bomb,
    /// The decoded body is not of the declared type.
    Body,
    /// Bytes are missing; bytes after the gap may be unread.
    Gap,
}

/// A request and its response, as known so far. `None` or empty means not known, never a guess.
#[expect(clippy::struct_excessive_bools, reason = "facts that do not hang together")]
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Call {
    /// Number of the request on the connection, in order of appearance, from 0.
    pub exchange: u64,
    /// Kind of the exchange.
    pub kind: Kind,
    /// API flavour, e.g. `openai.chat`.
    pub api: Option<&'static str>,
    /// The request was seen. False: the request left before capture began, only the response was
    /// seen.
    pub request_seen: bool,
    /// Capture time of the first byte of the request, in nanoseconds.
    pub request_at_ns: u64,
    /// Capture time of the first byte of the response body, in nanoseconds.
    pub first_chunk_at_ns: Option<u64>,
    /// Capture time of the end of the response, in nanoseconds.
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
    /// Finish reason of each choice, in order, as spelled by the provider.
    pub finish_reasons: Vec<String>,
    /// Names of the client's tools called by the model, in order.
    pub tool_calls: Vec<String>,
    /// Names or types of the tools run by the provider, in order.
    pub server_tool_calls: Vec<String>,
    /// The request asked for a stream.
    pub stream: bool,
    /// The response's body is a stream.
    pub stream_response: bool,
    /// Limit on output tokens set by the request.
    pub max_output_tokens: Option<u64>,
    /// Number of choices asked for.
    pub choices: Option<u64>,
    /// Further parameters of the request.
    pub params: RequestParams,
    /// Token usage.
    pub usage: Usage,
    /// Error type or code of the provider, also from inside a stream; else the HTTP status code.
    pub error_type: Option<String>,
    /// Region, if named by host or path.
    pub region: Option<String>,
    /// Conversation or thread named by the request.
    pub conversation_id: Option<String>,
    /// Status of the response reported by the API, e.g. `completed`.
    pub response_status: Option<String>,
    /// Service tier of the response.
    pub service_tier: Option<String>,
    /// `system_fingerprint` of the response.
    pub system_fingerprint: Option<String>,
    /// Bytes of the request on the wire, head and body.
    pub request_bytes: u64,
    /// Bytes of the response on the wire, head and body.
    pub response_bytes: u64,
    /// Bytes of the exchange missed by capture, as far as known.
    pub missing_bytes: u64,
    /// The request goes to a provider, but is neither an inference known to a dialect nor on the
    /// list of the provider's harmless requests. Governance decides the request as unreadable.
    pub unlisted: bool,
    /// The unlisted request only counts tokens.
    pub counts_tokens: bool,
    /// Model named by an unlisted request, in body, path or query.
    pub unlisted_model: Option<String>,
    /// Second provider, if the provider host names seen for the exchange (server name, address,
    /// `Host`, `:authority`, target) do not all belong to [`Self::provider`] and to the same
    /// region.
    pub other_provider: Option<String>,
    /// Further models permitted by the request to answer, beside `request_model`.
    pub other_models: Vec<String>,
    /// Input of the request lies at the provider (an earlier response, a conversation, a file), so
    /// the length is not known.
    pub input_by_reference: bool,
    /// Reason for a lost or unreadable part of the exchange, if any.
    pub unreadable: Option<Unreadable>,
    /// Details of an MCP or A2A exchange.
    pub mcp: Option<McpCall>,
    /// Principals claimed by the client: the fields requested by [`crate::Connection::want`].
    pub claims: Vec<Claim>,
    /// Bytes of text written by the model, as far as read: the basis of estimates.
    pub written_bytes: u64,
    /// The server reported the request as not processed: by `REFUSED_STREAM`, or by a `GOAWAY`
    /// naming an earlier stream as the last ([RFC 9113 §8.7][rfc]).
    ///
    /// [rfc]: https://www.rfc-editor.org/rfc/rfc9113#section-8.7
    pub unprocessed: bool,
}

impl Call {
    /// `gen_ai.operation.name` of a request counting tokens without running a model. Not an
    /// inference.
    pub const COUNT_TOKENS: &'static str = "x_count_tokens";

    /// `gen_ai.operation.name` of a request to a provider, unknown to every dialect.
    pub const UNKNOWN: &'static str = "x_unknown";

    /// Returns the bytes of memory held by strings and lists.
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

/// A finished exchange, with all facts known.
#[derive(Clone, Debug, PartialEq)]
pub struct Exchange {
    /// The call.
    pub call: Call,
    /// The response ended, by the framing or by the API's own end mark. False: cut off, reset, or
    /// never received.
    pub response_complete: bool,
}

/// Text of a request: ordered pieces, bounded in size.
#[derive(Clone, Default)]
pub(crate) struct Texts {
    /// Every finished piece is valid UTF-8.
    text: Vec<u8>,
    /// Start of each piece in `text`.
    starts: Vec<u32>,
    open: bool,
    dropped_bytes: u64,
    dropped_chars: u64,
    limit: usize,
}

/// Counts the characters beginning in a piece of UTF-8. The piece may be cut within a character.
fn chars_of(piece: &[u8]) -> u64 {
    /// Bytes per part: a `u8` counter can't overflow, and small counters are added many at a time.
    const PART: usize = 255;
    let begins = |byte: &u8| u8::from(byte & 0xc0 != 0x80);
    let count = |part: &[u8]| u64::from(part.iter().map(begins).sum::<u8>());
    piece.chunks(PART).map(count).sum()
}

impl Texts {
    /// Maximum number of separate pieces; further text joins the last piece.
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

    /// Appends to the current piece. `piece` may be cut within a character.
    pub(crate) fn push(&mut self, piece: &[u8]) {
        let room = self.limit.saturating_sub(self.text.len());
        let (kept, dropped) = piece.split_at_checked(room).unwrap_or((piece, &[]));
        self.text.extend_from_slice(kept);
        self.dropped_bytes += dropped.len() as u64;
        self.dropped_chars += chars_of(dropped);
    }

    /// Ends the current piece.
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

    pub(crate) fn dropped_chars(&self) -> u64 {
        self.dropped_chars
    }

    /// Frees the kept text and keeps no more text.
    pub(crate) fn give_up(&mut self) {
        self.dropped_bytes += self.text.len() as u64 + 1;
        self.dropped_chars += chars_of(&self.text);
        self.text = Vec::new();
        self.starts = Vec::new();
        self.open = false;
        self.limit = 0;
    }

    pub(crate) fn len(&self) -> usize {
        self.text.len()
    }

    /// Returns the text kept from byte `from` on, in pieces. The last may be cut within a
    /// character.
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

/// A request after its end, or after the last readable byte.
pub struct Request<'a> {
    /// Facts known of the call.
    pub call: &'a Call,
    /// The end of the request was seen.
    pub complete: bool,
    /// Stream position of the first byte of the request.
    pub start: u64,
    /// Stream position after the last byte of the request. `u64::MAX`: no bytes sent by the client
    /// from `start` on can be read, however many will come; no other request follows.
    pub end: u64,
    /// The server began the work by itself, before a request of the client. All input of the work
    /// has left, whatever bytes are still held, and no refusal stops the work.
    pub under_way: bool,
    /// SHA-256 over the body without transfer and content coding. `None` unless digests were
    /// requested ([`crate::Connection::keep_digests`]) and the whole body was read; `None` for a
    /// WebSocket message.
    pub digest: Option<[u8; 32]>,
    pub(crate) texts: &'a Texts,
}

impl<'a> Request<'a> {
    /// Returns the text sent to the model (messages, prompts, inputs, system) as borrowed pieces in
    /// order.
    pub fn texts(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.texts.iter()
    }

    /// Returns whether text past the limit was dropped. [`Self::texts`] is incomplete then.
    #[must_use]
    pub fn texts_truncated(&self) -> bool {
        self.texts.dropped_bytes() > 0
    }

    /// Returns the bytes of text dropped past the limit.
    #[must_use]
    pub fn texts_dropped_bytes(&self) -> u64 {
        self.texts.dropped_bytes()
    }

    /// Returns the characters of text dropped past the limit.
    #[must_use]
    pub fn texts_dropped_chars(&self) -> u64 {
        self.texts.dropped_chars()
    }
}

impl fmt::Debug for Request<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { call, complete, start, end, under_way, digest, texts } = self;
        f.debug_struct("Request")
            .field("call", call)
            .field("complete", complete)
            .field("start", start)
            .field("end", end)
            .field("under_way", under_way)
            .field("digest", digest)
            .field("texts", texts)
            .finish()
    }
}

/// Receiver of decoded requests and exchanges.
pub trait Sink {
    /// Takes a request of any kind, once per exchange: at the end of the request, or once no more
    /// of the request can be read (`complete` is false then). Always before [`Sink::exchange`].
    fn request(&mut self, request: &Request<'_>);

    /// Takes an exchange, once: at the end of the response, or once no end can come.
    fn exchange(&mut self, exchange: Exchange);
}

/// Progress of reading egress, for the holder of the bytes.
#[derive(Clone, Copy, Debug)]
pub struct Egress<'a> {
    /// Stream position after the last byte seen.
    pub received: u64,
    /// Oldest request begun and not ended. `None`: no request is open, and all bytes received may
    /// leave once the reported requests are decided.
    pub open: Option<OpenRequest<'a>>,
}

/// A request begun and not ended.
#[derive(Clone, Copy, Debug)]
pub struct OpenRequest<'a> {
    /// Number of the request on the connection.
    pub exchange: u64,
    /// Stream position of the first byte.
    pub start: u64,
    /// Facts known so far.
    pub call: &'a Call,
    /// Bytes of the body seen so far.
    pub body_bytes: u64,
    pub(crate) texts: Option<&'a Texts>,
}

impl OpenRequest<'_> {
    /// Returns the bytes of text kept so far.
    #[must_use]
    pub fn text_bytes(&self) -> usize {
        self.texts.map_or(0, Texts::len)
    }

    /// Returns the text kept so far from byte `from` on, in pieces; the last piece may still grow.
    #[must_use]
    pub fn texts_from(&self, from: usize) -> Vec<String> {
        self.texts.map(|texts| texts.from(from)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_are_counted_by_their_first_bytes() {
        for text in ["", "plain", "\u{e9}\u{4e2d}\u{1f375}", &"a\u{e9}".repeat(400)] {
            assert_eq!(chars_of(text.as_bytes()), text.chars().count() as u64);
        }
        assert_eq!(chars_of(&[b'x'; 766]), 766);
        assert_eq!(chars_of("\u{4e2d}".as_bytes().get(1..).unwrap_or_default()), 0);
    }
}
