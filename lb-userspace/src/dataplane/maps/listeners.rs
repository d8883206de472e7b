//! Listeners: those of one port, those of many, who may use them, and the addresses they have.

use std::net::{IpAddr, Ipv6Addr};

use anyhow::{Context, Result};
use aya::maps::MapError;
use aya::maps::lpm_trie::Key;
use ipnet::IpNet;
use lb_common::listener::Vip;
use lb_common::{Addr6, Listener, ListenerKey, RangeKey, SourceKey};

use super::Maps;
use crate::config::PortPrefix;

/// The address bits that stand before an IPv4 address in its IPv4-mapped form.
const BITS_BEFORE_IPV4: u8 = 96;

/// A key of the map `listener_ranges`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Range {
    /// The VIP.
    pub address: IpAddr,
    /// Destination ports.
    pub ports: PortPrefix,
    /// IP protocol number.
    pub protocol: u8,
}

impl From<Range> for Key<RangeKey> {
    fn from(Range { address, ports, protocol }: Range) -> Self {
        let data = RangeKey { address: address.into(), protocol, _zero: 0, port: ports.port.to_be_bytes() };
        Self::new(RangeKey::BITS_BEFORE_PORT + u32::from(ports.bits), data)
    }
}

impl From<Key<RangeKey>> for Range {
    fn from(key: Key<RangeKey>) -> Self {
        let RangeKey { address, protocol, port, .. } = key.data();
        let bits = key.prefix_len().saturating_sub(RangeKey::BITS_BEFORE_PORT) as u8;
        let ports = PortPrefix { port: u16::from_be_bytes(port), bits };
        Self { address: address.into(), ports, protocol }
    }
}

/// A key of the map `source_rules`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Source {
    /// Id of the listener.
    pub listener: u32,
    /// Who opens flows.
    pub prefix: IpNet,
}

impl From<Source> for Key<SourceKey> {
    fn from(Source { listener, prefix }: Source) -> Self {
        let before = if prefix.addr().is_ipv4() { BITS_BEFORE_IPV4 } else { 0 };
        let bits = SourceKey::BITS_BEFORE_ADDRESS + u32::from(before + prefix.prefix_len());
        Self::new(bits, SourceKey { listener, address: prefix.network().into() })
    }
}

impl From<Key<SourceKey>> for Source {
    fn from(key: Key<SourceKey>) -> Self {
        let SourceKey { listener, address } = key.data();
        let bits = key.prefix_len().saturating_sub(SourceKey::BITS_BEFORE_ADDRESS).min(128) as u8;
        let prefix = match IpAddr::from(address) {
            IpAddr::V4(v4) if bits >= BITS_BEFORE_IPV4 => {
                IpNet::new_assert(v4.into(), bits - BITS_BEFORE_IPV4)
            }
            _ => IpNet::new_assert(Ipv6Addr::from(address.bytes).into(), bits),
        };
        Self { listener, prefix }
    }
}

