//! Third step: addresses and ports, and every checksum that covers them.

use lb_common::cache::wire_ports;
use lb_common::{Address, Flow, FlowKey, PROTO_TCP, PROTO_UDP};

use crate::checksum::{self, Change};
use crate::family::Family;
use crate::frame::Frame;
use crate::parse::Packet;
use crate::wire::{Tcp, Udp, Wire};

/// What becomes of the packets of a flow in one direction.
#[derive(Clone, Copy)]
pub(crate) struct Translation<A> {
    pub(crate) source: A,
    pub(crate) destination: A,
    /// Host order, as the other.
    pub(crate) source_port: u16,
    pub(crate) destination_port: u16,
    /// What the addresses add to the checksum of the IPv4 header; 0 for IPv6.
    pub(crate) ip_difference: u16,
    /// What all of it adds to that of TCP or UDP.
    pub(crate) l4_difference: u16,
}

impl<A: Address> Translation<A> {
    /// As the flow of the client's tuple has it for packets in this direction.
    #[inline(always)]
    pub(crate) fn of<F: Family<Addr = A>>(flow: &Flow<A>, client: &FlowKey<A>, direction: u8) -> Self {
        if direction == Flow::<A>::TO_BACKEND {
            return Self {
                source: flow.source,
                destination: flow.destination,
                source_port: flow.source_port,
                destination_port: flow.destination_port,
                ip_difference: flow.ip_difference,
                l4_difference: flow.l4_difference,
            };
        }
        Self {
            source: client.destination,
            destination: client.source,
            source_port: client.destination_port,
            destination_port: client.source_port,
            ip_difference: F::ip_difference(checksum::inverse(flow.ip_difference)),
            l4_difference: checksum::inverse(flow.l4_difference),
        }
    }
}

/// Rewrites the packet as its flow says. The headers were read before, so none of this fails; the verifier
/// wants to see each bound again after the frame may have changed.
#[inline(always)]
pub(crate) fn translate<F: Family>(
    frame: &mut Frame,
    packet: &Packet<F::Addr>,
    to: &Translation<F::Addr>,
) -> Option<()> {
    if !packet.fragment.is_later() {
        let ports = wire_ports(to.source_port, to.destination_port);
        transport(frame, packet.l4(), packet.key.protocol, ports, to.l4_difference)?;
    }
    F::write_ip(frame, packet.l3(), to.source, to.destination, to.ip_difference)
}

/// Rewrites ports, given as they are in a packet, and the checksum of TCP or UDP.
#[inline(always)]
fn transport(frame: &mut Frame, l4: usize, protocol: u8, ports: u32, difference: u16) -> Option<()> {
    if protocol == PROTO_TCP {
        let tcp: &mut Tcp = frame.at_mut(l4)?;
        tcp.ports.set(ports);
        tcp.change_checksum(difference);
    } else {
        let udp: &mut Udp = frame.at_mut(l4)?;
        udp.ports.set(ports);
        udp.change_checksum(difference);
    }
    Some(())
}

/// A header with ports.
pub(crate) trait Transport: Wire {
    /// IP protocol number.
    const PROTOCOL: u8;

    /// Writes the checksum after these changes.
    fn change_checksum(&mut self, change: impl Change);
}

impl Transport for Tcp {
    const PROTOCOL: u8 = PROTO_TCP;

    #[inline(always)]
    fn change_checksum(&mut self, change: impl Change) {
        self.checksum = change.apply(self.checksum);
    }
}

impl Transport for Udp {
    const PROTOCOL: u8 = PROTO_UDP;

    #[inline(always)]
    fn change_checksum(&mut self, change: impl Change) {
        // Zero means that the sender computed none (RFC 768).
        if self.checksum != 0 {
            self.checksum = checksum::apply_udp(self.checksum, change);
        }
    }
}
