//! What this version cannot do yet.

use super::*;
use crate::config::parse;

/// Errors of the whole judgement, as the commands do it.
fn errors(text: &str) -> Vec<Diagnostic> {
    parse(text, "lb.toml").map_or_else(|report| report.errors, |_| Vec::new())
}

#[test]
fn each_is_refused_as_such() {
    let text = edited(&[("\n[[backend_set", "preempt = false\n\n[[backend_set")]);
    let found = errors(&text).into_iter().find(|error| error.path == "backend_set.web.preempt");
    let error = found.unwrap_or_else(|| panic!("{:#?}", errors(&text)));
    assert!(error.message.contains("not supported yet") && error.allowed.is_some(), "{error}");
}

#[test]
fn defaults_and_their_neighbours_are_supported() {
    for (before, line) in [
        ("interfaces", "icmp_echo = false\nxdp_mode = \"native\"\non_exit = \"detach\"\nassign_vips = false"),
        (
            "name = \"web\"",
            "tcp_reset_on_idle = true\non_untracked_tcp = \"reset\"\nallow_sources = [\"10.0.0.0/8\"]\ndeny_sources = [\"10.1.0.0/16\"]\nmax_new_flows_per_s = 1",
        ),
        (
            "\n[[backend_set",
            "mode = \"nat\"\nsnat = \"auto\"\non_unhealthy = \"reset\"\nno_backend_action = \"reset\"\npreempt = true",
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
    let text = edited(&[("\n[[backend_set", "preempt = 1\n\n[[backend_set")]);
    let errors = errors(&text);
    assert_eq!(errors.len(), 1, "{errors:#?}");
    assert!(!errors[0].message.contains("not supported"), "{}", errors[0]);
}
