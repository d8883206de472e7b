//! TCP checks.

use std::future::pending;
use std::sync::Arc;

use lb_userspace::health::check::{Check, Neighbours, Shared};
use lb_userspace::health::{CheckSpec, CheckStatus, check};
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;

use crate::servers::{self, answer, closed_tcp_port, read_some, reset, trickle, until_closed};
use crate::specs::{assert_has, hurried, run, run_into_deadline, tcp};

#[tokio::test]
async fn h4_a_connection_is_enough_and_nothing_is_sent() {
    let (sender, mut received) = mpsc::unbounded_channel();
    let server = servers::tcp(move |mut stream| {
        let sender = sender.clone();
        async move {
            let _ = sender.send(until_closed(&mut stream).await?);
            Ok(())
        }
    })
    .await;
    let (status, result) = run(&tcp(server.address, b"", b"")).await;
    assert_eq!(status, CheckStatus::Ok, "{result}");
    assert_eq!(received.recv().await.expect("a connection that was closed in order"), b"");
    assert_eq!(server.served(), 1);
}

#[tokio::test]
async fn h5_the_right_answer_is_ok() {
    let server = servers::tcp(|stream| answer(stream, "PONG and more")).await;
    let (status, result) = run(&tcp(server.address, b"PING", b"PONG")).await;
    assert_eq!(status, CheckStatus::Ok, "{result}");
}

#[tokio::test]
async fn h5_an_answer_may_come_in_pieces_and_a_banner_without_a_request() {
    let server = servers::tcp(|mut stream| async move {
        stream.set_nodelay(true)?;
        for piece in ["22", "0 ", "ready"] {
            stream.write_all(piece.as_bytes()).await?;
            tokio::task::yield_now().await;
        }
        until_closed(&mut stream).await.map(drop)
    })
    .await;
    let (status, result) = run(&tcp(server.address, b"", b"220 ready")).await;
    assert_eq!(status, CheckStatus::Ok, "{result}");
}

#[tokio::test]
async fn h5_a_request_without_an_expected_answer_is_sent_and_that_is_all() {
    let (sender, mut received) = mpsc::unbounded_channel();
    let server = servers::tcp(move |mut stream| {
        let sender = sender.clone();
        async move {
            let _ = sender.send(until_closed(&mut stream).await?);
            Ok(())
        }
    })
    .await;
    let (status, _) = run(&tcp(server.address, b"PING", b"")).await;
    assert_eq!(status, CheckStatus::Ok);
    assert_eq!(received.recv().await.expect("a connection"), b"PING");
}

#[tokio::test]
async fn h5_a_wrong_answer_is_regex_mismatch() {
    // The second one differs in its first byte and then says nothing more: no reason to wait for the rest.
    for wrong in ["PANG", "x"] {
        let server = servers::tcp(move |mut stream| async move {
            stream.write_all(wrong.as_bytes()).await?;
            pending().await
        })
        .await;
        let (status, result) = run(&tcp(server.address, b"PING", b"PONG")).await;
        assert_eq!(status, CheckStatus::RegexMismatch, "{result}");
        assert_has(&result, json!({"msg": "response match result: failed"}));
    }
}

#[tokio::test]
async fn h5_a_silent_peer_is_timed_out() {
    let server = servers::tcp(servers::say_nothing).await;
    let result = run_into_deadline(tcp(server.address, b"PING", b"PONG")).await;
    assert_eq!(result.outcome.to_string(), "TIMED_OUT: no complete answer within 250 ms");
}

#[tokio::test]
async fn h5_a_peer_that_closes_early_is_io_error() {
    for beginning in ["", "PO"] {
        let server = servers::tcp(move |stream| answer(stream, beginning)).await;
        let (status, result) = run(&tcp(server.address, b"PING", b"PONG")).await;
        assert_eq!(status, CheckStatus::IoError, "{result}");
        assert_has(&result, json!({"msg": "connection closed before the whole answer"}));
    }
}

