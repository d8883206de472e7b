//! A server that is a client of its own VIP (Z1, Z2, Z10, Z11 of the reference).

use std::io::ErrorKind;
use std::time::Instant;

use anyhow::Result;
use lb_tests::netns::traffic::{self, Session};
use lb_tests::netns::{Config, Family, Lab, Lb, Service, wait};

const CONNECTIONS: usize = 100;
const MEBIBYTE: usize = 1 << 20;

#[test]
fn a_server_reaches_itself_with_snat_always_v4() -> Result<()> {
    a_server_reaches_itself("always", Family::V4)
}

#[test]
fn a_server_reaches_itself_with_snat_always_v6() -> Result<()> {
    a_server_reaches_itself("always", Family::V6)
}

#[test]
fn a_server_reaches_itself_with_snat_auto_v4() -> Result<()> {
    a_server_reaches_itself("auto", Family::V4)
}

#[test]
fn a_server_reaches_itself_with_snat_auto_v6() -> Result<()> {
    a_server_reaches_itself("auto", Family::V6)
}

fn a_server_reaches_itself(snat: &'static str, family: Family) -> Result<()> {
    let lab = Lab::one_arm()?;
    let server = &lab.backends[0];
    let config = Config { snat, backends: vec![server.address(family)], ..Config::new(&lab, family) };
    let _lb = Lb::start_with_rotation(&lab.balancer, &config.to_string(), 1)?;

    let tally = traffic::curl_many(&server.host, family.vip_port(80), CONNECTIONS)?;
    assert_eq!(tally, [(server.name().to_owned(), CONNECTIONS)].into());
    for answer in [
        traffic::echo_tcp(&server.host, family.vip_port(7), MEBIBYTE)?,
        traffic::echo_udp(&server.host, family.vip_port(7), MEBIBYTE)?,
    ] {
        assert_eq!(
            answer.client.ip(),
            family.vip(),
            "the server saw an address that is not the translated one"
        );
    }
    Ok(())
}

/// The negative control: these tests see a balancer that does not translate.
#[test]
fn a_server_does_not_reach_itself_with_snat_never_v4() -> Result<()> {
    a_server_does_not_reach_itself(Family::V4)
}

#[test]
fn a_server_does_not_reach_itself_with_snat_never_v6() -> Result<()> {
    a_server_does_not_reach_itself(Family::V6)
}

fn a_server_does_not_reach_itself(family: Family) -> Result<()> {
    let lab = Lab::one_arm()?;
    let server = &lab.backends[0];
    let config =
        Config { snat: "never", backends: vec![server.address(family)], ..Config::new(&lab, family) };
    let lb = Lb::start_with_rotation(&lab.balancer, &config.to_string(), 1)?;

    let tcp = Session::open(&server.host, None, family.vip_port(7)).expect_err("TCP was answered");
    let kind = tcp.downcast_ref::<std::io::Error>().map(|error| error.kind());
    assert_eq!(kind, Some(ErrorKind::TimedOut), "{tcp:?}");
    // Linux drops an IPv4 datagram from itself, and answers an IPv6 one from the server's own address.
    traffic::echo_udp(&server.host, family.vip_port(7), 1).expect_err("UDP was answered by the VIP");
    // They failed at the server, not before the balancer.
    wait::until("both flows in the status", traffic::PATIENCE, || {
        Ok((lb.status()?.listener("echo-0")?["new_flows"].as_u64() >= Some(2)).then_some(()))
    })
}

#[test]
fn a_server_reaches_every_server_of_its_set() -> Result<()> {
    let lab = Lab::one_arm()?;
    for family in Family::ALL {
        let config = Config { snat: "auto", ..Config::new(&lab, family) };
        let lb = Lb::start_with_rotation(&lab.balancer, &config.to_string(), 3)?;
        let tally = traffic::curl_many(&lab.backends[0].host, family.vip_port(80), 2 * CONNECTIONS)?;
        assert_eq!(tally.len(), 3, "not every server was chosen: {tally:?}");
        lb.stop()?;
        Lb::detach(&lab.balancer)?;
    }
    Ok(())
}

#[test]
fn a_refused_connection_is_refused_at_once() -> Result<()> {
    let lab = Lab::one_arm()?;
    let closed = Service { name: "closed", protocol: "tcp", port: 80, backend_port: 9 };
    for family in Family::ALL {
        let backends = vec![lab.backends[0].address(family)];
        let config = Config { services: vec![closed], backends, ..Config::new(&lab, family) };
        let lb = Lb::start_with_rotation(&lab.balancer, &config.to_string(), 1)?;
        let start = Instant::now();
        let error =
            Session::open(&lab.backends[0].host, None, family.vip_port(80)).expect_err("nothing listens");
        let kind = error.downcast_ref::<std::io::Error>().map(|error| error.kind());
        assert_eq!(kind, Some(ErrorKind::ConnectionRefused), "{error:?}");
        assert!(start.elapsed() < traffic::PATIENCE / 3, "it took {:?}", start.elapsed());
        lb.stop()?;
        Lb::detach(&lab.balancer)?;
    }
    Ok(())
}
