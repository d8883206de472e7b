//! What a file needs of its host.

use std::io;
use std::path::Path;

use super::*;

/// A host with `eth0` and `eth1`, both in 10.0.1.0/24 or so, and some files.
struct Host;

impl HostFacts for Host {
    fn has_interface(&self, name: &str) -> bool {
        self.interfaces().iter().any(|interface| interface == name)
    }

    fn interfaces(&self) -> Vec<String> {
        vec!["eth1".into(), "eth0".into()]
    }

    fn networks(&self) -> Vec<(String, ipnet::IpNet)> {
        let network = |interface: &str, network: &str| (interface.to_owned(), network.parse().unwrap());
        vec![network("eth1", "10.0.1.100/32"), network("eth0", "10.0.1.0/24")]
    }

    fn read_file(&self, path: &Path) -> io::Result<Vec<u8>> {
        match path.to_str() {
            Some("/token") => Ok(b"secret\n".to_vec()),
            Some("/blank") => Ok(b" \n".to_vec()),
            Some("/ca.pem") => Ok(CERTIFICATE.into()),
            Some("/broken.pem") => Ok(CERTIFICATE.replace("-----END", "---END").into()),
            _ => Err(io::Error::from(io::ErrorKind::NotFound)),
        }
    }
}

/// The form counts, not what is in it.
const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";

#[track_caller]
fn assert_host_error(text: &str, path: &str, place: &str, words: &[&str]) {
    let errors = result_on(&Host, text).expect_err(text).errors;
    assert_eq!(errors.len(), 1, "{errors:#?}");
    assert_is(&errors[0], text, path, place, words);
}

#[test]
fn interfaces_exist() {
    assert!(result_on(&Host, VALID).is_ok());
    let text = edited(&[("[\"eth0\"]", "[\"eth0\", \"eht1\"]")]);
    assert_host_error(
        &text,
        "lb.interfaces[1]",
        "\"eht1\"",
        &["no interface", "\"eth0\" or \"eth1\"", "`eth1`"],
    );
}

#[test]
fn other_errors_do_not_hide_those_of_the_host() {
    let text = edited(&[("eth0", "lan0"), ("port = 80\n", "port = -80\n")]);
    let errors = result_on(&Host, &text).unwrap_err().errors;
    let paths: Vec<&str> = errors.iter().map(|error| error.path.as_str()).collect();
    assert_eq!(paths, ["lb.interfaces[0]", "listener[0].port"]);
}

#[test]
fn files_can_be_read_and_hold_what_they_should() {
    let api = |file: &str| format!("{VALID}[api]\ntoken_file = \"{file}\"\n");
    assert!(result_on(&Host, &api("/token")).is_ok());
    assert_host_error(&api("/blank"), "api.token_file", "\"/blank\"", &["empty"]);
    assert_host_error(&api("/none"), "api.token_file", "\"/none\"", &["cannot be read"]);

    let ca = |file: &str| {
        edited(&[(
            "[backend_set.web.health_check]\nprotocol = \"tcp\"",
            &format!(
                "[backend_set.web.health_check]\nprotocol = \"https\"\ntls_verify = true\ntls_ca_file = \"{file}\""
            ),
        )])
    };
    assert!(result_on(&Host, &ca("/ca.pem")).is_ok());
    let path = "backend_set.web.health_check.tls_ca_file";
    assert_host_error(&ca("/token"), path, "\"/token\"", &["no certificate"]);
    assert_host_error(&ca("/broken.pem"), path, "\"/broken.pem\"", &["PEM"]);
    assert_host_error(&ca("/none"), path, "\"/none\"", &["cannot be read"]);
}

#[test]
fn answers_that_bypass_the_balancer_are_foreseen() {
    let with_snat =
        |snat: &str| edited(&[("[backend_set.web]", &format!("[backend_set.web]\nsnat = \"{snat}\""))]);
    let text = with_snat("never");
    let warnings = result_on(&Host, &text).unwrap().warnings;
    assert_eq!(warnings.len(), 1, "{warnings:#?}");
    let words = ["10.0.1.0/24 on eth0", "listener `web`", "backend `10.0.1.10:8080`", "snat = \"auto\""];
    assert_is(&warnings[0], &text, "backend_set.web.snat", "\"never\"", &words);
    assert!(result_on(&Host, &with_snat("auto")).unwrap().warnings.is_empty());
    let routed =
        with_snat("never").replace("10.0.1.1\"", "10.0.2.1\"").replace("\"10.0.1.100\"", "\"10.0.9.100\"");
    assert!(result_on(&Host, &routed).unwrap().warnings.is_empty());
}
