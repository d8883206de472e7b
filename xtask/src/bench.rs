//! `cargo xtask bench`.

use std::process::Command;

use anyhow::Result;
use xtask::{command, ebpf, target_dir};

use crate::build;
use crate::setup::{self, Group};

/// Runs the binary `bench` of the tests crate; the arguments are its. It is not optimised, which does not matter:
/// what it measures is the eBPF programs, inside of the kernel.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    setup::require_root("bench", "loads programs into the kernel")?;
    setup::ensure(&[Group::Build])?;
    let object = ebpf::build("bench")?;
    build::lb(false)?;
    let mut bench = Command::new(target_dir().join("debug/bench"));
    let report = target_dir().join("bench/report.json");
    command::run(bench.arg("--object").arg(object).arg("--report").arg(report).args(arguments))
}
