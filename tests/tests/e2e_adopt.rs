//! A controller that dies, stops, comes back or is detached, under open connections.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lb_tests::netns::traffic::{self, Session};
use lb_tests::netns::{Config, Family, Host, Lab, Lb, Service, Status, Topology, wait};

use serde_json::Value;

const REQUESTS: usize = 200;

#[test]
fn a_connection_survives_kill_9_and_the_adoption_one_arm_v4() -> Result<()> {
    a_connection_survives_kill_9_and_the_adoption(Topology::OneArm, Family::V4)
}

#[test]
fn a_connection_survives_kill_9_and_the_adoption_two_arm_v6() -> Result<()> {
    a_connection_survives_kill_9_and_the_adoption(Topology::TwoArm, Family::V6)
}

fn a_connection_survives_kill_9_and_the_adoption(topology: Topology, family: Family) -> Result<()> {
    let lab = Lab::new(topology)?;
    let config = Config::new(&lab, family).to_string();
    let mut lb = Lb::start_with_rotation(&lab.balancer, &config, 3)?;
    let mut session = Session::open(&lab.client, None, family.vip_port(7))?;
    session.echo(&[6; 1 << 20])?;

    for _ in 0..3 {
        let before = counted(&lb)?;
        lb.kill9()?;
        session.echo(b"without a controller")?;
        traffic::curl_many(&lab.client, family.vip_port(80), REQUESTS)?;

        lb = Lb::start(&lab.balancer, &config)?;
        let after = counted(&lb)?;
        // A request is five packets of the client and three of the server at least.
        let least = before + 8 * REQUESTS as u64;
        ensure!(
            after >= least,
            "expected {least} packets to be counted, {before} of them before, found {after}"
        );
        session.echo(b"after the adoption")?;
        traffic::curl_many(&lab.client, family.vip_port(80), REQUESTS)?;
        traffic::echo_udp(&lab.client, family.vip_port(7), 1 << 16)?;
    }
    session.echo(&[7; 1 << 20])
}

/// Packets counted so far: as many for listeners as for backends.
fn counted(lb: &Lb) -> Result<u64> {
    let sum = |entries: &Value| {
        let entries = entries.as_array().into_iter().flatten();
        entries.filter_map(|entry| entry["packets"].as_u64()).sum::<u64>()
    };
    wait::until("as many packets of listeners as of backends", traffic::PATIENCE, || {
        let Status(status) = lb.status()?;
        let of_sets = status["backend_sets"].as_array().into_iter().flatten();
        let of_backends: u64 = of_sets.map(|set| sum(&set["backends"])).sum();
        let of_listeners = sum(&status["listeners"]);
        Ok((of_listeners == of_backends).then_some(of_listeners))
    })
}

#[test]
fn requests_go_on_while_the_controller_is_killed_and_restarted() -> Result<()> {
    let family = Family::V4;
    let lab = Lab::one_arm()?;
    let config = Config::new(&lab, family).to_string();
    let lb = Lb::start_with_rotation(&lab.balancer, &config, 3)?;
    thread::scope(|scope| {
        let requests = scope.spawn(|| traffic::curl_many(&lab.client, family.vip_port(80), 10 * REQUESTS));
        lb.kill9()?;
        let lb = Lb::start(&lab.balancer, &config)?;
        requests.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        lb.stop()
    })
}

#[test]
fn a_connection_survives_a_reload_that_takes_servers_away() -> Result<()> {
    let family = Family::V4;
    let lab = Lab::one_arm()?;
    let lb = Lb::start_with_rotation(&lab.balancer, &Config::new(&lab, family).to_string(), 3)?;
    let mut session = Session::open(&lab.client, None, family.vip_port(7))?;
    // The server of the open connection stays.
    let kept = lab
        .backends
        .iter()
        .find(|backend| backend.name() == session.answer.server)
        .context("no such server")?;
    let config = Config { backends: vec![kept.address(family)], ..Config::new(&lab, family) };
    lb.reload(&config.to_string())?;
    lb.wait_for_rotation(1, traffic::PATIENCE)?;
    session.echo(b"after the reload")?;
    let tally = traffic::curl_many(&lab.client, family.vip_port(80), REQUESTS)?;
    assert_eq!(tally, [(kept.name().to_owned(), REQUESTS)].into());
    Ok(())
}

