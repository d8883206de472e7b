//! What is known of the way to an address.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use lb_common::NextHop;

use crate::network::netlink::Unroutable;

/// The way from this host to an address.
///
/// A problem may stand beside a next hop: a neighbour that has fallen silent keeps its last known address, since
/// whether a backend is used is for its health check to decide.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Way {
    /// What the packet path needs; `None` while it is not resolved. When a route changes, the next hop of the old one
    /// stays until the new one is resolved.
    pub next_hop: Option<NextHop>,
    /// Bits of the on-link prefix the address lies in; 0 when it is reached through a gateway, or not at all.
    pub onlink_prefix_len: u8,
    /// Bytes from the IP header on: the smaller of the link's MTU and the route's; 0 while there is no route. A link
    /// with a larger one counts as 65535.
    pub mtu: u16,
    /// Name of the interface; `None` while there is no route.
    pub interface: Option<Arc<str>>,
    /// `None` when the address is on-link, or while there is no route.
    pub gateway: Option<IpAddr>,
    /// This host's preferred source address towards it.
    pub source: Option<IpAddr>,
    /// What is wrong. `None` beside an unresolved next hop: the answer is still awaited.
    pub problem: Option<Problem>,
}

impl Way {
    /// A way that does not exist.
    pub(super) fn none(problem: Problem) -> Self {
        Self { problem: Some(problem), ..Self::default() }
    }

    /// Resolved, or known not to be.
    pub fn is_settled(&self) -> bool {
        match self.problem {
            // A new interface has its link-local address after a second or two.
            None | Some(Problem::NoLinkLocal { .. }) => self.next_hop.is_some(),
            Some(_) => true,
        }
    }
}

/// What is wrong with the way to an address. Its text is made to stand behind the address and a colon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// No route matches.
    NoRoute,
    /// A blackhole, prohibit or unreachable route matches.
    Refused,
    /// The address is this host's own.
    OwnAddress,
    /// A broadcast, multicast or anycast address on this host's links.
    NotUnicast,
    /// The interface's frames are not Ethernet.
    NotEthernet {
        /// Its name.
        interface: Arc<str>,
    },
    /// The XDP program is not attached to the interface: answers that come in there are not translated.
    NotInInterfaces {
        /// Its name.
        interface: Arc<str>,
    },
    /// The kernel asks for IPv6 neighbours from a link-local address, and there is none, or not yet.
    NoLinkLocal {
        /// Name of the interface.
        interface: Arc<str>,
    },
    /// The neighbour does not answer ARP or neighbour discovery.
    NeighbourSilent {
        /// The address itself, or the gateway.
        neighbour: IpAddr,
    },
    /// The kernel has no room for another neighbour.
    NeighbourTableFull {
        /// The address itself, or the gateway.
        neighbour: IpAddr,
    },
    /// The kernel refuses to resolve the neighbour.
    NeighbourRefused {
        /// The address itself, or the gateway.
        neighbour: IpAddr,
        /// `errno`.
        errno: i32,
    },
}

impl From<Unroutable> for Problem {
    fn from(reason: Unroutable) -> Self {
        match reason {
            Unroutable::NoRoute => Self::NoRoute,
            Unroutable::Refused => Self::Refused,
            Unroutable::Own => Self::OwnAddress,
            Unroutable::NotUnicast => Self::NotUnicast,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRoute => f.write_str("no route"),
            Self::Refused => f.write_str("a blackhole, prohibit or unreachable route matches"),
            Self::OwnAddress => f.write_str("the address is this host's own"),
            Self::NotUnicast => f.write_str("the address is a broadcast, multicast or anycast address here"),
            Self::NotEthernet { interface } => {
                write!(
                    f,
                    "reached through {interface}, which has no Ethernet address; lb forwards Ethernet only"
                )
            }
            Self::NotInInterfaces { interface } => {
                write!(f, "reached through {interface}, which is not in lb.interfaces")
            }
            Self::NoLinkLocal { interface } => {
                write!(f, "{interface} has no usable link-local address to ask for IPv6 neighbours from")
            }
            Self::NeighbourSilent { neighbour } => write!(f, "neighbour {neighbour} did not answer"),
            Self::NeighbourTableFull { neighbour } => {
                let family = if neighbour.is_ipv4() { "ipv4" } else { "ipv6" };
                write!(
                    f,
                    "no room for neighbour {neighbour}: raise net.{family}.neigh.default.gc_thresh3 (and \
                     gc_thresh2) above the number of neighbours"
                )
            }
            Self::NeighbourRefused { neighbour, errno } => {
                let error = std::io::Error::from_raw_os_error(*errno);
                write!(f, "the kernel does not resolve neighbour {neighbour}: {error}")
            }
        }
    }
}
