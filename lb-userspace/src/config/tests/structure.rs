//! Tables, keys and types.

use super::*;

#[test]
fn an_empty_file_lacks_its_interfaces() {
    let report = refused("");
    assert_eq!(report.errors.len(), 1);
    assert_eq!((report.errors[0].line, report.errors[0].column), (1, 1));
    assert!(report.to_string().contains("interfaces"), "{report}");
}

#[test]
fn unknown_keys_are_refused_with_the_nearest_name() {
    for (old, new, path, key) in [
        ("interfaces", "xdpmode = \"auto\"\ninterfaces", "lb.xdpmode", "xdp_mode"),
        ("port = 80", "port = 80\nbackend-set = \"web\"", "listener[0].backend-set", "backend_set"),
        ("port = 8080", "port = 8080\nwieght = 1", "backend_set.web.backend[0].wieght", "weight"),
        ("[backend_set.web]", "[backend_set.web]\npolcy = \"five_tuple\"", "backend_set.web.polcy", "policy"),
        ("[lb]", "[ap]\nlisten = \"\"\n[lb]", "ap", "api"),
    ] {
        let place = path.rsplit('.').next().unwrap();
        let suggestion = format!("did you mean `{key}`?");
        assert_only_error(&edited(&[(old, new)]), path, place, &["unknown key", &suggestion]);
    }
}

#[test]
fn a_key_like_none_lists_what_may_stand_there() {
    let error = only_error(&edited(&[("[lb]", "[lb]\nzzz = 1")]));
    assert_eq!(error.suggestion, None);
    assert!(error.allowed.unwrap().contains("snat_addresses"));
}

#[test]
fn required_keys_are_missed_at_their_table() {
    for (line, path, place) in [
        ("interfaces = [\"eth0\"]\n", "lb.interfaces", "[lb]"),
        ("name = \"web\"\n", "listener[0].name", "[[listener]]"),
        ("address = \"10.0.1.100\"\n", "listener[0].address", "[[listener]]"),
        ("protocol = \"tcp\"\n", "listener[0].protocol", "[[listener]]"),
        ("port = 80\n", "listener[0].port", "[[listener]]"),
        ("address = \"10.0.1.10\"\n", "backend_set.web.backend[0].address", "[[backend_set.web.backend]]"),
        ("port = 8080\n", "backend_set.web.backend[0].port", "[[backend_set.web.backend]]"),
        ("backend_set = \"web\"\n", "listener[0].backend_set", "[[listener]]"),
        (
            "[backend_set.web.health_check]\nprotocol = \"tcp\"\n",
            "backend_set.web.health_check",
            "[backend_set.web]",
        ),
    ] {
        let key = path.rsplit('.').next().unwrap();
        assert_only_error(&edited(&[(line, "")]), path, place, &["required", key, "allowed:"]);
    }
    let text = format!(
        "{}\n[backend_set.web.health_check]\n",
        VALID.split("[backend_set.web.health_check]").next().unwrap()
    );
    assert_only_error(
        &text,
        "backend_set.web.health_check.protocol",
        "[backend_set.web.health_check]",
        &["\"dns\""],
    );
}

#[test]
fn wrong_types_are_named() {
    for (old, new, path, words) in [
        ("port = 80\n", "port = \"80\"\n", "listener[0].port", ["a string", "did you mean `80`?"]),
        ("port = 80\n", "port = 80.5\n", "listener[0].port", ["a float", "an integer from 0 to 65535"]),
        ("port = 80\n", "port = 2026-11-01\n", "listener[0].port", ["a datetime", "an integer"]),
        ("[\"eth0\"]", "\"eth0\"", "lb.interfaces", ["a string", "an array"]),
        ("[\"eth0\"]", "[\"eth0\", 1]", "lb.interfaces[1]", ["an integer", "a string"]),
        ("\"tcp\"\nport = 80\n", "6\nport = 80\n", "listener[0].protocol", ["an integer", "\"tcp_and_udp\""]),
        ("[lb]", "[lb]\nassign_vips = \"true\"", "lb.assign_vips", ["true or false", "did you mean `true`?"]),
        ("[lb]", "api = 1\n[lb]", "api", ["an integer", "a table"]),
        ("[lb]", "[[api]]\n[lb]", "api", ["an array", "a table"]),
    ] {
        let error = only_error(&edited(&[(old, new)]));
        assert_eq!(error.path, path, "{error}");
        for word in words {
            assert!(error.to_string().contains(word), "{word}: {error}");
        }
    }
}

