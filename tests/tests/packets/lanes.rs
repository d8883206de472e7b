//! Flows whose copies share what they have in common: each must get its own, whoever else is under way.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use lb_common::lane::LANE_S;
use lb_tests::packets::case::Packet;
use lb_tests::packets::network::Mac;
use lb_tests::packets::oracle::{self, Dissected};
use lb_tests::packets::{Answer, Family, Verdict};
use libtest_mimic::Trial;

use crate::lab::{Lab, ONE_BACKEND, client_address, tcp, udp};
use crate::race::{program_of, run};
use crate::{effort, scaled, trial_for_each_family};

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials =
        trial_for_each_family("lanes", "more clients on the link than a CPU has lanes", neighbours);
    trials.extend(trial_for_each_family("lanes", "a lane that is not used any more becomes another", others));
    trials.extend(trial_for_each_family("lanes", "packets find copies of their flows", copies));
    trials.extend(trial_for_each_family("lanes", "a client whose MAC changes in one bit", moves));
    trials.extend(trial_for_each_family("lanes", "flows of one lane to many ports", ports));
    trials.extend(trial_for_each_family("lanes", "a port that stays beside one that does not", kept));
    trials.extend(trial_for_each_family("lanes", "TCP and UDP between the same ports", protocols));
    trials
}

/// Clients on the link: more than the 4,096 lanes that a CPU has when it has room for so many flows only.
const CLIENTS: u16 = 5_000;

/// So many that each CPU has places for both directions of all of them, beside what it finds taken by others.
fn room() -> Result<String> {
    let cpus = u32::try_from(aya::util::nr_cpus().map_err(|(_, error)| error)?)?;
    Ok(format!("lb.max_connections = {}", u32::from(CLIENTS) * cpus))
}

/// A listener of some ports.
const PORTS: &str = r#"
    [[listener]]
    name = "web"
    address = "vip"
    protocol = "tcp"
    ports = "80-89"
    backend_set = "web"

    [[backend_set.web.backend]]
    address = "alpha"
    port = 0
"#;

/// How often each flow sends: a copy is made of an established one, and used from the next packet on.
const TIMES: u32 = 4;

/// A TCP connection through the balancer, of a client on its link.
struct Connection {
    mac: Mac,
    src: String,
    dst: &'static str,
    /// Source and destination of its packets at the backend.
    translated: (SocketAddr, SocketAddr),
    /// An answer of the backend.
    answer: Vec<u8>,
}

impl Connection {
    fn open(lab: &mut Lab, family: Family, number: u16, dst: &'static str) -> Result<Self> {
        let [high, low] = number.to_be_bytes();
        let (mac, address) = (Mac([2, 0, 0, 9, high, low]), client_address(family, number));
        let src = SocketAddr::new(address, 1024).to_string();
        let syn = lab.frame(&Packet { src_mac: Some(mac), ..tcp(src.clone(), dst, "S") })?;
        let translated = lab.through(&syn)?;
        let sent_out = lab.send(&syn)?.frame;
        lab.through(&lab.answer_to(&sent_out, "SA")?)?;
        let answer = lab.answer_to(&sent_out, "A")?;
        Ok(Self { mac, src, dst, translated, answer })
    }

    /// A packet of the client.
    fn ack(&self, lab: &Lab) -> Result<Vec<u8>> {
        lab.frame(&Packet { src_mac: Some(self.mac), ..tcp(self.src.clone(), self.dst, "A") })
    }

    /// A packet in each direction.
    fn talk(&self, lab: &mut Lab) -> Result<()> {
        let ack = self.ack(lab)?;
        let found = lab.through(&ack)?;
        ensure!(found == self.translated, "{}: expected {:?}, found {found:?}", self.src, self.translated);
        let Answer { verdict, frame } = lab.send(&self.answer)?;
        ensure!(verdict == Verdict::Tx, "{}: expected the verdict Tx, found {verdict:?}", self.src);
        oracle::require_right_checksums(&frame)?;
        let out = Dissected::new(&frame)?;
        let to = Mac(*frame.first_chunk().context("the frame has no Ethernet header")?);
        ensure!(
            (to, out.dst.to_string()) == (self.mac, self.src.clone()),
            "expected an answer to {} at {:?}, found one to {} at {to:?}",
            self.src,
            self.mac,
            out.dst
        );
        let asked = Dissected::new(&ack)?.dst;
        ensure!(out.src == asked, "{}: expected an answer from {asked}, found {}", self.src, out.src);
        Ok(())
    }
}

fn connections(lab: &mut Lab, family: Family, numbers: std::ops::Range<u16>) -> Result<Vec<Connection>> {
    numbers.map(|number| Connection::open(lab, family, number, "vip:80")).collect()
}

fn talk(lab: &mut Lab, connections: &[Connection]) -> Result<()> {
    (0..TIMES).try_for_each(|_| connections.iter().try_for_each(|connection| connection.talk(lab)))
}

fn neighbours(family: Family) -> Result<()> {
    let mut lab = Lab::new(ONE_BACKEND, &room()?, family)?;
    let clients = u16::try_from(scaled(CLIENTS.into())?.min(CLIENTS.into()))?;
    let all = connections(&mut lab, family, 1..clients)?;
    talk(&mut lab, &all)
}

