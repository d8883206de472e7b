//! Ends flows that have idled out, and counts those that live. The packet path never looks at the age of a
//! flow; this walk does, in batches, while packets go on.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use aya::Pod;
use aya::maps::MapData;
use lb_common::flow::{is_closing, is_half_open};
use lb_common::{Addr4, Addr6, Address, Flow, FlowKey, PROTO_TCP};

use super::clock::{Clock, Tick};
use super::sys::{self, Batch, Cursor};

/// A TCP flow without the client's first ACK ends after this time.
const HALF_OPEN: Duration = Duration::from_secs(5);

/// A TCP flow that both sides have closed ends after this time.
const CLOSING: Duration = Duration::from_secs(10);

/// Half a flow whose other half is missing ends after this time: it may be in the making.
const ORPHAN: Duration = Duration::from_secs(5);

/// How much older than the last packet `last_seen` may be: no flow ends before its time, and none this much later.
pub const GRAIN: Duration = Duration::from_millis(1000 / lb_common::SEEN_PER_SECOND as u64);

/// How long flows may idle.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    /// By listener id.
    pub listeners: BTreeMap<u32, IdleTimeouts>,
    /// Backends whose flows end now: offline, or drained for long enough.
    pub cut: BTreeSet<u32>,
}

/// Idle timeouts of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdleTimeouts {
    /// Of established TCP flows.
    pub tcp: Duration,
    /// Of UDP flows.
    pub udp: Duration,
}

impl Default for IdleTimeouts {
    /// The defaults of the configuration, for flows whose listener is gone.
    fn default() -> Self {
        Self { tcp: Duration::from_secs(360), udp: Duration::from_secs(120) }
    }
}

/// Live flows, as one walk found them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// When the walk began; `None` before the first. Of flows made later it may know nothing.
    pub began: Option<Instant>,
    /// By listener id.
    pub by_listener: BTreeMap<u32, u64>,
    /// By backend id.
    pub by_backend: BTreeMap<u32, u64>,
    /// SNAT ports in use.
    pub snat_ports: BTreeMap<SnatUse, u64>,
    /// Flows that this walk ended.
    pub ended: u64,
    /// Of those, the TCP flows whose SYN the backend never answered, by backend id.
    pub unanswered: BTreeMap<u32, u64>,
}

/// What SNAT ports are counted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SnatUse {
    /// Id of the backend that the flows go to.
    pub backend: u32,
    /// The port of the backend.
    pub destination_port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// The SNAT address.
    pub address: IpAddr,
}

/// Holds the connection maps of a data plane.
#[derive(Debug)]
pub struct Collector {
    v4: MapData,
    v6: MapData,
    clock: Clock,
}

impl Collector {
    pub(super) const fn new(v4: MapData, v6: MapData, clock: Clock) -> Self {
        Self { v4, v6, clock }
    }

    /// Walks over all flows once.
    ///
    /// # Errors
    ///
    /// If a map cannot be read.
    pub fn sweep(&self, limits: &Limits) -> Result<Census> {
        let now = self.clock.now()?;
        let mut census = Census { began: Some(Instant::now()), ..Census::default() };
        Walk::<Addr4>::new(&self.v4, limits, now)
            .run(&mut census)
            .context("cannot walk over connections_v4")?;
        Walk::<Addr6>::new(&self.v6, limits, now)
            .run(&mut census)
            .context("cannot walk over connections_v6")?;
        Ok(census)
    }
}

/// A walk over one connection map.
struct Walk<'a, A> {
    map: BorrowedFd<'a>,
    limits: &'a Limits,
    now: Tick,
    batch: Batch<FlowKey<A>, Flow<A>>,
}

impl<'a, A> Walk<'a, A>
where
    A: Address + Into<IpAddr>,
    FlowKey<A>: Pod + PartialEq,
    Flow<A>: Pod,
{
    fn new(map: &'a MapData, limits: &'a Limits, now: Tick) -> Self {
        Self { map: map.fd().as_fd(), limits, now, batch: Batch::new() }
    }

    fn run(mut self, census: &mut Census) -> Result<()> {
        let mut cursor = Cursor::default();
        let (map, now, limits) = (self.map, self.now, self.limits);
        while let Some(halves) = self.batch.read_next(map, &mut cursor)? {
            for (key, half) in halves {
                let is_to_backend = half.direction == Flow::<A>::TO_BACKEND;
                let fate = match may_be_over(&key, &half, now, limits) {
                    true => end_if_over(map, &key, now, limits)?,
                    false => Fate::Lives,
                };
                match fate {
                    Fate::Lives if is_to_backend => census.count(&key, &half),
                    Fate::Lives => {}
                    Fate::Over { unanswered } => {
                        census.ended += u64::from(is_to_backend);
                        *census.unanswered.entry(half.backend).or_default() += u64::from(unanswered);
                    }
                }
            }
        }
        Ok(())
    }
}

impl Census {
    fn count<A: Address + Into<IpAddr>>(&mut self, key: &FlowKey<A>, half: &Flow<A>) {
        *self.by_listener.entry(half.listener).or_default() += 1;
        *self.by_backend.entry(half.backend).or_default() += 1;
        if half.source != key.source {
            let used = SnatUse {
                backend: half.backend,
                destination_port: half.destination_port,
                protocol: key.protocol,
                address: half.source.into(),
            };
            *self.snat_ports.entry(used).or_default() += 1;
        }
    }
}

