//! Defaults, ranges and words of every key.

use super::*;
use crate::config::*;

#[test]
fn defaults_are_those_of_the_contract() {
    let config = accepted(VALID).config;
    let lb = &config.lb;
    assert_eq!((lb.xdp_mode, lb.on_exit), (XdpMode::Auto, OnExit::Keep));
    assert_eq!((lb.snat_addresses.len(), lb.snat_ports), (0, PortRange { first: 1024, last: 65535 }));
    assert_eq!((lb.max_connections, lb.assign_vips, lb.icmp_echo), (1_048_576, true, true));
    assert_eq!(config.api, Api::default());

    let listener = &config.listeners[0];
    assert_eq!((listener.tcp_idle_timeout_s, listener.udp_idle_timeout_s), (360, 120));
    assert_eq!((listener.tcp_reset_on_idle, listener.on_untracked_tcp), (false, OnUntrackedTcp::Pickup));
    assert!(listener.allow_sources.is_empty() && listener.deny_sources.is_empty());
    assert_eq!(listener.max_new_flows_per_s, 0);

    let set = &config.backend_sets["web"];
    assert_eq!((set.policy, set.mode, set.snat), (Policy::FiveTuple, Mode::Nat, Snat::Always));
    assert_eq!((set.on_unhealthy, set.on_unhealthy_udp), (OnUnhealthy::Keep, OnUnhealthy::Move));
    assert_eq!((set.fail_open, set.no_backend_action), (false, NoBackendAction::Drop));
    assert_eq!((set.min_healthy, set.preempt, set.drain_timeout_s), (MinHealthy::Half, true, 300));

    let backend = &set.backends[0];
    assert_eq!((backend.name.as_str(), backend.weight), ("10.0.1.10:8080", 1));
    assert!(!backend.backup && !backend.drain && !backend.offline);

    let check = &set.health_check;
    assert_eq!((check.port, check.interval_ms, check.timeout_ms), (0, 10_000, 3_000));
    assert_eq!((check.retries, check.rise, check.fall, check.source_address), (3, 3, 3, None));
    assert_eq!(check.kind, CheckKind::Tcp(Payload::default()));
}

#[test]
fn an_ipv6_backend_is_named_with_brackets() {
    let text = VALID.replace("10.0.1.100", "fd00::100").replace("10.0.1.1", "fd00::1");
    assert_eq!(accepted(&text).config.backend_sets["web"].backends[1].name, "[fd00::11]:8080");
}

/// Where a key stands in [`VALID`], as the line it goes before.
const LB: &str = "interfaces = ";
const LISTENER: &str = "name = \"web\"";
const SET: &str = "\n[[backend_set.web.backend]]\naddress = \"10.0.1.10\"";
const BACKEND: &str = "address = \"10.0.1.10\"\n";

fn with(before: &str, line: &str) -> String {
    edited(&[(before, &format!("{line}\n{before}"))])
}

#[test]
fn numbers_have_bounds() {
    for (before, key, low, high) in [
        (LB, "max_connections", 1024, 16_777_216),
        (LISTENER, "tcp_idle_timeout_s", 10, 86_400),
        (LISTENER, "udp_idle_timeout_s", 5, 86_400),
        (LISTENER, "max_new_flows_per_s", 0, i64::from(u32::MAX)),
        (SET, "drain_timeout_s", 0, 86_400),
        (SET, "min_healthy", 1, 16_384),
        (BACKEND, "weight", 0, 1000),
    ] {
        for inside in [low, high] {
            accepted(&with(before, &format!("{key} = {inside}")));
        }
        for outside in [low - 1, high + 1] {
            let error = only_error(&with(before, &format!("{key} = {outside}")));
            assert!(error.path.ends_with(key), "{error}");
            assert!(error.to_string().contains(&format!("from {low} to {high}")), "{error}");
            assert_eq!(error.value, Some(serde_json::json!(outside)));
        }
    }
}

#[test]
fn words_are_taken_from_their_list() {
    for (before, key, words, meant, typo) in [
        (LB, "xdp_mode", XdpMode::WORDS, "generic", "genric"),
        (LB, "on_exit", OnExit::WORDS, "detach", "detatch"),
        (LISTENER, "on_untracked_tcp", OnUntrackedTcp::WORDS, "pickup", "pick-up"),
        (SET, "policy", Policy::WORDS, "five_tuple", "fivetuple"),
        (SET, "snat", Snat::WORDS, "always", "Always"),
        (SET, "on_unhealthy", OnUnhealthy::WORDS, "reset", "rest"),
        (SET, "on_unhealthy_udp", &["move", "keep"], "move", "moved"),
        (SET, "no_backend_action", NoBackendAction::WORDS, "drop", "dropp"),
    ] {
        for word in words {
            accepted(&with(before, &format!("{key} = \"{word}\"")));
        }
        let error = only_error(&with(before, &format!("{key} = \"{typo}\"")));
        assert!(error.path.ends_with(key), "{error}");
        assert_eq!(error.suggestion.as_deref(), Some(meant), "{error}");
        for word in words {
            assert!(error.allowed.as_ref().unwrap().contains(word), "{error}");
        }
    }
    let error = only_error(&with(SET, "on_unhealthy_udp = \"reset\""));
    assert_eq!(error.allowed.unwrap(), "\"move\" or \"keep\"");
}

