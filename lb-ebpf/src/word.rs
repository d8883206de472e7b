//! Words of a packet, of 32 and of 64 bits. Behind an Ethernet header they are not aligned, so the compiler would read and write them in
//! halves; the machines that eBPF is compiled for do it at once, and the verifier allows it for packets and values of maps (where the
//! kernel has CONFIG_HAVE_EFFICIENT_UNALIGNED_ACCESS, as on x86-64 and arm64), but not on the stack.

/// The word itself, computed before the program goes on: across a call the compiler would rather keep what it is computed from.
#[cfg(target_arch = "bpf")]
#[inline(always)]
pub(crate) fn settled(mut word: u64) -> u64 {
    // SAFETY: the instruction copies a register to itself. There has to be one: the kernel wants an instruction for each line
    // that the line info names.
    unsafe { core::arch::asm!("{word} = {word}", word = inout(reg) word, options(nomem, nostack)) };
    word
}

/// The same for unit tests and lints on the host.
#[cfg(not(target_arch = "bpf"))]
pub(crate) const fn settled(word: u64) -> u64 {
    word
}

/// Reads the word `OFFSET` bytes behind the beginning of a header.
///
/// # Safety
///
/// The header must have these four bytes.
#[cfg(target_arch = "bpf")]
#[inline(always)]
pub(crate) unsafe fn load<const OFFSET: i32, T>(header: *const T) -> u32 {
    let word: u64;
    // SAFETY: the caller vouches for the address; the instruction reads four bytes and does nothing else.
    unsafe {
        core::arch::asm!(
            "{word} = *(u32 *)({header} + {offset})",
            word = lateout(reg) word,
            header = in(reg) header,
            offset = const OFFSET,
            options(pure, readonly, nostack),
        );
    }
    // SAFETY: the instruction fills the upper half with zeros.
    unsafe { core::hint::assert_unchecked(word <= u32::MAX as u64) };
    word as u32
}

/// Writes the word `OFFSET` bytes behind the beginning of a header.
///
/// # Safety
///
/// As for [`load`], and nobody else may refer to these bytes.
#[cfg(target_arch = "bpf")]
#[inline(always)]
pub(crate) unsafe fn store<const OFFSET: i32, T>(header: *mut T, word: u32) {
    // SAFETY: the caller vouches for the address; the instruction writes four bytes and does nothing else.
    unsafe {
        core::arch::asm!(
            "*(u32 *)({header} + {offset}) = {word}",
            word = in(reg) u64::from(word),
            header = in(reg) header,
            offset = const OFFSET,
            options(nostack),
        );
    }
}

/// Reads the 64-bit word `OFFSET` bytes behind the beginning of a header.
///
/// # Safety
///
/// The header must have these eight bytes.
#[cfg(target_arch = "bpf")]
#[inline(always)]
pub(crate) unsafe fn load_double<const OFFSET: i32, T>(header: *const T) -> u64 {
    let word: u64;
    // SAFETY: the caller vouches for the address; the instruction reads eight bytes and does nothing else.
    unsafe {
        core::arch::asm!(
            "{word} = *(u64 *)({header} + {offset})",
            word = lateout(reg) word,
            header = in(reg) header,
            offset = const OFFSET,
            options(pure, readonly, nostack),
        );
    }
    word
}

/// Writes the 64-bit word `OFFSET` bytes behind the beginning of a header.
///
/// # Safety
///
/// As for [`load_double`], and nobody else may refer to these bytes.
#[cfg(target_arch = "bpf")]
#[inline(always)]
pub(crate) unsafe fn store_double<const OFFSET: i32, T>(header: *mut T, word: u64) {
    // SAFETY: the caller vouches for the address; the instruction writes eight bytes and does nothing else.
    unsafe {
        core::arch::asm!(
            "*(u64 *)({header} + {offset}) = {word}",
            word = in(reg) word,
            header = in(reg) header,
            offset = const OFFSET,
            options(nostack),
        );
    }
}

/// The same for unit tests and lints on the host.
#[cfg(not(target_arch = "bpf"))]
pub(crate) unsafe fn load<const OFFSET: i32, T>(header: *const T) -> u32 {
    // SAFETY: the caller vouches for the address.
    unsafe { header.byte_offset(OFFSET as isize).cast::<u32>().read_unaligned() }
}

/// The same for unit tests and lints on the host.
#[cfg(not(target_arch = "bpf"))]
pub(crate) unsafe fn store<const OFFSET: i32, T>(header: *mut T, word: u32) {
    // SAFETY: the caller vouches for the address.
    unsafe { header.byte_offset(OFFSET as isize).cast::<u32>().write_unaligned(word) }
}

/// The same for unit tests and lints on the host.
#[cfg(not(target_arch = "bpf"))]
pub(crate) unsafe fn load_double<const OFFSET: i32, T>(header: *const T) -> u64 {
    // SAFETY: the caller vouches for the address.
    unsafe { header.byte_offset(OFFSET as isize).cast::<u64>().read_unaligned() }
}

/// The same for unit tests and lints on the host.
#[cfg(not(target_arch = "bpf"))]
pub(crate) unsafe fn store_double<const OFFSET: i32, T>(header: *mut T, word: u64) {
    // SAFETY: the caller vouches for the address.
    unsafe { header.byte_offset(OFFSET as isize).cast::<u64>().write_unaligned(word) }
}
