//! What is measured.

use serde::Serialize;

use crate::packet::{Family, Packet, Payload};

/// As many flows as the random cases have: what `lookup` looks up is as many.
pub(crate) const MANY: u32 = 1 << 20;

/// What a program says is to be done with a packet; the numbers are the kernel's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// XDP_PASS.
    Pass = 2,
    /// XDP_TX.
    Transmit = 3,
}

/// What happens to the packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) enum Subject {
    /// Nothing: the cost of replaying, which is subtracted from all others.
    Replay,
    /// Parsing, swapping the MAC addresses, XDP_TX: the least that a packet can cost.
    Floor,
    /// Parsing and one lookup in an LRU hash map with 16-byte keys.
    Lookup,
    /// From a client to its backend, in a flow that is known.
    TcpToBackend,
    /// The same, UDP.
    UdpToBackend,
    /// From a backend to its client.
    TcpToClient,
    /// The first packet of a connection.
    NewTcp,
    /// To an address that is no listener.
    NotOurs,
}

impl Subject {
    /// What it is called in the report.
    pub(crate) fn name(self) -> String {
        let name = match self {
            Self::Replay => "replay alone (subtracted from all others)",
            Self::Floor => "parse, swap MACs, XDP_TX (the floor)",
            Self::Lookup => "floor and one LRU lookup (the unit)",
            Self::TcpToBackend => "established TCP, to the backend",
            Self::UdpToBackend => "established UDP, to the backend",
            Self::TcpToClient => "established TCP, to the client",
            Self::NewTcp => "new TCP flow, SNAT port and both halves",
            Self::NotOurs => "not ours, to the kernel",
        };
        name.to_owned()
    }

    /// Whether the packets belong to flows that are known.
    pub(crate) const fn is_established(self) -> bool {
        matches!(self, Self::TcpToBackend | Self::UdpToBackend | Self::TcpToClient)
    }

    /// Whether each packet opens a flow.
    pub(crate) const fn is_new(self) -> bool {
        matches!(self, Self::NewTcp)
    }

    /// The only right verdict.
    pub(crate) const fn verdict(self) -> Verdict {
        match self {
            Self::Replay | Self::NotOurs => Verdict::Pass,
            _ => Verdict::Transmit,
        }
    }

    /// The program of the benchmark's object that is measured; `None`: the balancer.
    pub(crate) const fn program(self) -> Option<&'static str> {
        match self {
            Self::Replay => Some("empty"),
            Self::Floor => Some("floor"),
            Self::Lookup => Some("lookup"),
            _ => None,
        }
    }
}

/// One line of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Case {
    pub(crate) subject: Subject,
    pub(crate) family: Family,
    /// Flows that the packets are of, in an order no cache foresees.
    pub(crate) flows: u32,
}

impl Case {
    /// Everything that is measured in a round, in this order.
    pub(crate) fn all() -> Vec<Self> {
        use Subject::*;
        let of = |family, flows: &'static [u32], subjects: &'static [Subject]| {
            flows.iter().flat_map(move |flows| subjects.iter().map(move |subject| (family, *flows, *subject)))
        };
        let in_family = |family| {
            of(family, &[1], &[Replay, Floor, TcpToBackend, UdpToBackend, TcpToClient, NotOurs])
                .chain(of(family, &[FEW], &[Replay, NewTcp]))
                .chain(of(family, &[SOME, MANY], &[Replay, TcpToBackend]))
                .chain(of(family, &[MANY], &[NewTcp]))
        };
        let units = of(Family::V4, &[1, MANY], &[Lookup]);
        let all = Family::ALL.into_iter().flat_map(in_family).chain(units);
        all.map(|(family, flows, subject)| Self { subject, family, flows }).collect()
    }

    /// What is measured again while another CPU does the same.
    pub(crate) fn beside() -> Vec<Self> {
        let of = |family| [1, SOME].map(|flows| Self { subject: Subject::TcpToBackend, family, flows });
        Family::ALL.into_iter().flat_map(of).collect()
    }

    /// Whether the packets meet memory that no cache holds.
    pub(crate) const fn is_cold(&self) -> bool {
        self.flows == MANY
    }

    /// The packet of flow 0. That of a backend's answer depends on the flow's SNAT port and is not known here.
    pub(crate) fn packet(&self) -> Packet {
        let Self { family, subject, .. } = *self;
        let payload = match subject {
            Subject::NewTcp => Payload::TcpSyn,
            Subject::UdpToBackend => Payload::Udp,
            _ => Payload::TcpAck,
        };
        let destination = if subject == Subject::NotOurs { family.elsewhere() } else { family.vip() };
        Packet::new(family.client(), destination, payload)
    }

    /// Packets in one run: at least a million, so that the clock's resolution is no matter. New flows come once.
    pub(crate) const fn packets(&self) -> u32 {
        match self.subject {
            Subject::NewTcp => self.flows,
            _ => MANY,
        }
    }

    /// Runs in one round, of which the least time counts: what interrupts a run only ever adds to it. Where
    /// packets meet cold memory, a run is long enough to be interrupted as much as any other.
    pub(crate) const fn attempts(&self) -> u32 {
        if self.flows == 1 { 3 } else { 1 }
    }
}

/// Flows of a table that stays in the cache.
const FEW: u32 = 1 << 12;
/// Flows of a busy table.
pub(crate) const SOME: u32 = 1 << 16;
