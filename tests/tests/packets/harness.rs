//! The harness itself: a case that says something wrong must fail.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use lb_tests::packets::case::CaseFile;
use lb_tests::packets::{Family, Network, play};
use libtest_mimic::Trial;

use crate::trial_for_each_family;

pub(crate) fn trials() -> Vec<Trial> {
    trial_for_each_family("harness", "a case fails unless everything is as it says", wrong_expectations)
}

/// What a step expects of the SYN it sends, and is right to expect.
const RIGHT: &str = "tx = { src = \"vip:$port\", dst = \"alpha:8080\" }\nopens = true\nconnections = 1";

/// Changes of that, and what the player must say of each.
const WRONG: &[(&str, &str, &str)] = &[
    ("alpha:8080", "beta:8080", "another frame"),
    ("alpha:8080", "alpha:8081", "another frame"),
    ("vip:$port", "client:$port", "another frame"),
    ("alpha:8080\"", "alpha:8080\", ttl = 64", "another frame"),
    ("alpha:8080\"", "alpha:8080\", dst_mac = \"02:00:00:00:00:99\"", "another frame"),
    ("tx", "redirect", "expected the verdict Redirect, found Tx"),
    ("tx = { src = \"vip:$port\", dst = \"alpha:8080\" }", "pass = true", "expected the verdict Pass"),
    (
        "tx = { src = \"vip:$port\", dst = \"alpha:8080\" }",
        "drop = \"fragment\"",
        "expected the verdict Drop",
    ),
    ("tx = { src = \"vip:$port\", dst = \"alpha:8080\" }", "answer = \"rst\"", "another frame"),
    ("tx = { src = \"vip:$port\", dst = \"alpha:8080\" }", "hold = true", "expected the verdict Drop"),
    ("opens = true", "notes = [\"half_open_evicted\"]\nopens = true", "counters to move"),
    ("opens = true", "", "counters to move"),
    ("opens = true", "opens = true\nrefused = true", "counters to move"),
    ("opens = true", "pass = true", "exactly one"),
    ("connections = 1", "connections = 2", "expected 2 connections"),
    ("connections = 1", "connexions = 1", "unknown field `connexions`"),
];

fn wrong_expectations(family: Family) -> Result<()> {
    play_step(RIGHT, family)?;
    for (from, to, complaint) in WRONG {
        let step = RIGHT.replacen(from, to, 1);
        let error = play_step(&step, family).err().with_context(|| format!("nothing was said of\n{step}"))?;
        let error = format!("{error:#}");
        ensure!(
            error.contains(complaint) && error.contains("test.toml"),
            "expected a complaint of `{complaint}` in test.toml about\n{step}\nfound\n{error}"
        );
    }
    Ok(())
}

/// Plays a case whose only step sends a SYN and expects this.
fn play_step(expectation: &str, family: Family) -> Result<()> {
    let text = format!(
        r#"
        about = "one listener"
        [[config.listener]]
        name = "web"
        address = "vip"
        protocol = "tcp"
        port = 80
        backend_set = "web"
        [[config.backend_set.web.backend]]
        address = "alpha"
        port = 8080

        [[case]]
        name = "a case"
        [[case.step]]
        send = {{ src = "client:40000", dst = "vip:80", tcp = "S" }}
        {expectation}
        "#
    );
    let file = CaseFile::parse(Path::new("test.toml"), text)?;
    play::play(&file, &file.topic.cases[0], &Network::read(&super::cases())?, family)
}
