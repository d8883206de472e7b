//! A loaded data plane, filled by the controller's own code, that answers frames.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use aya::Ebpf;
use aya::programs::Xdp;
use lb_common::Explanation;
use lb_common::InterfaceMac;
use lb_userspace::config::Config;
use lb_userspace::control::desired::Names;
use lb_userspace::control::{Applier, Desired};
use lb_userspace::dataplane::collect::IdleTimeouts;
use lb_userspace::dataplane::{Census, Limits, Tally};

use super::plane::{Held, Plane};
use super::{Counts, Family, Half, Network, States};

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

/// A data plane on the bench. Nothing is pinned or attached.
pub struct Bench {
    plane: Plane,
    applier: Applier,
    config: Config,
    states: States,
    names: Names,
}

impl Bench {
    /// Loads the program, with the `max_connections` of the configuration, and fills its maps as the controller
    /// would.
    ///
    /// # Errors
    ///
    /// Without root, or if the kernel refuses the program.
    pub fn new(config: Config, states: States) -> Result<Self> {
        let plane = Plane::borrow(config.lb.max_connections)?;
        let (applier, names) = (Applier::default(), Names::default());
        let mut bench = Self { plane, applier, config, states, names };
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

    /// Ids by name.
    pub const fn names(&self) -> &Names {
        &self.names
    }

    /// The program, for what this type does not offer: several threads, repetitions, its figures.
    ///
    /// # Errors
    ///
    /// If the object has none.
    pub fn program(&mut self) -> Result<&mut Xdp> {
        self.plane.dataplane.program()
    }

    /// The object, for whoever opens its maps.
    pub fn ebpf(&mut self) -> &Ebpf {
        self.plane.dataplane.ebpf()
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

    /// Tells the program of the balancer's interfaces, as the controller does when it attaches.
    ///
    /// # Errors
    ///
    /// If the map cannot be written.
    pub fn introduce(&mut self, network: &Network) -> Result<()> {
        network.interfaces.values().try_for_each(|own| self.set_interface(own.index, network.told(own)))
    }

    /// Tells the program of an interface by its index.
    ///
    /// # Errors
    ///
    /// If the map cannot be written.
    pub fn set_interface(&mut self, index: u32, interface: InterfaceMac) -> Result<()> {
        self.plane.dataplane.maps.set_interface(index, &interface)
    }

    /// Takes the fragment that has been held longest.
    ///
    /// # Errors
    ///
    /// If the ring cannot be read.
    pub fn held(&mut self) -> Result<Option<Held>> {
        self.plane.held()
    }

    /// How many flows that have not proved themselves each CPU has room for.
    ///
    /// # Errors
    ///
    /// If the CPUs cannot be counted.
    pub fn half_open_room(&self) -> Result<u32> {
        self.plane.half_open_room()
    }

    /// Fills the connection maps up to where so many flows more can be promoted.
    ///
    /// # Errors
    ///
    /// If a map cannot be read or written.
    pub fn fill(&mut self, flows_more: u32) -> Result<()> {
        self.plane.fill(flows_more)
    }

    /// Marks all TCP flows as ended by the controller.
    ///
    /// # Errors
    ///
    /// If a map cannot be read or written.
    pub fn cut(&mut self) -> Result<()> {
        self.plane.cut()
    }

    /// Forgets what the controller knew and reads it from the maps again, as after `kill -9`.
    ///
    /// # Errors
    ///
    /// If a map cannot be read.
    pub fn restart(&mut self) -> Result<()> {
        self.applier = Applier::read(&self.plane.dataplane.maps)?;
        self.apply()
    }

    fn apply(&mut self) -> Result<()> {
        let desired = Desired::compute(&self.config, &mut self.applier.ids, &self.states)?;
        self.applier.apply(&mut self.plane.dataplane.maps, &desired)?;
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
        let answer = self.plane.dataplane.test_run(frame, ingress)?;
        Ok(Answer { verdict: Verdict::try_from(answer.action)?, frame: answer.packet })
    }

    /// What the program says would become of a frame; see [`Bench::send`].
    ///
    /// # Errors
    ///
    /// If the kernel does not run the program.
    pub fn explain(&self, frame: &[u8], ingress: u32) -> Result<Explanation> {
        self.plane.dataplane.explainer.explain(frame, ingress)
    }

    /// All counters.
    ///
    /// # Errors
    ///
    /// If a map cannot be read.
    pub fn counts(&self) -> Result<Counts> {
        Counts::read(&self.plane.dataplane.maps, &self.names)
    }

    /// The counters of listeners and backends, for longer than a moment.
    pub fn tally(&self) -> Tally<'_> {
        self.plane.dataplane.maps.tally()
    }

    /// Walks over the flows as the controller does from time to time, with the limits of the configuration; the
    /// flows of offline backends end.
    ///
    /// # Errors
    ///
    /// If a map cannot be read.
    pub fn sweep(&self) -> Result<Census> {
        self.plane.collector.sweep(&self.limits())
    }

    fn limits(&self) -> Limits {
        let mut limits = Limits::default();
        for listener in &self.config.listeners {
            let timeouts = IdleTimeouts {
                tcp: Duration::from_secs(listener.tcp_idle_timeout_s.into()),
                udp: Duration::from_secs(listener.udp_idle_timeout_s.into()),
            };
            let id = self.names.listeners[&listener.name];
            limits.listeners.insert(id, timeouts);
            if listener.tcp_reset_on_idle {
                limits.reset_on_idle.insert(id);
            }
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
        self.plane.age(time)
    }

    /// Makes every flow look as if no packet had looked at it for long. Copies that the program has are left as they are.
    ///
    /// # Errors
    ///
    /// If a map cannot be read or written.
    pub fn backdate(&mut self) -> Result<()> {
        self.plane.backdate()
    }

    /// How many flows no packet has looked at since [`Self::backdate`]: those of which both directions went on by copies.
    ///
    /// # Errors
    ///
    /// If a map cannot be read.
    pub fn backdated(&self) -> Result<usize> {
        self.plane.backdated()
    }

    /// Makes every flow belong to the backend with this id, which need not exist.
    ///
    /// # Errors
    ///
    /// If a map cannot be read or written.
    pub fn set_backend_of_flows(&mut self, id: u32) -> Result<()> {
        self.plane.set_backend_of_flows(id)
    }

    /// Both directions of all live flows.
    ///
    /// # Errors
    ///
    /// If a map cannot be read.
    pub fn halves(&self) -> Result<Vec<Half>> {
        self.plane.halves()
    }

    /// Live flows. Each must be found by its client's packets and by its answers.
    ///
    /// # Errors
    ///
    /// If one is not, or a map cannot be read.
    pub fn flows(&self) -> Result<Vec<Half>> {
        let halves = self.halves()?;
        self.plane.require_consistent().with_context(|| format!("of {halves:#?}"))?;
        Ok(halves.into_iter().filter(|half| half.is_to_backend).collect())
    }

    /// How many claims there are, on answers and on where half-open flows are: none without flows.
    ///
    /// # Errors
    ///
    /// If a map cannot be read.
    pub fn claims(&self) -> Result<usize> {
        self.plane.claims()
    }

    /// Into how many buckets the answers of a family fall.
    pub fn answer_buckets(&self, family: Family) -> u32 {
        let [v4, v6] = self.plane.answer_buckets();
        match family {
            Family::V4 => v4,
            Family::V6 => v6,
        }
    }

    /// Empties the maps, so that the next test finds them as if just loaded.
    fn empty(&mut self) -> Result<()> {
        let Self { plane, applier, .. } = self;
        applier.apply(&mut plane.dataplane.maps, &Desired::default())?;
        let no_flows = Census { began: Some(Instant::now()), ..Census::default() };
        applier.forget_backends(&mut plane.dataplane.maps, &no_flows)?;
        plane.give_back()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // A data plane that cannot be emptied is not used again; why it cannot is the next test's to find.
        let _ = self.empty();
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
            _ => bail!("expected the verdict DROP, PASS, TX or REDIRECT, found XDP action {action}"),
        }
    }
}
