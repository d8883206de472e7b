//! Servers that die, fall ill and return, under traffic.

use std::time::{Duration, Instant};

use anyhow::Result;
use lb_tests::netns::{Config, Family, Lab, Lb, traffic, wait};
use serde_json::Value;

/// From SIGKILL to leaving the rotation, at an interval of 200 ms and two retries.
const LEAVES_WITHIN: Duration = Duration::from_secs(1);
/// How long a return may take on a busy machine.
const RETURNS_WITHIN: Duration = Duration::from_secs(10);
const REQUESTS: usize = 500;

#[test]
fn a_killed_server_leaves_within_a_second_and_returns_by_itself() -> Result<()> {
    let family = Family::V4;
    let mut lab = Lab::one_arm()?;
    let lb = Lb::start_with_rotation(&lab.balancer, &watchful(&lab, family), 3)?;
    assert_eq!(lb.status()?.level(), "OK");
    let name = format!("{}:8080", lab.backends[1].address(family));

    let killed = Instant::now();
    lab.backends[1].kill()?;
    let status = lb.wait_for_rotation(2, LEAVES_WITHIN.saturating_sub(killed.elapsed()))?;
    let after = traffic::curl_many(&lab.client, family.vip_port(80), REQUESTS)?;
    assert!(!after.contains_key("web2"), "{after:?}");
    assert_eq!(status.level(), "WARNING");
    let result = last_check(&lb, &name)?;
    assert_eq!(
        (&result["healthCheckStatus"], &result["errno"]),
        (&"CONNECT_FAILED".into(), &"ECONNREFUSED".into())
    );

    lab.backends[1].start()?;
    lb.wait_for_rotation(3, RETURNS_WITHIN)?;
    let after = traffic::curl_many(&lab.client, family.vip_port(80), REQUESTS)?;
    assert!(after.contains_key("web2"), "{after:?}");
    wait::until("the level OK", RETURNS_WITHIN, || Ok((lb.status()?.level() == "OK").then_some(())))
}

#[test]
fn whoever_waits_for_ready_finds_the_whole_rotation() -> Result<()> {
    let family = Family::V4;
    let mut lab = Lab::one_arm()?;
    lab.backends[1].kill()?;
    let lb = Lb::start(&lab.balancer, &watchful(&lab, family))?;
    let served = traffic::curl_many(&lab.client, family.vip_port(80), REQUESTS)?;
    assert_eq!(served.keys().map(String::as_str).collect::<Vec<_>>(), ["web1", "web3"]);
    assert_eq!(lb.status()?.rotation("web").len(), 2);
    Ok(())
}

#[test]
fn a_server_that_answers_503_leaves_and_says_why() -> Result<()> {
    let family = Family::V6;
    let lab = Lab::two_arm()?;
    let lb = Lb::start_with_rotation(&lab.balancer, &watchful(&lab, family), 3)?;
    let server = std::net::SocketAddr::new(lab.backends[2].address(family), 8080);
    let set_health = |status: u16| {
        let request = format!("curl --silent --fail --globoff --request PUT http://{server}/health/{status}");
        lab.balancer.run(&request)?.success()
    };

    set_health(503)?;
    lb.wait_for_rotation(2, RETURNS_WITHIN)?;
    let after = traffic::curl_many(&lab.client, family.vip_port(80), REQUESTS)?;
    assert!(!after.contains_key("web3"), "{after:?}");
    let result = last_check(&lb, &server.to_string())?;
    assert_eq!(
        (&result["healthCheckStatus"], &result["statusCode"]),
        (&"INVALID_STATUS_CODE".into(), &503.into())
    );

    set_health(200)?;
    lb.wait_for_rotation(3, RETURNS_WITHIN).map(drop)
}

#[test]
fn without_any_server_requests_are_dropped_and_counted_until_one_returns() -> Result<()> {
    let family = Family::V4;
    let mut lab = Lab::one_arm()?;
    let lb = Lb::start_with_rotation(&lab.balancer, &watchful(&lab, family), 3)?;
    for server in &mut lab.backends {
        server.kill()?;
    }
    lb.wait_for_rotation(0, RETURNS_WITHIN)?;

    let timed_out = 28;
    traffic::try_curl(&lab.client, family.vip_port(80), "/")?.exit_code(timed_out)?;
    let critical = 2;
    let status = Lb::command(&lab.balancer, "status")?.exit_code(critical)?;
    assert!(status.stdout.contains("CRITICAL"), "{}", status.stdout);
    let status = lb.status()?;
    assert!(status.0["drops"]["no_backend"].as_u64() > Some(0), "{status:?}");

    lab.backends[0].start()?;
    lb.wait_for_rotation(1, RETURNS_WITHIN)?;
    assert_eq!(traffic::curl(&lab.client, family.vip_port(80))?.server, "web1");
    Ok(())
}

/// The configuration that the time limit of these tests is about.
fn watchful(lab: &Lab, family: Family) -> String {
    Config { interval_ms: 200, retries: 2, ..Config::new(lab, family) }.to_string()
}

fn last_check(lb: &Lb, backend: &str) -> Result<Value> {
    Ok(lb.status()?.backend("web", backend)?["result"].clone())
}