impl Maps {
    /// All listeners in the map.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    pub fn listeners(&self) -> Result<Vec<(ListenerKey, Listener)>> {
        self.listeners.iter().collect::<Result<_, _>>().context("cannot read the map `listeners`")
    }

    /// Adds or replaces a listener.
    ///
    /// # Errors
    ///
    /// If the map is full.
    pub fn set_listener(&mut self, key: &ListenerKey, listener: &Listener) -> Result<()> {
        self.note_port(key.port)?;
        self.listeners.insert(key, listener, 0).context("cannot write the map `listeners`")
    }

    /// Removes a listener.
    ///
    /// # Errors
    ///
    /// If it is not there.
    pub fn remove_listener(&mut self, key: &ListenerKey) -> Result<()> {
        self.listeners.remove(key).context("cannot remove a listener from the map `listeners`")
    }

    /// Listeners that are gone and whose flows may go on: their ids, and the lowest key of each.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    pub fn gone_listeners(&self) -> Result<Vec<(u32, ListenerKey)>> {
        self.gone_listeners.iter().collect::<Result<_, _>>().context("cannot read the map `gone_listeners`")
    }

    /// Notes for a later controller that a listener goes.
    ///
    /// # Errors
    ///
    /// If the map is full.
    pub fn add_gone_listener(&mut self, id: u32, key: &ListenerKey) -> Result<()> {
        self.gone_listeners.insert(id, key, 0).context("cannot write the map `gone_listeners`")
    }

    /// Forgets a listener that went: it has no flows any more, or it has come back.
    ///
    /// # Errors
    ///
    /// If it is not there.
    pub fn remove_gone_listener(&mut self, id: u32) -> Result<()> {
        self.gone_listeners.remove(&id).context("cannot remove a listener from the map `gone_listeners`")
    }

    /// All listeners of many ports.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    pub fn ranges(&self) -> Result<Vec<(Range, Listener)>> {
        let all = self.listener_ranges.iter().map(|entry| entry.map(|(key, value)| (key.into(), value)));
        all.collect::<Result<_, _>>().context("cannot read the map `listener_ranges`")
    }

    /// Adds or replaces ports of a listener.
    ///
    /// # Errors
    ///
    /// If the map is full.
    pub fn set_range(&mut self, range: Range, listener: &Listener) -> Result<()> {
        self.note_ports(range.ports)?;
        self.listener_ranges
            .insert(&range.into(), listener, 0)
            .context("cannot write the map `listener_ranges`")
    }

    /// Removes ports of a listener.
    ///
    /// # Errors
    ///
    /// If they are not there.
    pub fn remove_range(&mut self, range: Range) -> Result<()> {
        self.listener_ranges
            .remove(&range.into())
            .context("cannot remove ports from the map `listener_ranges`")
    }

    /// All rules of who may open flows: [`SourceKey::ALLOW`] or [`SourceKey::DENY`].
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    pub fn source_rules(&self) -> Result<Vec<(Source, u32)>> {
        let all = self.source_rules.iter().map(|entry| entry.map(|(key, value)| (key.into(), value)));
        all.collect::<Result<_, _>>().context("cannot read the map `source_rules`")
    }

    /// Adds or replaces a rule.
    ///
    /// # Errors
    ///
    /// If the map is full.
    pub fn set_source_rule(&mut self, source: Source, verdict: u32) -> Result<()> {
        self.source_rules.insert(&source.into(), verdict, 0).context("cannot write the map `source_rules`")
    }

    /// Removes a rule.
    ///
    /// # Errors
    ///
    /// If it is not there.
    pub fn remove_source_rule(&mut self, source: Source) -> Result<()> {
        self.source_rules.remove(&source.into()).context("cannot remove a prefix from the map `source_rules`")
    }

    /// All VIPs in the map, with the bits of [`Vip::LISTENS`] and so on.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    pub fn vips(&self) -> Result<Vec<(Addr6, u32)>> {
        let all = self.vips.iter().map(|entry| entry.map(|(address, vip)| (address, vip.flags)));
        all.collect::<Result<_, _>>().context("cannot read the map `vips`")
    }

    /// Adds a VIP or changes its flags; what it has counted stays, but for what is counted at this very moment.
    ///
    /// # Errors
    ///
    /// If the map is full.
    pub fn set_vip(&mut self, address: &Addr6, flags: u32) -> Result<()> {
        let known = match self.vips.get(address, 0) {
            Ok(vip) => vip,
            Err(MapError::KeyNotFound) => Vip::default(),
            Err(error) => return Err(error).context("cannot read the map `vips`"),
        };
        self.note_address(address)?;
        self.vips.insert(address, Vip { flags, ..known }, 0).context("cannot write the map `vips`")
    }

    /// Removes a VIP.
    ///
    /// # Errors
    ///
    /// If it is not there.
    pub fn remove_vip(&mut self, address: &Addr6) -> Result<()> {
        self.vips.remove(address).context("cannot remove a VIP from the map `vips`")
    }

    /// What came to VIPs but to no listener: destination and packets.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    pub fn strays(&self) -> Result<Vec<(ListenerKey, u64)>> {
        self.strays.iter().collect::<Result<_, _>>().context("cannot read the map `strays`")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_survive_the_way_into_the_maps_and_back() {
        for (address, port, bits) in [("10.0.1.100", 8000, 10), ("fd00::100", 0, 0), ("10.0.1.100", 443, 16)]
        {
            let ports = PortPrefix { port, bits };
            let range = Range { address: address.parse().unwrap(), ports, protocol: 17 };
            let key = Key::<RangeKey>::from(range);
            assert_eq!(key.prefix_len(), 144 + u32::from(bits));
            assert_eq!(Range::from(key), range);
        }
        for (prefix, bits) in
            [("10.0.0.0/8", 32 + 96 + 8), ("0.0.0.0/0", 32 + 96), ("fd00::/8", 32 + 8), ("::/0", 32)]
        {
            let source = Source { listener: 7, prefix: prefix.parse().unwrap() };
            let key = Key::<SourceKey>::from(source);
            assert_eq!(key.prefix_len(), bits);
            assert_eq!(Source::from(key), source);
        }
    }
}