#[tokio::test]
async fn a_peer_that_resets_is_io_error_with_its_errno() {
    let server = servers::tcp(|mut stream| async move {
        read_some(&mut stream).await?;
        reset(stream)
    })
    .await;
    let (status, result) = run(&tcp(server.address, b"PING", b"PONG")).await;
    assert_eq!(status, CheckStatus::IoError, "{result}");
    assert_has(&result, json!({"errno": "ECONNRESET", "syscall": "read"}));
}

#[tokio::test]
async fn a_server_that_trickles_cannot_outlast_the_deadline() {
    let server = servers::tcp(|mut stream| async move { trickle(&mut stream, b"A").await }).await;
    run_into_deadline(tcp(server.address, b"PING", &[b'A'; 1024])).await;
}

#[tokio::test]
async fn t2_a_closed_tcp_port_is_connection_refused() {
    let closed = closed_tcp_port();
    let (status, result) = run(&tcp(closed.address, b"", b"")).await;
    assert_eq!(status, CheckStatus::ConnectFailed);
    assert_has(&result, json!({"errno": "ECONNREFUSED", "syscall": "connect"}));
}

struct AlwaysUnresolved;

impl Neighbours for AlwaysUnresolved {
    fn unresolved(&self, _: std::net::IpAddr) -> bool {
        true
    }
}

#[tokio::test]
async fn t3_a_timeout_behind_an_unresolved_neighbour_is_host_unreachable() {
    let server = servers::tcp(servers::say_nothing).await;
    let mut shared = Shared::new(Arc::new(AlwaysUnresolved));
    let silent = Check::new(hurried(tcp(server.address, b"PING", b"PONG")), &mut shared);
    let result = silent.run().await;
    assert_eq!(result.outcome.to_string(), "CONNECT_FAILED: EHOSTUNREACH in connect");
    assert!(result.source_ip_address.is_some(), "the address to allow is known all the same");

    let good = Check::new(tcp(server.address, b"", b""), &mut shared);
    assert_eq!(good.run().await.outcome.status, CheckStatus::Ok, "the table is asked about timeouts only");
}

#[tokio::test]
async fn l9_the_source_address_is_the_one_the_backend_sees() {
    let (sender, mut peers) = mpsc::unbounded_channel();
    let server = servers::tcp(move |stream| {
        let _ = sender.send(stream.peer_addr().map(|peer| peer.ip()));
        async { Ok(()) }
    })
    .await;
    for source in [None, Some("127.0.0.77")] {
        let source_address = source.map(|source| source.parse().expect("an address"));
        let spec = CheckSpec { source_address, ..tcp(server.address, b"", b"") };
        let result = check::run(&spec).await;
        let seen = peers.recv().await.expect("a connection").expect("its peer");
        assert_eq!(result.source_ip_address, Some(seen));
        assert_eq!(seen.to_string(), source.unwrap_or("127.0.0.1"));
    }
}

#[tokio::test]
async fn a_source_address_of_another_host_is_connect_failed_at_bind() {
    let server = servers::tcp(|_| async { Ok(()) }).await;
    let elsewhere = "192.0.2.1".parse().ok();
    let (status, result) =
        run(&CheckSpec { source_address: elsewhere, ..tcp(server.address, b"", b"") }).await;
    assert_eq!(status, CheckStatus::ConnectFailed);
    assert_has(&result, json!({"errno": "EADDRNOTAVAIL", "syscall": "bind", "sourceIpAddress": "192.0.2.1"}));
}

#[tokio::test]
async fn ipv6_works_as_well() {
    let server = servers::tcp_at("[::1]:0", |stream| answer(stream, "PONG")).await;
    let (status, result) = run(&tcp(server.address, b"PING", b"PONG")).await;
    assert_eq!(status, CheckStatus::Ok, "{result}");
    assert_has(&result, json!({"sourceIpAddress": "::1"}));
}
