//! Mutated packets: whatever comes in, no wrong checksum goes out, nothing that stops is touched, and counters add
//! up. `LB_FUZZ_SEED` chooses another sequence.

use std::env;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lb_tests::packets::case::{Checksum, Extension, Fragment, Hex, IcmpError, Packet, Tag};
use lb_tests::packets::network::Mac;
use lb_tests::packets::oracle::{self, Dissected, Error, Translation};
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
    lab.narrow("alpha", 1300)?;
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
        if number == packets / 2 {
            lab.bench.cut()?;
        }
    }
    ensure!(fuzzer.tally.is_rich(packets), "hardly a packet came through: {:?}", fuzzer.tally);
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
    /// ICMP errors about flows, forwarded.
    errors: u64,
    /// Of the packets forwarded, fragments.
    fragments: u64,
    dropped: u64,
    passed: u64,
    echoed: u64,
    /// Dropped, but answered by the balancer itself.
    answered: u64,
}

impl Tally {
    /// Each packet is counted once: by the listener and the backend that it travelled between, or under one reason.
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
        let note = |name: &str| counts.sum("notes", name);
        let expected = [self.dropped + self.answered, self.passed, self.errors, self.echoed, self.answered];
        let found = [
            counts.sum("drops", "") + note(" fragment_held"),
            counts.sum("passes", ""),
            note(" icmp_translated"),
            note(" echo_answered"),
            note(" answered"),
        ];
        ensure!(
            found == expected,
            "expected the counters to tell of {self:?}: drops and held fragments, passes, errors, echoes, \
             answers {expected:?}, found {found:?} in\n{counts}"
        );
        Ok(())
    }

    /// Whether everything has come to pass that the fuzzer is there for.
    const fn is_rich(&self, packets: u64) -> bool {
        self.forwarded > packets / 10 && self.errors > 0 && self.fragments > 0 && self.echoed > 0
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
        const FRAGMENTATION: [u16; 6] = [0x0000, 0x2000, 0x4000, 0x0001, 0x2008, 0x1fff];
        const INTERESTING: [u8; 8] = [0, 1, 4, 5, 0x0f, 0x7f, 0x80, 0xff];
        // Most headers end here; what is behind them is payload.
        let header = frame.len().min(80);
        let at = self.random.random_range(0..header);
        match self.random.random_range(0..9) {
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
            6 => {
                let tag = [0x81, 0x00, 0x00, self.random.random()];
                frame.splice(12..12, tag);
            }
            7 if frame.len() > 22 => {
                // Where an IPv4 header without VLAN tags has flags and offset.
                let field: u16 = FRAGMENTATION[self.random.random_range(0..FRAGMENTATION.len())];
                frame[20..22].copy_from_slice(&field.to_be_bytes());
            }
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
            Verdict::Tx | Verdict::Redirect => return self.came_out(lab, frame, &out),
        }
        oracle::require_equal(frame, &out).context("it was touched, but does not travel on")
    }

    /// Requires a frame that came out to be what the oracle makes of the one that went in.
    fn came_out(&mut self, lab: &Lab, frame: &[u8], out: &[u8]) -> Result<()> {
        let before = Dissected::new(frame).context("it cannot be dissected, but was forwarded")?;
        let translated = require_translated(&before, out);
        if translated.is_err() && before.echo_reply().is_ok_and(|reply| reply == out) {
            self.tally.echoed += 1;
            return Ok(());
        }
        if translated.is_err() && answers(&before, out).iter().any(|answer| answer == out) {
            self.tally.answered += 1;
            return Ok(());
        }
        translated?;
        if before.is_icmp() {
            self.tally.errors += 1;
            return Ok(());
        }
        self.tally.forwarded += 1;
        self.tally.bytes += before.ip_length() as u64;
        self.tally.fragments += u64::from(before.part.is_some());
        if before.has_ports() && before.part.is_none() {
            let answer = match self.random.random_range(0..4) {
                0 => Dissected::new(out)?.error(self.error(), Dissected::new(out)?.dst.ip())?,
                _ => lab.answer_to(out, "PA")?,
            };
            self.remember(answer);
        }
        Ok(())
    }

    fn error(&mut self) -> Error {
        if self.random.random() { Error::PortUnreachable } else { Error::TooBig(1280) }
    }

    /// Adds a frame to the pool. The originals stay, so that it never drifts away from what is for a listener.
    fn remember(&mut self, frame: Vec<u8>) {
        if self.pool.len() < POOL {
            self.pool.push(frame);
        } else {
            let place = self.random.random_range(POOL / 2..POOL);
            self.pool[place] = frame;
        }
    }
}

/// Requires a frame to have come out as the oracle translates it to the addresses and ports it came out with. A wrong
/// checksum must have stayed wrong by as much.
fn require_translated(before: &Dissected<'_>, out: &[u8]) -> Result<()> {
    let after = Dissected::new(out).with_context(|| format!("out came\n{}", oracle::describe(out)))?;
    ensure!(before.ttl > 1, "it was forwarded with a TTL of {}", before.ttl);
    let translation = translation_to(&after, out, before.ttl - 1)?;
    oracle::require_equal(&before.translated(&translation)?, out)
}

/// The translation that a frame has come out of.
fn translation_to(after: &Dissected<'_>, out: &[u8], ttl: u8) -> Result<Translation> {
    let mac = |at: usize| -> Result<Mac> { Ok(Mac(out[at..at + 6].try_into()?)) };
    let about = after.about().ok().map(|about| (about.src, about.dst));
    Ok(Translation { src: after.src, dst: after.dst, src_mac: mac(6)?, dst_mac: mac(0)?, ttl, about })
}

/// What the balancer may have said itself, given what came out.
fn answers(before: &Dissected<'_>, out: &[u8]) -> Vec<Vec<u8>> {
    let Ok(after) = Dissected::new(out) else { return vec![] };
    let mtu = after.payload().get(6..8).map_or(0, |mtu| u16::from_be_bytes([mtu[0], mtu[1]]));
    let turned = translation_to(&after, out, 64).and_then(|to| before.turned_into_rst(&to));
    [before.rst(), turned, before.error(Error::TooBig(mtu), after.src.ip())].into_iter().flatten().collect()
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
        Packet { vlan: vec![Tag::Id(100)], ..tcp("client:40004", "vip:80", "S") },
        Packet { echo: true, src: "client".into(), dst: "vip".into(), ..Packet::default() },
    ];
    packets.extend([
        Packet { vlan: vec![Tag::Id(100), Tag::Id(200)], ..udp("client:40004", "vip:80", "double") },
        Packet {
            error: Some(IcmpError::TooBig),
            mtu: 1280,
            about: Some(Box::new(udp("vip:80", "client:40000", "an answer"))),
            src: "client".into(),
            dst: "vip".into(),
            ..Packet::default()
        },
    ]);
    for (offset, length) in [(0, Some(64)), (64, Some(32)), (96, None)] {
        let fragment = Some(Fragment { offset, length, id: 1 });
        packets.push(Packet { fragment, payload_length: 100, ..udp("client:40005", "vip:80", "") });
    }
    match family {
        Family::V4 => packets.push(Packet { ip_options: options(), ..tcp("client:40006", "vip:80", "S") }),
        Family::V6 => {
            let extensions = [0, 43, 60].map(|header| Extension { header, data: Hex(vec![0; 6]) }).into();
            packets.push(Packet { extensions, ..tcp("client:40006", "vip:80", "S") });
        }
    }
    packets
}
