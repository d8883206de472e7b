//! Measuring, and not believing a time before verdicts, counters and packets are right.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context as _, Result, anyhow, ensure};
use lb_common::{Counters, Reason, Traffic};
use lb_tests::netns::Host;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::balancer::Balancer;
use crate::case::{Case, MANY, Subject};
use crate::flows::Flows;
use crate::packet::{Family, Packet, Payload, Transport};
use crate::replay::Replay;
use crate::service::Service;

/// Length of the Ethernet header, which counters leave out.
const ETHERNET: u64 = 14;

/// Packets looked at one by one before and after a run.
const SAMPLES: u32 = 16;

/// Nothing disturbs where replaying costs no more than this times the least it ever did.
const CALM: f64 = 1.2;

/// Packets of one flow after which a CPU uses its cache again, though too many flows had made it give up.
const SETTLED: u32 = 17 << 20;

/// The least that replaying has cost until now, by what was replayed.
#[derive(Debug, Default)]
pub(crate) struct Calmest(Vec<(Case, f64)>);

impl Calmest {
    /// That of a case; `cost` is the latest.
    fn of(&mut self, replaying: &Case, cost: f64) -> f64 {
        let known = self.0.iter_mut().find(|(case, _)| case == replaying);
        if let Some((_, least)) = known {
            *least = least.min(cost);
            return *least;
        }
        self.0.push((*replaying, cost));
        cost
    }
}

/// Everything that is loaded.
pub(crate) struct Bench<'a> {
    replay: Replay,
    /// Holds a million established flows of each family.
    balancer: Balancer,
    /// Where it holds them.
    flows: Flows,
    /// A backend's answer in flow 0.
    answers: Vec<(Case, Packet)>,
    calmest: &'a mut Calmest,
}

impl<'a> Bench<'a> {
    /// Loads the programs and establishes the flows.
    pub(crate) fn prepare(
        object: &Path,
        host: &Host,
        idle: [&str; 2],
        calmest: &'a mut Calmest,
    ) -> Result<Self> {
        let mut replay = Replay::load(object, host, idle)?;
        let lookup = Case::repeated(Subject::Lookup, Family::V4, MANY);
        replay.fill_unit(&lookup.packet(), MANY)?;
        let mut balancer = Balancer::load(MANY + MANY / 8)?;
        replay.aim(&balancer.program()?)?;
        let mut flows = Flows::of(&mut balancer)?;
        let mut answers = Vec::new();
        for family in Family::ALL {
            answers.extend(establish(&mut replay, &balancer, &mut flows, family)?);
        }
        Ok(Self { replay, balancer, flows, answers, calmest })
    }

    /// Slots for half-open flows on a CPU.
    pub(crate) fn ring(&self) -> Result<u32> {
        self.flows.ring()
    }

    /// Has the CPU forget that there were more flows than it has a cache for.
    pub(crate) fn settle(&mut self) -> Result<()> {
        self.replay.aim(&self.balancer.program()?)?;
        for family in Family::ALL {
            let case = Case::repeated(Subject::ToBackend(Transport::Tcp, Service::Always), family, 1);
            self.replay.run(&case.packet(), 1, SETTLED)?;
        }
        Ok(())
    }

    /// Measures a group of cases that begins with replaying: nanoseconds for a packet of each, replaying included.
    pub(crate) fn measure_group(&mut self, cases: &[Case]) -> Result<Vec<f64>> {
        let passes = cases.last().context("nothing is to be measured")?.passes();
        let mut least = vec![f64::INFINITY; cases.len()];
        let mut calm = 0;
        for _ in 0..passes.most {
            let times: Vec<f64> = cases.iter().map(|case| self.measure(case)).collect::<Result<_>>()?;
            for (least, time) in least.iter_mut().zip(&times) {
                *least = least.min(*time);
            }
            calm += u32::from(self.was_calm(cases, &times, &mut least)?);
            if calm == passes.calm {
                break;
            }
        }
        Ok(least)
    }

