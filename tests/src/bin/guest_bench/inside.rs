//! What happens inside of the virtual machine: there, a nanosecond is an instruction.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use aya::Ebpf;
use aya::maps::{Array, MapData};
use aya::programs::{TestRun as _, TestRunAttrs, TestRunOptions, Xdp, XdpMode};
use clap::Parser;
use etherparse::PacketBuilder;
use lb_tests::netns::wait;
use nix::net::if_::if_nametoindex;
use serde::{Deserialize, Serialize};

use crate::site::{BALANCER_MAC, CLIENT_MAC, Site};
use crate::subject::{BACKEND, CLIENT, Subject};

/// Packets of a short run and of a long one. What is measured is the difference, so that all that comes once a run cancels.
const SHORT: u32 = 4_096;
const LONG: u32 = 69_632;

/// Frames that are sent before the kernel may do something else. A veth takes 256 at a time.
const BATCH: u32 = 64;

/// Length of a frame; `lb-ebpf/src/bench.rs` says the same in words.
const FRAME: usize = 64;

/// How long packets may be under way.
const PATIENCE: Duration = Duration::from_secs(5);

/// The command line inside.
#[derive(Parser)]
pub(crate) struct Inside {
    /// [`Inside::WORD`]
    #[arg()]
    _word: String,
    /// How often everything is measured.
    #[arg(long)]
    pub(crate) rounds: u32,
}

impl Inside {
    /// The first argument.
    pub(crate) const WORD: &str = "inside";
}

/// Instructions for a packet of each subject, a value for each round.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Samples {
    /// Version of the kernel.
    pub(crate) kernel: String,
    pub(crate) of: Vec<(Subject, Vec<f64>)>,
}

/// Measures all subjects.
pub(crate) fn measure(object: &Path, rounds: u32) -> Result<Samples> {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned();
    let of = Subject::ALL.map(|subject| {
        let samples = measure_one(object, subject, rounds);
        samples.map(|samples| (subject, samples)).with_context(|| subject.name())
    });
    Ok(Samples { kernel, of: of.into_iter().collect::<Result<_>>()? })
}

fn measure_one(object: &Path, subject: Subject, rounds: u32) -> Result<Vec<f64>> {
    let site = Site::new()?;
    let mut traffic = Traffic::new(object, &site, subject)?;
    site.set_up(subject)?;
    traffic.warm_up()?;
    // What setting up has left to be done in the background is done meanwhile.
    traffic.run(LONG)?;
    let mut samples = Vec::new();
    for _ in 0..rounds {
        let (short, long) = (traffic.run(SHORT)?, traffic.run(LONG)?);
        samples.push((long.as_nanos() as f64 - short.as_nanos() as f64) / f64::from(LONG - SHORT));
    }
    traffic.check(subject)?;
    println!("{}: {samples:.0?}", subject.name());
    Ok(samples)
}

/// The generator at one end and the sink at the other.
struct Traffic<'a> {
    site: &'a Site,
    object: Ebpf,
    arrived: Array<MapData, [u32; 4]>,
    frame: Vec<u8>,
}

impl<'a> Traffic<'a> {
    fn new(object: &Path, site: &'a Site, subject: Subject) -> Result<Self> {
        let mut object =
            Ebpf::load_file(object).with_context(|| format!("cannot load {}", object.display()))?;
        let frame = frame(subject.target())?;
        let words: Vec<u64> = frame.as_chunks().0.iter().map(|word| u64::from_ne_bytes(*word)).collect();
        let mut headers = [0_u64; 10];
        headers[..words.len()].copy_from_slice(&words);
        let mut exit: Array<MapData, u32> = take(&mut object, "exit")?;
        exit.set(0, site.client.enter(|| Ok(if_nametoindex("client")?))?, 0)?;
        let mut map: Array<MapData, [u64; 10]> = take(&mut object, "headers")?;
        map.set(0, headers, 0)?;
        let arrived = take(&mut object, "arrived")?;
        program(&mut object, "send_v4")?.load().context("the kernel refused the program `send_v4`")?;
        let sink = program(&mut object, "arrive")?;
        sink.load().context("the kernel refused the program `arrive`")?;
        let (host, interface) = match subject {
            Subject::Nobody => (&site.balancer, "front"),
            _ => (&site.backend, "backend"),
        };
        host.enter(|| {
            sink.attach(interface, XdpMode::Driver).context("cannot attach the program `arrive`")?;
            Ok(())
        })?;
        Ok(Self { site, object, arrived, frame })
    }

