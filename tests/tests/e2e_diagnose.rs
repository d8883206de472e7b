//! `lb diagnose`, the metrics and the lines to try by hand, beside real faults. T18-T22, and H8, of the reference.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use lb_tests::netns::{Checked, Config, Family, Lab, Lb, Output, Service, Visitors, document, traffic, wait};
use lb_tests::servers::{ECHO_PORT, HTTP_PORT};
use serde_json::{Value, json};

/// How long anything may take that takes a few checks.
const SOON: Duration = Duration::from_secs(15);
/// Enough flows to be spoken of.
const FLOWS: usize = 12;
/// base64 of `PING` and `PONG`
const PING_PONG: &str = "request_data = \"UElORw==\"\nresponse_data = \"UE9ORw==\"";

fn check(protocol: &str, more: &str) -> String {
    format!("protocol = {protocol:?}\ninterval_ms = 1000\ntimeout_ms = 1000\nretries = 1\n{more}")
}

fn server(lab: &Lab, port: u16) -> SocketAddr {
    SocketAddr::new(lab.backends[0].address(Family::V4), port)
}

/// The usual configuration, with checks that a busy machine does not fail.
fn patient(lab: &Lab, family: Family) -> Config {
    Config { interval_ms: 1000, ..Config::new(lab, family) }
}

/// The lines to try by hand, of all findings on a set.
fn by_hand(lb: &Lb, set: &str) -> Result<Vec<String>> {
    let diagnosis = lb.diagnose(set)?;
    let findings = diagnosis["findings"].as_array().context("no findings")?;
    let lines = findings.iter().filter_map(|finding| finding["try"].as_array()).flatten();
    Ok(lines.filter_map(|line| line.as_str().map(str::to_owned)).collect())
}

/// The advice of the finding with that hint.
fn advice(lb: &Lb, set: &str, hint: &str) -> Result<String> {
    let diagnosis = lb.diagnose(set)?;
    let findings = diagnosis["findings"].as_array().context("no findings")?;
    let found = findings.iter().find(|finding| finding["hint"] == hint);
    let advice = &found.with_context(|| format!("no finding {hint} in {diagnosis}"))?["advice"];
    let lines: Vec<_> = advice.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    Ok(lines.join("\n"))
}

/// The value of the first sample of `name` that has all these labels.
fn sample(metrics: &str, name: &str, labels: &[&str]) -> Result<f64> {
    let is_it = |line: &&str| {
        line.starts_with(&format!("{name}{{")) && labels.iter().all(|label| line.contains(label))
    };
    let line = metrics.lines().find(is_it).with_context(|| format!("no {name} {labels:?} in\n{metrics}"))?;
    let value = line.rsplit(' ').next().unwrap_or_default();
    value.parse().with_context(|| format!("no number in `{line}`"))
}

/// What a tool printed, wherever.
fn said(output: &Output) -> String {
    format!("{}\n{}\n{}", output.stdout, output.stderr, output.status)
}

/// A fault, the check that meets it and what it says; and what the line to try by hand says.
struct Fault {
    set: &'static str,
    port: u16,
    check: String,
    verdict: Value,
    by_hand: &'static str,
}

fn faults() -> [Fault; 9] {
    let fault = |set, port, check, verdict, by_hand| Fault { set, port, check, verdict, by_hand };
    let connect =
        |errno: &str| json!({ "healthCheckStatus": "CONNECT_FAILED", "errno": errno, "syscall": "connect" });
    let eproto = json!({ "healthCheckStatus": "IO_ERROR", "code": "EPROTO", "errno": "EPROTO" });
    let mismatch = json!({ "healthCheckStatus": "REGEX_MISMATCH", "msg": "response match result: failed" });
    let not_found = json!({
        "healthCheckStatus": "INVALID_STATUS_CODE", "msg": "invalid statusCode", "statusCode": 404, "expected": "200"
    });
    [
        fault("closed", 84, check("tcp", ""), connect("ECONNREFUSED"), "refused"),
        fault("rejected", 81, check("tcp", ""), connect("EHOSTUNREACH"), "No route to host"),
        fault("dropped", 83, check("http", ""), json!({ "healthCheckStatus": "TIMED_OUT" }), "timed out"),
        fault("path", HTTP_PORT, check("http", "path = \"/nowhere\""), not_found, "HTTP/1.1 404"),
        fault(
            "body",
            HTTP_PORT,
            check("http", "response_body_regex = \"^none\""),
            mismatch.clone(),
            "status: 1",
        ),
        fault("not-tls", HTTP_PORT, check("https", ""), eproto.clone(), "wrong version number"),
        fault("not-http", ECHO_PORT, check("http", ""), eproto, "HTTP/0.9"),
        fault("answer", ECHO_PORT, check("udp", PING_PONG), mismatch, "web1 10.0.1.2:"),
        fault(
            "no-dns",
            84,
            check("dns", "[dns]\nname = \"example.org\""),
            json!({ "errno": "ECONNREFUSED" }),
            "refused",
        ),
    ]
}

