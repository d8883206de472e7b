//! A loaded data plane, filled by the controller's own code, that answers frames.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use aya::programs::Xdp;
use lb_common::{Addr4, Addr6, Flow, FlowKey};
use lb_userspace::config::Config;
use lb_userspace::control::desired::Names;
use lb_userspace::control::{Applier, Desired};
use lb_userspace::dataplane::{Census, Collector, Dataplane, Limits, LoadOptions};
use nix::unistd::geteuid;

use super::{Counts, States};

/// What the program decided (`enum xdp_action`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// XDP_DROP.
    Drop,
    /// XDP_PASS: to the kernel.
    Pass,
    /// XDP_TX: out of the interface it came in through.
    Tx,
    /// XDP_REDIRECT. BPF_PROG_TEST_RUN does not tell where to: that shows in the source MAC of the frame, which
    /// is that of the interface.
    Redirect,
}

/// The program's answer to a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// What becomes of it.
    pub verdict: Verdict,
    /// The frame afterwards.
    pub frame: Vec<u8>,
}

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

/// A data plane on the bench. Nothing is pinned: it ends with this value.
pub struct Bench {
    dataplane: Dataplane,
    collector: Collector,
    applier: Applier,
    config: Config,
    states: States,
    names: Names,
}

impl Bench {
    /// Loads the program and fills its maps as the controller would.
    ///
    /// # Errors
    ///
    /// Without root, or if the kernel refuses the program.
    pub fn new(config: Config, states: States) -> Result<Self> {
        ensure!(
            geteuid().is_root(),
            "the packet tests load the XDP program into the kernel, which only root may do; found user id {}; \
             run them as root, e.g. `sudo -E cargo xtask test`",
            geteuid()
        );
        let options = LoadOptions { max_connections: config.lb.max_connections, ..LoadOptions::default() };
        let mut dataplane = Dataplane::load(&options)?;
        let collector = dataplane.take_collector().context("the data plane has no collector")?;
        let applier = Applier::read(&dataplane.maps)?;
        let mut bench = Self { dataplane, collector, applier, config, states, names: Names::default() };
        bench.apply()?;
        Ok(bench)
    }

    /// The configuration in force.
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// Health and next hops in force.
    pub const fn states(&self) -> &States {
        &self.states
    }

    /// The program, for what this type does not offer: several threads, repetitions, its figures.
    ///
    /// # Errors
    ///
    /// If the object has none.
    pub fn program(&mut self) -> Result<&mut Xdp> {
        self.dataplane.program()
    }

    /// Puts another configuration and other states in force, as a reload and as events would.
    ///
    /// # Errors
    ///
    /// If a map cannot be written.
    pub fn update(&mut self, config: Config, states: States) -> Result<()> {
        (self.config, self.states) = (config, states);
        self.apply()
    }

    /// Forgets what the controller knew and reads it from the maps again, as after `kill -9`.
    ///
    /// # Errors
    ///
    /// If a map cannot be read.
    pub fn restart(&mut self) -> Result<()> {
        self.applier = Applier::read(&self.dataplane.maps)?;
        self.apply()
    }

    fn apply(&mut self) -> Result<()> {
        let desired = Desired::compute(&self.config, &mut self.applier.ids, &self.states)?;
        self.applier.apply(&mut self.dataplane.maps, &desired)?;
        self.names = desired.names;
        Ok(())
    }

    /// Asks for the verdict on a frame that comes in through an interface. The interface must exist; loopback,
    /// number 1, always does.
    ///
    /// # Errors
    ///
    /// If the kernel cannot run the program on it, or the verdict is none that this program may give.
    pub fn send(&mut self, frame: &[u8], ingress: u32) -> Result<Answer> {
        let answer = self.dataplane.test_run(frame, ingress)?;
        Ok(Answer { verdict: Verdict::try_from(answer.action)?, frame: answer.packet })
    }

    /// All counters.
    ///
    /// # Errors
    ///
    /// If a map cannot be read.
    pub fn counts(&self) -> Result<Counts> {
        Counts::read(&self.dataplane.maps, &self.names)
    }

    /// Walks over the flows as the controller does from time to time, with the limits of the configuration; the
    /// flows of offline backends end.
    ///
    /// # Errors
    ///
    /// If a map cannot be read.
    pub fn sweep(&self) -> Result<Census> {
        self.collector.sweep(&self.limits())
    }

