//! The hash that spreads flows over a set's rotation. The controller and the tests compute the same one, so
//! that anybody can tell which slot of a Maglev table a client falls into.

use crate::{Address, FlowKey, Listener, MAGLEV_SIZE};

/// The slot of a Maglev table for a flow, by the policy of its set ([`Listener::FIVE_TUPLE`] and so on).
#[inline(always)]
pub fn maglev_slot<A: Address>(key: &FlowKey<A>, policy: u8) -> u32 {
    slot_of(policy_hash(key, policy))
}

/// Maps a hash to a slot by multiplication (Lemire 2019), which needs no division.
#[inline(always)]
pub const fn slot_of(hash: u32) -> u32 {
    ((hash as u64 * MAGLEV_SIZE as u64) >> 32) as u32
}

/// Hash of what the policy looks at.
#[inline(always)]
pub fn policy_hash<A: Address>(key: &FlowKey<A>, policy: u8) -> u32 {
    let mut state = mix_address(0x6c62_0001, key.source);
    if policy != Listener::SOURCE_IP {
        state = mix_address(state, key.destination);
    }
    if policy == Listener::FIVE_TUPLE {
        state = mix(state, u32::from(key.source_port) << 16 | u32::from(key.destination_port));
    }
    if policy == Listener::FIVE_TUPLE || policy == Listener::THREE_TUPLE {
        state = mix(state, u32::from(key.protocol));
    }
    finish(state)
}

/// Folds the words of an address into the state.
#[inline(always)]
pub fn mix_address<A: Address>(state: u32, address: A) -> u32 {
    let [a, b, c, d] = address.words();
    let state = mix(state, a);
    if A::VERSION == 4 { state } else { mix(mix(mix(state, b), c), d) }
}

/// One round of MurmurHash3 x86_32 (Appleby, public domain): cheap on 32-bit words and good enough here, since
/// its result only spreads load.
#[inline(always)]
pub const fn mix(state: u32, word: u32) -> u32 {
    let word = word.wrapping_mul(0xcc9e_2d51).rotate_left(15).wrapping_mul(0x1b87_3593);
    (state ^ word).rotate_left(13).wrapping_mul(5).wrapping_add(0xe654_6b64)
}

/// MurmurHash3's finaliser: every input bit reaches every output bit.
#[inline(always)]
pub const fn finish(state: u32) -> u32 {
    let state = (state ^ (state >> 16)).wrapping_mul(0x85eb_ca6b);
    let state = (state ^ (state >> 13)).wrapping_mul(0xc2b2_ae35);
    state ^ (state >> 16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Addr4;

    fn key(client: u8, port: u16) -> FlowKey<Addr4> {
        FlowKey {
            source: Addr4 { bytes: [192, 0, 2, client] },
            destination: Addr4 { bytes: [10, 0, 1, 100] },
            source_port: port,
            destination_port: 80,
            protocol: 6,
            _pad: [0; 3],
        }
    }

    #[test]
    fn a_policy_looks_only_at_its_own_fields() {
        for policy in [Listener::SOURCE_IP, Listener::TWO_TUPLE, Listener::THREE_TUPLE] {
            assert_eq!(policy_hash(&key(1, 1000), policy), policy_hash(&key(1, 2000), policy));
            assert_ne!(policy_hash(&key(1, 1000), policy), policy_hash(&key(2, 1000), policy));
        }
        assert_ne!(
            policy_hash(&key(1, 1000), Listener::FIVE_TUPLE),
            policy_hash(&key(1, 2000), Listener::FIVE_TUPLE)
        );
        let udp = FlowKey { protocol: 17, ..key(1, 1000) };
        assert_eq!(policy_hash(&udp, Listener::TWO_TUPLE), policy_hash(&key(1, 1000), Listener::TWO_TUPLE));
        assert_ne!(
            policy_hash(&udp, Listener::THREE_TUPLE),
            policy_hash(&key(1, 1000), Listener::THREE_TUPLE)
        );
    }

    #[test]
    fn consecutive_ports_spread_evenly() {
        const FLOWS: u32 = 60_000;
        let mut thirds = [0u32; 3];
        for port in 0..FLOWS {
            let slot = maglev_slot(&key(1, port as u16), Listener::FIVE_TUPLE);
            thirds[(slot as usize * 3) / MAGLEV_SIZE] += 1;
        }
        for third in thirds {
            assert!(third.abs_diff(FLOWS / 3) < FLOWS / 100, "{thirds:?}");
        }
    }
}
