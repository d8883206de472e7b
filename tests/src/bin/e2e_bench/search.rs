//! A staircase to the highest rate of which little enough is lost. Something from outside that keeps a CPU from working
//! only ever takes frames away, so a failure may be chance but a success is not: after a success the search goes up,
//! whatever failed before, and what two trials have shown stands.

/// The part between two neighbouring rates.
const STEP: f64 = 1.02;
/// Steps that are taken at once, at most.
const LONGEST: i32 = 8;
/// Trials that have to succeed, for a rate to be passed and for a result to stand.
const ENOUGH: usize = 2;
/// Trials at a rate that have to lose too much for it to be given up.
const TOO_MANY: usize = 4;
/// The same of trials for which too little was sent.
const PATIENCE: usize = 4;

/// What a trial says of a rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Verdict {
    /// Little enough was lost; so many frames arrived each second.
    Passed(f64),
    /// The same, but less was sent than asked for: it shows what it shows, but not that more would be lost.
    NotSent(f64),
    /// Too much was lost.
    Lost,
}

/// A search under way.
#[derive(Debug)]
pub(crate) struct Search {
    /// The rate of step 0.
    unit: f64,
    /// The step being tried.
    step: i32,
    /// How many steps the last move was long, below zero if it went down.
    stride: i32,
    /// What trials at this step have shown.
    here: Vec<Verdict>,
    /// The most frames each second that arrived when little enough was lost, in falling order.
    highest: [f64; ENOUGH],
    /// Of the last rate above these that was given up, whether it was only for want of frames.
    is_limited: bool,
}

impl Search {
    /// Starts at a rate.
    pub(crate) fn from(rate: f64) -> Self {
        let (here, highest) = (Vec::new(), [0.0; ENOUGH]);
        Self { unit: rate, step: 0, stride: LONGEST / 2, here, highest, is_limited: false }
    }

    /// What to try next, in frames each second.
    pub(crate) fn rate(&self) -> f64 {
        self.unit * STEP.powi(self.step)
    }

    /// The frames each second that arrived in each of [`ENOUGH`] trials that lost little enough.
    pub(crate) fn best(&self) -> Option<f64> {
        self.highest.last().copied().filter(|lowest| *lowest > 0.0)
    }

    /// Whether no more could be sent than [`Self::best`].
    pub(crate) const fn is_limited(&self) -> bool {
        self.is_limited
    }

    /// Takes what a trial at [`Self::rate`] has shown.
    pub(crate) fn note(&mut self, verdict: Verdict) {
        if let Verdict::Passed(arrived) | Verdict::NotSent(arrived) = verdict {
            self.see(arrived);
        }
        self.here.push(verdict);
        let count = |is_one: fn(&Verdict) -> bool| self.here.iter().filter(|verdict| is_one(verdict)).count();
        let lost = count(|verdict| *verdict == Verdict::Lost);
        if count(|verdict| matches!(verdict, Verdict::Passed(_))) >= ENOUGH {
            self.go(true);
        } else if lost >= TOO_MANY || count(|verdict| matches!(verdict, Verdict::NotSent(_))) >= PATIENCE {
            if self.best().is_none_or(|best| best < self.rate()) {
                self.is_limited = lost == 0;
            }
            self.go(false);
        }
    }

    /// Takes what arrived of a trial that lost little enough, whatever it was asked for.
    pub(crate) fn see(&mut self, arrived: f64) {
        // The least of them makes room.
        let mut arrived = arrived;
        for place in &mut self.highest {
            if *place < arrived {
                std::mem::swap(place, &mut arrived);
            }
        }
    }

    /// Further and further the same way, shorter and shorter after turning round.
    fn go(&mut self, up: bool) {
        let way = if up { 1 } else { -1 };
        let last = self.stride.abs();
        let length = if self.stride.signum() == way { 2 * last } else { last / 2 };
        self.stride = way * length.clamp(1, LONGEST);
        self.step += self.stride;
        self.here.clear();
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt as _, SeedableRng as _};

    use super::*;
    use crate::rate::TRIALS;

    /// Seconds of a trial.
    const TIME: f64 = 0.01;
    /// Frames that wait in queues.
    const QUEUED: f64 = 512.0;

    /// A sender, and a peer that forwards so many frames each second unless something keeps it from working.
    struct Simulated {
        random: StdRng,
        capacity: f64,
        sendable: f64,
        /// The part of trials that is spoilt.
        spoilt: f64,
    }

    impl Simulated {
        fn new(seed: u64, capacity: f64, spoilt: f64) -> Self {
            Self { random: StdRng::seed_from_u64(seed), capacity, sendable: f64::INFINITY, spoilt }
        }

        fn trial(&mut self, rate: f64) -> Verdict {
            if self.sendable < rate {
                return Verdict::NotSent(self.sendable);
            }
            let is_spoilt = self.random.random_bool(self.spoilt);
            let pause = if is_spoilt { self.random.random_range(0.0005..0.05) } else { 0.0 };
            let sent = rate * TIME;
            let forwarded = sent.min(self.capacity * (TIME - pause).max(0.0) + QUEUED);
            let arrived = forwarded / TIME.max(forwarded / self.capacity + pause);
            if forwarded < 0.99 * sent || arrived < 0.97 * rate {
                return Verdict::Lost;
            }
            Verdict::Passed(arrived)
        }

        fn search(&mut self, from: f64) -> Search {
            let mut search = Search::from(from);
            for _ in 0..TRIALS {
                search.note(self.trial(search.rate()));
            }
            search
        }
    }

    /// What was found, in parts of the capacity: the least and the most of many searches.
    fn found(spoilt: f64) -> (f64, f64) {
        let mut found = Vec::new();
        for seed in 0..200 {
            for capacity in [3e5, 1e6, 3e6] {
                for from in [0.5, 0.8, 1.0, 1.3] {
                    let search = Simulated::new(seed, capacity, spoilt).search(from * capacity);
                    let best = search.best().unwrap_or_else(|| panic!("nothing stood, from {from}, {seed}"));
                    found.push(best / capacity);
                }
            }
        }
        found.into_iter().fold((f64::INFINITY, 0.0), |(least, most), now| (least.min(now), most.max(now)))
    }

    #[test]
    fn a_calm_peer_is_found_to_a_step() {
        let (least, most) = found(0.0);
        assert!(least > 0.97 && most < 1.02, "{least} - {most}");
    }

    #[test]
    fn a_third_of_the_trials_may_be_spoilt() {
        let (least, most) = found(1.0 / 3.0);
        assert!(least > 0.93 && most < 1.02, "{least} - {most}");
    }

    #[test]
    fn goes_up_again_after_everything_has_failed_for_a_while() {
        let mut simulated = Simulated::new(1, 1e6, 0.0);
        let mut search = Search::from(0.9e6);
        for _ in 0..16 {
            search.note(Verdict::Lost);
        }
        assert!(search.rate() < 0.8e6, "{search:?}");
        for _ in 0..TRIALS {
            search.note(simulated.trial(search.rate()));
        }
        assert!(search.best().is_some_and(|best| best > 0.97e6), "{search:?}");
    }

    #[test]
    fn says_whether_the_sender_was_the_limit() {
        let mut fast = Simulated { sendable: 2e6, ..Simulated::new(1, 3e6, 0.0) };
        let search = fast.search(1.5e6);
        assert!(search.is_limited() && search.best().is_some_and(|best| best > 1.9e6), "{search:?}");
        assert!(!Simulated::new(1, 1e6, 0.0).search(1e6).is_limited());
    }
}
