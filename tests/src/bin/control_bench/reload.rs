//! Reloads of a large configuration: how long one takes from the signal to forwarding, what a listener costs in memory, and
//! whether a listener that a reload does not touch loses packets.

use std::time::{Duration, Instant};

use anyhow::Result;
use lb_tests::netns::{Lab, Lb, binary, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::idle::PATIENCE;
use crate::memory;
use crate::probe::{self, Loss};
use crate::report::Report;
use crate::service::{BACKENDS, SERVERS, Services, VIPS};

const CONFIG: &str = "/run/reload.toml";

/// Measures with `listeners` listeners of 16 backends.
pub(crate) fn measure(report: &mut Report, listeners: u32, rounds: u32, interval_ms: u32) -> Result<()> {
    let lab = Lab::one_arm()?;
    for host in std::iter::once(&lab.client).chain(lab.backends.iter().map(|server| &server.host)) {
        host.run(&format!("ip route add {VIPS} via 10.0.1.2"))?.success()?;
    }
    lab.backends[0].host.run(&format!("ip route add local {SERVERS} dev lo"))?.success()?;
    lab.balancer.run(&format!("ip route add {SERVERS} via 10.0.1.10"))?.success()?;

    let one = Services { many: 1, with_new: false, weight: 1, interval_ms: 1000.min(interval_ms) };
    let bench = Bench { lab, many: one };
    let with_one = bench.memory()?;
    let many = Services { many: listeners, interval_ms, ..one };
    let bench = Bench { many, ..bench };
    let with_many = bench.memory()?;
    let more = f64::from(listeners - 1);
    let what = format!("for a listener with a set of {BACKENDS} backends");
    report.add(format!("kernel memory {what}"), "bytes", vec![(with_many.kernel - with_one.kernel) / more]);
    report.add(
        format!("resident memory of the controller {what}"),
        "bytes",
        vec![(with_many.process - with_one.process) / more],
    );

    bench.write(many)?;
    let (lb, started) = bench.start()?;
    let what = format!("{listeners} listeners of {BACKENDS} backends");
    report.add_times(format!("start with {what}, until every backend has been checked"), &[started]);
    bench.settle(&lb)?;
    let one_more = bench.reloads(&lb, rounds, |_| 1)?;
    tell(report, &format!("reload of {what}, one listener more, until that forwards"), &one_more);
    let all_changed = bench.reloads(&lb, rounds, |round| 2 + (round % 2) as u16)?;
    tell(report, &format!("the same, and every table another, {what}"), &all_changed);
    Ok(())
}

/// In bytes.
struct Memory {
    kernel: f64,
    process: f64,
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

    /// Memory with a running instance, which is gone afterwards.
    fn memory(&self) -> Result<Memory> {
        self.write(self.many)?;
        let (lb, _) = self.start()?;
        self.settle(&lb)?;
        let found = Memory { kernel: memory::of_kernel()?, process: memory::of_process(lb.id())? };
        lb.stop()?;
        Lb::detach(&self.lab.balancer)?;
        Ok(found)
    }

    /// Waits until every backend is healthy.
    fn settle(&self, lb: &Lb) -> Result<()> {
        wait::until("every backend to be healthy", PATIENCE, || {
            Ok((lb.status()?.level() == "OK").then_some(()))
        })
    }

    /// Adds a listener and removes it again, `rounds` times, with another weight in every set each time.
    fn reloads(&self, lb: &Lb, rounds: u32, weight: impl Fn(u32) -> u16) -> Result<Vec<(Duration, Loss)>> {
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

fn tell(report: &mut Report, what: &str, samples: &[(Duration, Loss)]) {
    report.add_times(what, &samples.iter().map(|(time, _)| *time).collect::<Vec<_>>());
    let lost = samples.iter().map(|(_, loss)| loss.lost as f64).collect();
    let sent: u64 = samples.iter().map(|(_, loss)| loss.sent).sum();
    report.add(
        format!("packets lost meanwhile on a listener that does not change, of {sent} in all"),
        "packets",
        lost,
    );
}
