//! `[backend_set.NAME.health_check]`.

use super::facts::CheckFacts;
use super::problem::{Problem, all_of, one_of};
use super::reader::{Table, Value};
use super::scalar;
use super::schema::CheckProtocol::{self, Dns, Http, Https, Tcp, Udp};
use super::schema::{
    CheckKind, DnsCheck, DnsClass, DnsTransport, DnsType, HealthCheck, HttpCheck, Method, Payload, Rcode,
    TlsCheck, Word,
};
use super::{dns_name, http};

/// Keys that only some protocols have, and which ones.
const OWNERS: &[(&str, &[CheckProtocol])] = &[
    ("request_data", &[Tcp, Udp]),
    ("response_data", &[Tcp, Udp]),
    ("path", &[Http, Https]),
    ("method", &[Http, Https]),
    ("host", &[Http, Https]),
    ("return_code", &[Http, Https]),
    ("response_body_regex", &[Http, Https]),
    ("max_body_bytes", &[Http, Https]),
    ("tls_verify", &[Https]),
    ("tls_server_name", &[Https]),
    ("tls_ca_file", &[Https]),
    ("dns", &[Dns]),
];

/// Deadline of a check that names none, in milliseconds.
const TIMEOUT_MS: u32 = 3_000;

/// Reads the check of one set.
pub(super) fn read(mut table: Table<'_, '_>) -> (CheckFacts, Option<HealthCheck>) {
    let words = one_of(CheckProtocol::ALL.iter().map(|protocol| protocol.word()), "\"");
    let protocol = table.required("protocol", words, |value| value.word());
    let port = table.optional("port", 0, |value| value.integer(0..=u16::MAX));
    let interval_ms = table.optional("interval_ms", 10_000, |value| value.integer(100..=1_800_000));
    // A check that is made more often than the default deadline allows would need both keys; the shorter one is meant.
    let default_timeout_ms = interval_ms.map_or(TIMEOUT_MS, |interval_ms| interval_ms.min(TIMEOUT_MS));
    let timeout_ms = table.optional("timeout_ms", default_timeout_ms, |value| value.integer(1..=600_000));
    let retries = table.optional("retries", 3, |value| value.integer(1..=100));
    let rise = table.get("rise").map_or(retries, |value| value.integer(1..=100));
    let fall = table.get("fall").map_or(retries, |value| value.integer(1..=100));
    let source_address = table.optional("source_address", None, |value| match value.text()? {
        "" => Some(None),
        text => value.accept(scalar::reachable(text)).map(Some),
    });
    refuse_late_deadline(&table, interval_ms, timeout_ms);
    let kind = match protocol {
        Some(protocol) => {
            refuse_foreign_keys(&mut table, protocol);
            read_kind(&mut table, protocol)
        }
        None => read_every_kind(&mut table),
    };
    table.finish();

    let facts = CheckFacts { port, source_address: source_address.flatten() };
    let check = || {
        Some(HealthCheck {
            protocol: protocol?,
            port: port?,
            interval_ms: interval_ms?,
            timeout_ms: timeout_ms?,
            retries: retries?,
            rise: rise?,
            fall: fall?,
            source_address: source_address?,
            kind: kind?,
        })
    };
    (facts, check())
}

/// A check has to be over when the next one begins.
fn refuse_late_deadline(table: &Table<'_, '_>, interval_ms: Option<u32>, timeout_ms: Option<u32>) {
    let (Some(interval_ms), Some(timeout_ms)) = (interval_ms, timeout_ms) else { return };
    if timeout_ms <= interval_ms {
        return;
    }
    let problem = Problem::new(format!("longer than `interval_ms`, which is {interval_ms}"))
        .allowed("`timeout_ms` not longer than `interval_ms`")
        .suggest(format!("timeout_ms = {interval_ms}"));
    table.findings().refuse_at(&table.path().then("timeout_ms"), problem);
}

fn refuse_foreign_keys(table: &mut Table<'_, '_>, protocol: CheckProtocol) {
    for (key, owners) in OWNERS.iter().filter(|(_, owners)| !owners.contains(&protocol)) {
        if table.has(key)
            && let Some(value) = table.get(key)
        {
            let owners = all_of(owners.iter().map(|owner| owner.word()));
            let problem = Problem::new(format!(
                "belongs to checks with protocol {owners}, but `protocol` is \"{}\"",
                protocol.word()
            ));
            value.refuse::<()>(problem.allowed(format!("no `{key}` here, or another `protocol`")));
        }
    }
}

fn read_kind(table: &mut Table<'_, '_>, protocol: CheckProtocol) -> Option<CheckKind> {
    match protocol {
        Tcp => payload(table).map(CheckKind::Tcp),
        Udp => udp_payload(table).map(CheckKind::Udp),
        Http => http_check(table, None).map(CheckKind::Http),
        Https => {
            let tls = tls_check(table);
            let http = http_check(table, Some(TlsCheck::default()));
            Some(CheckKind::Http(HttpCheck { tls: Some(tls?), ..http? }))
        }
        Dns => {
            let dns = table.required("dns", "a table with the `name` to ask for", Value::table)?;
            dns_check(dns).map(|dns| CheckKind::Dns { dns })
        }
    }
}

