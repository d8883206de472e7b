//! Whether a flow goes on: a pure function of what its halves show and of the limits.

use std::time::Duration;

use lb_common::flow::{is_closing, is_half_open};
use lb_common::{Address, Flow, FlowKey, PROTO_TCP};

use super::Limits;
use crate::dataplane::clock::Tick;

/// A TCP flow without the client's first ACK ends after this time.
const HALF_OPEN: Duration = Duration::from_secs(lb_common::HALF_OPEN_S as u64);

/// A TCP flow that both sides have closed, or that was cut, ends after this time.
const CLOSING: Duration = Duration::from_secs(10);

/// Half a flow whose other half is missing ends after this time: it may be in the making.
pub(super) const ORPHAN: Duration = Duration::from_secs(5);

/// What is to become of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It goes on.
    Lives,
    /// It has ended.
    Over,
    /// Its next packet is to be turned into a RST: its backend was taken from it.
    Cut,
    /// The same, and both sides are to be asked for that packet: it has idled out.
    Reset,
}

/// Whether one half alone gives a reason to look at the whole flow.
pub(super) fn is_noticed<A: Address>(key: &FlowKey<A>, half: &Flow<A>, now: Tick, limits: &Limits) -> bool {
    let closed = half.seen & (Flow::<A>::FIN | Flow::<A>::RST) != 0;
    let half_open = half.direction == Flow::<A>::TO_BACKEND && is_half_open(key.protocol, half.seen);
    let patience = match () {
        () if is_marked(half) => CLOSING,
        () if limits.cut.contains(&half.backend) => return true,
        () if half_open => HALF_OPEN,
        () if closed => CLOSING,
        () => idle_timeout(key, half, limits).min(if half.created == half.last_seen {
            ORPHAN
        } else {
            Duration::MAX
        }),
    };
    now.since(half.last_seen) >= patience
}

/// What is to become of a whole flow.
pub(super) fn judge<A: Address>(
    key: &FlowKey<A>,
    to_backend: &Flow<A>,
    to_client: &Flow<A>,
    now: Tick,
    limits: &Limits,
) -> Verdict {
    // A packet may have passed just after `last_seen` was written: no flow ends before its time.
    let at_least =
        |half: &Flow<A>, lag: u8| now.since(half.last_seen).saturating_sub(Duration::from_secs(lag.into()));
    let idle = at_least(to_backend, to_backend.lag_s()).min(at_least(to_client, to_client.lag_s()));
    // What closes a connection is written down at once, whatever its other half still sends.
    let closed_for = at_least(to_backend, 1).min(at_least(to_client, 1));
    let over = |is_over| if is_over { Verdict::Over } else { Verdict::Lives };
    let is_cut = limits.cut.contains(&to_backend.backend);
    match () {
        () if is_cut && key.protocol != PROTO_TCP => Verdict::Over,
        () if is_cut && !(is_marked(to_backend) && is_marked(to_client)) => Verdict::Cut,
        () if is_marked(to_backend) || is_marked(to_client) => over(closed_for >= CLOSING),
        () if is_half_open(key.protocol, to_backend.seen) => over(at_least(to_backend, 1) >= HALF_OPEN),
        () if is_closing(to_backend.seen, to_client.seen) => over(closed_for >= CLOSING),
        () if idle < idle_timeout(key, to_backend, limits) => Verdict::Lives,
        () if key.protocol == PROTO_TCP && limits.reset_on_idle.contains(&to_backend.listener) => {
            Verdict::Reset
        }
        () => Verdict::Over,
    }
}

/// Whether the controller has ended it.
const fn is_marked<A>(half: &Flow<A>) -> bool {
    half.flags & Flow::<A>::CUT != 0
}

