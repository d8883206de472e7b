//! Checks of real servers: nginx by TCP, HTTP and HTTPS, dnsmasq by DNS.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use lb_tests::netns::{Backend, Checked, Family, Host, Lab, Lb, Process, document, wait};
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};

const START: Duration = Duration::from_secs(10);
const NAME: &str = "shop.example";
const CERTIFICATE: &str = "/run/certificate.pem";
const KEY: &str = "/run/key.pem";
const CA_FILE: &str = "/run/ca.pem";

/// One process, which dies with the test; everything it writes is the host's own.
const NGINX: &str = "
daemon off; master_process off; pid /run/nginx.pid; error_log stderr warn;
events {}
http {
    access_log off;
    client_body_temp_path /run/nginx-body; proxy_temp_path /run/nginx-proxy; fastcgi_temp_path /run/nginx-fastcgi;
    uwsgi_temp_path /run/nginx-uwsgi; scgi_temp_path /run/nginx-scgi;
    ssl_certificate /run/certificate.pem; ssl_certificate_key /run/key.pem;
    server {
        listen 80; listen [::]:80; listen 443 ssl; listen [::]:443 ssl;
        location = /health { return 200 'Estado:Correcto: v1\n'; }
        location = /fails { return 500; }
        location = /members { return 403; }
        location = /moved { return 302 /health; }
        location / { return 404; }
    }
}
";

/// A set with one check, and fields of what it must say.
struct Case {
    set: Checked,
    expected: Value,
}

impl Case {
    fn new(name: &'static str, backend: SocketAddr, check: &str, expected: Value) -> Self {
        let check = format!("interval_ms = 1000\ntimeout_ms = 1000\nretries = 1\n{check}");
        Self { set: Checked::new(name, [backend], check), expected }
    }

    fn assert(&self, lb: &Lb) -> Result<()> {
        let Self { set: Checked { name, backends, .. }, expected } = self;
        let status = expected["healthCheckStatus"].as_str().context("a case says what it expects")?;
        let result = lb.wait_for_result(name, &backends[0].to_string(), status)?;
        for (field, value) in expected.as_object().context("a case expects fields")? {
            assert_eq!(&result[field], value, "{name}: {field} of {result}");
        }
        Ok(())
    }
}

fn ok() -> Value {
    json!({ "healthCheckStatus": "OK" })
}

fn code(found: u16, expected: &str) -> Value {
    json!({
        "healthCheckStatus": "INVALID_STATUS_CODE", "msg": "invalid statusCode", "statusCode": found, "expected": expected
    })
}

/// Runs `lb` with all cases and asserts each of them.
fn assert_all(lab: &Lab, cases: &[Case]) -> Result<Lb> {
    let sets: Vec<_> = cases.iter().map(|case| case.set.clone()).collect();
    let lb = Lb::start(&lab.balancer, &document(lab, &sets))?;
    cases.iter().try_for_each(|case| case.assert(&lb))?;
    Ok(lb)
}

/// Starts nginx with a self-signed certificate, which the balancer finds as [`CA_FILE`].
fn start_nginx(lab: &Lab, backend: &Backend) -> Result<Process> {
    let names = vec![NAME.to_owned(), backend.address(Family::V4).to_string()];
    let key = KeyPair::generate()?;
    let certificate = CertificateParams::new(names)?.self_signed(&key)?.pem();
    backend.host.write(CERTIFICATE, &certificate)?;
    backend.host.write(KEY, &key.serialize_pem())?;
    lab.balancer.write(CA_FILE, &certificate)?;
    backend.host.write("/run/nginx.conf", NGINX)?;
    let nginx = backend.host.spawn("nginx -e stderr -c /run/nginx.conf")?;
    wait_for_port(&backend.host, "tcp", 443)?;
    Ok(nginx)
}

fn start_dnsmasq(host: &Host) -> Result<Process> {
    let options = [
        "--keep-in-foreground --conf-file=/dev/null --no-resolv --no-hosts --user=root --pid-file=",
        // Every other name would be asked of servers that are not there: REFUSED.
        "--address=/example.org/192.0.2.80 --address=/example.org/2001:db8::80 --local=/nowhere.example/",
        "--log-facility=-",
    ];
    let dnsmasq = host.spawn(&format!("dnsmasq {}", options.join(" ")))?;
    wait_for_port(host, "tcp", 53)?;
    Ok(dnsmasq)
}

