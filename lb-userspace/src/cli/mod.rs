//! The commands, one file each.

mod ask;
mod check;
mod connections;
mod detach;
mod diagnose;
mod doctor;
mod events;
mod explain;
mod generate;
mod names;
mod paint;
mod run;
mod show;
mod status;
mod top;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use lb_common::InterfaceMac;
use nix::sys::signal::{SigHandler, Signal, signal};

use crate::api::Action;
use crate::dataplane::explain::interfaces;
use crate::instance::Instance;
use crate::network::interface_name;

/// Exit status: it went well, or the instance is OK.
const OK: u8 = 0;
/// Exit status: it failed.
const FAILED: u8 = 1;
/// Exit status: the configuration is refused.
const BAD_CONFIG: u8 = 2;
/// Exit status: this host is not fit.
const UNFIT: u8 = 2;
/// Exit status: the level of the instance is not known.
const UNKNOWN: u8 = 3;
/// Exit status: no such instance runs.
const NOT_RUNNING: u8 = 4;

/// Layer-4 load balancer: an XDP program translates packets, this program checks backends and feeds it.
#[derive(Debug, Parser)]
#[command(name = "lb", version, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// Names a running instance.
#[derive(Clone, Debug, Args)]
struct Target {
    /// Name of the instance
    #[arg(long, default_value = "lb", value_name = "NAME")]
    instance: String,
}

impl Target {
    fn instance(&self) -> Result<Instance> {
        Instance::new(&self.instance)
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Load and attach the data plane, or adopt the pinned one; check backends; stay in the foreground
    Run(run::Run),
    /// Validate a configuration, apply nothing; exit status 2 with every error
    Check(check::Check),
    /// Print a configuration with every default spelled out; without --config, the one that runs now
    Show(show::Show),
    /// Print health, rotation and counters; exit status 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN, 4 not running
    Status(status::Status),
    /// Say why backends are bad, with commands to try by hand; exit status as status
    Diagnose(diagnose::Diagnose),
    /// Print the last transitions of each backend, with the reason
    History(ask::History),
    /// Print the last events of packets: what was dropped, passed or noted, and why
    Events(events::Events),
    /// Read the configuration file again and apply what changed; if it is refused, the running one stays
    Reload(Target),
    /// Give a backend no new flows; existing ones go on
    Drain(ask::Backend),
    /// End a drain
    Undrain(ask::Backend),
    /// Stop traffic to a backend, and its checks
    Offline(ask::Backend),
    /// End that
    Online(ask::Backend),
    /// Remove the data plane, its pins and the addresses it assigned
    Detach(Target),
    /// Write manual pages and shell completions, for packages
    #[command(hide = true)]
    Generate(generate::Generate),
    /// List live flows, with or without a running controller
    Connections(connections::Connections),
    /// Ask the loaded program what it would do with a packet; nothing changes
    Explain(explain::Explain),
    /// Live view of rates, health, drops and SNAT ports; q quits, s sorts, p pauses
    Top(top::Top),
    /// Examine the host; exit status 0 fit, 1 with warnings, 2 unfit
    Doctor(doctor::Doctor),
}

/// The path of a configuration file.
#[derive(Clone, Debug, Args)]
struct ConfigFile {
    /// Configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let cli = Cli::try_parse().unwrap_or_else(|error| refuse_words(&error));
    if !matches!(cli.command, Command::Run(_)) {
        end_with_the_pipe();
    }
    // Where 1 means WARNING, a failure is something else.
    let failure = match cli.command {
        Command::Status(_) | Command::Diagnose(_) => UNKNOWN,
        Command::Doctor(_) => UNFIT,
        _ => FAILED,
    };
    let result = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")
        .and_then(|runtime| runtime.block_on(dispatch(cli.command)));
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("lb: {error:#}");
            ExitCode::from(failure)
        }
    }
}

/// Prints what is wrong with the words of the command line, or the help that they ask for, and ends. Where 2 means
/// CRITICAL, a word that is not understood is something else.
fn refuse_words(error: &clap::Error) -> ! {
    let is_monitoring = std::env::args().nth(1).is_some_and(|verb| verb == "status" || verb == "diagnose");
    if is_monitoring && error.use_stderr() {
        // Nobody may be reading.
        let _ = error.print();
        std::process::exit(UNKNOWN.into());
    }
    error.exit()
}

/// Lets a command whose reader goes away (`lb status | head`) end like any other program, by SIGPIPE; Rust ignores it
/// and would panic at the next line.
fn end_with_the_pipe() {
    // SAFETY: the default action is no handler, so nothing of ours runs in signal context.
    let restored = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) };
    // Only an unknown signal number is refused.
    debug_assert!(restored.is_ok());
}

async fn dispatch(command: Command) -> Result<u8> {
    match command {
        Command::Run(run) => run.execute().await,
        Command::Check(check) => check.execute(),
        Command::Show(show) => show.execute().await,
        Command::Status(status) => status.execute().await,
        Command::Diagnose(diagnose) => diagnose.execute().await,
        Command::History(history) => history.execute().await,
        Command::Events(events) => events.execute().await,
        Command::Reload(target) => ask::reload(&target.instance()?).await,
        Command::Drain(backend) => backend.execute(Action::Drain).await,
        Command::Undrain(backend) => backend.execute(Action::Undrain).await,
        Command::Offline(backend) => backend.execute(Action::Offline).await,
        Command::Online(backend) => backend.execute(Action::Online).await,
        Command::Detach(target) => detach::execute(&target.instance()?).await,
        Command::Generate(generate) => generate.execute(),
        Command::Connections(connections) => connections.execute().await,
        Command::Explain(explain) => explain.execute().await,
        Command::Top(top) => top.execute().await,
        Command::Doctor(doctor) => doctor.execute().await,
    }
}

/// Says that an instance does not run, and whether what it has left forwards without it.
fn not_running(instance: &Instance) -> u8 {
    let name = instance.name();
    eprintln!("lb: instance `{name}` is not running (nobody answers at {})", instance.socket().display());
    match interfaces(&instance.pins()).map(|attached| names_of(&attached)) {
        Ok(names) if !names.is_empty() => eprintln!(
            "lb: its data plane on {names} goes on forwarding with the last rotation, but nobody checks the backends: \
             the next start takes it over, or says why it cannot; `lb detach --instance {name}` removes it"
        ),
        Err(error) if instance.has_pins() => {
            eprintln!("lb: whether its data plane goes on forwarding cannot be seen: {error:#}");
        }
        _ => {}
    }
    NOT_RUNNING
}

/// Says that an instance has no data plane, or one that is not complete.
fn no_data_plane(instance: &Instance) -> u8 {
    eprintln!(
        "lb: instance `{}` has no complete data plane in {}: it has not been started, or is just starting",
        instance.name(),
        instance.pins().display()
    );
    NOT_RUNNING
}

/// The names of the interfaces that a data plane is attached to, of those that are there.
fn names_of(attached: &[(u32, InterfaceMac)]) -> String {
    let names: Vec<String> = attached.iter().filter_map(|(index, _)| interface_name(*index)).collect();
    names.join(", ")
}
