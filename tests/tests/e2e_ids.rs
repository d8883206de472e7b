//! Listeners, sets and backends that go while they have flows: what these count is nobody else's, and still theirs when they
//! come back.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lb_common::Backend;
use lb_tests::netns::traffic::{self, Session};
use lb_tests::netns::{Config, Family, Host, Lab, Lb, Service, wait};
use serde_json::Value;

/// How long what takes seconds may take on a busy machine.
const LONG: Duration = Duration::from_secs(40);
/// SYNs that nobody answers.
const KNOCKS: usize = 30;
/// What comes after others have gone, to the same servers.
const OTHER: Service = Service { name: "other", protocol: "tcp", port: 81, backend_port: 7 };

/// A configuration with these services.
fn serving(lab: &Lab, family: Family, services: &[Service]) -> String {
    Config { services: services.to_vec(), ..Config::new(lab, family) }.to_string()
}

#[test]
fn flows_of_a_listener_that_went_before_a_restart_count_for_no_other() -> Result<()> {
    let family = Family::V4;
    let lab = Lab::one_arm()?;
    let lb =
        Lb::start_with_rotation(&lab.balancer, &serving(&lab, family, &[Service::WEB, Service::ECHO]), 3)?;
    let mut session = Session::open(&lab.client, None, family.vip_port(7))?;
    lb.reload(&serving(&lab, family, &[Service::WEB]))?;
    lb.kill9()?;

    let lb = Lb::start(&lab.balancer, &serving(&lab, family, &[Service::WEB, OTHER]))?;
    session.echo(&[1; 1 << 16]).context("of a listener that is gone")?;
    let status = lb.status()?;
    let counted = &status.listener("other-0")?["packets"];
    ensure!(*counted == 0, "nobody has used port 81, and yet its listener counts {counted} packets");
    lb.wait_for_rotation(3, traffic::PATIENCE)?;
    Session::open(&lab.client, None, family.vip_port(81))?;
    ensure!(lb.status()?.listener("other-0")?["new_flows"] == 1, "its own flow does not count");
    lb.stop()
}

#[test]
fn a_listener_that_comes_back_with_a_restart_owns_its_flows_v4() -> Result<()> {
    a_listener_that_comes_back_with_a_restart_owns_its_flows(Family::V4)
}

#[test]
fn a_listener_that_comes_back_with_a_restart_owns_its_flows_v6() -> Result<()> {
    a_listener_that_comes_back_with_a_restart_owns_its_flows(Family::V6)
}

fn a_listener_that_comes_back_with_a_restart_owns_its_flows(family: Family) -> Result<()> {
    let lab = Lab::one_arm()?;
    let lb =
        Lb::start_with_rotation(&lab.balancer, &serving(&lab, family, &[Service::WEB, Service::ECHO]), 3)?;
    let mut session = Session::open(&lab.client, None, family.vip_port(7))?;
    lb.reload(&serving(&lab, family, &[Service::WEB]))?;
    lb.kill9()?;
    // Gone before this one and back with the next, whose controller has to find its id once more.
    Lb::start(&lab.balancer, &serving(&lab, family, &[Service::WEB]))?.kill9()?;

    let lb = Lb::start(&lab.balancer, &serving(&lab, family, &[Service::WEB, Service::ECHO]))?;
    session.echo(b"mine again")?;
    wait::until("the listener to have its flow", LONG, || {
        Ok((lb.status()?.listener("echo-0")?["active_flows"] == 1).then_some(()))
    })?;
    let output = Lb::command(&lab.balancer, "connections --json --listener echo-0")?.success()?;
    let listed: Value = serde_json::from_str(&output.stdout)?;
    ensure!(
        listed["connections"].as_array().map(Vec::len) == Some(1),
        "expected one connection, found {listed}"
    );
    lb.stop()
}

#[test]
fn a_new_set_does_not_inherit_what_drains_in_another() -> Result<()> {
    let family = Family::V4;
    let lab = Lab::one_arm()?;
    let mut lb =
        Lb::start_with_rotation(&lab.balancer, &serving(&lab, family, &[Service::WEB, Service::ECHO]), 3)?;
    let mut session = Session::open(&lab.client, None, family.vip_port(7))?;
    lb.reload(&serving(&lab, family, &[Service::WEB]))?;
    for restart in [false, true] {
        if restart {
            lb.kill9()?;
            lb = Lb::start(&lab.balancer, &serving(&lab, family, &[Service::WEB]))?;
        }
        lb.reload(&serving(&lab, family, &[Service::WEB, OTHER]))?;
        lb.wait_for_rotation(3, traffic::PATIENCE)?;
        session.echo(&[1; 1 << 16]).context("with a server that drains")?;
        let status = lb.status()?;
        for backend in status.set("other")?["backends"].as_array().into_iter().flatten() {
            ensure!(backend["packets"] == 0, "nobody has used port 81, and yet: {backend}");
        }
    }
    lb.stop()
}

#[test]
fn a_new_backend_does_not_inherit_what_another_left_unanswered() -> Result<()> {
    let family = Family::V4;
    let lab = Lab::one_arm()?;
    let with = |servers: &[usize]| {
        let backends = servers.iter().map(|&server| lab.backends[server].address(family)).collect();
        Config { backends, services: vec![Service::ECHO], ..Config::new(&lab, family) }.to_string()
    };
    let lb = Lb::start_with_rotation(&lab.balancer, &with(&[0]), 1)?;
    lab.backends[0].host.firewall(&["tcp dport 7 drop"])?;
    traffic::knock(&lab.client, family.vip_port(7), KNOCKS)?;
    let backend = |server: usize| format!("{}:7", lab.backends[server].address(family));
    wait::until("SYNs without an answer", LONG, || {
        let unanswered = lb.status()?.backend("echo", &backend(0))?["unanswered"].as_u64();
        Ok((unanswered >= Some(KNOCKS as u64)).then_some(()))
    })?;
    lb.reload(&with(&[1]))?;
    wait::until("the id of the backend that went to be free", LONG, || {
        Ok((!is_any_removed(&lab.balancer)?).then_some(()))
    })?;

    lb.reload(&with(&[1, 2]))?;
    let status = lb.status()?;
    let found = &status.backend("echo", &backend(2))?["unanswered"];
    ensure!(*found == 0, "a backend that has seen no packet has {found} SYNs unanswered");
    lb.stop()
}

/// Whether a backend that the configuration has lost still drains.
fn is_any_removed(host: &Host) -> Result<bool> {
    let dump = host.run("bpftool --json map dump pinned /sys/fs/bpf/lb/backends")?.success()?.stdout;
    let dump: Value = serde_json::from_str(&dump)?;
    let flags = |entry: &Value| entry["formatted"]["value"]["flags"].as_u64();
    let mut all = dump.as_array().into_iter().flatten().filter_map(flags);
    Ok(all.any(|flags| flags & u64::from(Backend::REMOVED) != 0))
}