fn wait_for_port(host: &Host, protocol: &str, port: u16) -> Result<()> {
    let listening = format!("ss --no-header --listening --numeric --{protocol} sport = :{port}");
    wait::until(&format!("port {port} of {}", host.name()), START, || {
        Ok((!host.run(&listening)?.success()?.stdout.is_empty()).then_some(()))
    })
}

#[test]
fn h4_h6_h7_h13_t9_to_t14_nginx_by_tcp_http_and_https() -> Result<()> {
    let lab = Lab::one_arm()?;
    let backend = &lab.backends[0];
    let _nginx = start_nginx(&lab, backend)?;
    let [v4, v6] = Family::ALL.map(|family| move |port| SocketAddr::new(backend.address(family), port));
    let https = |more: &str| format!("protocol = \"https\"\n{more}");
    let http = |more: &str| format!("protocol = \"http\"\n{more}");
    let verify = "path = \"/health\"\ntls_verify = true\n";
    let trust = format!("{verify}tls_ca_file = \"{CA_FILE}\"\n");
    let distrusted = |name: &str| json!({ "healthCheckStatus": "IO_ERROR", "code": name });
    let eproto = json!({ "healthCheckStatus": "IO_ERROR", "code": "EPROTO", "errno": "EPROTO" });
    let mismatch = json!({ "healthCheckStatus": "REGEX_MISMATCH", "msg": "response match result: failed" });
    let cases = [
        // Self-signed certificates are accepted unless `tls_verify`.
        Case::new("https", v4(443), &https("path = \"/health\""), ok()),
        Case::new("https-v6", v6(443), &https("path = \"/health\""), ok()),
        Case::new("https-404", v4(443), &https(""), code(404, "200")),
        Case::new("unknown-ca", v4(443), &https(verify), distrusted("UNABLE_TO_GET_ISSUER_CERT")),
        Case::new("ca-file", v4(443), &https(&format!("{trust}tls_server_name = {NAME:?}")), ok()),
        Case::new("ca-file-address", v4(443), &https(&trust), ok()),
        Case::new(
            "other-name",
            v4(443),
            &https(&format!("{trust}tls_server_name = \"other.example\"")),
            distrusted("ERR_TLS_CERT_ALTNAME_INVALID"),
        ),
        // TCP hides what HTTP shows.
        Case::new("tcp", v4(80), "protocol = \"tcp\"", ok()),
        Case::new("tcp-tls", v4(443), "protocol = \"tcp\"", ok()),
        Case::new("http-500", v4(80), &http("path = \"/fails\""), code(500, "200")),
        Case::new("http-403", v6(80), &http("path = \"/members\""), code(403, "200")),
        Case::new("http-302", v4(80), &http("path = \"/moved\""), code(302, "200")),
        Case::new("http-moved", v4(80), &http("path = \"/moved\"\nreturn_code = \"302\""), ok()),
        Case::new(
            "body",
            v4(80),
            &http("path = \"/health\"\nresponse_body_regex = \"Estado:Correcto:.*\""),
            ok(),
        ),
        Case::new(
            "other-body",
            v4(80),
            &http("path = \"/health\"\nresponse_body_regex = \"Estado:Error\""),
            mismatch,
        ),
        // The wrong protocol, both ways.
        Case::new("https-on-http", v4(80), &https("path = \"/health\""), eproto),
        Case::new("http-on-https", v4(443), &http("path = \"/health\""), code(400, "200")),
    ];
    let lb = assert_all(&lab, &cases)?;

    for (set, expected) in [
        ("https-404", "HTTP/1.1 404"),
        ("unknown-ca", "self-signed"),
        ("other-name", "no alternative certificate subject name"),
    ] {
        let lines = lb.diagnose(set)?["findings"][0]["try"].clone();
        let line = lines[0].as_str().with_context(|| format!("nothing to try for {set}: {lines}"))?;
        let output = lab.balancer.shell(line)?;
        let said = format!("{}{}", output.stdout, output.stderr);
        assert!(said.contains(expected), "{set}: expected `{expected}` of `{line}`: {said}");
    }
    Ok(())
}

