//! `cargo xtask build`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use xtask::cargo::cargo;
use xtask::{command, ebpf, target_dir};

use crate::setup::{self, Group};

#[derive(Args)]
pub(crate) struct Options {
    /// With optimisation, as for use; without it for tests. The eBPF object is always optimised.
    #[arg(long)]
    release: bool,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    setup::ensure(&[Group::Build])?;
    let lb = lb(options.release)?;
    println!("{}", lb.display());
    Ok(())
}

/// Builds the object, then the binary with it inside, and returns the binary's path. The build script of
/// lb-userspace would build the object as well, but silently.
pub(crate) fn lb(release: bool) -> Result<PathBuf> {
    ebpf::build("lb")?;
    let mut cargo = cargo();
    cargo.arg("build");
    if release {
        cargo.arg("--release");
    }
    command::run(&mut cargo)?;
    Ok(path_of_lb(release))
}

/// Where cargo puts the binary.
pub(crate) fn path_of_lb(release: bool) -> PathBuf {
    target_dir().join(if release { "release" } else { "debug" }).join("lb")
}
