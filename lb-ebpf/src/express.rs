//! The express way, of a plain packet whose flow is in the cache: read, found, counted, translated and sent in one pass, without
//! anything being kept in between. It gives up before it has changed or counted anything, and the packet takes the
//! short way.

use lb_common::cache::{Differences, Pair as _, join_ports, split_ports};
use lb_common::{CachedFlow, Course, PROTO_TCP, PROTO_UDP, Tuple};

use crate::cache::{Copied, find};
use crate::family::{ExpressIp, Family, Pair};
use crate::frame::{Frame, L3};
use crate::wire::{TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, Tcp, Udp};
use crate::{count, forward, translate};

/// A packet as the express way needs it.
pub(crate) struct Express<P> {
    /// Its tuple.
    pub(crate) tuple: Tuple<P>,
    /// Bytes from the IP header on.
    pub(crate) length: u16,
}

/// The whole journey; `None` if the packet takes another way.
#[inline(always)]
pub(crate) fn travel<F: Family>(frame: &mut Frame) -> Option<u32> {
    let packet = read::<F>(frame)?;
    let Copied { own, lane } = find::<F>(frame, &packet)?;
    count::in_lane(&mut lane.traffic, packet.length);
    let Translated { addresses, ports, differences } = translated::<F>(&packet.tuple, own, &lane.course);
    translate::transport(frame, L3 + F::HEADER, packet.tuple.protocol(), ports, differences.l4)?;
    F::write_express(frame, addresses, differences.ip)?;
    forward::forward(frame, &lane.course.next_hop)
}

/// What a packet gets.
struct Translated<P> {
    addresses: P,
    ports: u32,
    differences: Differences,
}

/// Puts together what a packet gets: one side is the client's, the other that of its course.
#[inline(always)]
fn translated<F: Family>(
    tuple: &Tuple<Pair<F>>,
    own: &CachedFlow<Pair<F>>,
    course: &Course<Pair<F>>,
) -> Translated<Pair<F>> {
    let (source_port, destination_port) = split_ports(tuple.ports());
    let port = |arrives| if course.port == 0 { arrives } else { course.port };
    if course.is_to_backend() {
        Translated {
            addresses: Pair::<F>::of(course.at_backend(own.client), course.leaves),
            ports: join_ports(own.port, port(destination_port)),
            differences: F::differences(own, course, source_port),
        }
    } else {
        Translated {
            addresses: Pair::<F>::of(course.leaves, own.client),
            ports: join_ports(port(source_port), own.port),
            differences: F::differences(own, course, destination_port),
        }
    }
}

/// Reads a packet that is plain and sound, and of TCP tells no more than that its connection goes on.
#[inline(always)]
fn read<F: Family>(frame: &Frame) -> Option<Express<Pair<F>>> {
    let ExpressIp { addresses, protocol, length } = F::read_express(frame)?;
    let payload = length.checked_sub(F::HEADER as u16)?;
    let ports = match protocol {
        PROTO_TCP => read_tcp(frame, L3 + F::HEADER, payload)?,
        PROTO_UDP => read_udp(frame, L3 + F::HEADER, payload)?,
        _ => return None,
    };
    if !frame.holds(L3 + usize::from(length)) {
        return None;
    }
    Some(Express { tuple: Tuple::new(addresses, ports, protocol), length })
}

#[inline(always)]
fn read_tcp(frame: &Frame, l4: usize, payload: u16) -> Option<u32> {
    let tcp: &Tcp = frame.at(l4)?;
    let header = u16::from(tcp.data_offset >> 2 & 0x3c);
    let goes_on = tcp.flags & (TCP_SYN | TCP_FIN | TCP_RST | TCP_ACK) == TCP_ACK;
    (goes_on && header >= size_of::<Tcp>() as u16 && header <= payload).then(|| tcp.ports())
}

#[inline(always)]
fn read_udp(frame: &Frame, l4: usize, payload: u16) -> Option<u32> {
    let udp: &Udp = frame.at(l4)?;
    let length = u16::from_be(udp.length);
    (length >= size_of::<Udp>() as u16 && length <= payload).then(|| udp.ports())
}
