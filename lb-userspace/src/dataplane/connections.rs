//! Lists live flows from the pinned maps, whether a controller runs or not. The maps are only read, in batches; the
//! packet path notices nothing of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use aya::Pod;
use aya::maps::{Array, Map, MapData, MapError};
use lb_common::flow::{is_closing, is_half_open};
use lb_common::listener::SetName;
use lb_common::{Addr4, Addr6, Address, Backend, Flow, FlowKey, LAYOUT_VERSION, PROTO_TCP, Settings};
use serde::Serialize;

use super::clock::{Clock, Tick};
use super::sys::{self, Batch, Cursor};

/// How far a flow has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// TCP without the client's first ACK.
    HalfOpen,
    /// Open, or UDP.
    Established,
    /// TCP that both sides have ended by FIN, one by RST, or the controller.
    Closing,
}

impl State {
    /// The word for it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::HalfOpen => "half-open",
            Self::Established => "established",
            Self::Closing => "closing",
        }
    }
}

/// A live flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// IP protocol number.
    pub protocol: u8,
    /// Who connects.
    pub client: SocketAddr,
    /// What it connects to.
    pub vip: SocketAddr,
    /// Who the backend sees.
    pub source: SocketAddr,
    /// Where the backend is reached.
    pub destination: SocketAddr,
    /// Id of the listener.
    pub listener: u32,
    /// Id of the backend.
    pub backend: u32,
    /// How far it has come.
    pub state: State,
    /// Time since it was made.
    pub age: Duration,
    /// Time since the last packet, of either direction; up to 250 ms too long.
    pub idle: Duration,
}

/// Which flows are wanted: all, unless one of these says otherwise.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Of a listener.
    pub listener: Option<Which>,
    /// To a backend.
    pub backend: Option<Which>,
}

/// A listener or backend: by its ids, or by address and port.
#[derive(Clone, Debug)]
pub enum Which {
    /// One of these ids.
    Ids(BTreeSet<u32>),
    /// The VIP of a flow, or its destination.
    At(SocketAddr),
}

impl Which {
    fn is(&self, id: u32, at: SocketAddr) -> bool {
        match self {
            Self::Ids(ids) => ids.contains(&id),
            Self::At(address) => *address == at,
        }
    }
}

impl Filter {
    fn admits<A: Address + Into<IpAddr>>(&self, key: &FlowKey<A>, half: &Flow<A>) -> bool {
        let vip = SocketAddr::new(key.destination.into(), key.destination_port);
        let destination = SocketAddr::new(half.destination.into(), half.destination_port);
        self.listener.as_ref().is_none_or(|which| which.is(half.listener, vip))
            && self.backend.as_ref().is_none_or(|which| which.is(half.backend, destination))
    }
}

/// The pinned maps of an instance, for reading.
pub struct Connections {
    v4: MapData,
    v6: MapData,
    backends: Array<MapData, Backend>,
    backend_sets: Array<MapData, SetName>,
    clock: Clock,
}

impl Connections {
    /// Opens the maps that are pinned in a directory; `None` if there are none.
    ///
    /// # Errors
    ///
    /// If they cannot be opened, or are of another version of this program.
    pub fn open(pins: &Path) -> Result<Option<Self>> {
        if !pins
            .join("settings")
            .try_exists()
            .with_context(|| format!("cannot look into {}", pins.display()))?
        {
            return Ok(None);
        }
        let settings: Array<_, Settings> = array(pins, "settings")?;
        let version = settings.get(&0, 0).context("cannot read the map `settings`")?.layout_version;
        if version != LAYOUT_VERSION {
            bail!(
                "the maps in {} are of layout {version}, this program reads layout {LAYOUT_VERSION}: use the `lb` that \
                 runs there",
                pins.display()
            );
        }
        Ok(Some(Self {
            v4: pinned(pins, "connections_v4", size_of::<FlowKey<Addr4>>(), size_of::<Flow<Addr4>>())?,
            v6: pinned(pins, "connections_v6", size_of::<FlowKey<Addr6>>(), size_of::<Flow<Addr6>>())?,
            backends: array(pins, "backends")?,
            backend_sets: array(pins, "backend_sets")?,
            clock: Clock::alone()?,
        }))
    }

