//! The controller's loop: results of checks, ways to backends, questions and signals come in; the maps follow.
//!
//! Changes are gathered for a moment and applied together, so that a rack that fails is one change and not forty.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use jiff::Timestamp;
use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{error, info, warn};

use super::apply::Applier;
use super::book::Book;
use super::desired::{Desired, Health, Surroundings, Way};
use super::events::Events;
use super::findings;
use super::flows::Flows;
use super::host_ports::HostPorts;
use super::overrides::Overrides;
use super::report::{self, Sources};
use super::rotation::{self, Holders};
use crate::api::tcp::TcpApi;
use crate::api::{self, Answer, Call, Question};
use crate::config::{self, Config, OnExit};
use crate::dataplane;
use crate::dataplane::collect::IdleTimeouts;
use crate::dataplane::{AttachedMode, Dataplane, Limits, LoadOptions, Origin};
use crate::health::schedule::Scheduler;
use crate::health::{CheckId, CheckResult};
use crate::instance::Instance;
use crate::metrics;
use crate::network;
use crate::network::next_hop::{Resolver, Ways};
use crate::network::vip::{self, Ours};
use crate::service_manager::ServiceManager;

/// How long changes are gathered before they are applied. A result is in the maps well within 50 ms.
const GATHER: Duration = Duration::from_millis(10);

/// How long a start waits for neighbours to answer before it goes on without them.
const NEIGHBOUR_WAIT: Duration = Duration::from_secs(1);

/// How often the ids of removed backends are looked at.
const HOUSEKEEPING: Duration = Duration::from_secs(1);

