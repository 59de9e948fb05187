//! Streaming decoders of HTTP content codings: gzip, deflate, br, zstd.
//!
//! Codings are named in [RFC 9110 §8.4][rfc]. Decoded bytes are passed on at once and not kept. A
//! decompressor keeps a window: 32 KiB (gzip, deflate), 16 MiB at most (br, RFC 7932 §9.1), 8 MiB
//! at most (zstd).
//!
//! [rfc]: https://www.rfc-editor.org/rfc/rfc9110#section-8.4

pub(crate) mod base64;

use std::fmt;

use brotli_decompressor::SliceWrapper;
use brotli_decompressor::{BrotliDecompressStream, BrotliResult, BrotliState, StandardAlloc};
use flate2::{Decompress, FlushDecompress, Status};
use zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer};

use crate::call::Unreadable;

/// A content coding, by its registered name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Coding {
    #[default]
    Identity,
    Gzip,
    Deflate,
    Brotli,
    Zstd,
    /// Another coding, or several layered codings.
    Unknown,
}

impl Coding {
    /// Reads a `Content-Encoding` field value.
    pub(crate) fn from_field(value: &str) -> Self {
        let mut codings = value.split(',').map(str::trim).filter(|name| !name.is_empty());
        let first = codings.next().unwrap_or("identity");
        if codings.next().is_some() {
            return Self::Unknown;
        }
        match first.to_ascii_lowercase().as_str() {
            "identity" => Self::Identity,
            "gzip" | "x-gzip" => Self::Gzip,
            "deflate" => Self::Deflate,
            "br" => Self::Brotli,
            "zstd" => Self::Zstd,
            _ => Self::Unknown,
        }
    }
}

type Brotli = BrotliState<StandardAlloc, StandardAlloc, StandardAlloc>;

enum Engine {
    Gzip(Decompress),
    Deflate(Option<Decompress>),
    Brotli(Box<Brotli>),
    Zstd(DCtx<'static>),
}

/// Result of a call of a decompressor.
struct Step {
    used: usize,
    made: usize,
    /// More output waits.
    more: bool,
    /// The rest can't be decoded.
    damaged: bool,
}

impl Step {
    fn skip(used: usize) -> Self {
        Self { used, made: 0, more: false, damaged: false }
    }
}

/// Decoder of a coding.
pub(crate) struct Decoder {
    engine: Engine,
    /// Output buffer of the decompressor.
    out: Vec<u8>,
    bytes_in: u64,
    bytes_out: u64,
    ended: bool,
}

impl Decoder {
    /// Window limit of zstd: 8 MiB, as required by [RFC 9659] for HTTP.
    ///
    /// [RFC 9659]: https://www.rfc-editor.org/rfc/rfc9659
    const ZSTD_WINDOW_LOG: u32 = 23;
    /// Decoded bytes of a body allowed at any expansion factor.
    pub(crate) const FREE_OUTPUT: u64 = 64 << 20;
    /// Maximum expansion factor past the free output. Text compresses by less than a hundred.
    pub(crate) const EXPANSION_LIMIT: u64 = 256;
    const OUT_BYTES: usize = 16 << 10;

    /// Creates a decoder; `None` for the identity.
    pub(crate) fn new(coding: Coding) -> Result<Option<Self>, Unreadable> {
        let engine = match coding {
            Coding::Identity => return Ok(None),
            Coding::Unknown => return Err(Unreadable::Coding),
            Coding::Gzip => Engine::Gzip(Decompress::new_gzip(15)),
            Coding::Deflate => Engine::Deflate(None),
            Coding::Brotli => Engine::Brotli(Box::new(BrotliState::new_strict(
                StandardAlloc::default(),
                StandardAlloc::default(),
                StandardAlloc::default(),
            ))),
            Coding::Zstd => {
                let mut context = DCtx::try_create().ok_or(Unreadable::Coding)?;
                context
                    .set_parameter(DParameter::WindowLogMax(Self::ZSTD_WINDOW_LOG))
                    .map_err(|_| Unreadable::Coding)?;
                Engine::Zstd(context)
            }
        };
        let out = vec![0; Self::OUT_BYTES];
        Ok(Some(Self { engine, out, bytes_in: 0, bytes_out: 0, ended: false }))
    }

    /// Takes the next piece and passes on the decoded bytes.
    pub(crate) fn feed(
        &mut self,
        mut bytes: &[u8],
        mut out: impl FnMut(&[u8]),
    ) -> Result<(), Unreadable> {
        self.bytes_in += bytes.len() as u64;
        loop {
            let Step { used, made, more, damaged } = self.step(bytes)?;
            self.bytes_out += made as u64;
            out(self.out.get(..made).unwrap_or_default());
            if damaged {
                return Err(Unreadable::Corrupt);
            }
            bytes = bytes.get(used..).unwrap_or_default();
            let allowed = self.bytes_in.saturating_mul(Self::EXPANSION_LIMIT);
            if self.bytes_out > allowed.max(Self::FREE_OUTPUT) {
                return Err(Unreadable::Bomb);
            }
            if !more && (bytes.is_empty() || used == 0 && made == 0) {
                return Ok(());
            }
        }
    }

