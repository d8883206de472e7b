//! HTTPS checks.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lb_userspace::config::TlsCheck;
use lb_userspace::health::CheckStatus;
use lb_userspace::health::check::{Check, Shared};
use rcgen::{CertificateParams, CertifiedIssuer, KeyPair, date_time_ymd};
use rustls::crypto::ring;
use rustls::pki_types::PrivateKeyDer;
use rustls::{HandshakeKind, ServerConfig};
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;

use crate::servers::{self, Server, answer, read_some, reset, trickle};
use crate::specs::{assert_has, https, run, run_into_deadline, tcp, with_http};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello";

/// An authority, and its certificate in a file for as long as it lives.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    file: PathBuf,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(vec![]).expect("parameters");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let issuer =
            CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("signs");
        let file = std::env::temp_dir().join(format!("lb-health-{}-{name}.pem", std::process::id()));
        let mut pem = std::fs::File::create(&file).expect("a temporary file");
        pem.write_all(issuer.pem().as_bytes()).expect("written");
        Self { issuer, file }
    }

    /// A server's configuration with a certificate of this authority.
    fn certify(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Arc<ServerConfig> {
        let names: Vec<String> = names.iter().map(|&name| name.into()).collect();
        let mut params = CertificateParams::new(names).expect("parameters");
        change(&mut params);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("signs");
        server_config(certificate, key)
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        // Nothing depends on its removal.
        let _ = std::fs::remove_file(&self.file);
    }
}

fn server_config(certificate: rcgen::Certificate, key: KeyPair) -> Arc<ServerConfig> {
    let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a private key");
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .expect("key and certificate fit");
    Arc::new(config)
}

fn self_signed() -> Arc<ServerConfig> {
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(vec!["shop.example".into()]).expect("parameters");
    server_config(params.self_signed(&key).expect("signs"), key)
}

/// Serves [`OK`] over TLS.
async fn serving(config: Arc<ServerConfig>) -> Server {
    let acceptor = TlsAcceptor::from(config);
    servers::tcp(move |stream| {
        let acceptor = acceptor.clone();
        async move {
            let mut stream = acceptor.accept(stream).await?;
            read_some(&mut stream).await?;
            stream.write_all(OK).await?;
            stream.shutdown().await
        }
    })
    .await
}

fn verified(ca_file: &Path, name: &str) -> TlsCheck {
    TlsCheck { tls_verify: true, tls_server_name: name.into(), tls_ca_file: ca_file.into() }
}

#[tokio::test]
async fn h7_a_self_signed_certificate_is_accepted_and_body_and_status_are_judged() {
    let server = serving(self_signed()).await;
    let good = with_http(https(server.address, TlsCheck::default()), |check| {
        check.response_body_regex = "^hello$".into();
    });
    let (status, result) = run(&good).await;
    assert_eq!(status, CheckStatus::Ok, "{result}");
    let other_body = with_http(good.clone(), |check| check.response_body_regex = "^bye$".into());
    assert_eq!(run(&other_body).await.0, CheckStatus::RegexMismatch);
    let other_status = with_http(good, |check| check.return_code.ranges = vec![(204, 204)]);
    assert_has(
        &run(&other_status).await.1,
        json!({"healthCheckStatus": "INVALID_STATUS_CODE", "statusCode": 200}),
    );
}

#[tokio::test]
async fn h7_with_tls_verify_the_right_authority_is_needed() {
    let (right, wrong) = (Authority::new("right"), Authority::new("wrong"));
    let server = serving(right.certify(&["shop.example"], |_| {})).await;
    let (status, result) = run(&https(server.address, verified(&right.file, "shop.example"))).await;
    assert_eq!(status, CheckStatus::Ok, "{result}");
    for ca_file in [wrong.file.as_path(), Path::new("")] {
        let (status, result) = run(&https(server.address, verified(ca_file, "shop.example"))).await;
        assert_eq!(status, CheckStatus::IoError);
        assert_has(&result, json!({"code": "UNABLE_TO_GET_ISSUER_CERT"}));
        assert!(result["msg"].as_str().is_some_and(|msg| msg.contains("certificate")), "{result}");
    }
}

