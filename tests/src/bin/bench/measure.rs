//! Measuring, and not believing a time before verdicts, counters and packets are right.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context as _, Result, anyhow, ensure};
use aya::programs::ProgramFd;
use lb_common::{Counters, Traffic};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::balancer::Balancer;
use crate::case::{Case, MANY, Subject};
use crate::packet::{Family, Packet, Payload};
use crate::replay::Replay;

/// Length of the Ethernet header, which counters leave out.
const ETHERNET: u64 = 14;

/// Packets looked at one by one before and after a run.
const SAMPLES: u32 = 16;

/// Everything that is loaded.
pub(crate) struct Bench {
    replay: Replay,
    /// Holds a million established flows of each family.
    established: Balancer,
    /// A backend's answer in flow 0, for each family.
    answers: Vec<Packet>,
}

impl Bench {
    /// Loads the programs and establishes the flows.
    pub(crate) fn prepare(object: &Path) -> Result<Self> {
        let mut replay = Replay::load(object)?;
        let lookup = Case { subject: Subject::Lookup, family: Family::V4, flows: MANY };
        replay.fill_unit(&lookup.packet(), MANY)?;
        let mut established = Balancer::load(MANY + MANY / 8)?;
        replay.aim(&established.program()?)?;
        let mut answers = Vec::new();
        for family in Family::ALL {
            answers.push(establish(&mut replay, &established, family)?);
        }
        Ok(Self { replay, established, answers })
    }

    /// Measures a case once: nanoseconds for a packet, replaying included.
    pub(crate) fn measure(&mut self, case: &Case) -> Result<f64> {
        self.measure_verified(case).with_context(|| format!("{} ({case:?})", case.subject.name()))
    }

    fn measure_verified(&mut self, case: &Case) -> Result<f64> {
        let mut fresh = None;
        let (program, balancer): (ProgramFd, &Balancer) = match (case.subject.program(), case.subject) {
            (Some(name), _) => (self.replay.program(name)?, &self.established),
            (None, Subject::NewTcp) => {
                let fresh = fresh.insert(Balancer::load(case.flows + case.flows / 8)?);
                (fresh.program()?, fresh)
            }
            (None, _) => (self.established.program()?, &self.established),
        };
        self.replay.aim(&program)?;
        let packet = match case.subject {
            Subject::TcpToClient => self.answers[case.family as usize],
            _ => case.packet(),
        };
        if case.subject != Subject::NewTcp {
            check_packets(&mut self.replay, balancer, case, &packet)?;
        }
        let mut nanoseconds = f64::INFINITY;
        for _ in 0..case.attempts() {
            nanoseconds = nanoseconds.min(timed_run(&mut self.replay, balancer, case, &packet)?);
        }
        check_packets(&mut self.replay, balancer, case, &packet)?;
        Ok(nanoseconds)
    }
}

/// Makes a million TCP flows of a family and one of UDP, and returns the answer of
/// a backend in the first of them.
fn establish(replay: &mut Replay, balancer: &Balancer, family: Family) -> Result<Packet> {
    let packet = |payload| Packet::new(family.client(), family.vip(), payload);
    // Picked up in the middle: of a million SYNs, the ring of half-open flows would let most go before their ACK.
    replay.run(&packet(Payload::TcpAck), MANY, MANY)?;
    replay.run(&packet(Payload::Udp), 1, 1)?;
    let made = balancer.counters(family)?.new_flows;
    ensure!(made == u64::from(MANY) + 1, "{made} flows were made, {} were expected", MANY + 1);
    let first = packet(Payload::TcpAck);
    Balancer::answer(&first, &replay.run(&first, 1, 1)?.output)
}

/// Runs a case, and checks every verdict and what the balancer counted meanwhile.
fn timed_run(replay: &mut Replay, balancer: &Balancer, case: &Case, packet: &Packet) -> Result<f64> {
    let before = balancer.counters(case.family)?;
    let run = replay.run(packet, case.flows, case.packets())?;
    let after = balancer.counters(case.family)?;
    let right = run.verdicts.get(case.subject.verdict() as usize).copied().unwrap_or_default();
    ensure!(
        right == u64::from(case.packets()),
        "of {} packets, {right} had the right verdict, {:?}; how often each number was given: {:?}",
        case.packets(),
        case.subject.verdict(),
        run.verdicts
    );
    let (counted, expected) = (difference(&after, &before), expected_counters(case));
    ensure!(counted == expected, "the balancer counted {counted:?}, expected was {expected:?}");
    Ok(run.nanoseconds)
}

