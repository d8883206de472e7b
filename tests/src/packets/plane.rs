//! A loaded data plane without the controller's half: kept from test to test, since loading costs more than most
//! tests, and opened for what only tests do to connection maps.

use std::mem::offset_of;
use std::net::{IpAddr, SocketAddr};
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, HashMap, Map, MapData, MapType, RingBuf};
use lb_common::{
    Addr4, Addr6, Address, Flow, FlowKey, FragmentKey, FragmentPorts, HeldFragment, MAX_COPY_S, PROTO_TCP,
    RateWindow,
};
use lb_userspace::dataplane::{Collector, Dataplane, LoadOptions};
use nix::unistd::geteuid;

use crate::flow_tables::FlowTables;
use crate::plane_maps::map_of;

/// One direction of a flow: the tuple that arrives and the one that leaves, each source first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Half {
    /// IP protocol number.
    pub protocol: u8,
    /// As it arrives.
    pub arrives: (SocketAddr, SocketAddr),
    /// As it leaves.
    pub leaves: (SocketAddr, SocketAddr),
    /// Whether it is the direction from the client.
    pub is_to_backend: bool,
}

/// A fragment that came before its first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Index of the interface it came in through.
    pub ingress: u32,
    /// The frame.
    pub frame: Vec<u8>,
}

/// The loaded object.
pub(super) struct Loaded {
    pub(super) dataplane: Dataplane,
    pub(super) collector: Collector,
    v4: FlowTables<Addr4>,
    v6: FlowTables<Addr6>,
    max_connections: u32,
    /// Whether a connection map has been filled: the program refuses new flows for a second after it had no room for one.
    was_filled: bool,
}

/// More than the second for which a full map is remembered, ticks being coarse.
const FULL_FOR: Duration = Duration::from_millis(1050);

/// Data planes that wait for the next test.
static IDLE: Mutex<Vec<Loaded>> = Mutex::new(Vec::new());

/// A loaded data plane on loan: without flows, listeners, sets or backends. Counters are where they are.
pub(super) struct Plane {
    /// `None` only while it is given back.
    loaded: Option<Loaded>,
}

impl Plane {
    /// Borrows one with room for this many flows.
    pub(super) fn borrow(max_connections: u32) -> Result<Self> {
        ensure!(
            geteuid().is_root(),
            "the packet tests load the XDP program into the kernel, which only root may do; found user id {}; \
             run them as root, e.g. `sudo -E cargo xtask test`",
            geteuid()
        );
        let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
        let fit = idle.iter().position(|loaded| loaded.max_connections == max_connections);
        let loaded = fit.map(|index| idle.swap_remove(index));
        drop(idle);
        let loaded = match loaded {
            Some(loaded) => loaded,
            None => Loaded::new(max_connections)?,
        };
        Ok(Self { loaded: Some(loaded) })
    }

    /// Keeps it for the next test. The caller has emptied all maps but those of connections.
    pub(super) fn give_back(&mut self) -> Result<()> {
        let Some(mut loaded) = self.loaded.take() else { return Ok(()) };
        if loaded.was_filled {
            // The next test has no time to wait until that is forgotten.
            return Ok(());
        }
        loaded.v4.clear()?;
        loaded.v6.clear()?;
        clear::<FragmentKey, FragmentPorts>(loaded.map("fragments")?)?;
        loaded.change_rates(|_| RateWindow::default())?;
        while loaded.held()?.is_some() {}
        loaded.dataplane.cached.forget()?;
        IDLE.lock().unwrap_or_else(PoisonError::into_inner).push(loaded);
        Ok(())
    }
}

impl Deref for Plane {
    type Target = Loaded;

    fn deref(&self) -> &Loaded {
        self.loaded.as_ref().expect("nobody uses a plane that was given back")
    }
}

impl DerefMut for Plane {
    fn deref_mut(&mut self) -> &mut Loaded {
        self.loaded.as_mut().expect("nobody uses a plane that was given back")
    }
}

