//! `cargo xtask bench`.

use std::path::PathBuf;
use std::process::Command;
use std::{fs, io};

use anyhow::{Context as _, Result, bail, ensure};
use xtask::cargo::cargo;
use xtask::{command, ebpf, target_dir, workspace};

use crate::build;
use crate::setup::{self, Group};

/// A part of the report: a program that writes what it measured as JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// What a packet costs inside of the program.
    Packet,
    /// What goes through a balancer, beside others.
    E2e,
    /// Instructions for a packet from wire to wire, in a virtual machine.
    Guest,
    /// What the controller takes.
    Control,
}

/// Measures the part that the first argument names, with the other arguments; without one, all parts of the report.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let Some((first, rest)) = arguments.split_first().filter(|(first, _)| !first.starts_with('-')) else {
        return all(arguments);
    };
    if let Some(part) = Part::ALL.iter().find(|part| part.name() == first) {
        return command::hand_over(part.command()?.args(rest));
    }
    match first.as_str() {
        "report" => command::hand_over(report()?.args(rest)),
        "checks" => checks(rest),
        // As many flows as there can be.
        "flows" => control(&["--only", "flows", "--flows", "16777216", "--rounds", "1"], rest),
        "reload" => control(&["--only", "reload"], rest),
        _ => bail!(
            "there is no `bench {first}`; there are {}, report, checks, flows and reload",
            Part::ALL.map(Part::name).join(", ")
        ),
    }
}

/// Measures all parts, one after the other, and puts them together. A part that fails keeps none of the others from being
/// measured, and is missing in the report.
fn all(arguments: &[String]) -> Result<()> {
    ensure!(
        is_for_all(arguments),
        "`cargo xtask bench` takes only `--save FOLDER`; other options belong to a part, as in `cargo xtask bench packet --help`"
    );
    let mut failed = Vec::new();
    for part in Part::ALL {
        // What an earlier run has left would pass for what this one measured.
        match fs::remove_file(part.report()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", part.report().display()));
            }
            _ => {}
        }
        if let Err(error) = part.command().and_then(|mut part| command::run(part.args(arguments))) {
            eprintln!("bench: {error:#}");
            failed.push(part.name());
        }
    }
    command::run(report()?.args(arguments))?;
    ensure!(failed.is_empty(), "these parts failed, see above: {}", failed.join(", "));
    Ok(())
}

/// Whether these options are understood by every part: at most a folder to save to.
fn is_for_all(arguments: &[String]) -> bool {
    match arguments {
        [] => true,
        [save] => save.starts_with("--save="),
        [save, folder] => save == "--save" && !folder.starts_with('-'),
        _ => false,
    }
}

impl Part {
    /// In the order they run in.
    const ALL: [Self; 4] = [Self::Packet, Self::E2e, Self::Guest, Self::Control];

    const fn name(self) -> &'static str {
        match self {
            Self::Packet => "packet",
            Self::E2e => "e2e",
            Self::Guest => "guest",
            Self::Control => "control",
        }
    }

    /// Where it writes what it measured.
    fn report(self) -> PathBuf {
        reports().join(self.name()).with_extension("json")
    }

    /// Builds it; returns the command that runs it, to which options may be added.
    fn command(self) -> Result<Command> {
        setup::require_root("bench", "loads programs into the kernel and makes network namespaces")?;
        let mut command = match self {
            Self::Packet => {
                let mut packet = program("bench", &[Group::Build])?;
                packet.arg("--object").arg(ebpf::build("bench")?);
                packet
            }
            Self::E2e => {
                let mut e2e = program("e2e_bench", &[Group::Build, Group::Test, Group::Bench])?;
                e2e.arg("--object").arg(ebpf::build("traffic")?);
                e2e
            }
            Self::Guest => {
                let mut guest = program("guest_bench", &[Group::Build, Group::Bench, Group::Kernels])?;
                guest.arg("--object").arg(ebpf::build("bench")?);
                guest.arg("--boot").arg(workspace().join("tests/kernels/boot"));
                guest
            }
            Self::Control => program("control_bench", &[Group::Build, Group::Test])?,
        };
        command.arg("--report").arg(self.report());
        Ok(command)
    }
}

/// One piece of what the controller takes.
fn control(piece: &[&str], arguments: &[String]) -> Result<()> {
    command::hand_over(Part::Control.command()?.args(piece).args(arguments))
}

/// The program that puts the parts together.
fn report() -> Result<Command> {
    let mut report = program("bench_report", &[Group::Build])?;
    report.arg("--parts").arg(reports());
    Ok(report)
}

/// Where the parts write what they measured.
fn reports() -> PathBuf {
    target_dir().join("bench")
}

/// Installs what is needed, builds `lb` and a program of the tests crate, optimised, and returns the command that runs it.
fn program(name: &str, needs: &[Group]) -> Result<Command> {
    setup::ensure(needs)?;
    let lb = build::lb(true)?;
    let path = lb.with_file_name(name);
    ensure!(path.is_file(), "there is no program at {}", path.display());
    let mut command = Command::new(path);
    command.env("LB_BIN", lb);
    Ok(command)
}

/// Runs the example `health_load` of lb-userspace, optimised: many health checks against servers on loopback.
fn checks(arguments: &[String]) -> Result<()> {
    setup::ensure(&[Group::Build])?;
    let mut cargo = cargo();
    cargo.args(["run", "--release", "--package", "lb-userspace", "--example", "health_load", "--"]);
    command::hand_over(cargo.args(arguments))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_parts_take_a_folder_and_nothing_else() {
        let is_for_all =
            |line: &str| is_for_all(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
        assert!(is_for_all("") && is_for_all("--save docs") && is_for_all("--save=docs"));
        assert!(!is_for_all("--rounds 3") && !is_for_all("--save") && !is_for_all("--save --rounds"));
        assert!(!is_for_all("--save docs --rounds 3"));
    }
}
