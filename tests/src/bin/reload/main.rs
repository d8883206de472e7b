//! `cargo xtask bench reload`: how long a reload of a large configuration takes from the signal to forwarding, what it
//! costs in memory, and whether a listener that it does not touch loses packets. As root.

mod probe;
mod service;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use lb_tests::netns::{Lab, Lb, binary, wait};
use lb_userspace::dataplane::maglev::{self, Member};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::probe::Loss;
use crate::service::{BACKENDS, SERVERS, Services, VIPS, backend};

/// The goal of a reload, in seconds.
const GOAL: Duration = Duration::from_secs(2);
/// How long anything may take before the measurement is given up.
const PATIENCE: Duration = Duration::from_secs(60);
const CONFIG: &str = "/run/reload.toml";

#[derive(Parser)]
#[command(name = "cargo xtask bench reload", about = "Measures reloads of a large configuration")]
struct Options {
    /// Listeners, each with a VIP and a set of 16 backends.
    #[arg(long, default_value_t = 1000)]
    listeners: u32,
    /// How often each kind of reload is measured.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// From check to check of each backend, in milliseconds.
    #[arg(long, default_value_t = 10_000)]
    interval_ms: u32,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let Options { listeners, rounds, interval_ms } = options;
    println!("{listeners} listeners, each with {BACKENDS} backends that are checked every {interval_ms} ms");
    println!("Maglev tables of all sets: {:.0?}", build_tables(listeners));

    let lab = Lab::one_arm()?;
    for host in std::iter::once(&lab.client).chain(lab.backends.iter().map(|server| &server.host)) {
        host.run(&format!("ip route add {VIPS} via 10.0.1.2"))?.success()?;
    }
    lab.backends[0].host.run(&format!("ip route add local {SERVERS} dev lo"))?.success()?;
    lab.balancer.run(&format!("ip route add {SERVERS} via 10.0.1.10"))?.success()?;

    let many = Services { many: listeners, with_new: false, weight: 1, interval_ms };
    let bench = Bench { lab, many };
    bench.write(many)?;
    let (lb, started) = bench.start()?;
    println!("start, until every backend has been checked: {started:.2?}");
    bench.settle(&lb)?;
    let memory = resident_kib(lb.id())?;
    println!(
        "resident memory: {} MiB, {:.1} KiB a listener",
        memory / 1024,
        memory as f64 / f64::from(listeners)
    );

    tell("one listener more", &bench.reloads(&lb, rounds, |_| 1)?);
    tell("one listener more, and every table another", &bench.reloads(&lb, rounds, |round| 2 + round % 2)?);

    lb.kill9()?;
    let (_lb, adopted) = bench.start()?;
    println!("adoption after kill -9, until ready: {adopted:.2?}");
    Ok(())
}

/// What is measured, and on what.
struct Bench {
    lab: Lab,
    many: Services,
}

impl Bench {
    fn write(&self, services: Services) -> Result<()> {
        self.lab.balancer.write(CONFIG, &services.text(&self.lab))
    }

    fn start(&self) -> Result<(Lb, Duration)> {
        let mut command = self.lab.balancer.command(binary("lb")?);
        command.args(["run", "--config", CONFIG]);
        let begin = Instant::now();
        let lb = Lb::start_command_within(&self.lab.balancer, command, false, PATIENCE)?;
        Ok((lb, begin.elapsed()))
    }

    /// Waits until every backend is healthy.
    fn settle(&self, lb: &Lb) -> Result<()> {
        wait::until("every backend to be healthy", PATIENCE, || {
            Ok((lb.status()?.level() == "OK").then_some(()))
        })
    }

    /// Adds a listener and removes it again, `rounds` times, with another weight in every set each time.
    fn reloads(&self, lb: &Lb, rounds: u16, weight: impl Fn(u16) -> u16) -> Result<Vec<(Duration, Loss)>> {
        let one_round = |round| {
            let sample = self.reload(lb, Services { with_new: true, weight: weight(round), ..self.many })?;
            self.write(Services { weight: weight(round), ..self.many })?;
            Lb::command(&self.lab.balancer, "reload")?.success()?;
            self.settle(lb)?;
            Ok(sample)
        };
        (0..rounds).map(one_round).collect()
    }

    /// The time from the signal to the first answer of the new listener, and what the unchanged one loses meanwhile.
    fn reload(&self, lb: &Lb, services: Services) -> Result<(Duration, Loss)> {
        let client = &self.lab.client;
        self.write(services)?;
        probe::loss_during(client, services.unchanged(), || {
            let begin = Instant::now();
            kill(Pid::from_raw(lb.id().cast_signed()), Signal::SIGHUP)?;
            let answered = probe::first_answer(client, services.new_one(), PATIENCE)?;
            self.settle(lb)?;
            Ok(answered - begin)
        })
    }
}

fn tell(what: &str, samples: &[(Duration, Loss)]) {
    let mut times: Vec<Duration> = samples.iter().map(|(time, _)| *time).collect();
    times.sort_unstable();
    let (median, slowest) = (times[times.len() / 2], times[times.len() - 1]);
    let sent: u64 = samples.iter().map(|(_, loss)| loss.sent).sum();
    let lost: u64 = samples.iter().map(|(_, loss)| loss.lost).sum();
    println!("reload, {what}: forwards after {median:.2?} (median; slowest {slowest:.2?}; goal {GOAL:?})");
    println!("  packets lost on an unchanged listener meanwhile: {lost} of {sent}");
}

/// How long the tables of as many sets take.
fn build_tables(sets: u32) -> Duration {
    let begin = Instant::now();
    for set in 0..sets {
        let member = |index| Member { address: (backend(set, index), 7).into(), id: index, weight: 1 };
        let members: Vec<Member> = (0..BACKENDS).map(member).collect();
        std::hint::black_box(maglev::build(&members));
    }
    begin.elapsed()
}

/// Resident memory of a process (proc(5)), in KiB.
fn resident_kib(process: u32) -> Result<u64> {
    let status = fs::read_to_string(Path::new("/proc").join(process.to_string()).join("status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    line.trim().trim_end_matches(" kB").parse().context("VmRSS is no number")
}
