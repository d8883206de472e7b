//! Mutated packets: whatever comes in, no wrong checksum goes out, nothing that stops is touched, and counters add
//! up. `LB_FUZZ_SEED` chooses another sequence.

use std::env;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lb_tests::packets::case::{Checksum, Extension, Fragment, Hex, Packet};
use lb_tests::packets::network::Mac;
use lb_tests::packets::oracle::{self, Dissected, Translation};
use lb_tests::packets::{Answer, Counts, Family, Verdict};
use libtest_mimic::Trial;
use rand::rngs::StdRng;
use rand::{Rng as _, RngExt as _, SeedableRng as _};

use crate::lab::{Lab, THREE_BACKENDS, tcp, udp};
use crate::{scaled, trial_for_each_family};

pub(crate) fn trials() -> Vec<Trial> {
    trial_for_each_family("fuzz", "mutated packets never come out wrong, and counters add up", fuzz)
}

/// Packets sent, before `LB_PACKET_EFFORT`.
const PACKETS: u64 = 20_000;
/// Packets between two looks at the counters.
const ROUND: u64 = 1_000;
/// Frames that mutation starts from; answers to what came out replace older ones.
const POOL: usize = 64;

const TWO_LISTENERS: &str = r#"
    [[listener]]
    name = "plain"
    address = "vip2"
    protocol = "tcp_and_udp"
    port = 80
    backend_set = "plain"

    [backend_set.plain]
    snat = "never"
    [[backend_set.plain.backend]]
    address = "far"
    port = 8080
"#;

fn fuzz(family: Family) -> Result<()> {
    let (seed, packets) = (seed()?, scaled(PACKETS)?);
    let mut lab = Lab::new(THREE_BACKENDS, &format!("lb.max_connections = 1024\n{TWO_LISTENERS}"), family)?;
    let mut fuzzer = Fuzzer {
        pool: originals(family).iter().map(|packet| lab.frame(packet)).collect::<Result<_>>()?,
        random: StdRng::seed_from_u64(seed),
        tally: Tally::default(),
    };
    let begin = lab.bench.counts()?;
    for number in 0..packets {
        let frame = fuzzer.next_frame();
        fuzzer.send(&mut lab, &frame).with_context(|| {
            let hex: String = frame.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("packet {number} with LB_FUZZ_SEED={seed}: {hex}")
        })?;
        if number % ROUND == ROUND - 1 || number == packets - 1 {
            fuzzer.tally.require_equal(&lab.bench.counts()?.since(&begin))?;
            lab.bench.flows()?;
            lab.bench.age(Duration::from_secs(3))?;
            lab.bench.sweep()?;
        }
    }
    ensure!(fuzzer.tally.forwarded > packets / 10, "hardly a packet came through: {:?}", fuzzer.tally);
    Ok(())
}

fn seed() -> Result<u64> {
    match env::var("LB_FUZZ_SEED") {
        Ok(value) => {
            value.parse().with_context(|| format!("expected a number in LB_FUZZ_SEED, found `{value}`"))
        }
        Err(_) => Ok(0x1b),
    }
}

/// What became of the packets.
#[derive(Debug, Default)]
struct Tally {
    forwarded: u64,
    bytes: u64,
    dropped: u64,
    passed: u64,
}

impl Tally {
    fn require_equal(&self, counts: &Counts) -> Result<()> {
        let sum = |whose: &str, what: &str| {
            counts.sum(whose, &format!("to_backend.{what}")) + counts.sum(whose, &format!("to_client.{what}"))
        };
        for whose in ["listener", "backend"] {
            let found = (sum(whose, "packets"), sum(whose, "bytes"));
            ensure!(
                found == (self.forwarded, self.bytes),
                "expected {whose}s to count what came through, {self:?}, found {found:?} in\n{counts}"
            );
        }
        let strays = counts.sum("drops", " no_listener");
        let dropped = counts.sum("drops", "") - strays;
        ensure!(
            dropped == self.dropped && strays <= self.passed,
            "expected {self:?}, found {dropped} counted drops and {strays} strays in\n{counts}"
        );
        Ok(())
    }
}

struct Fuzzer {
    pool: Vec<Vec<u8>>,
    random: StdRng,
    tally: Tally,
}

impl Fuzzer {
    /// A frame of the pool, mutated; every other one with checksums that are right for what it became.
    fn next_frame(&mut self) -> Vec<u8> {
        let mut frame = self.pool[self.random.random_range(0..self.pool.len())].clone();
        for _ in 0..self.random.random_range(0..4) {
            self.mutate(&mut frame);
        }
        if self.random.random()
            && let Some(corrected) = corrected(&frame)
        {
            frame = corrected;
        }
        frame
    }

