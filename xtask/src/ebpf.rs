//! Building the eBPF object.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs};

use anyhow::{Context as _, Result, bail, ensure};

use crate::cargo::foreign_cargo;
use crate::command::shell_line;
use crate::toolchain::{self, Toolchain};
use crate::{target_dir, workspace};

/// The variable that names the finished object: for lb-userspace the one to embed. Set by the user it is the
/// one to embed instead of building it, for example where no bpf-linker is to be had.
pub const OBJECT: &str = "LB_EBPF_OBJECT";

const TARGET: &str = "bpfel-unknown-none";

/// What the maps' BTF is made from, and the flag that makes bpf-linker write it.
const RUSTFLAGS: &str = "-Cdebuginfo=2 -Ctarget-cpu=v3 -Clink-arg=--btf";

/// Builds one of the programs of lb-ebpf and returns the object's path. Compiles nothing when nothing changed.
pub fn build(program: &str) -> Result<PathBuf> {
    let toolchain = Toolchain::find()?;
    let Some(linker) = toolchain::find_bpf_linker() else {
        bail!("bpf-linker is not installed (or does not start); `cargo xtask setup` installs it");
    };
    let target_dir = target_dir().join("ebpf");
    let mut cargo = cargo_build(&toolchain, &linker, program, &target_dir);
    let line = shell_line(&cargo);
    // Cargo reads the standard output of a build script.
    let status = cargo.stdout(Stdio::null()).status().with_context(|| format!("cannot run `{line}`"))?;
    ensure!(
        status.success(),
        "the eBPF object could not be built with {} (LLVM {}): `{line}` failed: {status}.\n\
         If the linker failed, its LLVM may be older than the compiler's: install a newer bpf-linker, or name \
         another toolchain in LB_EBPF_TOOLCHAIN.",
        toolchain.name,
        toolchain.llvm,
    );
    Ok(target_dir.join(TARGET).join("release").join(program))
}

fn cargo_build(toolchain: &Toolchain, linker: &Path, program: &str, target_dir: &Path) -> Command {
    let mut cargo = foreign_cargo(&toolchain.cargo);
    cargo
        .env("RUSTC", &toolchain.rustc)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", linker)
        .env("RUSTFLAGS", RUSTFLAGS)
        .args(["build", "--release", "--package", "lb-ebpf", "--bin", program])
        .args(["--target", TARGET, "-Zbuild-std=core", "--target-dir"])
        .arg(target_dir);
    cargo
}

/// The whole build script of lb-userspace: leaves the object in `$OUT_DIR` and its path in
/// `env!("LB_EBPF_OBJECT")`.
pub fn embed() -> Result<()> {
    for source in ["lb-ebpf", "lb-common", "Cargo.toml", "Cargo.lock"] {
        println!("cargo:rerun-if-changed={}", workspace().join(source).display());
    }
    println!("cargo:rerun-if-env-changed={OBJECT}");
    println!("cargo:rerun-if-env-changed={}", toolchain::OVERRIDE);

    let object = match env::var_os(OBJECT) {
        Some(path) => {
            println!("cargo:rerun-if-changed={}", path.display());
            PathBuf::from(path)
        }
        None => build("lb")?,
    };
    // A copy, so that the binary can be linked again after target/ebpf went away.
    let out_dir = env::var_os("OUT_DIR").context("OUT_DIR is not set: this is for build scripts")?;
    let embedded = Path::new(&out_dir).join("lb.o");
    copy_if_changed(&object, &embedded)?;
    println!("cargo:rustc-env={OBJECT}={}", embedded.display());
    Ok(())
}

/// Leaves an equal file alone: its time of change would make cargo compile lb-userspace again.
fn copy_if_changed(from: &Path, to: &Path) -> Result<()> {
    let content =
        fs::read(from).with_context(|| format!("cannot read the eBPF object {}", from.display()))?;
    if fs::read(to).ok().as_ref() == Some(&content) {
        return Ok(());
    }
    fs::write(to, content).with_context(|| format!("cannot write {}", to.display()))
}
