//! The data plane as the controller holds it: the loaded program, its pinned maps, its attachments.
//!
//! | file | what it does |
//! | --- | --- |
//! | `load` | loads the object, creates or adopts the pinned maps |
//! | `inspect` | what an earlier controller has left: to be adopted, refused or cleared away |
//! | `sizes` | how large the maps are that the configuration or the host decides on |
//! | `journeys` | the programs that the entry program goes on to |
//! | `attach` | attaches to interfaces, replaces the program in place, detaches |
//! | `interfaces` | tells the program the MACs and MTUs of the interfaces it is attached to |
//! | `maps` | typed access to the maps the controller writes, and to the counters |
//! | `maglev` | builds lookup tables |
//! | `cached` | makes the program forget its copies of flows |
//! | `lanes` | what the program has counted for copied flows |
//! | `flow_tables` | the maps with the flows: finds, ends, gives back what a flow had claimed |
//! | `collect` | ends idle flows, counts live ones |
//! | `connections` | lists live flows from the pinned maps, with or without a controller |
//! | `explain` | asks the loaded program what would become of a packet |
//! | `records` | takes what the program hands over by ring buffers |
//! | `fragments` | holds fragments that came before the first of their datagram |
//! | `clock` | the kernel's ticks |
//! | `sys` | the `bpf(2)` calls that aya lacks, and arrays that are mapped: the only `unsafe` here |

pub mod attach;
pub mod cached;
pub mod clock;
pub mod collect;
pub mod connections;
pub mod explain;
mod flow_tables;
pub mod fragments;
mod inspect;
mod interfaces;
mod journeys;
mod lanes;
pub mod load;
pub mod maglev;
pub mod maps;
pub mod records;
mod sizes;
mod sys;

pub use attach::{AttachedMode, Attachment, detach};
pub use collect::{Census, Collector, Limits};
pub use load::{Dataplane, EventSource, LoadOptions, Origin};
pub use maps::{Maps, Tally};
