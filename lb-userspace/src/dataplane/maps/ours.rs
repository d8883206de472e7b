//! The bits by which the program tells at once what cannot be ours. They are only ever added: flows of an address or port
//! that is gone may still be under way, and a bit too many costs a lookup and nothing else.

use anyhow::{Context, Result};
use aya::maps::{Array, MapData};
use lb_common::{Addr4, Addr6, Address, Bit};

use super::Maps;
use crate::config::PortPrefix;

impl Maps {
    /// Notes everything that stands in the maps: those of an earlier controller may have been without bits.
    pub(in crate::dataplane) fn note_ours(&mut self) -> Result<()> {
        for (address, _) in self.vips()? {
            self.note_address(&address)?;
        }
        for (_, backend) in self.backends()? {
            self.note_address(&backend.address)?;
        }
        for (key, _) in self.listeners()? {
            self.note_port(key.port)?;
        }
        for (range, _) in self.ranges()? {
            self.note_ports(range.ports)?;
        }
        Ok(())
    }

    /// Notes a VIP, a SNAT address or that of a backend. Comes before whatever makes packets ours.
    pub(super) fn note_address(&mut self, address: &Addr6) -> Result<()> {
        let bit = match address.is_ipv4_mapped() {
            true => Bit::of_address(Addr4::narrow(*address)),
            false => Bit::of_address(*address),
        };
        add(&mut self.our_addresses, bit.word(), bit.mask()).context("cannot write the map `our_addresses`")
    }

    /// Notes the port of a listener.
    pub(super) fn note_port(&mut self, port: u16) -> Result<()> {
        self.note_ports(PortPrefix { port, bits: 16 })
    }

    /// Notes the ports of a listener.
    pub(super) fn note_ports(&mut self, ports: PortPrefix) -> Result<()> {
        let PortPrefix { port, bits } = ports;
        let (first, last) =
            (Bit::of_port(port), Bit::of_port(port | u16::MAX.checked_shr(bits.into()).unwrap_or(0)));
        let write = |result: Result<()>| result.context("cannot write the map `listener_ports`");
        if first.word() != last.word() {
            return write(
                (first.word()..=last.word())
                    .try_for_each(|word| add(&mut self.listener_ports, word, u64::MAX)),
            );
        }
        // From the bit of the first to that of the last.
        let mask = last.mask() | (last.mask() - first.mask());
        write(add(&mut self.listener_ports, first.word(), mask))
    }
}

/// Adds bits to a word of a map.
fn add(map: &mut Array<MapData, u64>, word: u32, bits: u64) -> Result<()> {
    let known = map.get(&word, 0)?;
    if known & bits != bits {
        map.set(word, known | bits, 0)?;
    }
    Ok(())
}