impl Loaded {
    fn new(max_connections: u32) -> Result<Self> {
        let options = LoadOptions { max_connections, ..LoadOptions::default() };
        let mut dataplane = Dataplane::load(&options)?;
        let collector = dataplane.take_collector().context("the data plane has no collector")?;
        let (v4, v6) = (FlowTables::of(dataplane.ebpf())?, FlowTables::of(dataplane.ebpf())?);
        Ok(Self { dataplane, collector, v4, v6, max_connections, was_filled: false })
    }

    /// Makes everything that remembers a time older: by at least this time, ticks being coarse, and flows by as much more as
    /// the time of their last packet may be too early.
    pub(super) fn age(&mut self, time: Duration) -> Result<()> {
        self.dataplane.cached.forget()?;
        let rate = self.dataplane.maps.settings()?.ticks_per_second;
        let ticks = (time.as_millis() * u128::from(rate)).div_ceil(1000);
        let ticks = u32::try_from(ticks).context("too long a time")?;
        self.v4.change(|key, flow| older(key, flow, ticks, rate))?;
        self.v6.change(|key, flow| older(key, flow, ticks, rate))?;
        if self.was_filled {
            // The program keeps this time to itself, so it really passes.
            thread::sleep(FULL_FOR.min(time));
        }
        let seconds = time.as_secs() + 1;
        self.change_rates(|window| RateWindow { second: window.second.saturating_sub(seconds), ..window })
    }

    /// Makes every flow look as if no packet had looked at it for long. Copies are left as they are.
    pub(super) fn backdate(&mut self) -> Result<()> {
        self.v4.change(|_, flow| flow.last_seen = LONG_AGO)?;
        self.v6.change(|_, flow| flow.last_seen = LONG_AGO)
    }

    /// How many flows no packet of either direction has looked at since [`Self::backdate`].
    pub(super) fn backdated(&self) -> Result<usize> {
        Ok(backdated(&self.v4.flows()?) + backdated(&self.v6.flows()?))
    }

    /// How many flows that have not proved themselves each CPU has room for.
    pub(super) fn half_open_room(&self) -> Result<u32> {
        self.v4.half_open_room()
    }

    /// Into how many buckets the answers of each family fall: IPv4, IPv6.
    pub(super) const fn answer_buckets(&self) -> [u32; 2] {
        [self.v4.answer_buckets(), self.v6.answer_buckets()]
    }

    /// How many claims there are, on answers and on where half-open flows are.
    pub(super) fn claims(&self) -> Result<usize> {
        Ok(self.v4.claims()? + self.v6.claims()?)
    }

    /// Fills both connection maps up to where so many flows more can be promoted.
    pub(super) fn fill(&mut self, flows_more: u32) -> Result<()> {
        self.was_filled = true;
        self.v4.fill(flows_more)?;
        self.v6.fill(flows_more)
    }

    /// Marks all TCP flows as ended by the controller.
    pub(super) fn cut(&mut self) -> Result<()> {
        self.dataplane.cached.forget()?;
        self.v4.change(cut)?;
        self.v6.change(cut)
    }

    /// The fragment that has been held longest; it is held no longer.
    pub(super) fn held(&mut self) -> Result<Option<Held>> {
        let mut ring = RingBuf::try_from(Map::RingBuf(self.map("held_fragments")?))?;
        let Some(record) = ring.next() else { return Ok(None) };
        let number = |at: usize| {
            let bytes = record.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
            bytes.map(u32::from_ne_bytes).context("a record of `held_fragments` is too short")
        };
        let length = number(offset_of!(HeldFragment, length))? as usize;
        let begin = offset_of!(HeldFragment, frame);
        let frame = record.get(begin..begin + length).context("a held fragment is cut off")?.to_vec();
        Ok(Some(Held { ingress: number(offset_of!(HeldFragment, ingress))?, frame }))
    }

    /// Changes how many new flows each listener has seen in the running second.
    fn change_rates(&mut self, change: impl Fn(RateWindow) -> RateWindow) -> Result<()> {
        let mut rates: Array<MapData, RateWindow> = Map::Array(self.map("new_flow_rates")?).try_into()?;
        for listener in 0..LISTENERS {
            let rate = rates.get(&listener, 0)?;
            rates.set(listener, change(rate), 0)?;
        }
        Ok(())
    }

