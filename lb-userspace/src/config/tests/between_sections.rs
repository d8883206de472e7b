//! What may not stand in one file together. Each error names both sides.

use super::*;

#[test]
fn listeners_do_not_share_a_name() {
    let text = edit(&format!("{VALID}{OTHER_LISTENER}"), &[("\"other\"", "\"web\"")]);
    assert_only_error(&text, "listener[1].name", "\"web\"", &["line 6", "same name"]);
}

#[test]
fn listeners_do_not_share_packets() {
    let wide = "[lb]\nsnat_addresses = [\"10.0.1.101\"]";
    for (first, second, shared) in [
        (("tcp", "port = 80"), ("tcp", "port = 80"), "tcp port 80"),
        (("tcp", "port = 80"), ("tcp_and_udp", "port = 80"), "tcp port 80"),
        (("tcp_and_udp", "port = 80"), ("udp", "port = 80"), "udp port 80"),
        (("tcp", "port = 80"), ("tcp", "ports = \"70-90\""), "tcp port 80"),
        (("tcp", "ports = \"70-90\""), ("tcp", "ports = \"85-95\""), "tcp ports 85-90"),
        (("tcp", "port = 0"), ("tcp", "port = 80"), "tcp port 80"),
        (("udp", "port = 0"), ("udp", "port = 0"), "udp every port"),
        (("tcp_and_udp", "port = 80"), ("tcp_and_udp", "port = 80"), "port 80"),
    ] {
        let text = format!("{VALID}{OTHER_LISTENER}");
        let text =
            edit(&text, &[("[lb]", wide), ("\"tcp\"\nport = 80", &format!("\"{}\"\n{}", first.0, first.1))]);
        let text = edit(&text, &[("\"tcp\"\nport = 81", &format!("\"{}\"\n{}", second.0, second.1))]);
        let errors = refused(&text).errors;
        let overlaps: Vec<&Diagnostic> =
            errors.iter().filter(|error| error.message.contains("belongs to")).collect();
        assert_eq!(overlaps.len(), 1, "{errors:#?}");
        let key = second.1.split(' ').next().unwrap();
        assert_is(
            overlaps[0],
            &text,
            &format!("listener[1].{key}"),
            "",
            &[shared, "10.0.1.100", "listener `web` (line 6)"],
        );
    }
}

#[test]
fn listeners_side_by_side_are_fine() {
    for (old, new) in [
        ("\"other\"", "\"other\""),
        ("\"tcp\"\nport = 81", "\"udp\"\nport = 80"),
        ("10.0.1.100\"\nprotocol = \"tcp\"\nport = 81", "10.0.1.99\"\nprotocol = \"tcp\"\nport = 80"),
    ] {
        accepted(&format!("{VALID}{}", edit(OTHER_LISTENER, &[(old, new)])));
    }
}

#[test]
fn a_range_collides_with_each_port_inside() {
    let mut text = edit(
        VALID,
        &[("port = 80\n", "ports = \"100-200\"\n"), ("port = 8080", "port = 0"), ("port = 8080", "port = 0")],
    )
    .replace("[backend_set.web.health_check]", "[backend_set.web.health_check]\nport = 100");
    for port in ["100-110", "150-300", "199-199", "250-260"] {
        text += &OTHER_LISTENER.replace("other", port).replace("port = 81", &format!("ports = \"{port}\""));
    }
    let errors = refused(&text).errors;
    let overlaps: Vec<&str> = errors
        .iter()
        .filter(|error| error.message.contains("belongs to"))
        .map(|error| error.path.as_str())
        .collect();
    assert_eq!(
        overlaps,
        ["listener[1].ports", "listener[2].ports", "listener[3].ports", "listener[4].ports"]
    );
    assert!(
        errors.iter().any(|error| error.message.contains("listener `150-300`")),
        "the widest so far: {errors:#?}"
    );
}

#[test]
fn a_listener_names_a_set_of_the_file() {
    let text = edited(&[("backend_set = \"web\"", "backend_set = \"wbe\"")]);
    assert_only_error(&text, "listener[0].backend_set", "\"wbe\"", &["did you mean `web`?"]);
}

