//! What the controller learns while it runs, told by the test: health of backends, and the ways to them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use lb_userspace::control::{Health, Surroundings, Way};

/// Health and ways. A backend that is not named is healthy; an address that is not named cannot be reached.
#[derive(Clone, Debug, Default)]
pub struct States {
    /// By backend name, whichever set it is in.
    pub health: BTreeMap<String, Health>,
    /// By address.
    pub ways: BTreeMap<IpAddr, Way>,
}

impl Surroundings for States {
    fn health(&self, _set: &str, backend: &str) -> Health {
        self.health.get(backend).copied().unwrap_or(Health::Healthy)
    }

    fn way(&self, address: IpAddr) -> Way {
        self.ways.get(&address).copied().unwrap_or_default()
    }
}
