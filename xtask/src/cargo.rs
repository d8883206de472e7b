//! Running cargo from inside cargo.

use std::env;
use std::path::Path;
use std::process::Command;

use crate::workspace;

/// What cargo tells a program that it runs about the package that is of. Build scripts of other crates watch
/// some of it (that of ring does, and those of aya-ebpf), so that handing it down would compile them again.
const OF_THE_CALLER: &[&str] = &[
    "CARGO_BIN_NAME",
    "CARGO_CFG_*",
    "CARGO_CRATE_NAME",
    "CARGO_FEATURE_*",
    "CARGO_MANIFEST_*",
    "CARGO_PKG_*",
    "DEBUG",
    "HOST",
    "NUM_JOBS",
    "OPT_LEVEL",
    "OUT_DIR",
    "PROFILE",
    "TARGET",
];

/// What chooses a compiler, its flags or its target.
const COMPILER: &[&str] = &[
    "CARGO",
    "CARGO_BUILD_*",
    "CARGO_ENCODED_RUSTFLAGS",
    "CLIPPY_ARGS",
    "RUSTC*",
    "RUSTDOC*",
    "RUSTFLAGS",
    "RUSTUP_TOOLCHAIN",
];

/// The cargo that runs us, in the root of the workspace, as if it had been called from a shell.
pub fn cargo() -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace());
    forget(&mut cargo, OF_THE_CALLER);
    cargo
}

/// A cargo of another toolchain, in the root of the workspace, as if it had been called from a shell that has
/// no opinion on compilers.
pub fn foreign_cargo(program: &Path) -> Command {
    let mut cargo = Command::new(program);
    cargo.current_dir(workspace());
    forget(&mut cargo, OF_THE_CALLER);
    forget(&mut cargo, COMPILER);
    cargo
}

/// Takes the variables away that one of the patterns is for.
fn forget(command: &mut Command, patterns: &[&str]) {
    for (name, _) in env::vars_os() {
        if patterns.iter().any(|pattern| is_match(pattern, &name.to_string_lossy())) {
            command.env_remove(name);
        }
    }
}

/// Whether a name is the pattern, or begins as one that ends with `*`.
fn is_match(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(beginning) => name.starts_with(beginning),
        None => name == pattern,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_user_says_is_not_forgotten() {
        let is_forgotten =
            |name: &str| OF_THE_CALLER.iter().chain(COMPILER).any(|known| is_match(known, name));
        for name in ["CARGO", "CARGO_PKG_NAME", "HOST", "RUSTC_WORKSPACE_WRAPPER"] {
            assert!(is_forgotten(name), "{name}");
        }
        for name in
            ["CARGO_HOME", "CARGO_TARGET_DIR", "CARGO_NET_OFFLINE", "HOSTNAME", "PATH", "RUST_BACKTRACE"]
        {
            assert!(!is_forgotten(name), "{name}");
        }
    }
}
