//! The packet tests: the real XDP program under BPF_PROG_TEST_RUN. Each case of `tests/packets/*.toml` shows as
//! two tests, `TOPIC::v4::NAME` and `TOPIC::v6::NAME`; what needs more than a case can say is in the modules here.
//!
//! The executable needs root and its case files, no network: `LB_PACKET_CASES` names their folder where the
//! sources are not at hand, as inside of a virtual machine. `LB_PACKET_EFFORT` is how much of the long tests to do,
//! in percent: less where the machine is emulated, more to let the fuzzer run for hours.

mod answers;
mod budget;
mod checksums;
mod flood;
mod fuzz;
mod harness;
mod ids;
mod lab;
mod lanes;
mod ports;
mod race;
mod spread;
mod truncation;

use std::env;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use lb_tests::packets::case::CaseFile;
use lb_tests::packets::{Family, Network, play};
use libtest_mimic::{Arguments, Failed, Trial};

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    match trials() {
        Ok(trials) => libtest_mimic::run(&arguments, trials).exit_code(),
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Folder of the case files.
fn cases() -> PathBuf {
    env::var_os("LB_PACKET_CASES")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/packets")), PathBuf::from)
}

/// A number of packets for a long test, as `LB_PACKET_EFFORT` scales it.
fn scaled(packets: u64) -> Result<u64> {
    Ok(packets * effort()? / 100)
}

/// `LB_PACKET_EFFORT`, in percent.
fn effort() -> Result<u64> {
    match env::var("LB_PACKET_EFFORT") {
        Ok(value) => value
            .parse()
            .with_context(|| format!("expected a number of percent in LB_PACKET_EFFORT, found `{value}`")),
        Err(_) => Ok(100),
    }
}

fn trials() -> Result<Vec<Trial>> {
    let folder = cases();
    let network = Arc::new(Network::read(&folder)?);
    let mut trials = Vec::new();
    for file in CaseFile::read_all(&folder)? {
        let file = Arc::new(file);
        for index in 0..file.topic.cases.len() {
            for family in [Family::V4, Family::V6] {
                trials.extend(trial_of_case(&file, index, &network, family));
            }
        }
    }
    if effort()? < 100 {
        // Everything takes twenty times as long in an emulated machine: one case of six, in both families.
        let mut number = 0..;
        trials.retain(|_| number.next().is_some_and(|number: usize| (number / 2).is_multiple_of(6)));
    }
    trials.extend(answers::trials());
    trials.extend(budget::trials());
    trials.extend(checksums::trials());
    if effort()? >= 100 {
        trials.extend(flood::trials());
    }
    trials.extend(fuzz::trials());
    trials.extend(harness::trials());
    trials.extend(ids::trials());
    trials.extend(lanes::trials());
    trials.extend(ports::trials());
    trials.extend(race::trials());
    trials.extend(spread::trials());
    trials.extend(truncation::trials());
    Ok(trials)
}

/// A test that is run for each IP version, named as those of cases are.
fn trial_for_each_family(topic: &str, name: &str, test: fn(Family) -> Result<()>) -> Vec<Trial> {
    let trial =
        |family| Trial::test(format!("{topic}::{family}::{name}"), move || test(family).map_err(failed));
    vec![trial(Family::V4), trial(Family::V6)]
}

/// A case as a test, unless it is for the other IP version.
fn trial_of_case(
    file: &Arc<CaseFile>,
    index: usize,
    network: &Arc<Network>,
    family: Family,
) -> Option<Trial> {
    let case = &file.topic.cases[index];
    if case.family.is_some_and(|only| only != family) {
        return None;
    }
    let name = format!("{}::{family}::{}", file.name(), case.name.get_ref());
    let (file, network) = (Arc::clone(file), Arc::clone(network));
    Some(Trial::test(name, move || {
        play::play(&file, &file.topic.cases[index], &network, family).map_err(failed)
    }))
}

/// The causes of a failure, the outermost first; a backtrace would tell nothing of the case.
fn failed(error: anyhow::Error) -> Failed {
    error.chain().map(ToString::to_string).collect::<Vec<_>>().join("\n").into()
}
