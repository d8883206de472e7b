//! DNS checks.

use std::io;

use lb_userspace::config::{CheckKind, DnsClass, DnsTransport, DnsType, Rcode};
use lb_userspace::health::{CheckSpec, CheckStatus};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::servers::{self, Server, closed_udp_port, trickle, until_closed};
use crate::specs::{assert_has, dns, hurried, run, run_into_deadline};

const EVERY_RCODE: [(Rcode, u8); 4] =
    [(Rcode::NoError, 0), (Rcode::ServFail, 2), (Rcode::NxDomain, 3), (Rcode::Refused, 5)];

/// The query, made an answer with a response code and nothing else.
fn answer_to(query: &[u8], rcode: u8) -> Vec<u8> {
    let mut answer = query.to_vec();
    answer[2] |= 0x80;
    answer[3] = 0x80 | rcode;
    answer
}

/// Answers each query on a TCP connection with what `script` makes of it.
async fn over_tcp(
    address: &str,
    script: impl Fn(&[u8]) -> Vec<u8> + Clone + Send + Sync + 'static,
) -> Server {
    servers::tcp_at(address, move |stream| answer_queries(stream, script.clone())).await
}

async fn answer_queries(mut stream: TcpStream, script: impl Fn(&[u8]) -> Vec<u8>) -> io::Result<()> {
    let length = stream.read_u16().await?;
    let mut query = vec![0; length.into()];
    stream.read_exact(&mut query).await?;
    stream.write_all(&script(&query)).await?;
    stream.shutdown().await?;
    until_closed(&mut stream).await.map(drop)
}

/// With its length before it, as TCP wants it.
fn framed(message: Vec<u8>) -> Vec<u8> {
    let length = u16::try_from(message.len()).expect("a short message").to_be_bytes();
    [&length[..], &message].concat()
}

#[tokio::test]
async fn h9_udp_and_tcp_over_ipv4_and_ipv6() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let udp = servers::udp_at(address, |query| vec![answer_to(query, 0)]).await;
        let (status, result) = run(&dns(udp.address, DnsTransport::Udp, &[Rcode::NoError])).await;
        assert_eq!(status, CheckStatus::Ok, "{result}");
        assert_eq!(udp.served(), 1);
        let tcp = over_tcp(address, |query| framed(answer_to(query, 0))).await;
        let (status, result) = run(&dns(tcp.address, DnsTransport::Tcp, &[Rcode::NoError])).await;
        assert_eq!(status, CheckStatus::Ok, "{result}");
    }
}

#[tokio::test]
async fn h10_the_response_code_must_be_one_of_the_accepted() {
    for (rcode, number) in EVERY_RCODE {
        let server = servers::udp(move |query| vec![answer_to(query, number)]).await;
        for (accepted, _) in EVERY_RCODE {
            let (status, result) = run(&dns(server.address, DnsTransport::Udp, &[accepted])).await;
            if accepted == rcode {
                assert_eq!(status, CheckStatus::Ok, "{result}");
                continue;
            }
            assert_eq!(status, CheckStatus::InvalidStatusCode, "{result}");
            let expected = json!({"statusCode": number, "code": rcode.word(), "expected": accepted.word()});
            assert_has(&result, expected);
        }
        let both = dns(server.address, DnsTransport::Udp, &[Rcode::NoError, rcode]);
        assert_eq!(run(&both).await.0, CheckStatus::Ok);
    }
}

#[tokio::test]
async fn h11_class_and_type_reach_the_server() {
    let (sender, mut queries) = mpsc::unbounded_channel();
    let server = servers::udp(move |query| {
        let _ = sender.send(query[query.len() - 4..].to_vec());
        vec![answer_to(query, 0)]
    })
    .await;
    let cases = [
        (DnsClass::In, DnsType::A, [0, 1, 0, 1]),
        (DnsClass::In, DnsType::Aaaa, [0, 28, 0, 1]),
        (DnsClass::Ch, DnsType::Txt, [0, 16, 0, 3]),
    ];
    for (class, record_type, on_the_wire) in cases {
        let mut spec = dns(server.address, DnsTransport::Udp, &[Rcode::NoError]);
        let CheckKind::Dns { dns } = &mut spec.kind else { panic!("{spec:?}") };
        (dns.class, dns.record_type) = (class, record_type);
        assert_eq!(run(&spec).await.0, CheckStatus::Ok);
        assert_eq!(queries.recv().await.expect("a query"), on_the_wire);
    }
}

