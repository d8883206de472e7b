//! The thread that walks over the flows, so that the controller's loop never waits for a million of them.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::sync::{oneshot, watch};
use tracing::error;

use crate::dataplane::{Census, Collector, Limits};

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
        let walk = move || walk_until_dropped(&collector, &received, &publish);
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

    /// Walks now and waits for the end, for a status that is not a second old; at most for the time given, so that
    /// a status never waits for millions of flows.
    pub async fn walk_now(&self, at_most: Duration) {
        let (done, ended) = oneshot::channel();
        if self.orders.send(Order::WalkNow(done)).is_ok() {
            let _ = tokio::time::timeout(at_most, ended).await;
        }
    }

    /// What the last walk found; `unanswered` counts since the start.
    pub fn census(&self) -> Census {
        self.census.borrow().clone()
    }
}

fn walk_until_dropped(collector: &Collector, orders: &Receiver<Order>, publish: &watch::Sender<Census>) {
    let mut limits = Limits::default();
    let mut unanswered = BTreeMap::new();
    loop {
        let mut waiting = Vec::new();
        match orders.recv_timeout(PAUSE) {
            Ok(Order::Limits(changed)) => {
                limits = changed;
                continue;
            }
            Ok(Order::WalkNow(done)) => waiting.push(done),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        match collector.sweep(&limits) {
            Ok(census) => {
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
