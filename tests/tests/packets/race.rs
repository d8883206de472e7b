//! Two CPUs that see the first packets of a flow at the same time.

use std::collections::BTreeSet;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::{Context as _, Result, anyhow, ensure};

use aya::programs::{TestRun as _, TestRunOptions, Xdp};
use aya_obj::programs::XdpAttachType;
use lb_common::MAX_BACKENDS;
use lb_tests::packets::{Family, Verdict, oracle};
use libtest_mimic::Trial;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use crate::lab::{Lab, ONE_BACKEND, THREE_BACKENDS, tcp, udp};
use crate::{scaled, trial_for_each_family};

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials =
        trial_for_each_family("race", "two CPUs that open one flow at once agree on it", one_flow_twice);
    trials.extend(trial_for_each_family(
        "race",
        "two CPUs agree on a flow of mode = dsr too",
        one_dsr_flow_twice,
    ));
    trials.extend(trial_for_each_family(
        "race",
        "a datagram and an answer that promote one flow at once both get through",
        promoted_twice,
    ));
    trials.extend(trial_for_each_family(
        "race",
        "a packet for which another CPU opened the flow is not sent to its own choice",
        flow_of_another,
    ));
    trials.extend(trial_for_each_family(
        "race",
        "a table that is replaced under load names nobody but whom the old or the new one names",
        replaced_under_load,
    ));
    trials
}

/// Alpha alone, then beta alone, then alpha again and so on, as fast as it goes. Gamma is in neither rotation. What a CPU
/// sends meanwhile goes to alpha or beta, and once a change is made to the new one only.
fn replaced_under_load(family: Family) -> Result<()> {
    const ROTATIONS: [&str; 2] = ["alpha", "beta"];
    let weights = |only: &str| {
        let weight = |name| format!("{{ name = \"{name}\", weight = {} }}", u8::from(name == only));
        format!("backend_set.web.backend = [{}]", ["alpha", "beta", "gamma"].map(weight).join(", "))
    };
    let mut lab = Lab::new(THREE_BACKENDS, &weights(ROTATIONS[0]), family)?;
    let frames = (0..scaled(60_000)?)
        .map(|number| lab.frame(&tcp(format!("client:{}", 1024 + number), "vip:80", "S")))
        .collect::<Result<Vec<_>>>()?;
    let program = program_of(&mut lab)?;
    // Even while nothing changes: half of it counts the changes made.
    let (changes, wanted) = (AtomicUsize::new(0), 2 * (usize::try_from(scaled(10)?)? + 1));
    let (sent, made) = thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let send = |frame: &Vec<u8>| {
                let before = changes.load(Ordering::SeqCst);
                let out = run(&program, frame)?;
                Ok((before, out, changes.load(Ordering::SeqCst)))
            };
            // Each flow once; a machine that is slow to make changes gets more time, and the same clients begin anew.
            let is_enough = |sent| sent >= 10 * frames.len() || changes.load(Ordering::SeqCst) >= wanted;
            let sent = frames.iter().cycle().enumerate();
            let sent = sent.take_while(|&(sent, _)| sent < frames.len() || !is_enough(sent));
            sent.map(|(_, frame)| send(frame)).collect::<Result<Vec<_>>>()
        });
        let mut made = 0;
        while !sender.is_finished() {
            made += 1;
            changes.fetch_add(1, Ordering::SeqCst);
            lab.reload(THREE_BACKENDS, &weights(ROTATIONS[made % 2]))?;
            changes.fetch_add(1, Ordering::SeqCst);
        }
        let sent = sender.join().map_err(|_| anyhow!("the sender panicked"))??;
        Ok::<_, anyhow::Error>((sent, made))
    })?;
    ensure!(2 * made >= wanted, "only {made} changes while {} packets were sent", sent.len());
    for (before, out, after) in sent {
        let to = lab.host_at(oracle::Dissected::new(&out)?.dst)?;
        let is_settled = before == after && before % 2 == 0;
        let allowed = if is_settled { &ROTATIONS[before / 2 % 2..][..1] } else { &ROTATIONS[..] };
        ensure!(allowed.contains(&to), "{to} got a flow between the changes {before} and {after} (halves)");
    }
    Ok(())
}

/// Another CPU opened the flow, towards alpha, between the lookup of a packet and its insertion; meanwhile beta has
/// replaced alpha. Two CPUs hardly ever meet so, but a flow of a backend that does not exist goes the same way: it is not
/// found, another backend is chosen, and the insertion finds it.
fn flow_of_another(family: Family) -> Result<()> {
    let only = |backend: &str| ONE_BACKEND.replace("alpha", backend);
    let mut lab = Lab::new(&only("alpha"), "", family)?;
    let frame = lab.frame(&udp("client:40000", "vip:80", "datagram"))?;
    lab.through(&frame)?;
    lab.bench.set_backend_of_flows(MAX_BACKENDS)?;
    lab.reload(&only("beta"), "")?;
    let answer = lab.send(&frame)?;
    ensure!(
        answer.verdict == Verdict::Drop,
        "expected a packet of a flow to no backend to be dropped, found {:?} of\n{}",
        answer.verdict,
        oracle::describe(&answer.frame)
    );
    ensure!(
        lab.bench.flows()?.len() == 1,
        "expected the flow to be left alone, found {:?}",
        lab.bench.halves()?
    );
    Ok(())
}

