//! The maps, each with its one writer.

use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    helpers::generated::bpf_ktime_get_ns,
    macros::map,
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf},
};
use genops_ebpf_common::{
    AddressKey, CONNECTIONS, Conn, ConnKey, DeniedKey, Hold, Join, Lineage, NAP_NS, NameKey,
    NameRule, Settings, Sock, TieKey, Usage, Verdict, loss,
};

/// Everything the agent reads. The agent sets the size before loading.
#[map]
pub(crate) static EVENTS: RingBuf = RingBuf::with_byte_size(8 << 20, 0);

/// When the agent was last woken for a record that nobody waits for: one element, by the monotonic clock.
#[map]
static WOKEN: Array<u64> = Array::with_max_entries(1, 0);

/// Bytes in the ring buffer from which on the agent is woken in any case.
const CROWDED_BYTES: u64 = 256 << 10;

/// Written by the agent: one element.
#[map]
pub(crate) static SETTINGS: Array<Settings> = Array::with_max_entries(1, 0);

/// TLS objects that speak to AI providers, and nothing else. Written by the programs.
#[map]
pub(crate) static CONNS: HashMap<ConnKey, Conn> = HashMap::with_max_entries(CONNECTIONS, 0);

/// Sockets to providers, by cookie. Written by the programs, deleted by the agent once they are closed. What
/// decides is in no map of which a stranger's entry could push it out.
#[map]
pub(crate) static SOCKS: HashMap<u64, Sock> = HashMap::with_max_entries(2 * CONNECTIONS, 0);

/// A zeroed [`Sock`] to insert, since it does not fit on the stack.
#[map]
static EMPTY_SOCK: Array<Sock> = Array::with_max_entries(1, 0);

/// Who connected a socket: its cookie, and the thread-group id, while it is open. Programs at packets can't ask
/// before Linux 6.10.
#[map]
pub(crate) static OWNERS: HashMap<u64, u32> = HashMap::with_max_entries(262_144, BPF_F_NO_PREALLOC);

/// What processes take of the maps that all share, by thread-group id. Written by the programs.
#[map]
pub(crate) static USAGE: HashMap<u32, Usage> = HashMap::with_max_entries(CONNECTIONS, 0);

/// How many TLS objects of each user are in [`CONNS`]. Written by the programs, corrected by the agent.
#[map]
pub(crate) static USERS: HashMap<u32, u32> = HashMap::with_max_entries(CONNECTIONS, 0);

/// When a process was last reported to have addressed a provider by UDP.
#[map]
pub(crate) static DATAGRAMS: LruHashMap<DeniedKey, u64> = LruHashMap::with_max_entries(16_384, 0);

/// Sockets of the initial network namespace that have asked a name server, by cookie. Whoever is not
/// in it is not believed; what is pushed out is only not learnt from.
#[map]
pub(crate) static ASKERS: LruHashMap<u64, u32> = LruHashMap::with_max_entries(8_192, 0);

/// Addresses of providers, with their number. Written by the agent.
#[map]
pub(crate) static ADDRESSES: LruHashMap<AddressKey, u32> = LruHashMap::with_max_entries(16_384, 0);

/// Addresses that programs of one user in one group call a provider's. Written by the agent.
#[map]
pub(crate) static TIES: HashMap<TieKey, u32> = HashMap::with_max_entries(16_384, BPF_F_NO_PREALLOC);

/// Processes that may not call a provider at all. Written by the agent.
#[map]
pub(crate) static DENIED: HashMap<DeniedKey, u64> = HashMap::with_max_entries(16_384, 0);

/// Server names of connections, by [`Conn::id`], for an agent that was not there when they began.
#[map]
pub(crate) static NAMES: LruHashMap<u64, NameKey> = LruHashMap::with_max_entries(16_384, 0);

/// TLS objects that speak HTTP/2 to somebody else: seen from the beginning by the programs, or looked at
/// by the agent.
#[map]
pub(crate) static OTHERS: LruHashMap<ConnKey, u32> = LruHashMap::with_max_entries(16_384, 0);

/// What waits, by [`Conn::id`]. Written by the programs, deleted by the agent.
#[map]
pub(crate) static HOLDS: HashMap<u64, Hold> = HashMap::with_max_entries(2 * CONNECTIONS, 0);

/// The socket of a connection, by [`Conn::id`]. Written by the programs, deleted by the agent.
#[map]
pub(crate) static SOCKETS: HashMap<u64, Join> = HashMap::with_max_entries(CONNECTIONS, 0);

/// Verdicts by [`Conn::id`]. Written by the agent.
#[map]
pub(crate) static VERDICTS: HashMap<u64, Verdict> = HashMap::with_max_entries(2 * CONNECTIONS, 0);

/// `process_mode` by thread-group id. Written by the agent.
#[map]
pub(crate) static PROCESSES: HashMap<u32, u32> = HashMap::with_max_entries(65_536, 0);

/// What processes descend from, by thread-group id. Written by the programs and the agent: see [`Lineage`].
/// None gives way to another, or many processes would make one lose its own.
#[map]
pub(crate) static LINEAGES: HashMap<u32, Lineage> = HashMap::with_max_entries(65_536, 0);

/// Host names of providers, reversed. Written by the agent.
#[map]
pub(crate) static HOSTS: LpmTrie<NameKey, NameRule> = LpmTrie::with_max_entries(4_096, 0);

