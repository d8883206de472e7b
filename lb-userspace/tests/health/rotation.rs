//! From servers over the scheduler to states and levels: what a controller does with this library.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use lb_userspace::config::MinHealthy;
use lb_userspace::health::level::{self, Member};
use lb_userspace::health::state::Thresholds;
use lb_userspace::health::{
    BackendHealth, CheckId, CheckResult, CheckSpec, CheckStatus, Level, Scheduler, Transition,
};
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::time::timeout;

use crate::servers::{self, PATIENCE, Server, answer};
use crate::specs::http;

const THRESHOLDS: Thresholds = Thresholds { rise: 3, fall: 3, retries: 3 };

/// A server whose status code can be turned.
struct Turnable {
    server: Server,
    status: Arc<AtomicU16>,
}

impl Turnable {
    async fn new(status: u16) -> Self {
        let status = Arc::new(AtomicU16::new(status));
        let current = Arc::clone(&status);
        let server = servers::tcp(move |stream| {
            let status = current.load(Ordering::SeqCst);
            answer(stream, format!("HTTP/1.1 {status} x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"))
        })
        .await;
        Self { server, status }
    }

    fn turn(&self, status: u16) {
        self.status.store(status, Ordering::SeqCst);
    }
}

/// A set as a controller keeps it.
struct Set {
    scheduler: Scheduler,
    results: UnboundedReceiver<(CheckId, CheckResult)>,
    backends: HashMap<CheckId, BackendHealth>,
}

fn id(index: usize) -> CheckId {
    CheckId::new("web", index.to_string())
}

impl Set {
    fn new(servers: &[Turnable]) -> Self {
        let (sender, results) = mpsc::unbounded_channel();
        let scheduler = Scheduler::start(sender);
        let spec = |server: &Turnable| CheckSpec {
            interval: Duration::from_millis(100),
            ..http(server.server.address)
        };
        scheduler
            .update(servers.iter().enumerate().map(|(index, server)| (id(index), spec(server))).collect());
        let backend = |index| (id(index), BackendHealth::new(id(index), THRESHOLDS, Timestamp::now()));
        Self { scheduler, results, backends: (0..servers.len()).map(backend).collect() }
    }

    /// Takes the next result; gives back whose it was, and the transition if there was one.
    async fn step(&mut self) -> (CheckId, Option<Transition>) {
        let next = timeout(PATIENCE, self.results.recv()).await;
        let (id, result) = next.expect("checks go on").expect("the scheduler lives");
        let transition = self.backends.get_mut(&id).expect("a wanted check").observe(result);
        (id, transition)
    }

    /// Takes results until `backend` has been given `count` of them; gives back its transitions.
    async fn results_of(&mut self, backend: &CheckId, mut count: usize) -> Vec<Transition> {
        let mut transitions = Vec::new();
        while count > 0 {
            let (id, transition) = self.step().await;
            if id == *backend {
                count -= 1;
                transitions.extend(transition);
            }
        }
        transitions
    }

    fn level(&self, min_healthy: MinHealthy) -> Level {
        let members: Vec<Member<'_>> = self
            .backends
            .iter()
            .map(|(id, backend)| Member { name: &id.backend, level: backend.level(), counted: true })
            .collect();
        level::set(&members, true, min_healthy).verdict.level
    }

    fn healthy(&self) -> Vec<bool> {
        (0..self.backends.len()).map(|index| self.backends[&id(index)].healthy()).collect()
    }
}

#[tokio::test]
async fn h1_h2_a_failing_server_leaves_and_returns_by_itself() {
    let servers = [Turnable::new(200).await];
    let mut set = Set::new(&servers);
    let path = |transitions: Vec<Transition>| -> Vec<(Level, bool)> {
        transitions.into_iter().map(|transition| (transition.to, transition.healthy)).collect()
    };
    assert_eq!(path(set.results_of(&id(0), 3).await), [(Level::Ok, true)]);
    servers[0].turn(503);
    // A check may have been on its way when the server was turned.
    let mut out = set.results_of(&id(0), 3).await;
    out.extend(set.results_of(&id(0), 1).await);
    assert_eq!(path(out.clone()), [(Level::Warning, true), (Level::Critical, false)]);
    assert_eq!(out[1].result.consecutive, Some(3), "it left with its third failure");
    servers[0].turn(200);
    let mut back = set.results_of(&id(0), 3).await;
    back.extend(set.results_of(&id(0), 1).await);
    assert_eq!(path(back.clone()), [(Level::Warning, false), (Level::Ok, true)]);
    assert_eq!(back[1].result.consecutive, Some(3), "it returned with its third success");
    assert_eq!(set.backends[&id(0)].history().iter().len(), 5);
}

#[tokio::test]
async fn a_mirrored_pair_follows_its_primary_and_stays_ok_with_min_healthy() {
    let servers = [Turnable::new(200).await, Turnable::new(503).await];
    let mut set = Set::new(&servers);
    set.results_of(&id(1), 3).await;
    set.results_of(&id(0), 3).await;
    assert_eq!(set.healthy(), [true, false]);
    assert_eq!(set.level(MinHealthy::Count(1)), Level::Ok);
    assert_eq!(set.level(MinHealthy::Half), Level::Warning);
    servers[0].turn(503);
    servers[1].turn(200);
    // Fall and rise together, and the checks that were on their way.
    set.results_of(&id(0), 4).await;
    set.results_of(&id(1), 4).await;
    assert_eq!(set.healthy(), [false, true]);
    assert_eq!(set.level(MinHealthy::Count(1)), Level::Ok);
}

#[tokio::test]
async fn t16_t17_only_the_ill_are_bad_and_they_recover_by_themselves() {
    let servers = [Turnable::new(200).await, Turnable::new(200).await, Turnable::new(500).await];
    let mut set = Set::new(&servers);
    for index in 0..3 {
        set.results_of(&id(index), 3).await;
    }
    assert_eq!((set.healthy(), set.level(MinHealthy::Half)), (vec![true, true, false], Level::Warning));
    servers[2].turn(200);
    set.results_of(&id(2), 4).await;
    assert_eq!((set.healthy(), set.level(MinHealthy::Half)), (vec![true; 3], Level::Ok));
}

#[tokio::test]
async fn h15_a_changed_check_takes_over_without_a_gap_in_the_rotation() {
    let servers = [Turnable::new(200).await];
    let mut set = Set::new(&servers);
    set.results_of(&id(0), 1).await;
    assert!(set.backends[&id(0)].healthy());

    let tcp = crate::specs::tcp(servers[0].server.address, b"", b"");
    set.scheduler.update(vec![(id(0), CheckSpec { interval: Duration::from_millis(100), ..tcp })]);
    set.backends.get_mut(&id(0)).expect("there").recheck(THRESHOLDS, Timestamp::now());
    assert_eq!(set.backends[&id(0)].result().outcome.status, CheckStatus::Unknown);
    assert_eq!((set.healthy(), set.level(MinHealthy::Half)), (vec![true], Level::Unknown));
    set.results_of(&id(0), 2).await;
    assert_eq!((set.healthy(), set.level(MinHealthy::Half)), (vec![true], Level::Ok));
}
