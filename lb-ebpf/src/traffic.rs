//! Programs that `cargo xtask bench e2e` makes traffic with, and counts what arrives.
//!
//! `send` is repeated by BPF_PROG_TEST_RUN with live frames: it fills in each frame and has it leave by an interface,
//! at the pace of its order. `receive` stands at both ends of the way, counts the frames and drops them or sends
//! them back. Everything that is not of this traffic it leaves to the kernel.

#![cfg_attr(not(test), no_std)]
#![cfg_attr(not(test), no_main)]

mod lay;

use core::ptr;

use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_DROP, XDP_PASS};
use aya_ebpf::btf_maps::{Array, PerCpuArray};
use aya_ebpf::helpers::{bpf_ktime_get_ns, bpf_redirect, bpf_xdp_adjust_head};
use aya_ebpf::macros::{btf_map, xdp};
use aya_ebpf::programs::XdpContext;
use lb_common::PROTO_UDP;
use lb_common::traffic::{
    Arrivals, BATCH, BLIND, CHECK, CUT_OFF, ECHO, FRAME_WORDS, Order, PORT, Progress, STAMPED,
};

use crate::lay::{FIELDS_V4, lay_headers, load};

/// Bytes of a frame.
const FRAME: usize = FRAME_WORDS * 8;

/// How much of the time that was lost by not being run is made up for: as long as the receiver on the same CPU takes for
/// a full queue. More would come at once, and no queue holds that.
const MADE_UP_NS: u64 = 60_000;

/// What to send.
#[btf_map(name = "order")]
static ORDER: Array<Order, 1> = Array::new();

/// How far that has come.
#[btf_map(name = "progress")]
static PROGRESS: Array<Progress, 1> = Array::new();

/// What to do with arrivals: bits of `lb_common::traffic`.
#[btf_map(name = "duty")]
static DUTY: Array<u32, 1> = Array::new();

/// What has arrived.
#[btf_map(name = "arrivals")]
static ARRIVALS: PerCpuArray<Arrivals, 1> = PerCpuArray::new();

/// Sends the next frame, or nothing as long as none is due.
#[xdp(frags)]
pub(crate) fn send(ctx: XdpContext) -> u32 {
    next_frame(&ctx).unwrap_or(XDP_ABORTED)
}

#[inline(always)]
fn next_frame(ctx: &XdpContext) -> Option<u32> {
    let order = ORDER.get(0)?;
    // SAFETY: it points into the map's value; the benchmark sends on one CPU at a time and reads it afterwards.
    let progress = unsafe { &mut *PROGRESS.get_ptr_mut(0)? };
    if progress.turn % BATCH == 0 {
        // SAFETY: the helper only reads the clock.
        let now = unsafe { bpf_ktime_get_ns() };
        if progress.begun == 0 {
            progress.begun = now;
        }
        let is_due = now >= progress.due && now - progress.begun < order.time_ns;
        progress.is_sending = u32::from(is_due);
        if is_due {
            progress.last = now;
            progress.due = progress.due.max(now.saturating_sub(MADE_UP_NS)) + order.interval_ns;
        }
    }
    progress.turn = progress.turn.wrapping_add(1);
    if progress.is_sending == 0 || progress.sent >= order.frames {
        return Some(XDP_DROP);
    }
    progress.sent += 1;
    // SAFETY: the context is that of the running program, and nothing points into the packet yet.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, CUT_OFF as i32) } != 0 {
        return None;
    }
    lay_headers::<FRAME_WORDS>(ctx, &FIELDS_V4, &order.frame, progress.flow)?;
    progress.of_flow += 1;
    if progress.of_flow >= order.row {
        progress.of_flow = 0;
        let next = progress.flow + order.step;
        progress.flow = if next >= order.flows { next - order.flows } else { next };
    }
    // SAFETY: the helper only notes where the frame goes.
    Some(unsafe { bpf_redirect(order.interface, 0) } as u32)
}

