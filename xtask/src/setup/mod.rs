//! `cargo xtask setup`: installs what is missing.

mod install;
mod lack;

use std::os::unix::fs::MetadataExt as _;

use anyhow::{Context as _, Result, ensure};
use clap::{Args, ValueEnum};

use self::lack::Lack;

/// What is needed for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Group {
    /// A Rust toolchain that builds for eBPF, and bpf-linker.
    Build,
    /// The clients, servers and network tools of the demo and the tests.
    Test,
    /// cargo-deb, and the tools of Debian that it and the test of the package use.
    Package,
    /// QEMU, and the older kernels the program is tested on.
    Kernels,
    /// The other balancers that the benchmark measures lb against.
    Bench,
}

impl Group {
    pub(crate) const ALL: &[Self] = &[Self::Build, Self::Test, Self::Package, Self::Kernels, Self::Bench];
}

#[derive(Args)]
pub(crate) struct Options {
    /// Only what these groups need [default: all of them].
    #[arg(value_enum)]
    groups: Vec<Group>,
    /// Say what is missing, change nothing.
    #[arg(long)]
    dry_run: bool,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let groups = if options.groups.is_empty() { Group::ALL } else { &options.groups };
    let lack = Lack::of(groups)?;
    print!("{lack}");
    if !options.dry_run && !lack.is_empty() {
        install::install(&lack)?;
        check_complete(groups)?;
    }
    Ok(())
}

/// Like `setup`, but silent when nothing is missing.
pub(crate) fn ensure(groups: &[Group]) -> Result<()> {
    let lack = Lack::of(groups)?;
    if lack.is_empty() {
        return Ok(());
    }
    print!("{lack}");
    install::install(&lack)?;
    check_complete(groups)
}

fn check_complete(groups: &[Group]) -> Result<()> {
    let lack = Lack::of(groups)?;
    ensure!(lack.is_empty(), "still missing after installing it:\n{lack}");
    println!("setup: complete");
    Ok(())
}

/// Fails unless the process runs as root. `why` completes "… needs root: it …".
pub(crate) fn require_root(verb: &str, why: &str) -> Result<()> {
    ensure!(
        is_root()?,
        "`cargo xtask {verb}` needs root: it {why}.\nRun it as: sudo --preserve-env env \"PATH=$PATH\" cargo xtask {verb}"
    );
    Ok(())
}

fn is_root() -> Result<bool> {
    // The owner of this folder is the process's effective user.
    Ok(std::fs::metadata("/proc/self").context("cannot read /proc/self")?.uid() == 0)
}