    fn mutate(&mut self, frame: &mut Vec<u8>) {
        const INTERESTING: [u8; 8] = [0, 1, 4, 5, 0x0f, 0x7f, 0x80, 0xff];
        // Most headers end here; what is behind them is payload.
        let header = frame.len().min(80);
        let at = self.random.random_range(0..header);
        match self.random.random_range(0..7) {
            0 => frame[at] ^= 1 << self.random.random_range(0..8),
            1 => frame[at] = INTERESTING[self.random.random_range(0..INTERESTING.len())],
            2 => frame[at] = frame[at].wrapping_add(1),
            3 => frame[at] = self.random.random(),
            4 => {
                let from = self.random.random_range(0..header - 1);
                let to = self.random.random_range(0..header - 1);
                frame.copy_within(from..from + 2, to);
            }
            5 => frame.truncate(self.random.random_range(14..=frame.len())),
            _ => {
                let more: usize = self.random.random_range(1..40);
                frame.extend((0..more).map(|_| self.random.next_u32() as u8));
            }
        }
    }

    fn send(&mut self, lab: &mut Lab, frame: &[u8]) -> Result<()> {
        let Answer { verdict, frame: out } = lab.send(frame)?;
        match verdict {
            Verdict::Drop => self.tally.dropped += 1,
            Verdict::Pass => self.tally.passed += 1,
            Verdict::Tx | Verdict::Redirect => {
                self.tally.forwarded += 1;
                self.tally.bytes += require_translated(frame, &out)?;
                let answer = lab.answer_to(&out, "PA")?;
                if self.pool.len() < POOL {
                    self.pool.push(answer);
                } else {
                    // The originals stay, so that the pool never drifts away from what is for a listener.
                    let place = self.random.random_range(POOL / 2..POOL);
                    self.pool[place] = answer;
                }
                return Ok(());
            }
        }
        oracle::require_equal(frame, &out).context("it was touched, but does not travel on")
    }
}

/// Requires a frame to have come out as the oracle translates it to the addresses and ports it came out with, and
/// tells its length. A wrong checksum must have stayed wrong by as much.
fn require_translated(frame: &[u8], out: &[u8]) -> Result<u64> {
    let before = Dissected::new(frame).context("it cannot be dissected, but was forwarded")?;
    let after = Dissected::new(out).with_context(|| format!("out came\n{}", oracle::describe(out)))?;
    ensure!(before.ttl > 1, "it was forwarded with a TTL of {}", before.ttl);
    let mac = |at: usize| -> Result<Mac> { Ok(Mac(out[at..at + 6].try_into()?)) };
    let translation = Translation {
        src: after.src,
        dst: after.dst,
        src_mac: mac(6)?,
        dst_mac: mac(0)?,
        ttl: before.ttl - 1,
    };
    oracle::require_equal(&before.translated(&translation)?, out)?;
    Ok(before.ip_length() as u64)
}

/// The frame with right checksums, if it has any.
fn corrected(frame: &[u8]) -> Option<Vec<u8>> {
    Dissected::new(frame).ok().map(|packet| packet.corrected())
}

fn originals(family: Family) -> Vec<Packet> {
    let options = || Hex(vec![1; 8]);
    let mut packets = vec![
        tcp("client:40000", "vip:80", "S"),
        tcp("client:40000", "vip:80", "FA"),
        tcp("client2:40000", "vip:80", "S"),
        tcp("client:40000", "vip2:80", "S"),
        tcp("alpha:40000", "vip:80", "S"),
        tcp("neighbour:40000", "vip2:80", "R"),
        Packet { tcp_options: options(), ..tcp("client:40001", "vip:80", "S") },
        Packet { payload_length: 33, ..tcp("client:40002", "vip:80", "PA") },
        Packet { pad_to: Some(60), ..tcp("client:40003", "vip:80", "S") },
        udp("client:40000", "vip:80", "odd"),
        udp("client:40000", "vip2:80", "even"),
        Packet { payload_length: 1400, ..udp("client:40001", "vip:80", "") },
        Packet { checksum: Some(Checksum::Zero), ..udp("client:40002", "vip:80", "x") },
        Packet { vlan: vec![100], ..tcp("client:40004", "vip:80", "S") },
        Packet { echo: true, src: "client".into(), dst: "vip".into(), ..Packet::default() },
    ];
    let fragment = Some(Fragment { offset: 0, length: Some(64), id: 1 });
    packets.push(Packet { fragment, payload_length: 100, ..udp("client:40005", "vip:80", "") });
    match family {
        Family::V4 => packets.push(Packet { ip_options: options(), ..tcp("client:40006", "vip:80", "S") }),
        Family::V6 => {
            let extensions = [0, 60].map(|header| Extension { header, data: Hex(vec![0; 6]) }).into();
            packets.push(Packet { extensions, ..tcp("client:40006", "vip:80", "S") });
        }
    }
    packets
}
