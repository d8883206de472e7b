//! The express way, of a plain packet whose flow is in the cache: read, found, counted, translated and sent in one pass, without
//! anything being kept in between. It gives up before it has changed or counted anything, and the packet takes the
//! short way.

use lb_common::{Address, PROTO_TCP, PROTO_UDP, Tuple};

use crate::family::{ExpressIp, Family};
use crate::frame::{Frame, L3};
use crate::wire::{TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, Tcp, Udp};
use crate::{cache, count, forward, translate};

/// A packet as the express way needs it.
pub(crate) struct Express<P> {
    /// Its tuple.
    pub(crate) tuple: Tuple<P>,
    /// Bytes from the IP header on.
    pub(crate) length: u16,
    protocol: u8,
}

/// The whole journey; `None` if the packet takes another way.
#[inline(always)]
pub(crate) fn travel<F: Family>(frame: &mut Frame) -> Option<u32> {
    let packet = read::<F>(frame)?;
    let to = cache::find::<F>(frame, &packet)?;
    count::packet(to.listener.into(), to.backend.into(), to.direction, packet.length);
    translate::transport(frame, L3 + F::HEADER, packet.protocol, to.ports, to.l4_difference)?;
    F::write_express(frame, to.addresses, to.ip_difference)?;
    forward::forward(frame, &to.next_hop)
}

/// Reads a packet that is plain and sound, and of TCP tells no more than that its connection goes on.
#[inline(always)]
fn read<F: Family>(frame: &Frame) -> Option<Express<<F::Addr as Address>::Pair>> {
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
    Some(Express { tuple: Tuple::new(addresses, ports, protocol), length, protocol })
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
