//! Why a packet was dropped. Numbers are part of the map layout: new reasons go at the end, none is reused.

use crate::pod;

/// Declares [`Reason`] and the struct of counters with one field a reason, so that names cannot drift apart.
macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $number:literal, $field:ident;)+) => {
        /// Why a packet was dropped.
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
        }

        /// Value of the per-CPU map `drops`: dropped packets by reason. Index 0 holds the packets for which no
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
    Malformed = 0, malformed;
    /// A fragment to or from a listener.
    Fragment = 1, fragment;
    /// The rotation of the listener's set is empty.
    NoBackend = 2, no_backend;
    /// The flow's backend is offline.
    BackendOffline = 3, backend_offline;
    /// TCP without a flow and without SYN where `on_untracked_tcp` is `drop`.
    Untracked = 4, untracked;
    /// No free SNAT port towards the backend.
    SnatPortsExhausted = 5, snat_ports_exhausted;
    /// The connection map is full.
    ConnectionsFull = 6, connections_full;
    /// The link-layer address of the backend's next hop is not known.
    NextHopUnresolved = 7, next_hop_unresolved;
    /// To a VIP, but to no listener. The kernel gets it, and refuses it as it would without a balancer.
    NoListener = 8, no_listener;
}

pod!(Drops);

const _: () = assert!(size_of::<Drops>() == 8 * Reason::ALL.len());
