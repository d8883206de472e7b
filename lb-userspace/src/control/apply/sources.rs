//! The map `source_rules`: thousands of prefixes, computed only when the lists they come from change.

use std::collections::BTreeMap;

use anyhow::Result;
use ipnet::IpNet;
use lb_common::SourceKey;
use tracing::debug;

use super::super::desired::Desired;
use super::super::sources::SourceLists;
use crate::dataplane::Maps;
use crate::dataplane::maps::Source;

type Rules = BTreeMap<IpNet, u32>;

/// The rules in the map.
#[derive(Debug, Default)]
pub(super) struct HeldSources {
    /// The lists they come from, by listener id; those of an adopted listener are not known.
    lists: BTreeMap<u32, SourceLists>,
    /// By listener id.
    rules: BTreeMap<u32, Rules>,
}

/// What is to become of the rules of a listener.
pub(super) struct Change {
    listener: u32,
    lists: SourceLists,
    rules: Rules,
}

impl HeldSources {
    pub(super) fn read(maps: &Maps) -> Result<Self> {
        let mut held = Self::default();
        for (Source { listener, prefix }, verdict) in maps.source_rules()? {
            held.rules.entry(listener).or_default().insert(prefix, verdict);
        }
        Ok(held)
    }

    /// Writes what is new, denials first: while only half is written, rather too few than too many may come in.
    /// What has to go is left for [`HeldSources::finish`], when no listener refers to it any more.
    pub(super) fn begin(&mut self, maps: &mut Maps, desired: &Desired) -> Result<Vec<Change>> {
        let mut changes = Vec::new();
        for (&listener, lists) in &desired.sources {
            if self.lists.get(&listener) != Some(lists) {
                changes.push(Change { listener, lists: lists.clone(), rules: lists.rules() });
            }
        }
        let gone = self.rules.keys().filter(|listener| !desired.sources.contains_key(listener));
        let nothing =
            |&listener: &u32| Change { listener, lists: SourceLists::default(), rules: Rules::new() };
        changes.extend(gone.map(nothing));
        for verdict in [SourceKey::DENY, SourceKey::ALLOW] {
            for change in &changes {
                self.write(maps, change, verdict)?;
            }
        }
        Ok(changes)
    }

    fn write(&mut self, maps: &mut Maps, change: &Change, verdict: u32) -> Result<()> {
        let held = self.rules.entry(change.listener).or_default();
        for (&prefix, _) in change.rules.iter().filter(|(_, wanted)| **wanted == verdict) {
            if held.get(&prefix) != Some(&verdict) {
                maps.set_source_rule(Source { listener: change.listener, prefix }, verdict)?;
                held.insert(prefix, verdict);
            }
        }
        Ok(())
    }

    /// Removes what has to go.
    pub(super) fn finish(&mut self, maps: &mut Maps, changes: Vec<Change>) -> Result<()> {
        for Change { listener, lists, rules } in changes {
            let held = self.rules.entry(listener).or_default();
            let gone: Vec<IpNet> =
                held.keys().filter(|prefix| !rules.contains_key(prefix)).copied().collect();
            for prefix in gone {
                maps.remove_source_rule(Source { listener, prefix })?;
                held.remove(&prefix);
            }
            debug!(listener, prefixes = held.len(), "changed who may open flows");
            if rules.is_empty() {
                self.rules.remove(&listener);
                self.lists.remove(&listener);
            } else {
                self.lists.insert(listener, lists);
            }
        }
        Ok(())
    }
}
