//! When checks are made.
//!
//! One task holds every check in a queue ordered by time and starts each when it is due, so that 10,000 checks are
//! 10,000 entries and not as many sleeping tasks. A check that is being made is a task of its own.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinError, JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until};

use super::check::{Check, CheckId, CheckSpec, Shared};
use super::result::CheckResult;

/// Prepares and makes checks. [`Shared`] makes real ones.
pub trait Prober: Send + 'static {
    /// A check that is ready to be made over and over.
    type Check: Send + Sync + 'static;

    /// Makes a check ready.
    fn prepare(&mut self, spec: CheckSpec) -> Self::Check;

    /// Makes it once. Ends at the timeout of its specification at the latest.
    fn run(check: Arc<Self::Check>) -> impl Future<Output = CheckResult> + Send;

    /// Told after checks have been dropped.
    fn prune(&mut self) {}
}

impl Prober for Shared {
    type Check = Check;

    fn prepare(&mut self, spec: CheckSpec) -> Check {
        Check::new(spec, self)
    }

    async fn run(check: Arc<Check>) -> CheckResult {
        Check::run(&check).await
    }

    fn prune(&mut self) {
        Self::prune(self);
    }
}

/// Makes the wanted checks, each in its own rhythm, until it is dropped.
///
/// The rhythm is absolute: how long a check takes does not shift the next one. Checks that begin together are spread
/// evenly over one interval, the first at once. From check to check it is the interval ±10 %.
///
/// A check under way holds a socket, and one towards a dead host holds it until its timeout: the process must be
/// allowed as many files (`RLIMIT_NOFILE`) as there are checks. Those that get none end as `UNKNOWN`.
pub struct Scheduler {
    wanted: watch::Sender<Arc<[(CheckId, CheckSpec)]>>,
    task: JoinHandle<()>,
}

