//! The way to each backend, kept resolved, so that the packet path never asks the kernel and a quiet neighbour never
//! loses a packet.
//!
//! Three things are followed: the routes to the watched addresses, the links they leave by, and the neighbours they
//! are handed to. The kernel's announcements keep all three current. Since the XDP program's packets pass by the
//! kernel's neighbour code, the kernel would never verify an entry by itself: whatever is neither fresh nor being
//! verified is solicited every few seconds, so that an address that died or moved to another machine is noticed.

mod events;
mod table;
mod task;
mod way;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::Error;
use super::netlink::Netlink;
use events::Events;
use table::Table;
use task::{Kernel, Task};
pub use way::{Problem, Way};

/// The way to each watched address.
pub type Ways = BTreeMap<IpAddr, Way>;

/// Keeps [`Ways`] up to date, in a task of its own that ends when this is dropped.
#[derive(Debug)]
pub struct Resolver {
    watched: watch::Sender<BTreeSet<IpAddr>>,
    ways: watch::Receiver<Ways>,
    task: JoinHandle<()>,
}

impl Resolver {
    /// Starts with nothing to watch. `interfaces` are the ones the XDP program is attached to (`lb.interfaces`).
    ///
    /// Works on the network namespace of the calling thread. Should its sockets fail later, it says so in the log
    /// and opens new ones.
    ///
    /// # Errors
    /// The netlink sockets cannot be opened.
    ///
    /// # Panics
    /// Outside of a tokio runtime with I/O and time.
    pub fn new(interfaces: impl IntoIterator<Item = String>) -> Result<Self, Error> {
        let kernel = Kernel { events: Events::subscribe()?, netlink: Netlink::open()? };
        let (watched, watched_by_task) = watch::channel(BTreeSet::new());
        let (published, ways) = watch::channel(Ways::new());
        let task = Task::new(Table::new(interfaces.into_iter().collect()), watched_by_task, published);
        Ok(Self { watched, ways, task: tokio::spawn(task.run(kernel)) })
    }

    /// Replaces the set of addresses to watch. What stays in it stays resolved.
    pub fn watch(&self, addresses: BTreeSet<IpAddr>) {
        self.watched.send_replace(addresses);
    }

    /// The ways, and word of every change of them. An address is missing until the task has taken note of it.
    pub fn ways(&self) -> watch::Receiver<Ways> {
        self.ways.clone()
    }

    /// Waits until every watched address is either resolved or known not to be, at most for `limit`. The kernel
    /// takes about three seconds to give up on a neighbour. Says whether it came to that.
    pub async fn first_round(&self, limit: Duration) -> bool {
        let mut ways = self.ways.clone();
        let settled = ways.wait_for(|ways| {
            let watched = self.watched.borrow();
            // The keys are the watched addresses as soon as the task has taken note of them; both are in order.
            let mut pairs = watched.iter().zip(ways);
            ways.len() == watched.len()
                && pairs.all(|(address, (key, way))| address == key && way.is_settled())
        });
        matches!(tokio::time::timeout(limit, settled).await, Ok(Ok(_)))
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.task.abort();
    }
}
