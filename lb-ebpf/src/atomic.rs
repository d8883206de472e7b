//! The atomic operations that the packet path needs. The BPF back end has the instructions, `core` has no functions for them on
//! targets without compare-and-swap of every width. Those that give back a value are full barriers.

#[cfg(target_arch = "bpf")]
use core::sync::atomic::{Ordering, compiler_fence};

#[cfg(target_arch = "bpf")]
use crate::maps::WRITES_IN_ORDER;

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

/// Writes a word in a map if it holds what is expected. Gives what it held.
///
/// # Safety
///
/// As for [`fetch_add`].
#[cfg(target_arch = "bpf")]
#[inline(always)]
pub(crate) unsafe fn compare_exchange(word: *mut u64, mut expected: u64, new: u64) -> u64 {
    // SAFETY: as above.
    unsafe {
        core::arch::asm!(
            "r0 = cmpxchg_64({word} + 0, r0, {new})",
            word = in(reg) word,
            new = in(reg) new,
            inout("r0") expected,
        );
    }
    expected
}

/// The same for unit tests and lints on the host.
#[cfg(not(target_arch = "bpf"))]
pub(crate) unsafe fn compare_exchange(word: *mut u64, expected: u64, new: u64) -> u64 {
    use core::sync::atomic::{AtomicU64, Ordering::SeqCst};
    // SAFETY: the caller vouches for the address.
    unsafe { AtomicU64::from_ptr(word) }
        .compare_exchange(expected, new, SeqCst, SeqCst)
        .unwrap_or_else(core::convert::identity)
}

/// Reads a word in a map, before everything that is read afterwards. Where the processor reads in order (x86-64) that takes nothing but
/// reading it.
///
/// # Safety
///
/// As for [`fetch_add`].
#[cfg(target_arch = "bpf")]
#[inline(always)]
pub(crate) unsafe fn read(word: *mut u64) -> u64 {
    if WRITES_IN_ORDER.load() == 1 {
        // SAFETY: as above.
        return unsafe { word.read_volatile() };
    }
    // SAFETY: as above.
    unsafe { fetch_add(word, 0) }
}

/// The same for unit tests and lints on the host.
#[cfg(not(target_arch = "bpf"))]
pub(crate) unsafe fn read(word: *mut u64) -> u64 {
    // SAFETY: the caller vouches for the address.
    unsafe { core::sync::atomic::AtomicU64::from_ptr(word) }.load(core::sync::atomic::Ordering::SeqCst)
}

/// Writes a word in a map, after everything that was written before. Where the processor writes in order (x86-64) that takes nothing but
/// writing it; a barrier would wait for whatever is written to lines that no cache holds.
///
/// # Safety
///
/// As for [`fetch_add`].
#[cfg(target_arch = "bpf")]
#[inline(always)]
pub(crate) unsafe fn publish(word: *mut u64, mut new: u64) {
    if WRITES_IN_ORDER.load() == 1 {
        compiler_fence(Ordering::Release);
        // SAFETY: as above.
        unsafe { word.write_volatile(new) };
        return;
    }
    // SAFETY: as above.
    unsafe {
        core::arch::asm!(
            "{new} = xchg_64({word} + 0, {new})",
            word = in(reg) word,
            new = inout(reg) new,
        );
    }
    let _ = new;
}

/// The same for unit tests and lints on the host.
#[cfg(not(target_arch = "bpf"))]
pub(crate) unsafe fn publish(word: *mut u64, new: u64) {
    // SAFETY: the caller vouches for the address.
    unsafe { core::sync::atomic::AtomicU64::from_ptr(word) }.store(new, core::sync::atomic::Ordering::SeqCst);
}
