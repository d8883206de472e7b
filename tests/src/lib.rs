//! The harnesses of the packet tests and of the end-to-end tests.

pub mod netns;
pub mod packets;
pub mod servers;
