//! `cargo xtask`: everything a developer runs.

mod bench;
mod build;
mod deb;
mod demo;
mod kernels;
mod setup;
mod test;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

/// Builds, shows, tests and measures lb.
///
/// Every command first installs what it needs and does not find, as `setup` does.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Install what building and testing need and this machine lacks, and only that.
    Setup(setup::Options),
    /// Build the eBPF object and, with it inside, the binary `lb`.
    Build(build::Options),
    /// Build the binary and a Debian package around it: unit, manual pages, completions, documentation.
    Deb(deb::Options),
    /// Show lb at work in a little network of namespaces (needs root).
    Demo(PassOn),
    /// Run all tests (needs root); arguments go to `cargo test`.
    Test(PassOn),
    /// Load the program and run the packet tests on older kernels, in virtual machines, and on this one.
    Kernels(PassOn),
    /// Measure the packet path: ns per packet beside a floor and a map lookup (needs root). `bench e2e`: traffic
    /// through lb beside other balancers. `bench checks`: what 10,000 health checks cost.
    Bench(PassOn),
}

/// What is not ours to understand.
#[derive(Args)]
struct PassOn {
    /// Handed on as they are.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

fn main() -> ExitCode {
    match run(Cli::parse().verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> Result<()> {
    match verb {
        Verb::Setup(options) => setup::run(&options),
        Verb::Build(options) => build::run(&options),
        Verb::Deb(options) => deb::run(&options),
        Verb::Demo(PassOn { arguments }) => demo::run(&arguments),
        Verb::Test(PassOn { arguments }) => test::run(&arguments),
        Verb::Kernels(PassOn { arguments }) => kernels::run(&arguments),
        Verb::Bench(PassOn { arguments }) => bench::run(&arguments),
    }
}
