//! What the programs that make and count traffic for `cargo xtask bench e2e` share with the benchmark.

use crate::pod;

/// Eight-byte words of a frame: Ethernet, IPv4, UDP and 22 bytes of payload.
pub const FRAME_WORDS: usize = 8;

/// Bytes before a frame that are cut off once it is made. BPF_PROG_TEST_RUN lays frames 368 bytes behind the beginning of a page
/// (kernel 6.18), over two cache lines; without so many it is 384, and their bytes are in one, as a NIC lays them. What the kernel
/// keeps of a frame stays where it is, in two lines.
pub const CUT_OFF: usize = 16;

/// UDP port of the listener and of the backends.
pub const PORT: u16 = 4000;

/// Frames that the kernel makes at a time, and that are sent together or not at all. The more there are, the less often a
/// CPU has to wake another; but the queue of a veth holds 256, and must not run over while its CPU does something else.
pub const BATCH: u32 = 64;

/// What is to be sent: the only value of the map `order`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Order {
    /// The frame of flow 0.
    pub frame: [u64; FRAME_WORDS],
    /// Nanoseconds from one batch to the next.
    pub interval_ns: u64,
    /// Frames in all.
    pub frames: u64,
    /// Nanoseconds after the first frame at which the last has to be sent.
    pub time_ns: u64,
    /// Flows that the frames are of.
    pub flows: u32,
    /// From one flow to the next, so that all come in turn but none beside the one before: without a common divisor
    /// with `flows`.
    pub step: u32,
    /// Frames of a flow in a row.
    pub row: u32,
    /// The interface to send from.
    pub interface: u32,
}

/// How far the order has been carried out: the only value of the map `progress`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Progress {
    /// When the next batch is due, as `bpf_ktime_get_ns` tells the time.
    pub due: u64,
    /// When the first batch was sent; 0: not yet.
    pub begun: u64,
    /// When the last batch was sent.
    pub last: u64,
    /// Frames sent.
    pub sent: u64,
    /// How often the program has run.
    pub turn: u32,
    /// Whether the running batch is sent.
    pub is_sending: u32,
    /// The next flow.
    pub flow: u32,
    /// Frames of it sent in a row.
    pub of_flow: u32,
}

/// What has arrived: the only value of the map `arrivals`, for each CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Arrivals {
    /// Frames.
    pub frames: u64,
    /// Frames with a wrong checksum, of those whose checksums were looked at.
    pub wrong: u64,
    /// When the last frame came whose number is a multiple of [`STAMPED`], as `bpf_ktime_get_ns` tells the time.
    pub last: u64,
}

/// Of how many arrivals the time of one is noted: asking for it each time would slow the receiver down.
pub const STAMPED: u64 = 8;

/// Bit of the only value of the map `duty`: look at the checksums.
pub const CHECK: u32 = 1 << 0;
/// Bit of the only value of the map `duty`: send back what arrives.
pub const ECHO: u32 = 1 << 1;
/// Bit of the only value of the map `duty`: take every frame of the right length for one of this traffic and do not
/// look into it. Fetching it from the cache of another CPU would be most of the work.
pub const BLIND: u32 = 1 << 2;

pod!(Order, Progress, Arrivals);

const _: () = assert!(size_of::<Order>() == 104);
const _: () = assert!(size_of::<Progress>() == 48);
const _: () = assert!(size_of::<Arrivals>() == 24);
