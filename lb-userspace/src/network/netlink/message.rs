//! The messages of route netlink, put together and taken apart.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope, CacheInfo,
};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkLayerType, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteType, RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::packet_core::{NetlinkBuffer, NetlinkMessage};

use crate::network::Mac;

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::network) struct Link {
    /// Its name, by which the configuration refers to it.
    pub(in crate::network) name: Arc<str>,
    /// Its own address; `None` if its frames are not Ethernet.
    pub(in crate::network) mac: Option<Mac>,
    /// Bytes, from the IP header on.
    pub(in crate::network) mtu: u32,
    /// Operational (RFC 2863): before, what is sent is discarded.
    pub(in crate::network) up: bool,
}

/// A neighbour's place: its address on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::network) struct Hop {
    pub(in crate::network) ifindex: u32,
    pub(in crate::network) address: IpAddr,
}

/// What the kernel knows of a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::network) struct Neighbour {
    pub(in crate::network) state: NeighbourState,
    pub(in crate::network) mac: Option<Mac>,
}

/// An address of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::network) struct HostAddress {
    pub(in crate::network) ifindex: u32,
    pub(in crate::network) address: IpAddr,
    /// Bits of the connected prefix.
    pub(in crate::network) prefix_len: u8,
    /// Duplicate address detection is over, or was never needed.
    pub(in crate::network) verified: bool,
}

/// A route as one destination uses it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::network) struct Route {
    pub(in crate::network) ifindex: u32,
    pub(in crate::network) gateway: Option<IpAddr>,
    /// The address this host prefers as source.
    pub(in crate::network) source: Option<IpAddr>,
    /// Bits of the prefix that matched.
    pub(in crate::network) prefix_len: u8,
    /// Set on the route, in bytes.
    pub(in crate::network) mtu: Option<u32>,
}

impl Route {
    /// The neighbour that packets to `destination` are handed to.
    pub(in crate::network) fn hop(&self, destination: IpAddr) -> Hop {
        Hop { ifindex: self.ifindex, address: self.gateway.unwrap_or(destination) }
    }
}

/// Why there is no way to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::network) enum Unroutable {
    /// No route matches.
    NoRoute,
    /// A blackhole, prohibit or unreachable route matches.
    Refused,
    /// The address is this host's own.
    Own,
    /// The address is a broadcast, multicast or anycast address here.
    NotUnicast,
}

impl Unroutable {
    /// What an error of RTM_GETROUTE says about the destination; `None` if it says nothing.
    pub(in crate::network) fn from_errno(error: &io::Error) -> Option<Self> {
        match error.raw_os_error()? {
            libc::ENETUNREACH => Some(Self::NoRoute),
            libc::EHOSTUNREACH | libc::EACCES | libc::EINVAL => Some(Self::Refused),
            _ => None,
        }
    }
}

/// The messages of a datagram; one that cannot be decoded is skipped, for a newer kernel may send what this program
/// does not know.
pub(in crate::network) fn messages(
    mut datagram: &[u8],
) -> impl Iterator<Item = NetlinkMessage<RouteNetlinkMessage>> {
    std::iter::from_fn(move || {
        loop {
            let length = NetlinkBuffer::new_checked(datagram).ok()?.length() as usize;
            let (message, _) = datagram.split_at_checked(length)?;
            // Messages are aligned to four bytes; the last one may lack the padding.
            datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
            match NetlinkMessage::deserialize(message) {
                Ok(message) => return Some(message),
                Err(error) => tracing::debug!(%error, "skipped a netlink message"),
            }
        }
    })
}

pub(super) fn get_links() -> RouteNetlinkMessage {
    RouteNetlinkMessage::GetLink(LinkMessage::default())
}

pub(super) fn get_addresses() -> RouteNetlinkMessage {
    RouteNetlinkMessage::GetAddress(AddressMessage::default())
}

pub(super) fn get_neighbours() -> RouteNetlinkMessage {
    RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default())
}

