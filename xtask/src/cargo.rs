//! Running cargo from inside cargo.

use std::env;
use std::path::Path;
use std::process::Command;

use crate::workspace;

/// What cargo sets for a program it runs to describe the package that is of, by the beginning of the names.
/// Build scripts of other crates watch some of it (that of ring does), so that handing it down would compile
/// half of the dependencies again.
const OF_THE_CALLER: &[&str] =
    &["CARGO_BIN_NAME", "CARGO_CRATE_NAME", "CARGO_MANIFEST_", "CARGO_PKG_", "OUT_DIR"];

/// What chooses a compiler, its flags or its target, by the beginning of the names.
const COMPILER: &[&str] =
    &["CARGO_BUILD_", "CARGO_ENCODED_RUSTFLAGS", "CLIPPY_ARGS", "RUSTC", "RUSTFLAGS", "RUSTUP_TOOLCHAIN"];

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
    cargo.current_dir(workspace()).env_remove("CARGO");
    forget(&mut cargo, OF_THE_CALLER);
    forget(&mut cargo, COMPILER);
    cargo
}

fn forget(command: &mut Command, beginnings: &[&str]) {
    for (name, _) in env::vars_os() {
        if beginnings.iter().any(|beginning| name.to_string_lossy().starts_with(beginning)) {
            command.env_remove(name);
        }
    }
}