    /// Set and address of each backend, by id: what the maps know of their names.
    ///
    /// # Errors
    ///
    /// If a map cannot be read.
    pub fn backends(&self) -> Result<BTreeMap<u32, (String, SocketAddr)>> {
        let mut found = BTreeMap::new();
        for id in 0..self.backends.len() {
            let backend = self.backends.get(&id, 0).context("cannot read the map `backends`")?;
            if backend.has(Backend::IN_USE) {
                let set =
                    self.backend_sets.get(&backend.set, 0).context("cannot read the map `backend_sets`")?;
                let set = String::from_utf8_lossy(&set.name).trim_end_matches('\0').to_owned();
                found.insert(id, (set, SocketAddr::new(backend.address.into(), backend.port)));
            }
        }
        Ok(found)
    }

    /// Shows each live flow to `visit` until that says it has seen enough. Flows that come and go meanwhile may be
    /// shown or not; the others are shown once.
    ///
    /// # Errors
    ///
    /// If a map cannot be read, and those of `visit`.
    pub fn visit(
        &self,
        filter: &Filter,
        mut visit: impl FnMut(&Connection) -> Result<ControlFlow<()>>,
    ) -> Result<()> {
        if walk::<Addr4>(&self.v4, filter, &self.clock, &mut visit)?.is_continue() {
            let _ = walk::<Addr6>(&self.v6, filter, &self.clock, &mut visit)?;
        }
        Ok(())
    }
}

/// Opens a pinned map and compares its shape, which decides how much the kernel reads and writes.
fn pinned(pins: &Path, name: &str, key: usize, value: usize) -> Result<MapData> {
    let path = pins.join(name);
    let map = MapData::from_pin(&path)
        .map_err(explain)
        .with_context(|| format!("cannot open {}", path.display()))?;
    let info = map.info().with_context(|| format!("cannot look at {}", path.display()))?;
    let found = (info.key_size() as usize, info.value_size() as usize);
    if found != (key, value) {
        bail!(
            "{} holds other keys and values than this program's: use the `lb` that runs there",
            path.display()
        );
    }
    Ok(map)
}

fn array<V: Pod>(pins: &Path, name: &str) -> Result<Array<MapData, V>> {
    let map = pinned(pins, name, size_of::<u32>(), size_of::<V>())?;
    Map::Array(map).try_into().with_context(|| format!("the map `{name}` is not an array"))
}

fn explain(error: MapError) -> anyhow::Error {
    let denied = matches!(
        &error,
        MapError::SyscallError(error) if error.io_error.kind() == std::io::ErrorKind::PermissionDenied
    );
    let error = anyhow::Error::from(error);
    if denied { error.context("this needs root or CAP_BPF") } else { error }
}