    /// Whether nothing disturbed a pass over cases, which took these times: replaying costs as little after it as it ever did,
    /// and did so meanwhile. What it costs after it counts for `least`, too.
    fn was_calm(&mut self, cases: &[Case], times: &[f64], least: &mut [f64]) -> Result<bool> {
        let mut is_calm = true;
        for ((case, time), least) in cases.iter().zip(times).zip(least) {
            if case.subject == Subject::Replay {
                let after = self.measure(case)?;
                *least = least.min(after);
                is_calm &= time.max(after) <= CALM * self.calmest.of(case, *least);
            }
        }
        Ok(is_calm)
    }

    /// Measures a case once: nanoseconds for a packet, replaying included.
    fn measure(&mut self, case: &Case) -> Result<f64> {
        let measured = if case.subject.is_new() { self.measure_new(case) } else { self.measure_again(case) };
        measured.with_context(|| format!("{} ({case:?})", case.subject.name()))
    }

    /// A case of which nothing remains.
    fn measure_again(&mut self, case: &Case) -> Result<f64> {
        let Self { replay, balancer, answers, .. } = self;
        let program = match case.subject.program() {
            Some(name) => replay.program(name)?,
            None => balancer.program()?,
        };
        replay.aim(&program)?;
        let answer = answers.iter().find(|(other, _)| other == case).map(|(_, answer)| *answer);
        let packet = answer.unwrap_or_else(|| case.packet());
        check_packets(replay, balancer, case, &packet)?;
        let nanoseconds = timed_run(replay, balancer, case, &packet)?;
        check_packets(replay, balancer, case, &packet)?;
        Ok(nanoseconds)
    }

    /// A case that opens flows, beside those that are there. They are taken away again.
    fn measure_new(&mut self, case: &Case) -> Result<f64> {
        let Self { replay, balancer, flows, .. } = self;
        replay.aim(&balancer.program()?)?;
        let packet = case.packet();
        flows.empty_rings(case.family)?;
        if case.subject == Subject::SynFlood {
            // As many as the ring has slots: from now on each that comes is one too many.
            replay.run(&packet, case.flows, case.packets)?;
        }
        let nanoseconds = timed_run(replay, balancer, case, &packet)?;
        if case.subject != Subject::SynFlood {
            check_packets(replay, balancer, case, &packet)?;
        }
        flows.remove(&packet, case.flows)?;
        // Those that came twice have copies, which would go on for them.
        balancer.dataplane.cached.forget()?;
        Ok(nanoseconds)
    }
}

/// Makes the flows of a family: a million of TCP through one listener, one of each kind through the others. Returns the
/// cases of answers, with the answer of a backend in flow 0.
fn establish(
    replay: &mut Replay,
    balancer: &Balancer,
    made: &mut Flows,
    family: Family,
) -> Result<Vec<(Case, Packet)>> {
    let mut answers = Vec::new();
    for service in [Service::Always, Service::Auto, Service::Never] {
        for transport in [Transport::Tcp, Transport::Udp] {
            // Picked up in the middle, so that one packet makes a flow. Before the ring of half-open flows comes round, all of them
            // are answered.
            let payload = if transport == Transport::Tcp { Payload::TcpAck } else { Payload::Udp };
            let packet = Packet::new(family.client(service), family.vip(service), payload);
            let flows = if (service, transport) == (Service::Always, Transport::Tcp) { MANY } else { 1 };
            let before = balancer.counters(family, service)?.new_flows;
            let at_once = flows.min(made.ring()? / 2);
            for packets in (0..flows).step_by(at_once as usize).map(|first| at_once.min(flows - first)) {
                replay.run(&packet, flows, packets)?;
                made.answer(family)?;
            }
            let new = balancer.counters(family, service)?.new_flows - before;
            ensure!(new == u64::from(flows), "{new} flows were made, {flows} were expected");
            let output = replay.run(&packet, 1, 1)?.output;
            let case = Case::repeated(Subject::ToClient(transport, service), family, 1);
            answers.push((case, Balancer::answer(&packet, &output)?));
        }
    }
    Ok(answers)
}

