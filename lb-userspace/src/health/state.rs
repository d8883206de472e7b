//! Rise and fall: when a backend leaves the rotation and when it returns. No clock, no I/O.

use super::level::Level;
use crate::config::HealthCheck;

/// How many results it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thresholds {
    /// Consecutive good results to return to the rotation.
    pub rise: u32,
    /// Consecutive bad results to leave it.
    pub fall: u32,
    /// Results that the level looks back on, at most 128.
    pub retries: u32,
}

impl From<&HealthCheck> for Thresholds {
    fn from(check: &HealthCheck) -> Self {
        Self { rise: check.rise, fall: check.fall, retries: check.retries }
    }
}

/// What the results of one backend have come to.
///
/// The first result decides at once; from then on it takes `fall` bad results in a row to leave and `rise` good
/// ones in a row to return.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    thresholds: Thresholds,
    /// The last results, the newest in bit 0: 1 is good.
    recent: u128,
    /// How many bits of `recent` are results.
    known: u32,
    /// How many results up to the last one were like the last one.
    streak: u32,
    healthy: bool,
    /// Whether `healthy` stands on a result, if only of a predecessor.
    is_decided: bool,
}

impl State {
    /// No result yet: level UNKNOWN, not in the rotation.
    pub const fn new(thresholds: Thresholds) -> Self {
        Self::provisional(thresholds, false)
    }

    /// No result yet, but what a predecessor has left in the data plane. Whom it held healthy leaves by `fall` bad
    /// results in a row, as without the restart; of all others it left no verdict, and the first result decides.
    pub const fn inherit(thresholds: Thresholds, healthy: bool) -> Self {
        Self { is_decided: healthy, ..Self::provisional(thresholds, healthy) }
    }

    /// No result yet, but the verdict of another check, which stands until the first result.
    pub const fn provisional(thresholds: Thresholds, healthy: bool) -> Self {
        Self { thresholds, recent: 0, known: 0, streak: 0, healthy, is_decided: false }
    }

    /// The thresholds it goes by.
    pub const fn thresholds(&self) -> Thresholds {
        self.thresholds
    }

    /// Goes on with other thresholds: what is known stays known.
    pub const fn set_thresholds(&mut self, thresholds: Thresholds) {
        self.thresholds = thresholds;
    }

    /// Takes the next result and says how many in a row were like it.
    pub fn observe(&mut self, good: bool) -> u32 {
        let again = self.known > 0 && (self.recent & 1 == 1) == good;
        self.streak = if again { self.streak.saturating_add(1) } else { 1 };
        self.recent = self.recent << 1 | u128::from(good);
        self.known = (self.known + 1).min(u128::BITS);
        let needed = if good { self.thresholds.rise } else { self.thresholds.fall };
        if !self.is_decided || self.streak >= needed {
            self.healthy = good;
        }
        self.is_decided = true;
        self.streak
    }

    /// Whether new flows may be given to it, as far as health is concerned.
    pub const fn healthy(&self) -> bool {
        self.healthy
    }

    /// From the last `retries` results: all good OK, some WARNING, none CRITICAL; no result UNKNOWN.
    pub fn level(&self) -> Level {
        match self.recent_good() {
            (_, 0) => Level::Unknown,
            (good, seen) if good == seen => Level::Ok,
            (0, _) => Level::Critical,
            _ => Level::Warning,
        }
    }

