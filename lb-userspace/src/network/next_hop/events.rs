//! The kernel's announcements of changed links, addresses, neighbours, routes and rules.

use std::io;
use std::net::IpAddr;

use futures::FutureExt;
use ipnet::IpNet;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};

use super::table::Event;
use crate::network::Error;
use crate::network::netlink::{host_address, link, messages, neighbour};

const GROUPS: [MulticastGroup; 8] = [
    MulticastGroup::Link,
    MulticastGroup::Neigh,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
];

/// Bytes the kernel may queue before it drops announcements; it grants at most net.core.rmem_max.
const RECEIVE_BUFFER: libc::c_int = 4 << 20;

/// Announcements taken in one go, so that a storm of announcements does not keep the rest of the task waiting.
const BATCH: usize = 256;

/// A subscription to the kernel's announcements.
pub(super) struct Events {
    socket: TokioSocket,
}

impl Events {
    /// Subscribes in the network namespace of the calling thread.
    pub(super) fn subscribe() -> Result<Self, Error> {
        let subscribe = || {
            let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
            socket.socket_ref().set_rx_buf_sz(RECEIVE_BUFFER)?;
            socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
            for group in GROUPS {
                socket.socket_ref().add_membership(group as u32)?;
            }
            Ok(Self { socket })
        };
        subscribe().map_err(Error::Open)
    }

    /// Waits for announcements and returns those that have come. Nothing is lost when the future is dropped.
    pub(super) async fn next(&self) -> io::Result<Vec<Event>> {
        let mut events = Vec::new();
        let mut received = Some(self.socket.recv_from_full().await);
        while let Some(result) = received {
            match result {
                Ok((datagram, _)) => events.extend(messages(&datagram).filter_map(event)),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => events.push(Event::Lost),
                Err(error) => return Err(error),
            }
            if events.len() >= BATCH {
                break;
            }
            received = self.socket.recv_from_full().now_or_never();
        }
        Ok(events)
    }
}

fn event(message: NetlinkMessage<RouteNetlinkMessage>) -> Option<Event> {
    use RouteNetlinkMessage as Message;
    let NetlinkPayload::InnerMessage(message) = message.payload else { return None };
    match message {
        Message::NewLink(_) => link(message).map(|(ifindex, link)| Event::Link(ifindex, Some(link))),
        Message::DelLink(_) => link(message).map(|(ifindex, _)| Event::Link(ifindex, None)),
        Message::NewNeighbour(_) => {
            neighbour(message).map(|(hop, neighbour)| Event::Neighbour(hop, Some(neighbour)))
        }
        Message::DelNeighbour(_) => neighbour(message).map(|(hop, _)| Event::Neighbour(hop, None)),
        Message::NewAddress(_) => host_address(message).map(Event::Address),
        Message::DelAddress(_) => host_address(message).map(Event::AddressGone),
        Message::NewRule(rule) | Message::DelRule(rule) => every(rule.header.family).map(Event::Route),
        Message::NewRoute(route) | Message::DelRoute(route) => prefix(&route).map(Event::Route),
        _ => None,
    }
}

/// The prefix that holds every address of a family.
fn every(family: AddressFamily) -> Option<IpNet> {
    match family {
        AddressFamily::Inet => Some(IpNet::V4(ipnet::Ipv4Net::default())),
        AddressFamily::Inet6 => Some(IpNet::V6(ipnet::Ipv6Net::default())),
        _ => None,
    }
}

/// The destinations of a route; a default route has no destination attribute.
fn prefix(route: &RouteMessage) -> Option<IpNet> {
    let destination = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(v4)) => Some(IpAddr::from(*v4)),
        RouteAttribute::Destination(RouteAddress::Inet6(v6)) => Some(IpAddr::from(*v6)),
        _ => None,
    });
    match destination {
        Some(address) => IpNet::new(address, route.header.destination_prefix_length).ok(),
        None => every(route.header.address_family),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
    use netlink_packet_route::route::RouteHeader;
    use netlink_packet_route::rule::RuleMessage;

    fn route(header: RouteHeader, attributes: Vec<RouteAttribute>) -> Option<Event> {
        let mut route = RouteMessage::default();
        (route.header, route.attributes) = (header, attributes);
        event(NetlinkMessage::from(RouteNetlinkMessage::DelRoute(route)))
    }

    #[test]
    fn a_route_concerns_its_prefix() {
        let header = RouteHeader {
            address_family: AddressFamily::Inet6,
            destination_prefix_length: 64,
            ..Default::default()
        };
        let destination = RouteAttribute::Destination("fd00:1::".parse::<IpAddr>().unwrap().into());
        assert_eq!(route(header, vec![destination]), Some(Event::Route("fd00:1::/64".parse().unwrap())));
    }

    #[test]
    fn a_default_route_concerns_its_whole_family() {
        let header = RouteHeader { address_family: AddressFamily::Inet, ..Default::default() };
        assert_eq!(route(header, vec![]), Some(Event::Route("0.0.0.0/0".parse().unwrap())));
    }

    #[test]
    fn a_rule_concerns_its_whole_family_and_one_of_another_family_nothing() {
        let mut rule = RuleMessage::default();
        rule.header.family = AddressFamily::Inet6;
        let message = NetlinkMessage::from(RouteNetlinkMessage::NewRule(rule.clone()));
        assert_eq!(event(message), Some(Event::Route("::/0".parse().unwrap())));
        rule.header.family = AddressFamily::Mpls;
        assert_eq!(event(NetlinkMessage::from(RouteNetlinkMessage::NewRule(rule))), None);
    }

    #[test]
    fn a_link_local_address_counts_once_it_is_verified() {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet6;
        message.header.index = 3;
        message.attributes = vec![AddressAttribute::Address("fe80::1".parse().unwrap())];
        let verified = |message: &AddressMessage| match event(NetlinkMessage::from(
            RouteNetlinkMessage::NewAddress(message.clone()),
        )) {
            Some(Event::Address(address)) => address.verified,
            other => panic!("{other:?}"),
        };
        assert!(verified(&message));
        message.header.flags = AddressHeaderFlags::Tentative;
        assert!(!verified(&message));
    }
}
