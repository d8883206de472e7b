//! What is measured.

use serde::Serialize;
use serde::ser::Serializer;

use crate::packet::{Family, Packet, Payload, Transport};
use crate::service::Service;

/// As many flows as the random cases have: what `lookup` looks up is as many.
pub(crate) const MANY: u32 = 1 << 20;
/// Flows of a busy table.
pub(crate) const SOME: u32 = 1 << 16;
/// Flows of tables that more and more of the processor's caches have no room for.
const FEW: [u32; 2] = [1 << 10, 1 << 14];

/// What a program says is to be done with a packet; the numbers are the kernel's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// XDP_DROP.
    Drop = 1,
    /// XDP_PASS.
    Pass = 2,
    /// XDP_TX.
    Transmit = 3,
}

/// What happens to the packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    /// Nothing: the cost of replaying, which is subtracted from all others.
    Replay,
    /// Parsing, swapping the MAC addresses, XDP_TX: the least that a packet can cost.
    Floor,
    /// Parsing and one lookup in an LRU hash map with 16-byte keys.
    Lookup,
    /// From a client to its backend, in a flow that is known.
    ToBackend(Transport, Service),
    /// From a backend to its client.
    ToClient(Transport, Service),
    /// The first packet of a flow, in a table that holds a million others; no ring of half-open flows comes round.
    New(Transport),
    /// The same, but each SYN ends a half-open flow whose slot in the ring it takes.
    SynFlood,
    /// To an address that is no listener.
    NotOurs,
    /// The first packet of a flow that its source may not open.
    Denied,
    /// TCP with an impossible header.
    Malformed,
}

impl Subject {
    /// What it is called in the report.
    pub(crate) fn name(self) -> String {
        match self {
            Self::Replay => "replay alone (subtracted from all others)".to_owned(),
            Self::Floor => "parse, swap MACs, XDP_TX (the floor)".to_owned(),
            Self::Lookup => "floor and one LRU lookup (the unit)".to_owned(),
            Self::ToBackend(transport, service) => {
                format!("established {}, to the backend, snat {}", transport.name(), service.snat_word())
            }
            Self::ToClient(transport, service) => {
                format!("established {}, to the client, snat {}", transport.name(), service.snat_word())
            }
            Self::New(transport) => format!("new {} flow, SNAT port and both directions", transport.name()),
            Self::SynFlood => "flood of SYNs, each ends an older one".to_owned(),
            Self::NotOurs => "not ours, to the kernel".to_owned(),
            Self::Denied => "dropped: from a denied source".to_owned(),
            Self::Malformed => "dropped: malformed TCP header".to_owned(),
        }
    }

    /// Whether the packets belong to flows that are known.
    pub(crate) const fn is_established(self) -> bool {
        matches!(self, Self::ToBackend(..) | Self::ToClient(..))
    }

    /// Whether each packet opens a flow.
    pub(crate) const fn is_new(self) -> bool {
        matches!(self, Self::New(_) | Self::SynFlood)
    }

    /// The only right verdict.
    pub(crate) const fn verdict(self) -> Verdict {
        match self {
            Self::Replay | Self::NotOurs => Verdict::Pass,
            Self::Denied | Self::Malformed => Verdict::Drop,
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

    /// The listener the packets are for, or whose answers they are.
    pub(crate) const fn service(self) -> Service {
        match self {
            Self::ToBackend(_, service) | Self::ToClient(_, service) => service,
            Self::Denied => Service::Denying,
            _ => Service::Always,
        }
    }

    const fn payload(self) -> Payload {
        match self {
            Self::New(Transport::Tcp) | Self::SynFlood | Self::Denied => Payload::TcpSyn,
            Self::ToBackend(Transport::Udp, _)
            | Self::ToClient(Transport::Udp, _)
            | Self::New(Transport::Udp) => Payload::Udp,
            Self::Malformed => Payload::TcpMalformed,
            _ => Payload::TcpAck,
        }
    }
}

impl Serialize for Subject {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{self:?}"))
    }
}

/// One line of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Case {
    pub(crate) subject: Subject,
    pub(crate) family: Family,
    /// Flows that the packets are of, in an order no cache foresees.
    pub(crate) flows: u32,
    /// Packets in one run. New flows come once.
    pub(crate) packets: u32,
}

