//! What this version cannot do yet.

use super::*;
use crate::config::parse;

/// Errors of the whole judgement, as the commands do it.
fn errors(text: &str) -> Vec<Diagnostic> {
    parse(text, "lb.toml").map_or_else(|report| report.errors, |_| Vec::new())
}

#[test]
fn each_is_refused_as_such() {
    for (before, line, path) in [
        ("interfaces", "icmp_echo = false", "lb.icmp_echo"),
        ("name = \"web\"", "tcp_reset_on_idle = true", "listener[0].tcp_reset_on_idle"),
        ("name = \"web\"", "on_untracked_tcp = \"reset\"", "listener[0].on_untracked_tcp"),
        ("name = \"web\"", "allow_sources = [\"10.0.0.0/8\"]", "listener[0].allow_sources"),
        ("name = \"web\"", "deny_sources = [\"10.0.0.0/8\"]", "listener[0].deny_sources"),
        ("name = \"web\"", "max_new_flows_per_s = 1", "listener[0].max_new_flows_per_s"),
        ("\n[[backend_set", "mode = \"dsr\"\nsnat = \"never\"", "backend_set.web.mode"),
        ("\n[[backend_set", "on_unhealthy = \"reset\"", "backend_set.web.on_unhealthy"),
        ("\n[[backend_set", "no_backend_action = \"reset\"", "backend_set.web.no_backend_action"),
        ("\n[[backend_set", "preempt = false", "backend_set.web.preempt"),
    ] {
        let text = edited(&[(before, &format!("{line}\n{before}"))]);
        let found = errors(&text)
            .into_iter()
            .find(|error| error.path == path && error.message.contains("not supported yet"));
        let error = found.unwrap_or_else(|| panic!("{path}: {:#?}", errors(&text)));
        assert!(error.allowed.is_some(), "{error}");
    }
    for (line, path) in [("port = 0", "listener[0].port"), ("ports = \"80-81\"", "listener[0].ports")] {
        let errors = errors(&edited(&[("port = 80", line)]));
        let found =
            errors.iter().any(|error| error.path == path && error.message.contains("not supported yet"));
        assert!(found, "{errors:#?}");
    }
}

#[test]
fn defaults_and_their_neighbours_are_supported() {
    for (before, line) in [
        ("interfaces", "icmp_echo = true\nxdp_mode = \"native\"\non_exit = \"detach\"\nassign_vips = false"),
        (
            "name = \"web\"",
            "tcp_reset_on_idle = false\non_untracked_tcp = \"drop\"\nallow_sources = []\nmax_new_flows_per_s = 0",
        ),
        (
            "\n[[backend_set",
            "mode = \"nat\"\nsnat = \"auto\"\non_unhealthy = \"move\"\nno_backend_action = \"drop\"\npreempt = true",
        ),
        ("[lb]", "[api]\nlisten = \"\"\ntoken_file = \"\""),
        ("[lb]", "[api]\nlisten = \"127.0.0.1:9180\"\ntoken_file = \"/t\""),
    ] {
        let text = edited(&[(before, &format!("{line}\n{before}"))]);
        assert_eq!(errors(&text), [], "{line}");
    }
}

#[test]
fn a_malformed_value_is_malformed_only() {
    let text = edited(&[("name = \"web\"", "max_new_flows_per_s = -1\nname = \"web\"")]);
    let errors = errors(&text);
    assert_eq!(errors.len(), 1, "{errors:#?}");
    assert!(errors[0].message.contains("out of range"));
}
