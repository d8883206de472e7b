//! `cargo xtask demo`.

use anyhow::Result;
use xtask::{command, target_dir};

use crate::build;
use crate::setup::{self, Group};

/// Runs the binary `demo` of the tests crate; the arguments are its.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    setup::require_root("demo", "makes network namespaces and loads a program into the kernel")?;
    setup::ensure(&[Group::Build, Group::Test])?;
    let lb = build::lb(false)?;
    let mut demo = std::process::Command::new(target_dir().join("debug/demo"));
    command::hand_over(demo.args(arguments).env("LB_BIN", lb))
}
