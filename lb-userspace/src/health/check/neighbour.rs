//! The kernel's neighbour table: is a host silent because nothing answers ARP or neighbour discovery for it?
//!
//! The kernel gives up on a neighbour after about three seconds, so that `connect` says EHOSTUNREACH later than a
//! check with the default timeout of 3000 ms waits. Such a check asks here what the kernel is waiting for.

use std::io;
use std::net::IpAddr;

use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{Socket, SocketAddr};

/// Knows whether the next hop towards a target has no link-layer address.
pub trait Neighbours: Send + Sync {
    /// True if the kernel has asked for the link-layer address of the next hop to `target` and has no answer.
    fn unresolved(&self, target: IpAddr) -> bool;
}

/// The neighbour table of the network namespace of the calling thread, asked by netlink.
#[derive(Clone, Copy, Debug, Default)]
pub struct KernelNeighbours;

impl Neighbours for KernelNeighbours {
    /// Not knowing is `false`: the check then stays `TIMED_OUT`, which is true too.
    fn unresolved(&self, target: IpAddr) -> bool {
        matches!(state(target), Ok(Some(NeighbourState::Incomplete | NeighbourState::Failed)))
    }
}

/// The state of the neighbour entry of the next hop to `target`; `None` where no neighbour is needed.
fn state(target: IpAddr) -> io::Result<Option<NeighbourState>> {
    let mut netlink = Netlink::open()?;
    let Some((next_hop, ifindex)) = next_hop(netlink.ask(route_to(target))?, target) else { return Ok(None) };
    match netlink.ask(neighbour(next_hop, ifindex))? {
        RouteNetlinkMessage::NewNeighbour(entry) => Ok(Some(entry.header.state)),
        _ => Ok(None),
    }
}

/// RTM_GETROUTE: which way would a packet to `target` go.
fn route_to(target: IpAddr) -> RouteNetlinkMessage {
    let mut route = RouteMessage::default();
    route.header.address_family = family(target);
    route.header.destination_prefix_length = if target.is_ipv4() { 32 } else { 128 };
    route.attributes.push(RouteAttribute::Destination(target.into()));
    RouteNetlinkMessage::GetRoute(route)
}

/// RTM_GETNEIGH for one entry (kernel 5.0).
fn neighbour(address: IpAddr, ifindex: u32) -> RouteNetlinkMessage {
    let mut entry = NeighbourMessage::default();
    entry.header.family = family(address);
    entry.header.ifindex = ifindex;
    entry.attributes.push(NeighbourAttribute::Destination(address.into()));
    RouteNetlinkMessage::GetNeighbour(entry)
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

/// Gateway, or the target itself when it is on-link, and the interface; `None` for an address of this host.
fn next_hop(answer: RouteNetlinkMessage, target: IpAddr) -> Option<(IpAddr, u32)> {
    let RouteNetlinkMessage::NewRoute(route) = answer else { return None };
    if route.header.kind != RouteType::Unicast {
        return None;
    }
    let mut gateway = target;
    let mut ifindex = None;
    for attribute in route.attributes {
        match attribute {
            RouteAttribute::Gateway(RouteAddress::Inet(address)) => gateway = address.into(),
            RouteAttribute::Gateway(RouteAddress::Inet6(address)) => gateway = address.into(),
            RouteAttribute::Oif(index) => ifindex = Some(index),
            _ => {}
        }
    }
    Some((gateway, ifindex?))
}

/// A route netlink socket for questions with one answer. It never blocks: the kernel queues the answer to such a
/// question before `send` returns.
struct Netlink {
    socket: Socket,
}

impl Netlink {
    fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_non_blocking(true)?;
        Ok(Self { socket })
    }

    fn ask(&mut self, question: RouteNetlinkMessage) -> io::Result<RouteNetlinkMessage> {
        let mut request = NetlinkMessage::from(question);
        request.header.flags = NLM_F_REQUEST;
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let (answer, _) = self.socket.recv_from_full()?;
        let message =
            NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer).map_err(io::Error::other)?;
        match message.payload {
            NetlinkPayload::InnerMessage(message) => Ok(message),
            NetlinkPayload::Error(error) => Err(error.to_io()),
            other => Err(io::Error::other(format!("unexpected netlink answer: {other:?}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_this_host_needs_no_neighbour() {
        for address in ["127.0.0.1", "::1"] {
            let address = address.parse().expect("an address");
            assert_eq!(state(address).expect("netlink answers"), None);
            assert!(!KernelNeighbours.unresolved(address));
        }
    }
}
