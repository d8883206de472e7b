//! What the tests of this module make desired states from.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use lb_common::NextHop;

use super::desired::{Health, Surroundings, Way};
use crate::config::Config;

/// A host on which every way is resolved, and checks that say what a test wants.
#[derive(Default)]
pub(super) struct Host {
    /// By backend; UNKNOWN where nothing is said.
    pub(super) health: BTreeMap<&'static str, Health>,
    /// Without a way.
    pub(super) unresolved: Vec<IpAddr>,
    /// Of the active role.
    pub(super) holder: Option<SocketAddr>,
}

impl Surroundings for Host {
    fn health(&self, _set: &str, backend: &str) -> Health {
        self.health.get(backend).copied().unwrap_or(Health::Unknown)
    }

    fn way(&self, address: IpAddr) -> Way {
        let ifindex = u32::from(!self.unresolved.contains(&address));
        Way { next_hop: NextHop { ifindex, ..NextHop::default() }, onlink_prefix_len: 24, mtu: 1500 }
    }

    fn holder(&self, _set: &str) -> Option<SocketAddr> {
        self.holder
    }
}

/// A host whose checks say `health`.
pub(super) fn host(health: &[(&'static str, Health)]) -> Host {
    Host { health: health.iter().copied().collect(), ..Host::default() }
}

/// A configuration of one listener and one set, with `set` in it.
pub(super) fn config(set: &str) -> Config {
    let source = format!(
        "[lb]\ninterfaces = [\"eth0\"]\n\
         [[listener]]\nname = \"web\"\naddress = \"10.0.1.100\"\nprotocol = \"tcp_and_udp\"\nport = 80\n\
         backend_set = \"web\"\n{set}\n\
         [backend_set.web.health_check]\nprotocol = \"tcp\"\n"
    );
    crate::config::parse(&source, "test.toml").unwrap_or_else(|report| panic!("{report}")).config
}

/// A backend at `10.0.1.last:8080`.
pub(super) fn backend(name: &str, last: u8, more: &str) -> String {
    format!(
        "[[backend_set.web.backend]]\nname = \"{name}\"\naddress = \"10.0.1.{last}\"\nport = 8080\n{more}\n"
    )
}
