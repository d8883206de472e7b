//! Health checks: bounds, what belongs to which protocol, and what each protocol needs.

use super::*;
use crate::config::*;

/// [`VALID`] with another check.
fn check(lines: &str) -> String {
    edited(&[(
        "[backend_set.web.health_check]\nprotocol = \"tcp\"\n",
        &format!("[backend_set.web.health_check]\n{lines}\n"),
    )])
}

fn kind(lines: &str) -> CheckKind {
    accepted(&check(lines)).config.backend_sets["web"].health_check.kind.clone()
}

#[track_caller]
fn assert_check_error(lines: &str, key: &str, place: &str, words: &[&str]) {
    assert_only_error(&check(lines), &format!("backend_set.web.health_check.{key}"), place, words);
}

#[test]
fn numbers_have_bounds() {
    for (key, low, high) in [
        ("port", 0, 65_535),
        ("retries", 1, 100),
        ("rise", 1, 100),
        ("fall", 1, 100),
        ("max_body_bytes", 1, 1_048_576),
    ] {
        for inside in [low, high] {
            accepted(&check(&format!("protocol = \"http\"\n{key} = {inside}")));
        }
        for outside in [low - 1, high + 1] {
            let words = [format!("from {low} to {high}")];
            let lines = format!("protocol = \"http\"\n{key} = {outside}");
            assert_check_error(&lines, key, &outside.to_string(), &[&words[0]]);
        }
    }
}

#[test]
fn a_check_ends_before_the_next_begins() {
    for (interval, timeout) in [(100, 1), (100, 100), (1_800_000, 600_000)] {
        accepted(&check(&format!("protocol = \"tcp\"\ninterval_ms = {interval}\ntimeout_ms = {timeout}")));
    }
    let late = "protocol = \"tcp\"\ninterval_ms = 1000\ntimeout_ms = 1001";
    assert_check_error(late, "timeout_ms", "1001", &["`interval_ms`, which is 1000", "`timeout_ms = 1000`"]);
    for (interval, timeout) in [(2000, 2000), (3000, 3000), (5000, 3000)] {
        let loaded = accepted(&check(&format!("protocol = \"tcp\"\ninterval_ms = {interval}")));
        assert_eq!(
            loaded.config.backend_sets["web"].health_check.timeout_ms, timeout,
            "the default fits the interval"
        );
    }
    for (key, value) in
        [("interval_ms", 99), ("interval_ms", 1_800_001), ("timeout_ms", 0), ("timeout_ms", 600_001)]
    {
        let lines = format!("protocol = \"tcp\"\n{key} = {value}");
        assert_check_error(&lines, key, &value.to_string(), &["out of range"]);
    }
}

#[test]
fn rise_and_fall_follow_retries() {
    let check = |lines: &str| {
        let check = &accepted(&check(&format!("protocol = \"tcp\"\n{lines}"))).config.backend_sets["web"]
            .health_check;
        (check.retries, check.rise, check.fall)
    };
    assert_eq!(check("retries = 5"), (5, 5, 5));
    assert_eq!(check("retries = 5\nrise = 2"), (5, 2, 5));
    assert_eq!(check("fall = 1"), (3, 3, 1));
}

#[test]
fn keys_of_another_protocol_name_their_own() {
    for (protocol, line, owners) in [
        ("tcp", "path = \"/\"", "http and https"),
        ("udp\"\nrequest_data = \"UA", "return_code = 200", "http and https"),
        ("http", "request_data = \"UA\"", "tcp and udp"),
        ("http", "tls_verify = true", "https"),
        ("tcp", "dns = { name = \"example.org\" }", "dns"),
        ("dns\"\ndns.name = \"example.org", "response_data = \"UA\"", "tcp and udp"),
    ] {
        let key = line.split(' ').next().unwrap();
        let owners = format!("belongs to checks with protocol {owners},");
        assert_check_error(
            &format!("protocol = \"{protocol}\"\n{line}"),
            key,
            "",
            &[&owners, "`protocol` is"],
        );
    }
}

#[test]
fn without_a_protocol_every_key_is_judged() {
    let errors =
        refused(&check("protocol = \"htpt\"\npath = \"x\"\nrequest_data = \"?\"\ntls_verify = 1")).errors;
    let paths: Vec<&str> = errors.iter().map(|error| error.path.rsplit('.').next().unwrap()).collect();
    assert_eq!(paths, ["protocol", "path", "request_data", "tls_verify"]);
    assert_eq!(errors[0].suggestion.as_deref(), Some("http"));
}

#[test]
fn payloads_are_base64() {
    let payload = Payload { request_data: b"PING".to_vec(), response_data: b"PONG".to_vec() };
    let lines = "protocol = \"tcp\"\nrequest_data = \"UElORw==\"\nresponse_data = \"UE9ORw\"";
    assert_eq!(kind(lines), CheckKind::Tcp(payload.clone()));
    assert_eq!(kind(&lines.replace("tcp", "udp")), CheckKind::Udp(payload));
    assert_check_error(
        "protocol = \"tcp\"\nresponse_data = \"PONG!\"",
        "response_data",
        "\"PONG!\"",
        &["not base64"],
    );
    let long = format!("protocol = \"tcp\"\nrequest_data = \"{}\"", "A".repeat(1368));
    assert_check_error(&long, "request_data", "\"AAA", &["1026 bytes", "at most 1024"]);
}

