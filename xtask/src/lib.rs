//! Builds the eBPF object of `lb`. One piece of code for two callers: `cargo xtask build`, which shows cargo's
//! progress, and the build script of lb-userspace, so that plain `cargo build`, `cargo test`, `cargo clippy`
//! and rust-analyzer work too.

pub mod cargo;
pub mod command;
pub mod ebpf;
pub mod package;
pub mod toolchain;

use std::path::{Path, PathBuf};

/// The root of the workspace.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace")
}

/// Where cargo puts what it builds on the host: `$CARGO_TARGET_DIR`, else `target` in the workspace.
pub fn target_dir() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => workspace().join(dir),
        None => workspace().join("target"),
    }
}
