//! Part of a new flow: may this source open it, and may anybody now?

use aya_ebpf::btf_maps::lpm_trie::Key;
use lb_common::{Address, Features, Listener, RateWindow, Reason, SourceKey};

use crate::atomic;
use crate::clock::second;
use crate::features::uses;
use crate::maps::{NEW_FLOW_RATES, SOURCE_RULES};
use crate::stop::Stop;

/// Whether a source must not open flows through a listener. `key` is scratch memory.
#[inline(always)]
pub(crate) fn is_denied<A: Address>(source: A, listener: &Listener, key: &mut Key<SourceKey>) -> bool {
    if listener.flags & Listener::SOURCE_RULES == 0 || !uses(Features::SOURCE_RULES) {
        return false;
    }
    *key = Key::new(
        SourceKey::BITS_BEFORE_ADDRESS + 128,
        SourceKey { listener: listener.id, address: source.widen() },
    );
    match SOURCE_RULES.get(&*key) {
        Some(&verdict) => verdict == SourceKey::DENY,
        None => listener.flags & Listener::DENY_UNLISTED != 0,
    }
}

/// Counts a flow against the running second of its listener, and refuses it beyond the limit. Two CPUs that begin a second
/// at once may forget each other's first flow, which lets one more in.
#[inline(always)]
pub(crate) fn count(listener: &Listener) -> Result<(), Stop> {
    if listener.max_new_flows_per_s == 0 || !uses(Features::FLOW_LIMITS) {
        return Ok(());
    }
    let refused = Stop::drop(Reason::RateLimited, listener.id);
    let window = NEW_FLOW_RATES.get_ptr_mut(listener.id).ok_or(refused)?;
    let second = second();
    // SAFETY: both fields are aligned words of a map value that stays where it is.
    let before = unsafe {
        if (*window).second != second {
            *window = RateWindow { second, flows: 0 };
        }
        atomic::fetch_add(&raw mut (*window).flows, 1)
    };
    if before < u64::from(listener.max_new_flows_per_s) { Ok(()) } else { Err(refused) }
}

/// Whether [`count`] would refuse the next flow.
#[inline(always)]
pub(crate) fn is_over_limit(listener: &Listener) -> bool {
    let limit = u64::from(listener.max_new_flows_per_s);
    let window = NEW_FLOW_RATES.get(listener.id).copied().unwrap_or_default();
    limit != 0 && window.second == second() && window.flows >= limit
}
