//! `cargo xtask bench control`: what the controller takes: tables, reloads, adoption, collection, memory, CPU. As root.

mod adoption;
mod flows;
mod idle;
mod maglev_tables;
mod memory;
mod probe;
mod reload;
mod report;
mod service;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use lb_tests::report::Output;

use crate::report::Report;

#[derive(Parser)]
#[command(
    name = "cargo xtask bench control",
    about = "Measures what the controller takes",
    args_override_self = true
)]
struct Options {
    /// Only these pieces; then nothing is written.
    #[arg(long)]
    only: Vec<Piece>,
    /// Listeners, each with a VIP and a set of 16 backends.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(2..))]
    listeners: u32,
    /// Flows that are collected, and those that are adopted.
    #[arg(long, default_value_t = 1 << 20, value_parser = clap::value_parser!(u32).range(1024..))]
    flows: u32,
    /// How often everything is measured.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// From check to check of each backend where reloads are measured, in milliseconds.
    #[arg(long, default_value_t = 10_000)]
    interval_ms: u32,
    #[command(flatten)]
    output: Output,
}

/// What is measured by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Piece {
    /// Lookup tables of as many sets as there are listeners.
    Maglev,
    /// Reloads of a large configuration, and memory for a listener.
    Reload,
    /// Collecting flows, and memory for a flow.
    Flows,
    /// A new controller where the maps hold many flows.
    Adoption,
    /// CPU of a controller that has nothing to do.
    Idle,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let Options { listeners, flows, rounds, interval_ms, .. } = options;
    let mut report = Report::default();
    for piece in Piece::value_variants() {
        if !options.only.is_empty() && !options.only.contains(piece) {
            continue;
        }
        match piece {
            Piece::Maglev => maglev_tables::measure(&mut report, listeners, rounds),
            Piece::Reload => reload::measure(&mut report, listeners, rounds, interval_ms)?,
            Piece::Flows => flows::measure(&mut report, flows, rounds)?,
            Piece::Adoption => adoption::measure(&mut report, flows, rounds)?,
            Piece::Idle => idle::measure(&mut report, rounds)?,
        }
    }
    if options.only.is_empty() { options.output.write(&report) } else { Ok(()) }
}
