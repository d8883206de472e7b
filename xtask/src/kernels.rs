//! `cargo xtask kernels`.

use anyhow::Result;
use xtask::cargo::cargo;
use xtask::command;

use crate::build;
use crate::setup::{self, Group};

/// Runs the test `kernels` alone, with what the virtual machines print.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    setup::require_root("kernels", "loads the program into the running kernel too")?;
    setup::ensure(&[Group::Build, Group::Kernels])?;
    let lb = build::lb(false)?;
    command::hand_over(
        cargo()
            .args(["test", "--workspace", "--test", "kernels", "--", "--nocapture"])
            .args(arguments)
            .env("LB_BIN", lb),
    )
}
