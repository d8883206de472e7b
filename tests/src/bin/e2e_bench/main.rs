//! `cargo xtask bench e2e`: traffic through `lb` and through what else forwards it, side by side on the same network,
//! with a CPU of its own for the balancer. As root.

mod bulk;
mod chart;
mod cores;
mod frames;
mod goal;
mod measure;
mod memory;
mod peer;
mod rate;
mod report;
mod search;
mod site;
mod tcp;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use lb_tests::netns::Net;

use crate::cores::{Cores, PROGRAMS, keep_on, make_urgent};
use crate::measure::{Run, Times};
use crate::memory::Backed;
use crate::peer::Peer;
use crate::rate::Way;
use crate::report::{Measured, Report};
use crate::site::Site;
use crate::tcp::Servers;

/// Rounds that are measured in any case; more only within the time limit.
const LEAST_ROUNDS: u32 = 3;

/// Flows whose frames are all looked at before anything is measured.
const CHECKED_FLOWS: u32 = 10_000;

#[derive(Parser)]
#[command(name = "cargo xtask bench e2e", about = "Measures lb side by side with other balancers")]
struct Options {
    /// How often everything is measured, one peer after the other [default: 9, with --quick 3].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
    /// Shorter runs and fewer of them: about five minutes in place of twelve.
    #[arg(long)]
    quick: bool,
    /// No further round is begun, after the third, that would not end within so many minutes.
    #[arg(long, default_value_t = 15)]
    minutes: u64,
    /// Only these peers, by a part of their names; may be given several times.
    #[arg(long)]
    peer: Vec<String>,
    /// Only what has this in its name; may be given several times.
    #[arg(long)]
    run: Vec<String>,
    /// The eBPF object with the programs that make and count traffic.
    #[arg(long)]
    object: PathBuf,
    /// Where to write the report, as JSON.
    #[arg(long)]
    report: PathBuf,
    /// A folder to keep the report in besides, as Markdown with a chart.
    #[arg(long, value_name = "FOLDER")]
    save: Option<PathBuf>,
}

impl Options {
    fn rounds(&self) -> u32 {
        self.rounds.unwrap_or(if self.quick { 3 } else { 9 })
    }

    fn times(&self) -> Times {
        let run = if self.quick { 600 } else { 1200 };
        // Most trials are to be over before the machine is kept from working, which it is every some ten milliseconds.
        Times { trial: Duration::from_millis(10), run: Duration::from_millis(run) }
    }

    fn peers(&self) -> impl Iterator<Item = Peer> {
        Peer::ALL.into_iter().filter(|peer| is_chosen(&self.peer, peer.name()))
    }

    fn runs(&self) -> impl Iterator<Item = Run> {
        Run::ALL.into_iter().filter(|run| is_chosen(&self.run, run.name()))
    }
}

/// Everything is chosen by naming nothing.
fn is_chosen(parts: &[String], name: &str) -> bool {
    let name = name.to_lowercase();
    parts.is_empty() || parts.iter().any(|part| name.contains(&part.to_lowercase()))
}

fn main() -> Result<()> {
    let options = Options::parse();
    ensure!(options.peers().count() > 0 && options.runs().count() > 0, "nothing has such a name");
    let begin = Instant::now();
    let cores = Cores::choose()?;
    keep_on(0, cores.traffic)?;
    make_urgent(0, PROGRAMS)?;
    eprintln!("the balancer has CPU {}, everything else CPU {}", cores.balancer, cores.traffic);
    let backed = Backed::take()?;
    eprintln!("the kernel has {} MiB for packets that stay here", backed.mebibytes());
    let net = Net::new()?;
    let sites: Result<Vec<Site>> =
        options.peers().map(|peer| Site::build(&net, peer, cores, &options.object)).collect();
    let mut sites = sites?;
    let servers = Servers::start(&sites)?;
    for site in &mut sites {
        start(site, &servers).with_context(|| format!("{} does not work", site.peer.name()))?;
    }
    let (measured, rounds) = measure(&options, &mut sites, &servers, begin)?;
    for site in &sites {
        let refused = site.refused()?;
        ensure!(refused == 0, "{}: {refused} packets arrived with a wrong checksum", site.peer.name());
    }
    let report = Report::new(&measured, rounds, options.quick, backed.mebibytes());
    println!("\n{report}");
    report.write(&options.report)?;
    println!("every sample: {}; all of it took {:.0?}", options.report.display(), begin.elapsed());
    if let Some(folder) = &options.save {
        report.save(folder)?;
        println!("kept in {}", folder.display());
    }
    Ok(())
}

/// Starts a site's peer and shows that it works.
fn start(site: &mut Site, servers: &Servers) -> Result<()> {
    eprintln!("starting and checking {}", site.peer.name());
    site.start()?;
    site.check_sockets(servers)?;
    if site.peer.forwards_udp() {
        site.check_frames(Way::There, CHECKED_FLOWS)?;
        site.check_frames(Way::ThereAndBack, CHECKED_FLOWS)?;
    }
    Ok(())
}

/// Measures everything, in each round one peer after the other, and says how many rounds there was time for.
fn measure(
    options: &Options,
    sites: &mut [Site],
    servers: &Servers,
    begin: Instant,
) -> Result<(Measured, u32)> {
    let (times, mut measured) = (options.times(), Measured::default());
    for round in 1..=options.rounds() {
        let begin_of_round = Instant::now();
        for run in options.runs() {
            eprintln!("round {round} of {}: {}", options.rounds(), run.name());
            for site in sites.iter_mut().filter(|site| run.is_for(site.peer)) {
                let sample = run.measure(site, servers, &times)?;
                measured.add(site.peer, &sample);
            }
        }
        let limit = Duration::from_secs(60 * options.minutes);
        if round >= LEAST_ROUNDS && begin.elapsed() + begin_of_round.elapsed() > limit {
            return Ok((measured, round));
        }
    }
    Ok((measured, options.rounds()))
}