#[test]
fn t18_the_lines_to_try_by_hand_agree_with_the_checks() -> Result<()> {
    let lab = Lab::one_arm()?;
    let firewall = ["tcp dport 81 reject with icmp type host-prohibited", "tcp dport 83 drop"];
    lab.backends[0].host.firewall(&firewall)?;
    let faults = faults();
    let sets: Vec<_> = faults
        .iter()
        .map(|fault| Checked::new(fault.set, [server(&lab, fault.port)], fault.check.as_str()))
        .collect();
    let lb = Lb::start(&lab.balancer, &document(&lab, &sets))?;

    let mut tried = Vec::new();
    for Fault { set, port, verdict, by_hand: expected, .. } in &faults {
        let name = server(&lab, *port).to_string();
        let status = verdict["healthCheckStatus"].as_str().unwrap_or("CONNECT_FAILED");
        let result = lb.wait_for_result(set, &name, status)?;
        for (field, value) in verdict.as_object().context("a verdict is an object")? {
            assert_eq!(&result[field], value, "{set}: {field} of {result}");
        }
        let lines = by_hand(&lb, set)?;
        assert!(!lines.is_empty(), "nothing to try for {set}");
        let outputs = lines.iter().map(|line| Ok((line, lab.balancer.shell(line)?)));
        let outputs: Vec<_> = outputs.collect::<Result<_>>()?;
        let agrees = outputs.iter().any(|(_, output)| said(output).contains(expected));
        assert!(agrees, "{set}: expected `{expected}` of one of {outputs:#?}");
        tried.push(lines);
    }

    // Once the fault is gone, the check and the very same line say so.
    let _service = Visitors::listen(&lab.backends[0].host, 81)?;
    lab.backends[0].host.firewall(&[])?;
    lb.wait_for_result("rejected", &server(&lab, 81).to_string(), "OK")?;
    lab.balancer.shell(&tried[1][0])?.success().map(drop)
}

#[test]
fn t19_all_backends_with_the_same_fault_point_to_the_check() -> Result<()> {
    let lab = Lab::one_arm()?;
    let everywhere: Vec<_> =
        lab.backends.iter().map(|backend| SocketAddr::new(backend.address(Family::V6), HTTP_PORT)).collect();
    let set = Checked::new("web", everywhere, check("http", "path = \"/nowhere\""));
    let lb = Lb::start(&lab.balancer, &document(&lab, &[set]))?;
    wait::until("the first checks", SOON, || {
        let ill = lb.status()?.set("web")?["critical"].as_array().map(Vec::len);
        Ok((ill == Some(3)).then_some(()))
    })?;

    let critical = 2;
    let report = Lb::command(&lab.balancer, "diagnose web")?.exit_code(critical)?.stdout;
    let expected = "all 3 backends, same reason: probably the health check, not the servers";
    assert!(report.contains(expected), "{report}");
    let diagnosis = lb.diagnose("web")?;
    assert_eq!(diagnosis["findings"][0]["hint"], "check_probably_wrong", "{diagnosis}");
    assert_eq!(diagnosis["findings"][0]["statusCode"], 404, "{diagnosis}");
    Ok(())
}

#[test]
fn t20_a_listener_on_the_wrong_port_or_protocol_names_what_arrives_instead() -> Result<()> {
    let (family, lab) = (Family::V4, Lab::two_arm()?);
    let services = vec![Service { port: 81, ..Service::WEB }, Service { protocol: "udp", ..Service::ECHO }];
    let config = Config { services, ..patient(&lab, family) };
    let lb = Lb::start_with_rotation(&lab.balancer, &config.to_string(), 3)?;
    let before = lb.status()?;
    assert_eq!((before.level(), &before.0["drops"]["no_listener"]), ("OK", &0.into()));

    for port in [80, ECHO_PORT] {
        traffic::knock(&lab.client, family.vip_port(port), FLOWS)?;
    }
    for (set, listener, instead) in [("web", "web-0", "tcp port 80"), ("echo", "echo-0", "tcp port 7")] {
        let arrived = wait::until(instead, SOON, || {
            let advice = advice(&lb, set, "no_traffic")?;
            let line = advice.lines().find(|line| line.ends_with(instead)).map(str::to_owned);
            Ok(line)
        })?;
        let expected = format!("arrived instead: {FLOWS} packets to {instead}");
        assert_eq!(arrived, expected);
        let report = Lb::command(&lab.balancer, &format!("diagnose {set}"))?.success()?.stdout;
        assert!(report.contains(&expected) && report.contains("all backends OK, no traffic"), "{report}");
        assert_eq!(lb.status()?.listener(listener)?["new_flows"], 0);
    }
    let (metrics, total) = (lb.metrics()?, 2 * FLOWS);
    let expected = format!("lb_drops_total{{reason=\"no_listener\"}} {total}");
    assert!(metrics.lines().any(|line| line == expected), "expected {expected} in\n{metrics}");
    Ok(())
}

