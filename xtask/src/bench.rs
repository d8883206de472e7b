//! `cargo xtask bench`.

use std::process::Command;

use anyhow::Result;
use xtask::cargo::cargo;
use xtask::{command, ebpf, target_dir};

use crate::build;
use crate::setup::{self, Group};

/// Measures the part that the first argument names, else the packet path; the other arguments are the part's own.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    match arguments.split_first() {
        Some((part, rest)) if part == "checks" => checks(rest),
        Some((part, rest)) if part == "e2e" => e2e(rest),
        Some((part, rest)) if part == "flows" => flows(rest),
        Some((part, rest)) if part == "reload" => reload(rest),
        _ => packets(arguments),
    }
}

/// Runs the binary `bench` of the tests crate. It is not optimised, which does not matter: what it measures is the
/// eBPF programs, inside of the kernel.
fn packets(arguments: &[String]) -> Result<()> {
    setup::require_root("bench", "loads programs into the kernel")?;
    setup::ensure(&[Group::Build])?;
    let object = ebpf::build("bench")?;
    build::lb(false)?;
    let mut bench = Command::new(target_dir().join("debug/bench"));
    let report = target_dir().join("bench/report.json");
    command::hand_over(bench.arg("--object").arg(object).arg("--report").arg(report).args(arguments))
}

/// Runs the binary `e2e_bench` of the tests crate against an optimised `lb`: traffic through it and through what else
/// forwards, side by side.
fn e2e(arguments: &[String]) -> Result<()> {
    setup::require_root("bench", "makes network namespaces and loads programs into the kernel")?;
    setup::ensure(&[Group::Build, Group::Bench])?;
    let object = ebpf::build("traffic")?;
    let lb = build::lb(true)?;
    command::run(cargo().args(["build", "--release", "--package", "lb-tests", "--bin", "e2e_bench"]))?;
    let mut bench = Command::new(target_dir().join("release/e2e_bench"));
    let report = target_dir().join("bench/e2e.json");
    bench.env("LB_BIN", lb).arg("--object").arg(object).arg("--report").arg(report).args(arguments);
    command::hand_over(&mut bench)
}

/// Runs the example `health_load` of lb-userspace, optimised: many health checks against servers on loopback.
fn checks(arguments: &[String]) -> Result<()> {
    setup::ensure(&[Group::Build])?;
    let mut cargo = cargo();
    cargo.args(["run", "--release", "--package", "lb-userspace", "--example", "health_load", "--"]);
    command::hand_over(cargo.args(arguments))
}

/// Runs the example `flow_load` of lb-userspace, optimised: the collector over millions of flows.
fn flows(arguments: &[String]) -> Result<()> {
    setup::require_root("bench", "loads programs into the kernel")?;
    setup::ensure(&[Group::Build])?;
    let mut cargo = cargo();
    cargo.args(["run", "--release", "--package", "lb-userspace", "--example", "flow_load", "--"]);
    command::hand_over(cargo.args(arguments))
}

/// Runs the binary `reload` of the tests crate against an optimised `lb`: reloads of a large configuration.
fn reload(arguments: &[String]) -> Result<()> {
    setup::require_root("bench", "makes network namespaces")?;
    setup::ensure(&[Group::Build, Group::Test])?;
    build::lb(true)?;
    let mut cargo = cargo();
    cargo.args(["run", "--release", "--package", "lb-tests", "--bin", "reload", "--"]);
    command::hand_over(cargo.args(arguments))
}
