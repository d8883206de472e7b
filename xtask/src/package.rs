//! The Debian package, made by cargo-deb from a binary that is built already.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::cargo::cargo;
use crate::command;
use crate::{toolchain, workspace};

/// How hard to compress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// For use.
    Best,
    /// For tests.
    Fast,
}

/// Packages the binary `lb` with its unit, manual pages, completions and documentation; returns the path of the package.
///
/// # Errors
///
/// If the binary does not run here, cargo-deb is not there or something cannot be written.
pub fn build(lb: &Path, compression: Compression) -> Result<PathBuf> {
    // cargo-deb takes binaries from the folder of release builds: here it is one of its own, so that any binary can be
    // packaged without touching what cargo has built.
    let staged = workspace().join("target/package");
    let release = staged.join("release");
    if staged.exists() {
        fs::remove_dir_all(&staged).with_context(|| format!("cannot remove {}", staged.display()))?;
    }
    fs::create_dir_all(&release).with_context(|| format!("cannot create {}", release.display()))?;
    fs::copy(lb, release.join("lb")).with_context(|| format!("cannot copy {}", lb.display()))?;
    command::run(Command::new(lb).arg("generate").arg(&staged))?;

    let package = staged.join("lb.deb");
    let mut deb = cargo();
    deb.args([
        "deb",
        "--package",
        "lb-userspace",
        "--no-build",
        "--no-dbgsym",
        "--strip",
        "--quiet",
        "--output",
    ])
    .arg(&package)
    .env("CARGO_TARGET_DIR", &staged);
    if compression == Compression::Fast {
        deb.arg("--fast");
    }
    if find_cargo_deb().is_none() {
        bail!("cargo-deb is missing; run `cargo xtask setup package`, or `cargo install cargo-deb`");
    }
    command::run(&mut deb)?;
    Ok(package)
}

/// Where cargo-deb is: in `$PATH`, or where `cargo install` puts it.
pub fn find_cargo_deb() -> Option<PathBuf> {
    let installed = toolchain::cargo_bin().map(|bin| bin.join("cargo-deb")).filter(|file| file.is_file());
    command::find_program("cargo-deb").or(installed)
}
