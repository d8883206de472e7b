//! Traffic through the VIP, in both topologies and families, natively and in the kernel's generic path.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use lb_tests::netns::traffic::{self, Tally};
use lb_tests::netns::{Config, Family, Host, Lab, Lb, Service, Topology, wait};
use lb_tests::servers::HTTP_PORT;

/// Requests enough to judge a share: of 1,000 random flows a server gets a third give or take 4.5 % (one standard
/// deviation), so that a limit of 10 % would be broken by chance every other day; with 5,000 it is never.
const FLOWS: usize = 5000;
/// Requests where only failures are looked for.
const FEWER_FLOWS: usize = 1000;
const DOWNLOAD_LEN: usize = 100 << 20;
const STREAMS: Service = Service::tcp("streams", traffic::STREAMS_PORT);

/// The tests of this file once for each network.
macro_rules! in_every_network {
    ($($network:ident: $topology:ident $family:ident $mode:literal;)+) => { $(
        mod $network {
            use super::*;

            #[test]
            fn every_request_is_answered_and_servers_share_evenly() -> Result<()> {
                requests(Topology::$topology, Family::$family, $mode)
            }

            #[test]
            fn downloads_and_parallel_streams_arrive_whole() -> Result<()> {
                bulk(Topology::$topology, Family::$family, $mode)
            }
        }
    )+ };
}

in_every_network! {
    one_arm_v4_native: OneArm V4 "native";
    one_arm_v6_native: OneArm V6 "native";
    two_arm_v4_native: TwoArm V4 "native";
    two_arm_v6_native: TwoArm V6 "native";
    one_arm_v4_generic: OneArm V4 "generic";
    one_arm_v6_generic: OneArm V6 "generic";
    two_arm_v4_generic: TwoArm V4 "generic";
    two_arm_v6_generic: TwoArm V6 "generic";
}

fn requests(topology: Topology, family: Family, mode: &'static str) -> Result<()> {
    let lab = Lab::new(topology)?;
    let config = Config { xdp_mode: mode, ..Config::new(&lab, family) };
    let lb = Lb::start_with_rotation(&lab.balancer, &config.to_string(), 3)?;
    assert!(lb.status()?.modes()?.iter().all(|&found| found == mode), "{:?}", lb.status()?);

    let flows = if mode == "native" { FLOWS } else { FEWER_FLOWS };
    lab.explained(|| {
        let requests = traffic::curl_many(&lab.client, family.vip_port(80), flows)?;
        let datagrams = traffic::ask_udp_many(&lab.client, family.vip_port(7), flows)?;
        if mode == "native" {
            assert_even(&requests, flows);
            assert_even(&datagrams, flows);
        }
        wait::until("as many flows in the status", traffic::PATIENCE, || {
            Ok((lb.status()?.listener("web-0")?["new_flows"].as_u64() >= Some(flows as u64)).then_some(()))
        })
    })
}

/// Every server within 10 % of a third.
fn assert_even(tally: &Tally, count: usize) {
    let third = count / 3;
    let shares = third * 9 / 10..=third * 11 / 10;
    assert_eq!(tally.len(), 3, "{tally:?}");
    assert!(tally.values().all(|share| shares.contains(share)), "expected {shares:?} each, found {tally:?}");
}

fn bulk(topology: Topology, family: Family, mode: &'static str) -> Result<()> {
    let lab = Lab::new(topology)?;
    // The streams are many connections, all of which must reach one server.
    let server = &lab.backends[0];
    let backends = vec![server.address(family)];
    let services = vec![Service::WEB, STREAMS];
    let config = Config { xdp_mode: mode, backends, services, ..Config::new(&lab, family) };
    let _lb = Lb::start_with_rotation(&lab.balancer, &config.to_string(), 1)?;

    let neighbour = &lab.backends[1].host;
    let directly =
        sha256_of_download(neighbour, &SocketAddr::new(server.address(family), HTTP_PORT).to_string())?;
    let lost_before = lab.lost_frames()?;
    lab.explained(|| {
        let through_vip = sha256_of_download(&lab.client, &family.vip_port(80).to_string())?;
        assert_eq!(through_vip, directly);
        traffic::streams(&server.host, &lab.client, family.vip())
    })?;
    // TCP repeats what had no room in a queue. Some of these queues belong to the machine, and another test, whose
    // datagrams are lost there, does not.
    assert_eq!(lab.lost_frames()?, lost_before);
    Ok(())
}

fn sha256_of_download(host: &Host, target: &str) -> Result<String> {
    let url = format!("http://{target}/bytes/{DOWNLOAD_LEN}");
    let download = "curl --silent --show-error --fail --max-time 40 --output /run/download";
    host.run(&format!("{download} {url}"))?.success()?;
    let sum = host.run("sha256sum /run/download")?.success()?.stdout;
    let length = host.run("stat --format %s /run/download")?.success()?.stdout;
    ensure!(length == DOWNLOAD_LEN.to_string(), "expected {DOWNLOAD_LEN} bytes, found {length}");
    Ok(sum)
}
