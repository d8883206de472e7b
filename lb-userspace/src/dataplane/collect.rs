//! Ends flows that have idled out, and counts those that live. The packet path never looks at the age of a
//! flow; this walk does, in batches, while packets go on.

mod scrub;
mod verdict;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hash;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use aya::{Ebpf, Pod};
use lb_common::{Addr4, Addr6, Address, Flow, FlowKey, HalfOpen};

use self::scrub::Scrub;
use self::verdict::Verdict;
use super::cached::CachedFlows;
use super::clock::{Clock, Tick};
use super::flow_tables::FlowTables;
use super::sys::{self, Batch, Cursor};

/// Flows that one walk resets at most; the others are a later walk's.
const RESETS: usize = 1000;

/// How long flows may idle.
#[derive(Clone, Debug)]
pub struct Limits {
    /// By listener id.
    pub listeners: BTreeMap<u32, IdleTimeouts>,
    /// Listeners whose established TCP flows are reset when they idle out.
    pub reset_on_idle: BTreeSet<u32>,
    /// Backends whose flows end now: offline, or drained for long enough. UDP flows are removed, TCP flows are marked
    /// for the program to turn their next packet into a RST, and removed when they fall silent.
    pub cut: BTreeSet<u32>,
    /// Flows that a walk resets at most.
    pub resets: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            listeners: BTreeMap::new(),
            reset_on_idle: BTreeSet::new(),
            cut: BTreeSet::new(),
            resets: RESETS,
        }
    }
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
    /// Whether the program may keep copies of flows that are no longer true: flows were marked whose next packets it turns
    /// into RSTs, or ended in the midst of their packets. Only while the walk is under way.
    pub outdates_copies: bool,
    /// Flows that idled out and are to be reset: source and destination of a packet to each of their ends. What an
    /// end sends back, the program turns into a RST.
    pub resets: Vec<(SocketAddr, SocketAddr)>,
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

/// Holds the flows of a data plane.
#[derive(Debug)]
pub struct Collector {
    v4: Collected<Addr4>,
    v6: Collected<Addr6>,
    clock: Clock,
    cached: CachedFlows,
}

impl Collector {
    pub(super) fn take(ebpf: &mut Ebpf, clock: Clock, cached: CachedFlows) -> Result<Self> {
        Ok(Self { v4: Collected::take(ebpf)?, v6: Collected::take(ebpf)?, clock, cached })
    }

    /// Flows of a family that there is room for, half-open ones apart.
    pub(super) fn room(&self) -> Result<u32> {
        self.v4.tables.room()
    }

    /// Walks over all flows once.
    ///
    /// # Errors
    ///
    /// If a map cannot be read.
    pub fn sweep(&self, limits: &Limits) -> Result<Census> {
        let now = self.clock.now()?;
        let mut census = Census { began: Some(Instant::now()), ..Census::default() };
        self.v4.sweep(limits, now, &self.cached, &mut census)?;
        self.v6.sweep(limits, now, &self.cached, &mut census)?;
        Ok(census)
    }

    /// Has the program look at the flows themselves again.
    ///
    /// # Errors
    ///
    /// If BPF_PROG_TEST_RUN fails.
    pub fn forget_copies(&self) -> Result<()> {
        self.cached.forget()
    }
}

/// The flows of a family.
#[derive(Debug)]
struct Collected<A> {
    tables: FlowTables<A>,
    scrub: Mutex<Scrub<A>>,
}

impl<A> Collected<A>
where
    A: Address + Into<IpAddr> + Pod + Eq + Hash,
    FlowKey<A>: Pod,
    Flow<A>: Pod,
    HalfOpen<A>: Pod,
{
    fn take(ebpf: &mut Ebpf) -> Result<Self> {
        Ok(Self { tables: FlowTables::take(ebpf)?, scrub: Mutex::default() })
    }

    fn sweep(&self, limits: &Limits, now: Tick, cached: &CachedFlows, census: &mut Census) -> Result<()> {
        let mut walk = Walk { tables: &self.tables, limits, now, cached, census };
        // In this order, a flow that is promoted meanwhile is counted twice rather than not at all.
        walk.half_open().with_context(|| format!("cannot walk over half_open_v{}", A::VERSION))?;
        walk.promoted().with_context(|| format!("cannot walk over connections_v{}", A::VERSION))?;
        // Whoever panicked while holding it has left suspicions that a later step looks at again.
        let mut scrub = self.scrub.lock().unwrap_or_else(PoisonError::into_inner);
        scrub.step(&self.tables).with_context(|| format!("cannot walk over answers_v{}", A::VERSION))
    }
}

