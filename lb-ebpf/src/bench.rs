//! Programs that `cargo xtask bench` measures the packet path with (BPF_PROG_TEST_RUN).
//!
//! A program that rewrites its packet sees its own output when the kernel repeats it, so repeating it alone
//! measures something else. Here `replay_v4` or `replay_v6` is what is repeated: it lays the headers of one
//! flow after the other into the packet, calls the program to be measured, and counts its verdict. What the
//! replay itself costs is measured by having it call `empty`, and subtracted.
//!
//! Beside the program of the balancer it calls `floor`, the least that any program does that sends a packet
//! back, and `lookup`, one lookup in a hash table: the unit in which the cost of others is told.
//!
//! `cargo xtask bench guest` has packets go from wire to wire: `send_v4`, repeated with live frames, lays the same headers
//! and has each frame leave by an interface; `arrive`, attached where they end, counts and drops them.

#![cfg_attr(not(test), no_std)]
#![cfg_attr(not(test), no_main)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

mod lay;

use core::hint::black_box;
use core::ptr;

use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_DROP, XDP_PASS, XDP_TX};
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::btf_maps::{Array, LruHashMap, ProgramArray};
use aya_ebpf::helpers::bpf_redirect;
use aya_ebpf::macros::{btf_map, xdp};
use aya_ebpf::programs::XdpContext;

use crate::lay::{FIELDS_V4, Fields, lay_headers, load};

/// Eight-byte words of the headers that are laid into the packet: 64 bytes of IPv4, 80 of IPv6.
const WORDS_V4: usize = 8;
const WORDS_V6: usize = 10;

/// Twice the keys that are looked up in it, since an LRU map begins to evict before it is full.
const UNIT_ENTRIES: usize = 2 << 20;

/// The program to call, at index 0.
#[btf_map(name = "target")]
static TARGET: ProgramArray<1> = ProgramArray::new();

/// The headers of flow 0. Those of flow N differ in the fields that [`Fields`] names.
#[btf_map(name = "headers")]
static HEADERS: Array<[u64; WORDS_V6], 1> = Array::new();

/// How many flows there are, less one: a power of two less one.
#[btf_map(name = "last_flow")]
static LAST_FLOW: Array<u32, 1> = Array::new();

/// The next flow. It is left where it is between runs, so that a run goes on where the last one ended.
#[btf_map(name = "next_flow")]
static NEXT_FLOW: Array<u32, 1> = Array::new();

/// How often each verdict was given.
#[btf_map(name = "verdicts")]
static VERDICTS: Array<u64, 8> = Array::new();

/// How many packets have been laid. Nobody asks for it: see [`finish_laying`].
#[btf_map(name = "laid")]
static LAID: Array<u64, 1> = Array::new();

/// What `lookup` finds: filled with the addresses and ports of the flows.
#[btf_map(name = "unit")]
static UNIT: LruHashMap<[u32; 4], u64, UNIT_ENTRIES> = LruHashMap::new();

/// The interface that `send_v4` has frames leave by.
#[btf_map(name = "exit")]
static EXIT: Array<u32, 1> = Array::new();

/// What `arrive` has counted; then addresses and ports of the last packet, as they stand in it.
#[btf_map(name = "arrived")]
static ARRIVED: Array<[u32; 4], 1> = Array::new();

/// IP protocol number.
const UDP: u32 = 17;

/// Of IPv6.
const FIELDS_V6: Fields = Fields { address: 36, port: 54, balance_ip: None, balance_transport: 62 };

/// Replays IPv4 flows.
#[xdp(frags)]
pub(crate) fn replay_v4(ctx: XdpContext) -> u32 {
    replay::<WORDS_V4>(&ctx, &FIELDS_V4).unwrap_or(XDP_ABORTED)
}

/// Replays IPv6 flows.
#[xdp(frags)]
pub(crate) fn replay_v6(ctx: XdpContext) -> u32 {
    replay::<WORDS_V6>(&ctx, &FIELDS_V6).unwrap_or(XDP_ABORTED)
}

#[inline(always)]
fn replay<const WORDS: usize>(ctx: &XdpContext, fields: &Fields) -> Option<u32> {
    let flow = next_flow()?;
    lay_headers::<WORDS>(ctx, fields, HEADERS.get(0)?, flow)?;
    finish_laying(LAID.get_ptr_mut(0)?);
    let verdict = call_target(ctx.ctx);
    let count = VERDICTS.get_ptr_mut(verdict & 7)?;
    // SAFETY: it points into the map's value; the benchmark runs on one CPU at a time.
    unsafe { *count += 1 };
    Some(verdict)
}

/// Waits until the headers have left the processor's store queue, where no NIC's packet ever is: a load that wants bytes of two
/// stores in it waits for both. An atomic operation does not begin before the queue is empty; its count is not used. It ends what
/// one packet and the next overlap, too. On other machines than x86-64 it may wait for less.
#[cfg(target_arch = "bpf")]
#[inline(always)]
fn finish_laying(laid: *mut u64) {
    // SAFETY: it points into the map's value, an aligned u64; the instruction (kernel 5.12) touches nothing else. Other memory
    // accesses stay on their side of it.
    unsafe {
        core::arch::asm!(
            "{one} = atomic_fetch_add((u64 *)({laid} + 0), {one})",
            laid = in(reg) laid,
            one = inout(reg) 1_u64 => _,
        );
    }
}

