//! What checks say of faults of the network, when they are made and from where, through the real `lb`.
//!
//! Where each acceptance statement on health is tested. `health::` are the tests of lb-userspace/tests/health,
//! `src::` those beside the code in lb-userspace/src, the others are the end-to-end tests. (`health::faults` runs with
//! `--ignored` only.)
//!
//! | statement | tests |
//! | --- | --- |
//! | H1, H2 rotation follows the checks | `e2e_health`, `health::rotation`, `src::health::state` |
//! | H3 continuous | `e2e_checks`, `health::schedule` |
//! | H4 TCP connect | `e2e_checks`, `e2e_servers`, `health::tcp` |
//! | H5 TCP request and answer | `health::tcp` |
//! | H6 HTTP | `e2e_servers`, `health::http` |
//! | H7 HTTPS | `e2e_servers`, `health::https` |
//! | H8 UDP | `e2e_diagnose`, `health::udp` |
//! | H9, H10, H11 DNS | `e2e_servers`, `health::dns`, `src::config` |
//! | H12 base64 | `e2e_servers`, `src::config` |
//! | H13, H14 TCP hides what HTTP shows | `e2e_servers`, `health::http` |
//! | H15 another check on reload | `e2e_checks`, `health::rotation`, `src::health::backend` |
//! | L1-L6 levels | `src::health::level`; L1, L2 also `e2e_checks` |
//! | L7 offline | `e2e_checks`, `src::health::{backend, level, result}` |
//! | L8 at once, and history | `e2e_checks`, `e2e_health`, `src::health::backend` |
//! | L9 fields of a result | `e2e_checks`, `health::tcp`, `src::health::result` |
//! | L10 colours | `src::cli::paint` |
//! | T1-T5 faults of the network | `e2e_checks`, `health::faults` |
//! | T6-T8 status codes | `e2e_diagnose`, `e2e_servers`, `health::http` |
//! | T9-T11 wrong protocol | `e2e_servers`, `health::{http, https}` |
//! | T12-T15 patterns | `health::http`; T12, T14 also `e2e_servers` |
//! | T16, T17 firewall on some backends | `e2e_checks`, `health::{faults, rotation}` |
//! | T18 lines to try by hand | `e2e_diagnose`, `health::diagnose` |
//! | T19-T22 common causes | `e2e_diagnose`, `health::diagnose` |
//! | Z12, Z13 mirrored pair | `e2e_mirror`, `health::rotation` |

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aya::maps::{ArrayOfMaps, Map, MapData};
use lb_tests::netns::traffic::Session;
use lb_tests::netns::{Checked, Family, Host, Lab, Lb, Visitors, document, wait};
use lb_tests::servers::{ECHO_PORT, HTTP_PORT};
use serde_json::Value;

/// How long anything may take that takes a few checks.
const SOON: Duration = Duration::from_secs(10);
const VISITORS_PORT: u16 = 8081;

/// A TCP check that is made every `interval` and may take as long.
fn tcp(interval: u32, retries: u32) -> String {
    format!("protocol = \"tcp\"\ninterval_ms = {interval}\ntimeout_ms = {interval}\nretries = {retries}")
}

fn at(address: &str) -> [SocketAddr; 1] {
    [address.parse().expect("an address and a port")]
}

/// Where the backends of `lab` are, on `port`.
fn everywhere(lab: &Lab, port: u16) -> Vec<SocketAddr> {
    lab.backends.iter().map(|backend| SocketAddr::new(backend.address(Family::V4), port)).collect()
}

/// A server that notes who comes, on one of the backends.
fn visitors(lab: &Lab, place: usize) -> Result<Visitors> {
    Visitors::listen(&lab.backends[place].host, VISITORS_PORT)
}

/// `healthCheckStatus`, `errno` and `syscall` of a result.
fn verdict(result: &Value) -> [&str; 3] {
    ["healthCheckStatus", "errno", "syscall"].map(|field| result[field].as_str().unwrap_or_default())
}

fn latency(result: &Value) -> Result<Duration> {
    let latency = result["latencyMs"].as_f64().with_context(|| format!("no latencyMs in {result}"))?;
    Ok(Duration::from_secs_f64(latency / 1000.0))
}

