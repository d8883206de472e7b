//! The rhythm of checks, in simulated time: the clock stands still until every task waits, then jumps.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lb_userspace::health::schedule::Prober;
use lb_userspace::health::{CheckId, CheckResult, CheckSpec, CheckStatus, Outcome, Scheduler};
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::time::{Instant, advance, sleep, timeout};

use crate::specs;

const INTERVAL: Duration = Duration::from_secs(5);

/// Checks that only take time: the timeout of their specification. Writes down when each began.
#[derive(Clone, Default)]
struct Simulated {
    started: Arc<Mutex<HashMap<u16, Vec<Instant>>>>,
    running: Arc<AtomicUsize>,
}

struct SimulatedCheck {
    spec: CheckSpec,
    book: Simulated,
}

/// Counts a check as running for as long as it lives.
struct Running(Arc<AtomicUsize>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Prober for Simulated {
    type Check = SimulatedCheck;

    fn prepare(&mut self, spec: CheckSpec) -> SimulatedCheck {
        SimulatedCheck { spec, book: self.clone() }
    }

    async fn run(check: Arc<SimulatedCheck>) -> CheckResult {
        let port = check.spec.target.port();
        check.book.started.lock().expect("not poisoned").entry(port).or_default().push(Instant::now());
        check.book.running.fetch_add(1, Ordering::SeqCst);
        let _running = Running(Arc::clone(&check.book.running));
        assert_ne!(port, PANICS, "as this test wants it");
        sleep(check.spec.timeout).await;
        CheckResult::made(Outcome::new(CheckStatus::Ok), None, check.spec.timeout)
    }
}

/// The port of a check that panics.
const PANICS: u16 = 666;

impl Simulated {
    fn started(&self, port: u16) -> Vec<Instant> {
        self.started.lock().expect("not poisoned").get(&port).cloned().unwrap_or_default()
    }
}

type Results = UnboundedReceiver<(CheckId, CheckResult)>;

fn start() -> (Scheduler, Simulated, Results) {
    let (sender, results) = mpsc::unbounded_channel();
    let book = Simulated::default();
    (Scheduler::start_with(book.clone(), sender), book, results)
}

fn spec(port: u16, takes: Duration) -> CheckSpec {
    let target = SocketAddr::from(([192, 0, 2, 1], port));
    CheckSpec { interval: INTERVAL, timeout: takes, ..specs::tcp(target, b"", b"") }
}

fn id(port: u16) -> CheckId {
    CheckId::new("web", port.to_string())
}

fn wanted(ports: impl IntoIterator<Item = u16>, takes: Duration) -> Vec<(CheckId, CheckSpec)> {
    ports.into_iter().map(|port| (id(port), spec(port, takes))).collect()
}

const QUICK: Duration = Duration::from_millis(1);

#[tokio::test(start_paused = true)]
async fn h3_n_checks_in_n_intervals_without_drift_even_if_each_takes_its_whole_timeout() {
    for takes in [QUICK, INTERVAL / 2, INTERVAL] {
        let (scheduler, book, _results) = start();
        scheduler.update(wanted([1], takes));
        sleep(INTERVAL * 1000 - INTERVAL / 2).await;
        let started = book.started(1);
        assert_eq!(started.len(), 1000, "each takes {takes:?}");
        for pair in started.windows(2) {
            let gap = (pair[1] - pair[0]).div_duration_f64(INTERVAL);
            assert!(
                (0.898..1.102).contains(&gap),
                "{gap} intervals from check to check, each takes {takes:?}"
            );
        }
        let drift = (started[999] - started[0]).div_duration_f64(INTERVAL) - 999.0;
        assert!(drift.abs() < 0.06, "{drift} intervals beside the beat");
    }
}

#[tokio::test(start_paused = true)]
async fn the_jitter_is_used() {
    let (scheduler, book, _results) = start();
    scheduler.update(wanted([1], QUICK));
    sleep(INTERVAL * 200).await;
    let gaps: Vec<f64> =
        book.started(1).windows(2).map(|pair| (pair[1] - pair[0]).div_duration_f64(INTERVAL)).collect();
    assert!(gaps.iter().any(|&gap| gap < 0.96) && gaps.iter().any(|&gap| gap > 1.04), "{gaps:?}");
}

#[tokio::test(start_paused = true)]
async fn whoever_joins_a_check_gets_its_last_result_at_once() {
    let (scheduler, book, mut results) = start();
    let joined = |names: &[&str]| -> Vec<_> {
        names.iter().map(|name| (CheckId::new(*name, "1"), spec(1, QUICK))).collect()
    };
    scheduler.update(joined(&["old"]));
    sleep(INTERVAL / 2).await;
    assert_eq!(results.try_recv().expect("the first result").0.set, "old");

    scheduler.update(joined(&["old", "new"]));
    sleep(QUICK).await;
    let (id, result) = results.try_recv().expect("the last result, for the new one");
    assert_eq!((id.set.as_str(), result.outcome.status), ("new", CheckStatus::Ok));
    assert!(results.try_recv().is_err(), "the old one has had it");
    assert_eq!(book.started(1).len(), 1, "nothing was checked for it");
}

#[tokio::test(start_paused = true)]
async fn first_checks_are_spread_over_one_interval() {
    let (scheduler, book, _results) = start();
    let begun = Instant::now();
    scheduler.update(wanted(1..=1000, QUICK));
    sleep(INTERVAL).await;
    let mut first: Vec<Duration> = (1..=1000).map(|port| book.started(port)[0] - begun).collect();
    first.sort();
    assert!(
        first[0] < Duration::from_millis(5) && first[999] > INTERVAL * 99 / 100,
        "{:?}",
        (first[0], first[999])
    );
    for pair in first.windows(2) {
        assert!(
            pair[1] - pair[0] <= Duration::from_millis(8),
            "5 ms from first check to first check: {pair:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_single_check_begins_at_once() {
    let (scheduler, book, mut results) = start();
    scheduler.update(wanted([1], QUICK));
    let begun = Instant::now();
    let (who, result) = results.recv().await.expect("a result");
    assert_eq!((who, result.outcome.status), (id(1), CheckStatus::Ok));
    assert!(book.started(1)[0] - begun < Duration::from_millis(5));
}

#[tokio::test(start_paused = true)]
async fn the_same_check_of_several_sets_is_made_once_and_everyone_hears() {
    let (scheduler, book, mut results) = start();
    let sets = ["web", "api", "admin"].map(|set| (CheckId::new(set, "a"), spec(1, QUICK)));
    scheduler.update(sets.to_vec());
    sleep(INTERVAL * 4 - INTERVAL / 2).await;
    assert_eq!(book.started(1).len(), 4);
    let mut heard: HashMap<String, usize> = HashMap::new();
    while let Ok((who, _)) = results.try_recv() {
        *heard.entry(who.set).or_default() += 1;
    }
    assert_eq!(heard, HashMap::from([("web".into(), 4), ("api".into(), 4), ("admin".into(), 4)]));

    // One of them goes: the others keep the check and its rhythm.
    scheduler.update(sets[1..].to_vec());
    sleep(INTERVAL * 2).await;
    assert_eq!(book.started(1).len(), 6);
    while let Ok((who, _)) = results.try_recv() {
        assert_ne!(who.set, "web");
    }
}

#[tokio::test(start_paused = true)]
async fn unchanged_checks_keep_their_rhythm_over_an_update() {
    let (scheduler, book, _results) = start();
    scheduler.update(wanted([1], QUICK));
    for port in 2..=46 {
        sleep(INTERVAL / 10).await;
        scheduler.update(wanted(1..=port, QUICK));
    }
    sleep(QUICK * 5).await;
    assert_eq!(book.started(1).len(), 5, "a check every interval, however often the others change");
    assert_eq!(book.started(46).len(), 1, "the new one begins at once");
}

#[tokio::test(start_paused = true)]
async fn a_removed_check_stops_at_once_even_one_under_way() {
    let (scheduler, book, mut results) = start();
    scheduler.update(wanted([1, 2], INTERVAL));
    sleep(INTERVAL * 3 / 4).await;
    assert_eq!(book.running.load(Ordering::SeqCst), 2);
    scheduler.update(wanted([2], INTERVAL));
    sleep(QUICK).await;
    assert_eq!(book.running.load(Ordering::SeqCst), 1);
    sleep(INTERVAL * 10).await;
    assert_eq!(book.started(1).len(), 1);
    while let Ok((who, _)) = results.try_recv() {
        assert_eq!(who, id(2));
    }
}

#[tokio::test(start_paused = true)]
async fn a_changed_check_begins_anew() {
    let (scheduler, book, _results) = start();
    scheduler.update(wanted([1], QUICK));
    sleep(INTERVAL / 2).await;
    scheduler.update(wanted([1], QUICK * 2));
    sleep(QUICK * 5).await;
    assert_eq!(book.started(1).len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_check_never_overlaps_itself() {
    let (scheduler, book, _results) = start();
    scheduler.update(wanted([1], INTERVAL));
    for _ in 0..2000 {
        sleep(INTERVAL / 20).await;
        assert!(book.running.load(Ordering::SeqCst) <= 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_process_that_was_held_up_makes_no_burst_of_checks() {
    let (scheduler, book, _results) = start();
    scheduler.update(wanted([1], QUICK));
    sleep(INTERVAL / 2).await;
    advance(INTERVAL * 100).await;
    sleep(QUICK * 5).await;
    assert_eq!(book.started(1).len(), 2);
    sleep(INTERVAL).await;
    assert_eq!(book.started(1).len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_check_that_panics_is_made_again_and_harms_no_other() {
    let (scheduler, book, mut results) = start();
    scheduler.update(wanted([PANICS, 1], QUICK));
    sleep(INTERVAL * 3 - INTERVAL / 2).await;
    assert_eq!(book.started(PANICS).len(), 3);
    assert_eq!(results.recv().await.expect("a result").0, id(1));
}

/// On a busy host a turn is long in coming: a scheduler that passed on a few results a turn fell behind for good.
#[tokio::test(start_paused = true)]
async fn results_that_come_together_are_passed_on_together() {
    const CHECKS: u16 = 5000;
    let (scheduler, _book, results) = start();
    // The first check of each begins the later, the shorter it is: they all end in the same moment.
    let ends_together =
        |index| (id(index), spec(index, INTERVAL - INTERVAL * u32::from(index) / u32::from(CHECKS)));
    scheduler.update((0..CHECKS).filter(|&index| index != PANICS).map(ends_together).collect());
    let turns = tokio::spawn(async move {
        sleep(INTERVAL - QUICK).await;
        assert_eq!(results.len(), 0, "nothing has ended yet");
        advance(QUICK * 10).await;
        for turn in 1..1000 {
            tokio::task::yield_now().await;
            // The last ones have not begun.
            if results.len() > usize::from(CHECKS) - 10 {
                return turn;
            }
        }
        panic!("only {} results", results.len());
    });
    let turns = turns.await.expect("the results come");
    assert!(turns < 10, "{turns} turns of the runtime");
}

#[tokio::test(start_paused = true)]
async fn dropping_the_scheduler_or_the_results_stops_everything() {
    let (scheduler, book, mut results) = start();
    scheduler.update(wanted(1..=10, INTERVAL));
    sleep(INTERVAL * 3).await;
    drop(scheduler);
    let rest = async { while results.recv().await.is_some() {} };
    timeout(INTERVAL, rest).await.expect("the results end");
    assert_eq!(book.running.load(Ordering::SeqCst), 0);

    let (scheduler, book, results) = start();
    scheduler.update(wanted([1], INTERVAL));
    sleep(INTERVAL / 2).await;
    drop(results);
    sleep(INTERVAL * 3).await;
    assert_eq!(book.started(1).len(), 1);
    assert_eq!(book.running.load(Ordering::SeqCst), 0);
    scheduler.update(wanted([2], INTERVAL));
}