/// Ends of the paths of AI APIs, reversed. Written by the agent.
#[map]
pub(crate) static PATHS: LpmTrie<NameKey, NameRule> = LpmTrie::with_max_entries(512, 0);

/// Library calls that have begun, by thread.
#[map]
pub(crate) static CALLS: LruHashMap<u64, Call> = LruHashMap::with_max_entries(16_384, 0);

/// Tasks (`struct task_struct`, by address) that are about to send for a connection whose socket is not
/// known. By address, since programs at packets can't ask for a thread's number before Linux 6.10; a
/// task that ends takes its mark along.
#[map]
pub(crate) static MARKS: LruHashMap<u64, Mark> = LruHashMap::with_max_entries(16_384, 0);

/// When a task last called a TLS library that probes read, for an object that is no provider's. Only where
/// [`Settings::unnamed`] asks for it.
#[map]
pub(crate) static READ: LruHashMap<u64, u64> = LruHashMap::with_max_entries(16_384, 0);

/// Room to work in, by thread or (smaller numbers) by socket cookie: the stack is 512 bytes, and nothing
/// per CPU is safe here.
#[map]
pub(crate) static SCRATCH: LruHashMap<u64, Scratch> = LruHashMap::with_max_entries(2_048, 0);

/// A zeroed [`Scratch`] to insert, since it does not fit on the stack.
#[map]
pub(crate) static EMPTY_SCRATCH: Array<Scratch> = Array::with_max_entries(1, 0);

/// Losses by cause: see `loss`.
#[map]
pub(crate) static LOSSES: PerCpuArray<u64> = PerCpuArray::with_max_entries(loss::COUNT, 0);

/// A call of a TLS library that has begun and not returned.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Call {
    /// Stack pointer at the entry: at the RET instruction that ends this very call it is the same.
    pub(crate) stack_pointer: u64,
    pub(crate) ssl: u64,
    pub(crate) buffer: u64,
    /// Where the library puts the number of bytes; 0 where it returns it.
    pub(crate) count_at: u64,
    /// Position of the write in its stream, if its plaintext could not be read at the entry; otherwise 0 and
    /// `unread` is 0.
    pub(crate) offset: u64,
    /// Flags of a write that could not be read at the entry, and 1 shifted by 8.
    pub(crate) unread: u64,
}

/// A thread will send for `conn` next.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Mark {
    pub(crate) conn: ConnKey,
    pub(crate) at_mono_ns: u64,
    /// TLS content type of the record that will be sent (RFC 8446 §5.1): 22 handshake, 23 data.
    pub(crate) content_type: u8,
    /// 1: another connection's mark was still open when this one was made, so that a record could be
    /// either's. Nothing is joined by it.
    pub(crate) ambiguous: u8,
    pub(crate) reserved: [u8; 2],
    /// Bytes of plaintext that the first record carries.
    pub(crate) record_len: u32,
    /// Position in the plaintext at which that record begins.
    pub(crate) offset: u64,
}

/// How long after the TLS call its packet may come.
pub(crate) const MARK_LIFETIME_NS: u64 = 1_000_000_000;

/// Bytes of a request that are looked at to find its host and path.
pub(crate) const WINDOW: usize = 512;

/// Where a name is looked for and its key is built.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Scratch {
    pub(crate) prefix_len: u32,
    pub(crate) name: NameKey,
    pub(crate) start: u32,
    pub(crate) end: u32,
    /// The window, with room for masked reads a few bytes beyond it.
    pub(crate) bytes: [u8; 2 * WINDOW],
}

/// Whether the agent is woken for a record (flags of `bpf_ringbuf_submit`, `include/uapi/linux/bpf.h`). A wake-up
/// costs more than what the agent does with most records. So it is woken at once where a request waits or a
/// process may soon be gone, otherwise once in [`NAP_NS`].
#[inline(always)]
pub(crate) fn wake(at_once: bool) -> u64 {
    if at_once { WAKE } else { wake_now_and_then() }
}

const WAKE: u64 = BPF_RB_FORCE_WAKEUP as u64;

/// A function of its own, of which the verifier knows nothing but that it gives a number: each way through it
/// would double what follows.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn wake_now_and_then() -> u64 {
    let Some(woken) = WOKEN.get_ptr_mut(0) else { return WAKE };
    // SAFETY: a helper without arguments, and an element of the map; of two writers at once, one is woken for.
    unsafe {
        let now = bpf_ktime_get_ns();
        if now - *woken > NAP_NS {
            *woken = now;
            return WAKE;
        }
    }
    if EVENTS.query(u64::from(BPF_RB_AVAIL_DATA)) > CROWDED_BYTES {
        return WAKE;
    }
    u64::from(BPF_RB_NO_WAKEUP)
}

/// A new element for a socket; none where there is no room.
#[inline(always)]
pub(crate) fn new_sock(cookie: u64) -> Option<*mut Sock> {
    SOCKS.insert(cookie, EMPTY_SOCK.get(0)?, 0).ok()?;
    SOCKS.get_ptr_mut(cookie)
}

/// Adds to a loss counter.
#[inline(always)]
pub(crate) fn count_loss(cause: u32, amount: u64) {
    if let Some(counter) = LOSSES.get_ptr_mut(cause) {
        // SAFETY: a valid element of this CPU's array; a preempted addition costs accuracy only.
        unsafe { *counter += amount };
    }
}

/// The settings, or `None` before the agent has written them (impossible: an array has them all).
#[inline(always)]
pub(crate) fn settings() -> Option<&'static Settings> {
    SETTINGS.get(0)
}
