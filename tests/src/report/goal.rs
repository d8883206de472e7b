//! What the benchmark is to show.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What is to be reached at least or at most.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    /// Less is better.
    AtMost(f64),
    /// More is better.
    AtLeast(f64),
}

impl Bound {
    /// By which part of itself it is missed; `None` if it is kept.
    pub fn missed_by(self, reached: f64) -> Option<f64> {
        match self {
            Self::AtMost(bound) => (reached > bound).then(|| reached / bound - 1.0),
            Self::AtLeast(bound) => (reached < bound).then(|| 1.0 - reached / bound),
        }
    }
}

/// Values reached, by goal. A goal without one has not been measured.
pub type Reached = BTreeMap<Goal, f64>;

/// Declares [`Goal`] and what is told of each.
macro_rules! goals {
    ($($goal:ident: $part:literal, $bound:ident($value:literal), $unit:literal, $what:literal;)+) => {
        /// A target. Its JSON name is in snake case.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum Goal {
            $(#[doc = $what] $goal,)+
        }

        impl Goal {
            /// All, in the order they are told in.
            pub const ALL: &'static [Self] = &[$(Self::$goal),+];

            /// The part of the benchmark that measures it.
            pub const fn part(self) -> &'static str {
                match self { $(Self::$goal => $part,)+ }
            }

            /// What is measured.
            pub const fn what(self) -> &'static str {
                match self { $(Self::$goal => $what,)+ }
            }

            /// The target.
            pub const fn bound(self) -> Bound {
                match self { $(Self::$goal => Bound::$bound($value),)+ }
            }

            /// What the number counts.
            pub const fn unit(self) -> &'static str {
                match self { $(Self::$goal => $unit,)+ }
            }
        }
    };
}

goals! {
    EstablishedV4Hot: "packet", AtMost(1.2), "lookups, hot", "established IPv4 flow, hot, above the floor";
    EstablishedV6Hot: "packet", AtMost(1.6), "lookups, hot", "established IPv6 flow, hot, above the floor";
    EstablishedV4Of64k: "packet", AtMost(200.0), "ns", "established IPv4 flow of 65,536 in random order, above the floor";
    EstablishedV4Of1M: "packet", AtMost(1.0), "lookups, cold", "established IPv4 flow of 1,048,576 in random order, above the floor";
    EstablishedV6Of1M: "packet", AtMost(1.1), "lookups, cold", "established IPv6 flow of 1,048,576 in random order, above the floor";
    NewFlow: "packet", AtMost(2.5), "lookups, cold", "new flow, SNAT port and both directions recorded, above the floor";
    NotOurs: "packet", AtMost(40.0), "ns", "not ours, to the kernel, above the floor";
    TwoCpus: "packet", AtMost(1.15), "times the cost of one", "two CPUs inside at once, on the same flows";
    UdpOneFlowAgainstMasquerade: "e2e", AtLeast(5.0), "times nftables with masquerade", "UDP on one core, one flow";
    UdpOneFlowAgainstRouting: "e2e", AtLeast(2.5), "times kernel routing", "UDP on one core, one flow";
    UdpThousandFlowsAgainstMasquerade: "e2e", AtLeast(5.0), "times nftables with masquerade", "UDP on one core, 1,000 flows";
    UdpThousandFlowsAgainstRouting: "e2e", AtLeast(2.5), "times kernel routing", "UDP on one core, 1,000 flows";
    UdpHundredThousandFlowsAgainstMasquerade: "e2e", AtLeast(5.0), "times nftables with masquerade", "UDP on one core, 100,000 flows";
    ShortTcpCpuAgainstMasquerade: "e2e", AtMost(0.9), "times nftables with masquerade", "CPU in the balancer for a short TCP connection";
    ShortTcpCpuAgainstHaproxy: "e2e", AtMost(0.5), "times HAProxy", "CPU in the balancer for a short TCP connection";
    BulkTcpAgainstNftables: "e2e", AtLeast(0.9), "times nftables", "bulk TCP";
    GuestInstructions: "guest", AtMost(2000.0), "instructions", "a packet from veth to veth, native, generator and sink included";
    FlowMemory: "control", AtMost(192.0), "bytes", "kernel memory for a flow, both directions";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_is_kept_or_missed_by_a_part_of_itself() {
        assert_eq!(Bound::AtMost(2.0).missed_by(2.0), None);
        assert_eq!(Bound::AtMost(2.0).missed_by(3.0), Some(0.5));
        assert_eq!(Bound::AtLeast(4.0).missed_by(5.0), None);
        assert_eq!(Bound::AtLeast(4.0).missed_by(3.0), Some(0.25));
    }

    #[test]
    fn goals_are_keys_of_json() {
        let reached = Reached::from([(Goal::UdpOneFlowAgainstRouting, 2.0), (Goal::EstablishedV4Of64k, 1.0)]);
        let json = serde_json::to_string(&reached).unwrap();
        assert_eq!(json, r#"{"established_v4_of64k":1.0,"udp_one_flow_against_routing":2.0}"#);
        assert_eq!(serde_json::from_str::<Reached>(&json).unwrap(), reached);
    }
}