#[test]
fn a_connection_survives_a_reload_that_takes_its_own_server_away() -> Result<()> {
    let family = Family::V4;
    let lab = Lab::one_arm()?;
    let all = Config::new(&lab, family);
    let lb = Lb::start_with_rotation(&lab.balancer, &all.to_string(), 3)?;
    for _ in 0..3 {
        // Younger than the last walk over the flows.
        let mut session = Session::open(&lab.client, None, family.vip_port(7))?;
        lb.reload(&without_server_of(&session, &lab, family))?;
        echo_over_several_walks(&mut session)?;
        lb.reload(&all.to_string())?;
        lb.wait_for_rotation(3, traffic::PATIENCE)?;
    }
    Ok(())
}

/// The programs contain only what the configuration uses: IPv4 at first, then IPv6 as well.
#[test]
fn a_reload_that_needs_other_programs_puts_them_in_place_under_traffic() -> Result<()> {
    let lab = Lab::one_arm()?;
    let [v4, v6] = [Family::V4, Family::V6];
    let config = Config::new(&lab, v4).to_string();
    let with_v6 = |service: Service| -> Result<String> {
        let more = Config { services: vec![service], ..Config::new(&lab, v6) }.to_string();
        let (_, sections) = more.split_once("\n\n").context("a configuration of one section")?;
        Ok(format!("{config}\n{sections}"))
    };
    let lb = Lb::start_with_rotation(&lab.balancer, &config, 3)?;
    let mut session = Session::open(&lab.client, None, v4.vip_port(7))?;

    thread::scope(|scope| {
        let requests = scope.spawn(|| traffic::curl_many(&lab.client, v4.vip_port(80), 10 * REQUESTS));
        lb.reload(&with_v6(Service { name: "web6", ..Service::WEB })?)?;
        lb.wait_for_rotation(3, traffic::PATIENCE)?;
        requests.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    session.echo(b"by other programs")?;
    traffic::curl_many(&lab.client, v6.vip_port(80), REQUESTS)?;
    assert!(lb.log().contains("loaded the programs anew"), "{}", lb.log());

    // Flows of listeners that are gone go on, through programs that would otherwise have no need of their family.
    lb.reload(&with_v6(Service { name: "echo6", ..Service::ECHO })?)?;
    lb.wait_for_rotation(3, traffic::PATIENCE)?;
    let mut session_v6 = Session::open(&lab.client, None, v6.vip_port(7))?;
    lb.kill9()?;
    let lb = Lb::start(&lab.balancer, &config)?;
    session_v6.echo(b"of a listener that is gone")?;
    session.echo(b"by fewer programs")?;
    lb.stop()
}

/// The programs of the controller before know no rules for sources. They must never work for a listener that has some.
#[test]
fn a_start_that_fails_after_another_controller_opens_no_listener_to_everybody() -> Result<()> {
    let family = Family::V4;
    let lab = Lab::one_arm()?;
    let before = Config::new(&lab, family);
    Lb::start_with_rotation(&lab.balancer, &before.to_string(), 3)?.stop()?;
    let closed = Service { name: "closed", port: 81, ..Service::WEB };
    let more = Config { services: vec![Service::WEB, closed], ..before.clone() };
    let rule = format!("name = \"closed-0\"\ndeny_sources = [\"{}\"]", family.lan(50));
    let with_rule = |config: &Config| config.to_string().replace("name = \"closed-0\"", &rule);

    // The driver of the loopback interface knows no XDP.
    let interfaces = vec!["eth0".to_owned(), "lo".to_owned()];
    let refused = Lb::start(&lab.balancer, &with_rule(&Config { interfaces, ..more.clone() }));
    assert!(refused.is_err(), "attached to the loopback interface");
    traffic::curl(&lab.client, family.vip_port(80)).context("what ran before goes on")?;
    traffic::try_curl(&lab.client, family.vip_port(81), "/")?.success().expect_err("nobody listens there");

    let lb = Lb::start_with_rotation(&lab.balancer, &with_rule(&more), 3)?;
    traffic::curl_many(&lab.client, family.vip_port(80), REQUESTS)?;
    traffic::try_curl(&lab.client, family.vip_port(81), "/")?.success().expect_err("the client is denied");
    ensure!(lb.status()?.listener("closed-0")?["new_flows"] == 0, "a flow was opened by a denied client");
    lb.stop()
}

#[test]
fn a_connection_survives_a_restart_that_takes_its_own_server_away() -> Result<()> {
    let family = Family::V4;
    let lab = Lab::one_arm()?;
    let lb = Lb::start_with_rotation(&lab.balancer, &Config::new(&lab, family).to_string(), 3)?;
    let mut session = Session::open(&lab.client, None, family.vip_port(7))?;
    let rest = without_server_of(&session, &lab, family);
    lb.kill9()?;
    let lb = Lb::start(&lab.balancer, &rest)?;
    echo_over_several_walks(&mut session).context("removed while no controller ran")?;
    lb.stop()?;
    Lb::start(&lab.balancer, &rest)?;
    echo_over_several_walks(&mut session).context("found draining by the next controller")
}

/// A configuration without the server that answers in this session.
fn without_server_of(session: &Session, lab: &Lab, family: Family) -> String {
    let rest = lab.backends.iter().filter(|backend| backend.name() != session.answer.server);
    let backends = rest.map(|backend| backend.address(family)).collect();
    Config { backends, ..Config::new(lab, family) }.to_string()
}

/// Uses a session for longer than the collector and the housekeeping take for a round each.
fn echo_over_several_walks(session: &mut Session) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(3);
    while Instant::now() < end {
        session.echo(b"still here")?;
    }
    Ok(())
}

#[test]
fn a_stopped_controller_leaves_the_data_plane_and_detach_removes_it() -> Result<()> {
    let family = Family::V4;
    let lab = Lab::one_arm()?;
    let lb = Lb::start_with_rotation(&lab.balancer, &Config::new(&lab, family).to_string(), 3)?;
    lb.stop()?;
    traffic::curl_many(&lab.client, family.vip_port(80), REQUESTS)?;
    let still = "eth0 goes on forwarding with the last rotation";
    ensure!(says_it_does_not_run(&lab)?.contains(still), "status keeps silent about the data plane");

    Lb::detach(&lab.balancer)?;
    ensure!(!says_it_does_not_run(&lab)?.contains("forwarding"), "status still speaks of a data plane");
    assert_detached(&lab.balancer, family)
}

#[test]
fn nobody_is_told_that_a_data_plane_forwards_whose_interface_is_gone() -> Result<()> {
    let lab = Lab::one_arm()?;
    let lb = Lb::start_with_rotation(&lab.balancer, &Config::new(&lab, Family::V4).to_string(), 3)?;
    lb.stop()?;
    ensure!(says_it_does_not_run(&lab)?.contains("forwarding"), "status keeps silent about the data plane");

    // One of the same name is not the one that it was attached to.
    lab.balancer.run_all(&["ip link delete eth0", "ip link add eth0 type veth peer name other"])?;
    let said = says_it_does_not_run(&lab)?;
    ensure!(!said.contains("forwarding"), "{said}");
    Lb::detach(&lab.balancer)
}

/// What `lb status` says where no controller runs.
fn says_it_does_not_run(lab: &Lab) -> Result<String> {
    let not_running = 4;
    Ok(Lb::command(&lab.balancer, "status")?.exit_code(not_running)?.stderr)
}

#[test]
fn on_exit_detach_removes_the_data_plane_with_the_controller() -> Result<()> {
    let family = Family::V6;
    let lab = Lab::two_arm()?;
    let config = Config::new(&lab, family).to_string().replacen("[lb]\n", "[lb]\non_exit = \"detach\"\n", 1);
    let lb = Lb::start_with_rotation(&lab.balancer, &config, 3)?;
    traffic::curl(&lab.client, family.vip_port(80))?;
    lb.stop()?;
    assert_detached(&lab.balancer, family)
}

/// No program, no pin and no VIP on the host.
fn assert_detached(host: &Host, family: Family) -> Result<()> {
    let links = host.run("ip -details link show")?.success()?.stdout;
    assert!(!links.contains("xdp"), "a program is still attached:\n{links}");
    let pins = host.run("ls /sys/fs/bpf")?.success()?.stdout;
    assert!(!pins.split_whitespace().any(|pin| pin == "lb"), "pins are left: {pins}");
    let addresses = host.run("ip address show")?.success()?.stdout;
    assert!(!addresses.contains(&format!("{}/", family.vip())), "the VIP is left:\n{addresses}");
    Ok(())
}
