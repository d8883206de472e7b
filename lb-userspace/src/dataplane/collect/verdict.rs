//! Whether a flow goes on: a pure function of what it shows and of the limits.

use std::time::Duration;

use lb_common::{Flow, FlowKey, PROTO_TCP};

use super::Limits;
use crate::dataplane::clock::Tick;

/// A TCP flow without the client's first ACK ends after this time.
const HALF_OPEN: Duration = Duration::from_secs(lb_common::HALF_OPEN_S as u64);

/// A TCP flow that both sides have closed, or that was cut, ends after this time.
const CLOSING: Duration = Duration::from_secs(10);

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

/// What is to become of a flow.
pub(super) fn judge<A>(key: &FlowKey<A>, flow: &Flow<A>, now: Tick, limits: &Limits) -> Verdict {
    // A packet may have passed just after `last_seen` was written: no flow ends before its time.
    let idle = |lag: u8| now.since(flow.last_seen).saturating_sub(Duration::from_secs(lag.into()));
    // What opens or closes a connection is written down at once, whatever the other side still sends.
    let over = |patience| if idle(1) >= patience { Verdict::Over } else { Verdict::Lives };
    let is_cut = limits.cut.contains(&flow.backend);
    let is_marked = flow.flags & Flow::<A>::CUT != 0;
    match () {
        () if is_cut && key.protocol != PROTO_TCP => Verdict::Over,
        () if is_cut && !is_marked => Verdict::Cut,
        () if is_marked => over(CLOSING),
        () if flow.is_half_open(key.protocol) => over(HALF_OPEN),
        () if flow.is_closing() => over(CLOSING),
        () if idle(flow.lag_s()) < idle_timeout(key, flow, limits) => Verdict::Lives,
        () if key.protocol == PROTO_TCP && limits.reset_on_idle.contains(&flow.listener) => Verdict::Reset,
        () => Verdict::Over,
    }
}

/// Whether a flow that has not been promoted has ended. Nobody has proved that he is there to be told by a RST.
pub(super) fn is_half_open_over<A>(key: &FlowKey<A>, flow: &Flow<A>, now: Tick, limits: &Limits) -> bool {
    judge(key, flow, now, limits) != Verdict::Lives
}

