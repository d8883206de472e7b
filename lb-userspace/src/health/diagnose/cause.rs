//! What an outcome means, and what to do about it.

use super::{Hint, by_hand};
use crate::config::{CheckKind, CheckProtocol, DnsTransport};
use crate::health::check::CheckSpec;
use crate::health::result::{CheckResult, CheckStatus, Outcome};

/// A cause in words.
pub(super) struct Cause {
    pub(super) hint: Hint,
    /// What it means, one sentence.
    pub(super) text: String,
    /// What to look at, in order.
    pub(super) advice: Vec<String>,
}

/// What the bad result of a check means.
pub(super) fn of(spec: &CheckSpec, result: &CheckResult) -> Cause {
    let outcome = &result.outcome;
    match outcome.status {
        CheckStatus::ConnectFailed => connect_failed(spec, result),
        CheckStatus::TimedOut => timed_out(spec, result),
        CheckStatus::InvalidStatusCode if spec.protocol == CheckProtocol::Dns => rcode(outcome),
        CheckStatus::InvalidStatusCode => status_code(outcome),
        CheckStatus::RegexMismatch => mismatch(spec, outcome),
        CheckStatus::IoError => io_error(spec, outcome),
        CheckStatus::Ok | CheckStatus::Offline | CheckStatus::Unknown => not_checked(spec, outcome),
    }
}

fn not_checked(spec: &CheckSpec, outcome: &Outcome) -> Cause {
    let (text, advice) = match &outcome.msg {
        Some(msg) => (
            format!("the check cannot be made: {msg}"),
            "`lb doctor` and `lb check` look at this host".into(),
        ),
        None => {
            ("no result yet".into(), format!("the first one comes within {:?}", spec.interval + spec.timeout))
        }
    };
    Cause { hint: Hint::NotChecked, text, advice: vec![advice] }
}

fn connect_failed(spec: &CheckSpec, result: &CheckResult) -> Cause {
    let (address, port) = (spec.target.ip(), spec.target.port());
    match result.outcome.errno.as_deref() {
        Some("ECONNREFUSED") => Cause {
            hint: Hint::Refused,
            text: format!("the host answers, but nothing listens on port {port}"),
            advice: vec![
                format!("on the backend: is the service up, and on port {port}? `ss -ltnup | grep :{port}`"),
                "if it listens elsewhere, set the backend's port or health_check.port".into(),
            ],
        },
        Some("EHOSTUNREACH") => Cause {
            hint: Hint::Unreachable,
            text: "the host is down, or a firewall rejects the check (firewalld's default)".into(),
            advice: [vec![format!("is the host up? `ip neigh show {address}`")], firewall(spec, result)]
                .concat(),
        },
        Some("ENETUNREACH") => Cause {
            hint: Hint::NoRoute,
            text: format!("this host has no route to {address}"),
            advice: vec![format!("`ip route get {address}`")],
        },
        Some("EADDRNOTAVAIL") if result.outcome.syscall.as_deref() == Some("bind") => Cause {
            hint: Hint::SourceAddress,
            text: "source_address is not an address of this host".into(),
            advice: vec![
                "`ip address` shows those it has; an empty source_address leaves the choice to it".into(),
            ],
        },
        _ => Cause {
            hint: Hint::Unreachable,
            text: format!("no connection can be made: {}", result.outcome),
            advice: firewall(spec, result),
        },
    }
}

fn timed_out(spec: &CheckSpec, result: &CheckResult) -> Cause {
    let datagrams = match &spec.kind {
        CheckKind::Udp(_) => true,
        CheckKind::Dns { dns } => dns.transport == DnsTransport::Udp,
        _ => false,
    };
    let syscall = result.outcome.syscall.as_deref();
    let slow = format!("does it only take longer than timeout_ms = {}?", spec.timeout.as_millis());
    if datagrams || syscall == Some("connect") {
        return Cause {
            hint: Hint::Dropped,
            text:
                "nothing comes back: a firewall or security list drops the check, or the host is overloaded"
                    .into(),
            advice: firewall(spec, result),
        };
    }
    if syscall == Some("read") {
        let text = "the server accepts, but does not answer in time".into();
        return Cause { hint: Hint::Silent, text, advice: vec![slow] };
    }
    let silent = "does the port speak TLS? A server of another protocol may wait for more".into();
    Cause {
        hint: Hint::Dropped,
        text: "no TLS session: a firewall or security list drops the check, or the server does not answer"
            .into(),
        advice: [firewall(spec, result), vec![silent, slow]].concat(),
    }
}