    /// Sends a few packets until all of them arrive: neighbours are known then, and the flow.
    fn warm_up(&mut self) -> Result<()> {
        wait::until("packets to arrive", PATIENCE, || {
            let before = self.arrivals()?;
            self.send(BATCH)?;
            let all = wait::until("all packets", Duration::from_millis(100), || {
                Ok((self.arrivals()?.wrapping_sub(before) == BATCH).then_some(()))
            });
            Ok(all.ok())
        })
    }

    /// Sends packets and waits until all have arrived; how long that took.
    fn run(&mut self, packets: u32) -> Result<Duration> {
        let before = self.arrivals()?;
        let begin = Instant::now();
        self.send(packets)?;
        // Without a pause: an idle CPU does not count.
        loop {
            let arrived = self.arrivals()?.wrapping_sub(before);
            if arrived == packets {
                return Ok(begin.elapsed());
            }
            if begin.elapsed() > PATIENCE {
                bail!("of {packets} packets {arrived} arrived");
            }
            std::thread::yield_now();
        }
    }

    fn send(&mut self, packets: u32) -> Result<()> {
        let Self { site, object, frame, .. } = self;
        let send = program(object, "send_v4")?;
        site.client.enter(|| {
            let options = TestRunOptions {
                data_in: Some(frame),
                repeat: packets,
                attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
                ..TestRunOptions::new()
            };
            send.test_run(options).context("BPF_PROG_TEST_RUN failed")?;
            Ok(())
        })
    }

    fn arrivals(&self) -> Result<u32> {
        Ok(self.arrived.get(&0, 0)?[0])
    }

    /// Compares the last packet that arrived with what had to.
    fn check(&self, subject: Subject) -> Result<()> {
        let [_, source, destination, ports] = self.arrived.get(&0, 0)?;
        let [_, _, high, low] = ports.to_ne_bytes();
        let destination =
            SocketAddrV4::new(Ipv4Addr::from(destination.to_ne_bytes()), u16::from_be_bytes([high, low]));
        let source = Ipv4Addr::from(source.to_ne_bytes());
        ensure!(
            destination == BACKEND && source == subject.source(),
            "packets arrived from {source} at {destination}, expected were {} and {BACKEND}",
            subject.source()
        );
        Ok(())
    }
}

/// A datagram of the client. The program that lays its headers writes complements of the source's last address bytes and
/// of its port behind the UDP header, and of the former into the IP header; so its checksums hold.
fn frame(target: SocketAddrV4) -> Result<Vec<u8>> {
    let [.., a, b] = CLIENT.ip().octets();
    let address = [!a, !b];
    let mut ip = etherparse::Ipv4Header {
        identification: u16::from_be_bytes(address),
        time_to_live: 64,
        protocol: etherparse::IpNumber::UDP,
        source: CLIENT.ip().octets(),
        destination: target.ip().octets(),
        ..etherparse::Ipv4Header::default()
    };
    ip.dont_fragment = false;
    let builder = PacketBuilder::ethernet2(CLIENT_MAC, BALANCER_MAC)
        .ip(etherparse::IpHeaders::Ipv4(ip, etherparse::Ipv4Extensions::default()))
        .udp(CLIENT.port(), target.port());
    let mut payload = [address, CLIENT.port().to_be_bytes().map(|byte| !byte)].concat();
    payload.resize(FRAME - builder.size(0), b'.');
    let mut frame = Vec::with_capacity(FRAME);
    builder.write(&mut frame, &payload).context("cannot build a packet")?;
    Ok(frame)
}

fn program<'a>(object: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    let program = object.program_mut(name).with_context(|| format!("the object has no program `{name}`"))?;
    program.try_into().with_context(|| format!("the program `{name}` is not an XDP program"))
}

fn take<V: aya::Pod>(object: &mut Ebpf, name: &str) -> Result<Array<MapData, V>> {
    let map = object.take_map(name).with_context(|| format!("the object has no map `{name}`"))?;
    map.try_into().with_context(|| format!("the map `{name}` is of another type than expected"))
}