#[tokio::test]
async fn h7_with_tls_verify_the_name_and_the_time_must_fit() {
    let authority = Authority::new("name-and-time");
    let cases = [
        (authority.certify(&["other.example"], |_| {}), "ERR_TLS_CERT_ALTNAME_INVALID"),
        (
            authority.certify(&["shop.example"], |params| params.not_after = date_time_ymd(2020, 1, 1)),
            "CERT_HAS_EXPIRED",
        ),
        (
            authority.certify(&["shop.example"], |params| params.not_before = date_time_ymd(4000, 1, 1)),
            "CERT_NOT_YET_VALID",
        ),
    ];
    for (config, code) in cases {
        let server = serving(config).await;
        let (status, result) = run(&https(server.address, verified(&authority.file, "shop.example"))).await;
        assert_eq!(status, CheckStatus::IoError, "{result}");
        assert_has(&result, json!({ "code": code }));
        let (status, result) = run(&https(server.address, TlsCheck::default())).await;
        assert_eq!(status, CheckStatus::Ok, "without tls_verify: {result}");
    }
}

#[tokio::test]
async fn h7_without_a_server_name_the_certificate_must_name_the_address() {
    let authority = Authority::new("address");
    let server = serving(authority.certify(&["127.0.0.1"], |_| {})).await;
    let (status, result) = run(&https(server.address, verified(&authority.file, ""))).await;
    assert_eq!(status, CheckStatus::Ok, "{result}");
}

#[tokio::test]
async fn sni_is_the_server_name_or_the_host_and_never_an_address() {
    let (sender, mut names) = mpsc::unbounded_channel();
    let config = self_signed();
    let server = servers::tcp(move |stream| {
        let (sender, config) = (sender.clone(), Arc::clone(&config));
        async move {
            let start = tokio_rustls::LazyConfigAcceptor::new(Default::default(), stream).await?;
            let _ = sender.send(start.client_hello().server_name().map(str::to_owned));
            let mut stream = start.into_stream(config).await?;
            read_some(&mut stream).await?;
            stream.write_all(OK).await?;
            stream.shutdown().await
        }
    })
    .await;
    let cases = [
        ("tls.example", "shop.example", Some("tls.example")),
        ("", "shop.example", Some("shop.example")),
        ("", "shop.example:8443", Some("shop.example")),
        ("", "10.0.1.10:8443", None),
        ("", "", None),
    ];
    for (server_name, host, sni) in cases {
        let tls = TlsCheck { tls_server_name: server_name.into(), ..TlsCheck::default() };
        let spec = with_http(https(server.address, tls), |check| check.host = host.into());
        let (status, result) = run(&spec).await;
        assert_eq!(status, CheckStatus::Ok, "{result}");
        assert_eq!(names.recv().await.expect("a handshake").as_deref(), sni, "{server_name:?} {host:?}");
    }
}

#[tokio::test]
async fn t9_an_https_check_on_a_plain_http_port_is_eproto() {
    let answers = servers::tcp(|stream| answer(stream, "HTTP/1.1 400 Bad Request\r\n\r\n")).await;
    let hangs_up = servers::tcp(|stream| answer(stream, "")).await;
    let resets = servers::tcp(|mut stream| async move {
        read_some(&mut stream).await?;
        reset(stream)
    })
    .await;
    for server in [answers, hangs_up, resets] {
        let (status, result) = run(&https(server.address, TlsCheck::default())).await;
        assert_eq!(status, CheckStatus::IoError, "{result}");
        assert_has(&result, json!({"code": "EPROTO", "errno": "EPROTO"}));
        assert!(result.get("msg").is_none(), "{result}");
    }
}

#[tokio::test]
async fn t10_an_http_check_on_a_real_tls_port_is_eproto() {
    let server = serving(self_signed()).await;
    let (status, result) = run(&crate::specs::http(server.address)).await;
    assert_eq!(status, CheckStatus::IoError, "{result}");
    assert_has(&result, json!({"code": "EPROTO", "errno": "EPROTO"}));
}

#[tokio::test]
async fn t11_a_tcp_check_on_a_tls_port_is_ok() {
    let server = serving(self_signed()).await;
    assert_eq!(run(&tcp(server.address, b"", b"")).await.0, CheckStatus::Ok);
}

