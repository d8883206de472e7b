//! Transitions: the changes of a backend that somebody may ask about tomorrow.

use std::collections::VecDeque;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::check::CheckId;
use super::level::Level;
use super::result::{CheckResult, serialize_milliseconds};

/// A backend has changed its level, or entered or left the rotation. Serialised it is one line of the log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Transition {
    /// When. RFC 3339 with milliseconds, UTC.
    #[serde(serialize_with = "serialize_milliseconds")]
    pub timestamp: Timestamp,
    /// Whose.
    #[serde(flatten)]
    pub id: CheckId,
    /// The level before.
    pub from: Level,
    /// The level after.
    pub to: Level,
    /// Whether new flows may be given to it now, as far as health is concerned.
    pub healthy: bool,
    /// Why, in one line.
    pub reason: String,
    /// The result that brought it about.
    pub result: CheckResult,
}

/// The last transitions of one backend.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct History {
    transitions: VecDeque<Transition>,
}

impl History {
    /// Transitions that are kept; the oldest one makes room.
    pub const CAPACITY: usize = 100;

    /// Adds the newest.
    pub fn push(&mut self, transition: Transition) {
        if self.transitions.len() == Self::CAPACITY {
            self.transitions.pop_front();
        }
        self.transitions.push_back(transition);
    }

    /// From the oldest to the newest.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Transition> + ExactSizeIterator {
        self.transitions.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::result::CheckStatus;

    fn transition(second: i64) -> Transition {
        let timestamp = Timestamp::from_second(second).expect("a time");
        Transition {
            timestamp,
            id: CheckId::new("web", "10.0.1.10:8080"),
            from: Level::Ok,
            to: Level::Warning,
            healthy: true,
            reason: "2 of the last 3 results good".into(),
            result: CheckResult::not_made(CheckStatus::TimedOut, timestamp),
        }
    }

    #[test]
    fn the_last_hundred_are_kept_in_order() {
        let mut history = History::default();
        (0..250).for_each(|second| history.push(transition(second)));
        let seconds: Vec<i64> = history.iter().map(|transition| transition.timestamp.as_second()).collect();
        assert_eq!(seconds, (150..250).collect::<Vec<_>>());
    }

    #[test]
    fn a_transition_is_one_line_of_json() {
        let line = serde_json::to_string(&transition(0)).expect("serialises");
        assert!(!line.contains('\n'));
        let value: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        let expected = serde_json::json!({
            "timestamp": "1970-01-01T00:00:00.000Z", "backend_set": "web", "backend": "10.0.1.10:8080",
            "from": "OK", "to": "WARNING", "healthy": true, "reason": "2 of the last 3 results good",
            "result": {"healthCheckStatus": "TIMED_OUT", "timestamp": "1970-01-01T00:00:00.000Z"}
        });
        assert_eq!(value, expected);
        assert_eq!(serde_json::from_str::<Transition>(&line).expect("reads back"), transition(0));
    }
}