#[test]
fn ports_are_one_or_a_range() {
    let ports = |line: &str| {
        edited(&[("port = 80\n", line), ("port = 8080", "port = 0"), ("port = 8080", "port = 0")])
            .replace("[backend_set.web.health_check]", "[backend_set.web.health_check]\nport = 80")
    };
    let range = |text: &str| accepted(text).config.listeners[0].ports;
    assert_eq!(range(&ports("ports = \"8000-8100\"\n")), PortRange { first: 8000, last: 8100 });
    let every = ports("port = 0\n").replace("[lb]", "[lb]\nsnat_addresses = [\"10.0.1.101\"]");
    assert_eq!(range(&every), PortRange::EVERY);
    assert_eq!(range(&edited(&[("port = 80\n", "ports = \"80-80\"\n")])), PortRange { first: 80, last: 80 });

    assert_only_error(
        &ports("ports = \"8100-8000\"\n"),
        "listener[0].ports",
        "\"8100",
        &["reversed", "8000-8100"],
    );
    let text = ports("port = \"8000-8100\"\n");
    assert_only_error(&text, "listener[0].port", "\"8000", &["ports = \"8000-8100\""]);
    let text = ports("port = 80\nports = \"8000-8100\"\n");
    assert_only_error(&text, "listener[0].ports", "\"8000", &["exactly one of `port` and `ports`"]);
    let text = edited(&[("port = 80\n", "")]);
    assert_only_error(&text, "listener[0].port", "[[listener]]", &["ports = \"first-last\""]);
}

#[test]
fn min_healthy_has_three_forms() {
    for (value, meaning) in
        [("\"half\"", MinHealthy::Half), ("2", MinHealthy::Count(2)), ("\"75%\"", MinHealthy::Percent(75))]
    {
        let loaded = accepted(&with(SET, &format!("min_healthy = {value}")));
        assert_eq!(loaded.config.backend_sets["web"].min_healthy, meaning);
    }
    for value in ["0", "-1", "\"0%\"", "\"101%\"", "\"%\"", "\"most\"", "true", "1.5"] {
        let text = with(SET, &format!("min_healthy = {value}"));
        assert_only_error(&text, "backend_set.web.min_healthy", value, &["allowed:"]);
    }
    assert_eq!(only_error(&with(SET, "min_healthy = \"2\"")).suggestion.unwrap(), "2");
    let warnings = accepted(&with(SET, "min_healthy = 3")).warnings;
    assert!(warnings[0].message.contains("more than the 2 backends"), "{}", warnings[0]);
}

#[test]
fn sources_are_networks() {
    let loaded = accepted(&with(LISTENER, "allow_sources = [\"10.0.0.0/8\", \"192.0.2.1\"]"));
    let networks: Vec<String> =
        loaded.config.listeners[0].allow_sources.iter().map(ToString::to_string).collect();
    assert_eq!(networks, ["10.0.0.0/8", "192.0.2.1/32"]);
    let text = with(LISTENER, "deny_sources = [\"10.0.0.0/8\", \"10.0.1.7/24\"]");
    assert_only_error(
        &text,
        "listener[0].deny_sources[1]",
        "\"10.0.1.7/24\"",
        &["did you mean `10.0.1.0/24`?"],
    );
}

#[test]
fn lists_of_the_instance_hold_each_thing_once() {
    let text = edited(&[("[\"eth0\"]", "[\"eth0\", \"eth0\"]")]);
    assert_only_error(&text, "lb.interfaces[1]", "\"eth0\"]", &["twice"]);
    assert_only_error(&edited(&[("[\"eth0\"]", "[]")]), "lb.interfaces", "[]", &["at least one"]);
    let text = with(LB, "snat_addresses = [\"10.0.1.101\", \"10.0.1.101\"]");
    assert_only_error(&text, "lb.snat_addresses[1]", "\"10.0.1.101\"]", &["twice"]);
    let list =
        |count: usize| (0..count).map(|i| format!("\"10.9.0.{}\"", i + 1)).collect::<Vec<_>>().join(", ");
    accepted(&with(LB, &format!("snat_addresses = [{}]", list(64))));
    let text = with(LB, &format!("snat_addresses = [{}]", list(65)));
    assert_only_error(&text, "lb.snat_addresses", "[", &["65 IPv4", "at most 64"]);
}

#[test]
fn an_api_for_others_needs_a_token() {
    for line in [
        "listen = \"127.0.0.1:9180\"",
        "listen = \"[::1]:9180\"",
        "listen = \"0.0.0.0:80\"\ntoken_file = \"/t\"",
    ] {
        accepted(&format!("{VALID}[api]\n{line}\n"));
    }
    for address in ["0.0.0.0:9180", "[::]:9180", "10.0.0.1:9180"] {
        let text = format!("{VALID}[api]\nlisten = \"{address}\"\n");
        assert_only_error(&text, "api.listen", "\"", &["token_file", "127.0.0.1:9180"]);
    }
}

#[test]
fn drain_and_offline_go_together() {
    let backend =
        &accepted(&with(BACKEND, "drain = true\noffline = true")).config.backend_sets["web"].backends[0];
    assert!(backend.drain && backend.offline, "offline wins, and undoing it leaves the drain");
}