#[test]
fn t21_a_firewall_that_lets_the_checks_through_but_not_the_traffic() -> Result<()> {
    let (family, lab) = (Family::V4, Lab::one_arm()?);
    let lb = Lb::start_with_rotation(&lab.balancer, &patient(&lab, family).to_string(), 3)?;
    for backend in &lab.backends {
        // The VIP is the SNAT address.
        backend.host.firewall(&[
            "ip saddr 10.0.1.100 tcp dport 8080 drop",
            "ip saddr 10.0.1.100 tcp dport 7 reject with tcp reset",
        ])?;
    }
    for port in [80, ECHO_PORT] {
        traffic::knock(&lab.client, family.vip_port(port), FLOWS)?;
    }

    for (set, field, metric, hint) in [
        ("echo", "refused", "lb_refused_flows_total", "traffic_refused"),
        ("web", "unanswered", "lb_unanswered_flows_total", "traffic_unanswered"),
    ] {
        let status = wait::until(&format!("{FLOWS} flows {field}"), SOON, || {
            let status = lb.status()?;
            let count = |backend: &Value| backend[field].as_u64().unwrap_or_default();
            let backends = status.set(set)?["backends"].as_array().context("no backends")?;
            let total: u64 = backends.iter().map(count).sum();
            Ok((total == FLOWS as u64).then_some(status))
        })?;
        assert_eq!(status.level(), "OK", "the checks get through");
        let set_label = format!("backend_set=\"{set}\"");
        let metrics = lb.metrics()?;
        let in_metrics: f64 = lab
            .backends
            .iter()
            .map(|backend| {
                let port = if set == "web" { HTTP_PORT } else { ECHO_PORT };
                let name = format!("backend=\"{}:{port}\"", backend.address(family));
                sample(&metrics, metric, &[&set_label, &name])
            })
            .sum::<Result<_>>()?;
        assert_eq!(in_metrics, FLOWS as f64, "{metrics}");
        advice(&lb, set, hint)?;
    }
    let advice = advice(&lb, "web", "traffic_unanswered")?;
    assert!(advice.contains("must allow the SNAT addresses, not only the checks"), "{advice}");

    for backend in &lab.backends {
        backend.host.firewall(&[])?;
    }
    traffic::curl(&lab.client, family.vip_port(80)).map(drop)
}

#[test]
fn t22_a_firewall_that_drops_the_checks_only_shows_the_address_to_allow() -> Result<()> {
    let (family, lab) = (Family::V4, Lab::one_arm()?);
    let lb = Lb::start_with_rotation(&lab.balancer, &Config::new(&lab, family).to_string(), 3)?;
    for backend in &lab.backends {
        backend.host.firewall(&["ip saddr 10.0.1.2 tcp dport 8080 drop"])?;
    }
    let status = lb.wait_for_rotation(0, SOON)?;
    let result = &status.backend("web", "10.0.1.10:8080")?["result"];
    assert_eq!(
        (&result["healthCheckStatus"], &result["sourceIpAddress"]),
        (&"TIMED_OUT".into(), &"10.0.1.2".into())
    );
    let advice = advice(&lb, "web", "dropped")?;
    assert!(advice.contains("allow tcp port 8080 from 10.0.1.2"), "{advice}");

    for backend in &lab.backends {
        backend.host.firewall(&["ip saddr 10.0.1.2 tcp dport 8080 accept", "tcp dport 8080 accept"])?;
    }
    lb.wait_for_rotation(3, SOON).map(drop)
}

#[test]
fn h8_a_udp_check_is_one_datagram() -> Result<()> {
    const CHECKS: u64 = 10;
    let lab = Lab::one_arm()?;
    // Without an answer, a check that would ask again would be seen to.
    lab.backends[0].host.firewall(&["udp dport 53 counter drop"])?;
    let silent = check("udp", PING_PONG).replace("1000", "200");
    let set = Checked::new("silent", [server(&lab, 53)], silent);
    let lb = Lb::start(&lab.balancer, &document(&lab, &[set]))?;
    let name = server(&lab, 53).to_string();
    let made = || -> Result<u64> {
        let metrics = lb.metrics()?;
        Ok(sample(&metrics, "lb_health_checks_total", &["result=\"TIMED_OUT\""]).unwrap_or_default() as u64)
    };
    let datagrams = || -> Result<u64> {
        let rules = lab.backends[0].host.run("nft --json list ruleset")?.success()?.stdout;
        let rules: Value = serde_json::from_str(&rules)?;
        let lists = rules["nftables"].as_array().context("no rules")?;
        let counters = lists.iter().filter_map(|entry| entry["rule"]["expr"].as_array()).flatten();
        let mut packets = counters.filter_map(|part| part["counter"]["packets"].as_u64());
        packets.next().context("no counter")
    };
    wait::until("the checks", SOON, || Ok((made()? >= CHECKS).then_some(())))?;
    Lb::command(&lab.balancer, &format!("offline silent/{name}"))?.success()?;
    let (made, datagrams) = (made()?, datagrams()?);
    // One may have been on its way when the backend was taken offline.
    assert!((made..=made + 1).contains(&datagrams), "{datagrams} datagrams for {made} checks");
    Ok(())
}