fn others(family: Family) -> Result<()> {
    let mut lab = Lab::new(ONE_BACKEND, &room()?, family)?;
    // On an emulated kernel no lane becomes another in so short a time, whatever their number.
    let (many, is_whole) = if effort()? < 100 { (40, false) } else { (200, true) };
    let first = connections(&mut lab, family, 1..many)?;
    talk(&mut lab, &first)?;
    let begin = Instant::now();
    let second = connections(&mut lab, family, many..many + 10)?;
    // The time that a lane lasts is the same on every kernel, and long on an emulated one.
    let time = Duration::from_secs(if is_whole { u64::from(LANE_S) + 1 } else { 1 });
    while begin.elapsed() < time {
        talk(&mut lab, &second)?;
    }
    let before = packets(&lab)?;
    let third = connections(&mut lab, family, many + 10..2 * many)?;
    require_steady_tally(&mut lab, &third)?;
    for connections in [&third, &first, &second, &third] {
        talk(&mut lab, connections)?;
    }
    // Lanes that have become others have counted, too.
    let opening = 3 * u64::try_from(third.len())?;
    let sent = opening
        + 2 * third.len() as u64
        + [&third, &first, &second, &third].map(|connections| sent_by(connections)).iter().sum::<u64>();
    let found = packets(&lab)?.map(|after| after - before[0]);
    ensure!(found == [sent; 2], "expected {sent} packets at the listener and the backend, found {found:?}");
    Ok(())
}

/// A tally that was begun before lanes become others tells the same as one that is begun after that.
fn require_steady_tally(lab: &mut Lab, connections: &[Connection]) -> Result<()> {
    let program = program_of(lab)?;
    let packets = connections.iter().map(|connection| Ok([connection.ack(lab)?, connection.answer.clone()]));
    let packets = packets.collect::<Result<Vec<_>>>()?;
    let id = *lab.bench.names().listeners.get("web").context("no listener web")?;
    let (begun, before) = (lab.bench.tally(), lab.bench.tally().listener(id)?);
    // Once: these are copied, and count by themselves.
    packets.iter().flatten().try_for_each(|frame| run(&program, frame).map(drop))?;
    let (held, fresh) = (begun.listener(id)?, lab.bench.tally().listener(id)?);
    ensure!(held == fresh, "expected {fresh:?} of a tally begun before, found {held:?}");
    let counted = fresh.to_backend.packets - before.to_backend.packets;
    let sent = connections.len() as u64;
    ensure!(counted == sent, "expected {sent} packets to the backend to be counted, found {counted}");
    Ok(())
}

/// Packets that have been counted: for the listener, for the backend.
fn packets(lab: &Lab) -> Result<[u64; 2]> {
    let counts = lab.bench.counts()?;
    Ok(["listener", "backend"].map(|who| counts.sum(who, "packets")))
}

fn sent_by(connections: &[Connection]) -> u64 {
    2 * u64::from(TIMES) * connections.len() as u64
}

/// A port that stays beside one that does not, at the same backend.
const KEPT: &str = r#"
    [[listener]]
    name = "kept"
    address = "vip"
    protocol = "tcp"
    port = 8080
    backend_set = "web"
"#;

fn kept(family: Family) -> Result<()> {
    let lab = Lab::new(ONE_BACKEND, KEPT, family)?;
    talk_to(lab, family, &["vip:80", "vip:8080"])
}

/// Connections of 40 clients, to one of these after the other.
fn talk_to(mut lab: Lab, family: Family, to: &[&'static str]) -> Result<()> {
    let all = (1..=40).zip(to.iter().cycle());
    let all = all.map(|(number, dst)| Connection::open(&mut lab, family, number, dst));
    let all = all.collect::<Result<Vec<_>>>()?;
    talk(&mut lab, &all)
}

/// Whether copies are used at all, and not each packet's flow looked up.
fn copies(family: Family) -> Result<()> {
    let mut lab = Lab::new(ONE_BACKEND, "", family)?;
    let all = connections(&mut lab, family, 1..50)?;
    let mut found = 0;
    // Another CPU, if this thread comes to run there, has to copy the flows first.
    for _ in 0..20 {
        talk(&mut lab, &all)?;
        lab.bench.backdate()?;
        all.iter().try_for_each(|connection| connection.talk(&mut lab))?;
        found = lab.bench.backdated()?;
        // A flow counts as looked at as soon as one packet of either direction has found no copy.
        if found * 10 >= all.len() * 9 {
            return Ok(());
        }
    }
    bail!("of {} flows only {found} were not looked at, since packets found their copies", all.len())
}

/// The first answer after each change goes to where the client is now. The bit of byte 0 that marks a group stays.
fn moves(family: Family) -> Result<()> {
    let mut lab = Lab::new(ONE_BACKEND, "", family)?;
    let mut connection = Connection::open(&mut lab, family, 1, "vip:80")?;
    for bit in 1..48 {
        for _ in 0..TIMES {
            connection.talk(&mut lab)?;
        }
        connection.mac.0[bit / 8] ^= 1 << (bit % 8);
    }
    connection.talk(&mut lab)
}

/// TCP and UDP between the same ports.
fn protocols(family: Family) -> Result<()> {
    let mut lab = Lab::new(ONE_BACKEND, "", family)?;
    let connection = Connection::open(&mut lab, family, 1, "vip:80")?;
    let datagram = Packet { src_mac: Some(connection.mac), ..udp(connection.src.clone(), "vip:80", "ping") };
    let datagram = lab.frame(&datagram)?;
    let translated = lab.through(&datagram)?;
    for _ in 0..TIMES {
        connection.talk(&mut lab)?;
        let found = lab.through(&datagram)?;
        ensure!(found == translated, "expected {translated:?}, found {found:?}");
    }
    Ok(())
}

fn ports(family: Family) -> Result<()> {
    let lab = Lab::new(PORTS, &room()?, family)?;
    talk_to(lab, family, &["vip:80", "vip:81", "vip:82", "vip:89"])
}
