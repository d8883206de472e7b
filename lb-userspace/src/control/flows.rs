//! The thread that walks over the flows, so that the controller's loop never waits for a million of them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::sync::{oneshot, watch};
use tracing::{debug, error};

use crate::dataplane::{Census, Collector, Limits};
use crate::network::nudge::Nudge;

/// Time from the end of one walk to the begin of the next.
const PAUSE: Duration = Duration::from_secs(1);

/// The controller's end of the thread.
#[derive(Debug)]
pub struct Flows {
    orders: Sender<Order>,
    census: watch::Receiver<Census>,
}

enum Order {
    Limits(Limits),
    Follow(Box<Collector>),
    Forget(Vec<u32>),
    WalkNow(oneshot::Sender<()>),
}

impl Flows {
    /// Starts the thread. It ends when this value is dropped.
    ///
    /// # Errors
    ///
    /// If there can be no more threads.
    pub fn start(collector: Collector) -> Result<Self> {
        let (orders, received) = channel();
        let (publish, census) = watch::channel(Census::default());
        let walk = move || walk_until_dropped(collector, &received, &publish);
        thread::Builder::new()
            .name("flows".to_owned())
            .spawn(walk)
            .context("cannot start the collector's thread")?;
        Ok(Self { orders, census })
    }

    /// Changes how long flows may idle, from the next walk on.
    pub fn set_limits(&self, limits: Limits) {
        // A thread that has ended was reported when it did.
        let _ = self.orders.send(Order::Limits(limits));
    }

    /// Walks by another collector of the same flows from now on.
    pub fn follow(&self, collector: Collector) {
        let _ = self.orders.send(Order::Follow(Box::new(collector)));
    }

    /// Lets `unanswered` of these backend ids begin at zero: others will have them.
    pub fn forget(&self, backends: Vec<u32>) {
        // Each order begins the pause between two walks anew.
        if !backends.is_empty() {
            let _ = self.orders.send(Order::Forget(backends));
        }
    }

    /// Walks now. What is returned waits for the end, for a status that is not a second old; at most for the time
    /// given, so that a status never waits for millions of flows.
    pub fn walk_now(&self, at_most: Duration) -> impl Future<Output = ()> + Send + use<> {
        let (done, ended) = oneshot::channel();
        let is_asked = self.orders.send(Order::WalkNow(done)).is_ok();
        async move {
            if is_asked {
                let _ = tokio::time::timeout(at_most, ended).await;
            }
        }
    }

    /// What the last walk found; `unanswered` counts since the start.
    pub fn census(&self) -> Census {
        self.census.borrow().clone()
    }
}

fn walk_until_dropped(mut collector: Collector, orders: &Receiver<Order>, publish: &watch::Sender<Census>) {
    let mut limits = Limits::default();
    let mut unanswered = BTreeMap::new();
    let mut resets = Resets::default();
    loop {
        let mut waiting = Vec::new();
        match orders.recv_timeout(PAUSE) {
            Ok(Order::Limits(changed)) => {
                limits = changed;
                continue;
            }
            Ok(Order::Follow(other)) => {
                collector = *other;
                // A walk may have made the copies of the programs before stale, while those of the new ones were made.
                collector
                    .forget_copies()
                    .unwrap_or_else(|error| error!("copies of flows may be stale: {error:#}"));
                continue;
            }
            Ok(Order::Forget(backends)) => {
                unanswered.retain(|backend, _| !backends.contains(backend));
                publish
                    .send_modify(|census| census.unanswered.retain(|backend, _| !backends.contains(backend)));
                continue;
            }
            Ok(Order::WalkNow(done)) => waiting.push(done),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        let allowed = if resets.may_be_sent() { limits.resets } else { 0 };
        match collector.sweep(&Limits { resets: allowed, ..limits.clone() }) {
            Ok(mut census) => {
                resets.send(std::mem::take(&mut census.resets));
                for (&backend, &count) in &census.unanswered {
                    *unanswered.entry(backend).or_default() += count;
                }
                publish.send_replace(Census { unanswered: unanswered.clone(), ..census });
            }
            Err(error) => error!("cannot collect idle flows: {error:#}"),
        }
        for done in waiting {
            // Whoever asked may have given up waiting.
            let _ = done.send(());
        }
    }
}

/// Has the ends of flows that idled out answer, at a bounded rate.
#[derive(Default)]
struct Resets {
    /// Opened when the first is to be sent.
    nudge: Option<Nudge>,
    sent_at: Option<Instant>,
}

impl Resets {
    /// Whether the last ones were long enough ago: walks that somebody asked for come as often as they are asked for.
    fn may_be_sent(&self) -> bool {
        self.sent_at.is_none_or(|moment| moment.elapsed() >= PAUSE)
    }

    fn send(&mut self, ends: Vec<(SocketAddr, SocketAddr)>) {
        if ends.is_empty() {
            return;
        }
        self.sent_at = Some(Instant::now());
        let nudge = match self.nudge.take().map_or_else(Nudge::open, Ok) {
            Ok(nudge) => self.nudge.insert(nudge),
            Err(error) => return error!("cannot reset idle connections: no raw socket: {error}"),
        };
        for (source, destination) in ends {
            if let Err(error) = nudge.send(source, destination) {
                debug!(%source, %destination, "cannot have an idle connection reset: {error}");
            }
        }
    }
}