/// For lints on the host.
#[cfg(not(target_arch = "bpf"))]
fn finish_laying(_laid: *mut u64) {}

/// Sends a packet of an IPv4 flow by the interface in `exit`.
#[xdp(frags)]
pub(crate) fn send_v4(ctx: XdpContext) -> u32 {
    send::<WORDS_V4>(&ctx, &FIELDS_V4).unwrap_or(XDP_ABORTED)
}

#[inline(always)]
fn send<const WORDS: usize>(ctx: &XdpContext, fields: &Fields) -> Option<u32> {
    let flow = next_flow()?;
    lay_headers::<WORDS>(ctx, fields, HEADERS.get(0)?, flow)?;
    // SAFETY: the helper only notes where the frame goes.
    Some(unsafe { bpf_redirect(*EXIT.get(0)?, 0) } as u32)
}

/// Counts and drops UDP; leaves all else, such as ARP and the balancer's checks, to the kernel.
#[xdp(frags)]
pub(crate) fn arrive(ctx: XdpContext) -> u32 {
    let Some([source, destination, ports, UDP]) = parse(&ctx) else { return XDP_PASS };
    let Some(arrived) = ARRIVED.get_ptr_mut(0) else { return XDP_ABORTED };
    // SAFETY: it points into the map's value; the benchmark's machine has one CPU.
    unsafe { *arrived = [(*arrived)[0] + 1, source, destination, ports] };
    XDP_DROP
}

/// Takes a flow, all of them in turn but in an order that no cache foresees: a linear congruential generator of
/// full period (Knuth, The Art of Computer Programming 2, 3.2.1.2, theorem A).
#[inline(always)]
fn next_flow() -> Option<u32> {
    let last = *LAST_FLOW.get(0)?;
    let next = NEXT_FLOW.get_ptr_mut(0)?;
    // SAFETY: as in `replay`.
    let flow = unsafe { *next } & last;
    // SAFETY: as in `replay`.
    unsafe { *next = flow.wrapping_mul(1_664_525).wrapping_add(1_013_904_223) };
    Some(flow)
}

/// Leaves for the target, whose verdict comes back as this function's. A function of its own, since a tail
/// call ends the one it is made in.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn call_target(ctx: *mut xdp_md) -> u32 {
    let ctx = XdpContext::new(ctx);
    // SAFETY: there is nothing to drop.
    unsafe { TARGET.tail_call(&ctx, 0) };
    // Without a target. The compiler must not conclude that this is the only result.
    black_box(XDP_ABORTED)
}

/// Does nothing: what remains is the cost of replaying.
#[xdp(frags)]
pub(crate) fn empty(_: XdpContext) -> u32 {
    XDP_PASS
}

/// Parses Ethernet, IP and the ports of IPv4 and IPv6, swaps the MAC addresses and sends the packet back.
#[xdp(frags)]
pub(crate) fn floor(ctx: XdpContext) -> u32 {
    let Some([source, destination, ports, protocol]) = parse(&ctx) else { return XDP_DROP };
    // Nothing here needs them; make the compiler read them.
    black_box(source ^ destination ^ ports ^ protocol);
    let packet = ctx.data();
    if packet + 12 > ctx.data_end() {
        return XDP_DROP;
    }
    // SAFETY: within the bytes checked above, at even offsets.
    unsafe { ptr::swap(packet as *mut [u16; 3], (packet + 6) as *mut [u16; 3]) };
    XDP_TX
}

/// Looks the packet's addresses and ports up, once.
#[xdp(frags)]
pub(crate) fn lookup(ctx: XdpContext) -> u32 {
    let Some(tuple) = parse(&ctx) else { return XDP_DROP };
    // SAFETY: the value is read before the program ends.
    match unsafe { UNIT.get(tuple) } {
        Some(_) => XDP_TX,
        None => XDP_DROP,
    }
}

/// Source and destination address (of IPv6 their last four bytes), ports, protocol.
#[inline(always)]
fn parse(ctx: &XdpContext) -> Option<[u32; 4]> {
    match u16::from_be(load(headers::<14>(ctx)?, 12)) {
        0x0800 => {
            let packet = headers::<38>(ctx)?;
            let (version_ihl, protocol): (u8, u8) = (load(packet, 14), load(packet, 23));
            (version_ihl == 0x45)
                .then(|| [load(packet, 26), load(packet, 30), load(packet, 34), protocol.into()])
        }
        0x86dd => {
            let packet = headers::<58>(ctx)?;
            let next_header: u8 = load(packet, 20);
            Some([load(packet, 34), load(packet, 50), load(packet, 54), next_header.into()])
        }
        _ => None,
    }
}

/// The first bytes of the packet.
#[inline(always)]
fn headers<const LENGTH: usize>(ctx: &XdpContext) -> Option<&[u8; LENGTH]> {
    let packet = ctx.data();
    // SAFETY: the bytes are within the packet, and nothing writes to it while they are borrowed.
    (packet + LENGTH <= ctx.data_end()).then(|| unsafe { &*(packet as *const [u8; LENGTH]) })
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
