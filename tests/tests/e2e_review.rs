//! What a review found broken, and what has to stay mended.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lb_tests::netns::traffic;
use lb_tests::netns::{Config, Family, Lab, Lb, binary, wait};

const FAMILY: Family = Family::V4;
const PATIENCE: Duration = Duration::from_secs(20);

/// Contract, section 2: `ready` comes once every listener forwards.
#[test]
fn every_listener_forwards_when_lb_says_ready() -> Result<()> {
    let lab = Lab::one_arm()?;
    let mut config = String::from("[lb]\ninterfaces = [\"eth0\"]\n");
    for (name, port, server) in [("a", 80, &lab.backends[0]), ("b", 81, &lab.backends[1])] {
        config += &format!(
            "[[listener]]\nname = \"{name}\"\naddress = \"{}\"\nprotocol = \"tcp\"\nport = {port}\n\
             backend_set = \"{name}\"\n[[backend_set.{name}.backend]]\naddress = \"{}\"\nport = 8080\n\
             [backend_set.{name}.health_check]\nprotocol = \"tcp\"\n",
            FAMILY.vip(),
            server.address(FAMILY)
        );
    }
    let _lb = Lb::start(&lab.balancer, &config)?;
    traffic::curl(&lab.client, FAMILY.vip_port(80))?;
    traffic::curl(&lab.client, FAMILY.vip_port(81))?;
    Ok(())
}

/// A reload that the host refuses is refused each time, and leaves what ran.
#[test]
fn a_reload_that_failed_fails_again_and_changes_nothing() -> Result<()> {
    let lab = Lab::two_arm()?;
    let only = |interface: &str| Config { interfaces: vec![interface.into()], ..Config::new(&lab, FAMILY) };
    let lb = Lb::start_with_rotation(&lab.balancer, &only("eth1").to_string(), 3)?;
    let other = Config { vips: vec![FAMILY.lan(200)], ..only("eth0") };
    lab.balancer.write("/run/other.toml", &other.to_string())?;
    let lb_program = binary("lb")?;
    let line = format!("{} run --config /run/other.toml --instance other", lb_program.display());
    let other = lab.balancer.spawn(&line)?;
    other.wait_for_line("ready", PATIENCE)?;

    let both = Config { vips: vec![FAMILY.vip(), FAMILY.lan(101)], ..Config::new(&lab, FAMILY) };
    lab.balancer.write("/run/lb.toml", &both.to_string())?;
    for _ in 0..2 {
        Lb::command(&lab.balancer, "reload")?.exit_code(1)?;
        let listeners = lb.status()?.0["listeners"].as_array().map_or(0, Vec::len);
        ensure!(listeners == 2, "a reload that failed has left {listeners} listeners");
    }
    Ok(())
}

/// A frame that the switch has flooded to us is not ours.
#[test]
fn a_frame_to_the_mac_of_another_host_is_left_alone() -> Result<()> {
    let lab = Lab::one_arm()?;
    let _lb = Lb::start_with_rotation(&lab.balancer, &Config::new(&lab, FAMILY).to_string(), 3)?;
    let foreign =
        format!("ip neigh replace {} lladdr 02:00:00:00:00:99 dev eth0 nud permanent", FAMILY.vip());
    lab.client.run(&foreign)?.success()?;
    let answer = traffic::try_curl(&lab.client, FAMILY.vip_port(80), "/")?;
    ensure!(!answer.status.success(), "answered for another host: {}", answer.stdout);
    Ok(())
}

/// The program tells its frames by the MAC of the interface, which an administrator may change.
#[test]
fn a_mac_that_changes_is_followed() -> Result<()> {
    let lab = Lab::one_arm()?;
    let _lb = Lb::start_with_rotation(&lab.balancer, &Config::new(&lab, FAMILY).to_string(), 3)?;
    lab.balancer.run("ip link set eth0 address 02:00:00:00:00:77")?.success()?;
    let towards =
        format!("ip neigh replace {} lladdr 02:00:00:00:00:77 dev eth0 nud permanent", FAMILY.vip());
    lab.client.run(&towards)?.success()?;
    wait::until("an answer from the new MAC", PATIENCE, || {
        Ok(traffic::try_curl(&lab.client, FAMILY.vip_port(80), "/")?.status.success().then_some(()))
    })
}

/// `last_seen` is coarse, but no flow may end before its time.
#[test]
fn no_flow_idles_out_early() -> Result<()> {
    let lab = Lab::one_arm()?;
    let timeout = Duration::from_secs(5);
    let set = "backend_set = \"echo\"";
    let config = Config::new(&lab, FAMILY).to_string();
    let config = config.replace(set, &format!("{set}\nudp_idle_timeout_s = {}", timeout.as_secs()));
    let lb = Lb::start_with_rotation(&lab.balancer, &config, 3)?;
    let first = Instant::now();
    let mut last = first;
    // The last packet comes just before the second in which the first was noted is over.
    while first.elapsed() < Duration::from_millis(900) {
        last = Instant::now();
        traffic::ask_udp_from(&lab.client, 4000, FAMILY.vip_port(7))?;
    }
    wait::until("the end of the flow", PATIENCE, || {
        Ok((lb.status()?.listener("echo-0")?["active_flows"] == 0).then_some(()))
    })?;
    ensure!(last.elapsed() >= timeout, "it ended {:?} after its last packet", last.elapsed());
    Ok(())
}

/// The bpffs takes no dots in names, interfaces of VLANs have them.
#[test]
fn an_interface_may_have_a_dot_in_its_name() -> Result<()> {
    let lab = Lab::one_arm()?;
    lab.balancer.run_all(&[
        "ip link set eth0 down",
        "ip link set eth0 name eth0.5",
        "ip link set eth0.5 up",
    ])?;
    let config = Config { interfaces: vec!["eth0.5".into()], ..Config::new(&lab, FAMILY) };
    Lb::start(&lab.balancer, &config.to_string())?.stop()
}
