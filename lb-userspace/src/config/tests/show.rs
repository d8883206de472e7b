//! What is shown means the same.

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use super::*;
use crate::config::*;

fn word<T: Word + std::fmt::Debug>() -> impl Strategy<Value = T> {
    prop::sample::select(T::ALL)
}

fn payload(least: usize) -> impl Strategy<Value = Payload> {
    (vec(any::<u8>(), least..1024), vec(any::<u8>(), 0..1024))
        .prop_map(|(request_data, response_data)| Payload { request_data, response_data })
}

fn status_codes() -> impl Strategy<Value = StatusCodes> {
    vec((100u16..300, 300u16..600), 1..4).prop_map(|ranges| {
        let text: Vec<String> = ranges.iter().map(|(first, last)| format!("{first}-{last}")).collect();
        StatusCodes { text: text.join(","), ranges }
    })
}

fn tls() -> impl Strategy<Value = TlsCheck> {
    ("([a-z]{1,9}\\.org)?", "[ -~é]{0,20}").prop_map(|(tls_server_name, file)| TlsCheck {
        tls_verify: true,
        tls_server_name,
        tls_ca_file: file.into(),
    })
}

fn http(tls: Option<TlsCheck>) -> impl Strategy<Value = HttpCheck> {
    ("/[!-\"$-~]{0,30}", "([a-z]{1,9}\\.org)?", status_codes(), "[a-z\"'.*?\\n]{0,5}", 1u32..1_048_576)
        .prop_filter_map(
            "an expression",
            move |(path, host, return_code, response_body_regex, max_body_bytes)| {
                fancy_regex::Regex::new(&response_body_regex).ok()?;
                let method = Method::Get;
                Some(HttpCheck {
                    path,
                    method,
                    host,
                    return_code,
                    response_body_regex,
                    max_body_bytes,
                    tls: tls.clone(),
                })
            },
        )
}

fn dns() -> impl Strategy<Value = DnsCheck> {
    ("[a-z]{1,9}\\.org\\.?", word(), word(), word(), prop::sample::subsequence(Rcode::ALL.to_vec(), 1..=4))
        .prop_map(|(name, class, record_type, transport, rcodes)| DnsCheck {
            name,
            class,
            record_type,
            transport,
            rcodes,
        })
}

fn check() -> impl Strategy<Value = HealthCheck> {
    let kind = prop_oneof![
        payload(0).prop_map(|payload| (CheckProtocol::Tcp, CheckKind::Tcp(payload))),
        payload(1).prop_map(|payload| (CheckProtocol::Udp, CheckKind::Udp(payload))),
        http(None).prop_map(|http| (CheckProtocol::Http, CheckKind::Http(http))),
        tls()
            .prop_flat_map(|tls| http(Some(tls)))
            .prop_map(|http| (CheckProtocol::Https, CheckKind::Http(http))),
        dns().prop_map(|dns| (CheckProtocol::Dns, CheckKind::Dns { dns })),
    ];
    (kind, any::<u16>(), 100u32..=600_000, 1u32..=100, 1u32..=100, 1u32..=100, any::<bool>()).prop_map(
        |((protocol, kind), port, interval_ms, retries, rise, fall, bound)| HealthCheck {
            protocol,
            port,
            interval_ms,
            timeout_ms: interval_ms / 2 + 1,
            retries,
            rise,
            fall,
            source_address: bound.then(|| "10.0.9.9".parse().unwrap()),
            kind,
        },
    )
}

fn set() -> impl Strategy<Value = BackendSet> {
    let min_healthy = prop_oneof![
        Just(MinHealthy::Half),
        (1u32..100).prop_map(MinHealthy::Count),
        (1u8..=100).prop_map(MinHealthy::Percent)
    ];
    let backend = (1u16..=1000, any::<[bool; 2]>(), "([!-.0-~é]{1,20})?");
    let words =
        (word(), word(), word(), prop::sample::select(&[OnUnhealthy::Move, OnUnhealthy::Keep][..]), word());
    (words, min_healthy, 0u32..=86_400, any::<bool>(), vec(backend, 1..6), check()).prop_map(
        |(
            (policy, snat, on_unhealthy, on_unhealthy_udp, no_backend_action),
            min_healthy,
            drain_timeout_s,
            fail_open,
            backends,
            health_check,
        )| {
            let backends =
                backends.into_iter().enumerate().map(|(index, (weight, [drain, offline], name))| Backend {
                    name: format!("{index}{name}"),
                    address: format!("10.0.2.{index}").parse().unwrap(),
                    port: 8080,
                    weight,
                    backup: index > 0 && drain,
                    drain,
                    offline,
                });
            BackendSet {
                policy,
                mode: Mode::Nat,
                snat,
                on_unhealthy,
                on_unhealthy_udp,
                fail_open,
                no_backend_action,
                min_healthy,
                preempt: true,
                drain_timeout_s,
                backends: backends.collect(),
                health_check,
            }
        },
    )
}

