//! Frames without sockets: a program that makes them and programs that count what arrives; see
//! `lb-ebpf/src/traffic.rs`.

use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use aya::Ebpf;
use aya::maps::{Array, MapData, PerCpuArray};
use aya::programs::xdp::{XdpLinkId, XdpMode};
use aya::programs::{TestRun as _, TestRunOptions, Xdp};
use aya::{EbpfLoader, TestRunAttrs};
use etherparse::PacketBuilder;
use lb_common::traffic::{Arrivals, BATCH, CUT_OFF, FRAME_WORDS, Order, PORT, Progress};
use lb_tests::netns::{Host, wait};
use nix::net::if_::if_nametoindex;

use crate::site::{FLOWS, VIP};

/// Frames that can be sent each second, more than there ever are.
const FRAMES: f64 = 1e7;
/// Repetitions of the program each second in which nothing is sent. More of one call than its time takes are only waited
/// for, but between two calls nothing is sent.
const IDLE: f64 = 2e7;
/// The longest call.
const CALL: Duration = Duration::from_millis(50);
/// Bytes of headers before the payload.
const HEADERS: usize = 42;
/// TTL of what is sent.
const TTL: u8 = 64;
/// Port of flow 0; 65,536 flows have the same.
const FIRST_PORT: u16 = 20_000;

/// What is to be sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// Flows that the frames are of, in turn.
    pub(crate) flows: u32,
    /// Frames of a flow in a row.
    pub(crate) row: u32,
    /// Frames each second; infinite: as many as can be.
    pub(crate) rate: f64,
    /// Frames in all, if they are sooner sent than the time is over.
    pub(crate) frames: u64,
    /// How long.
    pub(crate) time: Duration,
}

/// What was sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sent {
    pub(crate) frames: u64,
    /// When the first frame was sent, in nanoseconds of the monotonic clock.
    pub(crate) begun: u64,
    /// From then until another would have been due after the last.
    pub(crate) time: Duration,
}

/// What makes the frames.
pub(crate) struct Sender {
    host: Host,
    object: Ebpf,
    order: Array<MapData, Order>,
    progress: Array<MapData, Progress>,
    interface: u32,
    /// MAC address of the balancer.
    gateway: [u8; 6],
}

impl Sender {
    /// Loads it for an interface of a host.
    pub(crate) fn load(path: &Path, host: &Host, interface: &str, gateway: [u8; 6]) -> Result<Self> {
        let mut object = load(path)?;
        let (order, progress) =
            (map(&mut object, "order")?.try_into()?, map(&mut object, "progress")?.try_into()?);
        let send = program(&mut object, "send")?;
        send.load().context("the kernel refused the program `send`")?;
        let interface = host.enter(|| {
            // Nothing comes by there. Each run of a program that is attached nowhere makes the kernel rewrite its XDP
            // dispatcher twice, which takes it a tenth of a second each time.
            send.attach("lo", XdpMode::Skb).context("cannot attach the program `send`")?;
            Ok(if_nametoindex(interface)?)
        })?;
        Ok(Self { host: host.clone(), object, order, progress, interface, gateway })
    }

    /// Sends to a destination until all is sent or the time is over.
    pub(crate) fn send(&mut self, plan: &Plan, to_backend: bool) -> Result<Sent> {
        let destination = if to_backend { crate::site::BACKENDS[0] } else { VIP };
        let frame = self.frame(destination.octets())?;
        let (words, _) = frame.as_chunks::<8>();
        let data = [&[0; CUT_OFF], frame.as_slice()].concat();
        let interval_ns = if plan.rate.is_finite() { (f64::from(BATCH) * 1e9 / plan.rate) as u64 } else { 0 };
        let order = Order {
            frame: std::array::from_fn(|index| u64::from_ne_bytes(words[index])),
            interval_ns,
            frames: plan.frames,
            time_ns: plan.time.as_nanos() as u64,
            flows: plan.flows,
            step: step(plan.flows),
            row: plan.row,
            interface: self.interface,
        };
        self.order.set(0, order, 0)?;
        // It goes on with the flow after the last one, so that all of many come in turn, however short the time.
        let flow = Some(self.progress.get(&0, 0)?.flow).filter(|flow| *flow < plan.flows).unwrap_or_default();
        self.progress.set(0, Progress { flow, ..Progress::default() }, 0)?;
        let repetitions = (plan.time.min(CALL).as_secs_f64() * repetitions(plan.rate)) as u32;
        let (host, progress, object) = (&self.host, &self.progress, &mut self.object);
        host.enter(|| {
            let (begin, send) = (Instant::now(), program(object, "send")?);
            loop {
                let options = TestRunOptions {
                    data_in: Some(&data),
                    repeat: repetitions.next_multiple_of(BATCH),
                    attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
                    ..TestRunOptions::new()
                };
                send.test_run(options).context("BPF_PROG_TEST_RUN failed")?;
                let so_far = progress.get(&0, 0)?;
                let is_over = so_far.last - so_far.begun >= plan.time.as_nanos() as u64;
                if so_far.sent >= plan.frames || is_over || begin.elapsed() >= plan.time {
                    return Ok(());
                }
            }
        })?;
        let Progress { sent, begun, last, .. } = self.progress.get(&0, 0)?;
        // Of n batches there are n - 1 from the beginning of the first to the beginning of the last.
        let batches = sent.div_ceil(BATCH.into()).max(2) as f64;
        let time = Duration::from_nanos(last - begun).mul_f64(batches / (batches - 1.0));
        Ok(Sent { frames: sent, begun, time })
    }

