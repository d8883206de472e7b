//! The journey of a packet, top to bottom: [`parse`] what it is, find its [`flow`], [`choose`] a backend and
//! [`mod@open`] one where it has none, [`translate`] its addresses and ports, and [`forward`] it to the next hop. Each step is a file
//! of that name. What is not ours goes to the kernel untouched.
//!
//! There are three ways to make it. The program that is attached, `lb`, first tries the [`express`] way, of plain packets whose
//! flow is in a [`cache`] of the last moment's: a handful of array lookups, which the kernel inlines. Then the short way,
//! of plain packets of established flows: one connection lookup. For everything else it calls the long way, `journey_v4` or `journey_v6`,
//! which understands VLAN tags, options, extension headers and fragments, and decides what is dropped. A packet without a
//! promoted flow goes on to `begin_v4` or `begin_v6`, ICMP to `icmp_v4` or `icmp_v6`, and what the balancer answers itself to `reset_v4` or
//! `reset_v6` (a RST), `error_v4` or `error_v6` (an ICMP error). These are tail calls: each program has a stack of its own and is
//! verified by itself, and the short way stays short. [`explain`] says what would become of a packet by the same steps,
//! without a trace.

#![cfg_attr(not(test), no_std)]
#![cfg_attr(not(test), no_main)]
#![expect(
    clippy::needless_borrows_for_generic_args,
    reason = "a key passed by value is copied on a stack of 512 bytes"
)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

mod admit;
mod answer;
mod answers;
mod atomic;
mod attend;
mod bucket;
mod cache;
mod checksum;
mod choose;
mod clock;
mod count;
mod event;
mod explain;
mod express;
mod family;
mod features;
mod flow;
mod forward;
mod fragment;
mod frame;
mod half_open;
mod icmp;
mod lane;
mod maps;
mod open;
mod ours;
mod parse;
mod rate;
mod snat;
mod stop;
mod translate;
mod whereabouts;
mod wire;
mod word;

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS};
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use aya_log_ebpf::debug;
use lb_common::{Features, Reason};

use crate::bucket::hash_of;
use crate::cache::Moment;
use crate::family::{Family, V4, V6};
use crate::features::uses;
use crate::frame::Frame;
use crate::maps::{JOURNEYS, Keys, Scratch};
use crate::ours::Concern;
use crate::parse::Packet;
use crate::stop::Stop;
use crate::wire::{ETHER_IPV4, ETHER_IPV6};

/// The entry point: one call for each frame that arrives on an attached interface.
#[xdp(frags)]
#[inline(always)]
pub(crate) fn lb(ctx: XdpContext) -> u32 {
    let moment = Moment::now();
    let mut frame = Frame::new(ctx.ctx);
    match frame.ether_type() {
        Some(ETHER_IPV4) if uses(Features::IPV4) => short_way::<V4>(&ctx, &mut frame, moment),
        Some(ETHER_IPV6) if uses(Features::IPV6) => short_way::<V6>(&ctx, &mut frame, moment),
        Some(ETHER_IPV4 | ETHER_IPV6) => leave_alone(),
        _ => match frame.carries() {
            Some((ETHER_IPV4, _)) if uses(Features::IPV4) => long_way::<V4>(&ctx),
            Some((ETHER_IPV6, _)) if uses(Features::IPV6) => long_way::<V6>(&ctx),
            Some((ETHER_IPV4 | ETHER_IPV6, _)) => leave_alone(),
            _ => {
                count::reason(Reason::NotIp as u32, 0);
                XDP_PASS
            }
        },
    }
}

/// The journey of nearly every packet.
#[inline(always)]
fn short_way<F: Family>(ctx: &XdpContext, frame: &mut Frame, moment: Moment) -> u32 {
    if let Some(verdict) = express::travel::<F>(frame, moment) {
        return verdict;
    }
    let Some(packet) = parse::plain::<F>(frame) else { return long_way::<F>(ctx) };
    let concern = ours::concern(&packet.key);
    if concern == Concern::Nobody {
        return leave_alone();
    }
    let place = cache::place::<F>(frame, &packet, moment);
    match flow::find_established::<F>(frame, &packet, concern) {
        flow::Short::Known(known) => {
            place.remember::<F>(frame, &packet, &known, moment);
            carry_on::<F>(frame, &packet, &known).unwrap_or(XDP_DROP)
        }
        flow::Short::Unknown => unknown::<F>(ctx, packet),
        flow::Short::Nothing => leave_alone(),
        flow::Short::Unusual => long_way::<F>(ctx),
    }
}

