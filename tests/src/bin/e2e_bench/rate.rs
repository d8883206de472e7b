//! The highest rate at which at most one frame of a hundred is lost.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lb_common::traffic::{BLIND, CHECK, ECHO};
use serde::Serialize;

use crate::cores::Work;
use crate::frames::{End, Plan};
use crate::peer::{Counted, Peer};
use crate::site::{PATIENCE, Site};

/// The part that may be lost.
const LOSS: f64 = 0.01;
/// Frames each second while flows are made; slow enough for every peer.
const WARM_UP: f64 = 150_000.0;
/// Frames each second at which none may be lost, however busy the machine is.
const CHECK_RATE: f64 = 10_000.0;
/// How often a rate is tried before it is too high: whatever keeps a CPU from working for some milliseconds costs frames, and a
/// virtual machine may be kept from it at any moment.
const TRIES: u32 = 4;
/// How often the range of rates is halved: it ends at about a hundredth of the rate.
const HALVINGS: u32 = 7;
/// The highest rate that is tried, in what arrives when more is sent than can be forwarded.
const HIGHEST: f64 = 1.4;
/// Below this part of the rate that was asked for, the sender has not kept up.
const KEPT_UP: f64 = 0.97;

/// Where the frames go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// To the backend, which drops them.
    There,
    /// To the backend and back to the client.
    ThereAndBack,
}

/// What came of sending for a while.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Trial {
    /// Frames each second, as sent.
    pub(crate) offered: f64,
    /// Frames each second, as arrived.
    pub(crate) arrived: f64,
    /// Nanoseconds of the balancer's threads for a frame that arrived.
    pub(crate) cost_ns: f64,
    /// The part of the time in which they ran.
    pub(crate) busy: f64,
    /// Whether more was asked for than the sender could send.
    pub(crate) is_limited: bool,
}

impl Trial {
    fn loss(&self) -> f64 {
        1.0 - self.arrived / self.offered
    }
}

/// A search.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Highest {
    /// The best trial that lost little enough.
    pub(crate) best: Trial,
    /// All of them, in their order; at first as much as possible was sent.
    trials: Vec<Trial>,
}

impl Site {
    /// Searches by offered rate.
    pub(crate) fn highest_rate(&mut self, way: Way, flows: u32, time: Duration) -> Result<Highest> {
        self.warm_up(way, flows)?;
        let work = self.packet_work()?;
        let mut trials = Vec::new();
        let mut trial = |rate| -> Result<Trial> {
            let trial = self.trial(way, flows, rate, time, &work)?;
            trials.push(trial);
            Ok(trial)
        };
        let floods = [trial(f64::INFINITY)?, trial(f64::INFINITY)?];
        let flooded = if floods[0].arrived > floods[1].arrived { floods[0] } else { floods[1] };
        let (mut low, mut high) = (0.0, HIGHEST * flooded.arrived);
        let mut best = (flooded.loss() <= LOSS).then_some(Trial { is_limited: true, ..flooded });
        for _ in 0..HALVINGS {
            let rate = f64::midpoint(low, high);
            let mut now = trial(rate)?;
            for _ in 1..TRIES {
                if now.loss() <= LOSS && !now.is_limited {
                    break;
                }
                let again = trial(rate)?;
                if again.loss() <= LOSS || now.loss() > LOSS {
                    now = again;
                }
            }
            if now.loss() > LOSS {
                high = rate;
                continue;
            }
            low = rate;
            if best.is_none_or(|best: Trial| best.arrived < now.arrived) {
                best = Some(now);
            }
        }
        let best =
            best.with_context(|| format!("even at {high:.0} frames each second more than 1 % were lost"))?;
        Ok(Highest { best, trials })
    }