#[test]
fn a_single_table_for_several_is_refused_and_still_judged() {
    let text = edited(&[("[[listener]]", "[listener]"), ("port = 80\n", "port = 70000\n")]);
    let errors = refused(&text).errors;
    assert_eq!(errors.len(), 2, "{errors:#?}");
    assert_is(&errors[0], &text, "listener", "[listener]", &["[[listener]]"]);
    assert_is(&errors[1], &text, "listener[0].port", "70000", &["out of range"]);
}

#[test]
fn sets_are_tables_with_names() {
    let text = "[lb]\ninterfaces = [\"eth0\"]\n[[backend_set]]\nname = \"web\"\n";
    assert_only_error(text, "backend_set", "[[backend_set]]", &["[backend_set.NAME]"]);
    let text = format!("{VALID}[backend_set.\"a b\"]\n");
    let errors = refused(&text).errors;
    let error =
        errors.iter().find(|error| error.path == "backend_set.\"a b\"").expect("an error about the name");
    assert_is(error, &text, "backend_set.\"a b\"", "\"a b\"]", &["letters, digits", "`a-b`"]);
}

#[test]
fn inline_tables_and_dotted_keys_are_the_same() {
    let text = r#"
lb.interfaces = ["eth0"]
listener = [{ name = "web", address = "10.0.1.100", protocol = "tcp", port = 80, backend_set = "web" }]
[backend_set]
web.backend = [{ address = "10.0.1.10", port = 8080 }, { address = "10.0.1.11", port = 8080 }]
web.health_check.protocol = "tcp"
"#;
    assert_eq!(accepted(text).config, accepted(VALID).config);
    let text = text.replace("port = 80,", "port = 80, prt = 1,");
    assert_only_error(&text, "listener[0].prt", "prt", &["`port`"]);
}

#[test]
fn slips_in_values_do_not_hide_other_errors() {
    let text = edited(&[
        ("[\"eth0\"]", "[eth0]"),
        ("\"10.0.1.100\"", "10.0.1.100"),
        ("port = 80\n", "port = 0x1ffff\n"),
    ]);
    let errors = refused(&text).errors;
    let lines: Vec<usize> = errors.iter().map(|error| error.line).collect();
    assert_eq!(lines, [3, 7, 9], "{errors:#?}");
    assert!(errors[0].message.contains("invalid TOML at `eth0`"), "{}", errors[0]);
    assert_eq!(errors[2].path, "listener[0].port");
}

#[test]
fn a_key_that_stands_twice_is_one_error() {
    let text = edited(&[("port = 80\n", "port = 80\nport = 81\n")]);
    assert_only_error(&text, "", "port = 81", &["duplicate key"]);
}

#[test]
fn a_lost_bracket_hides_the_rest() {
    let text = edited(&[("[lb]", "[lb")]);
    assert_only_error(&text, "", "", &["invalid TOML", "`]`"]);
}

#[test]
fn numbers_take_every_notation_of_toml() {
    let loaded = accepted(&edited(&[
        ("port = 80\n", "port = 0x50\n"),
        ("[lb]", "[lb]\nmax_connections = +1_000_000"),
    ]));
    assert_eq!(loaded.config.listeners[0].ports.first, 80);
    assert_eq!(loaded.config.lb.max_connections, 1_000_000);
    for huge in ["99999999999999999999999", "-1", "65536"] {
        let text = edited(&[("port = 80\n", &format!("port = {huge}\n"))]);
        assert_only_error(&text, "listener[0].port", huge, &["out of range", huge]);
    }
}
