//! Third step: addresses and ports, and every checksum that covers them.

use lb_common::{Flow, PROTO_TCP};

use crate::checksum;
use crate::family::Family;
use crate::frame::Frame;
use crate::parse::Packet;
use crate::stop::Stop;
use crate::wire::{Ports, Tcp, Udp};

/// Rewrites the packet as its flow says. The headers were read before, so none of this fails; the verifier
/// wants to see each bound again after the frame may have changed.
#[inline(always)]
pub(crate) fn translate<F: Family>(
    frame: &mut Frame,
    packet: &Packet<F::Addr>,
    flow: &Flow<F::Addr>,
) -> Result<(), Stop> {
    if packet.key.protocol == PROTO_TCP {
        let tcp: &mut Tcp = frame.at_mut(packet.l4).ok_or(Stop::TO_KERNEL)?;
        tcp.ports = ports(flow);
        tcp.checksum = checksum::apply(tcp.checksum, flow.l4_difference);
    } else {
        let udp: &mut Udp = frame.at_mut(packet.l4).ok_or(Stop::TO_KERNEL)?;
        udp.ports = ports(flow);
        // Zero means that the sender computed none (RFC 768).
        if udp.checksum != 0 {
            udp.checksum = checksum::apply_udp(udp.checksum, flow.l4_difference);
        }
    }
    F::write_ip(frame, flow).ok_or(Stop::TO_KERNEL)
}

#[inline(always)]
fn ports<A>(flow: &Flow<A>) -> Ports {
    Ports { source: flow.source_port.to_be(), destination: flow.destination_port.to_be() }
}
