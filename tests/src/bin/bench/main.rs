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
use lb_tests::netns::Net;
use lb_tests::report::Output;

use crate::case::Case;
use crate::measure::{Bench, Calmest, Cpus, stay_on};
use crate::replay::Replay;
use crate::report::{Measured, Report};

#[derive(Parser)]
#[command(name = "cargo xtask bench packet", about = "Measures what a packet costs")]
struct Options {
    /// How often everything is measured.
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Measures nothing but cases of so many flows; may be given several times.
    #[arg(long)]
    flows: Vec<u32>,
    /// The eBPF object with the replaying programs.
    #[arg(long)]
    object: PathBuf,
    #[command(flatten)]
    output: Output,
}

impl Options {
    /// What is measured. All other cases are measured in units of the hot ones.
    fn cases(&self, ring: u32) -> Vec<Measured> {
        let is_chosen =
            |case: &Case| self.flows.is_empty() || case.flows == 1 || self.flows.contains(&case.flows);
        Case::all(ring).into_iter().filter(is_chosen).map(|case| (case, Vec::new())).collect()
    }
}

fn main() -> Result<()> {
    let options = Options::parse();
    let net = Net::new()?;
    let host = net.host("idle")?;
    host.run_all(&[
        "ip link add idle0 type veth peer name idle1",
        "ip link add idle2 type veth peer name idle3",
    ])?;
    let cpus = Cpus::find()?;
    stay_on(cpus.own)?;
    let mut measured = Vec::new();
    let mut beside: Vec<Measured> = Case::beside().into_iter().map(|case| (case, Vec::new())).collect();
    let mut companion = Replay::load(&options.object, &host, ["idle2", "idle3"])?;
    let mut calmest = Calmest::default();
    for round in 1..=options.rounds {
        eprintln!("round {round} of {}: making {} flows of each family", options.rounds, case::MANY);
        // Where programs and maps come to lie is chance, and makes a hot lookup up to a tenth dearer or cheaper: no round is to
        // share it with another.
        let mut bench = Bench::prepare(&options.object, &host, ["idle0", "idle1"], &mut calmest)?;
        if measured.is_empty() {
            measured = options.cases(bench.ring()?);
        }
        bench.settle()?;
        for group in measured.chunk_by_mut(|(one, _), (other, _)| one.is_of_group(other)) {
            let cases: Vec<Case> = group.iter().map(|(case, _)| *case).collect();
            for ((_, samples), time) in group.iter_mut().zip(bench.measure_group(&cases)?) {
                samples.push(time);
            }
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