/// Runs a case, and checks every verdict and what the balancer counted meanwhile.
fn timed_run(replay: &mut Replay, balancer: &Balancer, case: &Case, packet: &Packet) -> Result<f64> {
    let service = case.subject.service();
    let before = (balancer.counters(case.family, service)?, balancer.drops(case.family, service)?);
    let run = replay.run(packet, case.flows, case.packets)?;
    let after = (balancer.counters(case.family, service)?, balancer.drops(case.family, service)?);
    let right = run.verdicts.get(case.subject.verdict() as usize).copied().unwrap_or_default();
    ensure!(
        right == u64::from(case.packets),
        "of {} packets, {right} had the right verdict, {:?}; how often each number was given: {:?}",
        case.packets,
        case.subject.verdict(),
        run.verdicts
    );
    let (counted, expected) = (difference(&after.0, &before.0), expected_counters(case));
    ensure!(counted == expected, "the balancer counted {counted:?}, expected was {expected:?}");
    let expected = expected_reason(case.subject);
    for reason in Reason::ALL {
        let counted = after.1.get(*reason) - before.1.get(*reason);
        let expected = if expected == Some(*reason) { u64::from(case.packets) } else { 0 };
        ensure!(
            counted == expected,
            "{} was counted {counted} times, expected was {expected}",
            reason.name()
        );
    }
    Ok(run.nanoseconds)
}

/// What the listener has to count in a run.
fn expected_counters(case: &Case) -> Counters {
    let packets = u64::from(case.packets);
    let traffic = Traffic { packets, bytes: packets * (case.family.frame_length() as u64 - ETHERNET) };
    let mut expected = Counters::default();
    match case.subject {
        Subject::ToBackend(..) => expected.to_backend = traffic,
        Subject::ToClient(..) => expected.to_client = traffic,
        Subject::New(_) | Subject::SynFlood => {
            expected.to_backend = traffic;
            expected.new_flows = packets;
        }
        _ => {}
    }
    expected
}

/// What the listener has to count for each packet, beside traffic.
const fn expected_reason(subject: Subject) -> Option<Reason> {
    match subject {
        Subject::SynFlood => Some(Reason::HalfOpenEvicted),
        Subject::Denied => Some(Reason::SourceDenied),
        Subject::Malformed => Some(Reason::Malformed),
        _ => None,
    }
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
            Subject::Floor => (expected.from, expected.to) = (input.to, input.from),
            Subject::ToBackend(_, service) => expected = balancer.to_backend(&input, &output, service)?,
            Subject::New(_) | Subject::SynFlood => {
                expected = balancer.to_backend(&input, &output, Service::Always)?;
            }
            Subject::ToClient(_, service) => expected = Balancer::to_client(&input, service),
            _ => {}
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

impl Bench<'_> {
    /// Measures a case of established flows while another CPU runs the same program on the same flows: what a packet costs, in
    /// costs of a packet alone. `companion` is a replay that nobody else uses.
    pub(crate) fn measure_beside(&mut self, case: &Case, companion: &mut Replay, cpu: usize) -> Result<f64> {
        let packet = case.packet();
        companion.aim(&self.balancer.program()?)?;
        let alone = self.above_replaying(case, &packet)?;
        let (begun, is_over) = (AtomicBool::new(false), AtomicBool::new(false));
        let together = thread::scope(|scope| {
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
            let cost = self.above_replaying(case, &packet);
            is_over.store(true, Ordering::Relaxed);
            beside.join().map_err(|_| anyhow!("the other CPU's thread panicked"))??;
            cost
        })?;
        // As long as it can call the balancer's program, that and all its maps stay.
        let nothing = companion.program("empty")?;
        companion.aim(&nothing)?;
        Ok(together / alone)
    }

    /// What a packet of a case costs above replaying it, both measured in turn and taken at their least.
    fn above_replaying(&mut self, case: &Case, packet: &Packet) -> Result<f64> {
        let programs = [self.replay.program("empty")?, self.balancer.program()?];
        let mut least = [f64::INFINITY; 2];
        for _ in 0..PASSES_BESIDE {
            for (program, least) in programs.iter().zip(&mut least) {
                self.replay.aim(program)?;
                *least = least.min(self.replay.run(packet, case.flows, case.packets)?.nanoseconds);
            }
        }
        Ok(least[1] - least[0])
    }
}

/// How often a round measures with another CPU beside, and without.
const PASSES_BESIDE: u32 = 6;
