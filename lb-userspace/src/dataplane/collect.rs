//! Ends flows that have idled out, and counts those that live. The packet path never looks at the age of a
//! flow; this walk does, in batches, while packets go on.

mod verdict;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use aya::Pod;
use aya::maps::MapData;
use lb_common::flow::is_half_open;
use lb_common::{Addr4, Addr6, Address, Flow, FlowKey};

use self::verdict::Verdict;
use super::cached::CachedFlows;
use super::clock::{Clock, Tick};
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

/// Holds the connection maps of a data plane.
#[derive(Debug)]
pub struct Collector {
    v4: MapData,
    v6: MapData,
    clock: Clock,
    cached: CachedFlows,
}

impl Collector {
    pub(super) const fn new(v4: MapData, v6: MapData, clock: Clock, cached: CachedFlows) -> Self {
        Self { v4, v6, clock, cached }
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
            .run(&mut census, &self.cached)
            .context("cannot walk over connections_v4")?;
        Walk::<Addr6>::new(&self.v6, limits, now)
            .run(&mut census, &self.cached)
            .context("cannot walk over connections_v6")?;
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

    fn run(mut self, census: &mut Census, cached: &CachedFlows) -> Result<()> {
        let mut cursor = Cursor::default();
        let (map, now, limits) = (self.map, self.now, self.limits);
        while let Some(halves) = self.batch.read_next(map, &mut cursor)? {
            for (key, half) in halves {
                let is_to_backend = half.direction == Flow::<A>::TO_BACKEND;
                let fate = match verdict::is_noticed(&key, &half, now, limits) {
                    true => Found::read(map, &key)?.decide(map, now, limits, census)?,
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
            if std::mem::take(&mut census.outdates_copies) {
                cached.forget()?;
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

/// A flow that was looked at again. The second look makes the window small in which a packet that arrives just now
/// loses its flow.
enum Found<A> {
    /// Both halves, with their keys.
    Whole { to_backend: (FlowKey<A>, Flow<A>), to_client: (FlowKey<A>, Flow<A>) },
    /// A half whose other half is missing.
    Orphan(FlowKey<A>, Flow<A>),
    /// Nothing any more.
    Gone,
}

impl<A> Found<A>
where
    A: Address + Into<IpAddr>,
    FlowKey<A>: Pod + PartialEq,
    Flow<A>: Pod,
{
    fn read(map: BorrowedFd<'_>, key: &FlowKey<A>) -> Result<Self> {
        let Some(half) = sys::lookup::<_, Flow<A>>(map, key)? else { return Ok(Self::Gone) };
        let other_key = half.other_half(key.protocol);
        let other = sys::lookup::<_, Flow<A>>(map, &other_key)?;
        Ok(match other.filter(|other| other.other_half(key.protocol) == *key) {
            None => Self::Orphan(*key, half),
            Some(other) if half.direction == Flow::<A>::TO_BACKEND => {
                Self::Whole { to_backend: (*key, half), to_client: (other_key, other) }
            }
            Some(other) => Self::Whole { to_backend: (other_key, other), to_client: (*key, half) },
        })
    }

    /// Judges the flow and does what the verdict says.
    fn decide(self, map: BorrowedFd<'_>, now: Tick, limits: &Limits, census: &mut Census) -> Result<Fate> {
        let ((key, there), (back_key, back)) = match self {
            Self::Gone => return Ok(Fate::Over { unanswered: false }),
            Self::Orphan(_, half) if now.since(half.last_seen) < verdict::ORPHAN => return Ok(Fate::Lives),
            Self::Orphan(key, _) => {
                sys::delete(map, &key)?;
                return Ok(Fate::Over { unanswered: false });
            }
            Self::Whole { to_backend, to_client } => (to_backend, to_client),
        };
        match verdict::judge(&key, &there, &back, now, limits) {
            Verdict::Lives => Ok(Fate::Lives),
            Verdict::Over => {
                // The half for the answers claims the SNAT port: it goes last, so that nobody gets the port while
                // the other half still sends from it.
                let there = sys::take(map, &key)?.unwrap_or(there);
                let back = sys::take(map, &back_key)?.unwrap_or(back);
                // Nearly every flow that ends has been idle for longer than any copy of it holds. A packet may have come since.
                let may_be_copied =
                    |half: &Flow<A>| now.since(half.last_seen).as_secs() <= u64::from(half.copy_s) + 1;
                census.outdates_copies |= may_be_copied(&there) || may_be_copied(&back);
                let unanswered = is_half_open(key.protocol, there.seen) && back.seen == 0;
                Ok(Fate::Over { unanswered })
            }
            Verdict::Reset if census.resets.len() >= 2 * limits.resets => Ok(Fate::Lives),
            verdict => {
                let is_idle = verdict == Verdict::Reset;
                let marks = Flow::<A>::CUT | if is_idle { Flow::<A>::IDLE } else { 0 };
                for (key, half) in [(&key, &there), (&back_key, &back)] {
                    mark(map, key, half, marks, now)?;
                }
                census.outdates_copies = true;
                if is_idle {
                    census.resets.extend(ends(&key, &there));
                    census.resets.extend(ends(&back_key, &back));
                }
                Ok(Fate::Lives)
            }
        }
    }
}

/// Has the program turn the next packet of this half into a RST. From now on silence ends the flow.
fn mark<A: Address>(map: BorrowedFd<'_>, key: &FlowKey<A>, half: &Flow<A>, marks: u8, now: Tick) -> Result<()>
where
    FlowKey<A>: Pod,
    Flow<A>: Pod,
{
    let (flags, seen) = (half.flags | marks, half.seen | Flow::<A>::RST);
    sys::replace(map, key, &Flow { flags, seen, last_seen: now.ticks(), ..*half })?;
    Ok(())
}

/// The addresses of a packet to the end that this half leads to. None without translation: then the destination is this
/// host.
fn ends<A: Address + Into<IpAddr>>(key: &FlowKey<A>, half: &Flow<A>) -> Option<(SocketAddr, SocketAddr)> {
    let source = SocketAddr::new(half.source.into(), half.source_port);
    let destination = SocketAddr::new(half.destination.into(), half.destination_port);
    let is_for_this_host = half.direction == Flow::<A>::TO_BACKEND && half.destination == key.destination;
    (!is_for_this_host).then_some((source, destination))
}
