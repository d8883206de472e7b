//! Two looks at an instance, and what happened in between.

use std::time::Instant;

use crate::status::{BackendStatus, ListenerStatus, SnatStatus, Status};

/// One look.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    pub(super) taken: Instant,
    pub(super) status: Status,
}

/// The last two looks.
#[derive(Clone, Debug)]
pub(super) struct History {
    last: Sample,
    before: Option<Sample>,
    /// Why the last one is not newer.
    pub(super) problem: Option<String>,
}

/// What happened in a second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Rates {
    pub(super) packets: f64,
    pub(super) bytes: f64,
    pub(super) new_flows: f64,
}

/// A listener or a backend.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Row {
    pub(super) level: String,
    pub(super) name: String,
    /// Where a listener listens, what a backend does.
    pub(super) detail: String,
    pub(super) rates: Rates,
    pub(super) flows: u64,
}

/// What rows are sorted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Order {
    /// As the file has them.
    #[default]
    File,
    Packets,
    Bytes,
    NewFlows,
    Flows,
    Level,
}

impl Order {
    pub(super) const fn next(self) -> Self {
        match self {
            Self::File => Self::Packets,
            Self::Packets => Self::Bytes,
            Self::Bytes => Self::NewFlows,
            Self::NewFlows => Self::Flows,
            Self::Flows => Self::Level,
            Self::Level => Self::File,
        }
    }

    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Packets => "packets",
            Self::Bytes => "bytes",
            Self::NewFlows => "new flows",
            Self::Flows => "flows",
            Self::Level => "health",
        }
    }

    /// The largest first, and the worst.
    pub(super) fn sort(self, rows: &mut [Row]) {
        let badness =
            |row: &Row| ["OK", "UNKNOWN", "WARNING", "CRITICAL"].iter().position(|level| *level == row.level);
        match self {
            Self::File => {}
            Self::Packets => rows.sort_by(|a, b| b.rates.packets.total_cmp(&a.rates.packets)),
            Self::Bytes => rows.sort_by(|a, b| b.rates.bytes.total_cmp(&a.rates.bytes)),
            Self::NewFlows => rows.sort_by(|a, b| b.rates.new_flows.total_cmp(&a.rates.new_flows)),
            Self::Flows => rows.sort_by_key(|row| std::cmp::Reverse(row.flows)),
            Self::Level => rows.sort_by_key(|row| std::cmp::Reverse(badness(row))),
        }
    }
}

impl History {
    pub(super) const fn new(first: Sample) -> Self {
        Self { last: first, before: None, problem: None }
    }

    pub(super) fn add(&mut self, sample: Sample) {
        self.before = Some(std::mem::replace(&mut self.last, sample));
        self.problem = None;
    }

    pub(super) const fn status(&self) -> &Status {
        &self.last.status
    }

    pub(super) fn listeners(&self) -> Vec<Row> {
        let before =
            |name: &str| self.before.as_ref()?.status.listeners.iter().find(|listener| listener.name == name);
        let row = |listener: &ListenerStatus| Row {
            level: listener.status.clone(),
            name: listener.name.clone(),
            detail: where_it_listens(listener),
            rates: self.rates(
                counts(listener.packets, listener.bytes, listener.new_flows),
                before(&listener.name).map(|l| counts(l.packets, l.bytes, l.new_flows)),
            ),
            flows: listener.active_flows,
        };
        self.last.status.listeners.iter().map(row).collect()
    }

    pub(super) fn backends(&self) -> Vec<Row> {
        let before = |set: &str, name: &str| {
            let set = self.before.as_ref()?.status.backend_sets.iter().find(|known| known.name == set)?;
            set.backends.iter().find(|backend| backend.name == name)
        };
        let row = |set: &str, backend: &BackendStatus| Row {
            level: backend.status.clone(),
            name: format!("{set}/{}", backend.name),
            detail: backend.state.clone(),
            rates: self.rates(
                counts(backend.packets, backend.bytes, backend.new_flows),
                before(set, &backend.name).map(|b| counts(b.packets, b.bytes, b.new_flows)),
            ),
            flows: backend.active_flows,
        };
        let sets = self.last.status.backend_sets.iter();
        sets.flat_map(|set| set.backends.iter().map(|backend| row(&set.name, backend))).collect()
    }

    /// Drops that have occurred: reason, total, in a second.
    pub(super) fn drops(&self) -> Vec<(&str, u64, f64)> {
        let occurred = self.last.status.drops.iter().filter(|(_, count)| **count > 0);
        let before = |reason: &String| self.before.as_ref()?.status.drops.get(reason).copied();
        let mut drops: Vec<(&str, u64, f64)> = occurred
            .map(|(reason, &count)| (reason.as_str(), count, self.rate(count, before(reason))))
            .collect();
        drops.sort_by_key(|(_, count, _)| std::cmp::Reverse(*count));
        drops
    }

    /// SNAT addresses and how much of their ports is in use towards a backend, the fullest first.
    pub(super) fn snat(&self) -> Vec<(&SnatStatus, f64)> {
        let share = |snat: &SnatStatus| 100.0 * snat.in_use as f64 / snat.ports.max(1) as f64;
        let mut used: Vec<_> = self.last.status.snat.iter().map(|snat| (snat, share(snat))).collect();
        used.sort_by(|(_, a), (_, b)| b.total_cmp(a));
        used
    }

    fn rates(&self, now: [u64; 3], before: Option<[u64; 3]>) -> Rates {
        let rate = |which: usize| self.rate(now[which], before.map(|before| before[which]));
        Rates { packets: rate(0), bytes: rate(1), new_flows: rate(2) }
    }

    /// What a counter gained in a second; nothing when it was not there or has begun anew.
    fn rate(&self, now: u64, before: Option<u64>) -> f64 {
        let (Some(earlier), Some(before)) = (&self.before, before) else { return 0.0 };
        let seconds = self.last.taken.duration_since(earlier.taken).as_secs_f64();
        if seconds > 0.0 { now.saturating_sub(before) as f64 / seconds } else { 0.0 }
    }
}

const fn counts(packets: u64, bytes: u64, new_flows: u64) -> [u64; 3] {
    [packets, bytes, new_flows]
}

fn where_it_listens(listener: &ListenerStatus) -> String {
    let port = match listener.ports.split_once('-') {
        _ if listener.port == 0 => "*",
        Some((first, last)) if first == last => first,
        _ => &listener.ports,
    };
    match listener.address.is_ipv4() {
        true => format!("{}:{port} {}", listener.address, listener.protocol),
        false => format!("[{}]:{port} {}", listener.address, listener.protocol),
    }
}
