//! Part of finding a flow: does a client's tuple have one, and where? One line of memory tells, also of the first packet of a flow,
//! that it has none.

use lb_common::bucket::{BUCKET_WAYS, bucket_of, claim_of, claim_word, tag_of};
use lb_common::{FlowBucket, FlowKey};

use crate::bucket::{self, Gate, hash_of};
use crate::family::Family;
use crate::maps::FLOW_BUCKETS;

/// Where the flow of a tuple is looked for.
pub(crate) struct Spot {
    bucket: *mut FlowBucket,
    tag: u32,
}

impl Spot {
    /// By the hash of the tuple.
    #[inline(always)]
    pub(crate) fn of<F: Family>(hash: u64) -> Option<Self> {
        let bucket = F::flows_at(bucket_of(hash, FLOW_BUCKETS.load()))?;
        Some(Self { bucket, tag: tag_of(hash) })
    }

    /// Has the processor fetch the line while it waits for another one.
    #[inline(always)]
    pub(crate) fn fetch(&self) {
        // SAFETY: `bucket` points into a map.
        unsafe { bucket::gate(self.bucket) };
    }

    /// What is claimed for the tuple: 0 for nothing, and where.
    #[inline(always)]
    pub(crate) fn find(&self) -> (u64, *mut u64) {
        // SAFETY: claims in a map, of which `way` is one.
        unsafe {
            let (claim, way) = bucket::find(self.bucket, self.tag);
            (claim, bucket::claim_at(self.bucket, way))
        }
    }

    /// Whether there may be a promoted flow of the tuple.
    #[inline(always)]
    pub(crate) fn may_be_promoted(&self) -> bool {
        let (claim, _) = self.find();
        // Another may look like it, and have taken its place.
        claim_word(claim) == FlowBucket::PROMOTED || self.may_be_lost()
    }

    /// Whether a promoted flow of the tuple may be there without a claim.
    #[inline(always)]
    pub(crate) fn may_be_lost(&self) -> bool {
        // SAFETY: `bucket` points into a map.
        unsafe { bucket::gate(self.bucket) & FlowBucket::lost(self.tag) != 0 }
    }

    /// The claim for a flow in this slot of the half-open ones, or [`FlowBucket::PROMOTED`].
    #[inline(always)]
    pub(crate) const fn claim(&self, slot: u32) -> u64 {
        claim_of(self.tag, slot)
    }

    /// Holds the bucket's gate.
    #[inline(always)]
    pub(crate) fn hold(&self) -> Option<Gate> {
        // SAFETY: `bucket` points into a map.
        unsafe { Gate::hold(self.bucket) }
    }

    /// Where a claim can be made that is not there yet, and what stands there. Where all are in use, one of a promoted flow goes first:
    /// that is found all the same.
    #[inline(always)]
    pub(crate) fn room(&self) -> (*mut u64, u64) {
        // SAFETY: claims in a map, of which `way` is one.
        unsafe {
            let mut way = bucket::free(self.bucket);
            if way >= BUCKET_WAYS {
                way = bucket::with_word(self.bucket, FlowBucket::PROMOTED);
            }
            if way >= BUCKET_WAYS {
                way = (self.tag >> 1 & ONE_OF_FOUR) as usize;
            }
            let at = bucket::claim_at(self.bucket, way);
            (at, at.read_volatile())
        }
    }
}

/// Selects a claim of a full bucket, in a way that the verifier follows.
const ONE_OF_FOUR: u32 = 3;

/// Takes the claim of a promoted flow away, which is gone.
#[inline(always)]
pub(crate) fn forget_promoted<F: Family>(key: &FlowKey<F::Addr>) {
    let Some(spot) = Spot::of::<F>(hash_of(key)) else { return };
    let (claim, at) = spot.find();
    if claim_word(claim) == FlowBucket::PROMOTED {
        // SAFETY: a claim in a map.
        unsafe { bucket::change(at, claim, 0) };
    }
}