/// How long a status waits for a fresh count of flows.
const FRESH_CENSUS: Duration = Duration::from_millis(200);

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
    attached: Vec<(String, AttachedMode)>,
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
    /// When the drains under way end, by backend id.
    drains: BTreeMap<u32, Instant>,
    /// How long each backend may drain; `None`: for ever. Kept when the backend goes.
    drain_timeouts: BTreeMap<u32, Option<Duration>>,
    calls: mpsc::Receiver<Call>,
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
            Some(network::next_hop::Way { next_hop: Some(next_hop), onlink_prefix_len, mtu, .. }) => {
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
        let options = LoadOptions {
            pins: Some(instance.pins()),
            max_connections: config.lb.max_connections,
            packet_log,
        };
        let mut dataplane = Dataplane::load(&options)?;
        if dataplane.origin == Origin::Adopted {
            info!("adopted the pinned data plane; its flows go on");
        }
        if packet_log {
            log_packets(&mut dataplane)?;
        }
        let applier = Applier::read(&dataplane.maps)?;
        let flows = Flows::start(dataplane.take_collector().context("the data plane was taken apart")?)?;
        let events = Events::follow(dataplane.take_events().context("the data plane was taken apart")?);
        hold_fragments(&mut dataplane)?;
        let resolver =
            Resolver::new(config.lb.interfaces.clone()).context("cannot follow routes and neighbours")?;
        let (found, results) = mpsc::unbounded_channel();
        let (ask, calls) = mpsc::channel(16);
        let mut controller = Self {
            book: Book::inherit(&config, &applier),
            overrides: Overrides::default(),
            loaded_at: Timestamp::now(),
            last_reload_error: None,
            reload_failures: 0,
            scheduler: Scheduler::start(found),
            ways: resolver.ways(),
            results,
            attached: Vec::new(),
            desired: Desired { holders: applier.holders(), ..Desired::default() },
            drains: BTreeMap::new(),
            drain_timeouts: BTreeMap::new(),
            instance,
            file,
            config,
            dataplane,
            applier,
            resolver,
            flows,
            host_ports: HostPorts::default(),
            events,
            calls,
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
        self.apply()?;
        self.look_at_host_ports();
        self.attach()?;
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
                Some((question, reply)) = self.calls.recv() => {
                    let answer = self.answer(question).await;
                    let is_detached = matches!(answer, Answer::Detached);
                    let _ = reply.send(answer);
                    if is_detached {
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
        drop(self.calls);
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
        self.note_drains(&config);
        self.flows.set_limits(self.limits(&config));
        Ok(())
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

    fn attach(&mut self) -> Result<()> {
        let wanted = self.config.lb.interfaces.clone();
        let mut attached = Vec::new();
        for interface in &wanted {
            attached.push((interface.clone(), self.dataplane.attach(interface, self.config.lb.xdp_mode)?));
        }
        self.attached = attached;
        for interface in self.dataplane.pinned_interfaces()? {
            if !wanted.contains(&interface) {
                info!(interface, "detached: the configuration no longer names it");
                self.dataplane.detach_interface(&interface)?;
            }
        }
        self.dataplane.settle()
    }

    /// Adds the VIPs that the host lacks, and removes those the configuration has lost. SNAT addresses too: somebody
    /// has to answer the backends when they ask for them.
    fn assign_vips(&self) -> Result<Ours> {
        let config = &self.config;
        let mut vips: BTreeSet<IpAddr> = config.listeners.iter().map(|listener| listener.address).collect();
        vips.extend(&config.lb.snat_addresses);
        if !config.lb.assign_vips {
            vips.clear();
        }
        let run_dir = self.instance.run_dir();
        vip::release(&run_dir, &vips).context("cannot remove the addresses that are no longer VIPs")?;
        vip::assign(&run_dir, &vips, &self.config.lb.interfaces).context("cannot assign the VIPs")
    }

    /// Starts the clock of each drain that has begun, and forgets those that were ended.
    fn note_drains(&mut self, config: &Config) {
        let mut draining = BTreeMap::new();
        for (set_name, set) in &config.backend_sets {
            for backend in &set.backends {
                let name = (set_name.clone(), backend.name.clone());
                let Some(&id) = self.desired.names.backends.get(&name) else { continue };
                self.drain_timeouts.insert(id, drain_timeout(set));
                if backend.drain {
                    draining.extend(drain_timeout(set).map(|timeout| (id, timeout)));
                }
            }
        }
        for (&id, backend) in self.applier.backends() {
            if backend.has(lb_common::Backend::REMOVED) {
                let timeout = self.drain_timeouts.get(&id).copied().unwrap_or(Some(REMOVED_DRAIN));
                draining.extend(timeout.map(|timeout| (id, timeout)));
            }
        }
        let now = Instant::now();
        self.drains.retain(|id, _| draining.contains_key(id));
        for (id, timeout) in draining {
            self.drains.entry(id).or_insert(now + timeout);
        }
    }

    /// What the collector of idle flows must know.
    fn limits(&self, config: &Config) -> Limits {
        let mut limits = Limits::default();
        for listener in self.desired.all_listeners() {
            let timeouts = IdleTimeouts {
                tcp: Duration::from_secs(listener.tcp_idle_timeout_s.into()),
                udp: Duration::from_secs(listener.udp_idle_timeout_s.into()),
            };
            limits.listeners.insert(listener.id, timeouts);
        }
        for listener in config.listeners.iter().filter(|listener| listener.tcp_reset_on_idle) {
            limits.reset_on_idle.extend(self.desired.names.listeners.get(&listener.name));
        }
        for (set_name, set) in &config.backend_sets {
            for backend in set.backends.iter().filter(|backend| backend.offline) {
                limits.cut.extend(self.desired.names.backends.get(&(set_name.clone(), backend.name.clone())));
            }
        }
        let now = Instant::now();
        limits.cut.extend(self.drains.iter().filter(|(_, deadline)| **deadline <= now).map(|(&id, _)| id));
        limits
    }

    /// Ends drains that have lasted long enough and frees the ids of removed backends without flows.
    fn keep_house(&mut self) {
        let census = self.flows.census();
        match self.applier.forget_backends(&mut self.dataplane.maps, &census) {
            Ok(forgotten) => {
                self.drains.retain(|id, _| !forgotten.contains(id));
                self.drain_timeouts.retain(|id, _| !forgotten.contains(id));
            }
            Err(error) => error!("cannot free the id of a removed backend: {error:#}"),
        }
        let config = self.overrides.applied_to(&self.config);
        self.flows.set_limits(self.limits(&config));
        self.dataplane
            .refresh_interfaces()
            .unwrap_or_else(|error| error!("cannot follow MACs and MTUs: {error:#}"));
        if self.host_ports.is_due() {
            self.look_at_host_ports();
        }
    }

    async fn answer(&mut self, question: Question) -> Answer {
        match question {
            Question::Status => {
                self.flows.walk_now(FRESH_CENSUS).await;
                self.status().map_or_else(failed, Answer::Document)
            }
            Question::Diagnose { set } => {
                self.flows.walk_now(FRESH_CENSUS).await;
                self.diagnose(set.as_deref()).unwrap_or_else(failed)
            }
            Question::Names => Answer::Document(json!(report::names(&self.desired.names))),
            Question::Metrics => self.metrics().unwrap_or_else(failed),
            Question::Config => {
                Answer::Document(json!({ "toml": config::show(&self.overrides.applied_to(&self.config)) }))
            }
            Question::History { set, backend } => self.book.history(set.as_deref(), backend.as_deref()),
            Question::Events => Answer::Document(self.events.document()),
            Question::Reload => match self.reload().await {
                Ok(()) => Answer::Document(json!({ "reloaded": true })),
                Err(Refusal::Config(report)) => {
                    Answer::Refused(json!({ "error": "the file was refused", "report": report }))
                }
                Err(Refusal::Host(error)) => failed(error),
            },
            Question::Backend { set, backend, action } => {
                if let Err(message) = self.overrides.set(&self.config, &set, &backend, action) {
                    return Answer::NotFound(message);
                }
                info!(set, backend, action = action.word(), "life-cycle changed by request");
                self.watch_backends();
                self.apply().map_or_else(failed, |()| Answer::Document(json!({ "done": true })))
            }
            Question::Detach => self.detach().map_or_else(failed, |()| Answer::Detached),
        }
    }

    /// Removes everything this instance has put on the host: program and maps, then its addresses.
    fn detach(&self) -> Result<()> {
        dataplane::detach(&self.instance.pins())?;
        vip::release(&self.instance.run_dir(), &BTreeSet::new())
            .context("cannot remove the assigned addresses")?;
        Ok(())
    }

    /// Everything a report may look at.
    fn with_sources<R>(&mut self, make: impl FnOnce(&Sources<'_>) -> Result<R>) -> Result<R> {
        let program_id = self.dataplane.program()?.info().context("cannot look at the program")?.id();
        let config = self.overrides.applied_to(&self.config);
        make(&Sources {
            instance: self.instance.name(),
            file: &self.file,
            loaded_at: self.loaded_at,
            last_reload_error: self.last_reload_error.as_deref(),
            reload_failures: self.reload_failures,
            config: &config,
            attached: &self.attached,
            program_id,
            desired: &self.desired,
            book: &self.book,
            ways: &self.ways.borrow(),
            census: &self.flows.census(),
            host_ports: &self.host_ports,
            maps: &self.dataplane.maps,
        })
    }

    fn status(&mut self) -> Result<serde_json::Value> {
        let status = self.with_sources(report::status)?;
        serde_json::to_value(status).context("cannot write the status")
    }

    fn diagnose(&mut self, set: Option<&str>) -> Result<Answer> {
        let diagnosis = self.with_sources(|sources| findings::diagnosis(sources, set))?;
        let Some(diagnosis) = diagnosis else {
            let names: Vec<&str> = self.config.backend_sets.keys().map(String::as_str).collect();
            return Ok(Answer::NotFound(format!("no such backend set; there are: {}", names.join(", "))));
        };
        Ok(Answer::Document(serde_json::to_value(diagnosis).context("cannot write the diagnosis")?))
    }

    fn metrics(&mut self) -> Result<Answer> {
        let status = self.with_sources(report::status)?;
        let text = metrics::render(&status, self.book.checks_made()).context("cannot write the metrics")?;
        Ok(Answer::Metrics(text))
    }

    async fn reload_or_complain(&mut self) {
        match self.reload().await {
            Ok(()) => {}
            Err(Refusal::Config(report)) => {
                warn!("the file was refused, the running configuration stays:\n{report}")
            }
            Err(Refusal::Host(error)) => error!("the reload failed: {error:#}"),
        }
    }

    /// Reads the file again. One that is refused, by itself or by the host, changes nothing but what the status says
    /// of it.
    async fn reload(&mut self) -> Result<(), Refusal> {
        self.service_manager.reloading();
        let switched = match config::load(&self.file) {
            Ok(loaded) => {
                for warning in &loaded.warnings {
                    warn!("{warning}");
                }
                self.switch_to(loaded.config).await.map_err(Refusal::Host)
            }
            Err(report) => Err(Refusal::Config(report.to_string())),
        };
        self.last_reload_error = switched.as_ref().err().map(Refusal::text);
        self.reload_failures += u64::from(switched.is_err());
        self.service_manager.reloaded(switched.is_ok());
        switched
    }

    /// Makes a configuration the running one. If the host cannot be brought to it, the one before is put back.
    async fn switch_to(&mut self, config: Config) -> Result<()> {
        let is_changed = config != self.config;
        let before = std::mem::replace(&mut self.config, config);
        let overrides = if is_changed { std::mem::take(&mut self.overrides) } else { self.overrides.clone() };
        if let Err(refused) = self.reconcile(&before).await {
            let failed = std::mem::replace(&mut self.config, before);
            self.overrides = overrides;
            if let Err(error) = self.reconcile(&failed).await {
                error!("cannot put the running configuration back: {error:#}");
            }
            return Err(refused);
        }
        if is_changed {
            self.loaded_at = Timestamp::now();
        }
        info!("{}", if is_changed { "reloaded" } else { "the file has not changed" });
        Ok(())
    }

    /// Brings the host from one configuration to the running one: API and attachments first, since they are what a
    /// host refuses. Also mends what has changed on the host meanwhile, an interface that was made anew for example.
    async fn reconcile(&mut self, before: &Config) -> Result<()> {
        self.tcp_api.follow(&self.config.api).await?;
        self.attach()?;
        if before.lb.interfaces != self.config.lb.interfaces {
            self.resolver = Resolver::new(self.config.lb.interfaces.clone())
                .context("cannot follow routes and neighbours")?;
            self.ways = self.resolver.ways();
        }
        self.watch_backends();
        self.resolver.first_round(NEIGHBOUR_WAIT).await;
        self.apply()?;
        self.look_at_host_ports();
        let Ours { added, .. } = self.assign_vips()?;
        tokio::spawn(async move { vip::announce(&added).await });
        self.judge_host_ports();
        Ok(())
    }

    /// Keeps SNAT away from ports that the host itself uses.
    fn look_at_host_ports(&mut self) {
        let addresses = self.desired.vips.keys().copied().collect();
        let refreshed =
            tokio::task::block_in_place(|| self.host_ports.refresh(&mut self.dataplane.maps, &addresses));
        refreshed.unwrap_or_else(|error| error!("cannot keep away from the host's ports: {error:#}"));
    }

    fn judge_host_ports(&mut self) {
        let judged = self.host_ports.judge(&self.config, &self.instance.run_dir());
        judged.unwrap_or_else(|error| error!("cannot judge the ports for SNAT: {error:#}"));
    }
}

/// How long a backend drains that was lost from the configuration while no controller ran, so that nobody knows what
/// its set said: the default of `drain_timeout_s`.
const REMOVED_DRAIN: Duration = Duration::from_secs(300);

/// Why a reload did not happen.
enum Refusal {
    /// The file is wrong.
    Config(String),
    /// The host cannot be brought to what the file says.
    Host(anyhow::Error),
}

impl Refusal {
    fn text(&self) -> String {
        match self {
            Self::Config(report) => report.clone(),
            Self::Host(error) => format!("{error:#}"),
        }
    }
}

fn drain_timeout(set: &config::BackendSet) -> Option<Duration> {
    (set.drain_timeout_s > 0).then(|| Duration::from_secs(set.drain_timeout_s.into()))
}

fn failed(error: anyhow::Error) -> Answer {
    Answer::Failed(format!("{error:#}"))
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

/// Holds fragments that come before the first of their datagram.
fn hold_fragments(dataplane: &mut Dataplane) -> Result<()> {
    let holder = dataplane.take_fragments().context("the data plane was taken apart")?;
    tokio::spawn(async move {
        if let Err(error) = holder.run().await {
            error!("fragments that come before the first of their datagram are lost: {error:#}");
        }
    });
    Ok(())
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
