//! Headers and addresses of a packet leaving or reaching a socket.

use aya_ebpf::{bindings::__sk_buff, programs::SkBuffContext};

pub(crate) const IPPROTO_TCP: u8 = 6;
pub(crate) const IPPROTO_UDP: u8 = 17;

/// Positions in a TCP or UDP packet, counted from the IP header.
#[derive(Clone, Copy)]
pub(crate) struct Packet {
    pub(crate) protocol: u8,
    /// 4 or 6.
    pub(crate) ip_version: u32,
    /// The TCP or UDP header.
    pub(crate) header_at: u32,
    pub(crate) payload_at: u32,
    /// 0 without payload.
    pub(crate) payload_len: u32,
}

/// Both ends: network byte order, the first four bytes for IPv4; ports in host byte order.
#[derive(Clone, Copy)]
pub(crate) struct Ends {
    pub(crate) local: [u8; 16],
    pub(crate) remote: [u8; 16],
    pub(crate) local_port: u16,
    pub(crate) remote_port: u16,
}

/// Returns `len`, limited to the range from 1 to `LIMIT`, a power of two. The form suits the
/// verifier of every kernel: verifiers before 6.2 don't learn from a comparison with 0.
#[inline(always)]
pub(crate) fn bounded<const LIMIT: u32>(len: u32) -> u32 {
    const { assert!(LIMIT.is_power_of_two()) };
    let less = if len > LIMIT { LIMIT - 1 } else { len.wrapping_sub(1) };
    // Opaque, so that the mask stays.
    (core::hint::black_box(less) & (LIMIT - 1)) + 1
}

/// Maximum of skipped extension headers of an IPv6 packet.
const EXTENSIONS: u32 = 8;

/// Returns protocol and position of the header after an IPv6 packet's extension headers (RFC 8200
/// §4). A socket sends extension headers on request (`IPV6_DSTOPTS` and similar options).
#[inline(always)]
fn behind_extensions(ctx: &SkBuffContext) -> Option<(u8, u32)> {
    const FRAGMENT: u8 = 44;
    const AUTHENTICATION: u8 = 51;
    let mut next = ctx.load::<u8>(6).ok()?;
    let mut at = 40;
    let mut passed = 0;
    while passed < EXTENSIONS {
        // Hop-by-hop, routing, fragment, authentication, destination, mobility, HIP, shim.
        if !matches!(next, 0 | 43 | FRAGMENT | AUTHENTICATION | 60 | 135 | 139 | 140) {
            return Some((next, at));
        }
        let [following, size] = ctx.load::<[u8; 2]>(at as usize).ok()?;
        at += match next {
            FRAGMENT => 8,
            AUTHENTICATION => (u32::from(size) + 2) * 4,
            _ => (u32::from(size) + 1) * 8,
        };
        next = following;
        passed += 1;
    }
    None
}

/// Returns the positions of the headers of a packet, in bytes from the lowest: 1, protocol, IP
/// version, nothing, position of the TCP or UDP header and position of the payload, two bytes each.
/// Returns 0 if the packet is neither TCP nor UDP, or not whole.
///
/// Separate function, so that the verifier goes through the paths of the headers once, and not
/// again with all code after the call.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn borders(skb: *mut __sk_buff) -> u64 {
    headers(&SkBuffContext::new(skb)).unwrap_or(0)
}

#[inline(always)]
fn headers(ctx: &SkBuffContext) -> Option<u64> {
    let first = ctx.load::<u8>(0).ok()?;
    let (ip_version, protocol, header_at) = match first >> 4 {
        4 => (4, ctx.load::<u8>(9).ok()?, u32::from(first & 0xf) * 4),
        6 => {
            let (protocol, header_at) = behind_extensions(ctx)?;
            (6, protocol, header_at)
        }
        _ => return None,
    };
    let header_len = match protocol {
        IPPROTO_TCP => u32::from(ctx.load::<u8>(header_at as usize + 12).ok()? >> 4) * 4,
        IPPROTO_UDP => 8,
        _ => return None,
    };
    let places = u64::from(header_at) << 32 | u64::from(header_at + header_len) << 48;
    Some(1 | u64::from(protocol) << 8 | ip_version << 16 | places)
}

impl Packet {
    /// Returns `None` if the packet is neither TCP nor UDP, or not whole.
    #[inline(always)]
    pub(crate) fn of(ctx: &SkBuffContext) -> Option<Self> {
        let [valid, protocol, ip_version, _, a, b, c, d] = borders(ctx.skb.skb).to_le_bytes();
        if valid == 0 {
            return None;
        }
        let header_at = u32::from(u16::from_le_bytes([a, b]));
        let payload_at = u32::from(u16::from_le_bytes([c, d]));
        let payload_len = ctx.len().saturating_sub(payload_at);
        Some(Self {
            protocol,
            ip_version: u32::from(ip_version),
            header_at,
            payload_at,
            payload_len,
        })
    }

    /// Returns the ends of a leaving packet: the source is the local end.
    #[inline(always)]
    pub(crate) fn ends(&self, ctx: &SkBuffContext) -> Option<Ends> {
        let mut local = [0; 16];
        let mut remote = [0; 16];
        if self.ip_version == 4 {
            local[..4].copy_from_slice(&ctx.load::<[u8; 4]>(12).ok()?);
            remote[..4].copy_from_slice(&ctx.load::<[u8; 4]>(16).ok()?);
        } else {
            local = ctx.load::<[u8; 16]>(8).ok()?;
            remote = ctx.load::<[u8; 16]>(24).ok()?;
        }
        let at = self.header_at as usize;
        Some(Ends {
            local,
            remote,
            local_port: u16::from_be_bytes(ctx.load(at).ok()?),
            remote_port: u16::from_be_bytes(ctx.load(at + 2).ok()?),
        })
    }
}
