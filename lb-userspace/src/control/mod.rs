//! The controller's one loop and what it is made of.
//!
//! | file | what it does |
//! | --- | --- |
//! | `ids` | gives listeners, sets and backends their stable numbers |
//! | `desired` | configuration + health + ways → what the maps should hold (pure) |
//! | `apply` | writes the difference between that and what they hold |

pub mod apply;
pub mod desired;
pub mod ids;

pub use apply::Applier;
pub use desired::{Desired, Health, Surroundings, Way};
pub use ids::Ids;
