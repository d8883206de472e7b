//! Whose the answers with a tuple are: what flows have claimed, their SNAT ports among it. Programs add claims; here they are only
//! taken away.

use std::io;
use std::marker::PhantomData;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};

use aya::Pod;
use aya::maps::MapData;
use lb_common::bucket::{BUCKET_WAYS, GATE_OVERFLOWED, Home, claim_of, claim_tag, claim_word};
use lb_common::cache::{split_ports, wire_ports};
use lb_common::{Address, AnswerBucket, Flow, FlowKey};

use crate::dataplane::sys::{self, Words};

/// The answers that flows of a family have claimed.
#[derive(Debug)]
pub(in crate::dataplane) struct Answers<A> {
    buckets: Buckets<A>,
    /// Those that found their bucket full: the answer's tuple to the client's.
    more: MapData,
}

/// A claim in a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::dataplane) struct Claim<A> {
    /// Where it stands.
    word: u32,
    claim: u64,
    /// Source and destination of the client's packets.
    client: [A; 2],
}

impl<A> Answers<A>
where
    A: Address + Pod,
    FlowKey<A>: Pod + PartialEq,
{
    pub(super) fn new(buckets: &MapData, more: MapData) -> io::Result<Self> {
        let count = buckets.info().map_err(io::Error::other)?.max_entries();
        Ok(Self { buckets: Buckets { words: Words::new(buckets)?, count, of: PhantomData }, more })
    }

    /// Gives back what the flow of a client's tuple had claimed. It must be gone.
    pub(super) fn give_back(&self, client: &FlowKey<A>, flow: &Flow<A>) -> io::Result<()> {
        let answer = flow.answers(client.protocol);
        if self.buckets.give_back(&answer, client) || !self.buckets.is_overflowed(&answer) {
            return Ok(());
        }
        if sys::lookup::<_, FlowKey<A>>(self.more(), &answer)?.as_ref() == Some(client) {
            sys::delete(self.more(), &answer)?;
        }
        Ok(())
    }

    /// How many buckets there are.
    pub(in crate::dataplane) const fn buckets(&self) -> u32 {
        self.buckets.count
    }

    /// The claims in some of the buckets.
    pub(in crate::dataplane) fn claims(&self, buckets: Range<u32>) -> impl Iterator<Item = Claim<A>> + '_ {
        self.buckets.claims(buckets)
    }

    /// Whether a claim is what the flow with such answers has claimed.
    pub(in crate::dataplane) fn is_of(&self, claim: &Claim<A>, answer: &FlowKey<A>) -> bool {
        self.buckets.is_of(claim, answer)
    }

    /// Takes a claim away that nobody has given back; whether it was there yet.
    pub(in crate::dataplane) fn take(&self, claim: &Claim<A>) -> bool {
        self.buckets.take(claim)
    }

    /// The map of claims that found their bucket full.
    pub(in crate::dataplane) fn more(&self) -> BorrowedFd<'_> {
        self.more.fd().as_fd()
    }
}

impl<A: Address> Claim<A> {
    /// The tuple of the client's packets, if they are of this protocol.
    pub(in crate::dataplane) const fn client(&self, protocol: u8) -> FlowKey<A> {
        let [source, destination] = self.client;
        let (source_port, destination_port) = split_ports(claim_word(self.claim));
        FlowKey {
            source,
            destination,
            source_port: u16::from_be(source_port),
            destination_port: u16::from_be(destination_port),
            protocol,
            _pad: [0; 3],
        }
    }
}

/// The map `answers_v4` or `answers_v6`.
#[derive(Debug)]
struct Buckets<A> {
    words: Words,
    count: u32,
    of: PhantomData<A>,
}

impl<A: Address + Pod> Buckets<A> {
    /// Takes away the claim of an answer for a client; whether there was one.
    fn give_back(&self, answer: &FlowKey<A>, client: &FlowKey<A>) -> bool {
        let home = Home::of(answer, self.count);
        let wanted = claim_of(home.tag(), wire_ports(client.source_port, client.destination_port));
        let mut claims = self.claims(home.bucket()..home.bucket() + 1);
        let is_it = |it: &Claim<A>| it.claim == wanted && it.client == [client.source, client.destination];
        let Some(found) = claims.find(is_it) else { return false };
        // If it cannot be taken, somebody else was faster.
        self.take(&found);
        true
    }

    /// Whether claims for some answers in this one's bucket are elsewhere.
    fn is_overflowed(&self, answer: &FlowKey<A>) -> bool {
        let gate = Home::of(answer, self.count).bucket() * AnswerBucket::<A>::WORDS;
        self.words.load(gate).is_some_and(|gate| gate & GATE_OVERFLOWED != 0)
    }

