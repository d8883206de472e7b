//! The network layer against the real kernel: a balancer and a peer, each in a network namespace of its own, joined
//! by a veth pair. Needs root and iproute2.

mod namespace;
mod next_hop;
mod vip;