/// Counts what arrives.
#[xdp(frags)]
pub(crate) fn receive(ctx: XdpContext) -> u32 {
    arrival(&ctx).unwrap_or(XDP_PASS)
}

/// `None`: not of this traffic.
#[inline(always)]
fn arrival(ctx: &XdpContext) -> Option<u32> {
    let packet = ctx.data();
    let duty = *DUTY.get(0)?;
    // SAFETY: it points into this CPU's value.
    let arrivals = unsafe { &mut *ARRIVALS.get_ptr_mut(0)? };
    if packet + FRAME > ctx.data_end() {
        return None;
    }
    if duty & BLIND != 0 && packet + FRAME == ctx.data_end() {
        count(arrivals);
        return Some(XDP_DROP);
    }
    // SAFETY: within the bytes just checked, and nothing else writes to them; any bytes are valid.
    let frame = unsafe { &mut *(packet as *mut [u8; FRAME]) };
    let is_udp =
        load::<u16, FRAME>(frame, 12) == 0x0800_u16.to_be() && frame[14] == 0x45 && frame[23] == PROTO_UDP;
    let ports = [load::<u16, FRAME>(frame, 34), load::<u16, FRAME>(frame, 36)].map(u16::from_be);
    if !is_udp || !ports.contains(&PORT) {
        return None;
    }
    count(arrivals);
    if duty & CHECK != 0 && !is_intact(frame) {
        arrivals.wrong += 1;
    }
    if duty & ECHO == 0 {
        return Some(XDP_DROP);
    }
    turn_round(frame);
    // SAFETY: the context is that of the running program.
    let interface = unsafe { (*ctx.ctx).ingress_ifindex };
    // A redirect, since XDP_TX would need a program at the other end too. SAFETY: as in `next_frame`.
    Some(unsafe { bpf_redirect(interface, 0) } as u32)
}

#[inline(always)]
fn count(arrivals: &mut Arrivals) {
    arrivals.frames += 1;
    if arrivals.frames.is_multiple_of(STAMPED) {
        // SAFETY: the helper only reads the clock.
        arrivals.last = unsafe { bpf_ktime_get_ns() };
    }
}

/// Whether both checksums are right.
#[inline(always)]
fn is_intact(frame: &[u8; FRAME]) -> bool {
    let length = load::<u16, FRAME>(frame, 38);
    let pseudo = sum(frame, 26, 34) + u32::from(u16::from(PROTO_UDP).to_be()) + u32::from(length);
    fold(sum(frame, 14, 34)) == 0xffff && fold(pseudo + sum(frame, 34, FRAME)) == 0xffff
}

/// Sum of the 16-bit words from one offset to another, both constant.
#[inline(always)]
fn sum(frame: &[u8; FRAME], from: usize, to: usize) -> u32 {
    let mut sum = 0;
    let mut offset = from;
    while offset < to {
        sum += u32::from(load::<u16, FRAME>(frame, offset));
        offset += 2;
    }
    sum
}

/// The sum in ones' complement arithmetic of 16 bits.
#[inline(always)]
const fn fold(sum: u32) -> u32 {
    let once = (sum & 0xffff) + (sum >> 16);
    (once & 0xffff) + (once >> 16)
}

/// Exchanges source and destination of all layers, which leaves the checksums as they are.
#[inline(always)]
fn turn_round(frame: &mut [u8; FRAME]) {
    swap::<[u16; 3]>(frame, 0, 6);
    swap::<u32>(frame, 26, 30);
    swap::<u16>(frame, 34, 36);
}

#[inline(always)]
fn swap<T: Copy>(frame: &mut [u8; FRAME], one: usize, other: usize) {
    let (first, second) = (load::<T, FRAME>(frame, one), load::<T, FRAME>(frame, other));
    let frame = frame.as_mut_ptr();
    // SAFETY: `load` has checked both offsets.
    unsafe {
        ptr::write_unaligned(frame.add(one).cast(), second);
        ptr::write_unaligned(frame.add(other).cast(), first);
    }
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
