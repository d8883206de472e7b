//! `cargo xtask test`.

use anyhow::Result;
use xtask::{cargo::cargo, command};

use crate::{
    build,
    setup::{self, Group},
};

/// Runs `cargo test` over the workspace, so that what closes the output is cargo's own summary.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    setup::require_root("test", "loads programs into the kernel and makes network namespaces")?;
    setup::ensure(Group::ALL)?;
    let lb = build::lb(false)?;
    command::run(cargo().args(["test", "--no-fail-fast"]).args(arguments).env("LB_BIN", lb))
}
