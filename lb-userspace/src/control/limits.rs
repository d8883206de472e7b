//! What the collector of idle flows must know.

use std::time::Duration;

use super::desired::Desired;
use crate::config::Config;
use crate::dataplane::Limits;
use crate::dataplane::collect::IdleTimeouts;

/// How long the flows of each listener may idle, and which backends lose theirs: those offline, and those that have
/// drained for long enough (`drained`, ids).
pub fn limits(desired: &Desired, config: &Config, drained: impl Iterator<Item = u32>) -> Limits {
    let mut limits = Limits::default();
    for listener in desired.all_listeners() {
        let timeouts = IdleTimeouts {
            tcp: Duration::from_secs(listener.tcp_idle_timeout_s.into()),
            udp: Duration::from_secs(listener.udp_idle_timeout_s.into()),
        };
        limits.listeners.insert(listener.id, timeouts);
    }
    for listener in config.listeners.iter().filter(|listener| listener.tcp_reset_on_idle) {
        limits.reset_on_idle.extend(desired.names.listeners.get(&listener.name));
    }
    for (set_name, set) in &config.backend_sets {
        for backend in set.backends.iter().filter(|backend| backend.offline) {
            limits.cut.extend(desired.names.backends.get(&(set_name.clone(), backend.name.clone())));
        }
    }
    limits.cut.extend(drained);
    limits
}
