//! Floods: no number of flows that never prove that their client exists takes anything from those that have.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lb_tests::packets::case::Packet;
use lb_tests::packets::network::Mac;
use lb_tests::packets::{Family, Verdict};
use libtest_mimic::Trial;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use crate::lab::{Lab, ONE_BACKEND, tcp, udp};
use crate::trial_for_each_family;

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials =
        trial_for_each_family("flood", "SYNs without end evict SYNs alone, the oldest first", syns);
    trials.extend(trial_for_each_family(
        "flood",
        "ACKs without end, picked up, evict what was picked up and nobody answered",
        acks,
    ));
    trials.extend(trial_for_each_family(
        "flood",
        "SYNs without end leave a SNAT port to whoever comes next, and to others what they have",
        snat_ports,
    ));
    trials.extend(trial_for_each_family(
        "flood",
        "datagrams without end evict no flow that was answered or spoke twice",
        datagrams,
    ));
    trials.extend(trial_for_each_family(
        "flood",
        "datagrams without end evict no flow that spoke twice, in mode = dsr, where no answer is ever seen",
        dsr_datagrams,
    ));
    trials
}

const NAT: &str = r#"backend_set.web.snat = "never""#;

/// The backend gets packets on the port that they are sent to.
const DSR: &str = r#"
    listener = [{ name = "web", port = 80 }]
    backend_set.web = { mode = "dsr", snat = "never", backend = [{ name = "alpha", port = 80 }] }
"#;

/// Flows that prove themselves before the flood.
const HONEST: u16 = 100;

/// Flows of the flood beyond what there is room for.
const TOO_MANY: u32 = 500;

/// What is left to the collector of flows, and not evicted: half-open TCP of this age.
const COLLECTED_AFTER: Duration = Duration::from_secs(7);

/// By then every flow has idled out, whatever it is: TCP takes longest, 360 s.
const IDLED_OUT: Duration = Duration::from_secs(400);

fn syns(family: Family) -> Result<()> {
    let promote = |lab: &mut Lab, number| {
        for flags in ["S", "A"] {
            let frame = lab.frame(&tcp(format!("client:{}", 1024 + number), "vip:80", flags))?;
            lab.through(&frame)?;
        }
        Ok(())
    };
    let go_on = |number| tcp(format!("client:{}", 1024 + number), "vip:80", "A");
    flood(family, NAT, promote, go_on, |source| tcp(source, "vip:80", "S"))
}

/// Every other honest flow was picked up itself, and its backend goes on with it.
fn acks(family: Family) -> Result<()> {
    let promote = |lab: &mut Lab, number: u16| {
        let client = format!("client:{}", 1024 + number);
        let flags = if number.is_multiple_of(2) { ["S", "A"] } else { ["A", "PA"] };
        let mut out = Vec::new();
        for flags in flags {
            let frame = lab.frame(&tcp(client.clone(), "vip:80", flags))?;
            lab.through(&frame)?;
            out = lab.send(&frame)?.frame;
        }
        let answer = lab.answer_to(&out, "A")?;
        lab.through(&answer).map(drop)
    };
    let go_on = |number| tcp(format!("client:{}", 1024 + number), "vip:80", "A");
    flood(family, NAT, promote, go_on, |source| tcp(source, "vip:80", "A"))
}

/// One backend and one SNAT address: far more SYNs than there are ports.
fn snat_ports(family: Family) -> Result<()> {
    const PORTS: u16 = 1000;
    let changes = format!("lb.snat_ports = \"20000-{}\"", 20_000 + PORTS - 1);
    let mut lab = Lab::new(ONE_BACKEND, &changes, family)?;
    let connect = |lab: &mut Lab, number| {
        let mut seen = Vec::new();
        for flags in ["S", "A", "A"] {
            let frame = lab.frame(&tcp(format!("client:{}", 1024 + number), "vip:80", flags))?;
            seen.push(lab.through(&frame)?);
        }
        seen.dedup();
        ensure!(seen.len() == 1, "connection {number} was torn apart: {seen:?}");
        Ok(seen[0])
    };
    let established: Vec<_> = (0..HONEST).map(|number| connect(&mut lab, number)).collect::<Result<_>>()?;
    let (mut refused, mut kept_out) = (0, 0);
    for number in 0..5 * u32::from(PORTS) {
        let frame = lab.frame(&from_anywhere(|source| tcp(source, "vip:80", "S"), number, family))?;
        refused += u32::from(lab.send(&frame)?.verdict == Verdict::Drop);
        if number.is_multiple_of(50) {
            kept_out += u32::from(connect(&mut lab, HONEST + (number / 50) as u16).is_err());
        }
    }
    ensure!(kept_out == 0, "{kept_out} of {HONEST} honest clients were kept out, and {refused} others");
    for (number, before) in (0..).zip(established) {
        let frame = lab.frame(&tcp(format!("client:{}", 1024 + number), "vip:80", "A"))?;
        ensure!(lab.through(&frame)? == before, "connection {number} lost its port in the flood");
    }
    require_nothing_left(&mut lab)
}

