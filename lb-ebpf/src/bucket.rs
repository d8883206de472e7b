//! Buckets of claims (see `lb_common::bucket`): finding one, adding one, taking one away.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_loop;
use lb_common::bucket::{BUCKET_WAYS, GATE_HELD, claim_tag, claim_word};
use lb_common::{Address, FlowBucket, FlowKey, Tuple};

use crate::{atomic, word};

/// How often a CPU asks for a gate that another holds. That is for a few dozen instructions, unless a hypervisor stops the other CPU
/// meanwhile: this is some milliseconds.
const TRIES: u32 = 1 << 16;

/// What a tuple is hashed to, by a call: written out wherever it is asked for, it would take more stack than there is.
#[inline(never)]
pub(crate) fn hash_of<A: Address>(key: &FlowKey<A>) -> u64 {
    Tuple::of(key).hash()
}

/// A claim of a bucket.
///
/// # Safety
///
/// `bucket` must point to a bucket in a map, of whatever kind: all begin with gate and claims. `way` must be less than [`BUCKET_WAYS`].
#[inline(always)]
pub(crate) const unsafe fn claim_at(bucket: *mut FlowBucket, way: usize) -> *mut u64 {
    // SAFETY: the caller vouches for both.
    unsafe { (&raw mut (*bucket).claims).cast::<u64>().add(way) }
}

/// Makes a claim another one, or none (0), if it is what it is taken for; whether it was.
///
/// # Safety
///
/// `at` must point to a claim of a bucket in a map.
#[inline(always)]
pub(crate) unsafe fn change(at: *mut u64, from: u64, to: u64) -> bool {
    // SAFETY: the caller vouches for the address.
    unsafe { atomic::compare_exchange(at, from, to) == from }
}

/// The bits of a bucket's gate. Whoever reads them early has the processor fetch the bucket.
///
/// # Safety
///
/// As for [`find`].
#[inline(always)]
pub(crate) unsafe fn gate(bucket: *const FlowBucket) -> u64 {
    // SAFETY: an aligned word in a map.
    unsafe { (&raw const (*bucket).gate).read_volatile() }
}

/// The claim with this tag, and which of them it is. 0: there is none.
///
/// # Safety
///
/// As for [`claim_at`].
#[inline(always)]
pub(crate) unsafe fn find(bucket: *mut FlowBucket, tag: u32) -> (u64, usize) {
    let way = unbounded(claim_with_tag(bucket, tag));
    if way >= BUCKET_WAYS {
        return (0, 0);
    }
    // SAFETY: one of the claims. It may have become another one since.
    let claim = unsafe { claim_at(bucket, way).read_volatile() };
    if claim_tag(claim) == tag { (claim, way) } else { (0, 0) }
}

/// The number of a claim that is free; [`BUCKET_WAYS`] if none is.
///
/// # Safety
///
/// As for [`find`].
#[inline(always)]
pub(crate) unsafe fn free(bucket: *mut FlowBucket) -> usize {
    unbounded(claim_with_tag(bucket, 0))
}

/// The same of a claim with this word.
///
/// # Safety
///
/// As for [`find`].
#[inline(always)]
pub(crate) unsafe fn with_word(bucket: *mut FlowBucket, word: u32) -> usize {
    unbounded(claim_with_word(bucket, word))
}

/// A number whose bounds the compiler does not know either, so that it compares what the verifier has to see compared.
#[inline(always)]
fn unbounded(way: u32) -> usize {
    word::settled(way.into()) as usize
}

/// A function of its own, which the verifier walks through once: written out, or called by another linkage, it would walk through all that
/// follows once for each claim that may be the one.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn claim_with_tag(bucket: *const FlowBucket, tag: u32) -> u32 {
    first(bucket, |claim| claim_tag(claim) == tag)
}

/// As [`claim_with_tag`].
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn claim_with_word(bucket: *const FlowBucket, word: u32) -> u32 {
    first(bucket, |claim| claim_word(claim) == word)
}

