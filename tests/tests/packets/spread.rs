//! How new flows are spread over backends and SNAT addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use anyhow::{Result, ensure};
use lb_tests::packets::Family;
use lb_tests::packets::case::Packet;
use lb_tests::packets::network::Mac;
use libtest_mimic::Trial;

use crate::lab::{Lab, ONE_BACKEND, THREE_BACKENDS, client_address, tcp, udp};
use crate::{scaled, trial_for_each_family};

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = trial_for_each_family("spread", "shares follow weights within 2 %", shares);
    trials.extend(trial_for_each_family(
        "spread",
        "a policy keeps together what it does not look at",
        policies,
    ));
    trials.extend(trial_for_each_family("spread", "all SNAT addresses are used", snat_addresses));
    trials
}

/// A client of its own number; all come through one router.
fn client(family: Family, number: u16, port: u16) -> Packet {
    let src = SocketAddr::new(client_address(family, number), port).to_string();
    Packet { src_mac: Some(Mac([2, 0, 0, 0, 1, 1])), ..tcp(src, "vip:80", "S") }
}

fn shares(family: Family) -> Result<()> {
    let all_flows = u32::try_from(scaled(100_000)?.min(100_000))?;
    let weights = BTreeMap::from([("alpha", 1), ("beta", 2), ("gamma", 5)]);
    let changes: Vec<String> =
        weights.iter().map(|(name, weight)| format!("{{ name = \"{name}\", weight = {weight} }}")).collect();
    let changes = format!("backend_set.web.backend = [{}]", changes.join(", "));
    let mut lab = Lab::new(THREE_BACKENDS, &changes, family)?;
    let mut flows = BTreeMap::<String, u32>::new();
    for number in 0..all_flows {
        let [port, client_number] = [number % 100, number / 100].map(|part| part as u16);
        let frame = lab.frame(&client(family, client_number, 1024 + port))?;
        let (_, backend) = lab.through(&frame)?;
        *flows.entry(lab.host_at(backend)?.to_owned()).or_default() += 1;
    }
    let total_weight: u32 = weights.values().sum();
    for (name, weight) in weights {
        let expected = f64::from(weight) / f64::from(total_weight);
        let found = f64::from(flows[name]) / f64::from(all_flows);
        // Flows are a sample of the table. With fewer of them chance comes on top of the 2 %: four standard deviations, which
        // six comparisons exceed once in 2,600 times.
        let deviation = (expected * (1.0 - expected) / f64::from(all_flows)).sqrt();
        let chance = if all_flows < 100_000 { 4.0 * deviation } else { 0.0 };
        ensure!(
            (found - expected).abs() <= 0.02 * expected + chance,
            "`{name}` has weight {weight} of {total_weight}: expected a share of {expected:.4}, found {found:.4}"
        );
        let counted = lab.bench.counts()?.sum(&format!("backend web/{name}"), "new_flows");
        ensure!(
            counted == u64::from(flows[name]),
            "counted {counted} flows of `{name}`, saw {}",
            flows[name]
        );
    }
    Ok(())
}

/// For each policy: what of a flow may change without another choice, and that the rest does change it.
fn policies(family: Family) -> Result<()> {
    let second_vip =
        r#"{ name = "web2", address = "vip2", protocol = "tcp_and_udp", port = 81, backend_set = "web" }"#;
    let variations: [fn(Packet) -> Packet; 4] = [
        |packet| packet,
        |packet| Packet { src: packet.src.replace(":1024", ":1025"), ..packet },
        |packet| Packet { tcp: None, udp: true, ..packet },
        |packet| Packet { dst: "vip2:81".into(), ..packet },
    ];
    // How many of the variations, from the first, are alike to the policy.
    for (policy, alike) in [("five_tuple", 1), ("three_tuple", 2), ("two_tuple", 3), ("source_ip", 4)] {
        let changes = format!("listener = [{second_vip}]\nbackend_set.web.policy = \"{policy}\"");
        let mut lab = Lab::new(THREE_BACKENDS, &changes, family)?;
        let (mut used, mut is_told_apart) = (BTreeSet::new(), [false; 4]);
        for number in 0..60 {
            let mut chosen = Vec::new();
            for vary in variations {
                let frame = lab.frame(&vary(client(family, number, 1024)))?;
                chosen.push(lab.through(&frame)?.1.ip());
            }
            used.insert(chosen[0]);
            for (told_apart, backend) in is_told_apart.iter_mut().zip(&chosen) {
                *told_apart |= *backend != chosen[0];
            }
        }
        ensure!(used.len() == 3, "{policy}: 60 clients use only {used:?}");
        let expected: Vec<bool> = (0..4).map(|index| index >= alike).collect();
        ensure!(
            is_told_apart[..] == expected,
            "{policy}: expected another choice for another [-, port, protocol, VIP]: {expected:?}, \
             found {is_told_apart:?}"
        );
    }
    Ok(())
}

fn snat_addresses(family: Family) -> Result<()> {
    const FLOWS: u16 = 300;
    let mut lab = Lab::new(ONE_BACKEND, "lb.snat_addresses = [\"snat1\", \"snat2\"]", family)?;
    let mut uses = BTreeMap::<String, u32>::new();
    for port in 0..FLOWS {
        let frame = lab.frame(&udp(format!("client:{}", 10_000 + port), "vip:80", "x"))?;
        let (source, _) = lab.through(&frame)?;
        *uses.entry(lab.host_at(source)?.to_owned()).or_default() += 1;
    }
    let is_even = uses.len() == 2 && uses.values().all(|&flows| flows >= u32::from(FLOWS) / 3);
    ensure!(is_even, "expected about half of {FLOWS} flows for each of two SNAT addresses, found {uses:?}");
    Ok(())
}