fn datagrams(family: Family) -> Result<()> {
    let promote = |lab: &mut Lab, number: u16| {
        let request = lab.frame(&udp(format!("client:{}", 1024 + number), "vip:80", "x"))?;
        let out = lab.send(&request)?;
        let proof = if number.is_multiple_of(2) { request } else { lab.answer_to(&out.frame, "")? };
        lab.through(&proof)?;
        Ok(())
    };
    let go_on = |number| udp(format!("client:{}", 1024 + number), "vip:80", "x");
    flood(family, NAT, promote, go_on, |source| udp(source, "vip:80", "x"))
}

fn dsr_datagrams(family: Family) -> Result<()> {
    let datagram = |number| udp(format!("client:{}", 1024 + number), "vip:80", "x");
    let promote = |lab: &mut Lab, number| {
        let frame = lab.frame(&datagram(number))?;
        (0..2).try_for_each(|_| lab.through(&frame).map(drop))
    };
    flood(family, DSR, promote, datagram, |source| udp(source, "vip:80", "x"))
}

/// Opens honest flows, then others until there is no room; all of these get through, at the cost of the oldest of
/// them, and the honest ones go on.
fn flood(
    family: Family,
    changes: &str,
    promote: impl Fn(&mut Lab, u16) -> Result<()>,
    go_on: impl Fn(u16) -> Packet,
    attack: impl Fn(String) -> Packet,
) -> Result<()> {
    // Each CPU has room of its own.
    let mut cpu = CpuSet::new();
    cpu.set(0)?;
    sched_setaffinity(Pid::from_raw(0), &cpu)?;
    let mut lab = Lab::new(ONE_BACKEND, changes, family)?;
    for number in 0..HONEST {
        promote(&mut lab, number)?;
    }
    let is_half_open = attack("client:1".to_owned()).tcp.as_deref() == Some("S");
    let attacks = lab.bench.half_open_room()? + TOO_MANY;
    let (begin, before) = (Instant::now(), lab.bench.counts()?);
    for number in 0..attacks {
        let frame = lab.frame(&from_anywhere(&attack, number, family))?;
        lab.through(&frame)?;
    }
    let moved = lab.bench.counts()?.since(&before);
    let (opened, evicted) = (moved.sum("listener web", "new_flows"), moved.sum("notes", "half_open_evicted"));
    let may_be_collected = is_half_open && begin.elapsed() > COLLECTED_AFTER;
    ensure!(
        opened == u64::from(attacks) && (evicted == u64::from(TOO_MANY) || may_be_collected),
        "expected {attacks} flows to open and {TOO_MANY} to be evicted, found {opened} and {evicted}"
    );
    for number in 0..HONEST {
        let frame = lab.frame(&go_on(number))?;
        lab.through(&frame)?;
    }
    let honest_again = lab.bench.counts()?.since(&before).sum("listener web", "new_flows") - opened;
    ensure!(honest_again == 0, "{honest_again} of {HONEST} honest flows were lost in the flood");
    if evicted == u64::from(TOO_MANY) {
        for (number, is_new) in [(0, 1), (TOO_MANY - 1, 1), (attacks - 1, 0)] {
            let before = lab.bench.counts()?;
            let frame = lab.frame(&from_anywhere(&attack, number, family))?;
            lab.through(&frame)?;
            let opened = lab.bench.counts()?.since(&before).sum("listener web", "new_flows");
            ensure!(
                opened == is_new,
                "expected {is_new} new flows for number {number} again, found {opened}"
            );
        }
    }
    require_nothing_left(&mut lab)
}

/// Each flow is where it has to be, and when all of them have idled out, nothing tells of them any more.
fn require_nothing_left(lab: &mut Lab) -> Result<()> {
    lab.bench.flows()?;
    lab.bench.age(IDLED_OUT)?;
    lab.bench.sweep()?;
    let (flows, claims) = (lab.bench.flows()?.len(), lab.bench.claims()?);
    ensure!((flows, claims) == (0, 0), "{flows} flows and {claims} claims are left when all have idled out");
    Ok(())
}

/// A packet of the flood: each from another source.
fn from_anywhere(attack: impl Fn(String) -> Packet, number: u32, family: Family) -> Packet {
    let [_, a, b, c] = number.to_be_bytes();
    let address: IpAddr = match family {
        Family::V4 => Ipv4Addr::new(198, 18, a, b).into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0x99, 0, 0, 0, a.into(), b.into()).into(),
    };
    let source = SocketAddr::new(address, 1024 + u16::from(c)).to_string();
    Packet { src_mac: Some(Mac([2, 0, 0, 0, 1, 1])), ..attack(source) }
}
