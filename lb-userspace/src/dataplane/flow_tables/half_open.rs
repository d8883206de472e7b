//! Flows that have not been promoted yet, and where all flows are.

use std::io;
use std::ops::Range;
use std::sync::atomic::{Ordering, fence};

use aya::Pod;
use aya::maps::MapData;
use lb_common::bucket::{BUCKET_WAYS, bucket_of, claim_of, claim_tag, claim_word, tag_of};
use lb_common::{Address, FlowBucket, FlowKey, HalfOpen, Tuple};

use crate::dataplane::sys::{Mapped, Words};

/// The half-open flows of a family, for reading.
#[derive(Debug)]
pub(in crate::dataplane) struct HalfOpenFlows<A>(Mapped<HalfOpen<A>>);

impl<A> HalfOpenFlows<A>
where
    HalfOpen<A>: Pod,
{
    /// Maps the map `half_open_v4` or `half_open_v6`.
    pub(in crate::dataplane) fn new(map: &MapData) -> io::Result<Self> {
        Mapped::new(map).map(Self)
    }

    /// All of them, with their slots. One that comes or goes meanwhile may be among them or not.
    pub(in crate::dataplane) fn iter(&self) -> impl Iterator<Item = (u32, HalfOpen<A>)> + '_ {
        (0..self.0.count()).filter_map(|slot| Some((slot, self.read(slot)?)))
    }

    /// The one in a slot; `None` if there is none, or another came while it was read.
    fn read(&self, slot: u32) -> Option<HalfOpen<A>> {
        let number = self.0.first_word(slot).filter(|&number| number != 0)?;
        fence(Ordering::SeqCst);
        let flow = self.0.read(slot)?;
        fence(Ordering::SeqCst);
        (self.0.first_word(slot) == Some(number)).then_some(HalfOpen { number, ..flow })
    }
}

/// The same, for finding and ending one.
#[derive(Debug)]
pub(super) struct HalfOpenTable<A> {
    flows: HalfOpenFlows<A>,
    numbers: Words,
    at: Whereabouts,
}

impl<A> HalfOpenTable<A>
where
    A: Address,
    FlowKey<A>: PartialEq,
    HalfOpen<A>: Pod,
{
    /// Words of a flow. Its number is the first.
    const WORDS: u32 = (size_of::<HalfOpen<A>>() / size_of::<u64>()) as u32;

    pub(super) fn new(flows: &MapData, at: &MapData) -> io::Result<Self> {
        let buckets = at.info().map_err(io::Error::other)?.max_entries();
        Ok(Self {
            flows: HalfOpenFlows::new(flows)?,
            numbers: Words::new(flows)?,
            at: Whereabouts { words: Words::new(at)?, buckets },
        })
    }

    pub(super) const fn flows(&self) -> &HalfOpenFlows<A> {
        &self.flows
    }

    /// The flow of a client's tuple.
    pub(super) fn find(&self, key: &FlowKey<A>) -> Option<HalfOpen<A>> {
        self.at
            .slots(Tuple::of(key).hash())
            .filter_map(|slot| self.flows.read(slot))
            .find(|flow| flow.key == *key)
    }

    /// Ends a flow that was read from a slot; whether it was there yet. What leads to it goes, too.
    pub(super) fn take(&self, slot: u32, flow: &HalfOpen<A>) -> bool {
        let is_ours = self.numbers.take(slot * Self::WORDS, flow.number);
        if is_ours {
            self.at.remove(Tuple::of(&flow.key).hash(), slot);
        }
        is_ours
    }

    /// Takes away what says that the flow of a client's tuple is promoted.
    pub(super) fn forget_promoted(&self, key: &FlowKey<A>) {
        self.at.remove(Tuple::of(key).hash(), FlowBucket::PROMOTED);
    }
}

/// Where the flows are: the map `flows_at_v4` or `flows_at_v6`.
#[derive(Debug)]
struct Whereabouts {
    words: Words,
    buckets: u32,
}

impl Whereabouts {
    /// The slots in which the flow of a tuple with this hash may be.
    fn slots(&self, hash: u64) -> impl Iterator<Item = u32> + '_ {
        let (claims, tag) = self.of(hash);
        let claims = claims.filter_map(|word| self.words.load(word));
        claims.filter(move |&claim| claim_tag(claim) == tag).map(claim_word)
    }

    /// Takes away what says that the flow of a tuple with this hash is in a slot.
    fn remove(&self, hash: u64, slot: u32) {
        let (mut claims, tag) = self.of(hash);
        // The program may have been faster.
        let _ = claims.any(|word| self.words.take(word, claim_of(tag, slot)));
    }

    /// The words in which claims of such a tuple may stand, and their tag.
    fn of(&self, hash: u64) -> (Range<u32>, u32) {
        let first = bucket_of(hash, self.buckets) * FlowBucket::WORDS + FlowBucket::CLAIMS;
        (first..first + BUCKET_WAYS as u32, tag_of(hash))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_common::{Addr4, PROTO_TCP};

    #[test]
    fn what_leads_to_a_flow_goes_with_it_and_nothing_else_does() {
        let [hash, other] = [1, 2].map(|source_port| {
            let key = FlowKey::<Addr4> { source_port, protocol: PROTO_TCP, ..FlowKey::default() };
            Tuple::of(&key).hash()
        });
        let claim = |hash, slot| claim_of(tag_of(hash), slot);
        // One bucket: its gate, then the claims.
        let words = [0, claim(other, 5), 0, claim(hash, 5), claim(hash, 6), 0, 0, 0];
        let at = Whereabouts { words: Words::of_test(&words), buckets: 1 };
        let slots = |hash| at.slots(hash).collect::<Vec<_>>();
        at.remove(hash, 7);
        assert_eq!((slots(hash), slots(other)), (vec![5, 6], vec![5]));
        at.remove(hash, 5);
        assert_eq!((slots(hash), slots(other)), (vec![6], vec![5]));
        at.remove(other, 5);
        assert_eq!((slots(hash), slots(other)), (vec![6], vec![]));
    }
}
