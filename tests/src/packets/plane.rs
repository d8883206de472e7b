//! A loaded data plane without the controller's half: kept from test to test, since loading costs more than most
//! tests, and opened for what only tests do to connection maps.

use std::collections::BTreeSet;
use std::mem::offset_of;
use std::net::{IpAddr, SocketAddr};
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::{Array, HashMap, Map, MapData, MapType, RingBuf};
use lb_common::{
    Addr4, Addr6, Flow, FlowKey, FragmentKey, FragmentPorts, HeldFragment, MAX_COPY_S, PROTO_TCP, RateWindow,
};
use lb_userspace::dataplane::{Collector, Dataplane, LoadOptions};
use nix::unistd::geteuid;

/// One direction of a flow, as the connection maps hold it: the tuple that arrives and the one that leaves, each
/// source first.
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
    max_connections: u32,
}

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
        clear::<FlowKey<Addr4>, Flow<Addr4>>(loaded.map("connections_v4")?)?;
        clear::<FlowKey<Addr6>, Flow<Addr6>>(loaded.map("connections_v6")?)?;
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
        Ok(Self { dataplane, collector, max_connections })
    }

    /// Makes everything that remembers a time older: by at least this time, ticks being coarse, and flows by as much more as
    /// the time of their last packet may be too early.
    pub(super) fn age(&mut self, time: Duration) -> Result<()> {
        self.dataplane.cached.forget()?;
        let rate = self.dataplane.maps.settings()?.ticks_per_second;
        let ticks = (time.as_millis() * u128::from(rate)).div_ceil(1000);
        let ticks = u32::try_from(ticks).context("too long a time")?;
        change::<Addr4>(self.map("connections_v4")?, |_, half| older(half, ticks, rate))?;
        change::<Addr6>(self.map("connections_v6")?, |_, half| older(half, ticks, rate))?;
        let seconds = time.as_secs() + 1;
        self.change_rates(|window| RateWindow { second: window.second.saturating_sub(seconds), ..window })
    }

    /// Makes every half look as if no packet had looked at it for long. Copies are left as they are.
    pub(super) fn backdate(&mut self) -> Result<()> {
        change::<Addr4>(self.map("connections_v4")?, |_, half| half.last_seen = LONG_AGO)?;
        change::<Addr6>(self.map("connections_v6")?, |_, half| half.last_seen = LONG_AGO)
    }

    /// How many halves no packet has looked at since [`Self::backdate`].
    pub(super) fn backdated(&mut self) -> Result<usize> {
        Ok(backdated::<Addr4>(self.map("connections_v4")?)?
            + backdated::<Addr6>(self.map("connections_v6")?)?)
    }

    /// How many flows that have not proved themselves each CPU has room for.
    pub(super) fn half_open_room(&mut self) -> Result<u32> {
        Ok(self.map("half_open_v4")?.info()?.max_entries())
    }

    /// Fills both connection maps up to where so many flows more fit.
    pub(super) fn fill(&mut self, flows_more: u32) -> Result<()> {
        fill::<Addr4>(self.map("connections_v4")?, flows_more)?;
        fill::<Addr6>(self.map("connections_v6")?, flows_more)
    }

    /// Marks all TCP flows as ended by the controller.
    pub(super) fn cut(&mut self) -> Result<()> {
        self.dataplane.cached.forget()?;
        change::<Addr4>(self.map("connections_v4")?, cut)?;
        change::<Addr6>(self.map("connections_v6")?, cut)
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
        change::<Addr4>(self.map("connections_v4")?, |_, half| half.backend = id)?;
        change::<Addr6>(self.map("connections_v6")?, |_, half| half.backend = id)
    }

    /// Everything the connection maps hold.
    pub(super) fn halves(&mut self) -> Result<Vec<Half>> {
        let mut halves = read::<Addr4>(self.map("connections_v4")?)?;
        halves.extend(read::<Addr6>(self.map("connections_v6")?)?);
        halves.sort_unstable();
        Ok(halves)
    }

    /// A map by name, opened through the loaded programs: most maps themselves belong to the controller's half.
    fn map(&mut self, name: &str) -> Result<MapData> {
        let mut ids = BTreeSet::new();
        for (_, program) in self.dataplane.ebpf().programs() {
            // A program that is not loaded has no maps.
            let Ok(info) = program.info() else { continue };
            ids.extend(info.map_ids()?.context("this kernel does not tell which maps a program has")?);
        }
        for id in ids {
            let map = MapData::from_id(id)?;
            if map.info()?.name_as_str() == Some(name) {
                return Ok(map);
            }
        }
        bail!("the programs have no map `{name}`")
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

fn change<A>(map: MapData, change: impl Fn(&FlowKey<A>, &mut Flow<A>)) -> Result<()>
where
    FlowKey<A>: aya::Pod,
    Flow<A>: aya::Pod,
{
    let mut map = hash_map::<FlowKey<A>, Flow<A>>(map)?;
    let entries = map.iter().collect::<Result<Vec<_>, _>>()?;
    for (key, mut half) in entries {
        change(&key, &mut half);
        map.insert(key, half, 0)?;
    }
    Ok(())
}

/// A tick in which nothing was sent.
const LONG_AGO: u32 = 1;

fn backdated<A>(map: MapData) -> Result<usize>
where
    FlowKey<A>: aya::Pod,
    Flow<A>: aya::Pod,
{
    let map = hash_map::<FlowKey<A>, Flow<A>>(map)?;
    let entries = map.iter().collect::<Result<Vec<_>, _>>()?;
    Ok(entries.iter().filter(|(_, half)| half.last_seen == LONG_AGO).count())
}

/// Protocol of entries that stand for flows of others.
const FILLING: u8 = 255;

fn fill<A>(map: MapData, flows_more: u32) -> Result<()>
where
    A: Default,
    FlowKey<A>: aya::Pod + Default,
    Flow<A>: aya::Pod + Default,
{
    let entries = map.info()?.max_entries();
    let mut map = hash_map::<FlowKey<A>, Flow<A>>(map)?;
    let taken = u32::try_from(map.keys().count())?;
    for number in 0..entries.saturating_sub(taken + 2 * flows_more) {
        let [a, b, c, d] = number.to_be_bytes().map(u16::from);
        let ports = (a << 8 | b, c << 8 | d);
        let key = FlowKey {
            source_port: ports.0,
            destination_port: ports.1,
            protocol: FILLING,
            ..FlowKey::default()
        };
        map.insert(key, Flow::default(), 0)?;
    }
    Ok(())
}

const fn older<A>(half: &mut Flow<A>, ticks: u32, ticks_per_second: u32) {
    half.last_seen = half.last_seen.wrapping_sub(ticks + half.lag_s() as u32 * ticks_per_second);
    // Both halves were made at the same time.
    half.created = half.created.wrapping_sub(ticks + MAX_COPY_S * ticks_per_second);
}

fn cut<A>(key: &FlowKey<A>, half: &mut Flow<A>) {
    if key.protocol == PROTO_TCP {
        half.flags |= Flow::<A>::CUT;
    }
}

fn clear<K: aya::Pod, V: aya::Pod>(map: MapData) -> Result<()> {
    let mut map = hash_map::<K, V>(map)?;
    for key in map.keys().collect::<Result<Vec<_>, _>>()? {
        map.remove(&key)?;
    }
    Ok(())
}

fn read<A>(map: MapData) -> Result<Vec<Half>>
where
    A: Copy + Into<IpAddr>,
    FlowKey<A>: aya::Pod,
    Flow<A>: aya::Pod,
{
    let half = |(key, flow): (FlowKey<A>, Flow<A>)| Half {
        protocol: key.protocol,
        arrives: (
            SocketAddr::new(key.source.into(), key.source_port),
            SocketAddr::new(key.destination.into(), key.destination_port),
        ),
        leaves: (
            SocketAddr::new(flow.source.into(), flow.source_port),
            SocketAddr::new(flow.destination.into(), flow.destination_port),
        ),
        is_to_backend: flow.direction == Flow::<A>::TO_BACKEND,
    };
    let entries = hash_map::<FlowKey<A>, Flow<A>>(map)?.iter().collect::<Result<Vec<_>, _>>()?;
    Ok(entries.into_iter().filter(|(key, _)| key.protocol != FILLING).map(half).collect())
}
