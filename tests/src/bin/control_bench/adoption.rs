//! A new controller that takes over maps with many flows.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use lb_common::{Addr4, Flow, FlowKey, PROTO_UDP};
use lb_tests::flow_tables::FlowTables;
use lb_tests::netns::{Config, Family, Lab, Lb, traffic, wait};

use crate::flows::{AHEAD, fill, like};
use crate::idle::{self, PATIENCE};
use crate::report::Report;

/// The port of both echo services.
const ECHO: u16 = 7;

/// Where the balancer pins its maps.
const PINS: &str = "/sys/fs/bpf/lb";

/// Measures with so many flows, all of which have to be there before and after.
pub(crate) fn measure(report: &mut Report, flows: u32, rounds: u32) -> Result<()> {
    let lab = Lab::one_arm()?;
    let family = Family::V4;
    let config = Config { interval_ms: 1000, ..Config::new(&lab, family) }.to_string();
    let config = config.replacen("[lb]\n", &format!("[lb]\nmax_connections = {}\n", flows + 1024), 1);
    let lb = idle::start(&lab, &config)?;
    lb.wait_for_rotation(3, PATIENCE)?;
    let (mut lb, time) = restart(&lab, lb, &config)?;
    report.add_times("adoption of no flow, from start to ready", &[time]);

    // A real flow, which all others are like.
    traffic::echo_udp(&lab.client, family.vip_port(ECHO), 4)?;
    lab.balancer.enter(|| multiply(flows))?;
    wait_for_flows(&lb, flows)?;
    let mut times = Vec::new();
    for _ in 0..rounds {
        let (next, time) = restart(&lab, lb, &config)?;
        lb = next;
        times.push(time);
        wait_for_flows(&lb, flows)?;
    }
    report.add_times(format!("adoption of {flows} flows, from start to ready"), &times);
    let watched = (0..rounds.min(3)).map(|_| idle::busy(lb.id())).collect::<Result<_>>()?;
    report.add(format!("CPU of a controller that watches {flows} flows"), "ms a second", watched);
    Ok(())
}

/// Kills the controller and starts another; how long that takes until it is ready.
fn restart(lab: &Lab, lb: Lb, config: &str) -> Result<(Lb, Duration)> {
    lb.kill9()?;
    let begin = Instant::now();
    let lb = idle::start(lab, config)?;
    Ok((lb, begin.elapsed()))
}

/// Waits until the controller has counted that many flows.
fn wait_for_flows(lb: &Lb, flows: u32) -> Result<()> {
    wait::until("the controller to count the flows", PATIENCE, || {
        let status = lb.status()?;
        let counted = status.listener("echo-0")?["active_flows"].as_u64().unwrap_or_default();
        Ok((counted >= u64::from(flows)).then_some(()))
    })
}

/// Enters as many flows like the one that is there.
fn multiply(flows: u32) -> Result<()> {
    let mut tables = FlowTables::<Addr4>::pinned(Path::new(PINS))?;
    let real = tables.promoted()?.into_iter().find(|(key, _)| is_echo(key));
    let (key, flow) = real.context("the real flow is not there")?;
    let stamp = flow.last_seen.wrapping_add(AHEAD);
    let young = Flow { created: stamp, last_seen: stamp, ..flow };
    fill(&mut tables, flows, |number| like(number, (key, young)))
}

/// Whether it is a tuple of the UDP echo service's clients.
fn is_echo(key: &FlowKey<Addr4>) -> bool {
    key.protocol == PROTO_UDP && key.destination_port == ECHO
}
