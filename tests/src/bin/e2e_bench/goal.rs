//! What `lb` in the driver is held against.

use serde::Serialize;

use crate::measure::Figure;
use crate::peer::Peer;
use crate::report::{Measured, Summary};

/// A figure of `lb`, in those of a peer in the same round.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Goal {
    pub(crate) figure: Figure,
    pub(crate) peer: Peer,
    /// At least so much, of a cost at most.
    pub(crate) target: f64,
}

impl Goal {
    /// All of them.
    pub(crate) const ALL: [Self; 8] = [
        Self::new(Figure::OneFlow, Peer::Masquerade, 5.0),
        Self::new(Figure::OneFlow, Peer::Routing, 2.5),
        Self::new(Figure::ThousandFlows, Peer::Masquerade, 5.0),
        Self::new(Figure::ThousandFlows, Peer::Routing, 2.5),
        Self::new(Figure::ManyFlows, Peer::Masquerade, 5.0),
        Self::new(Figure::ConnectionCost, Peer::Masquerade, 0.9),
        Self::new(Figure::ConnectionCost, Peer::HaProxy, 0.5),
        Self::new(Figure::Bulk, Peer::Masquerade, 0.9),
    ];

    const fn new(figure: Figure, peer: Peer, target: f64) -> Self {
        Self { figure, peer, target }
    }

    /// What came of it.
    pub(crate) fn outcome(self, measured: &Measured) -> Outcome {
        let reached = measured.ratio(self.figure, Peer::LbNative, self.peer);
        let median = reached.median;
        let is_met = if self.figure.is_cost() { median <= self.target } else { median >= self.target };
        let is_limited = measured.is_limited(self.figure, Peer::LbNative);
        Outcome { goal: self, reached, is_met, is_limited }
    }
}

/// What came of a goal.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Outcome {
    #[serde(flatten)]
    goal: Goal,
    reached: Summary,
    is_met: bool,
    /// In most rounds no more could be sent.
    is_limited: bool,
}

impl Outcome {
    /// Figure, target, what was reached, and the verdict.
    pub(crate) fn words(&self) -> [String; 4] {
        let Self { goal: Goal { figure, peer, target }, reached, is_met, is_limited } = self;
        let bound = if figure.is_cost() { "at most" } else { "at least" };
        let verdict = if reached.median.is_nan() {
            "not measured".to_owned()
        } else if *is_met {
            "met".to_owned()
        } else {
            let by = (reached.median / target - 1.0).abs() * 100.0;
            let why = if *is_limited { "; no more could be sent" } else { "" };
            format!("missed by {by:.0} %{why}")
        };
        let Summary { median, least, most } = reached;
        [
            figure.name().to_owned(),
            format!("{bound} {target} × {}", peer.name()),
            format!("{median:.2} ({least:.2} - {most:.2})"),
            verdict,
        ]
    }
}
