//! Last step: out to the next hop, whose addresses are at hand; nothing is looked up here.

use aya_ebpf::bindings::xdp_action::XDP_TX;
use aya_ebpf::helpers::bpf_redirect;
use lb_common::NextHop;

use crate::frame::Frame;
use crate::wire::Ethernet;

/// Sends the frame to its next hop.
#[inline(always)]
pub(crate) fn forward(frame: &mut Frame, next_hop: &NextHop) -> Option<u32> {
    let (ethernet, around) = frame.parts()?;
    Some(send(ethernet, around.ingress(), next_hop))
}

/// Addresses a frame to its next hop: back out of the interface it came in through, or through another one.
#[inline(always)]
pub(crate) fn send(ethernet: &mut Ethernet, ingress: u32, next_hop: &NextHop) -> u32 {
    let [_, addresses @ ..] = next_hop.words();
    ethernet.set_addresses(addresses);
    if next_hop.ifindex == ingress {
        return XDP_TX;
    }
    // SAFETY: the helper only notes where the frame is to go.
    unsafe { bpf_redirect(next_hop.ifindex, 0) as u32 }
}
