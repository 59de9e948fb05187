//! The maps of the kernel programs, with the writer of each map.

use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    helpers::generated::bpf_ktime_get_ns,
    macros::map,
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf},
};
use genops_ebpf_common::{
    AddressKey, CONNECTIONS, Conn, ConnKey, DeniedKey, FLOODS, FloodKey, Hold, Join, Lineage,
    NAP_NS, NameKey, NameRule, Refusals, Settings, Sock, TieKey, Usage, Verdict, loss,
};

/// Records for the agent. The agent sets the size before loading.
#[map]
pub(crate) static EVENTS: RingBuf = RingBuf::with_byte_size(8 << 20, 0);

/// Time of the agent's last wake-up for a record without a waiting request: one element, by the
/// monotonic clock.
#[map]
static WOKEN: Array<u64> = Array::with_max_entries(1, 0);

/// Fill level of the ring buffer, in bytes, above which the agent is woken in any case.
const CROWDED_BYTES: u64 = 256 << 10;

/// Written by the agent: one element.
#[map]
pub(crate) static SETTINGS: Array<Settings> = Array::with_max_entries(1, 0);

/// TLS objects with traffic to AI providers, and no others. Written by the programs.
#[map]
pub(crate) static CONNS: HashMap<ConnKey, Conn> = HashMap::with_max_entries(CONNECTIONS, 0);

/// Sockets to providers, by cookie. Written by the programs, deleted by the agent after the close.
/// Not an LRU map, because no stranger's entry may push out data needed for a decision.
#[map]
pub(crate) static SOCKS: HashMap<u64, Sock> = HashMap::with_max_entries(2 * CONNECTIONS, 0);

/// A zeroed [`Sock`] to insert, because a `Sock` does not fit on the stack.
#[map]
static EMPTY_SOCK: Array<Sock> = Array::with_max_entries(1, 0);

/// Cookie of an open socket, and thread-group id of the process that connected the socket. Programs
/// at packets can't ask for the process before Linux 6.10.
#[map]
pub(crate) static OWNERS: HashMap<u64, u32> = HashMap::with_max_entries(262_144, BPF_F_NO_PREALLOC);

/// Use of the shared maps by process, by thread-group id. Written by the programs.
#[map]
pub(crate) static USAGE: HashMap<u32, Usage> = HashMap::with_max_entries(CONNECTIONS, 0);

/// Number of TLS objects in [`CONNS`] by user. Written by the programs, corrected by the agent.
#[map]
pub(crate) static USERS: HashMap<u32, u32> = HashMap::with_max_entries(CONNECTIONS, 0);

/// Time of the last report of a process addressing a provider by UDP.
#[map]
pub(crate) static DATAGRAMS: LruHashMap<DeniedKey, u64> = LruHashMap::with_max_entries(16_384, 0);

/// Sockets of the initial network namespace with a question to a name server, by cookie. Answers to
/// other sockets are not believed; answers to an evicted socket are only not learnt from.
#[map]
pub(crate) static ASKERS: LruHashMap<u64, u32> = LruHashMap::with_max_entries(8_192, 0);

/// Addresses of providers, with the number of the provider. Written by the agent.
#[map]
pub(crate) static ADDRESSES: LruHashMap<AddressKey, u32> = LruHashMap::with_max_entries(16_384, 0);

/// Addresses named as a provider's by programs of a single user in a single cgroup. Written by the
/// agent.
#[map]
pub(crate) static TIES: HashMap<TieKey, u32> = HashMap::with_max_entries(16_384, BPF_F_NO_PREALLOC);

/// Processes barred from calling a provider at all. Written by the agent.
#[map]
pub(crate) static DENIED: HashMap<DeniedKey, u64> = HashMap::with_max_entries(16_384, 0);

/// Users with too many refusals by a provider. Written by the agent, for a second at a time.
#[map]
pub(crate) static FLOODING: HashMap<FloodKey, u64> =
    HashMap::with_max_entries(FLOODS, BPF_F_NO_PREALLOC);

