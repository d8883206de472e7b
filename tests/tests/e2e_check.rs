//! `lb check` on the real binary; needs no root.

use std::env;
use std::fs;
use std::process::{self, Command};

use anyhow::{Context, Result};
use lb_tests::netns::binary;

/// A file with the seven mistakes of [`REMEDIES`].
const MISTAKEN: &str = r#"
[lb]
interfaces = ["lo"]
xdp_mod = "native"
max_connections = 12

[[listener]]
name = "web"
address = "224.0.0.1"
protocol = "http"
port = "80"
backend_set = "wbe"

[backend_set.web]

[[backend_set.web.backend]]
address = "10.0.1.10"
port = 8080

[backend_set.web.health_check]
protocol = "tcp"
interval_ms = 50
"#;

/// Each mistaken line, and a word of the remedy that does not stand in it.
const REMEDIES: [(&str, &str); 7] = [
    (r#"xdp_mod = "native""#, "xdp_mode"),
    ("max_connections = 12", "1024"),
    (r#"address = "224.0.0.1""#, "unicast"),
    (r#"protocol = "http""#, "udp"),
    (r#"port = "80""#, "65535"),
    (r#"backend_set = "wbe""#, "web"),
    ("interval_ms = 50", "100"),
];

const FLAWLESS: &str = r#"
[lb]
interfaces = ["lo"]

[[listener]]
name = "web"
address = "10.0.1.100"
protocol = "tcp"
port = 80
backend_set = "web"

[backend_set.web]

[[backend_set.web.backend]]
address = "10.0.1.10"
port = 8080

[backend_set.web.health_check]
protocol = "tcp"
"#;

#[test]
fn seven_mistakes_are_named_at_once_with_line_column_and_remedy() -> Result<()> {
    let (code, stderr) = check("mistaken", MISTAKEN)?;
    assert_eq!(code, Some(2), "{stderr}");
    for (mistake, remedy) in REMEDIES {
        let line = 1 + MISTAKEN.lines().position(|line| line == mistake).context("no such line")?;
        let place = format!("mistaken.toml:{line}:");
        let (_, message) =
            stderr.split_once(&place).with_context(|| format!("nothing at {place}\n{stderr}"))?;
        let (message, _) = message.split_once("mistaken.toml:").unwrap_or((message, ""));
        assert!(message.starts_with(|first: char| first.is_ascii_digit()), "no column at {place}\n{stderr}");
        assert!(message.contains(remedy), "no `{remedy}` at {place}\n{stderr}");
    }
    let places =
        stderr.split("mistaken.toml:").skip(1).filter(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    assert_eq!(places.count(), REMEDIES.len(), "more than the seven:\n{stderr}");
    Ok(())
}

#[test]
fn a_flawless_file_passes() -> Result<()> {
    let (code, stderr) = check("flawless", FLAWLESS)?;
    assert_eq!(code, Some(0), "{stderr}");
    Ok(())
}

/// Exit status and standard error of `lb check` on a file `NAME.toml` with this text.
fn check(name: &str, text: &str) -> Result<(Option<i32>, String)> {
    let folder = env::temp_dir().join(format!("lb-check-{name}-{}", process::id()));
    fs::create_dir_all(&folder)?;
    let file = folder.join(name).with_extension("toml");
    fs::write(&file, text)?;
    let output = Command::new(binary("lb")?).arg("check").arg("--config").arg(&file).output();
    fs::remove_dir_all(&folder)?;
    let output = output?;
    Ok((output.status.code(), String::from_utf8(output.stderr)?))
}
