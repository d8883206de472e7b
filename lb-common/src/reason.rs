//! Why a packet was dropped, left to the kernel, or treated in a way worth counting. Numbers are part of the map layout:
//! new reasons go at the end, none is reused.

use crate::pod;

/// What a [`Reason`] is a reason for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The packet was dropped.
    Drop,
    /// The packet was left to the kernel, untouched.
    Pass,
    /// Something else worth counting; what became of the packet is counted elsewhere.
    Note,
}

/// Declares [`Reason`] and the struct of counters with one field a reason, so that names cannot drift apart.
macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $number:literal, $field:ident, $kind:ident;)+) => {
        /// Why something happened to a packet; [`Reason::kind`] says what.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u32)]
        pub enum Reason {
            $($(#[doc = $doc])+ $variant = $number,)+
        }

        impl Reason {
            /// Every reason, in the order of its number.
            pub const ALL: &'static [Reason] = &[$(Reason::$variant),+];

            /// The name in status, metrics and `bpftool` output.
            pub const fn name(self) -> &'static str {
                match self { $(Reason::$variant => stringify!($field),)+ }
            }

            /// It in a few words.
            pub const fn text(self) -> &'static str {
                match self { $(Reason::$variant => concat!($($doc),+).trim_ascii(),)+ }
            }

            /// What happened to the packet.
            pub const fn kind(self) -> Kind {
                match self { $(Reason::$variant => Kind::$kind,)+ }
            }
        }

        /// Value of the per-CPU map `drops`: packets by reason. Index 0 holds the packets for which no
        /// listener is known, index `listener id + 1` those of a listener.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[repr(C)]
        pub struct Drops {
            $($(#[doc = $doc])+ pub $field: u64,)+
        }

        impl Drops {
            /// The counter of one reason.
            pub const fn get(&self, reason: Reason) -> u64 {
                match reason { $(Reason::$variant => self.$field,)+ }
            }

            /// Adds the counters of another CPU or listener.
            pub const fn add(&mut self, other: &Drops) {
                $(self.$field += other.$field;)+
            }
        }
    };
}

reasons! {
    /// To a listener, but too short, of an impossible length or with an impossible header.
    Malformed = 0, malformed, Drop;
    /// A later fragment whose first has not come in time, or that could not be kept for it.
    Fragment = 1, fragment, Drop;
    /// The rotation of the listener's set is empty.
    NoBackend = 2, no_backend, Drop;
    /// The flow's backend is offline.
    BackendOffline = 3, backend_offline, Drop;
    /// TCP without a flow and without SYN where `on_untracked_tcp` is `drop` or `reset`.
    Untracked = 4, untracked, Drop;
    /// No free SNAT port towards the backend.
    SnatPortsExhausted = 5, snat_ports_exhausted, Drop;
    /// The connection map is full.
    ConnectionsFull = 6, connections_full, Drop;
    /// The link-layer address of the backend's next hop is not known.
    NextHopUnresolved = 7, next_hop_unresolved, Drop;
    /// To a VIP, but to no listener. The kernel gets it, and refuses it as it would without a balancer.
    NoListener = 8, no_listener, Drop;
    /// A new flow from a source that the listener's `deny_sources` names or its `allow_sources` does not.
    SourceDenied = 9, source_denied, Drop;
    /// A new flow beyond the listener's `max_new_flows_per_s`.
    RateLimited = 10, rate_limited, Drop;
    /// Larger than the MTU of the link it would leave by; the sender was told by ICMP.
    TooBig = 11, too_big, Drop;
    /// An echo request to a VIP where `icmp_echo` is off.
    EchoDisabled = 12, echo_disabled, Drop;
    /// A packet of a flow that ends because of its backend's health (`on_unhealthy = "reset"`), answered with a RST.
    BackendUnhealthy = 13, backend_unhealthy, Drop;
    /// A packet of a flow that the controller has ended, turned into a RST.
    FlowCut = 14, flow_cut, Drop;
    /// Neither IPv4 nor IPv6.
    NotIp = 15, not_ip, Pass;
    /// Neither to a VIP nor of a flow.
    NotOurs = 16, not_ours, Pass;
    /// To the MAC of another host: a switch flooded it.
    OtherHost = 17, other_host, Pass;
    /// Its TTL or hop limit ends here.
    TtlExpired = 18, ttl_expired, Pass;
    /// A protocol other than TCP, UDP and ICMP, or a header that is not understood.
    OtherProtocol = 19, other_protocol, Pass;
    /// ICMP that is about no flow.
    IcmpUnrelated = 20, icmp_unrelated, Pass;
    /// An ICMP error about a flow, translated and forwarded.
    IcmpTranslated = 21, icmp_translated, Note;
    /// An echo request to a VIP, answered.
    EchoAnswered = 22, echo_answered, Note;
    /// A fragment that came before its first and waits for it in user space.
    FragmentHeld = 23, fragment_held, Note;
    /// A flow whose client never proved that it exists was ended to make room for a newer one.
    HalfOpenEvicted = 24, half_open_evicted, Note;
    /// A RST or an ICMP error was sent instead of the packet.
    Answered = 25, answered, Note;
}

pod!(Drops);

const _: () = assert!(size_of::<Drops>() == 8 * Reason::ALL.len());