pub(super) fn get_neighbour(hop: Hop) -> RouteNetlinkMessage {
    RouteNetlinkMessage::GetNeighbour(neighbour_entry(hop))
}

pub(super) fn use_neighbour(hop: Hop) -> RouteNetlinkMessage {
    let mut entry = neighbour_entry(hop);
    entry.header.flags = NeighbourFlags::Use;
    RouteNetlinkMessage::NewNeighbour(entry)
}

fn neighbour_entry(hop: Hop) -> NeighbourMessage {
    let mut entry = NeighbourMessage::default();
    entry.header.family = family(hop.address);
    entry.header.ifindex = hop.ifindex;
    entry.attributes.push(NeighbourAttribute::Destination(hop.address.into()));
    entry
}

pub(super) fn get_route(destination: IpAddr, flags: RouteFlags) -> RouteNetlinkMessage {
    let mut route = RouteMessage::default();
    route.header.address_family = family(destination);
    route.header.destination_prefix_length = host_prefix_len(destination);
    route.header.flags = flags;
    route.attributes.push(RouteAttribute::Destination(destination.into()));
    RouteNetlinkMessage::GetRoute(route)
}

/// RTM_NEWADDR for a virtual address that this host never chooses as source of its own connections.
///
/// IPv4: scope `host`, which source selection for routes of wider scope skips; a /32 brings no prefix route. IPv6:
/// deprecated (preferred lifetime 0; RFC 6724, section 5, rule 3); usable at once, since a balancer that takes over
/// cannot wait for duplicate address detection.
pub(super) fn new_vip(ifindex: u32, vip: IpAddr) -> RouteNetlinkMessage {
    let mut address = vip_address(ifindex, vip);
    match vip {
        IpAddr::V4(_) => address.header.scope = AddressScope::Host,
        IpAddr::V6(_) => {
            let mut lifetimes = CacheInfo::default();
            lifetimes.ifa_preferred = 0;
            lifetimes.ifa_valid = u32::MAX;
            address.attributes.push(AddressAttribute::CacheInfo(lifetimes));
            address
                .attributes
                .push(AddressAttribute::Flags(AddressFlags::Nodad | AddressFlags::Noprefixroute));
        }
    }
    RouteNetlinkMessage::NewAddress(address)
}

pub(super) fn delete_vip(ifindex: u32, vip: IpAddr) -> RouteNetlinkMessage {
    RouteNetlinkMessage::DelAddress(vip_address(ifindex, vip))
}

fn vip_address(ifindex: u32, vip: IpAddr) -> AddressMessage {
    let mut address = AddressMessage::default();
    address.header.family = family(vip);
    address.header.prefix_len = host_prefix_len(vip);
    address.header.index = ifindex;
    // With IFA_ADDRESS beside IFA_LOCAL the kernel compares the prefix length too when it deletes.
    address.attributes = vec![AddressAttribute::Local(vip), AddressAttribute::Address(vip)];
    address
}

/// The link a message describes, with its interface index.
pub(in crate::network) fn link(message: RouteNetlinkMessage) -> Option<(u32, Link)> {
    let (RouteNetlinkMessage::NewLink(message) | RouteNetlinkMessage::DelLink(message)) = message else {
        return None;
    };
    // A bridge announces its ports, and IPv6 its own view, with the same message type and another family.
    if message.header.interface_family != AddressFamily::Unspec {
        return None;
    }
    let ethernet = message.header.link_layer_type == LinkLayerType::Ether;
    let up = message.header.flags.contains(LinkFlags::Up | LinkFlags::Running);
    let mut link = Link { name: "".into(), mac: None, mtu: 0, up };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name.into(),
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Address(mac) if ethernet => link.mac = mac.try_into().ok(),
            _ => {}
        }
    }
    Some((message.header.index, link))
}

