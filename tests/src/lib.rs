//! The harnesses of the packet tests, of the end-to-end tests and of the benchmark.

pub mod flow_tables;
pub mod mapped;
pub mod netns;
pub mod packets;
pub mod plane_maps;
pub mod report;
pub mod servers;