/// Judges every key on its own when it is not known which of them belong here.
fn read_every_kind(table: &mut Table<'_, '_>) -> Option<CheckKind> {
    payload(table);
    tls_check(table);
    http_check(table, None);
    table.get("dns").and_then(|value| value.table()).and_then(dns_check);
    None
}

fn payload(table: &mut Table<'_, '_>) -> Option<Payload> {
    let request_data = table.optional("request_data", Vec::new(), |value| value.parsed(scalar::base64));
    let response_data = table.optional("response_data", Vec::new(), |value| value.parsed(scalar::base64));
    Some(Payload { request_data: request_data?, response_data: response_data? })
}

/// An empty datagram proves nothing: many services do not answer it, healthy or not.
fn udp_payload(table: &mut Table<'_, '_>) -> Option<Payload> {
    const ALLOWED: &str = "base64 of the datagram to send, at least one byte";
    if !table.has("request_data") {
        table.missing::<()>("request_data", ALLOWED);
    }
    let payload = payload(table)?;
    if payload.request_data.is_empty() && table.has("request_data") {
        let problem = Problem::new("empty, but a check with protocol udp has to send something");
        table.findings().refuse_at(&table.path().then("request_data"), problem.allowed(ALLOWED));
    }
    (!payload.request_data.is_empty()).then_some(payload)
}

fn http_check(table: &mut Table<'_, '_>, tls: Option<TlsCheck>) -> Option<HttpCheck> {
    let path = table.optional("path", "/".to_owned(), |value| value.parsed(http::path));
    let method = table.optional_word("method", Method::Get);
    let host = table.optional("host", String::new(), |value| value.parsed(http::host));
    let return_code = table.optional("return_code", http::only_200(), http::return_code);
    let regex = table.optional("response_body_regex", String::new(), |value| value.parsed(http::body_regex));
    let max_body_bytes = table.optional("max_body_bytes", 65_536, |value| value.integer(1..=1_048_576));
    if method == Some(Method::Head)
        && let Some(regex) = &regex
        && !http::matches_nothing(regex)
    {
        let problem = Problem::new("the answer to a HEAD request has no body, so it could never match")
            .allowed("an expression that an empty body matches, or method = \"GET\"");
        table.findings().refuse_at(&table.path().then("response_body_regex"), problem);
    }
    Some(HttpCheck {
        path: path?,
        method: method?,
        host: host?,
        return_code: return_code?,
        response_body_regex: regex?,
        max_body_bytes: max_body_bytes?,
        tls,
    })
}

fn tls_check(table: &mut Table<'_, '_>) -> Option<TlsCheck> {
    let tls_verify = table.flag("tls_verify", false);
    let tls_server_name =
        table.optional("tls_server_name", String::new(), |value| value.parsed(http::server_name));
    let tls_ca_file = table.optional("tls_ca_file", "", Value::text);
    if tls_verify == Some(false) && tls_ca_file.is_some_and(|file| !file.is_empty()) {
        let problem = Problem::new("has no effect, for `tls_verify` is false").suggest("tls_verify = true");
        table.findings().warn_at(&table.path().then("tls_ca_file"), problem);
    }
    Some(TlsCheck {
        tls_verify: tls_verify?,
        tls_server_name: tls_server_name?,
        tls_ca_file: tls_ca_file?.into(),
    })
}

fn dns_check(mut table: Table<'_, '_>) -> Option<DnsCheck> {
    let name = table.required("name", "the name to ask for", |value| value.parsed(dns_name::parse));
    let class = table.optional_word("class", DnsClass::In);
    let record_type = table.optional_word("type", DnsType::A);
    let transport = table.optional_word("transport", DnsTransport::Udp);
    let rcodes = table.optional("rcodes", vec![Rcode::NoError], rcodes);
    table.finish();
    Some(DnsCheck {
        name: name?,
        class: class?,
        record_type: record_type?,
        transport: transport?,
        rcodes: rcodes?,
    })
}

fn rcodes(value: &Value<'_, '_>) -> Option<Vec<Rcode>> {
    let mut seen = Vec::new();
    let rcodes = value.list(|element| {
        let rcode: Rcode = element.word()?;
        if seen.contains(&rcode) {
            return element.refuse(Problem::new("the same code twice").allowed("each code once"));
        }
        seen.push(rcode);
        Some(rcode)
    })?;
    if rcodes.is_empty() {
        let words = one_of(Rcode::ALL.iter().map(|rcode| rcode.word()), "\"");
        return value.refuse(
            Problem::new("no code, so no answer could be right").allowed(format!("at least one of {words}")),
        );
    }
    Some(rcodes)
}
