//! What differs between IPv4 and IPv6. Everything else is written once, for both, and compiled for each.

mod v4;
mod v6;

use lb_common::{Address, AnswerBucket, CacheUse, CachedFlow, Course, FlowBucket, HalfOpen, Lane, Settings};

use crate::checksum::{Change, Sum};
use crate::clock::now;
use crate::frame::Frame;
use crate::maps::{AnswersMore, Connections, FULL_SINCE, Opening, Scratch, TICKS_PER_SECOND};
use crate::parse::Fragment;
use crate::wire::{Headers, Wire};

pub(crate) use v4::V4;
pub(crate) use v6::V6;

/// Both addresses of its packets.
pub(crate) type Pair<F> = <<F as Family>::Addr as Address>::Pair;

/// One of them.
pub(crate) type Half<F> = <Pair<F> as lb_common::cache::Pair>::Half;

/// TTL or hop limit of packets that the balancer makes (RFC 1700).
const FRESH_TTL: u8 = 64;

/// Tells tick 0 from never.
const FULL: u64 = 1 << 32;

/// The fields of an IP header that the journey needs.
pub(crate) struct IpFields<A> {
    pub(crate) source: A,
    pub(crate) destination: A,
    pub(crate) protocol: u8,
    pub(crate) ttl: u8,
    /// Bytes of the IP header, options and extension headers included.
    pub(crate) header_length: u16,
    /// Bytes of the packet from the IP header on.
    pub(crate) length: u16,
    pub(crate) fragment: Fragment,
    /// Where in its datagram it begins, in bytes.
    pub(crate) fragment_offset: u16,
}

/// An IP version.
pub(crate) trait Family {
    /// Its addresses.
    type Addr: Address + 'static;

    /// Its header, without options or extension headers.
    type Ip: Wire;

    /// What a copy of a flow changes in the data of a TCP or UDP checksum.
    type Change: Change;

    /// Bytes of the IP header without options or extension headers.
    const HEADER: usize;

    /// Number of its ICMP.
    const ICMP: u8;

    /// Its number among families.
    const NUMBER: u32;

    /// Index of its journey in the map `journeys`.
    const JOURNEY: u32;

    /// Index of what opens flows.
    const BEGIN: u32;

    /// Index of its ICMP's journey.
    const ICMP_JOURNEY: u32;

    /// Index of what answers with a RST.
    const RESET_JOURNEY: u32;

    /// Index of what answers with an ICMP error.
    const ERROR_JOURNEY: u32;

    /// ICMP's port unreachable: type and code.
    const PORT_UNREACHABLE: (u8, u8);

    /// ICMP's message that a packet is too big: type and code.
    const TOO_BIG: (u8, u8);

    /// ICMP's echo request and reply: types.
    const ECHO: (u8, u8);

    /// Reads a header without options, extension headers or fragmentation; `None` if it is anything else.
    fn read_plain_ip(frame: &Frame, l3: usize) -> Option<IpFields<Self::Addr>>;

    /// Source and destination. Like the ports they are read as words that lie where they lie from the beginning of the frame, so that no
    /// other address is needed.
    fn addresses<T: Wire>(headers: &Headers<Self::Ip, T>) -> Pair<Self>;

    /// The ports, as they are in the packet.
    fn ports<T: Wire>(headers: &Headers<Self::Ip, T>) -> u32;

    /// Writes the ports, as they are in a packet.
    fn set_ports<T: Wire>(headers: &mut Headers<Self::Ip, T>, ports: u32);

    /// The protocol behind a header without extension headers.
    fn protocol(ip: &Self::Ip) -> u8;

    /// Bytes from the IP header on, if that is the header of nearly every packet: whole, without options or extension headers, and with
    /// hops left. IPv6 may give more than 65,535, which no MTU allows.
    fn express_length<T: Wire>(headers: &Headers<Self::Ip, T>) -> Option<u32>;

    /// Writes the addresses of such a header and decrements TTL; `difference` is what both make to its checksum.
    fn write_express<T: Wire>(headers: &mut Headers<Self::Ip, T>, addresses: Pair<Self>, difference: u16);

    /// Reads the header at `l3` with what belongs to it; `None` if it is not one of this version, is cut off, or has
    /// extension headers that are not understood.
    fn read_ip(frame: &Frame, l3: usize) -> Option<IpFields<Self::Addr>>;

    /// Writes addresses, decrements TTL and sets the header checksum right: `difference` is what the addresses make.
    fn write_ip(
        frame: &mut Frame,
        l3: usize,
        source: Self::Addr,
        destination: Self::Addr,
        difference: u16,
    ) -> Option<()>;

    /// Writes the addresses of a header that an ICMP error carries. Gives what that adds to a sum over the packet.
    fn write_inner_ip(
        frame: &mut Frame,
        l3: usize,
        source: Self::Addr,
        destination: Self::Addr,
        difference: u16,
    ) -> Option<Sum>;

