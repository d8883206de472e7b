//! HTTP checks.

use std::future::pending;
use std::io;
use std::process::Command;

use lb_userspace::config::{Method, StatusCodes};
use lb_userspace::health::{CheckResult, CheckSpec, CheckStatus, check};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::mpsc::{self, UnboundedReceiver};

use crate::servers::{self, Server, answer, closed_tcp_port, read_some, reset, trickle, until_closed};
use crate::specs::{SHORT, assert_has, http, run, run_into_deadline, tcp, with_http};

/// A whole response.
fn response(status: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nLocation: /elsewhere\r\nConnection: close\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// A server that answers everything so.
async fn serving(status: &'static str, body: impl AsRef<[u8]>) -> Server {
    let response = response(status, body);
    servers::tcp(move |stream| answer(stream, response.clone())).await
}

fn codes(text: &str, ranges: &[(u16, u16)]) -> StatusCodes {
    StatusCodes { text: text.into(), ranges: ranges.into() }
}

/// Checks `server` with a pattern for the body.
async fn run_regex(server: &Server, pattern: &str) -> CheckResult {
    check::run(&with_http(http(server.address), |check| check.response_body_regex = pattern.into())).await
}

#[tokio::test]
async fn h6_the_request_is_what_is_configured() {
    let (server, mut requests) = recording().await;
    let spec = with_http(http(server.address), |check| {
        check.path = "/health?deep=1".into();
        check.host = "shop.example".into();
    });
    assert_eq!(run(&spec).await.0, CheckStatus::Ok);
    let request = requests.recv().await.expect("a request");
    assert!(request.starts_with("GET /health?deep=1 HTTP/1.1\r\n"), "{request}");
    let headers = request.to_ascii_lowercase();
    assert!(headers.contains("\r\nhost: shop.example\r\n"), "{request}");
    assert!(headers.contains("\r\nconnection: close\r\n"), "{request}");
    assert_eq!(headers.matches("\r\nhost:").count(), 1, "{request}");
}

#[tokio::test]
async fn h6_host_is_address_and_port_by_default_and_head_is_head() {
    let (server, mut requests) = recording().await;
    let spec = with_http(http(server.address), |check| check.method = Method::Head);
    assert_eq!(run(&spec).await.0, CheckStatus::Ok);
    let request = requests.recv().await.expect("a request");
    assert!(request.starts_with("HEAD / HTTP/1.1\r\n"), "{request}");
    assert!(request.to_ascii_lowercase().contains(&format!("\r\nhost: {}\r\n", server.address)), "{request}");
}

/// A server that passes its requests on.
async fn recording() -> (Server, UnboundedReceiver<String>) {
    let (sender, requests) = mpsc::unbounded_channel();
    let server = servers::tcp(move |mut stream| {
        let sender = sender.clone();
        async move {
            let _ = sender.send(String::from_utf8_lossy(&read_some(&mut stream).await?).into_owned());
            stream.write_all(&response("200 OK", "")).await?;
            until_closed(&mut stream).await.map(drop)
        }
    })
    .await;
    (server, requests)
}

#[tokio::test]
async fn h6_status_and_body_must_both_be_right() {
    let good = serving("200 OK", "Estado:Correcto: v1\n").await;
    assert_eq!(run_regex(&good, "Estado:Correcto:.*").await.outcome.status, CheckStatus::Ok);
    let wrong_body = serving("200 OK", "Estado:Error:").await;
    assert_eq!(run_regex(&wrong_body, "Estado:Correcto:.*").await.outcome.status, CheckStatus::RegexMismatch);
    let wrong_status = serving("503 Service Unavailable", "Estado:Correcto:").await;
    let result = run_regex(&wrong_status, "Estado:Correcto:.*").await;
    assert_eq!(result.outcome.status, CheckStatus::InvalidStatusCode, "the status is judged first");
}

#[tokio::test]
async fn h13_h14_a_tcp_check_hides_what_an_http_check_shows() {
    for status in ["500 Internal Server Error", "403 Forbidden", "404 Not Found"] {
        let server = serving(status, "").await;
        assert_eq!(run(&tcp(server.address, b"", b"")).await.0, CheckStatus::Ok);
        let (verdict, result) = run(&http(server.address)).await;
        assert_eq!(verdict, CheckStatus::InvalidStatusCode);
        let code: u16 = status[..3].parse().expect("a status code");
        assert_has(&result, json!({"statusCode": code, "expected": "200"}));
    }
}

#[tokio::test]
async fn t6_t7_t8_any_other_status_is_named() {
    for (status, code) in
        [("404 Not Found", 404), ("302 Found", 302), ("500 x", 500), ("503 x", 503), ("401 x", 401)]
    {
        let server = serving(status, "").await;
        let (verdict, result) = run(&http(server.address)).await;
        assert_eq!(verdict, CheckStatus::InvalidStatusCode);
        assert_has(&result, json!({"msg": "invalid statusCode", "statusCode": code, "expected": "200"}));
        assert_eq!(server.served(), 1, "a redirect is not followed, nothing is tried twice");
    }
}

#[tokio::test]
async fn t7_a_redirect_may_be_the_expected_answer() {
    let server = serving("302 Found", "").await;
    for accepted in [
        codes("302", &[(302, 302)]),
        codes("200,302", &[(200, 200), (302, 302)]),
        codes("200-399", &[(200, 399)]),
    ] {
        let spec = with_http(http(server.address), |check| check.return_code = accepted.clone());
        assert_eq!(run(&spec).await.0, CheckStatus::Ok, "{}", accepted.text);
    }
    let spec = with_http(http(server.address), |check| check.return_code = codes("200-299", &[(200, 299)]));
    assert_has(&run(&spec).await.1, json!({"statusCode": 302, "expected": "200-299"}));
}

#[tokio::test]
async fn t10_an_http_check_on_a_port_that_speaks_something_else_is_eproto() {
    let tls_alert = servers::tcp(|stream| answer(stream, b"\x15\x03\x03\x00\x02\x02\x46")).await;
    let other_bytes = servers::tcp(|stream| answer(stream, b"SSH-2.0-OpenSSH_9.2\r\n")).await;
    let hangs_up = servers::tcp(|stream| answer(stream, b"")).await;
    // What OpenSSL does: it reads five bytes, sees that they are no TLS and closes with the rest unread.
    let resets = servers::tcp(|mut stream| async move {
        read_some(&mut stream).await?;
        reset(stream)
    })
    .await;
    let stops_in_the_head = servers::tcp(|stream| answer(stream, b"HTTP/1.1 200 OK\r\nContent-")).await;
    for server in [tls_alert, other_bytes, hangs_up, resets, stops_in_the_head] {
        let (verdict, result) = run(&http(server.address)).await;
        assert_eq!(verdict, CheckStatus::IoError, "{result}");
        assert_has(&result, json!({"code": "EPROTO", "errno": "EPROTO"}));
        assert_eq!(server.served(), 1);
    }
}

#[tokio::test]
async fn t10_a_tls_port_that_answers_in_http_is_an_invalid_status_code() {
    let server = serving("400 The plain HTTP request was sent to HTTPS port", "").await;
    let (verdict, result) = run(&http(server.address)).await;
    assert_eq!(verdict, CheckStatus::InvalidStatusCode);
    assert_has(&result, json!({"statusCode": 400}));
}

#[tokio::test]
async fn t12_t14_t15_patterns_are_searched_and_may_look_around() {
    let oracle = r"^((?!false).|\s)*$";
    let cases = [
        ("Estado:Error:", "Estado:Correcto:.*", false),
        ("Estado:Correcto: v1\n", "Estado:Correcto:.*", true),
        ("<b>Estado:Correcto:</b>", "Estado:Correcto:", true),
        ("status true", oracle, true),
        ("status false", oracle, false),
        ("", "^$", true),
        ("", "x", false),
    ];
    for (body, pattern, matches) in cases {
        let server = serving("200 OK", body).await;
        let result = run_regex(&server, pattern).await;
        let expected = if matches { CheckStatus::Ok } else { CheckStatus::RegexMismatch };
        assert_eq!(result.outcome.status, expected, "{pattern} on {body:?}: {result:?}");
        if !matches {
            assert_eq!(result.outcome.msg.as_deref(), Some("response match result: failed"));
        }
    }
}

#[tokio::test]
async fn t13_dot_star_takes_any_body() {
    let bodies: [&[u8]; 4] = [b"", b"one\ntwo\n", b"\xff\xfe\x00\x80binary", &[b'x'; 200_000]];
    for body in bodies {
        let server = serving("200 OK", body).await;
        assert_eq!(run_regex(&server, ".*").await.outcome.status, CheckStatus::Ok);
        assert_eq!(run_regex(&server, "(?s).*").await.outcome.status, CheckStatus::Ok);
    }
}

#[tokio::test]
async fn a_body_is_read_up_to_its_cap_and_the_match_runs_on_that() {
    let endless = servers::tcp(|mut stream| async move {
        read_some(&mut stream).await?;
        stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await?;
        stream.write_all(b"7\r\n-start-\r\n").await?;
        loop {
            stream.write_all(b"400\r\n").await?;
            stream.write_all(&[b'x'; 0x400]).await?;
            stream.write_all(b"\r\n").await?;
        }
    })
    .await;
    assert_eq!(run_regex(&endless, "-start-").await.outcome.status, CheckStatus::Ok);
    assert_eq!(run_regex(&endless, "-end-").await.outcome.status, CheckStatus::RegexMismatch);
    let capped = with_http(http(endless.address), |check| {
        check.response_body_regex = "^-start-x{13}$".into();
        check.max_body_bytes = 20;
    });
    assert_eq!(run(&capped).await.0, CheckStatus::Ok);
}

#[tokio::test]
async fn an_unwanted_body_is_not_waited_for() {
    let server = servers::tcp(|mut stream| async move {
        read_some(&mut stream).await?;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n").await?;
        pending().await
    })
    .await;
    assert_eq!(run(&http(server.address)).await.0, CheckStatus::Ok);
}

#[tokio::test]
async fn a_body_that_stops_early_is_io_error() {
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf";
    let closes = servers::tcp(move |stream| answer(stream, head)).await;
    let result = run_regex(&closes, "half").await;
    assert_eq!(result.outcome.to_string(), "IO_ERROR: connection closed before the whole answer");

    let resets = servers::tcp(move |mut stream| async move {
        read_some(&mut stream).await?;
        // Each byte is on its way before the next, so that the reset comes after the head has been read.
        trickle_once(&mut stream, head.as_bytes()).await?;
        reset(stream)
    })
    .await;
    let result = run_regex(&resets, "half").await;
    assert_eq!(result.outcome.status, CheckStatus::IoError, "{result:?}");
}

async fn trickle_once(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
    stream.set_nodelay(true)?;
    for byte in bytes {
        stream.write_all(&[*byte]).await?;
        tokio::task::yield_now().await;
    }
    Ok(())
}

#[tokio::test]
async fn a_pattern_that_backtracks_without_end_is_given_up() {
    let server = serving("200 OK", "a".repeat(60)).await;
    let result = run_regex(&server, r"^(a|a?)+(?=b)\1$").await;
    assert_eq!(result.outcome.status, CheckStatus::RegexMismatch);
    assert_eq!(result.outcome.code.as_deref(), Some("BACKTRACK_LIMIT"), "{result:?}");
}

#[tokio::test]
async fn a_pattern_that_does_not_compile_is_no_verdict_on_the_backend() {
    let server = serving("200 OK", "").await;
    let result = run_regex(&server, "(").await;
    assert_eq!(result.outcome.status, CheckStatus::Unknown);
    assert!(
        result.outcome.msg.as_deref().is_some_and(|msg| msg.contains("response_body_regex")),
        "{result:?}"
    );
    assert_eq!(server.served(), 0);
}

#[tokio::test]
async fn one_deadline_for_silence_a_trickled_head_endless_informational_heads_and_a_trickled_body() {
    let silent = servers::tcp(servers::say_nothing).await;
    let trickled_head = servers::tcp(|mut stream| async move {
        read_some(&mut stream).await?;
        stream.write_all(b"HTTP/1.1 200 OK\r\nX-Pad: ").await?;
        trickle(&mut stream, b"x").await
    })
    .await;
    let informational = servers::tcp(|mut stream| async move {
        read_some(&mut stream).await?;
        trickle(&mut stream, b"HTTP/1.1 102 Processing\r\n\r\n").await
    })
    .await;
    let trickled_body = servers::tcp(|mut stream| async move {
        read_some(&mut stream).await?;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n").await?;
        trickle(&mut stream, b"x").await
    })
    .await;
    for server in [silent, trickled_head, informational, trickled_body] {
        let spec = with_http(http(server.address), |check| check.response_body_regex = "never".into());
        let result = run_into_deadline(spec).await;
        assert_eq!(result.outcome.to_string(), "TIMED_OUT: no complete answer within 250 ms");
    }
}

#[tokio::test]
async fn a_check_that_gives_up_hangs_up() {
    let (sender, mut closed) = mpsc::unbounded_channel();
    let server = servers::tcp(move |mut stream| {
        let sender = sender.clone();
        async move {
            until_closed(&mut stream).await.ok();
            let _ = sender.send(());
            Ok(())
        }
    })
    .await;
    run_into_deadline(http(server.address)).await;
    tokio::time::timeout(servers::PATIENCE, closed.recv())
        .await
        .expect("the connection is closed")
        .expect("reported");
}

#[tokio::test]
async fn t4_a_full_backlog_is_a_timeout_of_the_connection() {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a port on loopback");
    socket.listen(0).expect("listens");
    let address = socket.local_addr().expect("bound").as_socket().expect("an IP address");
    // Nobody accepts: once the backlog is full, the kernel drops further SYNs, like a firewall that drops.
    let mut waiting = Vec::new();
    while let Ok(Ok(stream)) = tokio::time::timeout(SHORT, TcpStream::connect(address)).await {
        waiting.push(stream);
        assert!(waiting.len() < 100, "a backlog of 0 holds only a few");
    }
    for spec in [http(address), tcp(address, b"", b"")] {
        let result = run_into_deadline(spec).await;
        assert_eq!(result.outcome.to_string(), "TIMED_OUT: no connection within 250 ms");
        assert_eq!(result.outcome.syscall.as_deref(), Some("connect"));
        assert!(result.source_ip_address.is_some(), "the address that the firewall must let in");
    }
}

#[tokio::test]
async fn t2_a_closed_port_is_connection_refused() {
    let closed = closed_tcp_port();
    let (verdict, result) = run(&http(closed.address)).await;
    assert_eq!(verdict, CheckStatus::ConnectFailed, "{result}");
    assert_has(
        &result,
        json!({"errno": "ECONNREFUSED", "syscall": "connect", "sourceIpAddress": "127.0.0.1"}),
    );
}

#[tokio::test]
async fn a_source_address_is_used_and_one_of_another_host_fails_at_bind() {
    let (sender, mut peers) = mpsc::unbounded_channel();
    let server = servers::tcp(move |stream| {
        let _ = sender.send(stream.peer_addr().map(|peer| peer.ip().to_string()));
        answer(stream, response("200 OK", ""))
    })
    .await;
    let spec = CheckSpec { source_address: "127.0.0.79".parse().ok(), ..http(server.address) };
    assert_has(&run(&spec).await.1, json!({"healthCheckStatus": "OK", "sourceIpAddress": "127.0.0.79"}));
    assert_eq!(peers.recv().await.expect("a connection").expect("its peer"), "127.0.0.79");

    let spec = CheckSpec { source_address: "192.0.2.1".parse().ok(), ..spec };
    let expected =
        json!({"healthCheckStatus": "CONNECT_FAILED", "errno": "EADDRNOTAVAIL", "syscall": "bind"});
    assert_has(&run(&spec).await.1, expected);
}

#[tokio::test]
async fn ipv6_works_as_well() {
    let server = servers::tcp_at("[::1]:0", |stream| answer(stream, response("200 OK", ""))).await;
    let (verdict, result) = run(&http(server.address)).await;
    assert_eq!(verdict, CheckStatus::Ok, "{result}");
}

/// Runs another of these tests with a proxy in its environment that answers nobody.
#[test]
fn the_environments_proxy_is_not_used() {
    let proxy = closed_tcp_port();
    let mut test = Command::new(std::env::current_exe().expect("this program"));
    test.args(["--exact", "http::h6_status_and_body_must_both_be_right"]);
    for variable in ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"] {
        test.env(variable, format!("http://{}", proxy.address));
    }
    let output = test.output().expect("it runs");
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && printed.contains("1 passed"), "{printed}");
}

