//! The highest rate at which at most one frame of a hundred is lost.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lb_common::traffic::{BLIND, CHECK, ECHO};
use lb_tests::report::Summary;
use serde::Serialize;

use crate::cores::Work;
use crate::frames::{End, Plan};
use crate::peer::{Counted, Peer};
use crate::search::{Search, Verdict};
use crate::site::{PATIENCE, Site};

/// The part that may be lost, of a trial.
const LOSS: f64 = 0.01;
/// Below this part of the rate that was asked for the sender has not kept up, and below this part of what was sent the
/// balancer.
const KEPT_UP: f64 = 0.97;
/// A balancer that works for a smaller part of the time could forward more.
const BUSY: f64 = 0.95;
/// Trials in which as much as possible is sent.
const FLOODS: usize = 4;
/// Trials of a search.
pub(crate) const TRIALS: usize = 64;
/// Trials until a search in which nothing stood is given up.
const MOST_TRIALS: usize = 480;
/// Trials at the rate that was found, to see what a frame costs.
const MORE_TRIALS: usize = 8;
/// From this part of that rate on a trial counts for what a frame costs.
const NEAR: f64 = 0.9;
/// Frames each second while flows are made; slow enough for every peer.
const WARM_UP: f64 = 150_000.0;
/// Frames each second at which none may be lost, however busy the machine is.
const CHECK_RATE: f64 = 10_000.0;

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
    /// Frames each second that were asked for; infinite: as many as can be.
    asked: f64,
    /// Frames each second, as sent.
    offered: f64,
    /// Frames each second, as arrived: until the last one, so that what waited in queues at the end is not a gain.
    arrived: f64,
    /// The part that did not arrive.
    lost: f64,
    /// Nanoseconds of the balancer's threads for a frame that arrived.
    cost_ns: f64,
    /// The part of the time in which they ran.
    busy: f64,
}

impl Trial {
    /// What arrived, if little enough was lost.
    fn passed(&self) -> Option<f64> {
        match self.verdict() {
            Verdict::Passed(arrived) | Verdict::NotSent(arrived) => Some(arrived),
            Verdict::Lost => None,
        }
    }

    fn verdict(&self) -> Verdict {
        // What came late has waited in queues, which would have run over in a longer trial. More can only have arrived
        // than was sent if something was still on its way from before.
        if self.lost > LOSS || self.arrived < KEPT_UP * self.offered || self.lost < 0.0 {
            Verdict::Lost
        } else if self.offered < KEPT_UP * self.asked {
            Verdict::NotSent(self.arrived)
        } else {
            Verdict::Passed(self.arrived)
        }
    }
}

/// The highest rate of which little enough is lost.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Best {
    /// Frames each second, as arrived.
    pub(crate) arrived: f64,
    /// Nanoseconds of the balancer's threads for a frame, when about so many arrived.
    pub(crate) cost_ns: f64,
    /// The part of the time in which they ran then.
    busy: f64,
    /// Whether no more could be sent.
    pub(crate) is_limited: bool,
}

impl Best {
    /// Of a rate and all trials. What a frame costs is asked of those alone that came near that rate: in the others the CPU
    /// was slower, or hardly had anything to do.
    fn of(arrived: f64, trials: &[Trial], had_no_more: bool) -> Self {
        let is_near = |trial: &&Trial| trial.passed().is_some_and(|passed| passed >= NEAR * arrived);
        let median = |value: fn(&Trial) -> f64| Summary::of(trials.iter().filter(is_near).map(value)).median;
        let (cost_ns, busy) = (median(|trial| trial.cost_ns), median(|trial| trial.busy));
        Self { arrived, cost_ns, busy, is_limited: had_no_more && busy < BUSY }
    }
}

/// A search.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Highest {
    /// What it found.
    pub(crate) best: Best,
    /// All trials, in their order; in the first as much as possible was sent, in the last the rate that was found.
    trials: Vec<Trial>,
}

impl Site {
    /// Searches by offered rate.
    pub(crate) fn highest_rate(&mut self, way: Way, flows: u32, time: Duration) -> Result<Highest> {
        let _awake = self.awake();
        self.warm_up(way, flows)?;
        let work = self.packet_work()?;
        let mut trials = Vec::new();
        let mut trial = |rate| -> Result<Trial> {
            let trial = self.trial(way, flows, rate, time, &work)?;
            trials.push(trial);
            Ok(trial)
        };
        let floods: Vec<Trial> = (0..FLOODS).map(|_| trial(f64::INFINITY)).collect::<Result<_>>()?;
        let mut search = Search::from(floods.iter().map(|flood| flood.arrived).fold(0.0, f64::max));
        let passed: Vec<f64> = floods.iter().filter_map(Trial::passed).collect();
        passed.iter().for_each(|arrived| search.see(*arrived));
        for number in 0..MOST_TRIALS {
            if number >= TRIALS && search.best().is_some() {
                break;
            }
            search.note(trial(search.rate())?.verdict());
        }
        let arrived = search.best().context("more than 1 % were lost at every rate that was tried")?;
        for _ in 0..MORE_TRIALS {
            trial(arrived)?;
        }
        // In a flood all that can be sent is sent.
        let had_no_more = search.is_limited() || passed.iter().any(|flood| *flood >= KEPT_UP * arrived);
        Ok(Highest { best: Best::of(arrived, &trials, had_no_more), trials })
    }

    /// Makes the flows known, two frames each in a row: to the balancer a flow of one is not worth keeping.
    fn warm_up(&mut self, way: Way, flows: u32) -> Result<()> {
        self.attach(way, BLIND)?;
        let frames = 2 * u64::from(flows);
        let plan = Plan { flows, row: 2, rate: WARM_UP, frames, time: Duration::from_secs(5) };
        let before = self.end(way).arrivals()?;
        let sent = self.sender.send(&plan, self.peer == Peer::Routing)?;
        self.end(way).settled(before.frames + sent.frames)?;
        Ok(())
    }

    fn trial(&mut self, way: Way, flows: u32, rate: f64, time: Duration, work: &Work) -> Result<Trial> {
        let (before, idle) = (self.end(way).arrivals()?, work.so_far()?);
        let plan = Plan { flows, row: 1, rate, frames: u64::MAX, time };
        let sent = self.sender.send(&plan, self.peer == Peer::Routing)?;
        let after = self.end(way).settled(before.frames + sent.frames)?;
        let arrived = (after.frames - before.frames) as f64;
        let (worked, _) = work.so_far()?.since(&idle);
        // A sender that was kept from sending at the end has not sent that fast.
        let seconds = sent.time.max(time).as_secs_f64();
        let until_last = Duration::from_nanos(after.last.saturating_sub(sent.begun)).as_secs_f64();
        Ok(Trial {
            asked: rate,
            offered: sent.frames as f64 / seconds,
            arrived: arrived / seconds.max(until_last),
            lost: 1.0 - arrived / sent.frames as f64,
            cost_ns: worked.as_secs_f64() * 1e9 / arrived.max(1.0),
            busy: worked.as_secs_f64() / seconds.max(until_last),
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
        let after = self.end(way).settled(before.frames + sent)?;
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
