//! Loads the eBPF object and creates its maps, or adopts those that an earlier controller pinned.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow};
use aya::maps::{Map, MapData};
use aya::programs::{ProgramError, TestRun, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use aya_obj::Object;
use lb_common::{Event, Features, LAYOUT_VERSION, Settings};

use super::cached::{self, CachedFlows};
use super::clock::{Clock, ticks_per_second};
use super::collect::Collector;
use super::explain::Explainer;
use super::fragments::FragmentHolder;
use super::inspect::{features_in_use, inspect, with_adopted_sizes};
use super::journeys::{JOURNEYS, Journeys};
use super::maps::Maps;
use super::records::Ring;
use super::sizes::{CACHES, Family, Sizes};

/// The eBPF object that `cargo xtask build` made.
pub(super) static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("LB_EBPF_OBJECT"));

/// Maps that only the program uses and that hold nothing worth keeping between packets, beside the caches.
const SCRATCH_MAPS: [&str; 7] =
    ["opening_v4", "opening_v6", "scratch_v4", "scratch_v6", "answer", "answer_rates", "event_rates"];

/// How to load the data plane.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// Directory in a bpffs that holds the pins; `None`: nothing is pinned, the maps die with this process.
    pub pins: Option<PathBuf>,
    /// Room for this many flows, when the maps are made.
    pub max_connections: u32,
    /// What the programs are made for: they do nothing else.
    pub features: Features,
    /// Lets the program log what it drops (aya-log). Without it the verifier removes every log statement.
    pub packet_log: bool,
}

/// Where the maps come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Made now, empty.
    Fresh,
    /// Pinned by an earlier controller.
    Adopted,
}

/// A loaded data plane.
pub struct Dataplane {
    /// The program, with whatever else of the object must stay alive.
    pub(super) ebpf: Ebpf,
    /// Where pins are.
    pub(super) pins: Option<PathBuf>,
    /// The maps the controller writes.
    pub maps: Maps,
    /// Whether state was taken over.
    pub origin: Origin,
    /// How many flows the maps have room for.
    pub room: u32,
    /// What the programs are made for.
    pub features: Features,
    pub(super) journeys: Journeys,
    /// The program's copies of flows.
    pub cached: CachedFlows,
    /// Says what would become of a packet.
    pub explainer: Explainer,
    collector: Option<Collector>,
    fragments: Option<FragmentHolder>,
    events: Option<EventSource>,
}

/// Where the program's events come from.
pub struct EventSource {
    ring: Ring<Event>,
    clock: Clock,
}

impl EventSource {
    /// The ring they come by, and the clock they are stamped with.
    pub fn into_parts(self) -> (Ring<Event>, Clock) {
        (self.ring, self.clock)
    }
}

/// A verdict of the loaded program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// XDP action.
    pub action: u32,
    /// The packet afterwards.
    pub packet: Vec<u8>,
}

impl Dataplane {
    /// Loads the program, without attaching it anywhere.
    ///
    /// # Errors
    ///
    /// If the kernel refuses the program, or pinned maps have another layout than this program's.
    pub fn load(options: &LoadOptions) -> Result<Self> {
        let mut sizes = Sizes::new(options.max_connections, options.features)?;
        let origin = match &options.pins {
            Some(pins) => inspect(pins, sizes, options.max_connections)?,
            None => Origin::Fresh,
        };
        if let (Origin::Adopted, Some(pins)) = (origin, &options.pins) {
            sizes = with_adopted_sizes(pins, sizes)?;
            sizes.features = sizes.features.and(features_in_use(pins)?);
        }
        let features = sizes.features;
        let mut ebpf = load_object(options, sizes)?;
        let cached = CachedFlows::new(load_program(&mut ebpf, cached::PROGRAM)?)?;
        let maps = Maps::take(&mut ebpf, cached.try_clone()?)?;
        let entry = load_program(&mut ebpf, "lb")?.fd()?.try_clone().context("cannot keep the program")?;
        let journeys = Journeys::load(&mut ebpf, options.pins.as_deref(), features)?;
        let explainer = Explainer::load(&mut ebpf)?;
        let clock = Clock::new(load_program(&mut ebpf, "clock")?)?;
        let fragments = Some(FragmentHolder::take(&mut ebpf, entry, clock.try_clone()?)?);
        let events = Some(EventSource { ring: Ring::take(&mut ebpf, "events")?, clock: clock.try_clone()? });
        let collector = Collector::take(&mut ebpf, clock, cached.try_clone()?)?;
        let room = collector.room()?;
        let pins = options.pins.clone();
        let mut dataplane = Self {
            ebpf,
            pins,
            maps,
            origin,
            room,
            features,
            journeys,
            explainer,
            cached,
            collector: Some(collector),
            fragments,
            events,
        };
        if origin == Origin::Fresh {
            let settings = Settings {
                layout_version: LAYOUT_VERSION,
                ticks_per_second: ticks_per_second()?,
                ..Settings::default()
            };
            dataplane.maps.set_settings(&settings)?;
            dataplane.maps.scatter_snat_cursors()?;
        } else {
            dataplane.maps.note_ours()?;
        }
        Ok(dataplane)
    }

    /// The XDP program.
    ///
    /// # Errors
    ///
    /// If the object has none, which a build with `cargo xtask build` rules out.
    pub fn program(&mut self) -> Result<&mut Xdp> {
        xdp_program(&mut self.ebpf, "lb")
    }

    /// Hands out what walks over the flows, once.
    pub const fn take_collector(&mut self) -> Option<Collector> {
        self.collector.take()
    }

    /// Hands out what holds early fragments, once.
    pub const fn take_fragments(&mut self) -> Option<FragmentHolder> {
        self.fragments.take()
    }

