//! From faults to findings, and from findings to lines that a person can try.

use std::net::{IpAddr, SocketAddr};
use std::process::Output;

use jiff::Timestamp;
use lb_userspace::config::{
    Backend, BackendSet, CheckKind, CheckProtocol, DnsTransport, HealthCheck, Listener, MinHealthy, Mode,
    NoBackendAction, OnUnhealthy, OnUntrackedTcp, Policy, PortRange, Protocol, Rcode, Snat, TlsCheck,
};
use lb_userspace::health::diagnose::{
    BackendView, Finding, Hint, ListenerView, Passive, SetView, Stray, commands, diagnose,
};
use lb_userspace::health::{CheckResult, CheckSpec, CheckStatus, Level, Outcome, check};
use tokio::process::Command;

use crate::servers::{self, answer, closed_tcp_port};
use crate::specs::{self, dns, http, https, tcp, udp, with_http};

/// A set whose backends are checked as `spec` says.
fn set(addresses: &[&str], port: u16, spec: &CheckSpec) -> BackendSet {
    let backend = |address: &&str| Backend {
        name: format!("{address}:{port}"),
        address: address.parse().expect("an address"),
        port,
        weight: 1,
        backup: false,
        drain: false,
        offline: false,
    };
    BackendSet {
        policy: Policy::FiveTuple,
        mode: Mode::Nat,
        snat: Snat::Always,
        on_unhealthy: OnUnhealthy::Keep,
        on_unhealthy_udp: OnUnhealthy::Move,
        fail_open: false,
        no_backend_action: NoBackendAction::Drop,
        min_healthy: MinHealthy::Half,
        preempt: true,
        drain_timeout_s: 300,
        backends: addresses.iter().map(backend).collect(),
        health_check: HealthCheck {
            protocol: spec.protocol,
            port: 0,
            interval_ms: 10_000,
            timeout_ms: 3_000,
            retries: 3,
            rise: 3,
            fall: 3,
            source_address: spec.source_address,
            kind: spec.kind.clone(),
        },
    }
}

fn listener() -> Listener {
    Listener {
        name: "web".into(),
        address: IpAddr::from([10, 0, 1, 100]),
        protocol: Protocol::Tcp,
        ports: PortRange { first: 80, last: 80 },
        backend_set: "web".into(),
        tcp_idle_timeout_s: 360,
        udp_idle_timeout_s: 120,
        tcp_reset_on_idle: false,
        on_untracked_tcp: OnUntrackedTcp::Pickup,
        allow_sources: vec![],
        deny_sources: vec![],
        max_new_flows_per_s: 0,
    }
}

const ADDRESSES: [&str; 4] = ["10.0.1.10", "10.0.1.11", "10.0.1.12", "10.0.1.13"];

fn target() -> SocketAddr {
    ([10, 0, 1, 10], 8080).into()
}

fn good() -> Outcome {
    Outcome::new(CheckStatus::Ok)
}

fn connect_failed(errno: &str) -> Outcome {
    let (errno, syscall) = (Some(errno.into()), Some("connect".into()));
    Outcome { errno, syscall, ..Outcome::new(CheckStatus::ConnectFailed) }
}

fn dropped() -> Outcome {
    let msg = Some("no connection within 3000 ms".into());
    Outcome { msg, syscall: Some("connect".into()), ..Outcome::new(CheckStatus::TimedOut) }
}

fn status_code(code: u16) -> Outcome {
    Outcome {
        msg: Some("invalid statusCode".into()),
        status_code: Some(code),
        expected: Some("200".into()),
        ..Outcome::new(CheckStatus::InvalidStatusCode)
    }
}

fn eproto() -> Outcome {
    let error = Some("EPROTO".to_owned());
    Outcome { code: error.clone(), errno: error, ..Outcome::new(CheckStatus::IoError) }
}