    /// Makes the flows known, two frames each in a row: to the balancer a flow of one is not worth keeping.
    fn warm_up(&mut self, way: Way, flows: u32) -> Result<()> {
        self.attach(way, BLIND)?;
        let frames = 2 * u64::from(flows);
        let plan = Plan { flows, row: 2, rate: WARM_UP, frames, time: Duration::from_secs(5) };
        self.sender.send(&plan, self.peer == Peer::Routing)?;
        self.end(way).settled()?;
        Ok(())
    }

    fn trial(&mut self, way: Way, flows: u32, rate: f64, time: Duration, work: &Work) -> Result<Trial> {
        let (before, idle) = (self.end(way).arrivals()?, work.so_far()?);
        let plan = Plan { flows, row: 1, rate, frames: u64::MAX, time };
        let sent = self.sender.send(&plan, self.peer == Peer::Routing)?;
        let arrived = self.end(way).settled()?.frames - before.frames;
        let (worked, _) = work.so_far()?.since(&idle);
        ensure!(arrived <= sent.frames, "{} frames were sent, but {arrived} arrived", sent.frames);
        let seconds = sent.time.as_secs_f64();
        let offered = sent.frames as f64 / seconds;
        Ok(Trial {
            offered,
            arrived: arrived as f64 / seconds,
            cost_ns: worked.as_secs_f64() * 1e9 / arrived.max(1) as f64,
            busy: worked.as_secs_f64() / seconds,
            is_limited: rate.is_finite() && offered < KEPT_UP * rate,
        })
    }

    /// Sends slowly, looks at the checksums of all that arrives, and at what lb has counted. Nothing may be lost; more
    /// slowly again if something is, since others may be using the machine.
    pub(crate) fn check_frames(&mut self, way: Way, flows: u32) -> Result<()> {
        self.attach(way, CHECK)?;
        let mut rate = WARM_UP;
        let lost = loop {
            rate /= 2.0;
            let lost = self.check_frames_once(way, flows, rate)?;
            if lost == 0 || rate < CHECK_RATE {
                break lost;
            }
        };
        ensure!(lost == 0, "{lost} frames were lost at {rate:.0} each second");
        Ok(())
    }

    /// The number of frames that were lost.
    fn check_frames_once(&mut self, way: Way, flows: u32, rate: f64) -> Result<u64> {
        let frames = 2 * u64::from(flows);
        let (counted, before) = (self.running.counted()?, self.end(way).arrivals()?);
        let plan = Plan { flows, row: 2, rate, frames, time: PATIENCE };
        let sent = self.sender.send(&plan, self.peer == Peer::Routing)?.frames;
        ensure!(sent == frames, "only {sent} frames of {frames} could be sent in {:?}", plan.time);
        let after = self.end(way).settled()?;
        let (arrived, wrong) = (after.frames - before.frames, after.wrong - before.wrong);
        ensure!(arrived <= sent, "{sent} frames were sent, but {arrived} arrived");
        ensure!(wrong == 0, "{wrong} of {arrived} frames arrived with a wrong checksum");
        let counted = self.running.counted()?.zip(counted).map(|(after, before)| after.since(&before));
        if let Some(counted) = counted.filter(|_| arrived == sent) {
            let expected = if way == Way::There { sent } else { 2 * sent };
            let Counted { packets, new_flows } = counted;
            ensure!(packets == expected, "lb counted {packets} packets, expected were {expected}");
            ensure!(new_flows <= flows.into(), "lb made {new_flows} flows of {flows}");
        }
        Ok(sent - arrived)
    }

    fn attach(&mut self, way: Way, duty: u32) -> Result<()> {
        // What sends a frame back has to look into it.
        let turn = if way == Way::There { duty } else { duty & !BLIND | ECHO };
        self.backend_end.attach(turn)?;
        self.client_end.attach(duty)
    }

    /// Where what has gone all the way arrives.
    fn end(&self, way: Way) -> &End {
        match way {
            Way::There => &self.backend_end,
            Way::ThereAndBack => &self.client_end,
        }
    }
}
