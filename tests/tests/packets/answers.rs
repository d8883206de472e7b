//! Answers: whose they are is found, however many tuples fall into one bucket.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use lb_common::bucket::{BUCKET_WAYS, Home};
use lb_common::{Addr4, Addr6, Address, FlowKey, PROTO_TCP};
use lb_tests::packets::case::Packet;
use lb_tests::packets::network::Mac;
use lb_tests::packets::{Family, Verdict};
use libtest_mimic::Trial;

use crate::lab::{Lab, ONE_BACKEND, client_address, tcp};
use crate::trial_for_each_family;

pub(crate) fn trials() -> Vec<Trial> {
    trial_for_each_family("answers", "answers whose bucket is full are found all the same", full_bucket)
}

/// Backends see the clients' own addresses, so that a test decides on the tuples of answers.
const NAT: &str = r#"backend_set.web.snat = "never""#;

/// Flows whose answers fall into one bucket: more than it has room for.
const FLOWS: usize = BUCKET_WAYS + 5;

/// All clients come through this router.
const ROUTER: Mac = Mac([2, 0, 0, 0, 1, 1]);

/// The lowest port of a client.
const FIRST_PORT: u16 = 1024;

/// A reset flow ends after this time.
const RESET_FOR: Duration = Duration::from_secs(10);

/// By then every flow has idled out.
const IDLED_OUT: Duration = Duration::from_secs(400);

fn full_bucket(family: Family) -> Result<()> {
    let mut lab = Lab::new(ONE_BACKEND, NAT, family)?;
    let mut clients = crowd(&mut lab, family)?;
    let mut answers = Vec::new();
    for client in &clients {
        answers.push(open(&mut lab, *client)?);
    }
    require_answers(&mut lab, &clients, &answers)?;
    require_flows(&mut lab, FLOWS)?;

    // Every other one ends: some that the bucket has, some that it has no room for.
    let is_kept = |number: &usize| !number.is_multiple_of(2);
    for client in clients.iter().step_by(2) {
        let reset = frame_of(&lab, *client, "R")?;
        lab.through(&reset)?;
    }
    lab.bench.age(RESET_FOR)?;
    lab.bench.sweep()?;
    require_flows(&mut lab, FLOWS / 2)?;
    for (number, (client, answer)) in clients.iter().zip(&answers).enumerate() {
        if is_kept(&number) {
            require_answers(&mut lab, &[*client], std::slice::from_ref(answer))?;
        } else {
            let verdict = lab.send(answer)?.verdict;
            ensure!(verdict != Verdict::Tx, "an answer of a flow that has ended went on to {client}");
        }
    }

    // In another order, so that those that had found no room get some, and the other way round.
    clients.reverse();
    answers.reverse();
    for (client, answer) in clients.iter().zip(&mut answers).skip(1).step_by(2) {
        *answer = open(&mut lab, *client)?;
    }
    require_answers(&mut lab, &clients, &answers)?;
    require_flows(&mut lab, FLOWS)?;

    lab.bench.age(IDLED_OUT)?;
    lab.bench.sweep()?;
    require_flows(&mut lab, 0)?;
    let claims = lab.bench.claims()?;
    ensure!(claims == 0, "{claims} claims are left when all flows have idled out");
    Ok(())
}

/// Clients whose answers fall into one bucket.
fn crowd(lab: &mut Lab, family: Family) -> Result<Vec<SocketAddr>> {
    let first = SocketAddr::new(client_address(family, 1), FIRST_PORT);
    let (_, backend) = lab.through(&frame_of(lab, first, "S")?)?;
    lab.bench.age(IDLED_OUT)?;
    lab.bench.sweep()?;
    let buckets = lab.bench.answer_buckets(family);
    let full = bucket(backend, first, buckets)?;
    let mut crowd = Vec::new();
    for number in 1..=u16::MAX {
        for port in FIRST_PORT..=u16::MAX {
            let client = SocketAddr::new(client_address(family, number), port);
            if bucket(backend, client, buckets)? == full {
                crowd.push(client);
            }
            if crowd.len() == FLOWS {
                return Ok(crowd);
            }
        }
    }
    bail!("only {} clients fall into one of {buckets} buckets", crowd.len())
}

/// The bucket that the answers of a backend to a client fall into.
fn bucket(backend: SocketAddr, client: SocketAddr, buckets: u32) -> Result<u32> {
    fn of<A: Address>(source: A, destination: A, ports: [u16; 2], buckets: u32) -> u32 {
        let ([source_port, destination_port], protocol) = (ports, PROTO_TCP);
        let answer = FlowKey { source, destination, source_port, destination_port, protocol, _pad: [0; 3] };
        Home::of(&answer, buckets).bucket()
    }
    let ports = [backend.port(), client.port()];
    Ok(match (backend.ip(), client.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => of(Addr4::from(from), Addr4::from(to), ports, buckets),
        (IpAddr::V6(from), IpAddr::V6(to)) => of(Addr6::from(from), Addr6::from(to), ports, buckets),
        mixed => bail!("addresses of two families: {mixed:?}"),
    })
}

fn frame_of(lab: &Lab, client: SocketAddr, flags: &str) -> Result<Vec<u8>> {
    lab.frame(&Packet { src_mac: Some(ROUTER), ..tcp(client.to_string(), "vip:80", flags) })
}

/// Opens a client's flow by a handshake. Gives an answer of its backend.
fn open(lab: &mut Lab, client: SocketAddr) -> Result<Vec<u8>> {
    let sent_out = lab.send(&frame_of(lab, client, "S")?)?;
    ensure!(
        sent_out.verdict == Verdict::Tx,
        "{client}: expected the verdict Tx, found {:?}",
        sent_out.verdict
    );
    let answers = ["SA", "A"].map(|flags| lab.answer_to(&sent_out.frame, flags));
    let [accepted, answer] = answers;
    let (accepted, answer) = (accepted?, answer?);
    // Found while the flow is half-open, too.
    require_answers(lab, &[client], std::slice::from_ref(&accepted))?;
    lab.through(&frame_of(lab, client, "A")?)?;
    Ok(answer)
}

/// Each of these answers must come out at its client.
fn require_answers(lab: &mut Lab, clients: &[SocketAddr], answers: &[Vec<u8>]) -> Result<()> {
    for (client, answer) in clients.iter().zip(answers) {
        let (_, to) = lab.through(answer).with_context(|| format!("an answer to {client}"))?;
        ensure!(to == *client, "an answer to {client} went to {to}");
    }
    Ok(())
}

/// So many flows live, each of which is found both ways.
fn require_flows(lab: &mut Lab, expected: usize) -> Result<()> {
    let flows = lab.bench.flows()?;
    ensure!(flows.len() == expected, "expected {expected} flows, found {flows:#?}");
    Ok(())
}