    /// How many of the last results were good, and how many there are, at most `retries`.
    pub fn recent_good(&self) -> (u32, u32) {
        let seen = self.known.min(self.thresholds.retries);
        let mask = u128::MAX.checked_shr(u128::BITS - seen).unwrap_or(0);
        ((self.recent & mask).count_ones(), seen)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    fn thresholds(rise: u32, fall: u32) -> Thresholds {
        Thresholds { rise, fall, retries: rise.max(fall) }
    }

    /// Feeds a string of 1 (good) and 0 (bad); gives back 1 (healthy) and 0 after each.
    fn run(rise: u32, fall: u32, results: &str) -> String {
        let mut state = State::new(thresholds(rise, fall));
        let step = |result| {
            state.observe(result == '1');
            if state.healthy() { '1' } else { '0' }
        };
        results.chars().map(step).collect()
    }

    /// GitHub's GLB director published these vectors with its dampener.
    #[test]
    fn rise_and_fall_follow_the_published_vectors() {
        assert_eq!(run(1, 1, "101010"), "101010");
        assert_eq!(run(1, 3, "001010000010"), "001111100011");
        assert_eq!(run(3, 1, "110101111101"), "110000011100");
        assert_eq!(run(3, 3, "00101000001011111"), "00000000000000111");
        assert_eq!(run(3, 3, "11010111110100000"), "11111111111111000");
    }

    #[test]
    fn h1_retries_failures_take_it_out_and_not_one_less() {
        assert_eq!(run(3, 3, "11001000"), "11111110");
    }

    #[test]
    fn h2_retries_successes_bring_it_back_and_not_one_less() {
        assert_eq!(run(3, 3, "00110111"), "00000001");
    }

    #[test]
    fn l3_before_the_first_result_it_is_unknown_and_the_first_result_decides() {
        let mut state = State::new(thresholds(3, 3));
        assert_eq!((state.level(), state.healthy()), (Level::Unknown, false));
        state.observe(true);
        assert_eq!((state.level(), state.healthy()), (Level::Ok, true));

        let mut state = State::new(thresholds(3, 3));
        state.observe(false);
        assert_eq!((state.level(), state.healthy()), (Level::Critical, false));
    }

    #[test]
    fn a_level_looks_back_on_the_last_retries_results() {
        let mut state = State::new(thresholds(3, 3));
        let mut after = |good| {
            state.observe(good);
            state.level()
        };
        assert_eq!(after(true), Level::Ok);
        assert_eq!(after(false), Level::Warning);
        assert_eq!(after(false), Level::Warning);
        assert_eq!(after(false), Level::Critical);
        assert_eq!(after(true), Level::Warning);
        assert_eq!(after(true), Level::Warning);
        assert_eq!(after(true), Level::Ok);
    }

    #[test]
    fn the_verdict_of_another_check_stands_until_the_first_result() {
        for verdict in [true, false] {
            let mut state = State::provisional(thresholds(3, 3), verdict);
            assert_eq!((state.level(), state.healthy()), (Level::Unknown, verdict));
            state.observe(!verdict);
            assert_eq!(state.healthy(), !verdict);
        }
    }

    #[test]
    fn after_a_restart_it_takes_as_many_failures_as_before() {
        let mut state = State::inherit(thresholds(3, 3), true);
        assert_eq!((state.level(), state.healthy()), (Level::Unknown, true));
        for healthy in [true, true, false] {
            state.observe(false);
            assert_eq!(state.healthy(), healthy);
        }
        let mut state = State::inherit(thresholds(3, 3), false);
        state.observe(true);
        assert!(state.healthy(), "nobody had found it bad: it may not have been checked yet");
    }

    #[test]
    fn h15_other_thresholds_keep_what_is_known() {
        let mut state = State::new(thresholds(3, 3));
        state.observe(true);
        state.observe(false);
        state.set_thresholds(thresholds(2, 2));
        assert!(state.healthy());
        assert_eq!(state.observe(false), 2);
        assert!(!state.healthy());
    }

    /// The contract's sentences, as slowly as they read.
    struct Naive {
        thresholds: Thresholds,
        results: VecDeque<bool>,
        healthy: bool,
    }

    impl Naive {
        fn observe(&mut self, good: bool) {
            self.results.push_front(good);
            let like = |wanted: bool| self.results.iter().take_while(|&&good| good == wanted).count() as u32;
            if self.results.len() == 1 {
                self.healthy = good;
            } else if like(false) >= self.thresholds.fall {
                self.healthy = false;
            } else if like(true) >= self.thresholds.rise {
                self.healthy = true;
            }
        }

        fn level(&self) -> Level {
            let last: Vec<bool> =
                self.results.iter().copied().take(self.thresholds.retries as usize).collect();
            match last.as_slice() {
                [] => Level::Unknown,
                last if last.iter().all(|&good| good) => Level::Ok,
                last if last.iter().any(|&good| good) => Level::Warning,
                _ => Level::Critical,
            }
        }
    }

    proptest! {
        #[test]
        fn any_sequence_agrees_with_the_naive_model(
            rise in 1u32..=100, fall in 1u32..=100, retries in 1u32..=100, short in any::<bool>(),
            results in prop::collection::vec(prop::bool::weighted(0.6), 0..400),
        ) {
            let limit = |value: u32| if short { value % 6 + 1 } else { value };
            let thresholds = Thresholds { rise: limit(rise), fall: limit(fall), retries: limit(retries) };
            let mut state = State::new(thresholds);
            let mut naive = Naive { thresholds, results: VecDeque::new(), healthy: false };
            for good in results {
                let consecutive = state.observe(good);
                naive.observe(good);
                prop_assert_eq!(state.healthy(), naive.healthy);
                prop_assert_eq!(state.level(), naive.level());
                let alike = naive.results.iter().take_while(|&&result| result == good).count();
                prop_assert_eq!(consecutive as usize, alike);
            }
        }
    }
}