/// The neighbour a message describes; `None` for what is no IP neighbour, such as the table of a bridge.
pub(in crate::network) fn neighbour(message: RouteNetlinkMessage) -> Option<(Hop, Neighbour)> {
    let (RouteNetlinkMessage::NewNeighbour(message) | RouteNetlinkMessage::DelNeighbour(message)) = message
    else {
        return None;
    };
    let mut address = None;
    let mut mac = None;
    for attribute in message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => address = Some(v4.into()),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => address = Some(v6.into()),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.try_into().ok(),
            _ => {}
        }
    }
    let hop = Hop { ifindex: message.header.ifindex, address: address? };
    Some((hop, Neighbour { state: message.header.state, mac }))
}

/// The address of this host a message describes.
pub(in crate::network) fn host_address(message: RouteNetlinkMessage) -> Option<HostAddress> {
    let (RouteNetlinkMessage::NewAddress(message) | RouteNetlinkMessage::DelAddress(message)) = message
    else {
        return None;
    };
    let mut address = None;
    for attribute in message.attributes {
        match attribute {
            // On a point-to-point link IFA_ADDRESS is the peer's and IFA_LOCAL this host's; IPv6 has only the first.
            AddressAttribute::Local(local) => address = Some(local),
            AddressAttribute::Address(local) if address.is_none() => address = Some(local),
            _ => {}
        }
    }
    let header = message.header;
    let unverified = AddressHeaderFlags::Tentative | AddressHeaderFlags::Optimistic;
    Some(HostAddress {
        ifindex: header.index,
        address: address?,
        prefix_len: header.prefix_len,
        verified: !header.flags.intersects(unverified),
    })
}

/// Whether the entry of a routing table says all there is about the way: one next hop, and the source.
pub(super) fn is_whole_way(entry: &RouteNetlinkMessage) -> bool {
    let RouteNetlinkMessage::NewRoute(entry) = entry else { return false };
    let has = |wanted: fn(&RouteAttribute) -> bool| entry.attributes.iter().any(wanted);
    has(|attribute| matches!(attribute, RouteAttribute::Oif(_)))
        && has(|attribute| matches!(attribute, RouteAttribute::PrefSource(_)))
}