/// What is found when the backends have these outcomes, one for each, and this traffic.
fn findings(
    spec: &CheckSpec,
    outcomes: &[Outcome],
    passive: Passive,
    listeners: &[ListenerView<'_>],
) -> Vec<Finding> {
    let set = set(&ADDRESSES[..outcomes.len()], 8080, spec);
    let source = "10.0.1.2".parse().ok();
    let result = |outcome: &Outcome| CheckResult {
        source_ip_address: source,
        ..CheckResult {
            outcome: outcome.clone(),
            ..CheckResult::not_made(CheckStatus::Ok, Timestamp::UNIX_EPOCH)
        }
    };
    let results: Vec<CheckResult> = outcomes.iter().map(result).collect();
    let view = |(backend, result): (_, &'_ CheckResult)| -> (_, Level) {
        (backend, if result.outcome.verdict() == Some(true) { Level::Ok } else { Level::Critical })
    };
    let backends: Vec<BackendView<'_>> = set
        .backends
        .iter()
        .zip(&results)
        .map(|pair| {
            let (backend, level) = view(pair);
            BackendView { backend, level, counted: true, result: pair.1, passive }
        })
        .collect();
    diagnose(&SetView { name: "web", set: &set, backends: &backends, listeners })
}

/// The same with a listener that has traffic and backends that answer it.
fn findings_of_checks(spec: &CheckSpec, outcomes: &[Outcome]) -> Vec<Finding> {
    let listener = listener();
    let busy = ListenerView { listener: &listener, new_flows: 1000, drops: &[], strays: &[] };
    findings(spec, outcomes, Passive::default(), &[busy])
}

fn hints(findings: &[Finding]) -> Vec<Hint> {
    findings.iter().map(|finding| finding.hint).collect()
}

fn everything(finding: &Finding) -> String {
    [vec![finding.text.clone()], finding.advice.clone(), finding.commands.clone()].concat().join("\n")
}

#[test]
fn nothing_wrong_is_no_finding() {
    assert_eq!(findings_of_checks(&http(target()), &[good(), good()]), []);
}

#[test]
fn t1_to_t12_every_fault_has_its_hint_and_its_advice() {
    let http = http(target());
    let https = https(target(), TlsCheck::default());
    let mismatch = Outcome {
        msg: Some("response match result: failed".into()),
        ..Outcome::new(CheckStatus::RegexMismatch)
    };
    let cases = [
        (
            &http,
            connect_failed("EHOSTUNREACH"),
            Hint::Unreachable,
            "firewall-cmd --zone=public --add-port=8080/tcp",
        ),
        (&http, connect_failed("ECONNREFUSED"), Hint::Refused, "nothing listens on port 8080"),
        (&http, dropped(), Hint::Dropped, "allow tcp port 8080 from 10.0.1.2"),
        (&http, connect_failed("ENETUNREACH"), Hint::NoRoute, "ip route get 10.0.1.10"),
        (&http, status_code(404), Hint::StatusCode, "is path right"),
        (&http, status_code(302), Hint::StatusCode, "return_code = \"302\""),
        (&http, status_code(403), Hint::StatusCode, "credentials"),
        (&http, status_code(503), Hint::StatusCode, "its log"),
        (&https, eproto(), Hint::WrongProtocol, "protocol = \"http\""),
        (&http, eproto(), Hint::WrongProtocol, "protocol = \"https\", or \"tcp\""),
        (&http, mismatch, Hint::Mismatch, "response_body_regex"),
    ];
    for (spec, outcome, hint, advice) in cases {
        let found = findings_of_checks(spec, &[outcome.clone(), good()]);
        assert_eq!(hints(&found), [hint], "{outcome}");
        assert!(everything(&found[0]).contains(advice), "{advice:?} is not in {:#?}", found[0]);
        assert_eq!(found[0].backends, ["10.0.1.10:8080"]);
        assert_eq!(found[0].outcome.as_ref(), Some(&outcome));
        assert!(!found[0].commands.is_empty());
    }
}

#[test]
fn t19_all_backends_same_reason_is_probably_the_check() {
    let found = findings_of_checks(&http(target()), &[status_code(404), status_code(404), status_code(404)]);
    assert_eq!(hints(&found), [Hint::CheckProbablyWrong, Hint::StatusCode]);
    assert_eq!(found[0].text, "all 3 backends, same reason: probably the health check, not the servers");
    assert_eq!(found[1].backends.len(), 3);

    let different =
        findings_of_checks(&http(target()), &[status_code(404), status_code(500), status_code(404)]);
    assert_eq!(hints(&different), [Hint::StatusCode, Hint::StatusCode]);
    let some = findings_of_checks(&http(target()), &[status_code(404), status_code(404), good()]);
    assert_eq!(hints(&some), [Hint::StatusCode]);
    let one = findings_of_checks(&http(target()), &[status_code(404)]);
    assert_eq!(hints(&one), [Hint::StatusCode], "one backend is no pattern");
}

#[test]
fn t16_a_firewall_on_some_backends_names_only_those() {
    let found = findings_of_checks(&http(target()), &[good(), dropped(), good(), dropped()]);
    assert_eq!(hints(&found), [Hint::Dropped]);
    assert_eq!(found[0].backends, ["10.0.1.11:8080", "10.0.1.13:8080"]);
}

#[test]
fn t20_all_well_but_no_traffic_points_to_the_listener_and_what_arrived_instead() {
    let listener = listener();
    let strays = [Stray { protocol: "tcp", port: 8080, packets: 12 }];
    let idle =
        ListenerView { listener: &listener, new_flows: 0, drops: &[("malformed", 3)], strays: &strays };
    let found = findings(&http(target()), &[good(), good()], Passive::default(), &[idle]);
    assert_eq!(hints(&found), [Hint::NoTraffic]);
    assert_eq!(found[0].text, "all backends OK, no traffic: look at listener web (10.0.1.100 tcp 80)");
    for part in ["12 packets to tcp port 8080", "3 packets, malformed", "nc -zvw3 10.0.1.100 80"] {
        assert!(everything(&found[0]).contains(part), "{part:?} is not in {:#?}", found[0]);
    }
    let ill = findings(&http(target()), &[good(), dropped()], Passive::default(), &[idle]);
    assert_eq!(hints(&ill), [Hint::Dropped], "first things first");
}

#[test]
fn t21_checks_pass_but_syns_go_unanswered() {
    let listener = listener();
    let busy = [ListenerView { listener: &listener, new_flows: 100, drops: &[], strays: &[] }];
    let passive = Passive { new_flows: 50, unanswered: 48, refused: 0 };
    let found = findings(&http(target()), &[good(), good()], passive, &busy);
    assert_eq!(hints(&found), [Hint::TrafficUnanswered]);
    assert!(found[0].text.starts_with("checks pass, but 96 of 100 flows got no answer"), "{}", found[0].text);

    let refused = Passive { new_flows: 50, unanswered: 0, refused: 50 };
    assert_eq!(hints(&findings(&http(target()), &[good()], refused, &busy)), [Hint::TrafficRefused]);
    let few = Passive { new_flows: 1000, unanswered: 30, refused: 30 };
    assert_eq!(findings(&http(target()), &[good()], few, &busy), [], "now and then a SYN is lost");

    let four_each = Passive { new_flows: 4, unanswered: 4, refused: 0 };
    let found = findings(&http(target()), &[good(), good()], four_each, &busy);
    assert_eq!(hints(&found), [Hint::TrafficUnanswered], "8 of 8 are enough, however they are spread");
    assert_eq!(findings(&http(target()), &[good()], four_each, &busy), [], "4 may be an accident");
}

#[test]
fn t22_a_rule_against_the_checks_shows_the_address_to_allow() {
    let found = findings_of_checks(&http(target()), &[dropped(), dropped()]);
    assert_eq!(hints(&found), [Hint::CheckProbablyWrong, Hint::Dropped]);
    assert!(everything(&found[1]).contains("from 10.0.1.2"), "{:#?}", found[1]);
}

#[test]
fn a_set_without_listener_or_results_says_so() {
    let found = findings(&http(target()), &[good()], Passive::default(), &[]);
    assert_eq!(hints(&found), [Hint::NoListener]);
    let pending = findings_of_checks(&http(target()), &[Outcome::new(CheckStatus::Unknown)]);
    assert_eq!(hints(&pending), [Hint::NotChecked]);
    assert_eq!(pending[0].text, "no result yet");
}

#[test]
fn a_finding_is_data() {
    let found = findings_of_checks(&http(target()), &[status_code(404), good()]);
    let value = serde_json::to_value(&found[0]).expect("serialises");
    assert_eq!(value["hint"], "status_code");
    assert_eq!(value["level"], "CRITICAL");
    assert_eq!(value["statusCode"], 404);
    assert_eq!(value["try"][0], "curl -i --max-time 3 http://10.0.1.10:8080/");
    assert_eq!(serde_json::from_value::<Finding>(value).expect("reads back"), found[0]);
}

#[test]
fn the_lines_are_those_people_know() {
    let seed = SocketAddr::from(([10, 0, 0, 5], 443));
    let timeout = std::time::Duration::from_secs(3);
    let line = |spec: CheckSpec| commands(&CheckSpec { timeout, ..spec }).remove(0);
    assert_eq!(line(tcp(seed, b"", b"")), "nc -zvw3 10.0.0.5 443");
    assert_eq!(
        line(tcp(seed, b"PING\r\n'%\x00", b"x")),
        r"printf 'PING\r\n'\''%%\000' | nc -w3 10.0.0.5 443"
    );
    assert_eq!(line(udp(seed, b"PING", b"")), "printf 'PING' | nc -u -w3 10.0.0.5 443");
    let web = with_http(http(([10, 0, 0, 5], 80).into()), |check| {
        check.path = "/health?a=b".into();
        check.host = "shop.example".into();
    });
    assert_eq!(
        line(web.clone()),
        "curl -i --max-time 3 -H 'Host: shop.example' 'http://10.0.0.5:80/health?a=b'"
    );
    let from = CheckSpec { source_address: "10.0.0.2".parse().ok(), ..http(seed) };
    assert_eq!(line(from), "curl -i --max-time 3 --interface 10.0.0.2 http://10.0.0.5:443/");
    let tls = TlsCheck { tls_server_name: "shop.example".into(), ..TlsCheck::default() };
    assert_eq!(
        line(https(seed, tls)),
        "curl -i --max-time 3 -H 'Host: 10.0.0.5:443' -k --resolve shop.example:443:10.0.0.5 https://shop.example:443/"
    );
    assert_eq!(
        line(dns(([10, 0, 0, 53], 53).into(), DnsTransport::Tcp, &[Rcode::NoError])),
        "dig +time=3 +tries=1 +noedns +tcp @10.0.0.53 -p 53 -c IN -t A example.org."
    );
}

/// Runs a line as a person would.
async fn by_hand(line: &str) -> Output {
    let output = Command::new("bash").arg("-c").arg(line).env("LC_ALL", "C").output().await.expect("bash");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!errors.contains("not found"), "`cargo xtask setup` installs curl, nc and dig: {errors}");
    output
}

