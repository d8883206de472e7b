//! Specifications of checks, short.

use std::net::SocketAddr;
use std::time::Duration;

use lb_userspace::config::{
    CheckKind, CheckProtocol, DnsCheck, DnsClass, DnsTransport, DnsType, HttpCheck, Method, Payload, Rcode,
    StatusCodes, TlsCheck,
};
use lb_userspace::health::{CheckResult, CheckSpec, CheckStatus, check};
use serde_json::Value;

/// For checks whose deadline is not to strike.
pub(crate) const LONG: Duration = Duration::from_secs(15);
/// For checks whose deadline is to strike.
pub(crate) const SHORT: Duration = Duration::from_millis(250);

pub(crate) fn tcp(target: SocketAddr, request: &[u8], response: &[u8]) -> CheckSpec {
    let payload = Payload { request_data: request.into(), response_data: response.into() };
    spec(target, CheckProtocol::Tcp, CheckKind::Tcp(payload))
}

pub(crate) fn udp(target: SocketAddr, request: &[u8], response: &[u8]) -> CheckSpec {
    let payload = Payload { request_data: request.into(), response_data: response.into() };
    spec(target, CheckProtocol::Udp, CheckKind::Udp(payload))
}

pub(crate) fn http(target: SocketAddr) -> CheckSpec {
    spec(target, CheckProtocol::Http, CheckKind::Http(http_check(None)))
}

pub(crate) fn https(target: SocketAddr, tls: TlsCheck) -> CheckSpec {
    spec(target, CheckProtocol::Https, CheckKind::Http(http_check(Some(tls))))
}

pub(crate) fn dns(target: SocketAddr, transport: DnsTransport, rcodes: &[Rcode]) -> CheckSpec {
    let dns = DnsCheck {
        name: "example.org".into(),
        class: DnsClass::In,
        record_type: DnsType::A,
        transport,
        rcodes: rcodes.into(),
    };
    spec(target, CheckProtocol::Dns, CheckKind::Dns { dns })
}

fn http_check(tls: Option<TlsCheck>) -> HttpCheck {
    HttpCheck {
        path: "/".into(),
        method: Method::Get,
        host: String::new(),
        return_code: StatusCodes { text: "200".into(), ranges: vec![(200, 200)] },
        response_body_regex: String::new(),
        max_body_bytes: 65_536,
        tls,
    }
}

fn spec(target: SocketAddr, protocol: CheckProtocol, kind: CheckKind) -> CheckSpec {
    CheckSpec { target, interval: LONG, timeout: LONG, source_address: None, protocol, kind }
}

/// Changes the HTTP part of a specification.
pub(crate) fn with_http(mut spec: CheckSpec, change: impl FnOnce(&mut HttpCheck)) -> CheckSpec {
    let CheckKind::Http(check) = &mut spec.kind else { panic!("not an HTTP check: {spec:?}") };
    change(check);
    spec
}

/// Gives a specification a deadline that will strike.
pub(crate) fn hurried(spec: CheckSpec) -> CheckSpec {
    CheckSpec { timeout: SHORT, ..spec }
}

/// Makes the check and gives back its status and its JSON.
pub(crate) async fn run(spec: &CheckSpec) -> (CheckStatus, Value) {
    let result = check::run(spec).await;
    (result.outcome.status, serde_json::to_value(&result).expect("a result serialises"))
}

/// Makes a check that is to run into its deadline, and asserts that it did so at the deadline.
pub(crate) async fn run_into_deadline(spec: CheckSpec) -> CheckResult {
    let spec = hurried(spec);
    let result = check::run(&spec).await;
    assert_eq!(result.outcome.status, CheckStatus::TimedOut, "{result:?}");
    let latency = Duration::from_secs_f64(result.latency_ms.expect("a check was made") / 1e3);
    assert!(latency >= spec.timeout && latency < spec.timeout * 8, "the deadline was {SHORT:?}: {result:?}");
    result
}

/// Asserts that `found` has every field of `expected` with its value.
#[track_caller]
pub(crate) fn assert_has(found: &Value, expected: Value) {
    let Value::Object(fields) = &expected else { panic!("not an object: {expected}") };
    for (field, value) in fields {
        assert_eq!(found.get(field), Some(value), "{field} in {found}");
    }
}
