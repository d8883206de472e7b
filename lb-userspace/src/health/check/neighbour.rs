//! The kernel's neighbour table: is a host silent because nothing answers ARP or neighbour discovery for it?
//!
//! The kernel gives up on a neighbour after about three seconds, so that `connect` says EHOSTUNREACH later than a
//! check with the default timeout of 3000 ms waits. Such a check asks here what the kernel is waiting for.

use std::net::IpAddr;

use crate::network::{NeighbourState, neighbour_state};

/// Knows whether the next hop towards a target has no link-layer address.
pub trait Neighbours: Send + Sync {
    /// True if the kernel has asked for the link-layer address of the next hop to `target` and has no answer.
    fn unresolved(&self, target: IpAddr) -> bool;
}

/// The neighbour table of the network namespace of the calling thread.
#[derive(Clone, Copy, Debug, Default)]
pub struct KernelNeighbours;

impl Neighbours for KernelNeighbours {
    /// Not knowing is `false`: the check then stays `TIMED_OUT`, which is true too.
    fn unresolved(&self, target: IpAddr) -> bool {
        matches!(neighbour_state(target), Some(NeighbourState::Incomplete | NeighbourState::Failed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_this_host_needs_no_neighbour() {
        for address in ["127.0.0.1", "::1"] {
            assert!(!KernelNeighbours.unresolved(address.parse().expect("an address")));
        }
    }
}