/// The end of the journey of a packet that has nothing to do with the balancer.
#[inline(always)]
fn leave_alone() -> u32 {
    count::reason(Reason::NotOurs as u32, 0);
    XDP_PASS
}

/// The journey of a plain packet without a flow that has been promoted.
#[inline(always)]
fn unknown<F: Family>(ctx: &XdpContext, packet: Packet<F::Addr>) -> u32 {
    let Some(scratch) = F::scratch() else { return XDP_DROP };
    scratch.packet = packet;
    call(ctx, F::BEGIN)
}

/// The journey of any IPv4 packet.
#[xdp(frags)]
#[inline(always)]
pub(crate) fn journey_v4(ctx: XdpContext) -> u32 {
    journey::<V4>(&ctx)
}

/// The journey of any IPv6 packet.
#[xdp(frags)]
#[inline(always)]
pub(crate) fn journey_v6(ctx: XdpContext) -> u32 {
    journey::<V6>(&ctx)
}

#[inline(always)]
fn journey<F: Family>(ctx: &XdpContext) -> u32 {
    let mut frame = Frame::new(ctx.ctx);
    let Some((_, l3)) = frame.carries() else { return XDP_PASS };
    let Some(Scratch { packet, .. }) = F::scratch() else { return XDP_PASS };
    if let Err(stop) = parse::whole::<F>(&frame, l3, packet) {
        return end::<F>(ctx, None, stop);
    }
    if packet.key.protocol == F::ICMP {
        return call(ctx, F::ICMP_JOURNEY);
    }
    match travel::<F>(&mut frame, packet) {
        Ok(Some(verdict)) => verdict,
        Ok(None) => call(ctx, F::BEGIN),
        Err(stop) => end::<F>(ctx, Some(packet), stop),
    }
}

/// The journey itself. `None` for a packet without a flow that has been promoted.
#[inline(always)]
fn travel<F: Family>(frame: &mut Frame, packet: &mut Packet<F::Addr>) -> Result<Option<u32>, Stop> {
    fragment::recall(frame, packet)?;
    match flow::find::<F>(frame, packet)? {
        Some(known) => leave::<F>(frame, packet, &known).map(Some),
        None => Ok(None),
    }
}

/// The detour of an IPv4 packet whose flow has not been promoted, or that has none.
#[xdp(frags)]
#[inline(always)]
pub(crate) fn begin_v4(ctx: XdpContext) -> u32 {
    begin::<V4>(&ctx)
}

/// The same of IPv6.
#[xdp(frags)]
#[inline(always)]
pub(crate) fn begin_v6(ctx: XdpContext) -> u32 {
    begin::<V6>(&ctx)
}

/// Goes on with a packet that a journey has read.
#[inline(always)]
fn begin<F: Family>(ctx: &XdpContext) -> u32 {
    let Some(Scratch { packet, keys, .. }) = F::scratch() else { return XDP_DROP };
    match set_out::<F>(&mut Frame::new(ctx.ctx), packet, keys) {
        Ok(verdict) => verdict,
        Err(stop) => end::<F>(ctx, Some(packet), stop),
    }
}

/// Its flow may have been opened, and not promoted yet.
#[inline(always)]
fn set_out<F: Family>(frame: &mut Frame, packet: &mut Packet<F::Addr>, keys: &mut Keys) -> Result<u32, Stop> {
    let hash = hash_of(&packet.key);
    match flow::find_half_open::<F>(frame, packet, hash)? {
        Some(known) => leave::<F>(frame, packet, &known),
        None => open::<F>(frame, packet, hash, keys),
    }
}

/// The packet's listener chooses a backend, and the flow is made.
#[inline(always)]
fn open<F: Family>(
    frame: &mut Frame,
    packet: &Packet<F::Addr>,
    hash: u64,
    keys: &mut Keys,
) -> Result<u32, Stop> {
    let choice = match choose::choose::<F>(frame, packet, keys) {
        Ok(choice) => choice,
        Err(stop) => {
            if stop.reason == Reason::NoListener as u32 {
                choose::count_stray(&keys.listener);
            }
            return Err(stop);
        }
    };
    admit::count(choice.listener)?;
    let known = open::open::<F>(frame, packet, hash, &choice, keys)?;
    leave::<F>(frame, packet, &known)
}

/// The end of the long way of a packet whose flow is known.
#[inline(always)]
fn leave<F: Family>(
    frame: &mut Frame,
    packet: &Packet<F::Addr>,
    known: &flow::Known<'_, F::Addr>,
) -> Result<u32, Stop> {
    if !flow::fits(frame, packet.length, known.mtu) {
        return Err(Stop::too_big(known.flow.listener, known.mtu));
    }
    fragment::remember(packet);
    carry_on::<F>(frame, packet, known).ok_or(Stop::pass(Reason::OtherProtocol))
}

