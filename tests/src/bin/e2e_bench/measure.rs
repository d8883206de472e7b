//! What is measured, and in which unit.

use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::peer::Peer;
use crate::rate::{Highest, Way};
use crate::site::Site;
use crate::tcp::Servers;

/// A figure of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub(crate) enum Figure {
    /// Datagrams to the backend, of one flow.
    OneFlow,
    /// The same, of a thousand flows.
    ThousandFlows,
    /// The same, of a hundred thousand.
    ManyFlows,
    /// Datagrams to the backend and back, of a thousand flows.
    Echo,
    /// The balancer's time for a datagram of one flow.
    OneFlowCost,
    /// The same, of a thousand flows.
    ThousandFlowsCost,
    /// The same, of a hundred thousand.
    ManyFlowsCost,
    /// Short TCP connections.
    Connections,
    /// The balancer's time for one of them.
    ConnectionCost,
    /// The same, with all that its CPU did.
    ConnectionCpu,
    /// Half of the requests take no longer.
    MedianLatency,
    /// 99 of a hundred requests take no longer.
    TailLatency,
    /// Bulk over TCP.
    Bulk,
    /// The balancer's time for a gigabit of it.
    BulkCost,
    /// Segments of it that were sent again.
    BulkAgain,
}

impl Figure {
    /// In the order of the report.
    pub(crate) const ALL: [Self; 15] = [
        Self::OneFlow,
        Self::ThousandFlows,
        Self::ManyFlows,
        Self::Echo,
        Self::OneFlowCost,
        Self::ThousandFlowsCost,
        Self::ManyFlowsCost,
        Self::Connections,
        Self::ConnectionCost,
        Self::ConnectionCpu,
        Self::MedianLatency,
        Self::TailLatency,
        Self::Bulk,
        Self::BulkCost,
        Self::BulkAgain,
    ];

    /// What it is called in the report.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::OneFlow => "UDP one way, 1 flow",
            Self::ThousandFlows => "UDP one way, 1,000 flows",
            Self::ManyFlows => "UDP one way, 100,000 flows",
            Self::Echo => "UDP there and back, 1,000 flows",
            Self::OneFlowCost => "balancer's CPU time for a datagram, 1 flow",
            Self::ThousandFlowsCost => "balancer's CPU time for a datagram, 1,000 flows",
            Self::ManyFlowsCost => "balancer's CPU time for a datagram, 100,000 flows",
            Self::Connections => "short TCP connections",
            Self::ConnectionCost => "balancer's CPU time for a short connection",
            Self::ConnectionCpu => "the same from /proc/stat",
            Self::MedianLatency => "request on an open connection, p50",
            Self::TailLatency => "request on an open connection, p99",
            Self::Bulk => "bulk TCP",
            Self::BulkCost => "balancer's CPU time for bulk TCP",
            Self::BulkAgain => "segments of bulk TCP sent again",
        }
    }

    /// What it is told in.
    pub(crate) const fn unit(self) -> &'static str {
        match self {
            Self::OneFlow | Self::ThousandFlows | Self::ManyFlows | Self::Echo => "Mpps",
            Self::OneFlowCost | Self::ThousandFlowsCost | Self::ManyFlowsCost => "ns",
            Self::Connections => "1,000/s",
            Self::ConnectionCost | Self::ConnectionCpu | Self::MedianLatency | Self::TailLatency => "µs",
            Self::Bulk => "Gbit/s",
            Self::BulkCost => "ms/Gbit",
            Self::BulkAgain => "%",
        }
    }

    /// Whether less is better.
    pub(crate) const fn is_cost(self) -> bool {
        matches!(
            self,
            Self::OneFlowCost
                | Self::ThousandFlowsCost
                | Self::ManyFlowsCost
                | Self::ConnectionCost
                | Self::ConnectionCpu
                | Self::MedianLatency
                | Self::TailLatency
                | Self::BulkCost
                | Self::BulkAgain
        )
    }
}

/// A run that gives one figure or more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Run {
    /// The highest rate of datagrams.
    Datagrams(Figure, Way, u32),
    /// Short connections.
    Connections,
    /// Requests on a connection.
    Requests,
    /// Bulk.
    Bulk,
}

