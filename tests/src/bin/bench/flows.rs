//! Taking flows away again that were made while they were measured, so that the next round finds what this one found.

use std::net::IpAddr;

use anyhow::{Result, bail};
use lb_common::{Addr4, Addr6};
use lb_tests::flow_tables::FlowTables;

use crate::balancer::Balancer;
use crate::packet::{Family, Packet};

/// What holds the flows of both families.
pub(crate) struct Flows {
    v4: FlowTables<Addr4>,
    v6: FlowTables<Addr6>,
}

impl Flows {
    /// Those of a balancer.
    pub(crate) fn of(balancer: &mut Balancer) -> Result<Self> {
        let ebpf = balancer.dataplane.ebpf();
        Ok(Self { v4: FlowTables::of(ebpf)?, v6: FlowTables::of(ebpf)? })
    }

    /// Slots in the ring of a CPU.
    pub(crate) fn ring(&self) -> Result<u32> {
        self.v4.half_open_room()
    }

    /// Makes the rings of a family as if no flow had ever been opened.
    pub(crate) fn empty_rings(&mut self, family: Family) -> Result<()> {
        match family {
            Family::V4 => self.v4.empty_rings(),
            Family::V6 => self.v6.empty_rings(),
        }
    }

    /// Makes all half-open flows of a family as if their backends had answered, which promotes them: what has not been answered
    /// gives way to others.
    pub(crate) fn answer(&mut self, family: Family) -> Result<()> {
        match family {
            Family::V4 => self.v4.answer(),
            Family::V6 => self.v6.answer(),
        }
    }

    /// Removes those of so many flows of a packet that are there.
    pub(crate) fn remove(&mut self, packet: &Packet, flows: u32) -> Result<()> {
        for packet in (0..flows).map(|flow| packet.of_flow(flow)) {
            match (packet.source.ip(), packet.destination.ip()) {
                (IpAddr::V4(source), IpAddr::V4(destination)) => {
                    self.v4.remove(&packet.key(source.into(), destination.into()))?;
                }
                (IpAddr::V6(source), IpAddr::V6(destination)) => {
                    self.v6.remove(&packet.key(source.into(), destination.into()))?;
                }
                mixed => bail!("addresses of two families in one packet: {mixed:?}"),
            }
        }
        Ok(())
    }
}
