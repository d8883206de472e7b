//! What `lb` in the driver is held against.

use lb_tests::report::{Bound, Goal as Name, Summary};
use serde::Serialize;

use crate::measure::Figure;
use crate::peer::Peer;
use crate::report::{Measured, text_of};

/// A figure of `lb`, in those of a peer in the same round.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Goal {
    pub(crate) figure: Figure,
    pub(crate) peer: Peer,
    /// What it is called in the report of all parts, which knows the target.
    pub(crate) name: Name,
}

impl Goal {
    /// All of them.
    pub(crate) const ALL: [Self; 8] = [
        Self::new(Figure::OneFlow, Peer::Masquerade, Name::UdpOneFlowAgainstMasquerade),
        Self::new(Figure::OneFlow, Peer::Routing, Name::UdpOneFlowAgainstRouting),
        Self::new(Figure::ThousandFlows, Peer::Masquerade, Name::UdpThousandFlowsAgainstMasquerade),
        Self::new(Figure::ThousandFlows, Peer::Routing, Name::UdpThousandFlowsAgainstRouting),
        Self::new(Figure::ManyFlows, Peer::Masquerade, Name::UdpHundredThousandFlowsAgainstMasquerade),
        Self::new(Figure::ConnectionCost, Peer::Masquerade, Name::ShortTcpCpuAgainstMasquerade),
        Self::new(Figure::ConnectionCost, Peer::HaProxy, Name::ShortTcpCpuAgainstHaproxy),
        Self::new(Figure::Bulk, Peer::Masquerade, Name::BulkTcpAgainstNftables),
    ];

    const fn new(figure: Figure, peer: Peer, name: Name) -> Self {
        Self { figure, peer, name }
    }

    /// What came of it.
    pub(crate) fn outcome(self, measured: &Measured) -> Outcome {
        let reached = measured.ratio(self.figure, Peer::LbNative, self.peer);
        let is_limited = measured.is_limited(self.figure, Peer::LbNative);
        Outcome { goal: self, reached, is_limited }
    }
}

/// What came of a goal.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Outcome {
    #[serde(flatten)]
    pub(crate) goal: Goal,
    pub(crate) reached: Summary,
    /// In most rounds no more could be sent.
    is_limited: bool,
}

impl Outcome {
    /// Figure, target, what was reached, and the verdict.
    pub(crate) fn words(&self) -> [String; 4] {
        let Self { goal: Goal { figure, peer, name }, reached, is_limited } = self;
        let (bound, target) = match name.bound() {
            Bound::AtMost(target) => ("at most", target),
            Bound::AtLeast(target) => ("at least", target),
        };
        let verdict = match name.bound().missed_by(reached.median) {
            _ if reached.median.is_nan() => "not measured".to_owned(),
            None => "met".to_owned(),
            Some(by) => {
                let why = if *is_limited { "; no more could be sent" } else { "" };
                format!("missed by {:.0} %{why}", by * 100.0)
            }
        };
        [figure.name().to_owned(), format!("{bound} {target} × {}", peer.name()), text_of(reached), verdict]
    }
}
