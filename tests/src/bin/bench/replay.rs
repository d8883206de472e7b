//! The eBPF programs that replay packets to the program under test: see `lb-ebpf/src/bench.rs`.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use aya::Ebpf;
use aya::maps::{Array, HashMap, MapData, ProgramArray};
use aya::programs::xdp::XdpMode;
use aya::programs::{ProgramFd, TestRun as _, TestRunOptions, Xdp};

use lb_tests::netns::Host;

use crate::packet::{Family, Packet};

/// 64-bit words of the map `headers`.
const WORDS: usize = 10;

/// The loaded programs and their maps.
pub(crate) struct Replay {
    object: Ebpf,
    target: ProgramArray<MapData>,
    headers: Array<MapData, [u64; WORDS]>,
    last_flow: Array<MapData, u32>,
    next_flow: Array<MapData, u32>,
    verdicts: Array<MapData, u64>,
}

/// What came of a run.
pub(crate) struct Run {
    /// Nanoseconds for a packet, replaying included.
    pub(crate) nanoseconds: f64,
    /// How often each XDP action was the verdict.
    pub(crate) verdicts: Vec<u64>,
    /// The last packet, as it came out.
    pub(crate) output: Vec<u8>,
}

/// Takes a map out of the object under its name and as its type.
macro_rules! take {
    ($object:expr, $name:literal) => {
        $object
            .take_map($name)
            .context(concat!("the benchmark's object has no map `", $name, "`"))?
            .try_into()
            .context(concat!("the map `", $name, "` is of another type than expected"))?
    };
}

impl Replay {
    /// Loads the programs, and attaches those that are run to interfaces of a host by which nothing comes: each run of a program that is
    /// attached nowhere makes the kernel rewrite its XDP dispatcher twice, which takes it some milliseconds.
    pub(crate) fn load(object: &Path, host: &Host, idle: [&str; 2]) -> Result<Self> {
        let mut object =
            Ebpf::load_file(object).with_context(|| format!("cannot load {}", object.display()))?;
        let (target, headers) = (take!(object, "target"), take!(object, "headers"));
        let (last_flow, next_flow) = (take!(object, "last_flow"), take!(object, "next_flow"));
        let verdicts = take!(object, "verdicts");
        for name in ["replay_v4", "replay_v6", "empty", "floor", "lookup"] {
            let program = xdp(&mut object, name)?;
            program.load().with_context(|| format!("the kernel refused the program `{name}`"))?;
        }
        host.enter(|| {
            for (name, interface) in ["replay_v4", "replay_v6"].into_iter().zip(idle) {
                let attached = xdp(&mut object, name)?.attach(interface, XdpMode::Skb);
                attached.with_context(|| format!("cannot attach `{name}` to {interface}"))?;
            }
            Ok(())
        })?;
        Ok(Self { object, target, headers, last_flow, next_flow, verdicts })
    }

    /// One of the programs that come with the replay.
    pub(crate) fn program(&mut self, name: &str) -> Result<ProgramFd> {
        Ok(xdp(&mut self.object, name)?.fd()?.try_clone()?)
    }

    /// Sets the program that the packets are given to.
    pub(crate) fn aim(&mut self, program: &ProgramFd) -> Result<()> {
        self.target.set(0, program, 0).context("cannot set the program to measure")
    }

    /// Fills what the program `lookup` looks into with the tuples of that many flows of a packet.
    pub(crate) fn fill_unit(&mut self, packet: &Packet, flows: u32) -> Result<()> {
        let mut unit: HashMap<MapData, [u32; 4], u64> = take!(self.object, "unit");
        for flow in 0..flows {
            unit.insert(unit_key(&packet.of_flow(flow))?, 1, 0).context("cannot fill the map `unit`")?;
        }
        Ok(())
    }

    /// The flow that the next packet will be of.
    pub(crate) fn upcoming(&self, flows: u32) -> Result<u32> {
        Ok(self.next_flow.get(&0, 0)? & (flows - 1))
    }

    /// Sends packets of so many flows through, one after the other.
    pub(crate) fn run(&mut self, packet: &Packet, flows: u32, packets: u32) -> Result<Run> {
        ensure!(flows.is_power_of_two(), "{flows} flows are not a power of two");
        let frame = packet.bytes()?;
        self.headers.set(0, words(&frame), 0)?;
        self.last_flow.set(0, flows - 1, 0)?;
        let before = self.verdicts()?;
        let name = match packet.family() {
            Family::V4 => "replay_v4",
            Family::V6 => "replay_v6",
        };
        let mut output = vec![0; frame.len() + 64];
        let options = TestRunOptions {
            data_in: Some(&frame),
            data_out: Some(&mut output),
            repeat: packets,
            ..TestRunOptions::new()
        };
        let program = xdp(&mut self.object, name)?;
        let begin = Instant::now();
        let result = program.test_run(options).context("BPF_PROG_TEST_RUN failed")?;
        let nanoseconds = begin.elapsed().as_nanos() as f64 / f64::from(packets);
        output.truncate(result.data_size_out as usize);
        let verdicts = self.verdicts()?.iter().zip(before).map(|(after, before)| after - before).collect();
        // The kernel leaves out the time in which others had the CPU, and whatever is less than a nanosecond. A run that was interrupted
        // counts for a whole one more.
        let whole = result.duration.as_nanos() as f64;
        Ok(Run { nanoseconds: nanoseconds.clamp(whole, whole + 1.0), verdicts, output })
    }

    fn verdicts(&self) -> Result<Vec<u64>> {
        self.verdicts.iter().collect::<Result<_, _>>().context("cannot read the verdicts")
    }
}

fn xdp<'a>(object: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    let program = object.program_mut(name);
    program
        .with_context(|| format!("the benchmark's object has no program `{name}`"))?
        .try_into()
        .with_context(|| format!("the program `{name}` is not an XDP program"))
}

/// The beginning of a frame as the map holds it.
fn words(frame: &[u8]) -> [u64; WORDS] {
    let mut words = [0; WORDS];
    for (word, bytes) in words.iter_mut().zip(frame.as_chunks().0) {
        *word = u64::from_ne_bytes(*bytes);
    }
    words
}

/// Addresses, ports and protocol of an IPv4 packet, as the program `lookup` reads them.
fn unit_key(packet: &Packet) -> Result<[u32; 4]> {
    let frame = packet.bytes()?;
    let word = |offset: usize| frame[offset..].first_chunk().map(|bytes| u32::from_ne_bytes(*bytes));
    let key = [word(26), word(30), word(34), Some(packet.payload.protocol().into())];
    let [Some(source), Some(destination), Some(ports), Some(protocol)] = key else {
        anyhow::bail!("the packet is shorter than its headers");
    };
    Ok([source, destination, ports, protocol])
}