/// A walk over the flows of a family.
struct Walk<'a, A> {
    tables: &'a FlowTables<A>,
    limits: &'a Limits,
    now: Tick,
    cached: &'a CachedFlows,
    census: &'a mut Census,
}

impl<A> Walk<'_, A>
where
    A: Address + Into<IpAddr> + Pod + Eq,
    FlowKey<A>: Pod,
    Flow<A>: Pod,
    HalfOpen<A>: Pod,
{
    /// Over those that have not been promoted. They have just been read when they are judged.
    fn half_open(&mut self) -> Result<()> {
        for (slot, found) in self.tables.half_open().iter() {
            let HalfOpen { key, flow, .. } = &found;
            if verdict::is_half_open_over(key, flow, self.now, self.limits) {
                if self.tables.end_half_open(slot, &found)? {
                    self.census.count_end(key, flow, self.now);
                }
            } else {
                self.census.count(key, flow);
            }
        }
        self.forget_outdated()
    }

    /// Over the others.
    fn promoted(&mut self) -> Result<()> {
        let (mut batch, mut cursor) = (Batch::<FlowKey<A>, Flow<A>>::new(), Cursor::default());
        while let Some(flows) = batch.read_next(self.tables.connections(), &mut cursor)? {
            for (key, flow) in flows {
                let verdict = verdict::judge(&key, &flow, self.now, self.limits);
                if verdict == Verdict::Lives || self.decide(&key)? {
                    self.census.count(&key, &flow);
                }
            }
            self.forget_outdated()?;
        }
        Ok(())
    }

    /// Judges a promoted flow once more and does what the verdict says; whether it lives. The second look makes the window small in
    /// which a packet that arrives just now loses its flow.
    fn decide(&mut self, key: &FlowKey<A>) -> Result<bool> {
        let Some(flow) = sys::lookup::<_, Flow<A>>(self.tables.connections(), key)? else {
            return Ok(false);
        };
        match verdict::judge(key, &flow, self.now, self.limits) {
            Verdict::Lives => {}
            Verdict::Over => {
                if let Some(ended) = self.tables.end(key)? {
                    self.census.count_end(key, &ended, self.now);
                }
                return Ok(false);
            }
            Verdict::Reset if self.census.resets.len() >= 2 * self.limits.resets => {}
            Verdict::Reset => {
                self.mark(key, &flow, Flow::<A>::CUT | Flow::<A>::IDLE)?;
                self.census.resets.extend(ends(key, &flow).into_iter().flatten());
            }
            Verdict::Cut => self.mark(key, &flow, Flow::<A>::CUT)?,
        }
        Ok(true)
    }

    /// Has the program turn the next packet of a flow into a RST. From now on silence ends the flow.
    fn mark(&mut self, key: &FlowKey<A>, flow: &Flow<A>, marks: u8) -> Result<()> {
        let marked = Flow {
            flags: flow.flags | marks,
            seen_to_backend: flow.seen_to_backend | Flow::<A>::RST,
            seen_to_client: flow.seen_to_client | Flow::<A>::RST,
            last_seen: self.now.ticks(),
            ..*flow
        };
        sys::replace(self.tables.connections(), key, &marked)?;
        self.census.outdates_copies = true;
        Ok(())
    }

    /// Has the program forget its copies of flows if this walk has made any untrue.
    fn forget_outdated(&mut self) -> Result<()> {
        if std::mem::take(&mut self.census.outdates_copies) { self.cached.forget() } else { Ok(()) }
    }
}