/// The number of the first claim that is wanted, else [`BUCKET_WAYS`].
#[inline(always)]
fn first(bucket: *const FlowBucket, is_wanted: impl Fn(u64) -> bool) -> u32 {
    if bucket.is_null() {
        return BUCKET_WAYS as u32;
    }
    for way in 0..BUCKET_WAYS {
        // SAFETY: one of the claims; others may write it meanwhile, but at once.
        let claim = unsafe { (&raw const (*bucket).claims).cast::<u64>().add(way).read_volatile() };
        if is_wanted(claim) {
            return way as u32;
        }
    }
    BUCKET_WAYS as u32
}

/// A bucket to which only this CPU may add claims.
pub(crate) struct Gate {
    word: *mut u64,
    /// Its bits, but for [`GATE_HELD`].
    bits: u64,
}

impl Gate {
    /// Closes a gate to others; `None` if one of them holds it all the time: then its bucket does without new claims for a while. XDP
    /// programs do not interrupt each other on one CPU.
    ///
    /// # Safety
    ///
    /// As for [`find`].
    #[inline(always)]
    pub(crate) unsafe fn hold(bucket: *mut FlowBucket) -> Option<Self> {
        // SAFETY: the caller vouches for the address.
        let word = unsafe { &raw mut (*bucket).gate };
        // SAFETY: as above.
        let bits = unsafe { try_hold(word) };
        if bits & GATE_HELD == 0 {
            return Some(Self { word, bits });
        }
        let mut waiting = Waiting { word, bits };
        // SAFETY: the callback has the signature the helper wants (kernel 5.17), and `waiting` lives until it returns.
        unsafe { bpf_loop(TRIES, ask_again as *mut c_void, (&raw mut waiting).cast(), 0) };
        let Waiting { bits, .. } = waiting;
        (bits & GATE_HELD == 0).then_some(Self { word, bits })
    }

    /// Whether it has any of these bits.
    #[inline(always)]
    pub(crate) const fn has(&self, bits: u64) -> bool {
        self.bits & bits != 0
    }

    /// Sets bits that others see before what is written next.
    #[inline(always)]
    pub(crate) fn note(&mut self, bits: u64) {
        self.bits |= bits;
        // SAFETY: the word was given to `hold`.
        unsafe { atomic::publish(self.word, self.bits | GATE_HELD) };
    }

    /// Opens it again; what has been added is seen by whoever holds it next.
    #[inline(always)]
    pub(crate) fn leave(self) {
        // SAFETY: the word was given to `hold`.
        unsafe { atomic::publish(self.word, self.bits) };
    }
}

/// What bits a gate had that is held now; [`GATE_HELD`] if another holds it.
///
/// # Safety
///
/// `word` must point to the gate of a bucket in a map.
#[inline(always)]
unsafe fn try_hold(word: *mut u64) -> u64 {
    // SAFETY: an aligned word in a map.
    let bits = unsafe { word.read_volatile() };
    if bits & GATE_HELD != 0 {
        return GATE_HELD;
    }
    // SAFETY: as above.
    if unsafe { atomic::compare_exchange(word, bits, bits | GATE_HELD) } == bits { bits } else { GATE_HELD }
}

/// A CPU that waits for a gate.
struct Waiting {
    word: *mut u64,
    bits: u64,
}

/// Asks for a gate once more. Returns 0 to go on, 1 to end the loop.
#[inline(never)]
unsafe extern "C" fn ask_again(_number: u32, waiting: *mut c_void) -> i64 {
    // SAFETY: `hold` passes its own `Waiting`, which nobody else holds meanwhile.
    let waiting = unsafe { &mut *waiting.cast::<Waiting>() };
    // SAFETY: `hold` vouches for the address.
    waiting.bits = unsafe { try_hold(waiting.word) };
    i64::from(waiting.bits & GATE_HELD == 0)
}