fn listener(index: usize, backend_set: String) -> impl Strategy<Value = Listener> {
    let networks = || {
        vec((any::<u32>(), 0u8..=32), 0..4).prop_map(|networks| {
            let network = |(bits, length)| {
                ipnet::Ipv4Net::new(std::net::Ipv4Addr::from(bits), length).unwrap().trunc().into()
            };
            networks.into_iter().map(network).collect::<Vec<ipnet::IpNet>>()
        })
    };
    (
        (word(), 1u16.., 10u32..=86_400, 5u32..=86_400),
        (any::<bool>(), word()),
        networks(),
        networks(),
        any::<u32>(),
    )
        .prop_map(
            move |(
                (protocol, port, tcp, udp),
                (tcp_reset_on_idle, on_untracked_tcp),
                allow_sources,
                deny_sources,
                rate,
            )| Listener {
                name: format!("l-{index}_{backend_set}").chars().take(64).collect(),
                address: format!("10.0.1.{index}").parse().unwrap(),
                protocol,
                ports: PortRange { first: port, last: port },
                backend_set: backend_set.clone(),
                tcp_idle_timeout_s: tcp,
                udp_idle_timeout_s: udp,
                tcp_reset_on_idle,
                on_untracked_tcp,
                allow_sources,
                deny_sources,
                max_new_flows_per_s: rate,
            },
        )
}

fn config() -> impl Strategy<Value = Config> {
    let lb = (word(), word(), any::<[bool; 3]>(), 1024u32..=16_777_216).prop_map(
        |(xdp_mode, on_exit, [assign_vips, icmp_echo, pool], max_connections)| Instance {
            interfaces: vec!["eth0".into(), "eth1.7".into()],
            xdp_mode,
            snat_addresses: if pool {
                vec!["10.0.3.1".parse().unwrap(), "fd00::3".parse().unwrap()]
            } else {
                vec![]
            },
            snat_ports: PortRange { first: 1024, last: 65535 },
            max_connections,
            assign_vips,
            icmp_echo,
            on_exit,
        },
    );
    let api = any::<bool>().prop_map(|listens| Api {
        listen: if listens { "127.0.0.1:9180".into() } else { String::new() },
        token_file: if listens { "/etc/lb/token \"x\"".into() } else { String::new() },
    });
    (lb, api, btree_map("[A-Za-z0-9_-]{1,64}", set(), 1..4)).prop_flat_map(|(lb, api, backend_sets)| {
        let listeners: Vec<_> =
            backend_sets.keys().enumerate().map(|(index, name)| listener(index, name.clone())).collect();
        listeners.prop_map(move |listeners| Config {
            lb: lb.clone(),
            api: api.clone(),
            listeners,
            backend_sets: backend_sets.clone(),
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn what_is_shown_parses_to_the_same(config in config()) {
        let text = show(&config);
        let loaded = result(&text).map_err(|report| TestCaseError::fail(format!("{report}\n{text}")))?;
        prop_assert_eq!(loaded.config, config);
    }
}

#[test]
fn port_ranges_are_shown_as_such() {
    let ranges = edited(&[
        ("port = 80\n", "ports = \"100-200\"\n"),
        ("port = 8080", "port = 0"),
        ("port = 8080", "port = 0"),
    ]);
    let ranges =
        edit(&ranges, &[("[backend_set.web.health_check]", "[backend_set.web.health_check]\nport = 100")]);
    let every = edit(
        &ranges,
        &[("ports = \"100-200\"", "port = 0"), ("[lb]", "[lb]\nsnat_addresses = [\"10.0.1.101\"]")],
    );
    for (text, line) in [(ranges, "ports = \"100-200\""), (every, "port = 0")] {
        let config = accepted(&text).config;
        let shown = show(&config);
        assert!(shown.lines().any(|shown| shown == line), "{shown}");
        assert_eq!(accepted(&shown).config, config);
    }
}

#[test]
fn every_default_is_spelled_out() {
    let shown = show(&accepted(VALID).config);
    for line in [
        "snat_ports = \"1024-65535\"",
        "name = \"10.0.1.10:8080\"",
        "rise = 3",
        "source_address = \"\"",
        "request_data = \"\"",
        "[api]",
    ] {
        assert!(shown.lines().any(|shown| shown == line), "{line} is missing in\n{shown}");
    }
}