    /// Makes every flow belong to this backend.
    pub(super) fn set_backend_of_flows(&mut self, id: u32) -> Result<()> {
        self.dataplane.cached.forget()?;
        self.v4.change(|_, flow| flow.backend = id)?;
        self.v6.change(|_, flow| flow.backend = id)
    }

    /// Both directions of all flows, promoted and half-open.
    pub(super) fn halves(&self) -> Result<Vec<Half>> {
        let (v4, v6) = (self.v4.flows()?, self.v6.flows()?);
        let mut halves: Vec<Half> = halves(&v4).chain(halves(&v6)).collect();
        halves.sort_unstable();
        Ok(halves)
    }

    /// Requires every flow to be in one place only, to be found there, and to be found by its answers.
    pub(super) fn require_consistent(&self) -> Result<()> {
        self.v4.require_consistent()?;
        self.v6.require_consistent()
    }

    /// A map by name, opened through the loaded programs: most maps themselves belong to the controller's half.
    fn map(&mut self, name: &str) -> Result<MapData> {
        map_of(self.dataplane.ebpf(), name)
    }
}

/// Ids of listeners that tests use.
const LISTENERS: u32 = 8;

fn hash_map<K: aya::Pod, V: aya::Pod>(map: MapData) -> Result<HashMap<MapData, K, V>> {
    let map = match map.info()?.map_type()? {
        MapType::LruHash => Map::LruHashMap(map),
        _ => Map::HashMap(map),
    };
    map.try_into().context("a map is of another type than expected")
}

/// A tick in which nothing was sent.
const LONG_AGO: u32 = 1;

fn backdated<A>(flows: &[(FlowKey<A>, Flow<A>)]) -> usize {
    flows.iter().filter(|(_, flow)| flow.last_seen == LONG_AGO).count()
}

const fn older<A>(key: &FlowKey<A>, flow: &mut Flow<A>, ticks: u32, ticks_per_second: u32) {
    // What opens or closes a connection is written down at once, whatever the other side still sends by a copy.
    let is_known = flow.is_half_open(key.protocol) || flow.is_closing();
    let lag = if is_known { 1 } else { flow.lag_s() as u32 };
    flow.last_seen = flow.last_seen.wrapping_sub(ticks + lag * ticks_per_second);
    // By the most that `last_seen` becomes older by: it is never from before the flow was made.
    flow.created = flow.created.wrapping_sub(ticks + MAX_COPY_S * ticks_per_second);
}

fn cut<A>(key: &FlowKey<A>, flow: &mut Flow<A>) {
    if key.protocol == PROTO_TCP {
        flow.flags |= Flow::<A>::CUT;
    }
}

fn clear<K: aya::Pod, V: aya::Pod>(map: MapData) -> Result<()> {
    let mut map = hash_map::<K, V>(map)?;
    for key in map.keys().collect::<Result<Vec<_>, _>>()? {
        map.remove(&key)?;
    }
    Ok(())
}

/// Both directions of each of these flows.
fn halves<A>(flows: &[(FlowKey<A>, Flow<A>)]) -> impl Iterator<Item = Half>
where
    A: Address + Into<IpAddr>,
{
    let ends = |key: &FlowKey<A>| {
        (
            SocketAddr::new(key.source.into(), key.source_port),
            SocketAddr::new(key.destination.into(), key.destination_port),
        )
    };
    let half = move |arrives: &FlowKey<A>, leaves: &FlowKey<A>, is_to_backend| Half {
        protocol: arrives.protocol,
        arrives: ends(arrives),
        leaves: ends(leaves),
        is_to_backend,
    };
    flows.iter().flat_map(move |(key, flow)| {
        let answers = flow.answers(key.protocol);
        [half(key, &answers.reversed(), true), half(&answers, &key.reversed(), false)]
    })
}
