//! The controller's one loop and what it is made of.
//!
//! | file | what it does |
//! | --- | --- |
//! | `ids` | gives listeners, sets and backends their stable numbers |
//! | `desired` | configuration + health + ways → what the maps should hold (pure) |
//! | `rotation` | who may be given new flows, and who of a pair is the active one (pure) |
//! | `sources` | the lists of sources → rules of which the longest decides |
//! | `apply` | writes the difference between that and what they hold |
//! | `book` | the health of each backend |
//! | `overrides` | life-cycle changes made at run time |
//! | `flows` | the thread that walks over the flows |
//! | `host_ports` | the ports that the host itself uses |
//! | `snat` | how full the ranges of SNAT ports are |
//! | `events` | the last events that the program has sampled |
//! | `report` | all of it → the status document |
//! | `features` | what the programs have to be made for (pure) |
//! | `findings` | all of it → the diagnosis |
//! | `drains` | when the drains under way end |
//! | `limits` | what the collector of idle flows must know (pure) |
//! | `controller` | the loop itself, with its reloads, its answers and what it puts on the host |

pub mod apply;
pub mod book;
pub mod controller;
pub mod desired;
pub mod drains;
pub mod events;
pub mod features;
pub mod findings;
#[cfg(test)]
mod fixture;
pub mod flows;
pub mod host_ports;
pub mod ids;
pub mod limits;
pub mod overrides;
pub mod report;
pub mod rotation;
mod snat;
pub mod sources;

pub use apply::Applier;
pub use desired::{Desired, Health, Surroundings, Way};
pub use ids::Ids;