    fn limits(&self) -> Limits {
        let mut limits = Limits::default();
        for listener in &self.config.listeners {
            let timeouts = lb_userspace::dataplane::collect::IdleTimeouts {
                tcp: Duration::from_secs(listener.tcp_idle_timeout_s.into()),
                udp: Duration::from_secs(listener.udp_idle_timeout_s.into()),
            };
            limits.listeners.insert(self.names.listeners[&listener.name], timeouts);
        }
        for (set_name, set) in &self.config.backend_sets {
            for backend in set.backends.iter().filter(|backend| backend.offline) {
                limits.cut.insert(self.names.backends[&(set_name.clone(), backend.name.clone())]);
            }
        }
        limits
    }

    /// Makes every flow older, as if this time had passed: the clock itself cannot be moved.
    ///
    /// # Errors
    ///
    /// If a map cannot be read or written.
    pub fn age(&mut self, time: Duration) -> Result<()> {
        let rate = self.dataplane.maps.settings()?.ticks_per_second;
        let ticks = u32::try_from(time.as_millis() * u128::from(rate) / 1000).context("too long a time")?;
        age::<Addr4>(self.connections("connections_v4")?, ticks)?;
        age::<Addr6>(self.connections("connections_v6")?, ticks)
    }

    /// Everything the connection maps hold.
    ///
    /// # Errors
    ///
    /// If a map cannot be read.
    pub fn halves(&mut self) -> Result<Vec<Half>> {
        let mut halves = read_halves::<Addr4>(self.connections("connections_v4")?)?;
        halves.extend(read_halves::<Addr6>(self.connections("connections_v6")?)?);
        halves.sort_unstable();
        Ok(halves)
    }

    /// Live flows. Each must consist of two halves that refer to each other.
    ///
    /// # Errors
    ///
    /// If a half is alone.
    pub fn flows(&mut self) -> Result<Vec<Half>> {
        let halves = self.halves()?;
        let by_tuple: BTreeMap<_, &Half> =
            halves.iter().map(|half| ((half.protocol, half.arrives), half)).collect();
        for half in &halves {
            let (source, destination) = half.leaves;
            let other = by_tuple.get(&(half.protocol, (destination, source)));
            let is_linked = other.is_some_and(|other| {
                let (source, destination) = other.leaves;
                (destination, source) == half.arrives && other.is_to_backend != half.is_to_backend
            });
            ensure!(is_linked, "half a flow is without its other half:\n{half:?}\nof {halves:#?}");
        }
        Ok(halves.into_iter().filter(|half| half.is_to_backend).collect())
    }

    /// A map by name, opened through the loaded program: the maps themselves belong to the collector.
    fn connections(&mut self, name: &str) -> Result<MapData> {
        let ids = self.program()?.info()?.map_ids()?.context("this kernel does not tell a program's maps")?;
        for id in ids {
            let map = MapData::from_id(id)?;
            // The kernel keeps 15 bytes of the name.
            if map.info()?.name_as_str().is_some_and(|found| found == name) {
                return Ok(map);
            }
        }
        anyhow::bail!("the program has no map `{name}`")
    }
}

impl TryFrom<u32> for Verdict {
    type Error = anyhow::Error;

    fn try_from(action: u32) -> Result<Self> {
        match action {
            1 => Ok(Self::Drop),
            2 => Ok(Self::Pass),
            3 => Ok(Self::Tx),
            4 => Ok(Self::Redirect),
            _ => anyhow::bail!("expected the verdict DROP, PASS, TX or REDIRECT, found XDP action {action}"),
        }
    }
}

fn open<A>(map: MapData) -> Result<HashMap<MapData, FlowKey<A>, Flow<A>>>
where
    FlowKey<A>: aya::Pod,
    Flow<A>: aya::Pod,
{
    Map::HashMap(map).try_into().context("a connection map is of another type than expected")
}

fn age<A>(map: MapData, ticks: u32) -> Result<()>
where
    FlowKey<A>: aya::Pod,
    Flow<A>: aya::Pod,
{
    let mut map = open::<A>(map)?;
    let entries = map.iter().collect::<Result<Vec<_>, _>>()?;
    for (key, mut half) in entries {
        half.created = half.created.wrapping_sub(ticks);
        half.last_seen = half.last_seen.wrapping_sub(ticks);
        map.insert(key, half, 0)?;
    }
    Ok(())
}

fn read_halves<A>(map: MapData) -> Result<Vec<Half>>
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
