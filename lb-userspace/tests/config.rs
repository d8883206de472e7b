//! The configuration as its users meet it: whole files in, a configuration or a report out.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lb_userspace::config::{Report, load, parse, show};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the repository").to_owned()
}

fn example(name: &str) -> String {
    let path = repository().join("examples").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn the_examples_are_valid_without_a_warning() {
    for name in ["minimal.toml", "defaults.toml", "mirrored-pair.toml", "health-checks.toml"] {
        let loaded = parse(&example(name), name).unwrap_or_else(|report| panic!("{report}"));
        assert_eq!(loaded.warnings, [], "{name}");
        let shown = parse(&show(&loaded.config), name).unwrap_or_else(|report| panic!("{report}"));
        assert_eq!(shown.config, loaded.config, "{name}");
    }
}

#[test]
fn the_defaults_are_the_defaults() {
    let minimal = parse(&example("minimal.toml"), "minimal.toml").expect("valid").config;
    let spelled_out = parse(&example("defaults.toml"), "defaults.toml").expect("valid").config;
    assert_eq!(minimal, spelled_out);
    let written = example("defaults.toml");
    let written: Vec<&str> = written.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(show(&minimal).trim(), written.join("\n").trim());
}

/// A file with seven mistakes, each of another kind.
const SEVEN_MISTAKES: &str = r#"[lb]
interfaces = ["eth0"]
snat_port = "1024-65535"

[[listener]]
name = "web"
address = "10.0.1.100"
protocol = "tpc"
port = 80
backend_set = "wbe"
tcp_idle_timeout_s = 5

[backend_set.web]
min_healthy = 1

[[backend_set.web.backend]]
address = "10.0.1.10"
port = "8080"

[[backend_set.web.backend]]
address = "10.0.1.100"
port = 8080

[backend_set.web.health_check]
protocol = "tcp"
path = "/"
"#;

fn seven_mistakes() -> Report {
    parse(SEVEN_MISTAKES, "lb.toml").expect_err("refused")
}

#[test]
fn seven_mistakes_are_seven_errors_with_place_and_remedy() {
    let report = seven_mistakes();
    let found: Vec<(usize, usize, &str)> =
        report.errors.iter().map(|error| (error.line, error.column, error.path.as_str())).collect();
    assert_eq!(
        found,
        [
            (3, 1, "lb.snat_port"),
            (8, 12, "listener[0].protocol"),
            (10, 15, "listener[0].backend_set"),
            (11, 22, "listener[0].tcp_idle_timeout_s"),
            (18, 8, "backend_set.web.backend[0].port"),
            (21, 11, "backend_set.web.backend[1].address"),
            (26, 8, "backend_set.web.health_check.path"),
        ]
    );
    for error in &report.errors {
        assert!(error.allowed.is_some(), "{error}");
    }
    let suggestions: Vec<&str> =
        report.errors.iter().filter_map(|error| error.suggestion.as_deref()).collect();
    assert_eq!(suggestions, ["snat_ports", "tcp", "web", "8080"]);
}

#[test]
fn a_report_reads_like_this() {
    insta::assert_snapshot!(seven_mistakes(), @r#"
    lb.toml:3:1: error: lb.snat_port = "1024-65535": unknown key
     3 | snat_port = "1024-65535"
       | ^^^^^^^^^
       = allowed: assign_vips, icmp_echo, interfaces, max_connections, on_exit, snat_addresses, snat_ports or xdp_mode
       = did you mean `snat_ports`?

    lb.toml:8:12: error: listener[0].protocol = "tpc": not one of the allowed words
     8 | protocol = "tpc"
       |            ^^^^^
       = allowed: "tcp", "udp" or "tcp_and_udp"
       = did you mean `tcp`?

    lb.toml:10:15: error: listener[0].backend_set = "wbe": no set of this name
     10 | backend_set = "wbe"
        |               ^^^^^
        = allowed: the name of a [backend_set.NAME] of this file
        = did you mean `web`?

    lb.toml:11:22: error: listener[0].tcp_idle_timeout_s = 5: out of range
     11 | tcp_idle_timeout_s = 5
        |                      ^
        = allowed: an integer from 10 to 86400

    lb.toml:18:8: error: backend_set.web.backend[0].port = "8080": wrong type: a string
     18 | port = "8080"
        |        ^^^^^^
        = allowed: an integer from 0 to 65535
        = did you mean `8080`?

    lb.toml:21:11: error: backend_set.web.backend[1].address = "10.0.1.100": this is the VIP of listener `web` (line 7)
     21 | address = "10.0.1.100"
        |           ^^^^^^^^^^^^
        = allowed: the address of another host

    lb.toml:26:8: error: backend_set.web.health_check.path = "/": belongs to checks with protocol http and https, but `protocol` is "tcp"
     26 | path = "/"
        |        ^^^
        = allowed: no `path` here, or another `protocol`

    7 errors; the file is refused as a whole, nothing was applied
    "#);
}

#[test]
fn a_report_as_data_says_the_same() {
    let report = serde_json::to_value(seven_mistakes()).expect("JSON");
    assert_eq!(report["ok"], false);
    assert_eq!(report["errors"].as_array().map(Vec::len), Some(7));
    assert_eq!(report["warnings"], serde_json::json!([]));
    assert_eq!(
        report["errors"][1],
        serde_json::json!({
            "severity": "error",
            "file": "lb.toml",
            "line": 8,
            "column": 12,
            "path": "listener[0].protocol",
            "value": "tpc",
            "message": "not one of the allowed words",
            "allowed": "\"tcp\", \"udp\" or \"tcp_and_udp\"",
            "suggestion": "tcp",
        })
    );
}

#[test]
fn an_accepted_file_as_data_has_its_warnings() {
    let spare = "[backend_set.spare]\nbackend = [{ address = \"10.0.1.12\", port = 80 }]\nhealth_check.protocol = \"tcp\"\n";
    let loaded = parse(&(example("minimal.toml") + spare), "lb.toml").expect("valid");
    let data = serde_json::to_value(loaded).expect("JSON");
    assert_eq!((&data["ok"], &data["errors"]), (&serde_json::json!(true), &serde_json::json!([])));
    assert_eq!(data["warnings"][0]["severity"], "warning");
    assert_eq!(data["warnings"][0]["path"], "backend_set.spare");
}

#[test]
fn a_file_is_judged_by_this_host() {
    let directory = std::env::temp_dir().join(format!("lb-config-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("a directory");
    let write = |name: &str, content: &[u8]| {
        let path = directory.join(name);
        std::fs::write(&path, content).expect("a file");
        path
    };
    let on_loopback = example("minimal.toml").replace("eth0", "lo");
    assert!(load(&write("good.toml", on_loopback.as_bytes())).is_ok());

    let two = on_loopback.replace("\"lo\"", "\"lo\", \"none0\"");
    let errors = load(&write("bad.toml", two.as_bytes())).unwrap_err().errors;
    assert_eq!((errors.len(), errors[0].path.as_str()), (1, "lb.interfaces[1]"), "{errors:?}");
    assert!(errors[0].allowed.as_ref().expect("the interfaces").contains("\"lo\""));

    let errors = load(&write("bytes.toml", b"[lb]\n# \xff\n")).unwrap_err().errors;
    assert_eq!((errors[0].line, errors[0].column), (2, 3), "{errors:?}");
    assert!(errors[0].message.contains("UTF-8"));

    let missing = load(&directory.join("missing.toml")).unwrap_err().to_string();
    assert!(missing.contains("missing.toml: error: cannot be read"), "{missing}");
    assert!(load(&directory).unwrap_err().to_string().contains("cannot be read"));
    std::fs::remove_dir_all(&directory).expect("cleaned up");
}

/// 1,000 listeners with 16 backends each.
fn large_file() -> String {
    let mut text = String::from("[lb]\ninterfaces = [\"eth0\"]\n");
    for set in 0..1000 {
        let (high, low) = (set / 250, set % 250 + 1);
        text += &format!(
            "[[listener]]\nname = \"l{set}\"\naddress = \"10.1.{high}.{low}\"\nprotocol = \"tcp\"\nport = 80\n\
             backend_set = \"s{set}\"\n\
             [backend_set.s{set}.health_check]\nprotocol = \"http\"\nresponse_body_regex = \"ok\"\n"
        );
        for backend in 2..18 {
            text += &format!(
                "[[backend_set.s{set}.backend]]\naddress = \"10.{backend}.{high}.{low}\"\nport = 8080\n"
            );
        }
    }
    text
}

/// A scan that grows with the square of the file would take minutes here; in an optimised build the whole takes
/// some tens of milliseconds.
#[test]
fn a_large_file_is_judged_quickly() {
    let text = large_file();
    let start = Instant::now();
    let loaded = parse(&text, "large.toml").unwrap_or_else(|report| panic!("{report}"));
    let taken = start.elapsed();
    assert_eq!(loaded.config.backend_sets.len(), 1000);
    println!("1,000 listeners with 16 backends each: {taken:?}");
    assert!(taken < Duration::from_secs(10), "{taken:?}");
}
