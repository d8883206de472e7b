//! The namespace harness itself, proved with plain kernel means: nftables stands in for the balancer.

use std::io::{self, BufRead, BufReader, Read};
use std::panic::resume_unwind;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use lb_tests::netns::{Family, Lab, Topology, traffic, wait};
use lb_tests::servers::{ECHO_PORT, HTTP_PORT};

const MEBIBYTE: usize = 1 << 20;

#[test]
fn every_host_reaches_the_balancer_and_the_client_every_server() -> Result<()> {
    for topology in [Topology::OneArm, Topology::TwoArm] {
        let lab = Lab::new(topology)?;
        for family in Family::ALL {
            let balancer = family.lan(2);
            for host in lab.backends.iter().map(|backend| &backend.host).chain([&lab.client]) {
                host.run(&format!("ping -c 1 -W 2 {balancer}"))?.success()?;
            }
        }
    }
    Ok(())
}

#[test]
fn servers_say_who_they_are_and_whom_they_have_seen() -> Result<()> {
    let lab = Lab::one_arm()?;
    for family in Family::ALL {
        for server in &lab.backends {
            let answer = traffic::curl(&lab.client, (server.address(family), HTTP_PORT).into())?;
            assert_eq!(
                (answer.server.as_str(), answer.client.ip()),
                (server.name(), lab.client_address(family))
            );
            let echo = (server.address(family), ECHO_PORT).into();
            assert_eq!(traffic::echo_tcp(&lab.client, echo, MEBIBYTE)?.server, server.name());
            assert_eq!(traffic::echo_udp(&lab.client, echo, MEBIBYTE)?.server, server.name());
        }
    }
    Ok(())
}

/// Between fork and exec a new process holds a copy of every socket of the test, also of one that is closed meanwhile.
#[test]
fn a_source_port_can_be_used_again_while_processes_are_started() -> Result<()> {
    let lab = Lab::one_arm()?;
    let target = (lab.backends[0].address(Family::V4), ECHO_PORT).into();
    let asking = AtomicBool::new(true);
    let start_processes = || -> Result<()> {
        while asking.load(Ordering::Relaxed) {
            lab.client.run("true")?.success()?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let starting = [(); 3].map(|()| scope.spawn(start_processes));
        let asked = (0..1000).try_for_each(|_| traffic::ask_udp_from(&lab.client, 40000, target).map(drop));
        asking.store(false, Ordering::Relaxed);
        starting
            .into_iter()
            .try_for_each(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)))?;
        asked
    })
}

#[test]
fn a_server_can_be_made_to_fail_its_health_check() -> Result<()> {
    let lab = Lab::one_arm()?;
    let server = (lab.backends[0].address(Family::V4), HTTP_PORT).into();
    traffic::try_curl(&lab.client, server, "/health")?.success()?;
    lab.client.run(&format!("curl --silent --fail --request PUT http://{server}/health/503"))?.success()?;
    let refused = traffic::try_curl(&lab.client, server, "/health")?.exit_code(22)?;
    assert!(refused.stderr.contains("503"), "{refused:?}");
    Ok(())
}

#[test]
fn a_killed_server_refuses_connections_until_it_is_started_again() -> Result<()> {
    let mut lab = Lab::one_arm()?;
    let target = (lab.backends[0].address(Family::V4), HTTP_PORT).into();
    lab.backends[0].kill()?;
    traffic::try_curl(&lab.client, target, "/")?.exit_code(7)?;
    lab.backends[0].start()?;
    assert_eq!(traffic::curl(&lab.client, target)?.server, "web1");
    Ok(())
}

#[test]
fn both_topologies_carry_translated_traffic() -> Result<()> {
    for topology in [Topology::OneArm, Topology::TwoArm] {
        let lab = Lab::new(topology)?;
        for family in Family::ALL {
            translate(&lab, family, SourceTranslation::ToVip)?;
            let answer =
                traffic::curl(&lab.client, family.vip_port(80)).with_context(|| format!("{topology:?}"))?;
            assert_eq!((answer.server.as_str(), answer.client.ip()), ("web1", family.vip()));
        }
    }
    Ok(())
}

