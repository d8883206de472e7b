//! Finds what flows had claimed that are gone: a controller that was killed between ending a flow and giving back its claim leaves
//! one, and with it a SNAT port that would never be free again.

use std::collections::HashSet;
use std::hash::Hash;
use std::io;
use std::ops::Range;

use aya::Pod;
use lb_common::{Address, Flow, FlowKey, HalfOpen, PROTO_TCP, PROTO_UDP};
use tracing::info;

use crate::dataplane::flow_tables::{Claim, FlowTables};
use crate::dataplane::sys::{self, Batch, Cursor};

/// Steps in which all claims are looked at.
const STEPS: u32 = 256;

/// Looks at some of the claims in each step.
#[derive(Debug)]
pub(super) struct Scrub<A> {
    /// How many steps there were since the last pass ended.
    steps: u32,
    claims: Suspects<Claim<A>>,
    /// Tuples of answers whose claims found their bucket full.
    more: Suspects<FlowKey<A>>,
}

impl<A> Default for Scrub<A> {
    fn default() -> Self {
        Self { steps: 0, claims: Suspects::default(), more: Suspects::default() }
    }
}

impl<A> Scrub<A>
where
    A: Address + Pod + Eq + Hash,
    FlowKey<A>: Pod,
    Flow<A>: Pod,
    HalfOpen<A>: Pod,
{
    /// Looks at the next part of the claims, and takes away those without a flow that were without one in the last pass, too: a
    /// claim is made before its flow, and goes after it.
    pub(super) fn step(&mut self, tables: &FlowTables<A>) -> io::Result<()> {
        let step = self.steps;
        self.steps = (step + 1) % STEPS;
        if step == 0 {
            self.claims.begin_pass();
            self.more.begin_pass();
        }
        let mut taken = 0_u32;
        for claim in tables.answers().claims(part(step, tables.answers().buckets())) {
            if !is_of_flow(tables, &claim)? && self.claims.is_met_again(claim) {
                taken += u32::from(tables.answers().take(&claim));
            }
        }
        if step == STEPS - 1 {
            taken += self.look_at_more(tables)?;
        }
        if taken != 0 {
            info!("gave back {taken} ports that flows of IPv{} had left behind", A::VERSION);
        }
        Ok(())
    }

    /// The same for all claims that found their bucket full: there are few. How many were taken away.
    fn look_at_more(&mut self, tables: &FlowTables<A>) -> io::Result<u32> {
        let (mut batch, mut cursor) = (Batch::<FlowKey<A>, FlowKey<A>>::new(), Cursor::default());
        let (map, mut taken) = (tables.answers().more(), 0);
        while let Some(claims) = batch.read_next(map, &mut cursor)? {
            for (answer, client) in claims {
                let is_of_flow =
                    tables.find(&client)?.is_some_and(|flow| flow.answers(client.protocol) == answer);
                if !is_of_flow && self.more.is_met_again(answer) {
                    taken += u32::from(sys::delete(map, &answer)?);
                }
            }
        }
        Ok(taken)
    }
}

/// Whether there is a flow that has claimed this. Claims do not tell its protocol.
fn is_of_flow<A>(tables: &FlowTables<A>, claim: &Claim<A>) -> io::Result<bool>
where
    A: Address + Pod + Eq,
    FlowKey<A>: Pod,
    Flow<A>: Pod,
    HalfOpen<A>: Pod,
{
    for protocol in [PROTO_TCP, PROTO_UDP] {
        let flow = tables.find(&claim.client(protocol))?;
        if flow.is_some_and(|flow| tables.answers().is_of(claim, &flow.answers(protocol))) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The buckets that a step of a pass looks at.
fn part(step: u32, buckets: u32) -> Range<u32> {
    let begin = |step: u32| (u64::from(buckets) * u64::from(step) / u64::from(STEPS)) as u32;
    begin(step)..begin(step + 1)
}

/// What was found without a flow.
#[derive(Debug)]
struct Suspects<T> {
    in_last_pass: HashSet<T>,
    in_this: HashSet<T>,
}

impl<T> Default for Suspects<T> {
    fn default() -> Self {
        Self { in_last_pass: HashSet::new(), in_this: HashSet::new() }
    }
}

impl<T: Eq + Hash> Suspects<T> {
    fn begin_pass(&mut self) {
        self.in_last_pass = std::mem::take(&mut self.in_this);
    }

    /// Whether something was found without a flow in the last pass, too.
    fn is_met_again(&mut self, found: T) -> bool {
        let is_met_again = self.in_last_pass.remove(&found);
        if !is_met_again {
            self.in_this.insert(found);
        }
        is_met_again
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_looks_at_each_bucket_once() {
        for buckets in [1, 255, 256, 257, 42_131, u32::MAX] {
            assert_eq!((part(0, buckets).start, part(STEPS - 1, buckets).end), (0, buckets));
            assert!((1..STEPS).all(|step| part(step, buckets).start == part(step - 1, buckets).end));
            let longest = (0..STEPS).map(|step| part(step, buckets).len()).max();
            assert_eq!(longest, Some(buckets.div_ceil(STEPS) as usize));
        }
    }

    #[test]
    fn only_what_two_passes_find_one_after_the_other_is_taken() {
        let mut suspects = Suspects::default();
        suspects.begin_pass();
        assert!(!suspects.is_met_again(1) && !suspects.is_met_again(2));
        assert!(!suspects.is_met_again(1), "the same pass");
        suspects.begin_pass();
        assert!(suspects.is_met_again(1));
        suspects.begin_pass();
        assert!(!suspects.is_met_again(2), "it had a flow in the pass between");
        suspects.begin_pass();
        assert!(suspects.is_met_again(2));
    }
}
