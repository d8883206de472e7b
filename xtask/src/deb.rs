//! `cargo xtask deb`.

use anyhow::Result;
use clap::Args;
use xtask::package::{self, Compression};
use xtask::target_dir;

use crate::build;
use crate::setup::{self, Group};

#[derive(Args)]
pub(crate) struct Options {
    /// Package the binary without optimisation, as tests do.
    #[arg(long)]
    dev: bool,
    /// Package what was built before, and build nothing.
    #[arg(long)]
    no_build: bool,
}

/// Builds the binary and the Debian package around it, and prints the package's path.
pub(crate) fn run(options: &Options) -> Result<()> {
    let profile = if options.dev { "debug" } else { "release" };
    let lb = if options.no_build {
        setup::ensure(&[Group::Package])?;
        target_dir().join(profile).join("lb")
    } else {
        setup::ensure(&[Group::Build, Group::Package])?;
        build::lb(!options.dev)?
    };
    let compression = if options.dev { Compression::Fast } else { Compression::Best };
    println!("{}", package::build(&lb, compression)?.display());
    Ok(())
}
