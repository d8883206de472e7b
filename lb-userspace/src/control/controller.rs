//! The controller's loop: results of checks, ways to backends, questions and signals come in; the maps follow.
//!
//! Changes are gathered for a moment and applied together, so that a rack that fails is one change and not forty.

mod answers;
mod host;
mod reload;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use jiff::Timestamp;
use lb_common::Features;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{error, info};

use super::apply::Applier;
use super::book::Book;
use super::desired::{Desired, Health, Surroundings, Way};
use super::drains::Drains;
use super::events::Events;
use super::features::features;
use super::flows::Flows;
use super::host_ports::HostPorts;
use super::limits::limits;
use super::overrides::Overrides;
use super::rotation::{self, Holders};
use crate::api::tcp::TcpApi;
use crate::api::{self, Call, Question};
use crate::config::{Config, OnExit};
use crate::dataplane::{Attachment, Dataplane, LoadOptions, Origin};
use crate::health::schedule::Scheduler;
use crate::health::{CheckId, CheckResult};
use crate::instance::Instance;
use crate::network::next_hop::{self, Resolver, Ways};
use crate::network::vip::{self, Ours};
use crate::service_manager::ServiceManager;

/// How long changes are gathered before they are applied. A result is in the maps well within 50 ms.
const GATHER: Duration = Duration::from_millis(10);

/// How long a start waits for neighbours to answer before it goes on without them.
const NEIGHBOUR_WAIT: Duration = Duration::from_secs(1);

/// How often the ids of removed backends are looked at.
const HOUSEKEEPING: Duration = Duration::from_secs(1);

/// How long the end waits until those who have asked have read their answers; `lb detach` is one of them.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Why the loop ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// By a signal.
    BySignal,
    /// By a request, which has removed the data plane.
    Detached,
}

/// The signals that mean something. Taken over before anything is changed on the host, so that one that comes early
/// waits until the start is over.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    /// Takes over SIGTERM, SIGINT and SIGHUP.
    ///
    /// # Errors
    ///
    /// If they cannot be handled.
    pub fn take_over() -> Result<Self> {
        let take = |kind| signal(kind).context("cannot handle signals");
        Ok(Self {
            terminate: take(SignalKind::terminate())?,
            interrupt: take(SignalKind::interrupt())?,
            hang_up: take(SignalKind::hangup())?,
        })
    }
}

/// Everything the loop owns.
pub struct Controller {
    instance: Instance,
    file: PathBuf,
    loaded_at: Timestamp,
    last_reload_error: Option<String>,
    reload_failures: u64,
    /// What the file says.
    config: Config,
    overrides: Overrides,
    dataplane: Dataplane,
    /// The task that holds fragments for it.
    fragments: AbortOnDrop,
    /// Whether its programs log what they drop.
    packet_log: bool,
    attached: Vec<Attachment>,
    /// Interfaces of those that are gone.
    lost: BTreeSet<String>,
    applier: Applier,
    desired: Desired,
    book: Book,
    scheduler: Scheduler,
    results: mpsc::UnboundedReceiver<(CheckId, CheckResult)>,
    resolver: Resolver,
    ways: watch::Receiver<Ways>,
    flows: Flows,
    host_ports: HostPorts,
    events: Events,
    drains: Drains,
    calls: mpsc::Receiver<Call>,
    /// Questions that wait for a fresh count of flows, and where they come back from it.
    recount: mpsc::UnboundedSender<Call>,
    recounted: mpsc::UnboundedReceiver<Call>,
    tcp_api: TcpApi,
    /// The task that carries the calls.
    api: Option<JoinHandle<()>>,
    service_manager: ServiceManager,
}

/// What the desired state depends on, as the controller knows it.
struct Known<'a> {
    book: &'a Book,
    ways: &'a Ways,
    /// Ways that stand in the maps: those of an earlier controller, until a way is known.
    held: BTreeMap<IpAddr, Way>,
    holders: &'a Holders,
}

impl Surroundings for Known<'_> {
    fn health(&self, set: &str, backend: &str) -> Health {
        self.book.health(set, backend)
    }

    fn way(&self, address: IpAddr) -> Way {
        match self.ways.get(&address) {
            Some(next_hop::Way { next_hop: Some(next_hop), onlink_prefix_len, mtu, .. }) => {
                Way { next_hop: *next_hop, onlink_prefix_len: *onlink_prefix_len, mtu: *mtu }
            }
            _ => self.held.get(&address).copied().unwrap_or_default(),
        }
    }

    fn holder(&self, set: &str) -> Option<SocketAddr> {
        self.holders.get(set).copied()
    }
}

