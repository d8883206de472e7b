//! Last step: out to the next hop, whose addresses are at hand; nothing is looked up here.

use aya_ebpf::bindings::xdp_action::XDP_TX;
use aya_ebpf::helpers::bpf_redirect;
use lb_common::cache::Pair;
use lb_common::{Course, NextHop};

use crate::frame::Frame;
use crate::wire::Ethernet;
use crate::word;

/// Sends the frame to its next hop.
#[inline(always)]
pub(crate) fn forward(frame: &mut Frame, next_hop: &NextHop) -> Option<u32> {
    let (ethernet, around): (&mut Ethernet, _) = frame.parts()?;
    let [ifindex, addresses @ ..] = next_hop.words();
    ethernet.set_addresses(addresses);
    Some(leave(ifindex, ifindex == around.ingress()))
}

/// Sends a frame along its course.
#[inline(always)]
pub(crate) fn along<P: Pair>(course: &Course<P>, ethernet: &mut Ethernet) -> u32 {
    let next_hop = &course.next_hop;
    // SAFETY: the MACs are the twelve bytes behind the index of the interface.
    let addresses =
        unsafe { (word::load_double::<MACS, _>(next_hop), word::load::<LAST_OF_MACS, _>(next_hop)) };
    ethernet.set_address_words(addresses);
    leave(next_hop.ifindex, course.turns_back != 0)
}

/// Where a [`NextHop`] has its MACs, and the last word of them.
const MACS: i32 = core::mem::offset_of!(NextHop, peer) as i32;
const LAST_OF_MACS: i32 = MACS + 8;

/// Sends a frame back out of the interface it came in through, or through another one.
#[inline(always)]
fn leave(ifindex: u32, turns_back: bool) -> u32 {
    if turns_back {
        return XDP_TX;
    }
    // SAFETY: the helper only notes where the frame is to go.
    unsafe { bpf_redirect(ifindex, 0) as u32 }
}
