//! Content codings of HTTP bodies, undone as they come: gzip, deflate, br, zstd.
//!
//! [RFC 9110 §8.4][rfc] names them. What is decoded is handed on at once and not kept; what a
//! decompressor needs for itself is its window: 32 KiB (gzip, deflate), 16 MiB at most (br,
//! RFC 7932 §9.1), 8 MiB at most (zstd).
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
    /// Some other coding, or several one over the other.
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

/// Undoes one coding.
pub(crate) struct Decoder {
    engine: Engine,
    /// What the decompressor writes into before it is handed on.
    out: Vec<u8>,
    bytes_in: u64,
    bytes_out: u64,
    ended: bool,
}

impl Decoder {
    /// zstd's window is held to 8 MiB, as [RFC 9659] has it for HTTP.
    ///
    /// [RFC 9659]: https://www.rfc-editor.org/rfc/rfc9659
    const ZSTD_WINDOW_LOG: u32 = 23;
    /// A body may expand freely up to here,
    pub(crate) const FREE_OUTPUT: u64 = 64 << 20;
    /// and past it by this factor. Text compresses by less than a hundred.
    pub(crate) const EXPANSION_LIMIT: u64 = 256;
    const OUT_BYTES: usize = 16 << 10;

    /// `None` for the identity.
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

    /// Takes the next piece and hands on what it decodes to.
    pub(crate) fn feed(
        &mut self,
        mut bytes: &[u8],
        mut out: impl FnMut(&[u8]),
    ) -> Result<(), Unreadable> {
        self.bytes_in += bytes.len() as u64;
        loop {
            let (used, made, more) = self.step(bytes)?;
            self.bytes_out += made as u64;
            out(self.out.get(..made).unwrap_or_default());
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

    /// One call of the decompressor: bytes used, bytes made, whether more output waits.
    fn step(&mut self, bytes: &[u8]) -> Result<(usize, usize, bool), Unreadable> {
        let Self { engine, out, ended, .. } = self;
        match engine {
            Engine::Gzip(inflate) => {
                if *ended && !bytes.is_empty() {
                    // Members follow one another (RFC 1952 §2.2); padding after them is no member.
                    if bytes.first() != Some(&0x1f) {
                        return Ok((bytes.len(), 0, false));
                    }
                    *inflate = Decompress::new_gzip(15);
                    *ended = false;
                }
                inflate_step(inflate, bytes, out, ended)
            }
            Engine::Deflate(inflate) => {
                let Some(&first) = bytes.first() else { return Ok((0, 0, false)) };
                if *ended {
                    return Ok((bytes.len(), 0, false));
                }
                // The coding is zlib's format; some servers send it without the wrapper.
                let wrapped = first & 0x0f == 8 && first >> 4 <= 7;
                let inflate = inflate.get_or_insert_with(|| Decompress::new(wrapped));
                inflate_step(inflate, bytes, out, ended)
            }
            Engine::Brotli(state) => brotli_step(state, bytes, out),
            Engine::Zstd(context) => {
                let mut input = InBuffer::around(bytes);
                let mut output = OutBuffer::around(out.as_mut_slice());
                context
                    .decompress_stream(&mut output, &mut input)
                    .map_err(|_| Unreadable::Corrupt)?;
                let made = output.pos();
                Ok((input.pos, made, made == Self::OUT_BYTES))
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

fn inflate_step(
    inflate: &mut Decompress,
    bytes: &[u8],
    out: &mut [u8],
    ended: &mut bool,
) -> Result<(usize, usize, bool), Unreadable> {
    let (before_in, before_out) = (inflate.total_in(), inflate.total_out());
    let status =
        inflate.decompress(bytes, out, FlushDecompress::None).map_err(|_| Unreadable::Corrupt)?;
    *ended = status == Status::StreamEnd;
    let used = usize::try_from(inflate.total_in() - before_in).unwrap_or(bytes.len());
    let made = usize::try_from(inflate.total_out() - before_out).unwrap_or(0);
    Ok((used, made, made == out.len()))
}

fn brotli_step(
    state: &mut Brotli,
    bytes: &[u8],
    out: &mut [u8],
) -> Result<(usize, usize, bool), Unreadable> {
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
    match result {
        BrotliResult::ResultFailure => Err(Unreadable::Corrupt),
        BrotliResult::ResultSuccess => Ok((bytes.len(), made, false)),
        BrotliResult::NeedsMoreInput => Ok((used, made, false)),
        BrotliResult::NeedsMoreOutput => Ok((used, made, true)),
    }
}