impl Controller {
    /// Loads or adopts the data plane and attaches it. When this returns, every listener forwards as far as the
    /// health of its backends is known.
    ///
    /// # Errors
    ///
    /// If the kernel refuses the program, an interface cannot be attached to, or the host cannot be configured.
    pub async fn start(instance: Instance, file: PathBuf, config: Config, packet_log: bool) -> Result<Self> {
        let (mut dataplane, fragments) = load(&instance, &config, features(&config), packet_log)?;
        let applier = match dataplane.origin {
            Origin::Fresh => Applier::default(),
            Origin::Adopted => {
                info!("adopted the pinned data plane; its flows go on");
                Applier::read(&dataplane.maps)?
            }
        };
        let flows = Flows::start(dataplane.take_collector().context("the data plane was taken apart")?)?;
        let events = Events::follow(dataplane.take_events().context("the data plane was taken apart")?);
        let resolver =
            Resolver::new(config.lb.interfaces.clone()).context("cannot follow routes and neighbours")?;
        let (found, results) = mpsc::unbounded_channel();
        let (ask, calls) = mpsc::channel(16);
        let (recount, recounted) = mpsc::unbounded_channel();
        let mut controller = Self {
            book: Book::inherit(&config, &applier),
            overrides: reload::recall(&instance, &config),
            loaded_at: Timestamp::now(),
            last_reload_error: None,
            reload_failures: 0,
            scheduler: Scheduler::start(found),
            ways: resolver.ways(),
            results,
            attached: Vec::new(),
            lost: BTreeSet::new(),
            desired: Desired { holders: applier.holders(), ..Desired::default() },
            drains: Drains::default(),
            instance,
            file,
            config,
            dataplane,
            fragments,
            packet_log,
            applier,
            resolver,
            flows,
            host_ports: HostPorts::default(),
            events,
            calls,
            recount,
            recounted,
            tcp_api: TcpApi::new(ask.clone()),
            api: None,
            service_manager: ServiceManager::from_environment(),
        };
        if let Err(error) = controller.take_up(ask).await {
            // What a failed start has made is of no use to anybody; what it has adopted still forwards.
            if controller.dataplane.origin == Origin::Fresh
                && let Err(error) = controller.detach()
            {
                error!("cannot remove what the failed start has left: {error:#}");
            }
            return Err(error);
        }
        Ok(controller)
    }

    async fn take_up(&mut self, ask: mpsc::Sender<Call>) -> Result<()> {
        self.tcp_api.follow(&self.config.api).await?;
        self.watch_backends();
        self.resolver.first_round(NEIGHBOUR_WAIT).await;
        let is_adopted = self.dataplane.origin == Origin::Adopted;
        if is_adopted {
            // The programs of the controller before may be made without what this configuration uses.
            self.attach()?;
        }
        self.apply()?;
        self.look_at_host_ports();
        if !is_adopted {
            self.attach()?;
        }
        // All of them: another host may have had them until now.
        let Ours { all, .. } = self.assign_vips()?;
        tokio::spawn(async move { vip::announce(&all).await });
        self.judge_host_ports();
        self.api = Some(api::serve(&self.instance.socket(), ask)?);
        Ok(())
    }

    /// Runs until a signal or a request ends it. Says why, and what the configuration wants to become of the data
    /// plane.
    ///
    /// # Errors
    ///
    /// If signals cannot be handled.
    pub async fn run(mut self, signals: Signals) -> Result<(Stopped, OnExit)> {
        let Signals { mut terminate, mut interrupt, mut hang_up } = signals;
        let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
        let mut apply_at: Option<Instant> = None;
        let mut is_ready = false;
        let stopped = loop {
            if !is_ready && apply_at.is_none() && self.forwards() {
                is_ready = true;
                // Nobody may be listening any more.
                let _ = writeln!(std::io::stdout(), "ready");
                self.service_manager.ready();
            }
            tokio::select! {
                biased;
                () = self.service_manager.due() => self.service_manager.is_alive(),
                () = until(apply_at) => {
                    apply_at = None;
                    self.apply_or_complain();
                }
                Some((check, result)) = self.results.recv() => {
                    if self.book.record(&check, result) {
                        apply_at.get_or_insert(Instant::now() + GATHER);
                    }
                }
                Ok(()) = self.ways.changed() => {
                    apply_at.get_or_insert(Instant::now() + GATHER);
                }
                Some(call) = self.recounted.recv() => {
                    self.reply(call).await;
                }
                Some(call) = self.calls.recv() => {
                    if matches!(call.0, Question::Status | Question::Diagnose { .. }) {
                        self.count_first(call);
                    } else if self.reply(call).await {
                        break Stopped::Detached;
                    }
                }
                _ = hang_up.recv() => self.reload_or_complain().await,
                _ = terminate.recv() => break Stopped::BySignal,
                _ = interrupt.recv() => break Stopped::BySignal,
                _ = housekeeping.tick() => self.keep_house(),
            }
        };
        let farewell = farewell(stopped, self.config.lb.on_exit);
        info!("stopping; {farewell}");
        self.service_manager.stopping(farewell);
        drop((self.calls, self.recounted));
        if let Some(api) = self.api {
            // Whoever reads slower than that has to do without.
            let _ = timeout(LAST_WORDS, api).await;
        }
        Ok((stopped, self.config.lb.on_exit))
    }

