//! What is known of the health of one backend: its state, its last result, its history.

use jiff::Timestamp;

use super::check::CheckId;
use super::history::{History, Transition};
use super::level::Level;
use super::result::{CheckResult, CheckStatus};
use super::state::{State, Thresholds};

/// The health of one backend of one set.
#[derive(Clone, Debug)]
pub struct BackendHealth {
    id: CheckId,
    state: State,
    result: CheckResult,
    history: History,
}

impl BackendHealth {
    /// A backend that has not been checked yet: UNKNOWN, not in the rotation.
    pub fn new(id: CheckId, thresholds: Thresholds, now: Timestamp) -> Self {
        Self::inherit(id, thresholds, false, now)
    }

    /// A backend that this controller has not checked yet, with the verdict that a predecessor left in the data plane.
    pub fn inherit(id: CheckId, thresholds: Thresholds, healthy: bool, now: Timestamp) -> Self {
        Self {
            id,
            state: State::inherit(thresholds, healthy),
            result: CheckResult::not_made(CheckStatus::Unknown, now),
            history: History::default(),
        }
    }

    /// Whose health it is.
    pub const fn id(&self) -> &CheckId {
        &self.id
    }

    /// Whether new flows may be given to it, as far as health is concerned.
    pub const fn healthy(&self) -> bool {
        self.state.healthy()
    }

    /// Its level. UNKNOWN while it is offline.
    pub fn level(&self) -> Level {
        self.state.level()
    }

    /// The last result, with `consecutive`; `OFFLINE` or `UNKNOWN` where there is none.
    pub const fn result(&self) -> &CheckResult {
        &self.result
    }

    /// Its last transitions.
    pub const fn history(&self) -> &History {
        &self.history
    }

    /// The level in words.
    pub fn reason(&self) -> String {
        match self.state.recent_good() {
            (_, 0) => match self.result.outcome.status {
                CheckStatus::Offline => "offline: not checked".into(),
                _ => "no result yet".into(),
            },
            (good, seen) if good == seen => match seen {
                1 => "the last result is good".into(),
                _ => format!("the last {seen} results are good"),
            },
            (good, seen) => format!("{good} of the last {seen} results good; last: {}", self.result.outcome),
        }
    }

    /// Takes a result. A transition, if it made one, is in the history and is given back for the log.
    ///
    /// A result that says nothing about the backend (`UNKNOWN`: the check could not be made) is shown, but changes
    /// neither level nor rotation. A result that was under way when the backend went offline is not for it any more.
    pub fn observe(&mut self, result: CheckResult) -> Option<Transition> {
        if self.offline() {
            return None;
        }
        let before = (self.level(), self.healthy());
        let consecutive = result.outcome.verdict().map(|good| self.state.observe(good));
        self.result = CheckResult { consecutive, ..result };
        self.note(before, self.result.timestamp)
    }

    /// Takes it offline, or back: then it is UNKNOWN until its first result, which decides at once.
    pub fn set_offline(&mut self, offline: bool, now: Timestamp) -> Option<Transition> {
        if offline == self.offline() {
            return None;
        }
        let before = (self.level(), self.healthy());
        self.state = State::new(self.state.thresholds());
        let status = if offline { CheckStatus::Offline } else { CheckStatus::Unknown };
        self.result = CheckResult::not_made(status, now);
        self.note(before, now)
    }

    /// Goes on with other thresholds; what is known stays known.
    pub const fn set_thresholds(&mut self, thresholds: Thresholds) {
        self.state.set_thresholds(thresholds);
    }

    /// The check itself has changed: what is known was the answer to another question. The verdict stands until
    /// the first result of the new check, the history stays.
    pub fn recheck(&mut self, thresholds: Thresholds, now: Timestamp) {
        if !self.offline() {
            self.state = State::provisional(thresholds, self.healthy());
            self.result = CheckResult::not_made(CheckStatus::Unknown, now);
        }
    }

    fn offline(&self) -> bool {
        self.result.outcome.status == CheckStatus::Offline
    }

