//! Faults of the network, in a network namespace of each test's own: rejecting and dropping firewalls, dead hosts,
//! missing routes.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use lb_userspace::config::{DnsTransport, Rcode};
use lb_userspace::health::{CheckResult, CheckSpec, CheckStatus, check};
use nix::sched::{CloneFlags, unshare};

use crate::servers;
use crate::specs::{LONG, SHORT, dns, http, hurried, run_into_deadline, tcp, udp};

/// Runs a test in a new network namespace, in which only loopback is up.
fn in_namespace<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let thread = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace: run as root");
        shell("ip link set lo up");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(test());
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn shell(line: &str) {
    let output = Command::new("sh").arg("-ec").arg(line).output().expect("a shell");
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Lets nobody in on port 81, in the way that `verdict` says.
fn firewall(verdict: &str) {
    shell(&format!(
        "nft -f - <<'E'
        table inet firewall {{
            chain input {{
                type filter hook input priority 0;
                meta l4proto {{ tcp, udp }} th dport 81 {verdict}
            }}
        }}
E"
    ));
}

/// A link to a segment on which nobody answers: this host is .1, and .9 has a neighbour entry all the same.
fn dead_segment() {
    shell(
        "ip link add dead0 type veth peer name dead1; ip link set dead0 up; ip link set dead1 up
         ip address add 10.99.0.1/24 dev dead0; ip address add fd99::1/64 dev dead0 nodad
         ip route add 10.98.0.0/24 via 10.99.0.3
         ip neigh add 10.99.0.9 lladdr 02:00:00:00:00:09 dev dead0 nud permanent",
    );
}

fn at(address: &str) -> SocketAddr {
    address.parse().expect("an address and a port")
}

/// The same target, asked in every protocol.
fn every_protocol(target: SocketAddr) -> [CheckSpec; 5] {
    let noerror = &[Rcode::NoError];
    [
        tcp(target, b"", b""),
        http(target),
        udp(target, b"PING", b"PONG"),
        dns(target, DnsTransport::Udp, noerror),
        dns(target, DnsTransport::Tcp, noerror),
    ]
}

/// Asserts a failed connection with its errno.
fn assert_connect_failed(result: &CheckResult, errno: &str, spec: &CheckSpec) {
    let outcome = &result.outcome;
    let found = (outcome.status, outcome.errno.as_deref());
    assert_eq!(found, (CheckStatus::ConnectFailed, Some(errno)), "{spec:?}: {result:?}");
    let datagrams = matches!(outcome.syscall.as_deref(), Some("send" | "recv"));
    assert!(datagrams || outcome.syscall.as_deref() == Some("connect"), "{result:?}");
}

#[test]
fn t1_a_firewall_that_rejects_is_host_unreachable_at_once() {
    for verdict in ["host-prohibited", "admin-prohibited", "host-unreachable"] {
        in_namespace(async move || {
            firewall(&format!("reject with icmp type {verdict}"));
            for spec in every_protocol(at("127.0.0.1:81")) {
                let result = check::run(&spec).await;
                assert_connect_failed(&result, "EHOSTUNREACH", &spec);
                assert!(result.latency_ms < Some(LONG.as_secs_f64() * 500.0), "{verdict}: {result:?}");
            }
        });
    }
}

#[test]
fn t1_over_ipv6_admin_prohibited_is_permission_denied() {
    in_namespace(async || {
        firewall("reject with icmpv6 type admin-prohibited");
        let spec = tcp(at("[::1]:81"), b"", b"");
        assert_connect_failed(&check::run(&spec).await, "EACCES", &spec);
    });
}

#[test]
fn t2_nothing_listening_is_connection_refused() {
    in_namespace(async || {
        for spec in every_protocol(at("127.0.0.1:81")) {
            assert_connect_failed(&check::run(&spec).await, "ECONNREFUSED", &spec);
        }
    });
}

#[test]
fn t3_a_dead_host_is_host_unreachable_even_if_the_timeout_strikes_first() {
    in_namespace(async || {
        dead_segment();
        for target in ["10.99.0.2:80", "[fd99::2]:80", "10.98.0.2:80"] {
            for spec in every_protocol(at(target)).map(hurried) {
                let result = check::run(&spec).await;
                assert_connect_failed(&result, "EHOSTUNREACH", &spec);
                assert!(result.source_ip_address.is_some(), "{result:?}");
            }
        }
        let silence_is_fine = hurried(udp(at("10.99.0.2:80"), b"PING", b""));
        assert_connect_failed(&check::run(&silence_is_fine).await, "EHOSTUNREACH", &silence_is_fine);
    });
}

#[test]
fn t3_with_time_enough_the_kernel_says_so_itself() {
    in_namespace(async || {
        dead_segment();
        let spec = tcp(at("10.99.0.2:80"), b"", b"");
        let result = check::run(&spec).await;
        assert_connect_failed(&result, "EHOSTUNREACH", &spec);
        assert!(result.latency_ms > Some(2_000.0), "{result:?}");
    });
}

#[test]
fn t4_a_firewall_that_drops_is_timed_out_and_the_source_is_known() {
    in_namespace(async || {
        firewall("drop");
        dead_segment();
        for target in ["127.0.0.1:81", "10.99.0.9:80"] {
            for spec in every_protocol(at(target)) {
                let result = run_into_deadline(spec).await;
                assert!(result.source_ip_address.is_some(), "{result:?}");
            }
        }
    });
}

#[test]
fn t5_no_route_is_network_unreachable() {
    in_namespace(async || {
        for target in ["192.0.2.1:80", "[2001:db8::1]:80"] {
            for spec in every_protocol(at(target)) {
                assert_connect_failed(&check::run(&spec).await, "ENETUNREACH", &spec);
            }
        }
    });
}

#[test]
fn t17_a_port_that_is_opened_is_ok_from_then_on() {
    in_namespace(async || {
        let server = servers::tcp_at("127.0.0.1:81", servers::say_nothing).await;
        firewall("drop");
        run_into_deadline(tcp(server.address, b"", b"")).await;
        shell("nft flush ruleset");
        let spec = CheckSpec { timeout: Duration::from_secs(5).max(SHORT), ..tcp(server.address, b"", b"") };
        assert_eq!(check::run(&spec).await.outcome.status, CheckStatus::Ok);
    });
}