/// Whatever a server answers, the check ends with a verdict and without a panic.
#[test]
fn no_answer_makes_it_panic() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let answers = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..300),
        "HTTP/1\\.[01] [0-9]{1,4} ?[a-z]{0,3}(\r\n[A-Za-z-]{1,8}: ?[ -~]{0,20}){0,4}\r\n\r\n[ -~]{0,40}"
            .prop_map(String::into_bytes),
        (
            "(Content-Length: -?[0-9]{1,30}|Transfer-Encoding: (chunked|gzip, chunked|,,))",
            prop::collection::vec(any::<u8>(), 0..60)
        )
            .prop_map(|(header, body)| [
                format!("HTTP/1.1 200 OK\r\n{header}\r\n\r\n").as_bytes(),
                &body
            ]
            .concat()),
    ];
    let mut runner =
        TestRunner::new(ProptestConfig { cases: 150, failure_persistence: None, ..Default::default() });
    let property = |bytes: Vec<u8>| {
        let result = runtime.block_on(async {
            let server = servers::tcp(move |stream| answer(stream, bytes.clone())).await;
            run_regex(&server, "a.c").await
        });
        use CheckStatus::{InvalidStatusCode, IoError, Ok as Good, RegexMismatch};
        let verdict = result.outcome.status;
        prop_assert!(matches!(verdict, Good | InvalidStatusCode | RegexMismatch | IoError), "{:?}", result);
        Ok(())
    };
    runner.run(&answers, property).unwrap_or_else(|failure| panic!("{failure}"));
}