#[tokio::test]
async fn a_server_that_refuses_the_handshake_is_eproto_and_says_why() {
    // A fatal alert: handshake failure.
    let server = servers::tcp(|stream| answer(stream, b"\x15\x03\x03\x00\x02\x02\x28")).await;
    let (status, result) = run(&https(server.address, TlsCheck::default())).await;
    assert_eq!(status, CheckStatus::IoError);
    assert_has(&result, json!({"code": "EPROTO", "errno": "EPROTO"}));
    assert!(result["msg"].as_str().is_some_and(|msg| msg.contains("HandshakeFailure")), "{result}");
}

#[tokio::test]
async fn one_deadline_for_a_silent_and_a_trickled_handshake() {
    let silent = servers::tcp(servers::say_nothing).await;
    // The beginning of a record that is long and never complete.
    let trickled = servers::tcp(|mut stream| async move {
        stream.write_all(b"\x16\x03\x03\x3f\xff\x02\x00\x3f\xfb").await?;
        trickle(&mut stream, b"\x00").await
    })
    .await;
    for server in [silent, trickled] {
        let result = run_into_deadline(https(server.address, TlsCheck::default())).await;
        assert_eq!(result.outcome.to_string(), "TIMED_OUT: no connection and TLS session within 250 ms");
    }
}

#[tokio::test]
async fn a_ca_file_that_is_missing_or_empty_is_no_verdict_on_the_backend() {
    let server = serving(self_signed()).await;
    let empty = std::env::temp_dir().join(format!("lb-health-{}-empty.pem", std::process::id()));
    std::fs::write(&empty, "no certificate").expect("a temporary file");
    for file in [Path::new("/nonexistent/ca.pem"), &empty] {
        let (status, result) = run(&https(server.address, verified(file, "shop.example"))).await;
        assert_eq!(status, CheckStatus::Unknown, "{result}");
        let names_the_file = |msg: &str| msg.contains(&*file.to_string_lossy());
        assert!(result["msg"].as_str().is_some_and(names_the_file), "{result}");
    }
    std::fs::remove_file(&empty).expect("removed");
    assert_eq!(server.served(), 0);
}

#[tokio::test]
async fn a_server_name_that_is_no_name_is_no_verdict_on_the_backend() {
    let server = serving(self_signed()).await;
    for name in ["not a name", "127.0.0.1", "127.1", "0x7f000001", "a..b"] {
        let tls = TlsCheck { tls_server_name: name.into(), ..TlsCheck::default() };
        let (status, result) = run(&https(server.address, tls)).await;
        assert_eq!(status, CheckStatus::Unknown, "{name}: {result}");
        assert!(result["msg"].as_str().is_some_and(|msg| msg.contains(name)), "{result}");
    }
    assert_eq!(server.served(), 0);
}

#[tokio::test]
async fn every_check_is_a_full_handshake_so_that_it_sees_the_certificate_of_now() {
    let (sender, mut handshakes) = mpsc::unbounded_channel();
    let acceptor = TlsAcceptor::from(self_signed());
    let server = servers::tcp(move |stream| {
        let (sender, acceptor) = (sender.clone(), acceptor.clone());
        async move {
            let mut stream = acceptor.accept(stream).await?;
            let _ = sender.send(stream.get_ref().1.handshake_kind());
            read_some(&mut stream).await?;
            stream.write_all(OK).await?;
            stream.shutdown().await
        }
    })
    .await;
    let tls = TlsCheck { tls_server_name: "shop.example".into(), ..TlsCheck::default() };
    let check = Check::new(https(server.address, tls), &mut Shared::default());
    for _ in 0..3 {
        assert_eq!(check.run().await.outcome.status, CheckStatus::Ok);
        assert_eq!(handshakes.recv().await.expect("a handshake"), Some(HandshakeKind::Full));
    }
}

#[tokio::test]
async fn a_ca_file_is_read_anew_when_no_check_uses_it_any_more() {
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let server = serving(new.certify(&["shop.example"], |_| {})).await;
    let spec = https(server.address, verified(&old.file, "shop.example"));
    let mut shared = Shared::default();
    let check = Check::new(spec.clone(), &mut shared);
    assert_eq!(check.run().await.outcome.status, CheckStatus::IoError);
    std::fs::copy(&new.file, &old.file).expect("copied");
    let still = Check::new(spec.clone(), &mut shared);
    assert_eq!(still.run().await.outcome.status, CheckStatus::IoError, "shared with the first");
    drop((check, still));
    shared.prune();
    let anew = Check::new(spec, &mut shared);
    assert_eq!(anew.run().await.outcome.status, CheckStatus::Ok);
}