    /// The frame of flow 0. Its identification and the first bytes of its payload balance what differs from flow to flow.
    fn frame(&self, destination: [u8; 4]) -> Result<Vec<u8>> {
        let source = FLOWS.octets();
        let mut payload = [0; FRAME_WORDS * 8 - HEADERS];
        payload[..2].copy_from_slice(&[!source[2], !source[3]]);
        payload[2..4].copy_from_slice(&(!FIRST_PORT).to_be_bytes());
        let mut frame = Vec::new();
        let mut header = etherparse::Ipv4Header::new(0, TTL, etherparse::IpNumber::UDP, source, destination)?;
        header.identification = u16::from_be_bytes([!source[2], !source[3]]);
        PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], self.gateway)
            .ip(etherparse::IpHeaders::Ipv4(header, etherparse::Ipv4Extensions::default()))
            .udp(FIRST_PORT, PORT)
            .write(&mut frame, &payload)?;
        ensure!(frame.len() == FRAME_WORDS * 8, "a frame of {} bytes", frame.len());
        Ok(frame)
    }
}

/// An end of the way, where frames are counted.
pub(crate) struct End {
    host: Host,
    interface: String,
    object: Ebpf,
    duty: Array<MapData, u32>,
    arrivals: PerCpuArray<MapData, Arrivals>,
    link: Option<XdpLinkId>,
}

impl End {
    /// Loads the program for an interface of a host.
    pub(crate) fn load(path: &Path, host: &Host, interface: &str) -> Result<Self> {
        let mut object = load(path)?;
        let (duty, arrivals) =
            (map(&mut object, "duty")?.try_into()?, map(&mut object, "arrivals")?.try_into()?);
        program(&mut object, "receive")?.load().context("the kernel refused the program `receive`")?;
        Ok(Self { host: host.clone(), interface: interface.into(), object, duty, arrivals, link: None })
    }

    /// Attaches the program, with a duty; see `lb_common::traffic`.
    pub(crate) fn attach(&mut self, duty: u32) -> Result<()> {
        self.duty.set(0, duty, 0)?;
        if self.link.is_none() {
            let (host, interface, object) = (&self.host, &self.interface, &mut self.object);
            let link = host.enter(|| {
                let attached = program(object, "receive")?.attach(interface, XdpMode::Driver);
                attached.with_context(|| format!("cannot attach a program to {interface}"))
            })?;
            self.link = Some(link);
        }
        Ok(())
    }

    /// Detaches the program: sockets do better without.
    pub(crate) fn detach(&mut self) -> Result<()> {
        if let Some(link) = self.link.take() {
            program(&mut self.object, "receive")?.detach(link)?;
        }
        Ok(())
    }

    /// What has arrived until now.
    pub(crate) fn arrivals(&self) -> Result<Arrivals> {
        let mut all = Arrivals::default();
        for of_cpu in self.arrivals.get(&0, 0)?.iter() {
            all.frames += of_cpu.frames;
            all.wrong += of_cpu.wrong;
            all.last = all.last.max(of_cpu.last);
        }
        Ok(all)
    }

    /// What has arrived once so many frames have, or nothing comes any more.
    pub(crate) fn settled(&self, expected: u64) -> Result<Arrivals> {
        let mut last = (self.arrivals()?, Instant::now());
        wait::until("frames to stop arriving", Duration::from_secs(5), || {
            let now = self.arrivals()?;
            if now.frames != last.0.frames {
                last = (now, Instant::now());
            }
            Ok((now.frames == expected || last.1.elapsed() >= QUIET).then_some(now))
        })
    }
}

/// Nothing is on its way any more when nothing has arrived for so long.
const QUIET: Duration = Duration::from_millis(20);

impl fmt::Debug for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("End").field("interface", &self.interface).finish_non_exhaustive()
    }
}

/// Repetitions of the program each second, roughly: frames, and the rest of the time nothing.
fn repetitions(rate: f64) -> f64 {
    let rate = rate.min(FRAMES);
    rate + IDLE * (1.0 - rate / FRAMES)
}

/// A step that visits all flows before it comes to one again, far from the last: near the golden section.
fn step(flows: u32) -> u32 {
    let near = (f64::from(flows) * 0.618) as u32;
    (near.max(1)..).find(|step| greatest_common_divisor(*step, flows) == 1).unwrap_or(1) % flows.max(1)
}

const fn greatest_common_divisor(one: u32, other: u32) -> u32 {
    if other == 0 { one } else { greatest_common_divisor(other, one % other) }
}

fn load(path: &Path) -> Result<Ebpf> {
    EbpfLoader::new().load_file(path).with_context(|| format!("cannot load {}", path.display()))
}

fn map(object: &mut Ebpf, name: &str) -> Result<aya::maps::Map> {
    object.take_map(name).with_context(|| format!("the benchmark's object has no map `{name}`"))
}

fn program<'a>(object: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    let program = object.program_mut(name);
    program
        .with_context(|| format!("the benchmark's object has no program `{name}`"))?
        .try_into()
        .with_context(|| format!("the program `{name}` is not an XDP program"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_comes_to_every_flow() {
        for flows in [1, 2, 1000, 100_000] {
            let step = step(flows);
            assert!(step < flows.max(1) && greatest_common_divisor(step, flows) == 1, "{step} of {flows}");
        }
    }
}
