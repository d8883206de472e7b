//! Third step: addresses and ports, and every checksum that covers them.

use lb_common::cache::wire_ports;
use lb_common::{Flow, PROTO_TCP, PROTO_UDP};

use crate::checksum::{self, Change};
use crate::family::Family;
use crate::frame::Frame;
use crate::parse::Packet;
use crate::wire::{Tcp, Udp, Wire};

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
