//! Third step: addresses and ports, and every checksum that covers them.

use lb_common::cache::wire_ports;
use lb_common::{Flow, PROTO_TCP};

use crate::checksum;
use crate::family::Family;
use crate::frame::Frame;
use crate::parse::Packet;
use crate::wire::{Tcp, Udp};

/// Rewrites the packet as its flow says. The headers were read before, so none of this fails; the verifier
/// wants to see each bound again after the frame may have changed.
#[inline(always)]
pub(crate) fn translate<F: Family>(
    frame: &mut Frame,
    packet: &Packet<F::Addr>,
    to: &Flow<F::Addr>,
) -> Option<()> {
    if !packet.fragment.is_later() {
        let ports = wire_ports(to.source_port, to.destination_port);
        transport(frame, packet.l4(), packet.key.protocol, ports, to.l4_difference)?;
    }
    F::write_ip(frame, packet.l3(), to.source, to.destination, to.ip_difference)
}

/// Rewrites ports, given as they are in a packet, and the checksum of TCP or UDP.
#[inline(always)]
pub(crate) fn transport(
    frame: &mut Frame,
    l4: usize,
    protocol: u8,
    ports: u32,
    difference: u16,
) -> Option<()> {
    if protocol == PROTO_TCP {
        let tcp: &mut Tcp = frame.at_mut(l4)?;
        tcp.set_ports(ports);
        tcp.checksum = checksum::apply(tcp.checksum, difference);
    } else {
        let udp: &mut Udp = frame.at_mut(l4)?;
        udp.set_ports(ports);
        // Zero means that the sender computed none (RFC 768).
        if udp.checksum != 0 {
            udp.checksum = checksum::apply_udp(udp.checksum, difference);
        }
    }
    Some(())
}