impl Scheduler {
    /// Starts without checks, on the current runtime. Results go to `results`; when its other end is closed, all
    /// checks stop.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn start(results: mpsc::UnboundedSender<(CheckId, CheckResult)>) -> Self {
        Self::start_with(Shared::default(), results)
    }

    /// The same with another way to make checks.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn start_with<P: Prober>(prober: P, results: mpsc::UnboundedSender<(CheckId, CheckResult)>) -> Self {
        let (wanted, receiver) = watch::channel(Arc::from([]));
        let timetable = Timetable {
            prober,
            results,
            checks: HashMap::new(),
            keys: HashMap::new(),
            next_key: 0,
            queue: BinaryHeap::new(),
            running: JoinSet::new(),
        };
        Self { wanted, task: tokio::spawn(timetable.keep(receiver)) }
    }

    /// From now on these checks are wanted and no others. Checks that were wanted before keep their rhythm, others
    /// stop at once. Equal specifications are checked once and every [`CheckId`] gets the result.
    pub fn update(&self, wanted: Vec<(CheckId, CheckSpec)>) {
        self.wanted.send_replace(wanted.into());
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Far below what the configuration allows. Anything shorter would not leave the runtime a moment for others.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(1);

/// Names a check in the queue; never used twice.
type Key = u64;

/// A wanted check.
struct Entry<C> {
    check: Arc<C>,
    /// Who gets the results.
    ids: Vec<CheckId>,
    rhythm: Rhythm,
    /// What it came to the last time.
    last: Option<CheckResult>,
    running: Option<AbortHandle>,
    /// It became due while it was still running.
    overdue: bool,
}

struct Timetable<P: Prober> {
    prober: P,
    results: mpsc::UnboundedSender<(CheckId, CheckResult)>,
    checks: HashMap<Key, Entry<P::Check>>,
    keys: HashMap<CheckSpec, Key>,
    next_key: Key,
    /// When each check is due next. Keys of checks that have been dropped stay until they are due.
    queue: BinaryHeap<Reverse<(Instant, Key)>>,
    running: JoinSet<(Key, CheckResult)>,
}

impl<P: Prober> Timetable<P> {
    async fn keep(mut self, mut wanted: watch::Receiver<Arc<[(CheckId, CheckSpec)]>>) {
        const NOTHING_TO_DO: Duration = Duration::from_secs(3600);
        loop {
            let due =
                self.queue.peek().map_or_else(|| Instant::now() + NOTHING_TO_DO, |&Reverse((due, _))| due);
            tokio::select! {
                changed = wanted.changed() => match changed {
                    Ok(()) => {
                        let wanted = Arc::clone(&wanted.borrow_and_update());
                        self.update(&wanted);
                    }
                    Err(_) => return,
                },
                Some(ended) = self.running.join_next() => {
                    self.finish(ended);
                    // All of them in one turn: when the host is busy, a turn is long in coming.
                    while let Some(ended) = self.running.try_join_next() {
                        self.finish(ended);
                    }
                }
                () = self.results.closed() => return,
                () = sleep_until(due) => self.start_due(Instant::now()),
            }
        }
    }

    fn update(&mut self, wanted: &[(CheckId, CheckSpec)]) {
        let mut ids: HashMap<&CheckSpec, Vec<CheckId>> = HashMap::with_capacity(wanted.len());
        for (id, spec) in wanted {
            ids.entry(spec).or_default().push(id.clone());
        }
        self.drop_all_but(&ids);
        let mut new = Vec::new();
        for (_, spec) in wanted {
            // Taken out at its first mention, so that the rest of the loop sees each specification once.
            let Some(ids) = ids.remove(spec) else { continue };
            match self.keys.get(spec).and_then(|key| self.checks.get_mut(key)) {
                Some(entry) => join(&self.results, entry, ids),
                None => new.push((spec, ids)),
            }
        }
        let now = Instant::now();
        let count = new.len();
        for (index, (spec, ids)) in new.into_iter().enumerate() {
            let first = now + spec.interval.mul_f64(index as f64 / count as f64);
            self.add(spec, ids, first);
        }
    }

    fn drop_all_but<V>(&mut self, wanted: &HashMap<&CheckSpec, V>) {
        let before = self.keys.len();
        self.keys.retain(|spec, key| {
            let keep = wanted.contains_key(spec);
            if !keep && let Some(running) = self.checks.remove(key).and_then(|entry| entry.running) {
                running.abort();
            }
            keep
        });
        if self.keys.len() < before {
            self.prober.prune();
        }
    }

    fn add(&mut self, spec: &CheckSpec, ids: Vec<CheckId>, first: Instant) {
        let key = self.next_key;
        self.next_key += 1;
        let check = Arc::new(self.prober.prepare(spec.clone()));
        let rhythm = Rhythm { beat: first, interval: spec.interval.max(SHORTEST_INTERVAL) };
        self.checks.insert(key, Entry { check, ids, rhythm, last: None, running: None, overdue: false });
        self.keys.insert(spec.clone(), key);
        self.queue.push(Reverse((first, key)));
    }

    fn start_due(&mut self, now: Instant) {
        while let Some(&Reverse((due, key))) = self.queue.peek()
            && due <= now
        {
            self.queue.pop();
            let Some(entry) = self.checks.get_mut(&key) else { continue };
            self.queue.push(Reverse((entry.rhythm.next(now), key)));
            // One that panicked has ended without a word.
            if entry.running.as_ref().is_some_and(|running| !running.is_finished()) {
                entry.overdue = true;
            } else {
                start::<P>(&mut self.running, key, entry);
            }
        }
    }

    fn finish(&mut self, ended: Result<(Key, CheckResult), JoinError>) {
        let Ok((key, result)) = ended else { return };
        let Some(entry) = self.checks.get_mut(&key) else { return };
        entry.running = None;
        entry.last = Some(result.clone());
        for id in &entry.ids {
            tracing::debug!(check = %id, outcome = %result.outcome, latency_ms = result.latency_ms, "checked");
            // Nobody listens: `keep` is about to notice.
            let _ = self.results.send((id.clone(), result.clone()));
        }
        if entry.overdue {
            entry.overdue = false;
            start::<P>(&mut self.running, key, entry);
        }
    }
}

/// Gives the results of a check to these from now on. Those who are new need not wait for the next: they get the last.
fn join<C>(results: &mpsc::UnboundedSender<(CheckId, CheckResult)>, entry: &mut Entry<C>, ids: Vec<CheckId>) {
    if let Some(last) = &entry.last {
        for id in ids.iter().filter(|id| !entry.ids.contains(id)) {
            // Nobody listens: `keep` is about to notice.
            let _ = results.send((id.clone(), last.clone()));
        }
    }
    entry.ids = ids;
}

fn start<P: Prober>(running: &mut JoinSet<(Key, CheckResult)>, key: Key, entry: &mut Entry<P::Check>) {
    let check = Arc::clone(&entry.check);
    entry.running = Some(running.spawn(async move { (key, P::run(check).await) }));
}

/// When a check is due: a beat every interval, and each check a little beside its beat.
#[derive(Clone, Copy, Debug)]
struct Rhythm {
    beat: Instant,
    interval: Duration,
}

impl Rhythm {
    /// How far a check may be from its beat, as a share of the interval: two checks are then within ±10 % of it.
    const JITTER: f64 = 0.05;

    /// When the check after the one of `now` is due. Beats that were missed because the whole process was held up
    /// are left out, and so is what held it up: the beat does not shift.
    fn next(&mut self, now: Instant) -> Instant {
        let missed = now.saturating_duration_since(self.beat).div_duration_f64(self.interval);
        self.beat += self.interval * (missed as u32).saturating_add(1);
        let jitter = rand::random_range(0.0..2.0 * Self::JITTER);
        self.beat - self.interval.mul_f64(Self::JITTER) + self.interval.mul_f64(jitter)
    }
}
