//! The one atomic operation the packet path needs. The BPF back end has the instruction, `core` has no
//! `fetch_add` for targets without compare-and-swap.

/// Adds to a word in a map and returns what it held before.
///
/// # Safety
///
/// `word` must point to an aligned `u64` in a map value.
#[cfg(target_arch = "bpf")]
#[inline(always)]
pub(crate) unsafe fn fetch_add(word: *mut u64, mut value: u64) -> u64 {
    // SAFETY: the caller vouches for the address; the instruction (kernel 5.12) touches nothing else.
    unsafe {
        core::arch::asm!(
            "{value} = atomic_fetch_add((u64 *)({word} + 0), {value})",
            word = in(reg) word,
            value = inout(reg) value,
        );
    }
    value
}

/// The same for unit tests and lints on the host.
#[cfg(not(target_arch = "bpf"))]
pub(crate) unsafe fn fetch_add(word: *mut u64, value: u64) -> u64 {
    // SAFETY: the caller vouches for the address.
    unsafe { core::sync::atomic::AtomicU64::from_ptr(word) }
        .fetch_add(value, core::sync::atomic::Ordering::Relaxed)
}