impl Case {
    /// Everything that is measured in a round, group by group, in this order: the fewer flows, the earlier, so that a cache of flows that
    /// gives up where there are too many does so at the end. `ring`: slots for half-open flows on a CPU.
    pub(crate) fn all(ring: u32) -> Vec<Self> {
        let mut all = Vec::new();
        for family in Family::ALL {
            all.extend(Subject::hot(family).into_iter().map(|subject| Self::repeated(subject, family, 1)));
        }
        for (flows, family) in FEW.into_iter().chain([SOME, MANY]).flat_map(|n| Family::ALL.map(|f| (n, f))) {
            let subjects = [Subject::Replay, Subject::ToBackend(Transport::Tcp, Service::Always)];
            all.extend(subjects.map(|subject| Self::repeated(subject, family, flows)));
            if (flows, family) == (MANY, Family::V4) {
                all.push(Self::repeated(Subject::Lookup, family, flows));
            }
        }
        for family in Family::ALL {
            let flows = FEW_ENOUGH.min(1 << (ring / 2).max(1).ilog2());
            all.push(Self::repeated(Subject::Replay, family, flows));
            let once = |subject| Self { subject, family, flows, packets: flows };
            all.extend([Subject::New(Transport::Tcp), Subject::New(Transport::Udp)].map(once));
            let flows = (2 * ring).next_power_of_two();
            all.push(Self::repeated(Subject::Replay, family, flows));
            all.push(Self { subject: Subject::SynFlood, family, flows, packets: ring });
        }
        all
    }

    /// What is measured again while another CPU does the same.
    pub(crate) fn beside() -> Vec<Self> {
        let subject = Subject::ToBackend(Transport::Tcp, Service::Always);
        // Measured many times, so with fewer packets.
        let of = |family| {
            [(1, MANY / 8), (SOME, MANY)].map(|(flows, packets)| Self { subject, family, flows, packets })
        };
        Family::ALL.into_iter().flat_map(of).collect()
    }

    /// A case whose flows come again and again. Of many established ones so many packets come that what a program keeps of the last moment
    /// grows old in between, about as often as it does in the long run: of all flows in each run, while it holds for some seconds.
    pub(crate) const fn repeated(subject: Subject, family: Family, flows: u32) -> Self {
        let packets = match flows {
            1 => MANY / 8,
            SOME.. if subject.is_established() => 8 * MANY,
            _ => MANY,
        };
        Self { subject, family, flows, packets }
    }

    /// Whether the packets meet memory that no cache holds.
    pub(crate) const fn is_cold(&self) -> bool {
        self.flows == MANY || self.subject.is_new()
    }

    /// The packet of flow 0. That of a backend's answer depends on the flow's SNAT port and is not known here.
    pub(crate) fn packet(&self) -> Packet {
        let Self { family, subject, .. } = *self;
        let service = subject.service();
        let (client, target) = match subject {
            Subject::New(_) => (family.newcomer(), family.vip(service)),
            Subject::SynFlood => (family.flooder(), family.vip(service)),
            Subject::Malformed => (family.stranger(), family.vip(service)),
            Subject::NotOurs => (family.client(service), family.elsewhere()),
            _ => (family.client(service), family.vip(service)),
        };
        Packet::new(client, target, subject.payload())
    }

    /// Whether both are measured together: as many flows, and of one family unless they are hot. Each group begins with
    /// replaying.
    pub(crate) fn is_of_group(&self, other: &Self) -> bool {
        self.flows == other.flows && (self.flows == 1 || self.family == other.family)
    }

    /// How often it is measured in a round.
    pub(crate) const fn passes(&self) -> Passes {
        match self.flows {
            1 => Passes { calm: 3, most: 8 },
            MANY => Passes { calm: 1, most: 1 },
            _ if self.subject.is_established() => Passes { calm: 1, most: 3 },
            _ => Passes { calm: 1, most: 2 },
        }
    }
}

/// How often a group of cases is measured in one round. The least time of each counts: what interrupts a run only ever adds to
/// it, be it the host or, in a virtual machine, somebody else's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Passes {
    /// So often without a disturbance that shows in what replaying costs,
    pub(crate) calm: u32,
    /// or so often.
    pub(crate) most: u32,
}

/// New flows at most, where no ring is to come round.
const FEW_ENOUGH: u32 = 1 << 15;

impl Subject {
    /// What is measured with one flow.
    fn hot(family: Family) -> Vec<Self> {
        let mut hot = vec![Self::Replay, Self::Floor];
        if family == Family::V4 {
            hot.push(Self::Lookup);
        }
        for service in [Service::Always, Service::Auto, Service::Never] {
            for transport in [Transport::Tcp, Transport::Udp] {
                hot.extend([Self::ToBackend(transport, service), Self::ToClient(transport, service)]);
            }
        }
        hot.extend([Self::NotOurs, Self::Denied, Self::Malformed]);
        hot
    }
}