#[tokio::test]
async fn over_udp_a_strange_answer_is_waited_past() {
    let server = servers::udp(|query| {
        let good = answer_to(query, 0);
        let mut wrong_id = good.clone();
        wrong_id[0] ^= 0xff;
        let mut wrong_question = good.clone();
        wrong_question[13] ^= 1;
        vec![wrong_id, query.to_vec(), wrong_question, b"?".into(), vec![], good]
    })
    .await;
    let (status, result) = run(&dns(server.address, DnsTransport::Udp, &[Rcode::NoError])).await;
    assert_eq!(status, CheckStatus::Ok, "{result}");
}

#[tokio::test]
async fn over_udp_nothing_but_a_wrong_id_is_io_error_at_the_deadline() {
    let server = servers::udp(|query| {
        let mut wrong_id = answer_to(query, 0);
        wrong_id[1] ^= 1;
        vec![wrong_id; 3]
    })
    .await;
    let (status, result) = run(&hurried(dns(server.address, DnsTransport::Udp, &[Rcode::NoError]))).await;
    assert_eq!(status, CheckStatus::IoError);
    assert_has(&result, json!({"msg": "the answer has another DNS id", "code": "EPROTO"}));
}

#[tokio::test]
async fn over_udp_silence_is_timed_out_and_a_closed_port_refused() {
    let silent = servers::udp(|_| vec![]).await;
    run_into_deadline(dns(silent.address, DnsTransport::Udp, &[Rcode::NoError])).await;
    let closed = closed_udp_port();
    let (status, result) = run(&dns(closed.address, DnsTransport::Udp, &[Rcode::NoError])).await;
    assert_eq!(status, CheckStatus::ConnectFailed);
    assert_has(&result, json!({"errno": "ECONNREFUSED"}));
}

#[tokio::test]
async fn a_truncated_answer_is_no_failure() {
    let server = servers::udp(|query| {
        let mut answer = answer_to(query, 0);
        answer[2] |= 0x02;
        // It claims ten records and holds half of one.
        answer[7] = 10;
        answer.extend(b"\xc0\x0c\x00\x01\x00");
        vec![answer]
    })
    .await;
    let (status, result) = run(&dns(server.address, DnsTransport::Udp, &[Rcode::NoError])).await;
    assert_eq!(status, CheckStatus::Ok, "{result}");
}

#[tokio::test]
async fn over_tcp_an_answer_that_is_cut_off_or_strange_is_io_error() {
    let cut_off = over_tcp("127.0.0.1:0", |query| {
        let mut framed = framed(answer_to(query, 0));
        framed.truncate(20);
        framed
    })
    .await;
    let nothing = over_tcp("127.0.0.1:0", |_| vec![]).await;
    for server in [cut_off, nothing] {
        let (status, result) = run(&dns(server.address, DnsTransport::Tcp, &[Rcode::NoError])).await;
        assert_eq!(status, CheckStatus::IoError);
        assert_has(&result, json!({"msg": "connection closed before the whole answer"}));
    }
    let wrong_id = over_tcp("127.0.0.1:0", |query| {
        let mut answer = answer_to(query, 0);
        answer[0] ^= 1;
        framed(answer)
    })
    .await;
    let (status, result) = run(&dns(wrong_id.address, DnsTransport::Tcp, &[Rcode::NoError])).await;
    assert_eq!(status, CheckStatus::IoError);
    assert_has(&result, json!({"code": "EPROTO"}));
    let http = over_tcp("127.0.0.1:0", |_| b"HTTP/1.1 400 Bad Request\r\n\r\n".into()).await;
    assert_eq!(run(&dns(http.address, DnsTransport::Tcp, &[Rcode::NoError])).await.0, CheckStatus::IoError);
}

#[tokio::test]
async fn over_tcp_a_trickled_answer_cannot_outlast_the_deadline() {
    let server = servers::tcp(|mut stream| async move { trickle(&mut stream, b"\x7f").await }).await;
    run_into_deadline(dns(server.address, DnsTransport::Tcp, &[Rcode::NoError])).await;
}

#[tokio::test]
async fn a_name_that_is_none_is_no_verdict_on_the_backend() {
    let mut spec: CheckSpec = dns(([127, 0, 0, 1], 53).into(), DnsTransport::Udp, &[Rcode::NoError]);
    let CheckKind::Dns { dns } = &mut spec.kind else { panic!("{spec:?}") };
    dns.name = "a..b".into();
    let (status, result) = run(&spec).await;
    assert_eq!(status, CheckStatus::Unknown);
    assert!(result["msg"].as_str().is_some_and(|msg| msg.contains("dns.name")), "{result}");
}
