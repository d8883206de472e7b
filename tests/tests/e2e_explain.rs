//! `lb explain`: the loaded program says what would become of a packet, and nothing remembers that it was asked.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use lb_tests::netns::traffic::{self, Session};
use lb_tests::netns::{Config, Family, Host, Lab, Lb, Topology};
use serde_json::Value;

#[test]
fn what_is_explained_is_what_happens_v4() -> Result<()> {
    what_is_explained_is_what_happens(Topology::OneArm, Family::V4)
}

#[test]
fn what_is_explained_is_what_happens_v6() -> Result<()> {
    what_is_explained_is_what_happens(Topology::TwoArm, Family::V6)
}

fn what_is_explained_is_what_happens(topology: Topology, family: Family) -> Result<()> {
    let lab = Lab::new(topology)?;
    let lb = Lb::start_with_rotation(&lab.balancer, &Config::new(&lab, family).to_string(), 3)?;
    let vip = family.vip_port(7);
    let client = |port| SocketAddr::new(lab.client_address(family), port);

    // A new flow: the backend foretold is the one that answers, under the source foretold.
    let foretold = explain(&lab.balancer, "udp", client(4711), vip)?;
    assert_eq!((&foretold["verdict"], &foretold["flow"]), (&"forward".into(), &"new".into()), "{foretold}");
    assert_eq!(foretold["listener"], "echo-0", "{foretold}");
    ensure!(flows(&lab.balancer)? == 0, "asking has opened a flow");
    ensure!(new_flows(&lb)? == 0, "asking was counted");
    let answer = traffic::ask_udp_from(&lab.client, 4711, vip)?;
    let server = lab.backends.iter().find(|backend| backend.name() == answer.server);
    let server = SocketAddr::new(server.context("no such server")?.address(family), 7);
    assert_eq!(foretold["becomes"]["destination"], server.to_string(), "{foretold}");
    assert_eq!(foretold["becomes"]["source"], answer.client.to_string(), "{foretold}");
    assert_eq!(
        (&foretold["backend_set"], &foretold["backend"]),
        (&"echo".into(), &server.to_string().into())
    );

    // The same flow once it is there, and its answers.
    let known = explain(&lab.balancer, "udp", client(4711), vip)?;
    assert_eq!((&known["flow"], &known["direction"]), (&"known".into(), &"to_backend".into()), "{known}");
    let back = explain(&lab.balancer, "udp", server, answer.client)?;
    assert_eq!((&back["flow"], &back["direction"]), (&"known".into(), &"to_client".into()), "{back}");
    assert_eq!(back["becomes"]["source"], vip.to_string(), "{back}");
    assert_eq!(back["becomes"]["destination"], client(4711).to_string(), "{back}");

    // What does not travel on, and why.
    let stray = explain(&lab.balancer, "tcp", client(4711), family.vip_port(9))?;
    assert_eq!((&stray["verdict"], &stray["reason"]), (&"pass".into(), &"no_listener".into()), "{stray}");
    Ok(())
}

#[test]
fn it_answers_without_a_controller_and_leaves_open_connections_alone() -> Result<()> {
    let family = Family::V4;
    let lab = Lab::one_arm()?;
    let lb = Lb::start_with_rotation(&lab.balancer, &Config::new(&lab, family).to_string(), 3)?;
    let mut session = Session::open(&lab.client, Some(4712), family.vip_port(7))?;
    session.echo(b"before")?;
    lb.kill9()?;
    let client = SocketAddr::new(lab.client_address(family), 4712);
    let known = explain(&lab.balancer, "tcp", client, family.vip_port(7))?;
    assert_eq!((&known["verdict"], &known["flow"]), (&"forward".into(), &"known".into()), "{known}");
    session.echo(b"after")?;

    let text = Lb::command(&lab.balancer, "explain --proto tcp --src 192.0.2.7:40000 --dst 203.0.113.1:80")?;
    let text = text.success()?.stdout;
    ensure!(text.contains("left to the kernel") && text.contains("not_ours"), "{text}");
    let elsewhere = "explain --proto tcp --src 192.0.2.7:1 --dst 203.0.113.1:80 --iface lo";
    let refused = Lb::command(&lab.balancer, elsewhere)?.exit_code(1)?;
    ensure!(refused.stderr.contains("not attached"), "{}", refused.stderr);
    let mixed = "explain --proto udp --src 192.0.2.7:1 --dst [fd00::1]:80";
    let refused = Lb::command(&lab.balancer, mixed)?.exit_code(1)?;
    ensure!(refused.stderr.contains("one IP version"), "{}", refused.stderr);

    Lb::detach(&lab.balancer)?;
    Lb::command(&lab.balancer, "explain --proto tcp --src 192.0.2.7:1 --dst 203.0.113.1:80")?
        .exit_code(4)
        .map(drop)
}

fn explain(host: &Host, protocol: &str, src: SocketAddr, dst: SocketAddr) -> Result<Value> {
    let command = format!("explain --json --proto {protocol} --src {src} --dst {dst}");
    let output = Lb::command(host, &command)?.success()?;
    serde_json::from_str(&output.stdout).with_context(|| format!("no JSON: {}", output.stdout))
}

fn flows(host: &Host) -> Result<usize> {
    let output = Lb::command(host, "connections --json")?.success()?;
    let document: Value = serde_json::from_str(&output.stdout)?;
    Ok(document["connections"].as_array().context("no list")?.len())
}

fn new_flows(lb: &Lb) -> Result<u64> {
    lb.status()?.listener("echo-0")?["new_flows"].as_u64().context("no number")
}