fn idle_timeout<A>(key: &FlowKey<A>, half: &Flow<A>, limits: &Limits) -> Duration {
    let timeouts = limits.listeners.get(&half.listener).copied().unwrap_or_default();
    if key.protocol == PROTO_TCP { timeouts.tcp } else { timeouts.udp }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use lb_common::{Addr4, PROTO_UDP};

    use super::*;

    const RATE: u32 = 250;
    const NOW: u32 = 100_000_000;
    const COPY_S: u8 = 4;
    const SYN: u8 = Flow::<Addr4>::SYN;
    const ESTABLISHED: u8 = Flow::<Addr4>::SYN | Flow::<Addr4>::ESTABLISHED;
    const FIN: u8 = ESTABLISHED | Flow::<Addr4>::FIN;
    const RST: u8 = ESTABLISHED | Flow::<Addr4>::RST;

    fn key(protocol: u8) -> FlowKey<Addr4> {
        FlowKey { protocol, ..FlowKey::default() }
    }

    /// A half that was made long ago and saw its last packet some seconds ago.
    fn half(direction: u8, seen: u8, idle_s: u32) -> Flow<Addr4> {
        let half = Flow { direction, seen, copy_s: COPY_S, ..Flow::default() };
        // The packet came as late after `last_seen` was written as it could.
        let last_seen = NOW - (idle_s + idle_s.min(1) * u32::from(half.lag_s())) * RATE;
        Flow { last_seen, created: last_seen - 1000 * RATE, ..half }
    }

    /// Whether a flow is over, and whether the walk would have looked at it, from either half.
    fn verdict(protocol: u8, (seen, idle_s): (u8, u32), (seen_back, idle_back_s): (u8, u32)) -> bool {
        let (key, limits, now) = (key(protocol), Limits::default(), Tick::new(NOW, RATE));
        let there = half(Flow::<Addr4>::TO_BACKEND, seen, idle_s);
        let back = half(Flow::<Addr4>::TO_CLIENT, seen_back, idle_back_s);
        judged(&key, &there, &back, now, &limits) == Verdict::Over
    }

    /// The verdict; the walk must look at any flow that does not simply go on.
    fn judged(
        key: &FlowKey<Addr4>,
        there: &Flow<Addr4>,
        back: &Flow<Addr4>,
        now: Tick,
        limits: &Limits,
    ) -> Verdict {
        let verdict = judge(key, there, back, now, limits);
        let is_noticed = is_noticed(key, there, now, limits) || is_noticed(key, back, now, limits);
        assert!(is_noticed || verdict == Verdict::Lives, "{verdict:?} must be noticed");
        verdict
    }

    #[test]
    fn half_open_flows_end_after_five_seconds() {
        assert!(!verdict(PROTO_TCP, (SYN, 4), (SYN, 4)));
        assert!(
            verdict(PROTO_TCP, (SYN, 5), (SYN, 0)),
            "a backend that repeats its SYN-ACK keeps nothing alive"
        );
    }

    #[test]
    fn established_flows_idle_out_by_the_younger_half() {
        assert!(!verdict(PROTO_TCP, (ESTABLISHED, 359), (ESTABLISHED, 359)));
        assert!(verdict(PROTO_TCP, (ESTABLISHED, 360), (ESTABLISHED, 360)));
        assert!(!verdict(PROTO_TCP, (ESTABLISHED, 5000), (ESTABLISHED, 1)), "a long download");
        assert!(!verdict(PROTO_UDP, (ESTABLISHED, 119), (0, 119)));
        assert!(verdict(PROTO_UDP, (ESTABLISHED, 120), (0, 500)));
    }

    #[test]
    fn a_flow_may_have_gone_on_by_its_copy() {
        let (limits, now, key) = (Limits::default(), Tick::new(NOW, RATE), key(PROTO_TCP));
        let verdict = |copy_s, idle_s| {
            let last_seen = NOW - idle_s * RATE;
            let there = Flow { seen: ESTABLISHED, copy_s, last_seen, ..Flow::default() };
            let back = Flow { direction: Flow::<Addr4>::TO_CLIENT, ..there };
            judged(&key, &there, &back, now, &limits)
        };
        assert_eq!((verdict(4, 363), verdict(4, 364)), (Verdict::Lives, Verdict::Over));
        assert_eq!(
            (verdict(0, 360), verdict(0, 361)),
            (Verdict::Lives, Verdict::Over),
            "no copies, a tick a second"
        );
    }

    #[test]
    fn closed_flows_end_after_ten_seconds() {
        assert!(!verdict(PROTO_TCP, (FIN, 9), (FIN, 9)));
        assert!(verdict(PROTO_TCP, (FIN, 10), (FIN, 10)));
        assert!(!verdict(PROTO_TCP, (FIN, 10), (ESTABLISHED, 10)), "half closed is not closed");
        assert!(verdict(PROTO_TCP, (ESTABLISHED, 10), (RST, 10)));
        assert!(
            !verdict(PROTO_TCP, (ESTABLISHED, 0), (RST, 30)),
            "a forged RST does not end a flow that goes on"
        );
    }

    #[test]
    fn flows_of_a_cut_backend_are_cut_once_and_end_when_they_fall_silent() {
        let limits = Limits { cut: BTreeSet::from([0]), ..Limits::default() };
        let now = Tick::new(NOW, RATE);
        let there = half(Flow::<Addr4>::TO_BACKEND, ESTABLISHED, 0);
        let back = half(Flow::<Addr4>::TO_CLIENT, ESTABLISHED, 0);
        assert_eq!(judged(&key(PROTO_UDP), &there, &back, now, &limits), Verdict::Over);
        assert_eq!(judged(&key(PROTO_TCP), &there, &back, now, &limits), Verdict::Cut);
        let cut = |flow: Flow<Addr4>| Flow { flags: Flow::<Addr4>::CUT, ..flow };
        assert_eq!(judged(&key(PROTO_TCP), &cut(there), &back, now, &limits), Verdict::Cut, "half of a mark");
        assert_eq!(judged(&key(PROTO_TCP), &cut(there), &cut(back), now, &limits), Verdict::Lives);
        for seen in [SYN, ESTABLISHED, RST] {
            // The program clears the RST bit when packets go on; the mark is what counts.
            // There are no copies of it.
            let silent = |direction, idle_s| {
                cut(Flow { last_seen: NOW - (idle_s + 1) * RATE, ..half(direction, seen, idle_s) })
            };
            let verdict = |idle_s| {
                let (there, back) =
                    (silent(Flow::<Addr4>::TO_BACKEND, idle_s), silent(Flow::<Addr4>::TO_CLIENT, idle_s));
                judged(&key(PROTO_TCP), &there, &back, now, &limits)
            };
            assert_eq!((verdict(9), verdict(10)), (Verdict::Lives, Verdict::Over), "seen {seen:#b}");
        }
    }

    #[test]
    fn established_flows_are_reset_on_idle_where_the_listener_says_so() {
        let limits = Limits { reset_on_idle: BTreeSet::from([0]), ..Limits::default() };
        let now = Tick::new(NOW, RATE);
        let verdict = |protocol, seen, idle_s| {
            let there = half(Flow::<Addr4>::TO_BACKEND, seen, idle_s);
            let back = half(Flow::<Addr4>::TO_CLIENT, seen, idle_s);
            judged(&key(protocol), &there, &back, now, &limits)
        };
        assert_eq!(verdict(PROTO_TCP, ESTABLISHED, 359), Verdict::Lives);
        assert_eq!(verdict(PROTO_TCP, ESTABLISHED, 360), Verdict::Reset);
        assert_eq!(verdict(PROTO_TCP, SYN, 360), Verdict::Over, "nobody to tell");
        assert_eq!(verdict(PROTO_TCP, FIN, 360), Verdict::Over, "both sides know");
        assert_eq!(verdict(PROTO_UDP, ESTABLISHED, 360), Verdict::Over);
    }
}