/// What the listener has to count in a run.
fn expected_counters(case: &Case) -> Counters {
    let packets = u64::from(case.packets());
    let traffic = Traffic { packets, bytes: packets * (case.family.frame_length() as u64 - ETHERNET) };
    let mut expected = Counters::default();
    match case.subject {
        Subject::Replay | Subject::Floor | Subject::Lookup | Subject::NotOurs => {}
        Subject::TcpToBackend | Subject::UdpToBackend => expected.to_backend = traffic,
        Subject::TcpToClient => expected.to_client = traffic,
        Subject::NewTcp => {
            expected.to_backend = traffic;
            expected.new_flows = packets;
        }
    }
    expected
}

fn difference(after: &Counters, before: &Counters) -> Counters {
    let traffic = |after: &Traffic, before: &Traffic| Traffic {
        packets: after.packets - before.packets,
        bytes: after.bytes - before.bytes,
    };
    Counters {
        to_backend: traffic(&after.to_backend, &before.to_backend),
        to_client: traffic(&after.to_client, &before.to_client),
        new_flows: after.new_flows - before.new_flows,
        refused: after.refused - before.refused,
    }
}

/// Sends single packets and compares what comes out with what has to, byte by byte.
fn check_packets(replay: &mut Replay, balancer: &Balancer, case: &Case, packet: &Packet) -> Result<()> {
    for _ in 0..SAMPLES {
        let input = packet.of_flow(replay.upcoming(case.flows)?);
        let output = replay.run(packet, case.flows, 1)?.output;
        let mut expected = input;
        match case.subject {
            Subject::Replay | Subject::Lookup | Subject::NotOurs => {}
            Subject::Floor => (expected.from, expected.to) = (input.to, input.from),
            Subject::TcpToBackend | Subject::UdpToBackend | Subject::NewTcp => {
                expected = balancer.to_backend(&input, &output)?;
            }
            Subject::TcpToClient => expected = Balancer::to_client(&input),
        }
        let expected = expected.bytes()?;
        ensure!(
            output == expected,
            "in went {input:?}\nout came     {output:02x?}\nexpected was {expected:02x?}"
        );
    }
    Ok(())
}

/// The CPUs this process may use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cpus {
    /// The one everything is measured on: the last, since interrupts mostly go to the first.
    pub(crate) own: usize,
    /// Another, if there is one.
    pub(crate) other: Option<usize>,
}

impl Cpus {
    /// Finds them.
    pub(crate) fn find() -> Result<Self> {
        let allowed = sched_getaffinity(Pid::from_raw(0)).context("cannot ask for the CPUs to run on")?;
        let mut cpus = (0..CpuSet::count()).rev().filter(|cpu| allowed.is_set(*cpu).unwrap_or_default());
        Ok(Self { own: cpus.next().unwrap_or_default(), other: cpus.next() })
    }
}

/// Keeps the calling thread on a CPU: caches and per-CPU maps stay warm.
pub(crate) fn stay_on(cpu: usize) -> Result<()> {
    let mut only = CpuSet::new();
    only.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &only).context("cannot choose a CPU to run on")
}

impl Bench {
    /// Measures a case of established flows while another CPU runs the same program on the same flows: nanoseconds for a
    /// packet, replaying included. `companion` is a replay that nobody else uses.
    pub(crate) fn measure_beside(&mut self, case: &Case, companion: &mut Replay, cpu: usize) -> Result<f64> {
        let packet = case.packet();
        let program = self.established.program()?;
        self.replay.aim(&program)?;
        companion.aim(&program)?;
        let (begun, is_over) = (AtomicBool::new(false), AtomicBool::new(false));
        thread::scope(|scope| {
            let beside = scope.spawn(|| -> Result<()> {
                stay_on(cpu)?;
                while !is_over.load(Ordering::Relaxed) {
                    companion.run(&packet, case.flows, MANY / 16)?;
                    begun.store(true, Ordering::Relaxed);
                }
                Ok(())
            });
            while !begun.load(Ordering::Relaxed) && !beside.is_finished() {
                thread::yield_now();
            }
            let mut nanoseconds = f64::INFINITY;
            let mut measured = Ok(());
            for _ in 0..case.attempts() {
                match self.replay.run(&packet, case.flows, case.packets()) {
                    Ok(run) => nanoseconds = nanoseconds.min(run.nanoseconds),
                    Err(error) => measured = Err(error),
                }
            }
            is_over.store(true, Ordering::Relaxed);
            beside.join().map_err(|_| anyhow!("the other CPU's thread panicked"))??;
            measured?;
            ensure!(nanoseconds.is_finite(), "nothing was measured");
            Ok(nanoseconds)
        })
    }
}