    /// Whether every listener forwards as well as it can: each backend of its set has been checked, or the rotation
    /// was taken over from an earlier controller.
    fn forwards(&self) -> bool {
        let sets = self.desired.sets.values().filter(|_| self.dataplane.origin == Origin::Adopted);
        let adopted: BTreeSet<&str> =
            sets.filter(|set| !set.rotation.is_empty()).map(|set| set.name.as_str()).collect();
        let mut names = self.config.listeners.iter().map(|listener| listener.backend_set.as_str());
        names.all(|name| adopted.contains(name) || self.book.is_settled(name))
    }

    /// Brings the maps to what is desired now.
    fn apply(&mut self) -> Result<()> {
        let config = self.overrides.applied_to(&self.config);
        let ways = self.ways.borrow_and_update().clone();
        let held = self.applier.backends().values().map(|backend| (backend.address.into(), Way::of(backend)));
        let holders = &self.desired.holders;
        let known = Known { book: &self.book, ways: &ways, held: held.collect(), holders };
        let desired = Desired::compute(&config, &mut self.applier.ids, &known)?;
        // Installing a table waits for packets that still read the old one: other tasks must go on meanwhile.
        tokio::task::block_in_place(|| self.applier.apply(&mut self.dataplane.maps, &desired))?;
        let names = desired.names.listeners.iter();
        self.events.name_listeners(names.map(|(name, &id)| (id, name.clone())).collect());
        rotation::log_take_overs(&config, holders, &desired.holders);
        self.desired = desired;
        let held = self.applier.backends().iter();
        let removed = held.filter(|(_, backend)| backend.has(lb_common::Backend::REMOVED)).map(|(&id, _)| id);
        self.drains.note(&config, &self.desired.names, removed, Instant::now());
        self.limit_flows(&config);
        Ok(())
    }

    /// Tells the collector of idle flows what holds now.
    fn limit_flows(&self, config: &Config) {
        self.flows.set_limits(limits(&self.desired, config, self.drains.over(Instant::now())));
    }

    /// Ends drains that have lasted long enough and frees the ids of listeners and backends that are gone, once they have no flows.
    fn keep_house(&mut self) {
        let census = self.flows.census();
        if let Err(error) = self.applier.forget_listeners(&mut self.dataplane.maps, &census) {
            error!("cannot free the id of a removed listener: {error:#}");
        }
        match self.applier.forget_backends(&mut self.dataplane.maps, &census) {
            Ok(forgotten) => {
                self.drains.forget(&forgotten);
                self.flows.forget(forgotten);
            }
            Err(error) => error!("cannot free the id of a removed backend: {error:#}"),
        }
        self.limit_flows(&self.overrides.applied_to(&self.config));
        self.follow_interfaces();
        if self.host_ports.is_due() {
            self.look_at_host_ports();
        }
    }

    fn apply_or_complain(&mut self) {
        if let Err(error) = self.apply() {
            error!("cannot apply a change: {error:#}; the maps keep what they hold");
        }
    }

    /// Tells the resolver and the scheduler what the configuration names.
    fn watch_backends(&mut self) {
        let config = self.overrides.applied_to(&self.config);
        let backends = config.backend_sets.values().flat_map(|set| &set.backends);
        self.resolver.watch(backends.map(|backend| backend.address).collect());
        self.book.follow(&config);
        self.scheduler.update(self.book.checks(&config));
    }
}

fn farewell(stopped: Stopped, on_exit: OnExit) -> &'static str {
    match (stopped, on_exit) {
        (Stopped::BySignal, OnExit::Keep) => {
            "the data plane goes on forwarding until `lb detach` or the next `lb run`"
        }
        _ => "the data plane is removed",
    }
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// Loads the programs, with the task that holds fragments for them, and carries their log if there is one.
fn load(
    instance: &Instance,
    config: &Config,
    features: Features,
    packet_log: bool,
) -> Result<(Dataplane, AbortOnDrop)> {
    let options = LoadOptions {
        pins: Some(instance.pins()),
        max_connections: config.lb.max_connections,
        features,
        packet_log,
    };
    let mut dataplane = tokio::task::block_in_place(|| Dataplane::load(&options))?;
    if packet_log {
        log_packets(&mut dataplane)?;
    }
    let fragments = hold_fragments(&mut dataplane)?;
    Ok((dataplane, fragments))
}

/// Holds fragments that come before the first of their datagram.
fn hold_fragments(dataplane: &mut Dataplane) -> Result<AbortOnDrop> {
    let holder = dataplane.take_fragments().context("the data plane was taken apart")?;
    let task = tokio::spawn(async move {
        if let Err(error) = holder.run().await {
            error!("fragments that come before the first of their datagram are lost: {error:#}");
        }
    });
    Ok(AbortOnDrop(task))
}

/// A task that ends with whoever holds it.
struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Carries what the XDP program logs into our log.
fn log_packets(dataplane: &mut Dataplane) -> Result<()> {
    let mut logger =
        aya_log::EbpfLogger::init(dataplane.ebpf()).context("cannot read the XDP program's log")?;
    tokio::spawn(async move {
        let mut pause = tokio::time::interval(Duration::from_millis(100));
        loop {
            pause.tick().await;
            logger.flush();
        }
    });
    Ok(())
}
