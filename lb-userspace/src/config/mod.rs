//! The configuration file: what may stand in it, what it means, and everything that is wrong with it at once.

pub mod schema;

pub use schema::*;
