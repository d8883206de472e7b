//! `cargo xtask test`.

use anyhow::Result;
use xtask::cargo::cargo;
use xtask::{command, ebpf};

use crate::build;
use crate::setup::{self, Group};

/// Runs `cargo test` over the workspace, so that what closes the output is cargo's own summary.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    setup::require_root("test", "loads programs into the kernel and makes network namespaces")?;
    setup::ensure(Group::ALL)?;
    let mut cargo = cargo();
    cargo.args(["test", "--no-fail-fast"]);
    if names_packages(arguments) {
        cargo.env("LB_BIN", build::lb(false)?);
    } else {
        // It makes the binary on the way. Made by itself it would have other features, and with it half of what it is made of.
        ebpf::build("lb")?;
        cargo.arg("--workspace").env("LB_BIN", build::path_of_lb(false));
    }
    command::hand_over(cargo.args(arguments))
}

/// Whether the arguments for cargo, before those for the tests, choose packages.
fn names_packages(arguments: &[String]) -> bool {
    let mut for_cargo = arguments.iter().take_while(|argument| *argument != "--");
    for_cargo.any(|argument| argument.starts_with("-p") || argument.starts_with("--package"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_looked_for_only_among_the_arguments_of_cargo() {
        let named = |line: &str| names_packages(&line.split(' ').map(str::to_owned).collect::<Vec<_>>());
        assert!(named("-p lb-common"));
        assert!(named("--test packets --package=lb-tests"));
        assert!(!named("--test packets -- -p"));
    }
}