/// Refused connections of processes, by provider. Written by the programs, deleted by the agent
/// after the end of the process.
#[map]
pub(crate) static REFUSALS: HashMap<DeniedKey, Refusals> = HashMap::with_max_entries(16_384, 0);

/// [`Refusals::unreported`] as far as in the evidence. Written by the agent, for the next agent.
#[map]
static COUNTED: HashMap<DeniedKey, u64> = HashMap::with_max_entries(16_384, 0);

/// A zeroed [`Refusals`] to insert.
#[map]
pub(crate) static EMPTY_REFUSALS: Array<Refusals> = Array::with_max_entries(1, 0);

/// Server names of connections, by [`Conn::id`], for an agent started after the beginning of the
/// connection.
#[map]
pub(crate) static NAMES: LruHashMap<u64, NameKey> = LruHashMap::with_max_entries(16_384, 0);

/// TLS objects speaking HTTP/2 to a peer other than a provider: seen from the beginning by the
/// programs, or inspected by the agent.
#[map]
pub(crate) static OTHERS: LruHashMap<ConnKey, u32> = LruHashMap::with_max_entries(16_384, 0);

/// Waiting writes, by [`Conn::id`]. Written by the programs, deleted by the agent.
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

/// Ancestry of processes, by thread-group id. Written by the programs and the agent: see
/// [`Lineage`]. Not an LRU map: otherwise many processes could push out the element of another.
#[map]
pub(crate) static LINEAGES: HashMap<u32, Lineage> = HashMap::with_max_entries(65_536, 0);

/// Host names of providers, reversed. Written by the agent.
#[map]
pub(crate) static HOSTS: LpmTrie<NameKey, NameRule> = LpmTrie::with_max_entries(4_096, 0);

/// Ends of the paths of AI APIs, reversed. Written by the agent.
#[map]
pub(crate) static PATHS: LpmTrie<NameKey, NameRule> = LpmTrie::with_max_entries(512, 0);

/// Library calls in progress, by thread.
#[map]
pub(crate) static CALLS: LruHashMap<u64, Call> = LruHashMap::with_max_entries(16_384, 0);

/// Tasks (`struct task_struct`, by address) about to send for a connection without a known socket.
/// The key is the address because programs at packets can't ask for a thread's pid before Linux
/// 6.10. The end of a task removes the mark.
///
/// Also the sockets (by cookie, smaller than any address) of inherited TLS objects: if an earlier
/// record is not acknowledged yet, TCP sends the next record (RFC 9293 §3.7.4, Nagle algorithm)
/// when the acknowledgement comes, whatever task runs then.
#[map]
pub(crate) static MARKS: LruHashMap<u64, Mark> = LruHashMap::with_max_entries(16_384, 0);

/// Time of a task's last call of a probed TLS library for an object of no provider. Filled only if
/// [`Settings::unnamed`] asks for the times.
#[map]
pub(crate) static READ: LruHashMap<u64, u64> = LruHashMap::with_max_entries(16_384, 0);

/// Working memory, by thread or (smaller numbers) by socket cookie: the stack is 512 bytes, and
/// memory per CPU is unsafe because uprobe programs can be preempted.
#[map]
pub(crate) static SCRATCH: LruHashMap<u64, Scratch> = LruHashMap::with_max_entries(2_048, 0);

/// A zeroed [`Scratch`] to insert, because a `Scratch` does not fit on the stack.
#[map]
pub(crate) static EMPTY_SCRATCH: Array<Scratch> = Array::with_max_entries(1, 0);

/// Losses by cause: see `loss`.
#[map]
pub(crate) static LOSSES: PerCpuArray<u64> = PerCpuArray::with_max_entries(loss::COUNT, 0);