#[test]
fn h9_h10_h11_dnsmasq_over_udp_and_tcp_over_ipv4_and_ipv6() -> Result<()> {
    let lab = Lab::one_arm()?;
    let backend = &lab.backends[0];
    let _dnsmasq = start_dnsmasq(&backend.host)?;
    let at = |address: IpAddr| SocketAddr::new(address, 53);
    let [v4, v6] = Family::ALL.map(|family| at(backend.address(family)));
    let dns = |name: &str, more: &str| format!("protocol = \"dns\"\n[dns]\nname = {name:?}\n{more}");
    let tcp = "transport = \"tcp\"";
    let rcode = |name: &str, number: u8, expected: &str| {
        let mut expected = code(number.into(), expected);
        expected["code"] = name.into();
        expected["msg"] = "invalid rcode".into();
        expected
    };
    let cases = [
        Case::new("udp-v4", v4, &dns("example.org", ""), ok()),
        Case::new("udp-v6", v6, &dns("example.org", ""), ok()),
        Case::new("tcp-v4", v4, &dns("example.org", tcp), ok()),
        Case::new("tcp-v6", v6, &dns("example.org", tcp), ok()),
        Case::new("aaaa", v6, &dns("example.org", "type = \"AAAA\""), ok()),
        Case::new("chaos", v4, &dns("version.bind", "class = \"CH\"\ntype = \"TXT\""), ok()),
        Case::new("nxdomain", v4, &dns("nowhere.example", ""), rcode("NXDOMAIN", 3, "NOERROR")),
        Case::new("nxdomain-tcp", v6, &dns("nowhere.example", tcp), rcode("NXDOMAIN", 3, "NOERROR")),
        Case::new("nxdomain-ok", v4, &dns("nowhere.example", "rcodes = [\"NOERROR\", \"NXDOMAIN\"]"), ok()),
        Case::new("refused", v4, &dns("elsewhere.example", ""), rcode("REFUSED", 5, "NOERROR")),
        Case::new("refused-ok", v6, &dns("elsewhere.example", "rcodes = [\"REFUSED\"]"), ok()),
    ];
    let lb = assert_all(&lab, &cases)?;

    for (set, expected) in [
        ("nxdomain", "status: NXDOMAIN"),
        ("nxdomain-tcp", "status: NXDOMAIN"),
        ("refused", "status: REFUSED"),
    ] {
        let lines = lb.diagnose(set)?["findings"][0]["try"].clone();
        let line = lines[0].as_str().with_context(|| format!("nothing to try for {set}: {lines}"))?;
        let said = lab.balancer.shell(line)?.stdout;
        assert!(said.contains(expected), "{set}: expected `{expected}` of `{line}`: {said}");
    }
    Ok(())
}

#[test]
fn h11_h12_checks_that_cannot_be_made_are_refused_by_their_keys() -> Result<()> {
    let lab = Lab::one_arm()?;
    let backend = SocketAddr::new(lab.backends[0].address(Family::V4), 53);
    let dns = |keys: &str| format!("protocol = \"dns\"\n[dns]\n{keys}");
    let named = |keys: &str| dns(&format!("name = \"example.org\"\n{keys}"));
    // base64 of so many zero bytes, without its padding
    let sends = |bytes: usize| {
        format!("protocol = \"udp\"\nrequest_data = \"{}\"", "A".repeat((bytes * 8).div_ceil(6)))
    };
    let accepted = [named(""), sends(1024), sends(1) + "\nresponse_data = \"QQ==\""];
    let refused = [
        ("dns.name", dns("")),
        ("dns.class", named("class = \"HS\"")),
        ("dns.type", named("type = \"MX\"")),
        ("dns.rcodes", named("rcodes = [\"FORMERR\"]")),
        ("dns.rcodes", named("rcodes = []")),
        ("request_data", sends(1025)),
    ];
    let check = |keys: &str| {
        let set = Checked::new("set", [backend], keys);
        lab.balancer.write("/run/check.toml", &document(&lab, &[set]))?;
        Lb::command(&lab.balancer, "check --config /run/check.toml")
    };
    for keys in &accepted {
        check(keys)?.success()?;
    }
    let bad_config = 2;
    for (key, keys) in &refused {
        let report = check(keys)?.exit_code(bad_config)?.stderr;
        assert!(report.contains(&format!("health_check.{key}")), "{key} is not named: {report}");
    }
    Ok(())
}
