//! The express way, of a plain packet whose flow is in the cache: read, found, counted, translated and sent in one pass, without
//! anything being kept in between. It gives up before it has changed or counted anything, and the packet takes the
//! short way.

use lb_common::cache::{Pair as _, join_ports, split_ports};
use lb_common::{CachedFlow, Course, PROTO_TCP, PROTO_UDP, Tuple};

use crate::cache::{Copied, Sought, find};
use crate::checksum::WideSum;
use crate::family::{ExpressIp, Family, Pair};
use crate::frame::{Frame, L3};
use crate::translate::Transport;
use crate::wire::{Headers, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, Tcp, Udp};
use crate::{count, forward};

/// The whole journey; `None` if the packet takes another way.
#[inline(always)]
pub(crate) fn travel<F: Family>(frame: &mut Frame) -> Option<u32> {
    let headers: &Headers<F::Ip, Udp> = frame.at(0)?;
    match F::protocol(&headers.ip) {
        PROTO_TCP => pass::<F, Tcp>(frame),
        PROTO_UDP => pass::<F, Udp>(frame),
        _ => None,
    }
}

/// The same of one protocol. The length of the frame is looked at once, for all headers.
#[inline(always)]
fn pass<F: Family, T: ExpressTransport>(frame: &mut Frame) -> Option<u32> {
    let (headers, around) = frame.parts::<Headers<F::Ip, T>>()?;
    let ExpressIp { addresses, length } = F::read_express(&headers.ip)?;
    let ports = headers.transport.plain_ports(length.checked_sub(F::HEADER as u16)?)?;
    if !around.holds(L3 + usize::from(length)) {
        return None;
    }
    let tuple = Tuple::new(addresses, ports, T::PROTOCOL);
    let sought = Sought::new(&tuple, &headers.ethernet, around.ingress());
    let Copied { own, lane } = find::<F>(sought, T::PROTOCOL, length, || F::addresses(&headers.ip))?;
    count::in_lane(&mut lane.traffic, length);
    let Translated { addresses, ports, changes: (difference, sum) } =
        translated::<F>(ports, own, &lane.course);
    headers.transport.rewrite(ports, sum);
    F::write_express(&mut headers.ip, addresses, difference);
    Some(forward::send(&mut headers.ethernet, around.ingress(), &lane.course.next_hop))
}

/// What a packet gets.
struct Translated<P> {
    addresses: P,
    ports: u32,
    /// As [`Family::changes`] says.
    changes: (u16, WideSum),
}

/// Puts together what a packet gets: one side is the client's, the other that of its course.
#[inline(always)]
fn translated<F: Family>(
    ports: u32,
    own: &CachedFlow<Pair<F>>,
    course: &Course<Pair<F>>,
) -> Translated<Pair<F>> {
    let (source_port, destination_port) = split_ports(ports);
    let port = |arrives| if course.port == 0 { arrives } else { course.port };
    if course.is_to_backend() {
        Translated {
            addresses: Pair::<F>::of(course.at_backend(own.client), course.leaves),
            ports: join_ports(own.port, port(destination_port)),
            changes: F::changes(own, course, source_port),
        }
    } else {
        Translated {
            addresses: Pair::<F>::of(course.leaves, own.client),
            ports: join_ports(port(source_port), own.port),
            changes: F::changes(own, course, destination_port),
        }
    }
}

/// TCP or UDP as the express way reads it.
trait ExpressTransport: Transport {
    /// Its ports, as they are in the packet, if it is sound and of TCP tells no more than that its connection goes on. `payload` is what
    /// the packet has behind the IP header, in bytes.
    fn plain_ports(&self, payload: u16) -> Option<u32>;
}

impl ExpressTransport for Tcp {
    #[inline(always)]
    fn plain_ports(&self, payload: u16) -> Option<u32> {
        let header = u16::from(self.data_offset >> 2 & 0x3c);
        let goes_on = self.flags & (TCP_SYN | TCP_FIN | TCP_RST | TCP_ACK) == TCP_ACK;
        (goes_on && header >= size_of::<Self>() as u16 && header <= payload).then(|| self.ports())
    }
}

impl ExpressTransport for Udp {
    #[inline(always)]
    fn plain_ports(&self, payload: u16) -> Option<u32> {
        let length = u16::from_be(self.length);
        (length >= size_of::<Self>() as u16 && length <= payload).then(|| self.ports())
    }
}