#[test]
fn a_udp_check_sends_something() {
    let words = ["at least one byte"];
    assert_check_error("protocol = \"udp\"", "request_data", "[backend_set.web.health_check]", &words);
    assert_check_error("protocol = \"udp\"\nrequest_data = \"\"", "request_data", "\"\"", &words);
}

#[test]
fn http_checks_take_codes_as_number_and_text() {
    let CheckKind::Http(http) = kind("protocol = \"http\"") else { panic!("http") };
    assert_eq!((http.path.as_str(), http.method, http.host.as_str(), http.tls), ("/", Method::Get, "", None));
    assert_eq!((http.return_code.text.as_str(), http.max_body_bytes), ("200", 65_536));
    for (value, inside, outside) in [("302", 302, 200), ("\"200,302\"", 302, 301), ("\"200-299\"", 250, 300)]
    {
        let CheckKind::Http(http) = kind(&format!("protocol = \"http\"\nreturn_code = {value}")) else {
            panic!("http")
        };
        assert!(http.return_code.contains(inside) && !http.return_code.contains(outside), "{value}");
        assert_eq!(http.return_code.text, value.trim_matches('"'));
    }
    for value in ["99", "600", "\"\"", "\"299-200\"", "\"200;302\"", "true"] {
        let lines = format!("protocol = \"http\"\nreturn_code = {value}");
        assert_check_error(&lines, "return_code", value, &["allowed:", "100 to 599"]);
    }
}

#[test]
fn a_bad_expression_is_shown_with_its_position() {
    let lines = "protocol = \"http\"\nresponse_body_regex = 'ok(?!'";
    assert_check_error(lines, "response_body_regex", "'ok(?!'", &["at character "]);
}

#[test]
fn a_head_request_has_no_body_to_match() {
    kind("protocol = \"http\"\nmethod = \"HEAD\"\nresponse_body_regex = \".*\"");
    let lines = "protocol = \"http\"\nmethod = \"HEAD\"\nresponse_body_regex = \"ok\"";
    assert_check_error(lines, "response_body_regex", "\"ok\"", &["HEAD", "method = \"GET\""]);
}

#[test]
fn https_adds_what_concerns_certificates() {
    let lines = "protocol = \"https\"\ntls_verify = true\ntls_server_name = \"www.example.org\"\ntls_ca_file = \"/ca.pem\"";
    let CheckKind::Http(HttpCheck { tls: Some(tls), .. }) = kind(lines) else { panic!("https") };
    assert!(tls.tls_verify);
    assert_eq!(
        (tls.tls_server_name.as_str(), tls.tls_ca_file.to_str()),
        ("www.example.org", Some("/ca.pem"))
    );
    let loaded = accepted(&check("protocol = \"https\"\ntls_ca_file = \"/ca.pem\""));
    assert!(loaded.warnings[0].message.contains("no effect"), "{}", loaded.warnings[0]);
}

#[test]
fn dns_checks_need_a_name_and_a_code() {
    let CheckKind::Dns { dns } = kind("protocol = \"dns\"\ndns.name = \"example.org\"") else {
        panic!("dns")
    };
    assert_eq!((dns.class, dns.record_type, dns.transport), (DnsClass::In, DnsType::A, DnsTransport::Udp));
    assert_eq!(dns.rcodes, [Rcode::NoError]);
    let CheckKind::Dns { dns } = kind(
        "protocol = \"dns\"\ndns = { name = \"version.bind.\", class = \"CH\", type = \"TXT\", transport = \"tcp\", rcodes = [\"NOERROR\", \"REFUSED\"] }",
    ) else {
        panic!("dns")
    };
    assert_eq!((dns.class, dns.record_type, dns.transport), (DnsClass::Ch, DnsType::Txt, DnsTransport::Tcp));
    assert_eq!(dns.rcodes, [Rcode::NoError, Rcode::Refused]);

    assert_check_error("protocol = \"dns\"", "dns", "[backend_set.web.health_check]", &["required"]);
    assert_check_error("protocol = \"dns\"\ndns.class = \"IN\"", "dns.name", "dns", &["required"]);
    let dns = |rest: &str| format!("protocol = \"dns\"\ndns.name = \"a\"\ndns.{rest}");
    assert_check_error(&dns("rcodes = []"), "dns.rcodes", "[]", &["at least one", "\"REFUSED\""]);
    assert_check_error(
        &dns("rcodes = [\"NOERROR\", \"NOERROR\"]"),
        "dns.rcodes[1]",
        "\"NOERROR\"]",
        &["twice"],
    );
    assert_check_error(&dns("rcodes = [\"NXDOMIAN\"]"), "dns.rcodes[0]", "\"NXD", &["`NXDOMAIN`"]);
    assert_check_error(&dns("type = \"MX\""), "dns.type", "\"MX\"", &["\"AAAA\""]);
    assert_check_error("protocol = \"dns\"\ndns.name = \"a..b\"", "dns.name", "\"a..b\"", &["empty"]);
}