const FLOWS: usize = 1000;
const XDP_TX: u32 = 3;

fn one_flow_twice(family: Family) -> Result<()> {
    let sources = agree(Lab::new(ONE_BACKEND, "lb.max_connections = 4096", family)?)?;
    ensure!(sources == FLOWS, "expected {FLOWS} flows with a source each, found {sources} sources");
    Ok(())
}

/// Nothing is claimed there, so neither CPU may find that the other has been first and give up.
fn one_dsr_flow_twice(family: Family) -> Result<()> {
    let config = ONE_BACKEND.replace("8080", "80");
    let changes = "lb.max_connections = 4096\nbackend_set.web = { mode = \"dsr\", snat = \"never\" }";
    agree(Lab::new(&config, changes, family)?).map(drop)
}

/// Sends the same SYNs from two CPUs, each pair at the same moment as nearly as it can be done. Gives the number of
/// sources that the backend sees.
fn agree(mut lab: Lab) -> Result<usize> {
    let frames: Vec<Vec<u8>> = (0..FLOWS)
        .map(|number| lab.frame(&tcp(format!("client:{}", 10_000 + number), "vip:80", "S")))
        .collect::<Result<_>>()?;
    let outs = send_from_two_cpus(lab.bench.program()?, [&frames, &frames])?;
    for (number, (one, other)) in outs[0].iter().zip(&outs[1]).enumerate() {
        ensure!(
            one == other,
            "the two packets of flow {number} came out differently:\n{one:02x?}\n{other:02x?}"
        );
    }
    let flows = lab.bench.flows()?;
    let sources: BTreeSet<_> = flows.iter().map(|flow| flow.leaves.0).collect();
    ensure!(flows.len() == FLOWS, "expected {FLOWS} flows, found {}", flows.len());
    let counted = lab.bench.counts()?.sum("listener web", "new_flows");
    ensure!(counted == FLOWS as u64, "expected {FLOWS} new flows to be counted, found {counted}");
    Ok(sources.len())
}

/// The second datagram of a flow on one CPU and the first answer on another, at the same moment: each proves that the client exists, and
/// finds the flow wherever the other has just put it.
fn promoted_twice(family: Family) -> Result<()> {
    let mut lab = Lab::new(ONE_BACKEND, "lb.max_connections = 4096", family)?;
    let (mut datagrams, mut answers) = (Vec::new(), Vec::new());
    for number in 0..FLOWS {
        let datagram = lab.frame(&udp(format!("client:{}", 10_000 + number), "vip:80", "datagram"))?;
        let out = lab.send(&datagram)?.frame;
        answers.push(lab.answer_to(&out, "")?);
        datagrams.push(datagram);
    }
    send_from_two_cpus(lab.bench.program()?, [&datagrams, &answers])?;
    let flows = lab.bench.flows()?.len();
    ensure!(flows == FLOWS, "expected {FLOWS} flows, found {flows}");
    Ok(())
}

/// Runs the program on frames on two CPUs, the first of both at the same moment, and so on.
fn send_from_two_cpus(program: &Xdp, frames: [&[Vec<u8>]; 2]) -> Result<Vec<Vec<Vec<u8>>>> {
    let barrier = Barrier::new(2);
    thread::scope(|scope| {
        let barrier = &barrier;
        let senders = [0, 1].map(|cpu| scope.spawn(move || send_all(program, frames[cpu], barrier, cpu)));
        senders
            .map(|sender| sender.join().map_err(|_| anyhow!("a sender panicked"))?)
            .into_iter()
            .collect::<Result<Vec<_>>>()
    })
}

/// Runs the program on all frames, waiting for the other sender before each. On a machine with one CPU the two
/// take turns.
fn send_all(program: &Xdp, frames: &[Vec<u8>], barrier: &Barrier, cpu: usize) -> Result<Vec<Vec<u8>>> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu)?;
    // What fails is left to the scheduler.
    let _ = sched_setaffinity(Pid::from_raw(0), &cpus);
    let mut outs = Vec::new();
    let mut failure = None;
    for frame in frames {
        barrier.wait();
        // The other one waits at the barrier, so a failure must not end the loop.
        match run(program, frame) {
            Ok(out) => outs.push(out),
            Err(error) => failure = Some(error),
        }
    }
    failure.map_or(Ok(outs), Err)
}

/// The loaded program, to be run while somebody else has the laboratory.
pub(crate) fn program_of(lab: &mut Lab) -> Result<Xdp> {
    let info = lab.bench.program()?.info()?;
    Ok(Xdp::from_program_info(info, "lb".into(), XdpAttachType::Interface)?)
}

/// What a program that sends a frame makes of it.
pub(crate) fn run(program: &Xdp, frame: &[u8]) -> Result<Vec<u8>> {
    let mut out = vec![0; frame.len() + 64];
    let options = TestRunOptions { data_in: Some(frame), data_out: Some(&mut out), ..TestRunOptions::new() };
    let run = program.test_run(options).context("BPF_PROG_TEST_RUN failed")?;
    ensure!(run.return_value == XDP_TX, "expected XDP_TX, found {}", run.return_value);
    out.truncate(run.data_size_out as usize);
    Ok(out)
}