/// How long each run takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    /// One rate of datagrams.
    pub(crate) trial: Duration,
    /// Everything else.
    pub(crate) run: Duration,
}

impl Run {
    /// In the order of a round.
    pub(crate) const ALL: [Self; 7] = [
        Self::Datagrams(Figure::OneFlow, Way::There, 1),
        Self::Datagrams(Figure::ThousandFlows, Way::There, 1_000),
        Self::Datagrams(Figure::ManyFlows, Way::There, 100_000),
        Self::Datagrams(Figure::Echo, Way::ThereAndBack, 1_000),
        Self::Connections,
        Self::Requests,
        Self::Bulk,
    ];

    /// Whether it makes sense of a peer.
    pub(crate) const fn is_for(self, peer: Peer) -> bool {
        peer.forwards_udp() || !matches!(self, Self::Datagrams(..))
    }

    /// What is going on, for who waits.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Datagrams(figure, ..) => figure.name(),
            Self::Connections => Figure::Connections.name(),
            Self::Requests => "requests on an open connection",
            Self::Bulk => Figure::Bulk.name(),
        }
    }

    /// Measures once.
    pub(crate) fn measure(self, site: &mut Site, servers: &Servers, times: &Times) -> Result<Sample> {
        let measured = match self {
            Self::Datagrams(figure, way, flows) => datagrams(site, figure, way, flows, times),
            Self::Connections => connections(site, times),
            Self::Requests => requests(site, times),
            Self::Bulk => bulk(site, servers, times),
        };
        measured.with_context(|| format!("{}, {}", site.peer.name(), self.name()))
    }
}

/// What a run gave.
#[derive(Debug, Default)]
pub(crate) struct Sample {
    pub(crate) figures: Vec<(Figure, f64)>,
    /// The figure that is what could be sent: the balancer may be able to do more.
    pub(crate) limited: Option<Figure>,
    /// How a rate was found.
    pub(crate) search: Option<Highest>,
}

fn datagrams(site: &mut Site, figure: Figure, way: Way, flows: u32, times: &Times) -> Result<Sample> {
    let highest = site.highest_rate(way, flows, times.trial)?;
    let best = highest.best;
    let cost = match figure {
        Figure::OneFlow => Some(Figure::OneFlowCost),
        Figure::ThousandFlows => Some(Figure::ThousandFlowsCost),
        Figure::ManyFlows => Some(Figure::ManyFlowsCost),
        _ => None,
    };
    let cost = cost.map(|figure| (figure, best.cost_ns));
    let figures = std::iter::once((figure, best.arrived / 1e6)).chain(cost).collect();
    Ok(Sample { figures, limited: best.is_limited.then_some(figure), search: Some(highest) })
}

fn connections(site: &mut Site, times: &Times) -> Result<Sample> {
    let pace = site.short_connections(times.run)?;
    Ok(Sample {
        figures: vec![
            (Figure::Connections, pace.rate / 1e3),
            (Figure::ConnectionCost, pace.cost / 1e3),
            (Figure::ConnectionCpu, pace.cost_of_cpu / 1e3),
        ],
        ..Sample::default()
    })
}

fn requests(site: &mut Site, times: &Times) -> Result<Sample> {
    let sorted = site.requests(times.run)?;
    let at = |part: f64| {
        let place = (sorted.len() as f64 * part) as usize;
        sorted.get(place).map(|time| time.as_secs_f64() * 1e6).context("no request was answered")
    };
    Ok(Sample {
        figures: vec![(Figure::MedianLatency, at(0.5)?), (Figure::TailLatency, at(0.99)?)],
        ..Sample::default()
    })
}

fn bulk(site: &mut Site, servers: &Servers, times: &Times) -> Result<Sample> {
    let (pace, again) = site.bulk(servers, times.run)?;
    let bits = pace.rate * 8.0;
    // Nanoseconds for a byte are as many eighths of a second for a gigabit.
    let figures = vec![
        (Figure::Bulk, bits / 1e9),
        (Figure::BulkCost, pace.cost / 8.0 * 1e3),
        (Figure::BulkAgain, again * 100.0),
    ];
    Ok(Sample { figures, ..Sample::default() })
}
