//! Weighted Maglev tables (Eisenbud et al., NSDI 2016, section 3.4).
//!
//! Each backend walks over the slots in an order of its own, derived from its address and port, and takes the
//! first free one whenever it is its turn. Turns come in proportion to weight. The order in which backends are
//! named does not matter, and a backend that comes or goes moves few slots of the others.

use std::net::SocketAddr;

use lb_common::{MAGLEV_SIZE, MaglevTable, NO_BACKEND};

/// A backend in a rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    /// What its walk is derived from.
    pub address: SocketAddr,
    /// Its id: what the slots hold.
    pub id: u32,
    /// Its share of the slots, relative to the others; 0 takes none.
    pub weight: u16,
}

/// One backend's walk over the slots.
struct Walk {
    id: u16,
    /// The next slot, and how far it is to the one after it.
    next: u32,
    skip: u32,
    weight: u64,
    /// Turns it is owed, in units of `1 / heaviest`.
    credit: u64,
}

/// Builds the table of a rotation. Without a member of positive weight every slot is [`NO_BACKEND`].
pub fn build(members: &[Member]) -> Box<MaglevTable> {
    let mut table: Box<MaglevTable> = vec![NO_BACKEND; MAGLEV_SIZE]
        .into_boxed_slice()
        .try_into()
        .expect("the slice has the table's length");
    let mut walks = walks(members);
    let heaviest = walks.iter().map(|walk| walk.weight).max().unwrap_or(0);
    let mut taken = Taken::default();
    let mut free = if walks.is_empty() { 0 } else { MAGLEV_SIZE };
    while free > 0 {
        for walk in &mut walks {
            walk.credit += walk.weight;
            if walk.credit < heaviest || free == 0 {
                continue;
            }
            walk.credit -= heaviest;
            table[taken.take_next(walk)] = walk.id;
            free -= 1;
        }
    }
    table
}

/// The walks in an order that depends on addresses alone.
fn walks(members: &[Member]) -> Vec<Walk> {
    let mut members: Vec<Member> = members.iter().copied().filter(|member| member.weight > 0).collect();
    members.sort_unstable();
    let size = MAGLEV_SIZE as u64;
    members
        .iter()
        .map(|member| Walk {
            id: u16::try_from(member.id).expect("an id is below MAX_BACKENDS"),
            next: (hash(member.address, 1) % size) as u32,
            skip: (hash(member.address, 2) % (size - 1) + 1) as u32,
            weight: member.weight.into(),
            credit: 0,
        })
        .collect()
}

/// One bit for each slot. Most of the time goes into looking for the last free slots all over the table: these bits fit
/// into the nearest cache, which the table does not.
struct Taken([u64; MAGLEV_SIZE.div_ceil(64)]);

impl Default for Taken {
    fn default() -> Self {
        Self([0; MAGLEV_SIZE.div_ceil(64)])
    }
}

impl Taken {
    /// Takes the next free slot of a walk. The table's size is prime, so a walk meets every slot.
    fn take_next(&mut self, walk: &mut Walk) -> usize {
        const SIZE: u32 = MAGLEV_SIZE as u32;
        loop {
            let slot = walk.next as usize;
            walk.next += walk.skip;
            walk.next -= if walk.next >= SIZE { SIZE } else { 0 };
            let (word, bit) = (&mut self.0[slot / 64], 1 << (slot % 64));
            if *word & bit == 0 {
                *word |= bit;
                return slot;
            }
        }
    }
}

/// FNV-1a (RFC 9923) over address, port and a salt, finished by a multiplication that spreads the high bits: the
/// same on every host and in every version, so that two balancers with one configuration choose alike.
fn hash(address: SocketAddr, salt: u8) -> u64 {
    let wide = lb_common::Addr6::from(address.ip());
    let bytes = wide.bytes.into_iter().chain(address.port().to_be_bytes()).chain([salt]);
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let hash = (hash ^ (hash >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash ^ (hash >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn member(number: u32, weight: u16) -> Member {
        let address = SocketAddr::from(([10, 0, (number >> 8) as u8, number as u8], 8080));
        Member { address, id: number, weight }
    }

    fn members(count: u32) -> Vec<Member> {
        (0..count).map(|number| member(number, 1)).collect()
    }

    fn share(table: &MaglevTable, id: u16) -> f64 {
        table.iter().filter(|&&slot| slot == id).count() as f64 / MAGLEV_SIZE as f64
    }

    fn moved(one: &MaglevTable, other: &MaglevTable) -> f64 {
        one.iter().zip(other).filter(|(a, b)| a != b).count() as f64 / MAGLEV_SIZE as f64
    }

    #[test]
    fn an_empty_rotation_names_nobody() {
        assert!(build(&[]).iter().all(|&slot| slot == NO_BACKEND));
        assert!(build(&[member(1, 0)]).iter().all(|&slot| slot == NO_BACKEND));
    }

    #[test]
    fn shares_follow_weights() {
        let table = build(&[member(1, 1), member(2, 2), member(3, 5), member(4, 0)]);
        for (id, weight) in [(1, 1.0), (2, 2.0), (3, 5.0)] {
            let expected = weight / 8.0;
            assert!((share(&table, id) - expected).abs() < 0.02 * expected, "backend {id}");
        }
        assert_eq!(share(&table, 4), 0.0);
    }

    #[test]
    fn the_widest_spread_of_weights_keeps_shares_within_two_percent() {
        let table = build(&[member(1, 1), member(2, 1000)]);
        assert!((share(&table, 1) - 1.0 / 1001.0).abs() < 0.02 / 1001.0);
    }

    #[test]
    fn removing_one_of_ten_moves_at_most_two_tenths() {
        let all = members(10);
        let before = build(&all);
        for gone in 0..all.len() {
            let mut rest = all.clone();
            rest.remove(gone);
            let moved = moved(&before, &build(&rest));
            assert!((0.1 - 0.002..=0.2).contains(&moved), "{moved}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn order_does_not_matter(mut shuffled in Just(members(16)).prop_shuffle(), weights in prop::collection::vec(0..=1000_u16, 16)) {
            for member in &mut shuffled {
                member.weight = weights[member.id as usize];
            }
            let mut sorted = shuffled.clone();
            sorted.sort_unstable();
            prop_assert!(build(&shuffled) == build(&sorted));
        }

        #[test]
        fn equal_backends_share_equally(count in 1..200_u16) {
            let table = build(&members(count.into()));
            for id in 0..count {
                prop_assert!((share(&table, id) * f64::from(count) - 1.0).abs() < 0.02);
            }
        }

        #[test]
        fn one_of_n_moves_at_most_two_nths(count in 2..100_u32) {
            let before = build(&members(count));
            let after = build(&members(count - 1));
            prop_assert!(moved(&before, &after) <= 2.0 / f64::from(count));
        }
    }
}
