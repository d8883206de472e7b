//! A loaded data plane without the controller's half: kept from test to test, since loading costs more than most
//! tests, and opened for what only tests do to connection maps.

use std::net::{IpAddr, SocketAddr};
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::{HashMap, Map, MapData};
use lb_common::{Addr4, Addr6, Flow, FlowKey};
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
        clear::<Addr4>(loaded.map("connections_v4")?)?;
        clear::<Addr6>(loaded.map("connections_v6")?)?;
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

    /// Makes every flow older: by at least this time, ticks being coarse.
    pub(super) fn age(&mut self, time: Duration) -> Result<()> {
        let rate = self.dataplane.maps.settings()?.ticks_per_second;
        let ticks = (time.as_millis() * u128::from(rate)).div_ceil(1000);
        let ticks = u32::try_from(ticks).context("too long a time")?;
        change::<Addr4>(self.map("connections_v4")?, |half| make_older(half, ticks))?;
        change::<Addr6>(self.map("connections_v6")?, |half| make_older(half, ticks))
    }

    /// Makes every flow belong to this backend.
    pub(super) fn set_backend_of_flows(&mut self, id: u32) -> Result<()> {
        change::<Addr4>(self.map("connections_v4")?, |half| half.backend = id)?;
        change::<Addr6>(self.map("connections_v6")?, |half| half.backend = id)
    }

    /// Everything the connection maps hold.
    pub(super) fn halves(&mut self) -> Result<Vec<Half>> {
        let mut halves = read::<Addr4>(self.map("connections_v4")?)?;
        halves.extend(read::<Addr6>(self.map("connections_v6")?)?);
        halves.sort_unstable();
        Ok(halves)
    }

    /// A map by name, opened through the loaded program: connection maps themselves belong to the collector.
    fn map(&mut self, name: &str) -> Result<MapData> {
        let info = self.dataplane.program()?.info()?;
        for id in info.map_ids()?.context("this kernel does not tell which maps a program has")? {
            let map = MapData::from_id(id)?;
            if map.info()?.name_as_str() == Some(name) {
                return Ok(map);
            }
        }
        bail!("the program has no map `{name}`")
    }
}

fn open<A>(map: MapData) -> Result<HashMap<MapData, FlowKey<A>, Flow<A>>>
where
    FlowKey<A>: aya::Pod,
    Flow<A>: aya::Pod,
{
    Map::HashMap(map).try_into().context("a connection map is of another type than expected")
}

fn make_older<A>(half: &mut Flow<A>, ticks: u32) {
    half.created = half.created.wrapping_sub(ticks);
    half.last_seen = half.last_seen.wrapping_sub(ticks);
}

fn change<A>(map: MapData, mut change: impl FnMut(&mut Flow<A>)) -> Result<()>
where
    FlowKey<A>: aya::Pod,
    Flow<A>: aya::Pod,
{
    let mut map = open::<A>(map)?;
    let entries = map.iter().collect::<Result<Vec<_>, _>>()?;
    for (key, mut half) in entries {
        change(&mut half);
        map.insert(key, half, 0)?;
    }
    Ok(())
}

fn clear<A>(map: MapData) -> Result<()>
where
    FlowKey<A>: aya::Pod,
    Flow<A>: aya::Pod,
{
    let mut map = open::<A>(map)?;
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
    let entries = open::<A>(map)?.iter().collect::<Result<Vec<_>, _>>()?;
    Ok(entries.into_iter().map(half).collect())
}
