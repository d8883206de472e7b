//! Ports that the host itself uses, which SNAT has to leave alone.

use std::collections::BTreeSet;
use std::net::IpAddr;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use lb_common::{BIT_WORDS, Bit};
use tracing::warn;

use crate::config::{Config, Mode, PortRange, Snat};
use crate::dataplane::Maps;
use crate::network::{sockets, vip};

/// How often the sockets of the host are looked at.
const INTERVAL: Duration = Duration::from_secs(10);

/// What is known of the ports of the host, and the map `reserved_ports`.
#[derive(Debug, Default)]
pub struct HostPorts {
    /// The words in the map; empty while they are not known.
    held: Vec<u64>,
    looked_at: Option<Instant>,
    overlap: Option<String>,
}

impl HostPorts {
    /// Whether it is time for another [`HostPorts::refresh`].
    pub fn is_due(&self) -> bool {
        self.looked_at.is_none_or(|moment| moment.elapsed() >= INTERVAL)
    }

    /// What the operator should know of; `None` if nothing.
    pub fn warning(&self) -> Option<&str> {
        self.overlap.as_deref()
    }

    /// Judges whether SNAT and the host itself may take the same ports of the same address, and warns if that is new.
    ///
    /// # Errors
    ///
    /// If the host does not tell its addresses.
    pub fn judge(&mut self, config: &Config, run_dir: &Path) -> Result<()> {
        let own = vip::own_addresses(run_dir).context("cannot find the addresses of this host")?;
        let found = sockets::local_port_range().and_then(|ports| overlap(config, &own, ports));
        if let Some(problem) = found.as_ref().filter(|_| found != self.overlap) {
            warn!("{problem}");
        }
        self.overlap = found;
        Ok(())
    }

    /// Looks at the sockets of the host, and reserves the ports of those that take packets to any address or to one
    /// of `addresses`: an answer of a backend to such a port would be theirs.
    ///
    /// # Errors
    ///
    /// If the host does not tell its sockets, or the map cannot be written.
    pub fn refresh(&mut self, maps: &mut Maps, addresses: &BTreeSet<IpAddr>) -> Result<()> {
        self.looked_at = Some(Instant::now());
        let ports = sockets::bound_ports(|address| addresses.contains(&address))
            .context("cannot find the ports that this host uses")?;
        let mut words = vec![0_u64; BIT_WORDS as usize];
        for bit in ports.into_iter().map(Bit::of_port) {
            if let Some(word) = words.get_mut(bit.word() as usize) {
                *word |= bit.mask();
            }
        }
        for (index, word) in (0..).zip(&words) {
            if self.held.get(index as usize) != Some(word) {
                maps.set_reserved_ports(index, *word)?;
            }
        }
        self.held = words;
        Ok(())
    }

    /// Whether SNAT leaves a port alone.
    pub fn contains(&self, port: u16) -> bool {
        let bit = Bit::of_port(port);
        self.held.get(bit.word() as usize).is_some_and(|word| word & bit.mask() != 0)
    }
}

/// The addresses that become sources: `snat_addresses`, or the VIPs of listeners whose sets translate.
pub fn snat_addresses(config: &Config) -> BTreeSet<IpAddr> {
    let translates = |name: &String| {
        let set = config.backend_sets.get(name);
        set.is_some_and(|set| set.mode == Mode::Nat && set.snat != Snat::Never)
    };
    let mut users = config.listeners.iter().filter(|listener| translates(&listener.backend_set)).peekable();
    match users.peek() {
        Some(_) if !config.lb.snat_addresses.is_empty() => config.lb.snat_addresses.iter().copied().collect(),
        _ => users.map(|listener| listener.address).collect(),
    }
}

/// What is wrong where a SNAT address is one that the host uses for connections of its own (`own`), and takes ports of
/// the same range for them: then the answer to one may be taken for the answer to the other.
pub fn overlap(config: &Config, own: &BTreeSet<IpAddr>, local_ports: (u16, u16)) -> Option<String> {
    let PortRange { first, last } = config.lb.snat_ports;
    let (local_first, local_last) = local_ports;
    if first > local_last || local_first > last {
        return None;
    }
    let address = *snat_addresses(config).intersection(own).next()?;
    let free = [(1024, local_first.saturating_sub(1)), (local_last.saturating_add(1), u16::MAX)];
    let free = free
        .into_iter()
        .filter(|&(first, last)| first < last && !(local_first..=local_last).contains(&first));
    let widest = free.max_by_key(|(first, last)| last - first);
    let remedy = match widest {
        Some((first, last)) => format!("set lb.snat_ports = \"{first}-{last}\", or"),
        None => String::new(),
    };
    Some(format!(
        "the SNAT address {address} is this host's own, and lb.snat_ports ({first}-{last}) overlaps with the ports it \
         takes for its own connections (net.ipv4.ip_local_port_range, {local_first}-{local_last}), so that one may get \
         the other's answers; {remedy} give lb.snat_addresses an address that the host does not use"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(lb: &str) -> Config {
        let source = format!(
            "[lb]\ninterfaces = [\"eth0\"]\n{lb}\n\
             [[listener]]\nname = \"web\"\naddress = \"10.0.1.100\"\nprotocol = \"tcp\"\nport = 80\n\
             backend_set = \"web\"\n\
             [backend_set.web]\n[[backend_set.web.backend]]\naddress = \"10.0.1.10\"\nport = 80\n\
             [backend_set.web.health_check]\nprotocol = \"tcp\"\n"
        );
        crate::config::parse(&source, "test.toml").unwrap_or_else(|report| panic!("{report}")).config
    }

    const LOCAL: (u16, u16) = (32_768, 60_999);

    #[test]
    fn ports_of_an_address_that_the_host_uses_too_are_told_with_a_remedy() {
        let own = BTreeSet::from([IpAddr::from([10, 0, 1, 100])]);
        let problem = overlap(&config(""), &own, LOCAL).unwrap();
        for word in ["10.0.1.100", "1024-65535", "32768-60999", "lb.snat_ports = \"1024-32767\""] {
            assert!(problem.contains(word), "{word}: {problem}");
        }
        let high = overlap(&config(""), &own, (1024, 60_999)).unwrap();
        assert!(high.contains("\"61000-65535\""), "{high}");
        let none = overlap(&config(""), &own, (1024, 65_535)).unwrap();
        assert!(!none.contains("lb.snat_ports ="), "{none}");
    }

    #[test]
    fn apart_they_are_no_problem() {
        let own = BTreeSet::from([IpAddr::from([10, 0, 1, 100])]);
        assert_eq!(overlap(&config("snat_ports = \"1024-32767\""), &own, LOCAL), None);
        assert_eq!(overlap(&config(""), &BTreeSet::new(), LOCAL), None);
        assert_eq!(overlap(&config("snat_addresses = [\"10.0.1.9\"]"), &own, LOCAL), None);
    }
}