#[test]
fn a_set_without_listener_is_a_warning() {
    let text = edited(&[
        ("[backend_set.web]", "[backend_set.spare]"),
        ("web.backend", "spare.backend"),
        ("web.backend", "spare.backend"),
        ("web.health", "spare.health"),
    ]);
    let warnings =
        accepted(&format!("{text}\n{}", VALID.split_once("[backend_set.web]").unwrap().1)).warnings;
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert_eq!(warnings[0].path, "backend_set.spare");
    assert!(warnings[0].message.contains("no listener"), "{}", warnings[0]);
}

#[test]
fn families_do_not_mix() {
    let text = edited(&[("10.0.1.11", "fd00::11")]);
    let words = ["IPv6", "IPv4", "listener `web` (line 7)", "10.0.1.100"];
    assert_only_error(&text, "backend_set.web.backend[1].address", "\"fd00::11\"", &words);

    let text = edited(&[("10.0.1.100", "fd00::100")]);
    let words = ["IPv6", "backend `10.0.1.10:8080` (line 15)", "10.0.1.10"];
    assert_only_error(&text, "listener[0].address", "\"fd00::100\"", &words);

    let text = edited(&[("[lb]", "[lb]\nsnat_addresses = [\"fd00::9\"]")]);
    let words = ["`lb.snat_addresses` (line 3)", "IPv6", "at least one IPv4"];
    assert_only_error(&text, "listener[0].address", "\"10.0.1.100\"", &words);
    accepted(&edited(&[("[lb]", "[lb]\nsnat_addresses = [\"fd00::9\", \"10.0.1.9\"]")]));
    let never = edited(&[
        ("[lb]", "[lb]\nsnat_addresses = [\"fd00::9\"]"),
        ("[backend_set.web]", "[backend_set.web]\nsnat = \"never\""),
    ]);
    accepted(&never);

    let text = edited(&[
        ("protocol = \"tcp\"\nport", "protocol = \"tcp\"\nport"),
        ("[backend_set.web.health_check]", "[backend_set.web.health_check]\nsource_address = \"fd00::1\""),
    ]);
    let words = ["IPv6", "backend `10.0.1.10:8080`"];
    assert_only_error(&text, "backend_set.web.health_check.source_address", "\"fd00::1\"", &words);
}

#[test]
fn a_mixed_set_without_listener_is_refused_too() {
    let text = edited(&[("10.0.1.11", "fd00::11")]);
    let (before, after) = text.split_once("[[listener]]").unwrap();
    let text = format!("{before}{}", &after[after.find("[backend_set").unwrap()..]);
    let words = ["backend `10.0.1.10:8080`"];
    assert_only_error(&text, "backend_set.web.backend[1].address", "\"fd00::11\"", &words);
}

#[test]
fn backends_are_there_once() {
    let text = edited(&[("10.0.1.11", "10.0.1.10")]);
    let words = ["same address and port", "backend `10.0.1.10:8080` (line 14)"];
    assert_only_error(&text, "backend_set.web.backend[1].address", "\"10.0.1.10\"", &words);
    accepted(&edited(&[("10.0.1.11\"\nport = 8080", "10.0.1.10\"\nport = 8081")]));

    let text = edited(&[("address = \"10.0.1.11\"", "name = \"10.0.1.10:8080\"\naddress = \"10.0.1.11\"")]);
    let words = ["same name", "(line 14)"];
    assert_only_error(&text, "backend_set.web.backend[1].name", "\"10.0.1.10:8080\"", &words);
}

#[test]
fn a_backend_is_another_host() {
    let text = edited(&[("10.0.1.11", "10.0.1.100")]);
    let words = ["the VIP of listener `web` (line 7)"];
    assert_only_error(&text, "backend_set.web.backend[1].address", "\"10.0.1.100\"", &words);
    let text = edited(&[("[lb]", "[lb]\nsnat_addresses = [\"10.0.1.11\"]")]);
    let words = ["the SNAT address lb.snat_addresses[0] (line 3)"];
    assert_only_error(&text, "backend_set.web.backend[1].address", "\"10.0.1.11\"", &words);
    for (address, kind) in [
        ("224.0.0.1", "multicast"),
        ("127.0.0.1", "loopback"),
        ("0.0.0.0", "unspecified"),
        ("255.255.255.255", "broadcast"),
    ] {
        let text = edited(&[("10.0.1.11", address)]);
        assert_only_error(
            &text,
            "backend_set.web.backend[1].address",
            &format!("\"{address}\""),
            &[kind, "unicast"],
        );
    }
}