/// Translates and forwards.
#[inline(always)]
fn carry_on<F: Family>(
    frame: &mut Frame,
    packet: &Packet<F::Addr>,
    known: &flow::Known<'_, F::Addr>,
) -> Option<u32> {
    let flow::Known { flow, direction, next_hop, .. } = known;
    count::packet(flow.listener, flow.backend, *direction, packet.length);
    translate::translate::<F>(frame, packet, &known.translation::<F>())?;
    forward::forward(frame, next_hop)
}

/// ICMP over IPv4.
#[xdp(frags)]
#[inline(always)]
pub(crate) fn icmp_v4(ctx: XdpContext) -> u32 {
    icmp::<V4>(&ctx)
}

/// ICMPv6.
#[xdp(frags)]
#[inline(always)]
pub(crate) fn icmp_v6(ctx: XdpContext) -> u32 {
    icmp::<V6>(&ctx)
}

#[inline(always)]
fn icmp<F: Family>(ctx: &XdpContext) -> u32 {
    let mut frame = Frame::new(ctx.ctx);
    icmp::travel::<F>(&mut frame).unwrap_or_else(|stop| end::<F>(ctx, None, stop))
}

/// A RST over IPv4 in place of a packet.
#[xdp(frags)]
#[inline(always)]
pub(crate) fn reset_v4(ctx: XdpContext) -> u32 {
    answer::reset::<V4>(&mut Frame::new(ctx.ctx)).unwrap_or(XDP_DROP)
}

/// A RST over IPv6 in place of a packet.
#[xdp(frags)]
#[inline(always)]
pub(crate) fn reset_v6(ctx: XdpContext) -> u32 {
    answer::reset::<V6>(&mut Frame::new(ctx.ctx)).unwrap_or(XDP_DROP)
}

/// An ICMP error in place of a packet.
#[xdp(frags)]
#[inline(always)]
pub(crate) fn error_v4(ctx: XdpContext) -> u32 {
    answer::error::<V4>(&mut Frame::new(ctx.ctx)).unwrap_or(XDP_DROP)
}

/// An ICMPv6 error in place of a packet.
#[xdp(frags)]
#[inline(always)]
pub(crate) fn error_v6(ctx: XdpContext) -> u32 {
    answer::error::<V6>(&mut Frame::new(ctx.ctx)).unwrap_or(XDP_DROP)
}

/// What would become of an IPv4 packet. Never attached: `lb explain` runs it by BPF_PROG_TEST_RUN.
#[xdp(frags)]
#[inline(always)]
pub(crate) fn explain_v4(ctx: XdpContext) -> u32 {
    explain::answer::<V4>(&mut Frame::new(ctx.ctx)).map_or(XDP_DROP, |()| XDP_PASS)
}

/// What would become of an IPv6 packet. Never attached: `lb explain` runs it by BPF_PROG_TEST_RUN.
#[xdp(frags)]
#[inline(always)]
pub(crate) fn explain_v6(ctx: XdpContext) -> u32 {
    explain::answer::<V6>(&mut Frame::new(ctx.ctx)).map_or(XDP_DROP, |()| XDP_PASS)
}

/// The end of the journey of a packet that does not travel on.
#[inline(always)]
fn end<F: Family>(ctx: &XdpContext, packet: Option<&Packet<F::Addr>>, stop: Stop) -> u32 {
    stop.count();
    if stop.is_drop() {
        debug!(ctx, "dropped, reason {}", stop.reason);
        event::sample(&Frame::new(ctx.ctx), packet, stop);
    }
    // A later fragment has no header that an answer could refer to.
    let is_later = packet.is_some_and(|packet| packet.fragment.is_later());
    if stop.answer == Stop::NOTHING || is_later || answer::request(stop).is_none() {
        return stop.action;
    }
    match stop.answer {
        Stop::RESET | Stop::CUT => call(ctx, F::RESET_JOURNEY),
        _ => call(ctx, F::ERROR_JOURNEY),
    }
}

/// Goes on in `journey_v4` or `journey_v6`.
#[inline(always)]
fn long_way<F: Family>(ctx: &XdpContext) -> u32 {
    call(ctx, F::JOURNEY)
}

/// Goes on in another program. There is no way back; should it be missing, the packet is dropped, since whoever calls
/// has found that it needs more than the kernel can do.
#[inline(always)]
fn call(ctx: &XdpContext, journey: u32) -> u32 {
    // SAFETY: nothing here needs to be dropped.
    unsafe { JOURNEYS.tail_call(ctx, journey) };
    XDP_DROP
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
