//! The kernel's tick counter for user space, which has no other way to read the clock that flows are stamped
//! with.

use aya_ebpf::helpers::bpf_jiffies64;
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;

/// The low half of the kernel's tick counter (jiffies).
#[inline(always)]
pub(crate) fn now() -> u32 {
    // SAFETY: the helper has no arguments and no effects (kernel 5.6).
    unsafe { bpf_jiffies64() as u32 }
}

/// Returns the current tick as its verdict. Never attached: the controller runs it by BPF_PROG_TEST_RUN.
#[xdp]
pub(crate) fn clock(_ctx: XdpContext) -> u32 {
    now()
}
