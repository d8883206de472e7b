//! `cargo xtask bench`: what a packet costs, in nanoseconds, beside the least it could cost and beside one map
//! lookup, all measured in the same rounds on one CPU (BPF_PROG_TEST_RUN).

mod balancer;
mod case;
mod measure;
mod packet;
mod replay;
mod report;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Parser;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::case::Case;
use crate::measure::Bench;
use crate::report::{Measured, Report};

#[derive(Parser)]
#[command(name = "cargo xtask bench", about = "Measures what a packet costs")]
struct Options {
    /// How often everything is measured.
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// The eBPF object with the replaying programs.
    #[arg(long)]
    object: PathBuf,
    /// Where to write the report, as JSON.
    #[arg(long)]
    report: PathBuf,
}

fn main() -> Result<()> {
    let options = Options::parse();
    stay_on_one_cpu()?;
    eprintln!("making {} flows of each family", case::MANY);
    let mut bench = Bench::prepare(&options.object)?;
    let mut measured: Vec<Measured> = Case::all().into_iter().map(|case| (case, Vec::new())).collect();
    for round in 1..=options.rounds {
        eprintln!("round {round} of {}", options.rounds);
        for (case, samples) in &mut measured {
            samples.push(bench.measure(case)?);
        }
    }
    let report = Report::new(&measured);
    println!("\n{report}");
    let path = &options.report;
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    fs::write(path, serde_json::to_string_pretty(&report)?)
        .with_context(|| format!("cannot write {}", path.display()))?;
    println!("every sample: {}", path.display());
    Ok(())
}

/// Keeps caches and per-CPU maps warm: the last CPU, since interrupts mostly go to the first.
fn stay_on_one_cpu() -> Result<()> {
    let this = Pid::from_raw(0);
    let allowed = sched_getaffinity(this).context("cannot ask for the CPUs to run on")?;
    let last = (0..CpuSet::count()).rev().find(|cpu| allowed.is_set(*cpu).unwrap_or_default());
    let mut only = CpuSet::new();
    only.set(last.unwrap_or_default())?;
    sched_setaffinity(this, &only).context("cannot choose a CPU to run on")
}