#[test]
fn t1_t2_t4_t5_what_a_firewall_a_closed_port_and_a_missing_route_look_like() -> Result<()> {
    let lab = Lab::one_arm()?;
    lab.backends[0].host.firewall(&[
        "tcp dport 81 reject with icmp type host-prohibited",
        "tcp dport 82 reject with icmp type admin-prohibited",
        "tcp dport 83 drop",
    ])?;
    let unreachable = ["CONNECT_FAILED", "EHOSTUNREACH", "connect"];
    let cases = [
        ("host-prohibited", "10.0.1.10:81", unreachable),
        ("admin-prohibited", "10.0.1.10:82", unreachable),
        ("closed", "10.0.1.10:84", ["CONNECT_FAILED", "ECONNREFUSED", "connect"]),
        ("closed-v6", "[fd00:1::10]:84", ["CONNECT_FAILED", "ECONNREFUSED", "connect"]),
        ("drop", "10.0.1.10:83", ["TIMED_OUT", "", "connect"]),
        ("no-route", "203.0.113.1:80", ["CONNECT_FAILED", "ENETUNREACH", "connect"]),
        ("no-route-v6", "[2001:db8::1]:80", ["CONNECT_FAILED", "ENETUNREACH", "connect"]),
    ];
    let sets = cases.map(|(name, backend, _)| Checked::new(name, at(backend), tcp(1000, 1)));
    let lb = Lb::start(&lab.balancer, &document(&lab, &sets))?;
    for (name, backend, expected) in cases {
        let result = lb.wait_for_result(name, backend, expected[0])?;
        assert_eq!(verdict(&result), expected, "{name}: {result}");
        if expected[0] == "CONNECT_FAILED" {
            assert!(latency(&result)? < Duration::from_millis(500), "{name} is known at once: {result}");
        }
    }
    let finding = lb.diagnose("drop")?["findings"][0].clone();
    assert_eq!(finding["hint"], "dropped", "{finding}");
    assert!(finding["advice"][0].as_str().unwrap_or_default().contains("from 10.0.1.2"), "{finding}");
    Ok(())
}

#[test]
fn t3_a_host_that_answers_no_arp_is_unreachable_though_the_timeout_strikes_first() -> Result<()> {
    let lab = Lab::one_arm()?;
    lab.balancer.run("ip route add 10.0.9.0/24 via 10.0.1.78")?.success()?;
    let cases = [("dead", "10.0.1.77:80"), ("dead-v6", "[fd00:1::77]:80"), ("dead-gateway", "10.0.9.9:80")];
    let timeout = Duration::from_secs(1);
    let sets = cases.map(|(name, backend)| Checked::new(name, at(backend), tcp(1000, 1)));
    let lb = Lb::start(&lab.balancer, &document(&lab, &sets))?;
    for (name, backend) in cases {
        // Three checks, since the kernel's entry changes from one to the next.
        for count in 1..=3 {
            let result = wait::until("a check", SOON, || {
                let result = lb.status()?.backend(name, backend)?["result"].clone();
                Ok((result["consecutive"].as_u64() >= Some(count)).then_some(result))
            })?;
            assert_eq!(verdict(&result), ["CONNECT_FAILED", "EHOSTUNREACH", "connect"], "{name}: {result}");
            assert!(latency(&result)? < timeout * 3 / 2, "{name}: {result}");
        }
    }
    for (name, backend) in cases {
        let history = lb.history(&format!("{name}/{backend}"))?;
        assert_eq!(history.len(), 1, "it was never anything else: {history:?}");
    }
    Ok(())
}

