//! What many flows cost the collector, what the collector costs packets, and what flows cost in memory.
//!
//! Fills the connection map with flows, walks over it as the controller does, and meanwhile sends packets of one of
//! the flows through the program, one by one, to see how long the slowest of them takes.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use aya::programs::{TestRun as _, TestRunOptions, Xdp};
use lb_common::{Addr4, Address as _, Flow, FlowKey, NextHop, PROTO_UDP};
use lb_tests::flow_tables::FlowTables;
use lb_tests::plane_maps::map_of;
use lb_tests::report::Goal;
use lb_userspace::dataplane::{Collector, Dataplane, Limits, LoadOptions};

use crate::memory;
use crate::report::Report;

/// Flows of one client address.
const PORTS: u32 = 50_000;
const FIRST_PORT: u16 = 10_000;
/// Ticks by which the flows are younger than now, so that none idles out meanwhile.
pub(crate) const AHEAD: u32 = 1 << 20;
/// Ticks after which every flow has idled out.
const LONG_AGO: u32 = 1 << 24;
/// Bytes of a bucket of the kernel's hash maps (`struct bucket` in kernel/bpf/hashtab.c, Linux 6.1 to 6.18), of which there are as many as
/// entries, rounded up to a power of two.
const KERNEL_BUCKET: f64 = 16.0;
/// XDP_TX
const TX: u32 = 3;

/// A flow, with the tuple of its client's packets.
pub(crate) type Entry = (FlowKey<Addr4>, Flow<Addr4>);

/// Measures with so many flows.
pub(crate) fn measure(report: &mut Report, flows: u32, rounds: u32) -> Result<()> {
    let mut plane = Plane::load(flows)?;
    let mut tables = FlowTables::of(plane.dataplane.ebpf())?;
    let now = tick(&mut plane.dataplane)?;
    let live = |number| udp_flow(number, now.wrapping_add(AHEAD));
    // Once: what is freed later is given back in the background, and would be taken for less that is taken.
    let (kernel, counted) = (memory::of_kernel()?, plane.counted()?);
    fill(&mut tables, flows, live)?;
    let kernel = (memory::of_kernel()? - kernel) / f64::from(flows);
    let counted = (plane.counted()? - counted) / f64::from(flows);
    // Made when the maps are: for every flow that there may ever be, half-open ones included, but for the kernel's own buckets.
    let kernels = f64::from(flows.next_power_of_two()) * KERNEL_BUCKET / f64::from(flows);
    let tables_share = tables.bucket_bytes() as f64 / f64::from(tables.flows_at_most()) + kernels;
    report.add(
        format!("kernel memory, empty, with room for {flows} flows of each family"),
        "bytes",
        vec![plane.bytes],
    );
    report.add("kernel memory for a flow, counted", "bytes", vec![counted]);
    report.add("kernel memory for a flow, as they come", "bytes", vec![kernel]);
    report.add(
        "its share of the buckets that lead to flows, which are there from the start",
        "bytes",
        vec![tables_share],
    );
    // Where others give memory back meanwhile, the kernel holds less than the maps do.
    report.reach(Goal::FlowMemory, kernel.max(counted) + tables_share);

    latencies(report, &mut plane, flows)?;
    let (mut walks, mut ends) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        fill(&mut tables, flows, live)?;
        walks.push(plane.sweep(u64::from(flows))?);
        fill(&mut tables, flows, |number| udp_flow(number, now.wrapping_sub(LONG_AGO)))?;
        ends.push(plane.sweep(0)?);
        let (left, claims) = (tables.promoted()?.len(), tables.claims()?);
        ensure!(
            (left, claims) == (0, 0),
            "{left} flows that have idled out are still there, and {claims} claims"
        );
    }
    report.add_times(format!("a walk over {flows} flows, none of which ends"), &walks);
    report.add_times(format!("a walk over {flows} flows that ends them all"), &ends);
    Ok(())
}

/// A data plane without interfaces.
struct Plane {
    dataplane: Dataplane,
    collector: Collector,
    /// Memory that loading it took.
    bytes: f64,
}

impl Plane {
    fn load(flows: u32) -> Result<Self> {
        let before = memory::of_kernel()?;
        let options = LoadOptions { max_connections: flows, ..LoadOptions::default() };
        let mut dataplane = Dataplane::load(&options)?;
        let collector = dataplane.take_collector().context("the collector is gone")?;
        Ok(Self { dataplane, collector, bytes: memory::of_kernel()? - before })
    }

    /// What the kernel says that the maps hold which grow with flows.
    fn counted(&mut self) -> Result<f64> {
        let ebpf = self.dataplane.ebpf();
        let of = |name| memory::of_map(&map_of(ebpf, name)?);
        Ok(of("connections_v4")? + of("answers_more_v4")?)
    }

    /// How long a walk takes, which has to find so many flows.
    fn sweep(&self, expected: u64) -> Result<Duration> {
        let begin = Instant::now();
        let census = self.collector.sweep(&Limits::default())?;
        let took = begin.elapsed();
        let found: u64 = census.by_listener.values().sum();
        ensure!(found == expected, "a walk found {found} flows, expected were {expected}");
        Ok(took)
    }
}