/// What lets a check in.
fn firewall(spec: &CheckSpec, result: &CheckResult) -> Vec<String> {
    let transport = match (&spec.kind, spec.protocol) {
        (_, CheckProtocol::Udp) => "udp",
        (CheckKind::Dns { dns }, _) => dns.transport.word(),
        _ => "tcp",
    };
    let port = spec.target.port();
    let from = match result.source_ip_address {
        Some(source) => format!(" from {source}"),
        None => String::new(),
    };
    vec![
        format!("allow {transport} port {port}{from} in the security list and in the backend's firewall"),
        "on the backend: `firewall-cmd --list-all --zone=public`".into(),
        format!(
            "on the backend: `firewall-cmd --zone=public --add-port={port}/{transport}`, and again with --permanent"
        ),
    ]
}

fn status_code(outcome: &Outcome) -> Cause {
    let (found, expected) = codes(outcome);
    let advice = match found {
        300..=399 => format!(
            "redirects are not followed: check the page itself (path), or accept it: return_code = \"{found}\""
        ),
        401 | 403 => "the page wants credentials: check one that does not".into(),
        404 | 410 => "is path right, and does the server want its own name in host?".into(),
        400..=499 => "is the request right: path, host, method, and http or https?".into(),
        _ => "the service itself reports a fault: its log says more".into(),
    };
    Cause {
        hint: Hint::StatusCode,
        text: format!("the server answers {found}, expected is {expected}"),
        advice: vec![advice],
    }
}

fn rcode(outcome: &Outcome) -> Cause {
    let (found, expected) = codes(outcome);
    let name = outcome.code.clone().unwrap_or_else(|| found.to_string());
    Cause {
        hint: Hint::StatusCode,
        text: format!("the name server answers {name}, expected is {expected}"),
        advice: vec![match name.as_str() {
            "NXDOMAIN" => "is dns.name right? Or accept the answer: dns.rcodes".into(),
            "REFUSED" => "may this host ask that server (allow-query, allow-recursion)?".into(),
            _ => "the name server itself reports a fault: its log says more".into(),
        }],
    }
}

fn codes(outcome: &Outcome) -> (u16, &str) {
    (outcome.status_code.unwrap_or_default(), outcome.expected.as_deref().unwrap_or_default())
}

fn mismatch(spec: &CheckSpec, outcome: &Outcome) -> Cause {
    let wanted = match &spec.kind {
        CheckKind::Http(check) => {
            format!(
                "response_body_regex {} is not found in the body",
                by_hand::quoted(&check.response_body_regex)
            )
        }
        _ => "the answer does not start with response_data".into(),
    };
    let (text, advice) = match outcome.code.as_deref() {
        Some("BACKTRACK_LIMIT") => (
            "response_body_regex takes too long and was given up".into(),
            "avoid nested repetition such as (a+)+".into(),
        ),
        _ => (wanted, "compare with what the server really answers; \".*\" takes anything".into()),
    };
    Cause { hint: Hint::Mismatch, text, advice: vec![advice] }
}

fn io_error(spec: &CheckSpec, outcome: &Outcome) -> Cause {
    let port = spec.target.port();
    let cause = |hint, text: String, advice: &str| Cause { hint, text, advice: vec![advice.into()] };
    let code = outcome.code.as_deref();
    match (code, spec.protocol, &outcome.msg) {
        (Some("EPROTO"), CheckProtocol::Https, None) => cause(
            Hint::WrongProtocol,
            format!("port {port} does not speak TLS: it answers something else or hangs up"),
            "if the service is plain HTTP, set protocol = \"http\"; or is it another port?",
        ),
        (Some("EPROTO"), CheckProtocol::Http, None) => cause(
            Hint::WrongProtocol,
            format!("port {port} does not speak plain HTTP: it answers something else or hangs up"),
            "if the service is HTTPS, set protocol = \"https\", or \"tcp\"; or is it another port?",
        ),
        (Some("EPROTO"), _, Some(msg)) => cause(
            Hint::WrongProtocol,
            format!("the answer is not acceptable: {msg}"),
            "is it the right port, and does the server's log say why?",
        ),
        (Some(code), CheckProtocol::Https, Some(msg)) => cause(
            Hint::Certificate,
            format!("the certificate is not accepted: {msg} ({code})"),
            "is tls_ca_file its authority and tls_server_name its name? tls_verify = false accepts any",
        ),
        _ => cause(
            Hint::Closed,
            format!("the server breaks off: {outcome}"),
            "the server's log says why; is it overloaded or does it limit connections from here?",
        ),
    }
}