#[test]
fn t16_t17_l8_a_firewall_on_some_backends_and_its_end() -> Result<()> {
    let lab = Lab::one_arm()?;
    let retries = 3;
    let set = Checked::new("web", everywhere(&lab, HTTP_PORT), tcp(200, retries));
    let lb = Lb::start_with_rotation(&lab.balancer, &document(&lab, &[set]), 3)?;

    let shut = ["tcp dport 8080 reject with icmp type host-prohibited"];
    let levels =
        [(2, "WARNING", vec!["10.0.1.12:8080"]), (1, "CRITICAL", vec!["10.0.1.11:8080", "10.0.1.12:8080"])];
    for (left, level, ill) in levels {
        lab.backends[left].host.firewall(&shut)?;
        let status = lb.wait_for_rotation(left, SOON)?;
        let set = status.set("web")?;
        assert_eq!((&set["status"], &set["critical"]), (&level.into(), &ill.into()));
    }

    lab.backends[1].host.firewall(&[])?;
    lab.backends[2].host.firewall(&[])?;
    lb.wait_for_rotation(3, SOON)?;
    wait::until("the level OK", SOON, || Ok((lb.status()?.level() == "OK").then_some(())))?;
    let history = lb.history("web/10.0.1.12:8080")?;
    let path: Vec<_> = history.iter().filter_map(|transition| transition["to"].as_str()).collect();
    assert_eq!(path, ["OK", "WARNING", "CRITICAL", "WARNING", "OK"], "{history:?}");
    for (transition, status) in [(2, "CONNECT_FAILED"), (4, "OK")] {
        let result = &history[transition]["result"];
        assert_eq!((&result["healthCheckStatus"], &result["consecutive"]), (&status.into(), &retries.into()));
    }
    Ok(())
}

#[test]
fn h3_h4_l9_checks_are_steady_send_nothing_and_come_from_where_they_say() -> Result<()> {
    const INTERVAL: Duration = Duration::from_millis(200);
    const CHECKS: usize = 20;
    let lab = Lab::one_arm()?;
    lab.balancer.run("ip address add 10.0.1.3/24 dev eth0")?.success()?;
    let (plain, bound) = (visitors(&lab, 0)?, visitors(&lab, 1)?);
    let [one, other] = ["10.0.1.10:8081", "10.0.1.11:8081"];
    let lb = Lb::start(
        &lab.balancer,
        &document(
            &lab,
            &[
                Checked::new("plain", at(one), tcp(200, 3)),
                Checked::new("bound", at(other), tcp(200, 3) + "\nsource_address = \"10.0.1.3\""),
            ],
        ),
    )?;

    let visits = wait::until("the checks", SOON, || Ok((plain.count() > CHECKS).then(|| plain.all())))?;
    let took = visits[CHECKS].ended - visits[0].ended;
    let share = took.div_duration_f64(INTERVAL * CHECKS as u32);
    println!("{CHECKS} checks took {share:.3} of {CHECKS} intervals");
    assert!((0.9..1.1).contains(&share), "{CHECKS} checks every {INTERVAL:?} took {took:?}");
    assert!(visits.iter().all(|visit| visit.answer.is_none()), "a TCP check without a request sends nothing");

    for (set, backend, seen_by, address) in
        [("plain", one, plain, "10.0.1.2"), ("bound", other, bound, "10.0.1.3")]
    {
        let result = lb.wait_for_result(set, backend, "OK")?;
        assert_eq!(result["sourceIpAddress"], address);
        let address: IpAddr = address.parse()?;
        assert!(seen_by.all().iter().all(|visit| visit.from == address), "{:?}", seen_by.all());
        let timestamp = result["timestamp"].as_str().context("no timestamp")?;
        let age = lab.balancer.shell(&format!("echo $(($(date +%s) - $(date --date={timestamp} +%s)))"))?;
        let age: i64 = age.success()?.stdout.parse()?;
        ensure!((0..=5).contains(&age), "{timestamp} was {age} s ago");
    }
    Ok(())
}

#[test]
fn l7_an_offline_backend_gets_no_packet_from_the_checker() -> Result<()> {
    const INTERVALS: usize = 10;
    let lab = Lab::one_arm()?;
    let (offline, online) = (visitors(&lab, 0)?, visitors(&lab, 1)?);
    let backends = [at("10.0.1.10:8081"), at("10.0.1.11:8081")].concat();
    let set = Checked::new("pair", backends, tcp(200, 3));
    let lb = Lb::start_with_rotation(&lab.balancer, &document(&lab, &[set]), 2)?;
    let more = |visitors: &Visitors, than: usize| {
        let count = visitors.count() + than;
        wait::until("more checks", SOON, || Ok((visitors.count() >= count).then_some(())))
    };

    Lb::command(&lab.balancer, "offline pair/10.0.1.10:8081")?.success()?;
    // What was on its way has come by then.
    more(&online, 1)?;
    let before = offline.count();
    more(&online, INTERVALS)?;
    assert_eq!(offline.count(), before, "checks of an offline backend");

    let status = lb.status()?;
    let (set, backend) = (status.set("pair")?, status.backend("pair", "10.0.1.10:8081")?);
    assert_eq!((&set["status"], &set["total"]), (&"OK".into(), &1.into()), "it does not count: {set}");
    assert_eq!(
        (&backend["state"], &backend["result"]["healthCheckStatus"], &backend["in_rotation"]),
        (&"OFFLINE".into(), &"OFFLINE".into(), &false.into())
    );

    Lb::command(&lab.balancer, "online pair/10.0.1.10:8081")?.success()?;
    more(&offline, 1)?;
    lb.wait_for_rotation(2, SOON).map(drop)
}

