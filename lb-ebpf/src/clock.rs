//! Time. The kernel's tick counter costs next to nothing to read; the controller, which has no other way to read it,
//! runs a program that returns it.

use aya_ebpf::helpers::bpf_jiffies64;
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;

use crate::maps::TICKS_PER_SECOND;

/// The low half of the kernel's tick counter (jiffies).
#[inline(always)]
pub(crate) fn now() -> u32 {
    ticks() as u32
}

/// The running second since some time before the kernel booted.
#[inline(always)]
pub(crate) fn second() -> u64 {
    ticks().checked_div(u64::from(TICKS_PER_SECOND.load())).unwrap_or_default()
}

#[inline(always)]
fn ticks() -> u64 {
    // SAFETY: the helper has no arguments and no effects (kernel 5.6).
    unsafe { bpf_jiffies64() }
}

/// Returns the current tick as its verdict. Never attached: the controller runs it by BPF_PROG_TEST_RUN.
#[xdp]
pub(crate) fn clock(_ctx: XdpContext) -> u32 {
    now()
}