#[test]
fn a_set_has_somebody_to_give_flows_to() {
    let both = |line: &str| {
        edited(&[
            ("port = 8080", &format!("port = 8080\n{line}")),
            ("port = 8080\n\n[backend", &format!("port = 8080\n{line}\n\n[backend")),
        ])
    };
    let (before, after) = VALID.split_once("[[backend_set.web.backend]]").unwrap();
    let none = format!("{before}{}", &after[after.find("[backend_set.web.health_check]").unwrap()..]);
    assert_only_error(
        &none,
        "backend_set.web.backend",
        "[backend_set.web]",
        &["without backends", "[[backend_set.web.backend]]"],
    );
    let empty = none.replace("[backend_set.web]", "[backend_set.web]\nbackend = []");
    assert_only_error(&empty, "backend_set.web.backend", "[]", &["without backends"]);

    let text = both("backup = true");
    assert_only_error(
        &text,
        "backend_set.web.backend[0].backup",
        "true",
        &["every backend", "backup = false"],
    );
    assert_eq!(refused(&text).warnings, []);
    let text = both("weight = 0");
    assert_only_error(&text, "backend_set.web.backend[0].weight", "0", &["every backend", "1 to 1000"]);

    let text = edited(&[
        ("port = 8080\n\n[[", "port = 8080\nweight = 0\n\n[["),
        ("port = 8080\n\n[backend", "port = 8080\nbackup = true\n\n[backend"),
    ]);
    let warnings = accepted(&text).warnings;
    assert!(warnings[0].message.contains("only backups have a weight"), "{}", warnings[0]);
}

#[test]
fn a_pair_that_does_not_preempt_has_one_backup() {
    let pair = edited(&[
        ("[backend_set.web]", "[backend_set.web]\npreempt = false"),
        ("port = 8080\n\n[backend", "port = 8080\nbackup = true\n\n[backend"),
    ]);
    accepted(&pair);
    let text = edit(&pair, &[("backup = true", "backup = false")]);
    assert_only_error(&text, "backend_set.web.preempt", "false", &["2 backends, 0 of them", "exactly 2"]);
    let third = "[[backend_set.web.backend]]\naddress = \"10.0.1.12\"\nport = 8080\n";
    assert_only_error(
        &format!("{pair}{third}"),
        "backend_set.web.preempt",
        "false",
        &["3 backends, 1 of them"],
    );
}

#[test]
fn dsr_changes_neither_port_nor_source() {
    let dsr = |lines: &str| {
        edited(&[
            ("[backend_set.web]", &format!("[backend_set.web]\nmode = \"dsr\"\n{lines}")),
            ("port = 8080", "port = 80"),
            ("port = 8080", "port = 80"),
        ])
    };
    accepted(&dsr("snat = \"never\""));
    let text = dsr("snat = \"auto\"");
    assert_only_error(&text, "backend_set.web.snat", "\"auto\"", &["\"dsr\"", "snat = \"never\""]);
    let text = dsr("");
    assert_only_error(
        &text,
        "backend_set.web.mode",
        "\"dsr\"",
        &["`snat` is \"always\"", "snat = \"never\""],
    );
    let text = edit(&dsr("snat = \"never\""), &[("11\"\nport = 80", "11\"\nport = 81")]);
    let words = ["listener `web` (line 9) has port 80", "\"dsr\"", "port = 80"];
    assert_only_error(&text, "backend_set.web.backend[1].port", "81", &words);
}

#[test]
fn backends_keep_the_port_if_there_are_several() {
    let ports = edited(&[("port = 80\n", "ports = \"100-200\"\n"), ("port = 8080", "port = 0")]);
    let ports =
        edit(&ports, &[("[backend_set.web.health_check]", "[backend_set.web.health_check]\nport = 100")]);
    let words = ["listener `web` (line 9) takes several ports", "`port = 0`"];
    assert_only_error(&ports, "backend_set.web.backend[1].port", "8080", &words);
    accepted(&edit(&ports, &[("port = 8080", "port = 0")]));

    let text = edited(&[
        ("port = 8080", "port = 0"),
        ("[backend_set.web.health_check]", "[backend_set.web.health_check]\nport = 100"),
    ]);
    accepted(&text);
}

