//! Whose address and port a server sees: `snat`, and flows that would collide (Z3, Z5, Z8 of the reference).

use std::collections::BTreeSet;

use anyhow::Result;
use lb_tests::netns::traffic::{self, Session};
use lb_tests::netns::{Config, Family, Host, Lab, Lb};

const SOURCE_PORT: u16 = 40000;

#[test]
fn auto_keeps_a_routed_client_and_translates_an_on_link_one_v4() -> Result<()> {
    auto_keeps_a_routed_client_and_translates_an_on_link_one(Family::V4)
}

#[test]
fn auto_keeps_a_routed_client_and_translates_an_on_link_one_v6() -> Result<()> {
    auto_keeps_a_routed_client_and_translates_an_on_link_one(Family::V6)
}

fn auto_keeps_a_routed_client_and_translates_an_on_link_one(family: Family) -> Result<()> {
    let mut lab = Lab::one_arm()?;
    let routed = lab.add_routed_client("routed")?;
    lab.route_servers_through_balancer()?;
    let config = Config { snat: "auto", ..Config::new(&lab, family) };
    let _lb = Lb::start_with_rotation(&lab.balancer, &config.to_string(), 3)?;

    lab.explained(|| {
        let session = Session::open(&routed, Some(SOURCE_PORT), family.vip_port(7))?;
        assert_eq!(session.answer.client, (lab.routed_client_address(family), SOURCE_PORT).into());
        let answer = traffic::ask_udp_from(&routed, SOURCE_PORT, family.vip_port(7))?;
        assert_eq!(answer.client, (lab.routed_client_address(family), SOURCE_PORT).into());

        let session = Session::open(&lab.client, Some(SOURCE_PORT), family.vip_port(7))?;
        assert_eq!(session.answer.client.ip(), family.vip());
        let answer = traffic::ask_udp_from(&lab.client, SOURCE_PORT, family.vip_port(7))?;
        assert_eq!(answer.client.ip(), family.vip());
        Ok(())
    })
}

#[test]
fn auto_keeps_the_client_of_a_two_arm_balancer() -> Result<()> {
    let lab = Lab::two_arm()?;
    lab.route_servers_through_balancer()?;
    for family in Family::ALL {
        let config = Config { snat: "auto", ..Config::new(&lab, family) };
        let lb = Lb::start_with_rotation(&lab.balancer, &config.to_string(), 3)?;
        lab.explained(|| {
            let answer = traffic::curl(&lab.client, family.vip_port(80))?;
            assert_eq!(answer.client.ip(), lab.client_address(family));
            traffic::echo_udp(&lab.client, family.vip_port(7), 1 << 20)
        })?;
        lb.stop()?;
        Lb::detach(&lab.balancer)?;
    }
    Ok(())
}

/// The negative control for `auto`: the server answers an on-link client past the balancer.
#[test]
fn never_fails_for_an_on_link_client() -> Result<()> {
    let lab = Lab::one_arm()?;
    let config = Config { snat: "never", ..Config::new(&lab, Family::V4) };
    let _lb = Lb::start_with_rotation(&lab.balancer, &config.to_string(), 3)?;
    let timed_out = 28;
    traffic::try_curl(&lab.client, Family::V4.vip_port(80), "/")?.exit_code(timed_out)?;
    Ok(())
}

#[test]
fn two_clients_share_a_source_port_v4() -> Result<()> {
    two_clients_share_a_source_port(Family::V4)
}

#[test]
fn two_clients_share_a_source_port_v6() -> Result<()> {
    two_clients_share_a_source_port(Family::V6)
}

/// Two on-link clients, and two servers that are clients of the same set.
fn two_clients_share_a_source_port(family: Family) -> Result<()> {
    let lab = Lab::one_arm()?;
    let second = lab.add_client("client2", 51)?;
    let config = Config { backends: vec![lab.backends[0].address(family)], ..Config::new(&lab, family) };
    let _lb = Lb::start_with_rotation(&lab.balancer, &config.to_string(), 1)?;

    let clients = [&lab.client, &second, &lab.backends[0].host, &lab.backends[1].host];
    lab.explained(|| {
        let sessions =
            clients.iter().map(|client| Session::open(client, Some(SOURCE_PORT), family.vip_port(7)));
        let seen = echo_on_all(&mut sessions.collect::<Result<Vec<_>>>()?)?;
        assert_eq!(seen, clients.len(), "two connections looked the same to the server");

        for client in clients.iter().cycle().take(2 * clients.len()) {
            traffic::ask_udp_from(client, SOURCE_PORT, family.vip_port(7))?;
        }
        Ok(())
    })
}

#[test]
fn one_client_tuple_reaches_one_server_through_two_vips() -> Result<()> {
    let lab = Lab::one_arm()?;
    for family in Family::ALL {
        // Translated to one and the same address, so that only the port can tell the flows apart.
        let snat_addresses = vec![family.vip()];
        through_two_vips(&lab, family, &lab.client, Config { snat_addresses, ..Config::new(&lab, family) })?;
    }
    Ok(())
}

#[test]
fn one_untranslated_client_tuple_reaches_one_server_through_two_vips() -> Result<()> {
    let mut lab = Lab::one_arm()?;
    let routed = lab.add_routed_client("routed")?;
    lab.route_servers_through_balancer()?;
    for family in Family::ALL {
        through_two_vips(&lab, family, &routed, Config { snat: "never", ..Config::new(&lab, family) })?;
    }
    Ok(())
}

fn through_two_vips(lab: &Lab, family: Family, client: &Host, config: Config) -> Result<()> {
    let vips = vec![family.vip(), family.lan(101)];
    let targets: Vec<_> = vips.iter().map(|&vip| (vip, 7).into()).collect();
    let config = Config { vips, backends: vec![lab.backends[0].address(family)], ..config };
    let lb = Lb::start_with_rotation(&lab.balancer, &config.to_string(), 1)?;

    lab.explained(|| {
        let sessions = targets.iter().map(|&target| Session::open(client, Some(SOURCE_PORT), target));
        let seen = echo_on_all(&mut sessions.collect::<Result<Vec<_>>>()?)?;
        assert_eq!(seen, targets.len(), "two connections looked the same to the server");

        for target in targets.iter().cycle().take(2 * targets.len()) {
            traffic::ask_udp_from(client, SOURCE_PORT, *target)?;
        }
        Ok(())
    })?;
    lb.stop()?;
    Lb::detach(&lab.balancer)
}

/// Speaks on all open connections by turns, twice; gives the number of different clients that the server has seen.
fn echo_on_all(sessions: &mut [Session]) -> Result<usize> {
    for round in 0..2 {
        for (number, session) in sessions.iter_mut().enumerate() {
            session.echo(format!("round {round} of connection {number}").as_bytes())?;
        }
    }
    Ok(sessions.iter().map(|session| session.answer.client).collect::<BTreeSet<_>>().len())
}
