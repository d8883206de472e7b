//! The express way, of a plain packet whose flow is in the cache: read, found, counted, translated and sent in one pass, without
//! anything being kept in between. It gives up before it has changed or counted anything, and the packet takes the
//! short way.

use lb_common::cache::{Pair as _, join_ports, split_ports};
use lb_common::{Course, Flow, PROTO_TCP, PROTO_UDP, Tuple};

use crate::cache::{Copied, Moment, Sought, find};
use crate::family::{Direction, Family, Pair, ToBackend, ToClient};
use crate::forward;
use crate::frame::{Around, Frame, L3};
use crate::translate::Transport;
use crate::wire::{Headers, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, Tcp, Udp};

/// The whole journey; `None` if the packet takes another way. The length of the frame is looked at once, for headers with TCP's: with
/// less than twelve bytes behind UDP's it is too short for that, unless a link has padded it, as Ethernet does with IPv4.
#[inline(always)]
pub(crate) fn travel<F: Family>(frame: &mut Frame, moment: Moment) -> Option<u32> {
    let (headers, around) = frame.parts::<Headers<F::Ip, Tcp>>()?;
    match F::protocol(&headers.ip) {
        PROTO_TCP => pass::<F, _>(headers, around, moment),
        PROTO_UDP => pass::<F, _>(headers.with_udp(), around, moment),
        _ => None,
    }
}

/// The same of one protocol. A frame in several buffers is long, so that another way makes little difference.
#[inline(always)]
fn pass<F: Family, T: ExpressTransport>(
    headers: &mut Headers<F::Ip, T>,
    around: Around,
    moment: Moment,
) -> Option<u32> {
    let length = F::express_length(headers)?;
    if !headers.transport.is_plain(F::HEADER as u32, length) || L3 + length as usize > around.linear() {
        return None;
    }
    let ports = F::ports(headers);
    let tuple = Tuple::new(F::addresses(headers), ports, T::PROTOCOL);
    let sought = Sought::new(&tuple, &headers.ethernet, around.ingress());
    let mut copied = find::<F>(sought, length, moment)?;
    let Course { protocol, direction, .. } = copied.lane.course;
    if protocol != T::PROTOCOL {
        None
    } else if direction == Flow::<F::Addr>::TO_BACKEND {
        follow::<F, T, ToBackend>(headers, &mut copied, ports, length)
    } else {
        follow::<F, T, ToClient>(headers, &mut copied, ports, length)
    }
}

/// Follows a copy in its direction. It says together with its course what the packet gets: one side is the client's, the other
/// that of the course.
#[inline(always)]
fn follow<F: Family, T: Transport, D: Direction>(
    headers: &mut Headers<F::Ip, T>,
    copied: &mut Copied<F>,
    ports: u32,
    length: u32,
) -> Option<u32> {
    if !copied.is_between::<D>(F::addresses(headers)) {
        return None;
    }
    copied.count(length);
    let (own, course) = (copied.own, &copied.lane.course);
    // Of 32 bits, so that nothing has to be cut off before they are put together.
    let port = |arrives: u16| if course.port == 0 { u32::from(arrives) } else { u32::from(course.port) };
    let (source_port, destination_port) = split_ports(ports);
    let (addresses, ports, (ip_change, change)) = if D::IS_TO_BACKEND {
        let addresses = Pair::<F>::of(course.at_backend(own.client), course.leaves);
        let ports = join_ports(own.port.into(), port(destination_port));
        (addresses, ports, F::changes::<D>(own, course, source_port))
    } else {
        let addresses = Pair::<F>::of(course.leaves, own.client);
        let ports = join_ports(port(source_port), own.port.into());
        (addresses, ports, F::changes::<D>(own, course, destination_port))
    };
    F::set_ports(headers, ports);
    headers.transport.change_checksum(change);
    F::write_express(headers, addresses, ip_change);
    Some(forward::along(course, &mut headers.ethernet))
}

/// TCP or UDP as the express way reads it.
trait ExpressTransport: Transport {
    /// Whether it is sound and of TCP tells no more than that its connection goes on, behind an IP header of so many bytes in a packet of
    /// this length.
    fn is_plain(&self, ip_header: u32, length: u32) -> bool;
}

impl ExpressTransport for Tcp {
    #[inline(always)]
    fn is_plain(&self, ip_header: u32, length: u32) -> bool {
        let header = u32::from(self.data_offset >> 2 & 0x3c);
        let goes_on = self.flags & (TCP_SYN | TCP_FIN | TCP_RST | TCP_ACK) == TCP_ACK;
        goes_on && header >= size_of::<Self>() as u32 && ip_header + header <= length
    }
}

impl ExpressTransport for Udp {
    #[inline(always)]
    fn is_plain(&self, ip_header: u32, length: u32) -> bool {
        let own_length = u32::from(u16::from_be(self.length));
        own_length >= size_of::<Self>() as u32 && ip_header + own_length <= length
    }
}
