//! Logs to stderr: one line each, or one JSON object each.

use std::io::{IsTerminal, Write};

use anyhow::{Result, anyhow};
use tracing_subscriber::EnvFilter;

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// For machines.
    Json,
}

/// Starts logging. `LB_LOG` chooses levels by module (`LB_LOG=debug`, `LB_LOG=lb_userspace::health=debug`); the
/// default is `info`.
///
/// # Errors
///
/// If `LB_LOG` cannot be understood, or something else in this process logs already.
pub fn start(format: Format) -> Result<()> {
    let filter = match std::env::var("LB_LOG") {
        Ok(filter) => EnvFilter::try_new(&filter).map_err(|error| anyhow!("LB_LOG={filter:?}: {error}"))?,
        Err(_) => EnvFilter::new("info"),
    };
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // On a terminal the subscriber itself honours NO_COLOR; elsewhere it would colour all the same.
    let subscriber = if std::io::stderr().is_terminal() { subscriber } else { subscriber.with_ansi(false) };
    let started = match format {
        Format::Text => subscriber.with_target(false).try_init(),
        Format::Json => subscriber.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| anyhow!("cannot start logging: {error}"))
}

/// Writes a line of JSON to the log as it stands: events that other programs read have one form, whatever the format
/// of the lines for people.
pub fn json_line(line: &str) {
    // Where nobody reads the log, nobody misses the line.
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}