#[test]
fn a_check_has_a_port() {
    let text = edited(&[
        ("port = 80\n", "ports = \"100-200\"\n"),
        ("port = 8080", "port = 0"),
        ("port = 8080", "port = 0"),
    ]);
    let words = ["no port to check", "backend `10.0.1.10:0` (line 16)", "1 to 65535"];
    assert_only_error(&text, "backend_set.web.health_check.port", "[backend_set.web.health_check]", &words);
}

#[test]
fn a_translated_flow_finds_a_source_port() {
    let every =
        edited(&[("port = 80\n", "port = 0\n"), ("port = 8080", "port = 0"), ("port = 8080", "port = 0")]);
    let every =
        edit(&every, &[("[backend_set.web.health_check]", "[backend_set.web.health_check]\nport = 80")]);
    assert_only_error(&every, "listener[0].port", "0", &["every port of 10.0.1.100", "`lb.snat_addresses`"]);
    accepted(&edit(&every, &[("[lb]", "[lb]\nsnat_addresses = [\"10.0.1.101\"]")]));
    accepted(&edit(&every, &[("[backend_set.web]", "[backend_set.web]\nsnat = \"never\"")]));

    let narrow = edited(&[("[lb]", "[lb]\nsnat_ports = \"80-81\"")]);
    accepted(&narrow);
    let text = format!("{narrow}{OTHER_LISTENER}");
    let words = ["80-81", "listener `web` and listener `other`", "10.0.1.100"];
    assert_only_error(&text, "lb.snat_ports", "\"80-81\"", &words);
}

#[test]
fn sizes_have_limits() {
    let listener = |index: usize| {
        let address = std::net::Ipv4Addr::from(0x0b00_0000 + index as u32).to_string();
        OTHER_LISTENER.replace("other", &format!("l{index}")).replace("10.0.1.100", &address)
    };
    let listeners: String = (0..4096).map(listener).collect();
    let text = format!("{VALID}{listeners}");
    let error = only_error(&text);
    assert_eq!(error.path, "listener[4096]");
    assert!(error.to_string().contains("at most 4096"), "{error}");

    let backend = |index: u32| {
        let address = std::net::Ipv4Addr::from(0x0b00_0000 + index);
        format!("[[backend_set.web.backend]]\naddress = \"{address}\"\nport = 1\n")
    };
    let backends: String = (0..16_382).map(backend).collect();
    accepted(&format!("{VALID}{backends}"));
    let error = only_error(&format!("{VALID}{backends}{}", backend(16_382)));
    assert!(error.to_string().contains("at most 16384"), "{error}");
}

#[test]
fn ranges_have_a_limit() {
    // 1-65534 is the range of the most blocks: 30.
    let listener = |index: usize| {
        let address = std::net::Ipv4Addr::from(0x0b00_0000 + index as u32).to_string();
        OTHER_LISTENER
            .replace("other", &format!("l{index}"))
            .replace("10.0.1.100", &address)
            .replace("\"tcp\"\nport = 81", "\"tcp_and_udp\"\nports = \"1-65534\"")
    };
    let base = edited(&[
        ("port = 8080", "port = 0"),
        ("port = 8080", "port = 0"),
        ("[backend_set.web.health_check]", "[backend_set.web.health_check]\nport = 80"),
        ("[backend_set.web]", "[backend_set.web]\nsnat = \"never\""),
    ]);
    let listeners = |count: usize| (0..count).map(listener).collect::<String>();
    accepted(&format!("{base}{}", listeners(1092)));
    let error = only_error(&format!("{base}{}", listeners(1093)));
    assert_eq!(error.path, "listener[1093].ports");
    assert!(error.to_string().contains("at most 65536"), "{error}");
}

#[test]
fn an_allow_list_of_the_other_family_is_a_warning() {
    let text = |list: &str| edited(&[("name = \"web\"", &format!("name = \"web\"\nallow_sources = {list}"))]);
    let warnings = accepted(&text("[\"fd00::/8\"]")).warnings;
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert_eq!(warnings[0].path, "listener[0].allow_sources");
    assert!(warnings[0].message.contains("nobody"), "{}", warnings[0]);
    for list in ["[]", "[\"10.0.0.0/8\"]", "[\"fd00::/8\", \"10.0.0.0/8\"]"] {
        assert_eq!(accepted(&text(list)).warnings, [], "{list}");
    }
}