    /// Writes swapped addresses, which no checksum sees, and a fresh TTL, which that of the header does.
    fn write_reply_ip(
        frame: &mut Frame,
        l3: usize,
        source: Self::Addr,
        destination: Self::Addr,
        ttl: u8,
    ) -> Option<()>;

    /// Writes a whole header, for a packet that the balancer makes; `payload` is the number of bytes behind it.
    fn write_fresh_ip(
        frame: &mut Frame,
        l3: usize,
        source: Self::Addr,
        destination: Self::Addr,
        protocol: u8,
        payload: u16,
    ) -> Option<()>;

    /// What its ICMP's checksum covers besides the message: the pseudo-header of ICMPv6 (RFC 4443, 2.3).
    fn icmp_pseudo_header(source: Self::Addr, destination: Self::Addr, length: u16) -> Sum;

    /// Whether an ICMP type is that of an error about a packet.
    fn is_icmp_error(kind: u8) -> bool;

    /// A record in its map of half-open flows.
    fn half_open(slot: u32) -> Option<*mut HalfOpen<Self::Addr>>;

    /// A bucket that tells where flows are.
    fn flows_at(index: u32) -> Option<*mut FlowBucket>;

    /// A bucket that tells whose answers are.
    fn answers(index: u32) -> Option<*mut AnswerBucket<Self::Addr>>;

    /// Answers that found their bucket full.
    fn answers_more() -> &'static AnswersMore<Self::Addr>;

    /// An entry of this CPU in its cache of flows.
    fn cached(index: u32) -> Option<&'static mut CachedFlow<Pair<Self>>>;

    /// What a copy of a flow keeps of the differences that its translation makes to the IP header and to TCP or UDP.
    fn kept(ip_difference: u16, l4_difference: u16) -> <Pair<Self> as lb_common::cache::Pair>::Differences;

    /// What its course keeps of them, but for [`Course::difference`] complete; the ports are those of the other side, as they are in packets.
    fn course_difference(course: &Course<Pair<Self>>, arrives: u16, leaves: u16) -> u16;

    /// What a copy of a flow changes in a packet that arrives with this port on the client's side: for the IP header, decrementing
    /// TTL included, and for TCP or UDP.
    fn changes<D: Direction>(
        own: &CachedFlow<Pair<Self>>,
        course: &Course<Pair<Self>>,
        port: u16,
    ) -> (u16, Self::Change);

    /// A lane in the map of this family, one of this CPU's.
    fn lane(index: u32) -> Option<&'static mut Lane<Pair<Self>>>;

    /// Lanes of each CPU: a power of two.
    fn lanes() -> u32;

    /// How a CPU gets on with its cache of flows.
    fn cache_use(cpu: u32) -> &'static mut CacheUse;

    /// Entries of each CPU in its cache of flows: a power of two.
    fn cache_entries() -> u32;

    /// Its connection map.
    fn connections() -> &'static Connections<Self::Addr>;

    /// Notes that the map has no room for one more flow.
    #[inline(always)]
    fn note_full() {
        // SAFETY: an aligned word that any CPU may write at any time.
        unsafe { FULL_SINCE.at(Self::NUMBER).write_volatile(FULL | u64::from(now())) };
    }

    /// Whether it had no room within the last second: new flows are refused rather than cut off in the midst of their handshake.
    #[inline(always)]
    fn is_full() -> bool {
        // SAFETY: as in `note_full`.
        let since = unsafe { FULL_SINCE.at(Self::NUMBER).read_volatile() };
        since != 0 && now().wrapping_sub(since as u32) < TICKS_PER_SECOND.load()
    }

    /// This CPU's scratch memory for a flow in the making.
    fn opening() -> Option<&'static mut Opening<Self::Addr>>;

    /// This CPU's scratch memory for the long way.
    fn scratch() -> Option<&'static mut Scratch<Self::Addr>>;

    /// How many SNAT addresses the configuration names.
    fn snat_addresses(settings: &Settings) -> u32;

    /// The SNAT address of a ticket, counted round over the `addresses`; `None` if there are none.
    fn snat_address(ticket: u64, addresses: u32) -> Option<Self::Addr>;

    /// How many leading bits two addresses share.
    fn common_prefix(a: Self::Addr, b: Self::Addr) -> u32;

    /// The difference that translating addresses makes to the header checksum; 0 where there is none.
    fn ip_difference(addresses: u16) -> u16;
}

/// A direction, for code that is compiled for each.
pub(crate) trait Direction {
    /// Whether the packets come from clients.
    const IS_TO_BACKEND: bool;
}

/// From clients to backends.
pub(crate) struct ToBackend;

/// From backends to clients.
pub(crate) struct ToClient;

impl Direction for ToBackend {
    const IS_TO_BACKEND: bool = true;
}

impl Direction for ToClient {
    const IS_TO_BACKEND: bool = false;
}
