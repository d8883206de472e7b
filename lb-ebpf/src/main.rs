//! The journey of a packet, top to bottom: [`parse`] what it is, find its [`flow`], [`choose`] a backend where
//! it has none, [`translate`] its addresses and ports, and [`forward`] it to the next hop. Each step is a file
//! of that name. What is not ours goes to the kernel untouched.
//!
//! An established packet costs one connection lookup, one array lookup for the way to its backend and two for
//! the counters: no helper call besides the connection lookup.

#![cfg_attr(not(test), no_std)]
#![cfg_attr(not(test), no_main)]
#![expect(
    clippy::needless_borrows_for_generic_args,
    reason = "a key passed by value is copied on a stack of 512 bytes"
)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

mod atomic;
mod checksum;
mod choose;
mod clock;
mod count;
mod family;
mod flow;
mod forward;
mod frame;
mod maps;
mod parse;
mod snat;
mod stop;
mod translate;
mod wire;

use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use aya_log_ebpf::debug;

use crate::family::{Family, V4, V6};
use crate::frame::Frame;
use crate::parse::Packet;
use crate::stop::Stop;
use crate::wire::{ETHER_IPV4, ETHER_IPV6};

/// The entry point: one call for each frame that arrives on an attached interface.
#[xdp(frags)]
#[inline(always)]
pub(crate) fn lb(ctx: XdpContext) -> u32 {
    let mut frame = Frame::new(ctx.ctx);
    let verdict = match frame.ether_type() {
        Some(ETHER_IPV4) => balance::<V4>(&mut frame),
        Some(ETHER_IPV6) => balance::<V6>(&mut frame),
        _ => Err(Stop::TO_KERNEL),
    };
    verdict.unwrap_or_else(|stop| {
        if let Some(reason) = stop.reason() {
            debug!(&ctx, "dropped, reason {}", reason);
        }
        stop.act()
    })
}

/// The journey itself.
#[inline(always)]
fn balance<F: Family>(frame: &mut Frame) -> Result<u32, Stop> {
    let packet = parse::parse::<F>(frame)?;
    let (flow, next_hop) = match flow::find::<F>(frame, &packet)? {
        Some(known) => known,
        None => begin::<F>(frame, &packet)?,
    };
    count::packet(flow, &packet);
    translate::translate::<F>(frame, &packet, flow)?;
    forward::forward(frame, &next_hop)
}

/// The detour of a packet without a flow: its listener chooses a backend, and both halves of the flow are made.
#[inline(always)]
fn begin<'a, F: Family>(frame: &Frame, packet: &Packet<F::Addr>) -> Result<flow::Known<'a, F::Addr>, Stop> {
    let choice = choose::choose::<F>(frame, packet)?;
    flow::open::<F>(frame, packet, &choice)
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier rejects a program in which this can be reached, so it never is.
    loop {}
}

/// The licence under which the kernel offers its GPL-only helpers.
#[cfg(not(test))]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
