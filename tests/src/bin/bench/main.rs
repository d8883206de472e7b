//! `cargo xtask bench packet`: what a packet costs, in nanoseconds, beside the least it could cost and beside one map
//! lookup, all measured in the same rounds on one CPU (BPF_PROG_TEST_RUN).

mod balancer;
mod case;
mod flows;
mod measure;
mod packet;
mod replay;
mod report;
mod service;

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;
use lb_tests::report::Output;

use crate::case::Case;
use crate::measure::{Bench, Cpus, stay_on};
use crate::replay::Replay;
use crate::report::{Measured, Report};

#[derive(Parser)]
#[command(name = "cargo xtask bench packet", about = "Measures what a packet costs")]
struct Options {
    /// How often everything is measured.
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// The eBPF object with the replaying programs.
    #[arg(long)]
    object: PathBuf,
    #[command(flatten)]
    output: Output,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let cpus = Cpus::find()?;
    stay_on(cpus.own)?;
    eprintln!("making {} flows of each family", case::MANY);
    let mut bench = Bench::prepare(&options.object)?;
    let cases = Case::all(bench.ring());
    let mut measured: Vec<Measured> = cases.into_iter().map(|case| (case, Vec::new())).collect();
    let mut companion = Replay::load(&options.object)?;
    let mut beside: Vec<Measured> = Case::beside().into_iter().map(|case| (case, Vec::new())).collect();
    for round in 1..=options.rounds {
        eprintln!("round {round} of {}", options.rounds);
        bench.settle()?;
        for (case, samples) in &mut measured {
            samples.push(bench.measure(case)?);
        }
        bench.settle()?;
        for ((case, samples), cpu) in beside.iter_mut().zip(cpus.other.into_iter().cycle()) {
            samples.push(bench.measure_beside(case, &mut companion, cpu)?);
        }
    }
    let report = Report::new(&measured, &beside);
    println!("\n{report}");
    options.output.write(&report)
}