#[test]
fn h15_flows_go_on_when_a_reload_exchanges_the_check() -> Result<()> {
    let (family, lab) = (Family::V4, Lab::one_arm()?);
    let echo = everywhere(&lab, ECHO_PORT);
    let set = |check: String| Checked { port: ECHO_PORT, ..Checked::new("echo", echo.clone(), check) };
    let lb = Lb::start_with_rotation(&lab.balancer, &document(&lab, &[set(tcp(200, 2))]), 3)?;
    let mut session = Session::open(&lab.client, None, family.vip_port(ECHO_PORT))?;
    session.echo(b"checked by tcp")?;

    let http =
        tcp(200, 2).replace("tcp", "http") + "\nport = 8080\npath = \"/health\"\nreturn_code = \"204\"";
    lb.reload(&document(&lab, &[set(http.clone())]))?;
    session.echo(b"checked by http")?;
    let result = lb.wait_for_result("echo", "10.0.1.10:7", "INVALID_STATUS_CODE")?;
    assert_eq!((&result["statusCode"], &result["expected"]), (&200.into(), &"204".into()));
    lb.wait_for_rotation(0, SOON)?;
    session.echo(b"out of rotation, but established")?;

    lb.reload(&document(&lab, &[set(http.replace("204", "200"))]))?;
    lb.wait_for_rotation(3, SOON)?;
    session.echo(b"checked by another http")
}

/// The goal is 50 ms on a machine with nothing else to do; tests run beside others.
#[test]
fn a_deciding_result_is_in_the_maps_at_once() -> Result<()> {
    const CHANGES: usize = 10;
    let lab = Lab::one_arm()?;
    let server = visitors(&lab, 0)?;
    let check = tcp(100, 1).replace("tcp", "http");
    let set = Checked::new("web", at("10.0.1.10:8081"), check);
    let _lb = Lb::start_with_rotation(&lab.balancer, &document(&lab, &[set]), 1)?;
    let tables = Tables::open(&lab.balancer)?;

    let mut table = tables.only()?;
    let mut delays = Vec::new();
    for change in 0..CHANGES {
        let status = if change % 2 == 0 { 503 } else { 200 };
        server.answer(status);
        let seen = wait::until("another table", SOON, || {
            let before = std::mem::replace(&mut table, tables.only()?);
            Ok((table != before).then(Instant::now))
        })?;
        let visits = server.all().into_iter().rev().skip_while(|visit| visit.answer != Some(status));
        let decided = visits.take_while(|visit| visit.answer == Some(status)).last();
        delays.push(seen - decided.context("nobody was answered so")?.ended);
    }
    delays.sort();
    let (median, worst) = (delays[CHANGES / 2], delays[CHANGES - 1]);
    println!("from the deciding answer to the new Maglev table: median {median:?}, worst {worst:?}");
    assert!(worst < Duration::from_millis(500), "{delays:?}");
    Ok(())
}

/// The Maglev tables in the kernel, which `lb` never changes but exchanges.
struct Tables(ArrayOfMaps<MapData, MapData>);

impl Tables {
    fn open(balancer: &Host) -> Result<Self> {
        let pinned = balancer.enter(|| Ok(MapData::from_pin("/sys/fs/bpf/lb/maglev")?))?;
        Ok(Self(Map::from_map_data(pinned)?.try_into()?))
    }

    /// Kernel id of the only table.
    fn only(&self) -> Result<u32> {
        let mut tables = (0..self.0.len()).filter_map(|set| self.0.get(&set, 0).ok());
        Ok(tables.next().context("no table")?.info()?.id())
    }
}
