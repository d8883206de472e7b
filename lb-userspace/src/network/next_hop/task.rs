//! The task behind a [`super::Resolver`]: listens to the kernel, asks it, and publishes.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use super::Ways;
use super::events::Events;
use super::table::{Event, Table};
use crate::network::Error;
use crate::network::netlink::{Hop, Netlink};

/// Announcements come in bursts: an interface that comes up brings a dozen.
const DEBOUNCE: Duration = Duration::from_millis(20);
/// Every neighbour in use gets its turn once in this time.
const ROUND: Duration = Duration::from_secs(5);
/// Neighbours of one turn, at least: a round over fewer has a single turn.
const TURN: usize = 64;
/// Turns of one round, at most.
const TURNS: usize = 100;
/// Routes looked up, and neighbours solicited, before announcements are listened to again: about a millisecond.
const CHUNK: usize = 128;
/// Between two chunks of solicitations, so that the broadcasts of many backends do not come in one burst.
const SOLICITATION_PAUSE: Duration = Duration::from_millis(10);
/// Everything is read again this often, for what the kernel does not announce: the end of a redirect, a change of a
/// next hop object.
const REREAD: Duration = Duration::from_secs(60);
/// When announcements were lost, everything is read again, but not more often than this.
const REREAD_PAUSE: Duration = Duration::from_millis(250);
/// Before sockets that failed are opened again.
const REOPEN_PAUSE: Duration = Duration::from_secs(1);

/// Both sockets: one to listen and one to ask, so that a flood of announcements cannot displace an answer.
pub(super) struct Kernel {
    pub(super) events: Events,
    pub(super) netlink: Netlink,
}

impl Kernel {
    fn open() -> Result<Self, Error> {
        Ok(Self { events: Events::subscribe()?, netlink: Netlink::open()? })
    }
}

pub(super) struct Task {
    table: Table,
    watched: watch::Receiver<BTreeSet<IpAddr>>,
    ways: watch::Sender<Ways>,
    /// When the stale routes are looked up.
    look_up_at: Instant,
    /// When the urgent neighbours are solicited.
    solicit_at: Instant,
    /// When the next turn of the round is.
    turn_at: Instant,
    read_at: Instant,
    reread_at: Instant,
}

impl Task {
    pub(super) fn new(
        table: Table,
        watched: watch::Receiver<BTreeSet<IpAddr>>,
        ways: watch::Sender<Ways>,
    ) -> Self {
        let now = Instant::now();
        Self {
            table,
            watched,
            ways,
            look_up_at: now,
            solicit_at: now,
            turn_at: now + ROUND,
            read_at: now,
            reread_at: now,
        }
    }

    /// Runs until the resolver is dropped.
    pub(super) async fn run(mut self, kernel: Kernel) {
        let mut kernel = Ok(kernel);
        loop {
            let followed = match kernel {
                Ok(kernel) => self.follow(kernel).await,
                Err(error) => Err(error),
            };
            let Err(error) = followed else { return };
            tracing::warn!(%error, "lost touch with the kernel's routes and neighbours; starting over");
            sleep(REOPEN_PAUSE).await;
            self.reread_at = Instant::now();
            kernel = Kernel::open();
        }
    }

    /// Follows the kernel until a socket fails, or, without error, until the resolver is dropped.
    async fn follow(&mut self, mut kernel: Kernel) -> Result<(), Error> {
        loop {
            let netlink = &mut kernel.netlink;
            tokio::select! {
                // What the kernel says comes first: a changed address is published at once.
                biased;
                events = kernel.events.next() => {
                    self.apply(events.map_err(|error| Error::kernel("listen to the kernel", error))?);
                }
                changed = self.watched.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    self.table.watch(&self.watched.borrow_and_update());
                    self.look_up_at = Instant::now();
                }
                () = sleep_until(self.reread_at) => self.read_all(netlink)?,
                () = sleep_until(self.look_up_at), if self.table.has_stale() => self.look_up(netlink)?,
                () = sleep_until(self.solicit_at), if self.table.has_urgent() => {
                    let hops = self.table.take_urgent(CHUNK);
                    self.solicit(netlink, &hops);
                    self.solicit_at = Instant::now() + SOLICITATION_PAUSE;
                }
                () = sleep_until(self.turn_at) => self.take_turn(netlink),
            }
            self.ways.send_if_modified(|ways| self.table.publish(ways));
        }
    }

    fn apply(&mut self, events: Vec<Event>) {
        let was_stale = self.table.has_stale();
        for event in events {
            if event == Event::Lost {
                tracing::debug!("the kernel dropped announcements; reading everything again");
                self.reread_at = self.reread_at.min(self.read_at + REREAD_PAUSE);
            }
            self.table.apply(event);
        }
        if !was_stale && self.table.has_stale() {
            self.look_up_at = Instant::now() + DEBOUNCE;
        }
    }

    fn read_all(&mut self, netlink: &mut Netlink) -> Result<(), Error> {
        self.table.set_links(netlink.links()?);
        self.table.set_addresses(&netlink.addresses()?);
        self.table.set_neighbours(netlink.neighbours()?);
        self.table.expire_all();
        self.read_at = Instant::now();
        self.look_up_at = self.read_at;
        self.reread_at = self.read_at + REREAD;
        Ok(())
    }

    fn look_up(&mut self, netlink: &mut Netlink) -> Result<(), Error> {
        for address in self.table.take_stale(CHUNK) {
            self.table.set_lookup(address, netlink.route(address)?);
        }
        Ok(())
    }

    /// The next turn of the round over all neighbours in use.
    fn take_turn(&mut self, netlink: &mut Netlink) {
        let (size, pause) = turn(self.table.hop_count());
        let hops = self.table.next_in_round(size);
        self.solicit(netlink, &hops);
        self.turn_at = Instant::now() + pause;
    }

    fn solicit(&mut self, netlink: &mut Netlink, hops: &[Hop]) {
        for &hop in hops {
            let refused = netlink.solicit(hop).err();
            if let Some(error) = &refused {
                tracing::debug!(address = %hop.address, ifindex = hop.ifindex, %error, "cannot solicit a neighbour");
            }
            let errno = |error: std::io::Error| error.raw_os_error().unwrap_or(libc::EIO);
            self.table.solicited(hop, refused.map(errno));
        }
    }
}

/// How many neighbours have their turn at once, and the time until the next turn.
fn turn(neighbours: usize) -> (usize, Duration) {
    let turns = neighbours.div_ceil(TURN).clamp(1, TURNS);
    (neighbours.div_ceil(turns).max(1), ROUND / turns as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_reaches_every_neighbour_in_its_time_and_in_no_burst() {
        for neighbours in [0, 1, 63, 64, 65, 6_399, 6_400, 16_384, 1_000_000] {
            let (size, pause) = turn(neighbours);
            let turns = neighbours.div_ceil(size) as u32;
            assert!(turns * pause <= ROUND, "{neighbours} neighbours take {turns} turns of {pause:?}");
            assert!(size <= TURN.max(neighbours.div_ceil(TURNS)), "{neighbours} neighbours: {size} at once");
        }
    }
}
