//! Health, and who gets the new flows.

use super::*;
use crate::control::fixture::{Host, backend, config, host};
use Health::{Healthy, Unhealthy, Unknown};

fn in_rotation(config: &Config, host: &Host) -> Vec<bool> {
    rotation("web", &config.backend_sets["web"], host).members
}

#[test]
fn only_the_healthy_are_in_rotation() {
    let config = config(&[backend("a", 10, ""), backend("b", 11, ""), backend("c", 12, "")].concat());
    let host = host(&[("a", Healthy), ("b", Unhealthy), ("c", Unknown)]);
    assert_eq!(in_rotation(&config, &host), [true, false, false]);
}

#[test]
fn backups_wait_until_no_other_is_healthy() {
    let config = config(&[backend("a", 10, ""), backend("b", 11, "backup = true")].concat());
    assert_eq!(in_rotation(&config, &host(&[("a", Healthy), ("b", Healthy)])), [true, false]);
    assert_eq!(in_rotation(&config, &host(&[("a", Unhealthy), ("b", Healthy)])), [false, true]);
}

#[test]
fn drained_offline_weightless_and_unreachable_ones_get_nothing() {
    let set = [
        backend("a", 10, "drain = true"),
        backend("b", 11, "offline = true"),
        backend("c", 12, "weight = 0"),
        backend("d", 13, ""),
        backend("e", 14, ""),
    ];
    let config = config(&set.concat());
    let all = [("a", Healthy), ("b", Healthy), ("c", Healthy), ("d", Healthy), ("e", Healthy)];
    let host = Host { unresolved: vec!["10.0.1.13".parse().unwrap()], ..host(&all) };
    assert_eq!(in_rotation(&config, &host), [false, false, false, false, true]);
}

#[test]
fn fail_open_uses_all_that_are_neither_drained_nor_offline() {
    let backends =
        [backend("a", 10, ""), backend("b", 11, "drain = true"), backend("c", 12, "backup = true")];
    let closed = config(&backends.concat());
    let open = config(&format!("[backend_set.web]\nfail_open = true\n{}", backends.concat()));
    let host = host(&[("a", Unhealthy), ("b", Healthy), ("c", Unhealthy)]);
    assert_eq!(in_rotation(&closed, &host), [false, false, false]);
    assert_eq!(in_rotation(&open, &host), [true, false, true]);
}

/// A pair that does not preempt, `p` and its backup `b`, through the steps of a test.
struct Pair {
    config: Config,
    host: Host,
}

impl Pair {
    /// Nothing is known of either yet.
    fn new(set: &str, primary: &str) -> Self {
        let backends = [backend("p", 10, primary), backend("b", 11, "backup = true")].concat();
        let config = config(&format!("[backend_set.web]\npreempt = false\n{set}\n{backends}"));
        Self { config, host: Host::default() }
    }

    /// Who is in the rotation once this is found of the primary and of the backup.
    fn after(&mut self, primary: Health, backup: Health) -> Vec<&str> {
        self.host.health = [("p", primary), ("b", backup)].into();
        let set = &self.config.backend_sets["web"];
        let Rotation { members, holder } = rotation("web", set, &self.host);
        self.host.holder = holder;
        let all = set.backends.iter().zip(members);
        all.filter(|(_, is_in)| *is_in).map(|(backend, _)| backend.name.as_str()).collect()
    }

    fn primary(&mut self) -> &mut Backend {
        &mut self.config.backend_sets.get_mut("web").unwrap().backends[0]
    }
}

#[test]
fn who_took_over_stays_active() {
    let mut pair = Pair::new("", "");
    assert_eq!(pair.after(Healthy, Healthy), ["p"]);
    assert_eq!(pair.after(Unhealthy, Healthy), ["b"]);
    assert_eq!(pair.after(Healthy, Healthy), ["b"]);
    assert_eq!(pair.after(Healthy, Unhealthy), ["p"]);
    assert_eq!(pair.after(Healthy, Healthy), ["p"]);
}

#[test]
fn after_both_failed_the_first_to_return_is_active() {
    for (primary, backup, first) in [(Healthy, Unhealthy, "p"), (Unhealthy, Healthy, "b")] {
        let mut pair = Pair::new("", "");
        pair.after(Healthy, Healthy);
        assert_eq!(pair.after(Unhealthy, Unhealthy), [""; 0]);
        assert_eq!(pair.after(primary, backup), [first]);
        assert_eq!(pair.after(Healthy, Healthy), [first]);
    }
}

#[test]
fn both_returning_at_once_leaves_the_role_where_it_was() {
    let mut pair = Pair::new("", "");
    pair.after(Unhealthy, Healthy);
    pair.after(Unhealthy, Unhealthy);
    assert_eq!(pair.after(Healthy, Healthy), ["b"]);
}

#[test]
fn a_backup_that_was_only_checked_first_does_not_take_over() {
    let mut pair = Pair::new("", "");
    assert_eq!(pair.after(Unknown, Healthy), ["b"], "somebody has to serve");
    assert_eq!(pair.after(Healthy, Healthy), ["p"]);
    let mut pair = Pair::new("", "");
    pair.after(Unknown, Healthy);
    assert_eq!(pair.after(Unhealthy, Healthy), ["b"]);
    assert_eq!(pair.after(Healthy, Healthy), ["b"]);
}

#[test]
fn an_active_one_that_is_drained_or_offline_hands_the_role_over() {
    let switches: [fn(&mut Backend, bool); 2] =
        [|backend, is_out| backend.drain = is_out, |backend, is_out| backend.offline = is_out];
    for switch in switches {
        let mut pair = Pair::new("", "");
        pair.after(Healthy, Healthy);
        switch(pair.primary(), true);
        assert_eq!(pair.after(Unknown, Healthy), ["b"]);
        switch(pair.primary(), false);
        assert_eq!(pair.after(Unknown, Healthy), ["b"]);
        assert_eq!(pair.after(Healthy, Healthy), ["b"]);
    }
}

#[test]
fn a_primary_that_begins_out_of_service_finds_the_role_taken() {
    let mut pair = Pair::new("", "drain = true");
    assert_eq!(pair.after(Healthy, Healthy), ["b"]);
    pair.primary().drain = false;
    assert_eq!(pair.after(Healthy, Healthy), ["b"]);
}

#[test]
fn open_for_all_is_nobodys_role() {
    let mut pair = Pair::new("fail_open = true", "");
    pair.after(Healthy, Healthy);
    assert_eq!(pair.after(Unhealthy, Unhealthy), ["p", "b"]);
    assert_eq!(pair.after(Unhealthy, Healthy), ["b"]);
    assert_eq!(pair.after(Healthy, Healthy), ["b"]);
}

#[test]
fn with_preemption_the_primary_comes_back() {
    let mut pair = Pair::new("", "");
    pair.config.backend_sets.get_mut("web").unwrap().preempt = true;
    assert_eq!(pair.after(Unhealthy, Healthy), ["b"]);
    assert_eq!(pair.after(Healthy, Healthy), ["p"]);
}