    /// Calls the decompressor once.
    fn step(&mut self, bytes: &[u8]) -> Result<Step, Unreadable> {
        let Self { engine, out, ended, .. } = self;
        match engine {
            Engine::Gzip(inflate) => {
                if *ended && !bytes.is_empty() {
                    // Members follow one another (RFC 1952 §2.2); padding after the last is no
                    // member.
                    if bytes.first() != Some(&0x1f) {
                        return Ok(Step::skip(bytes.len()));
                    }
                    *inflate = Decompress::new_gzip(15);
                    *ended = false;
                }
                Ok(inflate_step(inflate, bytes, out, ended))
            }
            Engine::Deflate(inflate) => {
                if *ended {
                    return Ok(Step::skip(bytes.len()));
                }
                // Without input too: output left from the last call is still to come.
                let inflate = match (inflate.as_mut(), bytes.first()) {
                    (None, None) => return Ok(Step::skip(0)),
                    (Some(running), _) => running,
                    // The coding is zlib's format; some servers omit the wrapper.
                    (None, Some(first)) => {
                        let wrapped = first & 0x0f == 8 && first >> 4 <= 7;
                        inflate.insert(Decompress::new(wrapped))
                    }
                };
                Ok(inflate_step(inflate, bytes, out, ended))
            }
            Engine::Brotli(state) => Ok(brotli_step(state, bytes, out)),
            Engine::Zstd(context) => {
                let mut input = InBuffer::around(bytes);
                let mut output = OutBuffer::around(out.as_mut_slice());
                context
                    .decompress_stream(&mut output, &mut input)
                    .map_err(|_| Unreadable::Corrupt)?;
                let made = output.pos();
                Ok(Step { used: input.pos, made, more: made == Self::OUT_BYTES, damaged: false })
            }
        }
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        let engine = match &self.engine {
            Engine::Gzip(_) | Engine::Deflate(_) => 48 << 10,
            Engine::Brotli(state) => {
                size_of::<Brotli>() + state.ringbuffer.slice().len() + (64 << 10)
            }
            Engine::Zstd(context) => context.sizeof(),
        };
        size_of::<Self>() + self.out.capacity() + engine
    }
}

impl fmt::Debug for Decoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decoder").field("bytes_in", &self.bytes_in).finish_non_exhaustive()
    }
}

fn inflate_step(inflate: &mut Decompress, bytes: &[u8], out: &mut [u8], ended: &mut bool) -> Step {
    let (before_in, before_out) = (inflate.total_in(), inflate.total_out());
    let status = inflate.decompress(bytes, out, FlushDecompress::None);
    *ended = matches!(status, Ok(Status::StreamEnd));
    let used = usize::try_from(inflate.total_in() - before_in).unwrap_or(bytes.len());
    let made = usize::try_from(inflate.total_out() - before_out).unwrap_or(0);
    Step { used, made, more: made == out.len(), damaged: status.is_err() }
}

fn brotli_step(state: &mut Brotli, bytes: &[u8], out: &mut [u8]) -> Step {
    let (mut left_in, mut used) = (bytes.len(), 0);
    let (mut left_out, mut made) = (out.len(), 0);
    let mut total = 0;
    let result = BrotliDecompressStream(
        &mut left_in,
        &mut used,
        bytes,
        &mut left_out,
        &mut made,
        out,
        &mut total,
        state,
    );
    let ended = matches!(result, BrotliResult::ResultSuccess);
    Step {
        used: if ended { bytes.len() } else { used },
        made,
        // Brotli asks for input even while leftover output waits.
        more: matches!(result, BrotliResult::NeedsMoreOutput) || made == out.len(),
        damaged: matches!(result, BrotliResult::ResultFailure),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::{Compression, write::ZlibEncoder};

    use super::*;

    #[test]
    fn what_does_not_fit_into_one_output_comes_with_the_next() {
        for len in [Decoder::OUT_BYTES, Decoder::OUT_BYTES + 2, 3 * Decoder::OUT_BYTES + 1] {
            let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
            encoder.write_all(&vec![b'x'; len]).expect("memory");
            let coded = encoder.finish().expect("memory");
            // Without the checksum, so that nothing but the pending output is left to do.
            let coded = coded.split_at(coded.len() - 4).0;
            let mut decoder = Decoder::new(Coding::Deflate).expect("known").expect("coded");
            let mut made = 0;
            decoder.feed(coded, |bytes| made += bytes.len()).expect("sound");
            assert_eq!(made, len);
        }
    }
}
