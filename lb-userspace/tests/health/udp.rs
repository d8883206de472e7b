//! UDP checks.

use lb_userspace::health::{CheckSpec, CheckStatus, check};
use serde_json::json;
use tokio::net::UdpSocket;

use crate::servers::{self, closed_udp_port, eventually};
use crate::specs::{assert_has, hurried, run, run_into_deadline, udp};

#[tokio::test]
async fn h8_a_matching_reply_is_ok_and_one_datagram_is_sent_for_each_check() {
    let server = servers::udp(|_| vec![b"PONG and more".into()]).await;
    for checks in 1..=3 {
        let (status, result) = run(&udp(server.address, b"PING", b"PONG")).await;
        assert_eq!(status, CheckStatus::Ok, "{result}");
        assert_eq!(server.served(), checks);
    }
}

#[tokio::test]
async fn h8_a_different_reply_is_regex_mismatch() {
    for reply in ["PANG", "PON", ""] {
        let server = servers::udp(move |_| vec![reply.into()]).await;
        let (status, result) = run(&udp(server.address, b"PING", b"PONG")).await;
        assert_eq!(status, CheckStatus::RegexMismatch, "{reply}: {result}");
        assert_has(&result, json!({"msg": "response match result: failed"}));
    }
}

#[tokio::test]
async fn h8_no_reply_is_timed_out_after_a_single_datagram() {
    let server = servers::udp(|_| vec![]).await;
    run_into_deadline(udp(server.address, b"PING", b"PONG")).await;
    eventually("the datagram arrives", || server.served() > 0).await;
    assert_eq!(server.served(), 1);
}

#[tokio::test]
async fn h8_a_closed_udp_port_is_connection_refused() {
    let closed = closed_udp_port();
    for response in [&b"PONG"[..], b""] {
        let (status, result) = run(&udp(closed.address, b"PING", response)).await;
        assert_eq!(status, CheckStatus::ConnectFailed, "{result}");
        assert_has(&result, json!({"errno": "ECONNREFUSED"}));
    }
}

#[tokio::test]
async fn without_an_expected_reply_any_reply_is_ok_and_so_is_silence() {
    let server = servers::udp(|_| vec![b"anything".into()]).await;
    assert_eq!(run(&udp(server.address, b"PING", b"")).await.0, CheckStatus::Ok);

    let silent = servers::udp(|_| vec![]).await;
    let result = check::run(&hurried(udp(silent.address, b"PING", b""))).await;
    assert_eq!(result.outcome.status, CheckStatus::Ok, "{result:?}");
}

#[tokio::test]
async fn a_reply_from_elsewhere_is_not_heard() {
    let asked = UdpSocket::bind("127.0.0.1:0").await.expect("a port on loopback");
    let other = UdpSocket::bind("127.0.0.1:0").await.expect("a port on loopback");
    let target = asked.local_addr().expect("bound");
    let answering = tokio::spawn(async move {
        let (_, peer) = asked.recv_from(&mut [0; 64]).await.expect("the datagram of the check");
        other.send_to(b"PONG", peer).await.expect("loopback takes it");
        asked
    });
    run_into_deadline(udp(target, b"PING", b"PONG")).await;
    answering.await.expect("it has answered");
}

#[tokio::test]
async fn ipv6_and_a_source_address_work_as_well() {
    let server = servers::udp_at("[::1]:0", |_| vec![b"PONG".into()]).await;
    let (status, result) = run(&udp(server.address, b"PING", b"PONG")).await;
    assert_eq!(status, CheckStatus::Ok, "{result}");
    assert_has(&result, json!({"sourceIpAddress": "::1"}));

    let server = servers::udp(|_| vec![b"PONG".into()]).await;
    let source_address = "127.0.0.78".parse().ok();
    let (status, result) = run(&CheckSpec { source_address, ..udp(server.address, b"PING", b"PONG") }).await;
    assert_eq!(status, CheckStatus::Ok, "{result}");
    assert_has(&result, json!({"sourceIpAddress": "127.0.0.78"}));
}