    fn claims(&self, buckets: Range<u32>) -> impl Iterator<Item = Claim<A>> + '_ {
        let places = buckets.flat_map(|bucket| (0..BUCKET_WAYS as u32).map(move |way| (bucket, way)));
        places.filter_map(|(bucket, way)| self.claim(bucket, way))
    }

    fn claim(&self, bucket: u32, way: u32) -> Option<Claim<A>> {
        let first = bucket * AnswerBucket::<A>::WORDS;
        let word = first + AnswerBucket::<A>::CLAIMS + way;
        let claim = self.words.load(word).filter(|&claim| claim != 0)?;
        // Written before its claim was.
        let client =
            self.words.read(first + AnswerBucket::<A>::CLIENTS + way * AnswerBucket::<A>::CLIENT_WORDS)?;
        Some(Claim { word, claim, client })
    }

    fn is_of(&self, claim: &Claim<A>, answer: &FlowKey<A>) -> bool {
        let home = Home::of(answer, self.count);
        claim.word / AnswerBucket::<A>::WORDS == home.bucket() && claim_tag(claim.claim) == home.tag()
    }

    fn take(&self, claim: &Claim<A>) -> bool {
        self.words.take(claim.word, claim.claim)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_common::{Addr6, PROTO_TCP, PROTO_UDP};

    const COUNT: u32 = 40;

    fn address(last: u8) -> Addr6 {
        Addr6 { bytes: [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last] }
    }

    fn key(source: u8, destination: u8, ports: (u16, u16)) -> FlowKey<Addr6> {
        let (source_port, destination_port) = ports;
        let (source, destination) = (address(source), address(destination));
        FlowKey { source, destination, source_port, destination_port, protocol: PROTO_TCP, _pad: [0; 3] }
    }

    /// A table in which the answer is claimed for the client in the third place of its bucket, and the bucket's number.
    fn claimed(answer: &FlowKey<Addr6>, client: &FlowKey<Addr6>) -> (Buckets<Addr6>, u32) {
        let home = Home::of(answer, COUNT);
        let of_each = AnswerBucket::<Addr6>::WORDS as usize;
        let mut words = vec![0; of_each * COUNT as usize];
        let bucket = home.bucket();
        let first = bucket as usize * of_each;
        words[first] = GATE_OVERFLOWED;
        words[first + 1 + 2] = claim_of(home.tag(), wire_ports(client.source_port, client.destination_port));
        let pair = [client.source, client.destination].map(|address| address.bytes);
        for (word, bytes) in words[first + 8 + 2 * 4..].iter_mut().zip(pair.as_flattened().chunks_exact(8)) {
            *word = u64::from_ne_bytes(bytes.try_into().unwrap());
        }
        (Buckets { words: Words::of_test(&words), count: COUNT, of: PhantomData }, bucket)
    }

    #[test]
    fn a_claim_is_given_back_once_and_only_by_the_client_that_has_it() {
        let (answer, client) = (key(10, 100, (8080, 31_415)), key(7, 100, (40_000, 80)));
        let (buckets, _) = claimed(&answer, &client);
        assert!(!buckets.give_back(&answer, &key(8, 100, (40_000, 80))), "the same ports, another client");
        assert!(!buckets.give_back(&answer, &key(7, 100, (40_001, 80))));
        assert!(!buckets.give_back(&key(10, 100, (8080, 31_416)), &client));
        assert!(
            !buckets.give_back(&key(10, 100, (8080, 31_414)), &client),
            "the same tag in the next bucket"
        );
        assert!(buckets.give_back(&answer, &client));
        assert!(!buckets.give_back(&answer, &client));
    }

    #[test]
    fn a_claim_tells_where_it_is_and_whose() {
        let (answer, client) = (key(10, 100, (8080, 31_415)), key(7, 100, (40_000, 80)));
        let (buckets, bucket) = claimed(&answer, &client);
        let claims: Vec<_> = buckets.claims(0..COUNT).collect();
        let [claim] = claims[..] else { panic!("{claims:?}") };
        assert_eq!(claim.client(PROTO_TCP), client);
        assert_eq!(claim.client(PROTO_UDP), FlowKey { protocol: PROTO_UDP, ..client });
        assert!(buckets.is_of(&claim, &answer));
        assert!(!buckets.is_of(&claim, &FlowKey { protocol: PROTO_UDP, ..answer }));
        assert_eq!(buckets.claims(bucket..bucket + 1).count(), 1);
        assert_eq!(buckets.claims(bucket + 1..COUNT).count(), 0);
        assert!(buckets.is_overflowed(&answer));
        assert!(buckets.take(&claim) && !buckets.take(&claim));
    }
}