/// How long packets take while nothing walks, and while the collector does.
fn latencies(report: &mut Report, plane: &mut Plane, flows: u32) -> Result<()> {
    let frame = frame();
    let Plane { dataplane, collector, .. } = plane;
    // Addresses of ours, else the packet is no answer.
    for address in [answer(0).source, answer(0).destination] {
        dataplane.maps.set_vip(&address.widen(), 0)?;
    }
    let quiet = Latencies::of(dataplane, &frame, Duration::from_secs(3), &AtomicBool::new(true))?;
    quiet.tell(report, "while nothing walks");
    let walking = AtomicBool::new(true);
    let busy = thread::scope(|scope| {
        let walk = scope.spawn(|| {
            let result = (0..3).try_for_each(|_| collector.sweep(&Limits::default()).map(drop));
            walking.store(false, Ordering::Relaxed);
            result
        });
        let busy = Latencies::of(dataplane, &frame, Duration::from_secs(600), &walking);
        walk.join().map_err(|_| anyhow!("the walk panicked"))??;
        busy
    })?;
    busy.tell(report, &format!("while the collector walks over {flows} flows"));
    Ok(())
}

/// The kernel's tick counter, as the program sees it.
fn tick(dataplane: &mut Dataplane) -> Result<u32> {
    let clock = dataplane.ebpf().program_mut("clock").context("there is no program `clock`")?;
    let clock: &mut Xdp = clock.try_into()?;
    let options = TestRunOptions { data_in: Some(&[0; 64]), ..TestRunOptions::new() };
    Ok(clock.test_run(options)?.return_value)
}

fn key(number: u32) -> FlowKey<Addr4> {
    FlowKey {
        source: Ipv4Addr::from(0x6440_0000 + number / PORTS).into(),
        destination: Ipv4Addr::new(10, 0, 1, 100).into(),
        source_port: FIRST_PORT + (number % PORTS) as u16,
        destination_port: 53,
        protocol: PROTO_UDP,
        _pad: [0; 3],
    }
}

/// The tuple of the answers: each flow has a SNAT address and port of its own.
fn answer(number: u32) -> FlowKey<Addr4> {
    FlowKey {
        source: Ipv4Addr::new(10, 0, 1, 10).into(),
        destination: Ipv4Addr::from(0x0a80_0000 + number / PORTS).into(),
        source_port: 53,
        destination_port: FIRST_PORT + (number % PORTS) as u16,
        protocol: PROTO_UDP,
        _pad: [0; 3],
    }
}

/// Enters so many flows; those that are there already become as these are.
pub(crate) fn fill(tables: &mut FlowTables<Addr4>, flows: u32, flow: impl Fn(u32) -> Entry) -> Result<()> {
    (0..flows).map(flow).try_for_each(|(key, flow)| tables.insert(&key, &flow))
}

/// A flow that saw its last packet at this tick.
fn udp_flow(number: u32, stamp: u32) -> Entry {
    let client = NextHop { ifindex: 1, peer: [2, 0, 0, 0, 0, 1], local: [2, 0, 0, 0, 0, 2] };
    let flow = Flow {
        destination: answer(number).source,
        destination_port: answer(number).source_port,
        client,
        seen_to_backend: Flow::<Addr4>::ESTABLISHED,
        seen_to_client: Flow::<Addr4>::ESTABLISHED,
        created: stamp,
        last_seen: stamp,
        ..Flow::default()
    };
    like(number, (key(number), flow))
}

/// The flow of this number: its own client and its own source at the backend, and all else as this one has it.
pub(crate) fn like(number: u32, (client, flow): Entry) -> Entry {
    let (own, answers) = (key(number), answer(number));
    let client = FlowKey { source: own.source, source_port: own.source_port, ..client };
    (client, Flow { source: answers.destination, source_port: answers.destination_port, ..flow })
}

/// An answer of the first flow's backend: Ethernet, IPv4, UDP, no checksums, which the program does not look at.
fn frame() -> Vec<u8> {
    let FlowKey { source, destination, source_port, destination_port, .. } = answer(0);
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];
    frame.extend([0x45, 0, 0, 46, 0, 0, 0, 0, 64, PROTO_UDP, 0, 0]);
    frame.extend(source.bytes);
    frame.extend(destination.bytes);
    frame.extend(source_port.to_be_bytes());
    frame.extend(destination_port.to_be_bytes());
    frame.extend([0, 26, 0, 0]);
    frame.resize(60, 0);
    frame
}

/// How long packets took, each with the system call that sends it.
struct Latencies(Vec<Duration>);

impl Latencies {
    /// Sends packets until `limit` is over or `going` ends.
    fn of(dataplane: &mut Dataplane, frame: &[u8], limit: Duration, going: &AtomicBool) -> Result<Self> {
        let begin = Instant::now();
        let mut all = Vec::new();
        while going.load(Ordering::Relaxed) && begin.elapsed() < limit {
            let sent = Instant::now();
            let verdict = dataplane.test_run(frame, 1)?;
            all.push(sent.elapsed());
            ensure!(
                verdict.action == TX,
                "expected the packet to be sent on, found verdict {}",
                verdict.action
            );
        }
        all.sort_unstable();
        Ok(Self(all))
    }
}

impl Latencies {
    fn tell(&self, report: &mut Report, when: &str) {
        let at = |share: f64| {
            let index = (self.0.len() as f64 * share) as usize;
            let time = self.0.get(index.min(self.0.len().saturating_sub(1))).copied().unwrap_or_default();
            vec![time.as_secs_f64() * 1e6]
        };
        report.add(format!("a packet {when}, with its system call, median"), "µs", at(0.5));
        report.add(format!("a packet {when}, 99.9 % within"), "µs", at(0.999));
        report.add(format!("a packet {when}, worst"), "µs", at(1.0));
    }
}
