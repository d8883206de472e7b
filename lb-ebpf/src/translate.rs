//! Third step: addresses and ports, and every checksum that covers them.

use lb_common::{Flow, PROTO_TCP};

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
    flow: &Flow<F::Addr>,
) -> Option<()> {
    if !packet.fragment.is_later() {
        translate_transport(frame, packet.l4(), packet.key.protocol, flow)?;
    }
    F::write_ip(frame, packet.l3(), flow.source, flow.destination, flow.ip_difference)
}

#[inline(always)]
fn translate_transport<A>(frame: &mut Frame, l4: usize, protocol: u8, flow: &Flow<A>) -> Option<()> {
    if protocol == PROTO_TCP {
        let tcp: &mut Tcp = frame.at_mut(l4)?;
        tcp.ports = ports(flow);
        tcp.checksum = checksum::apply(tcp.checksum, flow.l4_difference);
    } else {
        let udp: &mut Udp = frame.at_mut(l4)?;
        udp.ports = ports(flow);
        // Zero means that the sender computed none (RFC 768).
        if udp.checksum != 0 {
            udp.checksum = checksum::apply_udp(udp.checksum, flow.l4_difference);
        }
    }
    Some(())
}

#[inline(always)]
fn ports<A>(flow: &Flow<A>) -> Ports {
    Ports { source: flow.source_port.to_be(), destination: flow.destination_port.to_be() }
}
