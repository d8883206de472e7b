//! What an operator asks of a running instance, and of the host: `connections`, `top`, `doctor`, and the API over TCP.

use std::time::Duration;

use anyhow::{Context, Result};
use lb_tests::netns::traffic::{self, Session};
use lb_tests::netns::{Config, Family, Host, Lab, Lb, Topology, wait};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(10);

#[test]
fn connections_shows_live_flows_with_and_without_a_controller_v4() -> Result<()> {
    connections_shows_live_flows_with_and_without_a_controller(Topology::OneArm, Family::V4)
}

#[test]
fn connections_shows_live_flows_with_and_without_a_controller_v6() -> Result<()> {
    connections_shows_live_flows_with_and_without_a_controller(Topology::TwoArm, Family::V6)
}

fn connections_shows_live_flows_with_and_without_a_controller(
    topology: Topology,
    family: Family,
) -> Result<()> {
    let lab = Lab::new(topology)?;
    let lb = Lb::start_with_rotation(&lab.balancer, &Config::new(&lab, family).to_string(), 3)?;
    let mut session = Session::open(&lab.client, None, family.vip_port(7))?;
    session.echo(b"hello")?;
    traffic::ask_udp_from(&lab.client, 4711, family.vip_port(7))?;

    let of = |protocol: &str, rows: &[Value]| -> Result<Value> {
        let row = rows.iter().find(|row| row["protocol"] == protocol);
        row.cloned().with_context(|| format!("no {protocol} flow in {rows:?}"))
    };
    let rows = connections(&lab.balancer, "--listener echo-0")?;
    assert_eq!(rows.len(), 2, "{rows:?}");
    let tcp = of("tcp", &rows)?;
    let server = lab.backends.iter().find(|backend| backend.name() == session.answer.server);
    let server = std::net::SocketAddr::new(server.context("no such server")?.address(family), 7).to_string();
    for (key, expected) in [
        ("vip", family.vip_port(7).to_string()),
        ("source", session.answer.client.to_string()),
        ("destination", server.clone()),
        ("listener", "echo-0".into()),
        ("backend_set", "echo".into()),
        ("backend", server.clone()),
        ("state", "established".into()),
    ] {
        assert_eq!(tcp[key], expected, "{key} of {tcp}");
    }
    let is_client =
        |row: &Value| row["client"].as_str().is_some_and(|text| text.contains(&client_text(&lab, family)));
    assert!(is_client(&tcp), "{tcp}");
    let udp = of("udp", &rows)?;
    assert!(
        is_client(&udp) && udp["client"].as_str().is_some_and(|client| client.ends_with(":4711")),
        "{udp}"
    );
    assert!(
        udp["age_ms"].as_u64() >= udp["idle_ms"].as_u64() && udp["age_ms"].as_u64() < Some(60_000),
        "{udp}"
    );

    let of_backend = connections(&lab.balancer, &format!("--backend echo/{server}"))?;
    assert!(of_backend.iter().any(|row| row["source"] == tcp["source"]), "{of_backend:?}");
    let table = Lb::command(&lab.balancer, "connections --listener echo-0")?.success()?.stdout;
    assert!(table.lines().count() == 3 && table.contains("established"), "{table}");
    let unknown = Lb::command(&lab.balancer, "connections --listener nobody")?.exit_code(1)?;
    assert!(unknown.stderr.contains("web-0"), "it says what there is: {}", unknown.stderr);

    lb.kill9()?;
    let rows = connections(&lab.balancer, &format!("--listener {}", family.vip_port(7)))?;
    let tcp = of("tcp", &rows)?;
    assert_eq!((&tcp["listener"], &tcp["backend"]), (&Value::Null, &server.into()), "{tcp}");
    assert!(tcp["listener_id"].is_u64() && tcp["backend_set"] == "echo", "{tcp}");
    let limited = document(&lab.balancer, "--limit 1")?;
    assert_eq!((list(&limited)?.len(), &limited["truncated"]), (1, &Value::Bool(true)), "{limited}");

    Lb::detach(&lab.balancer)?;
    Lb::command(&lab.balancer, "connections")?.exit_code(4).map(drop)
}

#[test]
fn connections_tells_half_open_and_closing_flows() -> Result<()> {
    let family = Family::V4;
    let lab = Lab::one_arm()?;
    let _lb = Lb::start_with_rotation(&lab.balancer, &Config::new(&lab, family).to_string(), 3)?;
    traffic::curl(&lab.client, family.vip_port(80))?;
    let states = |listener: &str| -> Result<Vec<String>> {
        let rows = connections(&lab.balancer, &format!("--listener {listener}"))?;
        Ok(rows.iter().filter_map(|row| row["state"].as_str().map(str::to_owned)).collect())
    };
    assert_eq!(states("web-0")?, ["closing"]);

    // Nobody answers the SYN: the servers drop it.
    for backend in &lab.backends {
        backend.host.firewall(&["tcp dport 7 drop"])?;
    }
    traffic::knock(&lab.client, family.vip_port(7), 3)?;
    wait::until("three half-open flows", PATIENCE, || {
        Ok((states("echo-0")? == ["half-open"; 3]).then_some(()))
    })
}

fn client_text(lab: &Lab, family: Family) -> String {
    lab.client_address(family).to_string()
}

fn document(host: &Host, arguments: &str) -> Result<Value> {
    let output = Lb::command(host, &format!("connections --json {arguments}"))?.success()?;
    serde_json::from_str(&output.stdout).with_context(|| format!("no JSON: {}", output.stdout))
}

fn connections(host: &Host, arguments: &str) -> Result<Vec<Value>> {
    list(&document(host, arguments)?)
}

fn list(document: &Value) -> Result<Vec<Value>> {
    document["connections"].as_array().cloned().with_context(|| format!("no connections in {document}"))
}