/// A route from the entry of the table that matched and the way a packet would take.
pub(super) fn route(entry: &RouteNetlinkMessage, way: &RouteNetlinkMessage) -> Result<Route, Unroutable> {
    let (RouteNetlinkMessage::NewRoute(entry), RouteNetlinkMessage::NewRoute(way)) = (entry, way) else {
        return Err(Unroutable::NoRoute);
    };
    match way.header.kind {
        RouteType::Unicast => {}
        RouteType::Local => return Err(Unroutable::Own),
        RouteType::Broadcast | RouteType::Multicast | RouteType::Anycast => {
            return Err(Unroutable::NotUnicast);
        }
        _ => return Err(Unroutable::Refused),
    }
    let prefix_len = entry.header.destination_prefix_length;
    let mut route = Route { ifindex: 0, gateway: None, source: None, prefix_len, mtu: None };
    for attribute in &way.attributes {
        match attribute {
            RouteAttribute::Oif(ifindex) => route.ifindex = *ifindex,
            RouteAttribute::Gateway(gateway) => route.gateway = ip(gateway),
            // An IPv4 destination behind an IPv6 gateway (RFC 5549).
            RouteAttribute::Via(RouteVia::Inet(v4)) => route.gateway = Some((*v4).into()),
            RouteAttribute::Via(RouteVia::Inet6(v6)) => route.gateway = Some((*v6).into()),
            RouteAttribute::PrefSource(source) => route.source = ip(source),
            _ => {}
        }
    }
    // Of the entry, not of the way: that one may carry a path MTU this host has learnt for itself, which expires.
    route.mtu = entry.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Metrics(metrics) => metrics.iter().find_map(|metric| match metric {
            RouteMetric::Mtu(mtu) => Some(*mtu),
            _ => None,
        }),
        _ => None,
    });
    if route.ifindex == 0 { Err(Unroutable::NoRoute) } else { Ok(route) }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some((*v4).into()),
        RouteAddress::Inet6(v6) => Some((*v6).into()),
        _ => None,
    }
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn host_prefix_len(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rtnetlink::packet_core::NLM_F_REQUEST;

    fn bytes(message: RouteNetlinkMessage) -> Vec<u8> {
        let mut message = NetlinkMessage::from(message);
        message.header.flags = NLM_F_REQUEST;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    }

    #[test]
    fn a_datagram_is_taken_apart_and_what_is_unknown_skipped() {
        let mut datagram = bytes(get_links());
        // nlmsghdr of an unknown type, with one byte of payload and three of padding.
        datagram.extend([17, 0, 0, 0, 0xff, 0x7f, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
        datagram.extend(bytes(get_addresses()));
        let kinds: Vec<_> = messages(&datagram).map(|message| message.header.message_type).collect();
        assert_eq!(kinds, [libc::RTM_GETLINK, libc::RTM_GETADDR]);
        for cut in 0..datagram.len() {
            assert!(messages(&datagram[..cut]).count() < 2, "cut at {cut}");
        }
    }

    #[test]
    fn the_neighbour_table_of_a_bridge_is_not_mistaken_for_ours() {
        let mut entry = NeighbourMessage::default();
        entry.header.family = AddressFamily::Bridge;
        entry.attributes.push(NeighbourAttribute::LinkLayerAddress(vec![2, 0, 0, 0, 0, 1]));
        assert_eq!(neighbour(RouteNetlinkMessage::NewNeighbour(entry)), None);

        let mut port = LinkMessage::default();
        port.header.interface_family = AddressFamily::Bridge;
        assert_eq!(link(RouteNetlinkMessage::DelLink(port)), None);
    }

    /// The request that solicits must not set NUD_PERMANENT: such an entry would never be verified again.
    #[test]
    fn soliciting_leaves_state_and_address_to_the_kernel() {
        let hop = Hop { ifindex: 7, address: "10.0.1.10".parse().unwrap() };
        let RouteNetlinkMessage::NewNeighbour(entry) = use_neighbour(hop) else { panic!("wrong message") };
        assert_eq!(entry.header.state, NeighbourState::None);
        assert_eq!(entry.header.flags, NeighbourFlags::Use);
        assert_eq!(entry.attributes.len(), 1);
    }

    #[test]
    fn the_chosen_next_hop_comes_from_the_way_and_prefix_and_mtu_from_the_entry() {
        let attribute = |address: &str| RouteAddress::from(address.parse::<IpAddr>().unwrap());
        let mut way = RouteMessage::default();
        way.header.kind = RouteType::Unicast;
        way.header.destination_prefix_length = 32;
        way.attributes = vec![
            RouteAttribute::Oif(3),
            RouteAttribute::Gateway(attribute("10.0.1.1")),
            RouteAttribute::PrefSource(attribute("10.0.1.5")),
            RouteAttribute::Metrics(vec![RouteMetric::Mtu(1280)]),
        ];
        let mut entry = way.clone();
        entry.header.destination_prefix_length = 16;
        entry.attributes =
            vec![RouteAttribute::Metrics(vec![RouteMetric::Window(1), RouteMetric::Mtu(1400)])];
        let message = |route: &RouteMessage| RouteNetlinkMessage::NewRoute(route.clone());
        let answer = |way: &RouteMessage, entry: &RouteMessage| route(&message(entry), &message(way));
        assert!(is_whole_way(&message(&way)));
        assert!(!is_whole_way(&message(&entry)), "it may have several next hops");
        let expected = Route {
            ifindex: 3,
            gateway: "10.0.1.1".parse().ok(),
            source: "10.0.1.5".parse().ok(),
            prefix_len: 16,
            mtu: Some(1400),
        };
        assert_eq!(answer(&way, &entry), Ok(expected));
        for (kind, reason) in [
            (RouteType::Local, Unroutable::Own),
            (RouteType::Broadcast, Unroutable::NotUnicast),
            (RouteType::BlackHole, Unroutable::Refused),
        ] {
            way.header.kind = kind;
            assert_eq!(answer(&way, &entry), Err(reason));
        }
    }
}
