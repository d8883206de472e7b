//! All counters at one moment, and what moved between two.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::Result;
use lb_common::{Counters, Drops, Kind, Reason};
use lb_userspace::control::desired::Names;
use lb_userspace::dataplane::Maps;

/// Counters by name, for example `listener web to_backend.packets`, `backend web/alpha new_flows`,
/// `drops web no_backend`, `passes not_ours` or `notes answered`; those at zero are left out, so that equal counts are equal maps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts(BTreeMap<String, u64>);

impl Counts {
    /// Reads the counters of all listeners and backends that have a name.
    pub(super) fn read(maps: &Maps, names: &Names) -> Result<Self> {
        let (mut counts, tally) = (Self::default(), maps.tally());
        counts.add_drops("", &maps.drops(None)?);
        for (name, &id) in &names.listeners {
            counts.add_traffic(&format!("listener {name}"), &tally.listener(id)?);
            counts.add_drops(name, &maps.drops(Some(id))?);
        }
        for ((set, name), &id) in &names.backends {
            counts.add_traffic(&format!("backend {set}/{name}"), &tally.backend(id)?);
        }
        Ok(counts)
    }

    fn add_traffic(&mut self, whose: &str, counters: &Counters) {
        let Counters { to_backend, to_client, new_flows, refused } = counters;
        self.add(format!("{whose} to_backend.packets"), to_backend.packets);
        self.add(format!("{whose} to_backend.bytes"), to_backend.bytes);
        self.add(format!("{whose} to_client.packets"), to_client.packets);
        self.add(format!("{whose} to_client.bytes"), to_client.bytes);
        self.add(format!("{whose} new_flows"), *new_flows);
        self.add(format!("{whose} refused"), *refused);
    }

    fn add_drops(&mut self, listener: &str, drops: &Drops) {
        for &reason in Reason::ALL {
            self.add_reason(listener, reason, drops.get(reason));
        }
    }

    /// Counts packets by reason: drops of a listener, or, under the empty name, those without one. What is no drop is
    /// counted alike for all, since the listener is not always known.
    pub fn add_reason(&mut self, listener: &str, reason: Reason, packets: u64) {
        let whose = if listener.is_empty() { "(no listener)" } else { listener };
        let name = reason.name();
        let counter = match reason.kind() {
            _ if reason == Reason::NoListener => format!("passes {name}"),
            Kind::Drop => format!("drops {whose} {name}"),
            Kind::Pass => format!("passes {name}"),
            Kind::Note => format!("notes {name}"),
        };
        self.add(counter, packets);
    }

    /// Adds the only counter of `moved` that counts packets left to the kernel, whatever the reason.
    ///
    /// # Errors
    ///
    /// If there is none or several.
    pub fn add_any_pass(&mut self, moved: &Self) -> Result<()> {
        let passes: Vec<_> = moved.0.iter().filter(|(name, _)| name.starts_with("passes ")).collect();
        match passes[..] {
            [(name, 1)] => self.add(name.clone(), 1),
            _ => anyhow::bail!("expected one pass to be counted, found\n{moved}"),
        }
        Ok(())
    }

    /// Adds to one counter.
    pub fn add(&mut self, name: String, more: u64) {
        if more != 0 {
            *self.0.entry(name).or_default() += more;
        }
    }

    /// What moved since `earlier`. A counter that was set to zero meanwhile counts as it stands.
    pub fn since(&self, earlier: &Self) -> Self {
        let moved = |(name, &now): (&String, &u64)| {
            let before = earlier.0.get(name).copied().filter(|&before| before <= now).unwrap_or(0);
            (now > before).then(|| (name.clone(), now - before))
        };
        Self(self.0.iter().filter_map(moved).collect())
    }

    /// Sum of the counters whose name begins and ends so.
    pub fn sum(&self, begin: &str, end: &str) -> u64 {
        let matching = self.0.iter().filter(|(name, _)| name.starts_with(begin) && name.ends_with(end));
        matching.map(|(_, value)| value).sum()
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return formatter.write_str("  (none)");
        }
        let lines: Vec<String> = self.0.iter().map(|(name, value)| format!("  {name} +{value}")).collect();
        formatter.write_str(&lines.join("\n"))
    }
}
