//! A route netlink socket for questions and small changes (rtnetlink(7)).
//!
//! Nothing here waits: the kernel handles a request inside `send` and has queued the answer, or its next part,
//! when `send` or the `recv` before returns. So the socket is non-blocking, and an answer that is not there is an
//! error instead of a controller that hangs.

mod message;

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::neighbour::NeighbourState;
use netlink_packet_route::route::RouteFlags;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_EXCL, NLM_F_MULTIPART, NLM_F_REQUEST,
    NetlinkMessage, NetlinkPayload,
};
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{Socket, SocketAddr};

use super::Error;
pub(super) use message::{
    Hop, HostAddress, Link, Neighbour, Route, Unroutable, host_address, link, messages, neighbour,
};

/// What asking for the route to an address says.
pub(super) type Lookup = Result<Route, Unroutable>;

/// How often a list is read again because the kernel's tables changed meanwhile (NLM_F_DUMP_INTR). After that the
/// last one is taken: a host where they change all the time still has to be served.
const DUMP_ATTEMPTS: usize = 4;

/// Bytes; the kernel fills at most 32 KiB into one datagram (4.9).
const DATAGRAM: usize = 64 << 10;

/// Requests to the kernel, one at a time.
pub(super) struct Netlink {
    socket: Socket,
    sequence: u32,
    /// Room for one datagram of an answer.
    datagram: Vec<u8>,
}