fn idle_timeout<A>(key: &FlowKey<A>, flow: &Flow<A>, limits: &Limits) -> Duration {
    let timeouts = limits.listeners.get(&flow.listener).copied().unwrap_or_default();
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
    const PICKED_UP: u8 = Flow::<Addr4>::ESTABLISHED;
    const FIN: u8 = ESTABLISHED | Flow::<Addr4>::FIN;
    const RST: u8 = ESTABLISHED | Flow::<Addr4>::RST;

    fn key(protocol: u8) -> FlowKey<Addr4> {
        FlowKey { protocol, ..FlowKey::default() }
    }

    /// A flow that was made long ago, has shown this in each direction and saw its last packet some seconds ago.
    fn flow([seen_to_backend, seen_to_client]: [u8; 2], idle_s: u32) -> Flow<Addr4> {
        silent(Flow { seen_to_backend, seen_to_client, copy_s: COPY_S, ..Flow::default() }, idle_s)
    }

    /// The same flow, silent since some seconds. Its last packet came as late after `last_seen` was written as it could.
    fn silent(flow: Flow<Addr4>, idle_s: u32) -> Flow<Addr4> {
        let last_seen = NOW - (idle_s + idle_s.min(1) * u32::from(flow.lag_s())) * RATE;
        Flow { last_seen, created: last_seen - 1000 * RATE, ..flow }
    }

    fn judged(protocol: u8, flow: &Flow<Addr4>, limits: &Limits) -> Verdict {
        judge(&key(protocol), flow, Tick::new(NOW, RATE), limits)
    }

    fn is_over(protocol: u8, seen: [u8; 2], idle_s: u32) -> bool {
        judged(protocol, &flow(seen, idle_s), &Limits::default()) == Verdict::Over
    }

    #[test]
    fn half_open_flows_end_after_five_seconds() {
        for answer in [0, SYN, Flow::<Addr4>::RST] {
            assert!(
                !is_over(PROTO_TCP, [SYN, answer], 4) && is_over(PROTO_TCP, [SYN, answer], 5),
                "{answer:#b}"
            );
        }
    }

    #[test]
    fn flows_that_are_not_promoted_may_stand_until_they_idle_out() {
        assert!(!is_over(PROTO_TCP, [PICKED_UP, 0], 359) && is_over(PROTO_TCP, [PICKED_UP, 0], 360));
        assert!(!is_over(PROTO_UDP, [SYN, 0], 119) && is_over(PROTO_UDP, [SYN, 0], 120));
    }

    #[test]
    fn established_flows_idle_out() {
        assert!(!is_over(PROTO_TCP, [ESTABLISHED; 2], 359) && is_over(PROTO_TCP, [ESTABLISHED; 2], 360));
        assert!(!is_over(PROTO_UDP, [ESTABLISHED, 0], 119) && is_over(PROTO_UDP, [ESTABLISHED, 0], 120));
    }

    #[test]
    fn a_flow_may_have_gone_on_by_its_copy() {
        let verdict = |copy_s, idle_s: u32| {
            let last_seen = NOW - idle_s * RATE;
            let flow = Flow { copy_s, last_seen, ..flow([ESTABLISHED; 2], 0) };
            judged(PROTO_TCP, &flow, &Limits::default())
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
        assert!(!is_over(PROTO_TCP, [FIN; 2], 9) && is_over(PROTO_TCP, [FIN; 2], 10));
        assert!(!is_over(PROTO_TCP, [FIN, ESTABLISHED], 10), "half closed is not closed");
        // What ends it is written down at once.
        let reset =
            |idle_s: u32| Flow { last_seen: NOW - (idle_s + 1) * RATE, ..flow([ESTABLISHED, RST], 0) };
        let verdict = |idle_s| judged(PROTO_TCP, &reset(idle_s), &Limits::default());
        assert_eq!((verdict(9), verdict(10)), (Verdict::Lives, Verdict::Over));
        assert!(!is_over(PROTO_TCP, [ESTABLISHED, RST], 0), "a forged RST does not end a flow that goes on");
    }

    #[test]
    fn flows_of_a_cut_backend_are_cut_once_and_end_when_they_fall_silent() {
        let limits = Limits { cut: BTreeSet::from([0]), ..Limits::default() };
        let established = flow([ESTABLISHED; 2], 0);
        assert_eq!(judged(PROTO_UDP, &established, &limits), Verdict::Over);
        assert_eq!(judged(PROTO_TCP, &established, &limits), Verdict::Cut);
        let cut = |flow| Flow { flags: Flow::<Addr4>::CUT, ..flow };
        assert_eq!(judged(PROTO_TCP, &cut(established), &limits), Verdict::Lives);
        for seen in [SYN, ESTABLISHED, RST] {
            // The program clears the RST bit when packets go on; the mark is what counts.
            // There are no copies of it.
            let verdict = |idle_s| judged(PROTO_TCP, &silent(cut(flow([seen; 2], 0)), idle_s), &limits);
            assert_eq!((verdict(9), verdict(10)), (Verdict::Lives, Verdict::Over), "seen {seen:#b}");
        }
        assert_eq!(
            judged(PROTO_TCP, &silent(cut(established), 10), &Limits::default()),
            Verdict::Over,
            "its backend is there again"
        );
    }

    #[test]
    fn established_flows_are_reset_on_idle_where_the_listener_says_so() {
        let limits = Limits { reset_on_idle: BTreeSet::from([0]), ..Limits::default() };
        let verdict = |protocol, seen, idle_s| judged(protocol, &flow([seen; 2], idle_s), &limits);
        assert_eq!(verdict(PROTO_TCP, ESTABLISHED, 359), Verdict::Lives);
        assert_eq!(verdict(PROTO_TCP, ESTABLISHED, 360), Verdict::Reset);
        assert_eq!(verdict(PROTO_TCP, SYN, 360), Verdict::Over, "nobody to tell");
        assert_eq!(verdict(PROTO_TCP, FIN, 360), Verdict::Over, "both sides know");
        assert_eq!(verdict(PROTO_UDP, ESTABLISHED, 360), Verdict::Over);
    }

    #[test]
    fn what_is_not_promoted_ends_where_others_would_be_told() {
        let now = Tick::new(NOW, RATE);
        let is_over = |flow, limits: &Limits| is_half_open_over(&key(PROTO_TCP), &flow, now, limits);
        let cut = Limits { cut: BTreeSet::from([0]), ..Limits::default() };
        assert!(is_over(flow([SYN, SYN], 0), &cut) && !is_over(flow([SYN, SYN], 0), &Limits::default()));
        let reset = Limits { reset_on_idle: BTreeSet::from([0]), ..Limits::default() };
        assert!(is_over(flow([PICKED_UP, 0], 360), &reset) && !is_over(flow([PICKED_UP, 0], 359), &reset));
    }
}