    /// Hands out where events come from, once.
    pub const fn take_events(&mut self) -> Option<EventSource> {
        self.events.take()
    }

    /// The object, for whoever reads the program's log.
    pub const fn ebpf(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    /// Asks the loaded program for its verdict on a frame (BPF_PROG_TEST_RUN), as if it came in through the
    /// interface with this index. Flows and counters change as they would.
    ///
    /// # Errors
    ///
    /// If the kernel cannot run the program on this frame; it must have at least 14 bytes, and the interface must
    /// exist.
    pub fn test_run(&mut self, frame: &[u8], ingress: u32) -> Result<Verdict> {
        let mut packet = vec![0; frame.len() + 256];
        let context = xdp_md(frame.len(), ingress);
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut packet),
            ctx_in: Some(&context),
            ..TestRunOptions::new()
        };
        let run = self.program()?.test_run(options).context("BPF_PROG_TEST_RUN failed")?;
        packet.truncate(run.data_size_out as usize);
        Ok(Verdict { action: run.return_value, packet })
    }
}

/// `struct xdp_md` of the kernel's ABI: data, data_end, data_meta, ingress_ifindex, rx_queue_index,
/// egress_ifindex.
pub(super) fn xdp_md(length: usize, ingress: u32) -> [u8; 24] {
    let fields = [0, length as u32, 0, ingress, 0, 0];
    let mut context = [0; 24];
    for (bytes, field) in context.chunks_exact_mut(4).zip(fields) {
        bytes.copy_from_slice(&u32::to_ne_bytes(field));
    }
    context
}

fn load_object(options: &LoadOptions, sizes: Sizes) -> Result<Ebpf> {
    let (ticks, half_open) = (ticks_per_second()?, sizes.half_open_per_cpu());
    let (flow_buckets, answer_buckets) = (sizes.flow_buckets(), sizes.answer_buckets());
    let writes_in_order = u32::from(cfg!(target_arch = "x86_64"));
    let cached = [Family::V4, Family::V6].map(|family| sizes.cache_entries(family));
    let lanes = [Family::V4, Family::V6].map(|family| sizes.lanes(family));
    let features = sizes.features.bits();
    let log_level: u8 = if options.packet_log { 4 } else { 0 };
    let mut loader = EbpfLoader::new();
    loader
        .override_global("TICKS_PER_SECOND", &ticks, true)
        .override_global("HALF_OPEN_PER_CPU", &half_open, true)
        .override_global("WRITES_IN_ORDER", &writes_in_order, true)
        .override_global("FLOW_BUCKETS", &flow_buckets, true)
        .override_global("ANSWER_BUCKETS", &answer_buckets, true)
        .override_global("FEATURES", &features, true)
        .override_global("CACHED_V4_PER_CPU", &cached[0], true)
        .override_global("CACHED_V6_PER_CPU", &cached[1], true)
        .override_global("LANES_V4_PER_CPU", &lanes[0], true)
        .override_global("LANES_V6_PER_CPU", &lanes[1], true)
        .override_global(aya_log::LEVEL, &log_level, false);
    for (name, entries) in sizes.of_maps() {
        loader.map_max_entries(name, entries);
    }
    if let Some(pins) = &options.pins {
        fs::create_dir_all(pins).with_context(|| format!("cannot create {}", pins.display()))?;
        for name in pinned_maps()? {
            let path = pins.join(&name);
            // The loader wants names for as long as it lives; there are a dozen of them, once a process.
            loader.map_pin_path(name.leak(), path);
        }
    }
    loader.load(OBJECT).context("cannot load the eBPF object")
}

/// Names of the maps that are pinned when they are made: those in lower case, which are ours, but for scratch memory
/// and for the journeys, which are pinned when they are filled.
pub(super) fn pinned_maps() -> Result<Vec<String>> {
    let object = Object::parse(OBJECT).context("cannot read the embedded eBPF object")?;
    let is_pinned = |name: &&String| {
        name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
            && !SCRATCH_MAPS.contains(&name.as_str())
            && !CACHES.contains(&name.as_str())
            && *name != JOURNEYS
    };
    Ok(object.maps.keys().filter(is_pinned).cloned().collect())
}

/// Loads one program of the object into the kernel.
pub(super) fn load_program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    let program = xdp_program(ebpf, name)?;
    program
        .load()
        .map_err(verifier_report)
        .with_context(|| format!("the kernel refused the program `{name}`"))?;
    Ok(program)
}

fn xdp_program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    let program =
        ebpf.program_mut(name).with_context(|| format!("the eBPF object has no program `{name}`"))?;
    program.try_into().with_context(|| format!("the program `{name}` is not an XDP program"))
}

/// Takes a hash map out of the object.
pub(super) fn take_hash(ebpf: &mut Ebpf, name: &str) -> Result<MapData> {
    match ebpf.take_map(name) {
        Some(Map::HashMap(map)) => Ok(map),
        _ => Err(anyhow!("the eBPF object has no hash map `{name}`")),
    }
}

/// An array of the object.
pub(super) fn array_of<'a>(ebpf: &'a Ebpf, name: &str) -> Result<&'a MapData> {
    match ebpf.map(name) {
        Some(Map::Array(map)) => Ok(map),
        _ => Err(anyhow!("the eBPF object has no array `{name}`")),
    }
}

/// The verifier's log is thousands of lines; its end says why.
fn verifier_report(error: ProgramError) -> anyhow::Error {
    match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            let log = verifier_log.to_string();
            let lines: Vec<&str> = log.lines().collect();
            let end = lines[lines.len().saturating_sub(20)..].join("\n");
            anyhow!("{io_error}; the verifier's last words:\n{end}")
        }
        error => error.into(),
    }
}
