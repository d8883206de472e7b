//! Health: checks that know the application, the state machine that turns their results into a rotation, and the
//! four levels that turn them into a status with a reason. Nothing here knows of maps or of the data plane.
//!
//! Results flow one way:
//!
//! ```text
//! config ─▶ CheckSpec ─▶ schedule ─▶ check ─▶ CheckResult ─▶ backend (state, history) ─▶ level ─▶ diagnose
//! ```
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`result`] | the result of one check, in the words users script against |
//! | [`check`] | one check, one deadline; a file per protocol: `tcp`, `udp`, `http` (with `tls`), `dns` |
//! | [`schedule`] | when checks are made: absolute rhythm, jitter, identical checks made once |
//! | [`state`] | rise and fall on consecutive results: a pure state machine without clock or I/O |
//! | [`history`] | transitions, and the last 100 of them for each backend |
//! | [`backend`] | what is known of one backend: its state, its last result, its history |
//! | [`level`] | OK, WARNING, CRITICAL, UNKNOWN for sets, listeners and the instance: pure total functions |
//! | [`diagnose`] | from results and counters to findings, each with a line to try by hand |

pub mod backend;
pub mod check;
pub mod diagnose;
pub mod history;
pub mod level;
pub mod result;
pub mod schedule;
pub mod state;

pub use backend::BackendHealth;
pub use check::{CheckId, CheckSpec};
pub use history::Transition;
pub use level::Level;
pub use result::{CheckResult, CheckStatus, Outcome};
pub use schedule::Scheduler;