fn printed(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test]
async fn t18_curl_shows_the_status_that_the_check_judges() {
    for status in ["200 OK", "302 Found", "404 Not Found", "503 Service Unavailable"] {
        let response = format!(
            "HTTP/1.1 {status}\r\nContent-Length: 0\r\nLocation: /login\r\nConnection: close\r\n\r\n"
        );
        let server = servers::tcp(move |stream| answer(stream, response.clone())).await;
        let spec = http(server.address);
        let (verdict, result) = specs::run(&spec).await;
        let output = by_hand(&commands(&spec)[0]).await;
        let shown = printed(&output);
        assert!(shown.starts_with(&format!("HTTP/1.1 {status}")), "{shown}");
        let expected =
            if status.starts_with("200") { CheckStatus::Ok } else { CheckStatus::InvalidStatusCode };
        assert_eq!(verdict, expected, "{result}");
    }
}

#[tokio::test]
async fn t18_grep_matches_where_the_check_does() {
    let oracle = r"^((?!false).|\s)*$";
    for (body, pattern) in [
        ("Estado:Error:", "Estado:Correcto:.*"),
        ("Estado:Correcto: v1\n", "Estado:Correcto:.*"),
        ("status true", oracle),
        ("status false", oracle),
        ("it's", "it's$"),
    ] {
        let response =
            format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
        let server = servers::tcp(move |stream| answer(stream, response.clone())).await;
        let spec = with_http(http(server.address), |check| check.response_body_regex = pattern.into());
        let good = specs::run(&spec).await.0 == CheckStatus::Ok;
        let line = &commands(&spec)[1];
        assert_eq!(by_hand(line).await.status.success(), good, "{line} on {body:?}");
    }
}

