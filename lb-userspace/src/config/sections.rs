//! The top of the file: which sections there are.

use std::collections::BTreeMap;

use super::facts::{Facts, SetFacts};
use super::findings::Findings;
use super::reader::Table;
use super::schema::{BackendSet, Config, Listener};
use super::{backend_set, instance, listener, scalar};

/// Reads every section: what the rules between sections need, and the configuration if no section was
/// refused.
pub(super) fn read<'d>(findings: &Findings<'d>) -> (Facts<'d>, Option<Config>) {
    let mut root = Table::root(findings);
    let (instance, lb) = instance::read(&mut root);
    let api = instance::read_api(&mut root);
    let (listener_facts, listeners): (Vec<_>, Vec<_>) = root
        .tables("listener")
        .unwrap_or_default()
        .into_iter()
        .map(|(index, table)| listener::read(index, table))
        .unzip();
    let (sets, backend_sets) = read_sets(&mut root);
    root.finish();

    let listeners: Option<Vec<Listener>> = listeners.into_iter().collect();
    let config = || Some(Config { lb: lb?, api: api?, listeners: listeners?, backend_sets: backend_sets? });
    (Facts { instance, listeners: listener_facts, sets }, config())
}

/// `[backend_set.NAME]`, by name.
fn read_sets<'d>(
    root: &mut Table<'_, 'd>,
) -> (BTreeMap<&'d str, SetFacts>, Option<BTreeMap<String, BackendSet>>) {
    let Some(value) = root.get("backend_set") else { return (BTreeMap::new(), Some(BTreeMap::new())) };
    let Some(table) = value.table_or("tables that begin with [backend_set.NAME]") else {
        return (BTreeMap::new(), None);
    };
    let mut facts = BTreeMap::new();
    let mut sets = Some(BTreeMap::new());
    for (name, key_span, value) in table.entries() {
        if let Err(problem) = scalar::name(name) {
            root.findings().refuse(&table.path().then(name), key_span, None, problem);
        }
        let read = value.table_or("a table that begins with [backend_set.NAME]").map(backend_set::read);
        let (set_facts, set) = read.unzip();
        facts.extend(set_facts.map(|set_facts| (name, set_facts)));
        sets = sets.zip(set.flatten()).map(|(mut sets, set)| {
            sets.insert(name.to_owned(), set);
            sets
        });
    }
    (facts, sets)
}