/// A call of a TLS library in progress.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Call {
    /// Stack pointer at the entry: the same at the RET instruction that ends the call.
    pub(crate) stack_pointer: u64,
    pub(crate) ssl: u64,
    pub(crate) buffer: u64,
    /// Address to which the library writes the number of bytes; 0 if the library returns the
    /// number.
    pub(crate) count_at: u64,
    /// Stream position of the write, if the plaintext could not be read at the entry; otherwise 0,
    /// and `unread` is 0.
    pub(crate) offset: u64,
    /// Bit 0: 1 if the plaintext of the write could not be read at the entry. From bit 1 on: the
    /// `kind` of the write for `emit_call`.
    pub(crate) unread: u64,
}

/// Announcement of a record for `conn`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Mark {
    pub(crate) conn: ConnKey,
    pub(crate) at_mono_ns: u64,
    /// TLS content type of the announced record (RFC 8446 §5.1): 22 handshake, 23 data.
    pub(crate) content_type: u8,
    /// 1: the mark of another connection was still open at the time of the new mark, so a record
    /// could belong to either connection. The programs join no socket on an ambiguous mark.
    pub(crate) ambiguous: u8,
    pub(crate) reserved: [u8; 2],
    /// Bytes of plaintext in the first record.
    pub(crate) record_len: u32,
    /// Position of the record's first byte in the plaintext.
    pub(crate) offset: u64,
}

/// Maximum time from the TLS call to its packet, in nanoseconds.
pub(crate) const MARK_LIFETIME_NS: u64 = 1_000_000_000;

/// Bytes of a request searched for host and path.
pub(crate) const WINDOW: usize = 512;

/// Working memory for the search of a name and the construction of its key.
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

/// Returns the wake-up flags for a record (flags of `bpf_ringbuf_submit`,
/// `include/uapi/linux/bpf.h`). A wake-up costs more than the agent's work for most records. So the
/// agent is woken at once if a request waits or a process may soon be gone, otherwise once in
/// [`NAP_NS`].
#[inline(always)]
pub(crate) fn wake(at_once: bool) -> u64 {
    if at_once { WAKE } else { wake_now_and_then() }
}

const WAKE: u64 = BPF_RB_FORCE_WAKEUP as u64;

/// Returns whether the agent has much to read.
#[inline(always)]
pub(crate) fn is_crowded() -> bool {
    EVENTS.query(u64::from(BPF_RB_AVAIL_DATA)) > CROWDED_BYTES
}

/// Separate function with an unknown number as its result for the verifier: inlined, each path
/// through the function would double the paths after the call.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn wake_now_and_then() -> u64 {
    let Some(woken) = WOKEN.get_ptr_mut(0) else { return WAKE };
    // SAFETY: a helper without arguments, and an element of the map; two concurrent writers cause
    // one wake-up.
    unsafe {
        let now = bpf_ktime_get_ns();
        if now - *woken > NAP_NS {
            *woken = now;
            return WAKE;
        }
    }
    if is_crowded() {
        return WAKE;
    }
    u64::from(BPF_RB_NO_WAKEUP)
}

/// Inserts a new element for a socket; `None` without room.
#[inline(always)]
pub(crate) fn new_sock(cookie: u64) -> Option<*mut Sock> {
    SOCKS.insert(cookie, EMPTY_SOCK.get(0)?, 0).ok()?;
    SOCKS.get_ptr_mut(cookie)
}

/// Adds to a loss counter.
#[inline(always)]
pub(crate) fn count_loss(cause: u32, amount: u64) {
    if let Some(counter) = LOSSES.get_ptr_mut(cause) {
        // SAFETY: a valid element of the CPU's array; a preempted addition costs accuracy only.
        unsafe { *counter += amount };
    }
}

/// Returns the settings, or `None` before the agent has written the settings (impossible: an array
/// has all its elements).
#[inline(always)]
pub(crate) fn settings() -> Option<&'static Settings> {
    SETTINGS.get(0)
}
