//! The line that makes a check by hand: for a shell on the balancer's host, with the tools people have there.

use std::net::IpAddr;
use std::time::Duration;

use crate::config::{CheckKind, DnsCheck, DnsTransport, HttpCheck, Method, Payload, TlsCheck};
use crate::health::check::{CheckSpec, server_name};

/// Commands that ask what the check asks, most telling first. Each agrees with the check: it shows the status code,
/// the answer or the error that the verdict was made of.
pub fn commands(spec: &CheckSpec) -> Vec<String> {
    match &spec.kind {
        CheckKind::Tcp(payload) if payload == &Payload::default() => vec![connect(spec)],
        CheckKind::Tcp(payload) => vec![exchange(spec, payload, ""), connect(spec)],
        CheckKind::Udp(payload) => vec![exchange(spec, payload, " -u")],
        CheckKind::Http(check) => {
            let mut commands = vec![format!("curl -i{}", curl(spec, check))];
            if !check.response_body_regex.is_empty() {
                let pattern = quoted(&check.response_body_regex);
                commands
                    .push(format!("curl -sS{} | grep -Pzq -- {pattern} && echo matches", curl(spec, check)));
            }
            commands.push(connect(spec));
            commands
        }
        CheckKind::Dns { dns } => vec![dig(spec, dns)],
    }
}

/// `nc -zvw3 10.0.0.5 443`
fn connect(spec: &CheckSpec) -> String {
    let (address, port) = (spec.target.ip(), spec.target.port());
    format!("nc -zvw{}{} {address} {port}", seconds(spec.timeout), option(" -s ", spec.source_address))
}

/// `printf 'PING' | nc -w3 10.0.0.5 7`
fn exchange(spec: &CheckSpec, payload: &Payload, udp: &str) -> String {
    let (address, port) = (spec.target.ip(), spec.target.port());
    let source = option(" -s ", spec.source_address);
    format!(
        "printf {} | nc{udp} -w{}{source} {address} {port}",
        printf_format(&payload.request_data),
        seconds(spec.timeout)
    )
}

/// Everything after `curl -i`: the deadline, what differs from curl's own way, the URL.
fn curl(spec: &CheckSpec, check: &HttpCheck) -> String {
    let port = spec.target.port();
    let mut line = format!(" --max-time {}", spec.timeout.as_secs_f64());
    line += &option(" --interface ", spec.source_address);
    if check.path.contains(['[', ']', '{', '}']) {
        // Else curl takes them for ranges of URLs.
        line += " -g";
    }
    if check.method == Method::Head {
        line += " -I";
    }
    let name = check.tls.as_ref().and_then(|tls| server_name(tls, &check.host));
    if !check.host.is_empty() {
        line += &format!(" -H {}", quoted(&format!("Host: {}", check.host)));
    } else if name.is_some() {
        line += &format!(" -H {}", quoted(&format!("Host: {}", spec.target)));
    }
    if let Some(tls) = &check.tls {
        line += &trust(tls);
    }
    let authority = match name {
        None => spec.target.to_string(),
        Some(name) => {
            let target = spec.target.to_string();
            let address = target.rsplit_once(':').map_or(&*target, |(address, _port)| address);
            line += &format!(" --resolve {}", quoted(&format!("{name}:{port}:{address}")));
            format!("{name}:{port}")
        }
    };
    let scheme = spec.protocol.word();
    line + " " + &quoted(&format!("{scheme}://{authority}{}", check.path))
}

fn trust(tls: &TlsCheck) -> String {
    let ca_file = tls.tls_ca_file.to_string_lossy();
    match tls.tls_verify {
        false => " -k".into(),
        true if ca_file.is_empty() => String::new(),
        true => format!(" --cacert {}", quoted(&ca_file)),
    }
}

/// `dig +time=3 +tries=1 @10.0.0.53 -p 53 -c IN -t A example.org.`
fn dig(spec: &CheckSpec, dns: &DnsCheck) -> String {
    let (address, port) = (spec.target.ip(), spec.target.port());
    let tcp = if dns.transport == DnsTransport::Tcp { " +tcp" } else { " +ignore" };
    format!(
        "dig +time={} +tries=1 +noedns{tcp}{} @{address} -p {port} -c {} -t {} {}",
        seconds(spec.timeout),
        option(" -b ", spec.source_address),
        dns.class.word(),
        dns.record_type.word(),
        quoted(&format!("{}.", dns.name.trim_end_matches('.')))
    )
}

/// Whole seconds, rounded up: what nc and dig take.
fn seconds(timeout: Duration) -> u64 {
    timeout.as_millis().div_ceil(1000).max(1).try_into().unwrap_or(u64::MAX)
}

fn option(name: &str, value: Option<IpAddr>) -> String {
    value.map(|value| format!("{name}{value}")).unwrap_or_default()
}

/// As one word of a POSIX shell.
pub(super) fn quoted(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:@%+=,".contains(&byte);
    if !text.is_empty() && text.bytes().all(plain) {
        text.into()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// Bytes as a format of `printf`, quoted.
fn printf_format(bytes: &[u8]) -> String {
    let mut format = String::new();
    for &byte in bytes {
        match byte {
            b'\r' => format += "\\r",
            b'\n' => format += "\\n",
            b'\\' => format += "\\\\",
            b'%' => format += "%%",
            b' '..=b'~' => format.push(byte.into()),
            other => format += &format!("\\{other:03o}"),
        }
    }
    format!("'{}'", format.replace('\'', r"'\''"))
}
