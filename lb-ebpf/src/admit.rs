//! Part of a new flow: may this source open it, and may anybody now?

use aya_ebpf::btf_maps::lpm_trie::Key;
use lb_common::{Address, Listener, RateWindow, Reason, SourceKey};

use crate::atomic;
use crate::clock::second;
use crate::maps::{NEW_FLOW_RATES, SOURCE_RULES};

/// Says why a source must not open a flow through a listener. `key` is scratch memory.
#[inline(always)]
pub(crate) fn refusal<A: Address>(
    source: A,
    listener: &Listener,
    key: &mut Key<SourceKey>,
) -> Option<Reason> {
    if listener.flags & Listener::SOURCE_RULES != 0 && is_denied(source, listener, key) {
        return Some(Reason::SourceDenied);
    }
    if listener.max_new_flows_per_s != 0 && is_over_limit(listener) {
        return Some(Reason::RateLimited);
    }
    None
}

#[inline(always)]
fn is_denied<A: Address>(source: A, listener: &Listener, key: &mut Key<SourceKey>) -> bool {
    *key = Key::new(
        SourceKey::BITS_BEFORE_ADDRESS + 128,
        SourceKey { listener: listener.id, address: source.widen() },
    );
    match SOURCE_RULES.get(&*key) {
        Some(&verdict) => verdict == SourceKey::DENY,
        None => listener.flags & Listener::DENY_UNLISTED != 0,
    }
}

/// Counts a flow against the running second of its listener. Two CPUs that begin a second at once may forget each
/// other's first flow, which lets one more in.
#[inline(always)]
fn is_over_limit(listener: &Listener) -> bool {
    let Some(window) = NEW_FLOW_RATES.get_ptr_mut(listener.id) else { return true };
    let second = second();
    // SAFETY: both fields are aligned words of a map value that stays where it is.
    let before = unsafe {
        if (*window).second != second {
            *window = RateWindow { second, flows: 0 };
        }
        atomic::fetch_add(&raw mut (*window).flows, 1)
    };
    before >= u64::from(listener.max_new_flows_per_s)
}
