//! What the program has counted in lanes (see `lb_common::lane`): it belongs to the counters of listeners and backends.

use std::collections::HashMap;
use std::sync::atomic::{Ordering, fence};

use anyhow::{Context, Result};
use aya::{Ebpf, Pod};
use lb_common::cache::Pair;
use lb_common::lane::{FAMILY_V4, FAMILY_V6, book_of};
use lb_common::{Addr4, Addr6, Address, Counters, Lane, LaneBook};

use super::load::array_of;
use super::sizes::cpus;
use super::sys::Mapped;

/// The lanes of all CPUs.
#[derive(Debug)]
pub(super) struct Lanes {
    v4: Mapped<Lane<<Addr4 as Address>::Pair>>,
    v6: Mapped<Lane<<Addr6 as Address>::Pair>>,
    books: Mapped<u64>,
    cpus: u32,
}

/// What is in the lanes of one CPU at one moment.
#[derive(Debug, Default)]
pub(super) struct InLanes {
    /// Lanes that have become others until then, and not all of them if it is odd.
    changes: u64,
    /// By listener id.
    pub(super) listeners: HashMap<u32, Counters>,
    /// By backend id.
    pub(super) backends: HashMap<u32, Counters>,
}

impl Lanes {
    pub(super) fn of(ebpf: &Ebpf) -> Result<Self> {
        Ok(Self {
            v4: mapped(ebpf, "lanes_v4")?,
            v6: mapped(ebpf, "lanes_v6")?,
            books: mapped(ebpf, "lane_books")?,
            cpus: cpus()?,
        })
    }

    /// Adds up what is in the lanes of each CPU.
    pub(super) fn read_all(&self) -> Vec<InLanes> {
        (0..self.cpus).map(|cpu| self.read(cpu)).collect()
    }

    /// Adds up what is in the lanes of a CPU.
    pub(super) fn read(&self, cpu: u32) -> InLanes {
        let mut found = InLanes { changes: self.changes(cpu), ..InLanes::default() };
        fence(Ordering::SeqCst);
        self.add_marked(&self.v4, cpu, FAMILY_V4, &mut found);
        self.add_marked(&self.v6, cpu, FAMILY_V6, &mut found);
        found
    }

    /// Whether nothing has gone from the lanes of a CPU to the maps of counters since, nor while it was added up.
    pub(super) fn are_still(&self, cpu: u32, found: &InLanes) -> bool {
        fence(Ordering::SeqCst);
        found.changes.is_multiple_of(2) && found.changes == self.changes(cpu)
    }

    fn changes(&self, cpu: u32) -> u64 {
        let of = |family| self.word(book_of(cpu, family), LaneBook::CHANGES);
        changes_of([of(FAMILY_V4), of(FAMILY_V6)])
    }

    fn add_marked<P: Pair + 'static>(
        &self,
        lanes: &Mapped<Lane<P>>,
        cpu: u32,
        family: u32,
        found: &mut InLanes,
    ) {
        let of_each = lanes.count() / self.cpus;
        let (first, book) = (cpu * of_each, book_of(cpu, family));
        for word in 0..of_each.div_ceil(64) {
            let mut marks = self.word(book, LaneBook::MARKS + word);
            while marks != 0 {
                let number = 64 * word + marks.trailing_zeros();
                marks &= marks - 1;
                if let Some(lane) = lanes.read(first + number) {
                    found.add(&lane);
                }
            }
        }
    }

    fn word(&self, book: u32, word: u32) -> u64 {
        self.books.read(book * LaneBook::WORDS + word).unwrap_or_default()
    }
}

impl InLanes {
    fn add<P: Pair>(&mut self, lane: &Lane<P>) {
        let Lane { course, traffic, .. } = lane;
        if traffic.packets == 0 {
            return;
        }
        for counters in [
            self.listeners.entry(course.listener.into()).or_default(),
            self.backends.entry(course.backend.into()).or_default(),
        ] {
            counters.of_direction(course.direction).add(traffic);
        }
    }
}

/// The changes in both books together: another number after each, and odd while one is made in either of them.
const fn changes_of([v4, v6]: [u64; 2]) -> u64 {
    2 * (v4 + v6) + (v4 | v6) % 2
}

fn mapped<T: Pod>(ebpf: &Ebpf, name: &str) -> Result<Mapped<T>> {
    Mapped::new(array_of(ebpf, name)?).with_context(|| format!("cannot read the map `{name}`"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_common::{Course, Flow, Traffic};

    #[test]
    fn a_change_under_way_shows_whatever_else_is() {
        assert_eq!((changes_of([0, 0]), changes_of([2, 4])), (0, 12));
        assert!([[1, 0], [1, 1], [2, 3]].iter().all(|&books| changes_of(books) % 2 == 1));
        assert_ne!(changes_of([2, 2]), changes_of([2, 4]));
    }

    #[test]
    fn lanes_of_one_listener_and_several_backends_add_up() {
        let mut found = InLanes::default();
        for (backend, direction, packets) in [
            (1, Flow::<Addr4>::TO_BACKEND, 3),
            (2, Flow::<Addr4>::TO_BACKEND, 4),
            (2, Flow::<Addr4>::TO_CLIENT, 5),
        ] {
            let course = Course { listener: 7, backend, direction, ..Course::default() };
            found.add(&Lane::<[u64; 1]> {
                course,
                traffic: Traffic { packets, bytes: 100 * packets },
                used: 1,
            });
        }
        let packets = |counters: &Counters| (counters.to_backend.packets, counters.to_client.packets);
        assert_eq!(packets(&found.listeners[&7]), (7, 5));
        assert_eq!((packets(&found.backends[&1]), packets(&found.backends[&2])), ((3, 0), (4, 5)));
        assert_eq!(found.backends[&2].to_client.bytes, 500);
    }
}