    fn note(&mut self, before: (Level, bool), timestamp: Timestamp) -> Option<Transition> {
        let after = (self.level(), self.healthy());
        if before == after {
            return None;
        }
        let transition = Transition {
            timestamp,
            id: self.id.clone(),
            from: before.0,
            to: after.0,
            healthy: after.1,
            reason: self.reason(),
            result: self.result.clone(),
        };
        self.history.push(transition.clone());
        Some(transition)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::result::Outcome;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn backend() -> BackendHealth {
        BackendHealth::new(CheckId::new("web", "a"), Thresholds { rise: 2, fall: 2, retries: 2 }, NOW)
    }

    fn result(status: CheckStatus) -> CheckResult {
        CheckResult { outcome: Outcome::new(status), ..CheckResult::not_made(status, NOW) }
    }

    #[test]
    fn transitions_are_changes_of_level_or_rotation_and_nothing_else() {
        let mut backend = backend();
        let mut step = |status| {
            let transition = backend.observe(result(status))?;
            Some((transition.from, transition.to, transition.healthy))
        };
        use CheckStatus::{Ok as Good, TimedOut as Bad};
        assert_eq!(step(Good), Some((Level::Unknown, Level::Ok, true)));
        assert_eq!(step(Good), None);
        assert_eq!(step(Bad), Some((Level::Ok, Level::Warning, true)));
        assert_eq!(step(Bad), Some((Level::Warning, Level::Critical, false)));
        assert_eq!(step(Bad), None);
        assert_eq!(step(Good), Some((Level::Critical, Level::Warning, false)));
        assert_eq!(step(Good), Some((Level::Warning, Level::Ok, true)));
        assert_eq!(backend.history().iter().len(), 5);
        assert_eq!(backend.result().consecutive, Some(2));
    }

    #[test]
    fn l8_the_history_shows_an_outage_after_recovery() {
        let mut backend = backend();
        for status in
            [CheckStatus::Ok, CheckStatus::IoError, CheckStatus::IoError, CheckStatus::Ok, CheckStatus::Ok]
        {
            backend.observe(result(status));
        }
        assert_eq!(backend.level(), Level::Ok);
        let out =
            backend.history().iter().find(|transition| transition.to == Level::Critical).expect("recorded");
        assert_eq!(out.result.outcome.status, CheckStatus::IoError);
        assert_eq!(out.reason, "0 of the last 2 results good; last: IO_ERROR");
    }

    #[test]
    fn l7_offline_takes_it_out_and_online_starts_anew() {
        let mut backend = backend();
        backend.observe(result(CheckStatus::Ok));
        let out = backend.set_offline(true, NOW).expect("a transition");
        assert_eq!(
            (out.to, out.healthy, out.result.outcome.status),
            (Level::Unknown, false, CheckStatus::Offline)
        );
        assert_eq!(backend.observe(result(CheckStatus::Ok)), None, "a check that was under way");
        assert_eq!(backend.result().outcome.status, CheckStatus::Offline);
        assert_eq!(backend.reason(), "offline: not checked");
        assert_eq!(backend.set_offline(true, NOW), None);
        assert_eq!(backend.set_offline(false, NOW), None, "UNKNOWN before and after");
        assert!(backend.observe(result(CheckStatus::Ok)).expect("a transition").healthy);
    }

    #[test]
    fn a_check_that_could_not_be_made_is_no_verdict() {
        let mut backend = backend();
        backend.observe(result(CheckStatus::Ok));
        for _ in 0..5 {
            assert_eq!(backend.observe(result(CheckStatus::Unknown)), None);
        }
        assert!(backend.healthy());
        assert_eq!(backend.result().outcome.status, CheckStatus::Unknown);
    }

    #[test]
    fn h15_another_check_keeps_the_verdict_until_its_first_result() {
        let mut backend = backend();
        backend.observe(result(CheckStatus::Ok));
        backend.recheck(Thresholds { rise: 3, fall: 3, retries: 3 }, NOW);
        assert_eq!((backend.level(), backend.healthy()), (Level::Unknown, true));
        let out = backend.observe(result(CheckStatus::InvalidStatusCode)).expect("a transition");
        assert_eq!((out.to, out.healthy), (Level::Critical, false));
    }
}
