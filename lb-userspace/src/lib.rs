//! The controller of `lb`. Data flows one way: configuration → desired state → maps, and packets → counters →
//! status.

pub mod api;
pub mod cli;
pub mod config;
pub mod control;
pub mod dataplane;
pub mod doctor;
pub mod health;
pub mod instance;
pub mod logging;
pub mod metrics;
pub mod network;
pub mod notes;
pub mod privilege;
pub mod service_manager;
pub mod status;