/// Walks over one of the maps.
fn walk<A>(
    map: &MapData,
    filter: &Filter,
    clock: &Clock,
    visit: &mut impl FnMut(&Connection) -> Result<ControlFlow<()>>,
) -> Result<ControlFlow<()>>
where
    A: Address + Into<IpAddr>,
    FlowKey<A>: Pod + PartialEq,
    Flow<A>: Pod,
{
    use std::os::fd::AsFd;
    let map = map.fd().as_fd();
    let mut batch = Batch::<FlowKey<A>, Flow<A>>::new();
    let mut cursor = Cursor::default();
    let unreadable = || format!("cannot read connections_v{}", A::VERSION);
    while let Some(halves) = batch.read_next(map, &mut cursor).with_context(unreadable)? {
        let now = clock.now()?;
        for (key, half) in halves {
            if half.direction != Flow::<A>::TO_BACKEND || !filter.admits(&key, &half) {
                continue;
            }
            let answers = half.other_half(key.protocol);
            let answers = sys::lookup::<_, Flow<A>>(map, &answers).with_context(unreadable)?;
            let answers = answers.filter(|answers| answers.other_half(key.protocol) == key);
            if visit(&Connection::new(&key, &half, answers.as_ref(), now))?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
    }
    Ok(ControlFlow::Continue(()))
}

impl Connection {
    /// Puts both halves together. Without the one for the answers, the flow is just being made or removed.
    fn new<A: Address + Into<IpAddr>>(
        key: &FlowKey<A>,
        half: &Flow<A>,
        answers: Option<&Flow<A>>,
        now: Tick,
    ) -> Self {
        let idle = now.since(half.last_seen);
        let is_cut = (half.flags | answers.map_or(0, |answers| answers.flags)) & Flow::<A>::CUT != 0;
        let state = match () {
            () if is_cut => State::Closing,
            () if is_closing(half.seen, answers.map_or(0, |answers| answers.seen)) => State::Closing,
            () if is_half_open(key.protocol, half.seen) => State::HalfOpen,
            () => State::Established,
        };
        Self {
            protocol: key.protocol,
            client: SocketAddr::new(key.source.into(), key.source_port),
            vip: SocketAddr::new(key.destination.into(), key.destination_port),
            source: SocketAddr::new(half.source.into(), half.source_port),
            destination: SocketAddr::new(half.destination.into(), half.destination_port),
            listener: half.listener,
            backend: half.backend,
            state,
            age: now.since(half.created),
            idle: answers.map_or(idle, |answers| idle.min(now.since(answers.last_seen))),
        }
    }

    /// `tcp` or `udp`.
    pub const fn protocol_name(&self) -> &'static str {
        if self.protocol == PROTO_TCP { "tcp" } else { "udp" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_common::PROTO_UDP;

    type Half = Flow<Addr4>;

    fn half(seen: u8, last_seen: u32) -> Half {
        Half { seen, last_seen, created: 1000, ..Half::default() }
    }

    fn shown(protocol: u8, there: Half, back: Option<Half>) -> Connection {
        let key = FlowKey { protocol, ..FlowKey::default() };
        Connection::new(&key, &there, back.as_ref(), Tick::new(4000, 1000))
    }

    #[test]
    fn the_state_comes_from_both_halves() {
        let established = Half::SYN | Half::ESTABLISHED;
        let fin = established | Half::FIN;
        for (protocol, there, back, expected) in [
            (PROTO_TCP, Half::SYN, Half::SYN, State::HalfOpen),
            (PROTO_TCP, established, Half::SYN, State::Established),
            (PROTO_TCP, fin, established, State::Established),
            (PROTO_TCP, fin, fin, State::Closing),
            (PROTO_TCP, established, Half::RST, State::Closing),
            (PROTO_TCP, Half::SYN, Half::RST, State::Closing),
            (PROTO_UDP, Half::ESTABLISHED, 0, State::Established),
        ] {
            let state = shown(protocol, half(there, 0), Some(half(back, 0))).state;
            assert_eq!(state, expected, "{protocol} {there:#b} {back:#b}");
        }
    }

    #[test]
    fn a_flow_that_the_controller_has_cut_is_closing() {
        let there = Half { flags: Half::CUT, ..half(Half::SYN | Half::ESTABLISHED, 0) };
        assert_eq!(shown(PROTO_TCP, there, Some(half(Half::SYN, 0))).state, State::Closing);
    }

    #[test]
    fn a_flow_is_as_idle_as_its_younger_half() {
        let seconds = Duration::from_secs;
        let connection = shown(PROTO_TCP, half(0, 2000), Some(half(0, 3000)));
        assert_eq!((connection.age, connection.idle), (seconds(3), seconds(1)));
        assert_eq!(shown(PROTO_TCP, half(0, 2000), None).idle, seconds(2));
    }
}
