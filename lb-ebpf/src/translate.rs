//! Third step: addresses and ports, and every checksum that covers them.

use lb_common::{PROTO_TCP, Translation};

use crate::checksum;
use crate::family::Family;
use crate::frame::Frame;
use crate::parse::Packet;
use crate::wire::{Ports, Tcp, Udp};

/// Rewrites the packet as its flow says. The headers were read before, so none of this fails; the verifier
/// wants to see each bound again after the frame may have changed.
#[inline(always)]
pub(crate) fn translate<F: Family>(
    frame: &mut Frame,
    packet: &Packet<F::Addr>,
    to: &impl Translation<F::Addr>,
) -> Option<()> {
    let (ip_difference, l4_difference) = to.differences();
    if !packet.fragment.is_later() {
        translate_transport(frame, packet.l4(), packet.key.protocol, to.ports(), l4_difference)?;
    }
    F::write_ip(frame, packet.l3(), to.source(), to.destination(), ip_difference)
}

#[inline(always)]
fn translate_transport(
    frame: &mut Frame,
    l4: usize,
    protocol: u8,
    (source, destination): (u16, u16),
    difference: u16,
) -> Option<()> {
    let ports = Ports { source: source.to_be(), destination: destination.to_be() };
    if protocol == PROTO_TCP {
        let tcp: &mut Tcp = frame.at_mut(l4)?;
        tcp.ports = ports;
        tcp.checksum = checksum::apply(tcp.checksum, difference);
    } else {
        let udp: &mut Udp = frame.at_mut(l4)?;
        udp.ports = ports;
        // Zero means that the sender computed none (RFC 768).
        if udp.checksum != 0 {
            udp.checksum = checksum::apply_udp(udp.checksum, difference);
        }
    }
    Some(())
}