impl Census {
    /// A flow that lives.
    fn count<A: Address + Into<IpAddr>>(&mut self, key: &FlowKey<A>, flow: &Flow<A>) {
        *self.by_listener.entry(flow.listener).or_default() += 1;
        *self.by_backend.entry(flow.backend).or_default() += 1;
        if flow.source != key.source {
            let used = SnatUse {
                backend: flow.backend,
                destination_port: flow.destination_port,
                protocol: key.protocol,
                address: flow.source.into(),
            };
            *self.snat_ports.entry(used).or_default() += 1;
        }
    }

    /// One that this walk has ended.
    fn count_end<A>(&mut self, key: &FlowKey<A>, flow: &Flow<A>, now: Tick) {
        self.ended += 1;
        // Nearly every flow that ends has been idle for longer than any copy of it holds. A packet may have come since.
        self.outdates_copies |= now.since(flow.last_seen).as_secs() <= u64::from(flow.copy_s) + 1;
        if flow.is_half_open(key.protocol) && flow.seen_to_client == 0 {
            *self.unanswered.entry(flow.backend).or_default() += 1;
        }
    }
}

/// Source and destination of a packet to each end of a flow. None to the backend without translation: then the destination is this
/// host.
fn ends<A: Address + Into<IpAddr>>(
    key: &FlowKey<A>,
    flow: &Flow<A>,
) -> [Option<(SocketAddr, SocketAddr)>; 2] {
    let at = |address: A, port| SocketAddr::new(address.into(), port);
    let to_backend = (at(flow.source, flow.source_port), at(flow.destination, flow.destination_port));
    let to_client = (at(key.destination, key.destination_port), at(key.source, key.source_port));
    [(flow.destination != key.destination).then_some(to_backend), Some(to_client)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_common::PROTO_TCP;

    fn address(last: u8) -> Addr4 {
        Addr4 { bytes: [192, 0, 2, last] }
    }

    /// A flow from 192.0.2.1:1000 to the VIP 192.0.2.2:80, whose backend is known by this address.
    fn flow(backend: u8, snat: u8) -> (FlowKey<Addr4>, Flow<Addr4>) {
        let key = FlowKey {
            source: address(1),
            destination: address(2),
            source_port: 1000,
            destination_port: 80,
            protocol: PROTO_TCP,
            ..FlowKey::default()
        };
        let (source, destination) = (address(snat), address(backend));
        let flow = Flow { source, destination, source_port: 2000, destination_port: 8080, ..Flow::default() };
        (key, flow)
    }

    #[test]
    fn both_ends_of_a_flow_are_asked_unless_the_backend_has_the_vip() {
        let told = |backend| {
            let (key, flow) = flow(backend, 3);
            ends(&key, &flow).map(|end| end.map(|(from, to)| format!("{from} > {to}")))
        };
        let to_client = Some("192.0.2.2:80 > 192.0.2.1:1000".to_owned());
        assert_eq!(told(4), [Some("192.0.2.3:2000 > 192.0.2.4:8080".to_owned()), to_client.clone()]);
        assert_eq!(told(2), [None, to_client]);
    }

    #[test]
    fn the_census_tells_snat_ports_and_unanswered_flows() {
        let mut census = Census::default();
        for snat in [1, 3, 3] {
            let (key, flow) = flow(4, snat);
            census.count(&key, &flow);
        }
        assert_eq!((census.by_listener[&0], census.by_backend[&0]), (3, 3));
        assert_eq!(census.snat_ports.values().copied().collect::<Vec<_>>(), [2]);
        let (key, silent) = flow(4, 3);
        let now = Tick::new(6000, 1000);
        census.count_end(&key, &silent, now);
        census.count_end(&key, &Flow { seen_to_client: Flow::<Addr4>::SYN, ..silent }, now);
        census.count_end(&key, &Flow { seen_to_backend: Flow::<Addr4>::ESTABLISHED, ..silent }, now);
        assert_eq!((census.ended, census.unanswered[&0], census.outdates_copies), (3, 1, false));
        census.count_end(&key, &Flow { copy_s: 4, last_seen: 1000, ..silent }, now);
        assert!(census.outdates_copies, "a copy of it may be in use");
    }
}