/// Without this the hairpin tests of the balancer would prove nothing: on a bridge that tracks connections the
/// first case passes and the second fails.
#[test]
fn a_hairpin_fails_without_source_translation_and_works_with_it() -> Result<()> {
    let lab = Lab::one_arm()?;
    let server = &lab.backends[0].host;
    for family in Family::ALL {
        translate(&lab, family, SourceTranslation::None)?;
        let timed_out = 28;
        traffic::try_curl(server, family.vip_port(80), "/")?.exit_code(timed_out)?;
        translate(&lab, family, SourceTranslation::ToVip)?;
        assert_eq!(traffic::curl(server, family.vip_port(80))?.client.ip(), family.vip());
    }
    Ok(())
}

#[test]
fn a_routed_client_keeps_its_address_where_answers_pass_the_balancer() -> Result<()> {
    let mut lab = Lab::one_arm()?;
    let client = lab.add_routed_client("far")?;
    lab.route_servers_through_balancer()?;
    for family in Family::ALL {
        translate(&lab, family, SourceTranslation::None)?;
        let answer = traffic::curl(&client, family.vip_port(80))?;
        assert_eq!(answer.client.ip(), lab.routed_client_address(family));
    }
    Ok(())
}

#[test]
fn instances_on_two_hosts_do_not_see_each_others_files() -> Result<()> {
    let (one, other) = (Lab::one_arm()?, Lab::one_arm()?);
    let name = format!("instance-{}", std::process::id());
    for folder in ["/run", "/sys/fs/bpf"] {
        let path = format!("{folder}/{name}");
        for lab in [&one, &other] {
            lab.balancer.run(&format!("mkdir {path}"))?.success()?;
        }
        one.balancer.run(&format!("rmdir {path}"))?.success()?;
        other.balancer.run(&format!("ls -d {path}"))?.success()?;
        assert!(!Path::new(&path).exists(), "{path} has spread to the machine");
    }
    Ok(())
}

#[test]
fn a_killed_test_leaves_no_process() -> Result<()> {
    let mut victim = Command::new(std::env::current_exe()?)
        .args(["--ignored", "--exact", "victim", "--nocapture"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let lines = BufReader::new(victim.stdout.take().context("no pipe")?).lines().map_while(Result::ok);
    let id = lines.filter_map(|line| Some(line.split_once("server ")?.1.to_owned())).next();
    victim.kill()?;
    victim.wait()?;
    let id = id.context("the victim has said nothing")?;
    wait::until("the end of the server", Duration::from_secs(10), || {
        let command = std::fs::read_to_string(format!("/proc/{id}/cmdline")).unwrap_or_default();
        Ok((!command.contains("testserver")).then_some(()))
    })
}

#[test]
#[ignore = "it waits to be killed by `a_killed_test_leaves_no_process`"]
fn victim() -> Result<()> {
    let lab = Lab::one_arm()?;
    println!("server {}", lab.backends[0].server_id()?);
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

enum SourceTranslation {
    None,
    ToVip,
}

/// Makes the balancer's kernel send VIP:80 to the first server.
fn translate(lab: &Lab, family: Family, source: SourceTranslation) -> Result<()> {
    let (word, length) = match family {
        Family::V4 => ("ip", 32),
        Family::V6 => ("ip6", 128),
    };
    let (vip, server) = (family.vip(), lab.backends[0].address(family));
    let target = std::net::SocketAddr::new(server, HTTP_PORT);
    let source = match source {
        SourceTranslation::None => String::new(),
        SourceTranslation::ToVip => {
            format!("{word} daddr {server} tcp dport {HTTP_PORT} snat {word} to {vip}")
        }
    };
    lab.balancer.sysctl("net/ipv4/ip_forward", 1)?;
    lab.balancer.sysctl("net/ipv6/conf/all/forwarding", 1)?;
    // A host answers neighbour discovery only on the interface that has the address: it goes where the servers are.
    let interface = lab.interfaces[lab.interfaces.len() - 1];
    lab.balancer.run(&format!("ip address replace {vip}/{length} dev {interface} nodad"))?.success()?;
    lab.balancer.write(
        "/run/nat.nft",
        &format!(
            "flush ruleset
            table inet stand_in {{
                chain in {{ type nat hook prerouting priority dstnat; {word} daddr {vip} tcp dport 80 dnat {word} to {target}; }}
                chain out {{ type nat hook postrouting priority srcnat; {source}; }}
            }}"
        ),
    )?;
    lab.balancer.run("nft -f /run/nat.nft")?.success().map(drop)
}