/// Whether one half alone gives a reason to look at the whole flow.
fn may_be_over<A: Address>(key: &FlowKey<A>, half: &Flow<A>, now: Tick, limits: &Limits) -> bool {
    let closed = half.seen & (Flow::<A>::FIN | Flow::<A>::RST) != 0;
    let half_open = half.direction == Flow::<A>::TO_BACKEND && is_half_open(key.protocol, half.seen);
    let patience = match () {
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

/// What becomes of a flow.
enum Fate {
    /// It goes on.
    Lives,
    /// It has been removed, if it was not gone already.
    Over {
        /// Whether it was a TCP flow whose SYN got neither an answer nor a refusal.
        unanswered: bool,
    },
}

/// Reads the flow again, both halves, and removes it if it is over. The second look makes the window small in
/// which a packet that arrives just now loses its flow.
fn end_if_over<A>(map: BorrowedFd<'_>, key: &FlowKey<A>, now: Tick, limits: &Limits) -> Result<Fate>
where
    A: Address,
    FlowKey<A>: Pod + PartialEq,
    Flow<A>: Pod,
{
    let Some(half) = sys::lookup::<_, Flow<A>>(map, key)? else {
        return Ok(Fate::Over { unanswered: false });
    };
    let other_key = half.other_half(key.protocol);
    let other = sys::lookup::<_, Flow<A>>(map, &other_key)?;
    let other = other.filter(|other| other.other_half(key.protocol) == *key);
    let is_over = match &other {
        Some(other) if half.direction == Flow::<A>::TO_BACKEND => is_over(key, &half, other, now, limits),
        Some(other) => is_over(key, other, &half, now, limits),
        None => now.since(half.last_seen) >= ORPHAN,
    };
    if !is_over {
        return Ok(Fate::Lives);
    }
    // The half for the answers claims the SNAT port: it goes last, so that nobody gets the port while the
    // other half still sends from it.
    let (first, last) =
        if half.direction == Flow::<A>::TO_BACKEND { (*key, other_key) } else { (other_key, *key) };
    if other.is_some() || first == *key {
        sys::delete(map, &first)?;
    }
    if other.is_some() || last == *key {
        sys::delete(map, &last)?;
    }
    let unanswered = other.is_some_and(|other| {
        let (there, back) =
            if half.direction == Flow::<A>::TO_BACKEND { (half, other) } else { (other, half) };
        is_half_open(key.protocol, there.seen) && back.seen == 0
    });
    Ok(Fate::Over { unanswered })
}

/// Whether a whole flow is over.
fn is_over<A: Address>(
    key: &FlowKey<A>,
    to_backend: &Flow<A>,
    to_client: &Flow<A>,
    now: Tick,
    limits: &Limits,
) -> bool {
    // A packet may have passed just after `last_seen` was written: no flow ends before its time.
    let at_least = |half: &Flow<A>| now.since(half.last_seen).saturating_sub(GRAIN);
    let idle = at_least(to_backend).min(at_least(to_client));
    match () {
        () if limits.cut.contains(&to_backend.backend) => true,
        () if is_half_open(key.protocol, to_backend.seen) => at_least(to_backend) >= HALF_OPEN,
        () if is_closing(to_backend.seen, to_client.seen) => idle >= CLOSING,
        () => idle >= idle_timeout(key, to_backend, limits),
    }
}

fn idle_timeout<A>(key: &FlowKey<A>, half: &Flow<A>, limits: &Limits) -> Duration {
    let timeouts = limits.listeners.get(&half.listener).copied().unwrap_or_default();
    if key.protocol == PROTO_TCP { timeouts.tcp } else { timeouts.udp }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_common::PROTO_UDP;

    const RATE: u32 = 250;
    const NOW: u32 = 100_000_000;
    const SYN: u8 = Flow::<Addr4>::SYN;
    const ESTABLISHED: u8 = Flow::<Addr4>::SYN | Flow::<Addr4>::ESTABLISHED;
    const FIN: u8 = ESTABLISHED | Flow::<Addr4>::FIN;
    const RST: u8 = ESTABLISHED | Flow::<Addr4>::RST;

    fn key(protocol: u8) -> FlowKey<Addr4> {
        FlowKey { protocol, ..FlowKey::default() }
    }

    /// A half that was made long ago and saw its last packet some seconds ago.
    fn half(direction: u8, seen: u8, idle_s: u32) -> Flow<Addr4> {
        // The packet came right after `last_seen` was written.
        let last_seen = NOW - idle_s * RATE - idle_s.min(1) * RATE.div_ceil(lb_common::SEEN_PER_SECOND);
        Flow { direction, seen, last_seen, created: last_seen - 1000 * RATE, ..Flow::default() }
    }

    /// Whether a flow is over, and whether the walk would have looked at it, from either half.
    fn verdict(protocol: u8, (seen, idle_s): (u8, u32), (seen_back, idle_back_s): (u8, u32)) -> bool {
        let (key, limits, now) = (key(protocol), Limits::default(), Tick::new(NOW, RATE));
        let there = half(Flow::<Addr4>::TO_BACKEND, seen, idle_s);
        let back = half(Flow::<Addr4>::TO_CLIENT, seen_back, idle_back_s);
        let is_over = is_over(&key, &there, &back, now, &limits);
        let is_noticed = may_be_over(&key, &there, now, &limits) || may_be_over(&key, &back, now, &limits);
        assert!(is_noticed || !is_over, "a flow that is over must be noticed");
        is_over
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
    fn flows_of_a_cut_backend_end_at_once() {
        let limits = Limits { cut: BTreeSet::from([0]), ..Limits::default() };
        let there = half(Flow::<Addr4>::TO_BACKEND, ESTABLISHED, 0);
        let back = half(Flow::<Addr4>::TO_CLIENT, ESTABLISHED, 0);
        let now = Tick::new(NOW, RATE);
        assert!(may_be_over(&key(PROTO_TCP), &there, now, &limits));
        assert!(is_over(&key(PROTO_TCP), &there, &back, now, &limits));
    }
}
