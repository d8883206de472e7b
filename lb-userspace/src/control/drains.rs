//! When the drains under way end.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::desired::Names;
use crate::config::{BackendSet, Config};

/// How long a backend drains that was lost from the configuration while no controller ran, so that nobody knows what
/// its set said: the default of `drain_timeout_s`.
const REMOVED_DRAIN: Duration = Duration::from_secs(300);

/// The drains under way.
#[derive(Debug, Default)]
pub struct Drains {
    /// When each ends, by backend id.
    ends: BTreeMap<u32, Instant>,
    /// How long each backend may drain; `None`: for ever. Kept when the backend goes.
    timeouts: BTreeMap<u32, Option<Duration>>,
}

impl Drains {
    /// Starts the clock of each drain that has begun, and forgets those that were ended: of backends that the
    /// configuration drains, and of those it has lost (`removed`).
    pub fn note(&mut self, config: &Config, names: &Names, removed: impl Iterator<Item = u32>, now: Instant) {
        let mut draining = BTreeMap::new();
        for (set_name, set) in &config.backend_sets {
            for backend in &set.backends {
                let name = (set_name.clone(), backend.name.clone());
                let Some(&id) = names.backends.get(&name) else { continue };
                self.timeouts.insert(id, timeout(set));
                if backend.drain {
                    draining.extend(timeout(set).map(|timeout| (id, timeout)));
                }
            }
        }
        for id in removed {
            let timeout = self.timeouts.get(&id).copied().unwrap_or(Some(REMOVED_DRAIN));
            draining.extend(timeout.map(|timeout| (id, timeout)));
        }
        self.ends.retain(|id, _| draining.contains_key(id));
        for (id, timeout) in draining {
            self.ends.entry(id).or_insert(now + timeout);
        }
    }

    /// Backends that have drained for long enough.
    pub fn over(&self, now: Instant) -> impl Iterator<Item = u32> {
        self.ends.iter().filter(move |(_, end)| **end <= now).map(|(&id, _)| id)
    }

    /// Forgets backends whose ids are free again.
    pub fn forget(&mut self, backends: &[u32]) {
        self.ends.retain(|id, _| !backends.contains(id));
        self.timeouts.retain(|id, _| !backends.contains(id));
    }
}

fn timeout(set: &BackendSet) -> Option<Duration> {
    (set.drain_timeout_s > 0).then(|| Duration::from_secs(set.drain_timeout_s.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: u32 = 7;

    fn config(set: &str, backend: &str) -> Config {
        let source = format!(
            "[lb]\ninterfaces = [\"eth0\"]\n\
             [[listener]]\nname = \"web\"\naddress = \"10.0.1.100\"\nprotocol = \"tcp\"\nport = 80\n\
             backend_set = \"web\"\n[backend_set.web]\n{set}\n\
             [[backend_set.web.backend]]\nname = \"a\"\naddress = \"10.0.1.10\"\nport = 80\n{backend}\n\
             [backend_set.web.health_check]\nprotocol = \"tcp\"\n"
        );
        crate::config::parse(&source, "test.toml").unwrap_or_else(|report| panic!("{report}")).config
    }

    fn names() -> Names {
        Names { backends: BTreeMap::from([(("web".into(), "a".into()), ID)]), ..Names::default() }
    }

    fn over(drains: &Drains, now: Instant) -> Vec<u32> {
        drains.over(now).collect()
    }

    #[test]
    fn a_drain_ends_after_its_time_and_not_if_it_was_ended_before() {
        let (mut drains, start) = (Drains::default(), Instant::now());
        let [five, more] = [5, 6].map(|seconds| start + Duration::from_secs(seconds));
        let draining = config("drain_timeout_s = 5", "drain = true");
        drains.note(&draining, &names(), [].into_iter(), start);
        assert_eq!(over(&drains, five - Duration::from_millis(1)), [0_u32; 0]);
        // Whatever else is applied meanwhile, the clock goes on.
        drains.note(&draining, &names(), [].into_iter(), five);
        assert_eq!(over(&drains, five), [ID]);
        drains.note(&config("drain_timeout_s = 5", ""), &names(), [].into_iter(), more);
        assert_eq!(over(&drains, more), [0_u32; 0]);
    }

    #[test]
    fn a_removed_backend_drains_as_long_as_its_set_said() {
        let (mut drains, start) = (Drains::default(), Instant::now());
        drains.note(&config("drain_timeout_s = 5", ""), &names(), [].into_iter(), start);
        let none = Names::default();
        drains.note(&config("", ""), &none, [ID, 8].into_iter(), start);
        assert_eq!(over(&drains, start + Duration::from_secs(5)), [ID]);
        // Of the other nobody knows what its set said.
        assert_eq!(over(&drains, start + REMOVED_DRAIN), [ID, 8]);
        drains.forget(&[ID]);
        assert_eq!(over(&drains, start + REMOVED_DRAIN), [8]);
    }

    #[test]
    fn without_a_timeout_it_lasts_for_ever() {
        let (mut drains, start) = (Drains::default(), Instant::now());
        drains.note(&config("drain_timeout_s = 0", "drain = true"), &names(), [].into_iter(), start);
        assert_eq!(over(&drains, start + Duration::from_secs(1_000_000)), [0_u32; 0]);
    }
}
