//! Taking flows away again that were made while they were measured, so that the next round finds what this one found.

use std::net::IpAddr;

use anyhow::{Context as _, Result, bail};
use aya::Pod;
use aya::maps::{HashMap, Map, MapData, MapError, PerCpuArray, PerCpuValues};
use aya::programs::Xdp;
use lb_common::{Addr4, Addr6, Address, Flow, FlowKey, HalfOpen};
use lb_tests::plane_maps::map_of;

use crate::balancer::Balancer;
use crate::packet::{Family, Packet};

/// What holds the flows of both families.
pub(crate) struct Flows {
    v4: Tables<Addr4>,
    v6: Tables<Addr6>,
}

/// A connection map, and the ring of half-open flows of each CPU.
struct Tables<A>
where
    FlowKey<A>: Pod,
    Flow<A>: Pod,
    HalfOpen<A>: Pod,
{
    connections: HashMap<MapData, FlowKey<A>, Flow<A>>,
    ring: PerCpuArray<MapData, HalfOpen<A>>,
}

impl Flows {
    /// Those of a balancer.
    pub(crate) fn of(balancer: &mut Balancer) -> Result<Self> {
        Ok(Self {
            v4: Tables::of(balancer, "begin_v4", "connections_v4", "half_open_v4")?,
            v6: Tables::of(balancer, "begin_v6", "connections_v6", "half_open_v6")?,
        })
    }

    /// Slots in the ring of a CPU.
    pub(crate) fn ring(&self) -> u32 {
        self.v4.ring.len()
    }

    /// Makes the rings of a family as if no flow had ever been opened.
    pub(crate) fn empty_rings(&mut self, family: Family) -> Result<()> {
        match family {
            Family::V4 => self.v4.empty_ring(),
            Family::V6 => self.v6.empty_ring(),
        }
    }

    /// Makes all flows of a family as if their backends had answered: what has not been answered gives way to others.
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

impl<A: Address> Tables<A>
where
    FlowKey<A>: Pod,
    Flow<A>: Pod,
    HalfOpen<A>: Pod + Default,
{
    fn of(balancer: &mut Balancer, program: &str, connections: &str, ring: &str) -> Result<Self> {
        let program = balancer.dataplane.ebpf().program_mut(program).context("there is no such program")?;
        let program: &mut Xdp = program.try_into().context("it is no XDP program")?;
        let info = program.info().context("cannot ask about a program")?;
        Ok(Self {
            connections: Map::HashMap(map_of(&info, connections)?).try_into()?,
            ring: Map::PerCpuArray(map_of(&info, ring)?).try_into()?,
        })
    }

    fn empty_ring(&mut self) -> Result<()> {
        let cpus = aya::util::nr_cpus().map_err(|(_, error)| error).context("cannot count the CPUs")?;
        for slot in 0..self.ring.len() {
            let empty = PerCpuValues::try_from(vec![HalfOpen::default(); cpus]);
            let empty = empty.context("cannot lay out a value for each CPU")?;
            self.ring.set(slot, empty, 0).context("cannot empty a ring of half-open flows")?;
        }
        Ok(())
    }

    fn answer(&mut self) -> Result<()> {
        let keys: Vec<FlowKey<A>> = self.connections.keys().collect::<Result<_, _>>()?;
        for key in keys {
            let half = self.connections.get(&key, 0).context("cannot read a connection map")?;
            if half.direction == Flow::<A>::TO_CLIENT {
                let answered = Flow { seen: half.seen | Flow::<A>::ESTABLISHED, ..half };
                self.connections.insert(key, answered, 0).context("cannot write a connection map")?;
            }
        }
        Ok(())
    }

    fn remove(&mut self, key: &FlowKey<A>) -> Result<()> {
        let half = match self.connections.get(key, 0) {
            Ok(half) => half,
            Err(MapError::KeyNotFound) => return Ok(()),
            Err(error) => return Err(error).context("cannot read a connection map"),
        };
        self.connections.remove(key).context("cannot remove a flow")?;
        self.connections.remove(&half.other_half(key.protocol)).context("cannot remove the answers of a flow")
    }
}