#[tokio::test]
async fn t18_nc_connects_where_the_check_does() {
    let server = servers::tcp(servers::say_nothing).await;
    let closed = closed_tcp_port();
    for (address, connects) in [(server.address, true), (closed.address, false)] {
        let spec = tcp(address, b"", b"");
        assert_eq!(specs::run(&spec).await.0 == CheckStatus::Ok, connects);
        assert_eq!(by_hand(&commands(&spec)[0]).await.status.success(), connects);
    }
    let ping = servers::tcp(|stream| answer(stream, "PONG")).await;
    let spec = tcp(ping.address, b"PING%\r\n", b"PONG");
    assert_eq!(specs::run(&spec).await.0, CheckStatus::Ok);
    assert_eq!(printed(&by_hand(&commands(&spec)[0]).await), "PONG");
}

#[tokio::test]
async fn t18_dig_shows_the_response_code_that_the_check_judges() {
    for (rcode, number) in [(Rcode::NoError, 0), (Rcode::NxDomain, 3), (Rcode::Refused, 5)] {
        let server = servers::udp(move |query| {
            let mut answer = query.to_vec();
            answer[2] |= 0x80;
            answer[3] = number;
            vec![answer]
        })
        .await;
        let spec = dns(server.address, DnsTransport::Udp, &[rcode]);
        assert_eq!(specs::run(&spec).await.0, CheckStatus::Ok);
        let shown = printed(&by_hand(&commands(&spec)[0]).await);
        assert!(shown.contains(&format!("status: {}", rcode.word())), "{shown}");
    }
}

#[tokio::test]
async fn t18_curl_fails_where_the_protocol_is_wrong() {
    let server = servers::tcp(|stream| answer(stream, "SSH-2.0-OpenSSH_9.2\r\n")).await;
    for spec in [http(server.address), https(server.address, TlsCheck::default())] {
        let result = check::run(&spec).await;
        assert_eq!(result.outcome.errno.as_deref(), Some("EPROTO"), "{result:?}");
        let CheckKind::Http(_) = spec.kind else { panic!("{spec:?}") };
        let line = &commands(&spec)[0];
        assert!(!by_hand(line).await.status.success(), "{line}");
    }
    assert_eq!(https(server.address, TlsCheck::default()).protocol, CheckProtocol::Https);
}
