//! CPU of a controller that has nothing to do but its checks.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use lb_tests::netns::{Config, Family, Lab, Lb};
use nix::unistd::{SysconfVar, sysconf};

use crate::report::Report;

/// How long anything may take before the measurement is given up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// How long it is watched.
const WATCHED: Duration = Duration::from_secs(10);

/// Measures with two services of three backends each, checked as often as it is the default.
pub(crate) fn measure(report: &mut Report, rounds: u32) -> Result<()> {
    let lab = Lab::one_arm()?;
    let config = Config { interval_ms: 10_000, ..Config::new(&lab, Family::V4) };
    let lb = start(&lab, &config.to_string())?;
    lb.wait_for_rotation(3, PATIENCE)?;
    let watched = (0..rounds.min(3)).map(|_| busy(lb.id())).collect::<Result<_>>()?;
    report.add("CPU of an idle controller, 2 services of 3 backends", "ms a second", watched);
    Ok(())
}

/// Starts `lb run`, waits until it is ready, and keeps its log to itself.
pub(crate) fn start(lab: &Lab, config: &str) -> Result<Lb> {
    const FILE: &str = "/run/lb.toml";
    lab.balancer.write(FILE, config)?;
    Lb::run(&lab.balancer, FILE.as_ref(), false)
}

/// Milliseconds of CPU that a process takes in a second.
pub(crate) fn busy(process: u32) -> Result<f64> {
    let (begin, before) = (Instant::now(), cpu_time(process)?);
    thread::sleep(WATCHED);
    let used = cpu_time(process)?.saturating_sub(before);
    Ok(used.as_secs_f64() * 1000.0 / begin.elapsed().as_secs_f64())
}

/// What a process has used so far, in user space and in the kernel (proc(5): utime and stime).
fn cpu_time(process: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    // The name, in brackets, may hold anything.
    let (_, fields) = stat.rsplit_once(") ").context("no name in a process's stat")?;
    let ticks: u64 = fields.split(' ').skip(11).take(2).map(|field| field.parse().unwrap_or(0)).sum();
    let rate = sysconf(SysconfVar::CLK_TCK)?.context("the system does not tell its clock ticks")?;
    Ok(Duration::from_secs_f64(ticks as f64 / rate as f64))
}
