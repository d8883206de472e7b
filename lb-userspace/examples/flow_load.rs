//! What many flows cost the collector, and what the collector costs packets: `cargo xtask bench flows`, as root.
//!
//! Fills the connection map with flows, walks over it as the controller does, and meanwhile sends packets of one of
//! the flows through the program, one by one, to see how long the slowest of them takes.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aya::maps::{HashMap, Map, MapData, loaded_maps};
use aya::programs::{TestRun, TestRunOptions, Xdp};
use clap::Parser;
use lb_common::{Addr4, Flow, FlowKey, NextHop, PROTO_UDP};
use lb_userspace::dataplane::{Dataplane, Limits, LoadOptions};

/// Flows of one client address.
const PORTS: u32 = 50_000;
const FIRST_PORT: u16 = 10_000;
/// Ticks by which the flows are younger than now, so that none idles out meanwhile.
const AHEAD: u32 = 1 << 20;
/// XDP_TX
const TX: u32 = 3;

#[derive(Parser)]
struct Arguments {
    /// How many flows, two entries each.
    #[arg(long, default_value_t = 16 << 20)]
    flows: u32,
    /// How many walks.
    #[arg(long, default_value_t = 3)]
    walks: u32,
}

type Connections = HashMap<MapData, FlowKey<Addr4>, Flow<Addr4>>;

fn main() -> Result<()> {
    let Arguments { flows, walks } = Arguments::parse();
    let options = LoadOptions { max_connections: flows, ..LoadOptions::default() };
    let mut dataplane = Dataplane::load(&options)?;
    let collector = dataplane.take_collector().context("the collector is gone")?;
    let before = available_kib()?;
    let begin = Instant::now();
    let stamp = tick(&mut dataplane)?.wrapping_add(AHEAD);
    fill(&mut connections()?, flows, stamp)?;
    let memory = before.saturating_sub(available_kib()?);
    println!(
        "{flows} flows made in {:.1?}, {} bytes each",
        begin.elapsed(),
        memory * 1024 / u64::from(flows)
    );

    let frame = frame();
    let quiet = Latencies::of(&mut dataplane, &frame, Duration::from_secs(3), &AtomicBool::new(true))?;
    println!("packets while nothing walks: {quiet}");
    let walking = AtomicBool::new(true);
    thread::scope(|scope| {
        let walk = scope.spawn(|| {
            let result = (0..walks).try_for_each(|_| {
                let begin = Instant::now();
                let census = collector.sweep(&Limits::default())?;
                let found: u64 = census.by_listener.values().sum();
                println!("a walk found {found} flows in {:.2?}", begin.elapsed());
                anyhow::Ok(())
            });
            walking.store(false, Ordering::Relaxed);
            result
        });
        let busy = Latencies::of(&mut dataplane, &frame, Duration::from_secs(600), &walking)?;
        println!("packets while it walks:      {busy}");
        walk.join().map_err(|_| anyhow::anyhow!("the walk panicked"))?
    })
}

/// The map that was just made.
fn connections() -> Result<Connections> {
    let named = loaded_maps().filter_map(Result::ok).filter(|map| map.name() == b"connections_v4");
    let newest = named.map(|map| map.id()).max().context("there is no map `connections_v4`")?;
    Map::HashMap(MapData::from_id(newest)?).try_into().context("`connections_v4` is no hash map")
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

fn fill(map: &mut Connections, flows: u32, stamp: u32) -> Result<()> {
    let client = NextHop { ifindex: 1, peer: [2, 0, 0, 0, 0, 1], local: [2, 0, 0, 0, 0, 2] };
    let half = |from: FlowKey<Addr4>, direction| Flow {
        source: from.destination,
        destination: from.source,
        source_port: from.destination_port,
        destination_port: from.source_port,
        client,
        direction,
        seen: Flow::<Addr4>::ESTABLISHED,
        created: stamp,
        last_seen: stamp,
        ..Flow::default()
    };
    for number in 0..flows {
        let (key, answer) = (key(number), answer(number));
        map.insert(key, half(answer, Flow::<Addr4>::TO_BACKEND), 0)?;
        map.insert(answer, half(key, Flow::<Addr4>::TO_CLIENT), 0)?;
    }
    Ok(())
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

/// Memory that the kernel could give away, in KiB (`MemAvailable`).
fn available_kib() -> Result<u64> {
    let memory = std::fs::read_to_string("/proc/meminfo")?;
    let line =
        memory.lines().find_map(|line| line.strip_prefix("MemAvailable:")).context("no MemAvailable")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
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

impl std::fmt::Display for Latencies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let at = |share: f64| {
            let index = (self.0.len() as f64 * share) as usize;
            self.0.get(index.min(self.0.len().saturating_sub(1))).copied().unwrap_or_default()
        };
        let (median, p999, worst) = (at(0.5), at(0.999), at(1.0));
        write!(f, "{} sent, median {median:.1?}, 99.9 % within {p999:.1?}, worst {worst:.1?}", self.0.len())
    }
}
