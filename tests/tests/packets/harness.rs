//! The harness itself: a case that says something wrong must fail.

use std::fmt::Debug;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use aya::Pod;
use lb_common::{Addr4, Addr6, Address, Flow, FlowKey, HalfOpen};
use lb_tests::flow_tables::FlowTables;
use lb_tests::packets::case::CaseFile;
use lb_tests::packets::{Family, Network, play};
use libtest_mimic::Trial;

use crate::lab::{Lab, ONE_BACKEND, tcp, udp};
use crate::trial_for_each_family;

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials =
        trial_for_each_family("harness", "a case fails unless everything is as it says", wrong_expectations);
    trials.extend(trial_for_each_family(
        "harness",
        "flows that benchmarks enter, promote and take away are as if packets had done it",
        by_hand,
    ));
    trials
}

fn by_hand(family: Family) -> Result<()> {
    match family {
        Family::V4 => by_hand_in::<Addr4>(family),
        Family::V6 => by_hand_in::<Addr6>(family),
    }
}

fn by_hand_in<A>(family: Family) -> Result<()>
where
    A: Address + Default + Debug,
    FlowKey<A>: Pod,
    Flow<A>: Pod,
    HalfOpen<A>: Pod,
{
    let mut lab = Lab::new(ONE_BACKEND, "", family)?;
    // One packet of each is what an answer promotes.
    let picked_up = |port| tcp(format!("client:{port}"), "vip:80", "A");
    let datagram = |port| udp(format!("client:{port}"), "vip:80", "x");
    let promotable = [picked_up(40_000), picked_up(40_001), datagram(40_000), datagram(40_001)];
    let promotable = promotable.map(|packet| lab.frame(&packet));
    let promotable = promotable.into_iter().collect::<Result<Vec<_>>>()?;
    let syn = lab.frame(&tcp("client:50000", "vip:80", "S"))?;
    let seen: Vec<_> = promotable.iter().map(|frame| lab.through(frame)).collect::<Result<_>>()?;
    lab.through(&syn)?;
    let goes_on = |lab: &mut Lab| {
        let before = lab.bench.counts()?;
        for (frame, seen) in promotable.iter().zip(&seen) {
            let found = lab.through(frame)?;
            ensure!(found == *seen, "a flow went on as {found:?}, before it was {seen:?}");
        }
        let opened = lab.bench.counts()?.since(&before).sum("listener web", "new_flows");
        ensure!(opened == 0, "{opened} flows were opened anew");
        lab.bench.flows().map(|flows| flows.len())
    };

    let mut tables = FlowTables::<A>::of(lab.bench.ebpf())?;
    tables.answer()?;
    let promoted = tables.promoted()?;
    ensure!(promoted.len() == seen.len(), "expected {} flows to be promoted: {promoted:?}", seen.len());
    ensure!(goes_on(&mut lab)? == seen.len() + 1, "the SYN alone was to stay half-open");
    tables.empty_rings()?;
    ensure!(goes_on(&mut lab)? == seen.len(), "nothing was to stay half-open");

    promoted.iter().try_for_each(|(key, _)| tables.remove(key))?;
    let (flows, claims) = (lab.bench.flows()?.len(), lab.bench.claims()?);
    ensure!((flows, claims) == (0, 0), "{flows} flows and {claims} claims are left");
    lab.through(&syn)?;
    for (_, record) in tables.half_open().collect::<Vec<_>>() {
        tables.remove(&record.key)?;
    }
    ensure!(lab.bench.claims()? == 0, "claims of a half-open flow are left");

    for _ in 0..2 {
        // The second time everything is there already.
        promoted.iter().try_for_each(|(key, flow)| tables.insert(key, flow))?;
        let claims = lab.bench.claims()?;
        // One for their answers and one for where they are.
        ensure!(claims == 2 * promoted.len(), "{} flows have {claims} claims", promoted.len());
    }
    // The program has copies of what was there before.
    lab.bench.age(Duration::ZERO)?;
    ensure!(goes_on(&mut lab)? == seen.len(), "not all flows are there again");
    Ok(())
}

/// What a step expects of the SYN it sends, and is right to expect.
const RIGHT: &str = "tx = { src = \"vip:$port\", dst = \"alpha:8080\" }\nopens = true\nconnections = 1";

/// Changes of that, and what the player must say of each.
const WRONG: &[(&str, &str, &str)] = &[
    ("alpha:8080", "beta:8080", "another frame"),
    ("alpha:8080", "alpha:8081", "another frame"),
    ("vip:$port", "client:$port", "another frame"),
    ("alpha:8080\"", "alpha:8080\", ttl = 64", "another frame"),
    ("alpha:8080\"", "alpha:8080\", dst_mac = \"02:00:00:00:00:99\"", "another frame"),
    ("tx", "redirect", "expected the verdict Redirect, found Tx"),
    ("tx = { src = \"vip:$port\", dst = \"alpha:8080\" }", "pass = true", "expected the verdict Pass"),
    (
        "tx = { src = \"vip:$port\", dst = \"alpha:8080\" }",
        "drop = \"fragment\"",
        "expected the verdict Drop",
    ),
    ("tx = { src = \"vip:$port\", dst = \"alpha:8080\" }", "answer = \"rst\"", "another frame"),
    ("tx = { src = \"vip:$port\", dst = \"alpha:8080\" }", "hold = true", "expected the verdict Drop"),
    ("opens = true", "notes = [\"half_open_evicted\"]\nopens = true", "counters to move"),
    ("opens = true", "", "counters to move"),
    ("opens = true", "opens = true\nrefused = true", "counters to move"),
    ("opens = true", "pass = true", "exactly one"),
    ("connections = 1", "connections = 2", "expected 2 connections"),
    ("connections = 1", "connexions = 1", "unknown field `connexions`"),
];

fn wrong_expectations(family: Family) -> Result<()> {
    play_step(RIGHT, family)?;
    for (from, to, complaint) in WRONG {
        let step = RIGHT.replacen(from, to, 1);
        let error = play_step(&step, family).err().with_context(|| format!("nothing was said of\n{step}"))?;
        let error = format!("{error:#}");
        ensure!(
            error.contains(complaint) && error.contains("test.toml"),
            "expected a complaint of `{complaint}` in test.toml about\n{step}\nfound\n{error}"
        );
    }
    Ok(())
}

/// Plays a case whose only step sends a SYN and expects this.
fn play_step(expectation: &str, family: Family) -> Result<()> {
    let text = format!(
        r#"
        about = "one listener"
        [[config.listener]]
        name = "web"
        address = "vip"
        protocol = "tcp"
        port = 80
        backend_set = "web"
        [[config.backend_set.web.backend]]
        address = "alpha"
        port = 8080

        [[case]]
        name = "a case"
        [[case.step]]
        send = {{ src = "client:40000", dst = "vip:80", tcp = "S" }}
        {expectation}
        "#
    );
    let file = CaseFile::parse(Path::new("test.toml"), text)?;
    play::play(&file, &file.topic.cases[0], &Network::read(&super::cases())?, family)
}
