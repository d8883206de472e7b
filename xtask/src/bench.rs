//! `cargo xtask bench`.

use anyhow::Result;
use xtask::{command, ebpf, target_dir};

use crate::build;
use crate::setup::{self, Group};

/// Runs the optimised binary `bench` of the tests crate; the arguments are its.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    setup::require_root("bench", "loads programs into the kernel")?;
    setup::ensure(&[Group::Build])?;
    let object = ebpf::build("bench")?;
    build::lb(true)?;
    let mut bench = std::process::Command::new(target_dir().join("release/bench"));
    let report = target_dir().join("bench/report.json");
    command::run(bench.arg("--object").arg(object).arg("--report").arg(report).args(arguments))
}