impl Netlink {
    /// Opens a socket in the network namespace of the calling thread.
    pub(super) fn open() -> Result<Self, Error> {
        let open = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            socket.set_non_blocking(true)?;
            Ok(socket)
        };
        Ok(Self { socket: open().map_err(Error::Open)?, sequence: 0, datagram: Vec::with_capacity(DATAGRAM) })
    }

    /// All links of the namespace, by interface index.
    pub(super) fn links(&mut self) -> Result<BTreeMap<u32, Link>, Error> {
        let answers =
            self.dump(message::get_links()).map_err(|error| Error::kernel("list the links", error))?;
        Ok(answers.into_iter().filter_map(link).collect())
    }

    /// All links of the namespace, with everything the kernel says of them.
    pub(super) fn link_messages(&mut self) -> Result<Vec<LinkMessage>, Error> {
        let answers =
            self.dump(message::get_links()).map_err(|error| Error::kernel("list the links", error))?;
        let link = |answer| match answer {
            RouteNetlinkMessage::NewLink(link) => Some(link),
            _ => None,
        };
        Ok(answers.into_iter().filter_map(link).collect())
    }

    /// All addresses of the namespace.
    pub(super) fn addresses(&mut self) -> Result<Vec<HostAddress>, Error> {
        let answers = self
            .dump(message::get_addresses())
            .map_err(|error| Error::kernel("list the addresses", error))?;
        Ok(answers.into_iter().filter_map(host_address).collect())
    }

    /// The neighbour tables of both families.
    pub(super) fn neighbours(&mut self) -> Result<Vec<(Hop, Neighbour)>, Error> {
        let answers = self
            .dump(message::get_neighbours())
            .map_err(|error| Error::kernel("list the neighbours", error))?;
        Ok(answers.into_iter().filter_map(neighbour).collect())
    }

    /// The route that packets of this host to `destination` take.
    ///
    /// The first question (RTM_F_FIB_MATCH, kernel 4.13) is answered with the entry of the table that matched, which
    /// knows the prefix. Where that does not say it all, a second one asks for the way a packet would take: one of
    /// several next hops chosen as the kernel chooses for this destination, and the source address.
    pub(super) fn route(&mut self, destination: IpAddr) -> Result<Lookup, Error> {
        let mut find = || {
            let entry = self.ask(message::get_route(destination, RouteFlags::FibMatch))?;
            if message::is_whole_way(&entry) {
                return Ok(message::route(&entry, &entry));
            }
            let way = self.ask(message::get_route(destination, RouteFlags::empty()))?;
            Ok(message::route(&entry, &way))
        };
        match find() {
            Ok(lookup) => Ok(lookup),
            Err(error) => Unroutable::from_errno(&error)
                .map(Err)
                .ok_or_else(|| Error::kernel(format!("find the route to {destination}"), error)),
        }
    }

    /// The state of one neighbour entry (RTM_GETNEIGH for one entry: kernel 5.0); `None` if there is none.
    pub(super) fn neighbour_state(&mut self, hop: Hop) -> Result<Option<NeighbourState>, Error> {
        match self.ask(message::get_neighbour(hop)) {
            Ok(answer) => Ok(neighbour(answer).map(|(_, neighbour)| neighbour.state)),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(Error::kernel(format!("find the neighbour {}", hop.address), error)),
        }
    }

    /// Makes the kernel resolve a neighbour it does not know and verify one it has not heard of for a while, as if
    /// a packet had been sent to it (NTF_USE, kernel 2.6.37). An entry that is fresh or permanent stays as it is.
    ///
    /// An IPv6 neighbour is asked from the interface's link-local address. While there is none, nothing is sent, and
    /// the kernel gives up on the neighbour all the same.
    pub(super) fn solicit(&mut self, hop: Hop) -> io::Result<()> {
        self.change(message::use_neighbour(hop), NLM_F_CREATE)
    }

    /// Adds a virtual address to an interface.
    pub(super) fn add_vip(&mut self, ifindex: u32, vip: IpAddr) -> io::Result<()> {
        self.change(message::new_vip(ifindex, vip), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Removes what [`Netlink::add_vip`] added; an address with a longer subnet is another one and stays.
    pub(super) fn delete_vip(&mut self, ifindex: u32, vip: IpAddr) -> io::Result<()> {
        self.change(message::delete_vip(ifindex, vip), 0)
    }

    fn ask(&mut self, question: RouteNetlinkMessage) -> io::Result<RouteNetlinkMessage> {
        let (mut answers, _) = self.exchange(question, 0)?;
        answers.pop().ok_or_else(|| io::Error::other("the kernel's answer is empty"))
    }

    fn change(&mut self, request: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.exchange(request, NLM_F_ACK | flags).map(drop)
    }

    fn dump(&mut self, question: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        let mut answers = Vec::new();
        for _ in 0..DUMP_ATTEMPTS {
            let consistent;
            (answers, consistent) = self.exchange(question.clone(), NLM_F_DUMP)?;
            if consistent {
                break;
            }
        }
        Ok(answers)
    }

    /// Sends one request and reads its whole answer; the flag says whether a list in it is of one moment.
    fn exchange(
        &mut self,
        request: RouteNetlinkMessage,
        flags: u16,
    ) -> io::Result<(Vec<RouteNetlinkMessage>, bool)> {
        self.send(request, flags)?;
        let mut answers = Vec::new();
        let mut consistent = true;
        loop {
            self.datagram.clear();
            self.socket.recv(&mut self.datagram, 0)?;
            // What is left of an answer that was given up half-way has another number.
            for message in messages(&self.datagram).filter(|m| m.header.sequence_number == self.sequence) {
                consistent &= message.header.flags & NLM_F_DUMP_INTR == 0;
                let more = message.header.flags & NLM_F_MULTIPART != 0;
                match message.payload {
                    NetlinkPayload::InnerMessage(answer) => answers.push(answer),
                    NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                    NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => return Ok((answers, consistent)),
                    _ => continue,
                }
                if !more {
                    return Ok((answers, consistent));
                }
            }
        }
    }

    fn send(&mut self, request: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut request = NetlinkMessage::from(request);
        request.header.flags = NLM_F_REQUEST | flags;
        request.header.sequence_number = self.sequence;
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_link_its_address_and_the_route_to_it_are_found() {
        let mut netlink = Netlink::open().expect("a netlink socket");
        let links = netlink.links().expect("links");
        let (&lo, link) = links.iter().find(|(_, link)| &*link.name == "lo").expect("lo");
        assert_eq!(link.mac, None, "loopback is not Ethernet");
        assert!(link.mtu > 0);
        assert!(netlink.addresses().expect("addresses").iter().all(|a| links.contains_key(&a.ifindex)));
        let own = IpAddr::from([127, 0, 0, 1]);
        assert_eq!(netlink.route(own).expect("an answer"), Err(Unroutable::Own));
        assert_eq!(
            netlink.neighbour_state(Hop { ifindex: lo, address: [192, 0, 2, 1].into() }).unwrap(),
            None
        );
    }

    #[test]
    fn a_refused_change_says_why() {
        let mut netlink = Netlink::open().expect("a netlink socket");
        let error = netlink.add_vip(u32::MAX >> 1, [192, 0, 2, 1].into()).expect_err("there is no such link");
        assert!(matches!(error.raw_os_error(), Some(libc::ENODEV | libc::EPERM)), "{error}");
    }
}
