//! The balancer under test: the real program, with listeners and backends of each family.

use anyhow::{Context as _, Result, ensure};
use aya::programs::ProgramFd;
use ipnet::IpNet;
use lb_common::listener::Vip;
use lb_common::{
    Backend, Counters, Drops, Listener, ListenerKey, MaglevTable, NextHop, PROTO_TCP, PROTO_UDP, Settings,
    SourceKey,
};
use lb_userspace::dataplane::maglev::{self, Member};
use lb_userspace::dataplane::maps::Source;
use lb_userspace::dataplane::{Dataplane, LoadOptions};

use crate::packet::{Family, NEIGHBOUR, OWN, Packet, destination_of, source_of};
use crate::service::Service;

/// Enough for a million flows: each has 64,512 ports.
const BACKENDS: u8 = 32;

/// The interface that BPF_PROG_TEST_RUN lets packets come in through: the loopback interface, always number 1.
/// The backends are reached through it as well, so that the verdict is XDP_TX.
const LOOPBACK: u32 = 1;

/// The MAC address of every backend.
const BACKEND_MAC: [u8; 6] = [2, 0, 0, 0, 0, 8];

const FIRST_PORT: u16 = 1024;
const LAST_PORT: u16 = 65_535;

/// The loaded data plane and what it was told.
pub(crate) struct Balancer {
    pub(crate) dataplane: Dataplane,
    /// The Maglev table of each family.
    tables: Vec<Box<MaglevTable>>,
}

impl Balancer {
    /// Loads the program with room for so many flows.
    pub(crate) fn load(max_connections: u32) -> Result<Self> {
        let options = LoadOptions { max_connections, ..LoadOptions::default() };
        let mut dataplane = Dataplane::load(&options)?;
        let settings =
            Settings { snat_port_first: FIRST_PORT, snat_port_last: LAST_PORT, ..dataplane.maps.settings()? };
        dataplane.maps.set_settings(&settings)?;
        let tables = Family::ALL.iter().map(|family| tell(&mut dataplane, *family)).collect::<Result<_>>()?;
        Ok(Self { dataplane, tables })
    }

    /// The program.
    pub(crate) fn program(&mut self) -> Result<ProgramFd> {
        Ok(self.dataplane.program()?.fd()?.try_clone()?)
    }

    /// What a listener has counted.
    pub(crate) fn counters(&self, family: Family, service: Service) -> Result<Counters> {
        self.dataplane.maps.tally().listener(listener_id(family, service))
    }

    /// What a listener has dropped or noted, and why.
    pub(crate) fn drops(&self, family: Family, service: Service) -> Result<Drops> {
        self.dataplane.maps.drops(Some(listener_id(family, service)))
    }

    /// What has to come out of the balancer when this packet of a client goes in. The SNAT port is the
    /// balancer's choice, so that is taken from the output, if it is one that may be chosen.
    pub(crate) fn to_backend(&self, input: &Packet, output: &[u8], service: Service) -> Result<Packet> {
        let family = input.family();
        let id = self.tables[family as usize][input.slot(Listener::FIVE_TUPLE)].into();
        let mut expected = *input;
        if service.translates_source() {
            let port = source_of(output, family)?.port();
            let is_ours = Service::ALL.iter().any(|service| service.port() == port);
            ensure!((FIRST_PORT..=LAST_PORT).contains(&port) && !is_ours, "SNAT port {port}");
            expected.source = (family.vip(service).ip(), port).into();
        }
        expected.from = OWN;
        expected.to = BACKEND_MAC;
        expected.destination =
            family.backend(number(family, id).context("the table holds an unknown backend")?);
        expected.ttl -= 1;
        Ok(expected)
    }

    /// What has to come out of the balancer when this answer of a backend goes in. The flow it belongs to is
    /// flow 0.
    pub(crate) fn to_client(input: &Packet, service: Service) -> Packet {
        let mut expected = *input;
        (expected.from, expected.to) = (OWN, NEIGHBOUR);
        expected.source = input.family().vip(service);
        expected.destination = input.family().client(service);
        expected.ttl -= 1;
        expected
    }

    /// The packet with which a backend answers the one that came out to it.
    pub(crate) fn answer(input: &Packet, output: &[u8]) -> Result<Packet> {
        let family = input.family();
        Ok(Packet::new(destination_of(output, family)?, source_of(output, family)?, input.payload))
    }
}

/// Writes the listeners and the backends of a family into the maps; returns the Maglev table.
fn tell(dataplane: &mut Dataplane, family: Family) -> Result<Box<MaglevTable>> {
    let set = family as u32;
    dataplane.maps.set_vip(&family.vip(Service::Always).ip().into(), Vip::LISTENS)?;
    for service in Service::ALL {
        let id = listener_id(family, service);
        let flags = if service == Service::Denying { Listener::SOURCE_RULES } else { 0 };
        // The times are those of a configuration that names none.
        let (tcp_idle_timeout_s, udp_idle_timeout_s) = (360, 120);
        let listener = Listener {
            id,
            set,
            snat: service.snat(),
            flags,
            tcp_idle_timeout_s,
            udp_idle_timeout_s,
            ..Listener::default()
        };
        for protocol in [PROTO_TCP, PROTO_UDP] {
            let vip = family.vip(service);
            let key = ListenerKey { address: vip.ip().into(), port: vip.port(), protocol, _pad: 0 };
            dataplane.maps.set_listener(&key, &listener)?;
        }
    }
    let (clients, length) = family.clients();
    let denied =
        Source { listener: listener_id(family, Service::Denying), prefix: IpNet::new(clients, length)? };
    dataplane.maps.set_source_rule(denied, SourceKey::DENY)?;
    let mut members = Vec::new();
    for number in 1..=BACKENDS {
        let (id, address) = (id(family, number), family.backend(number));
        let backend = Backend {
            address: address.ip().into(),
            port: address.port(),
            flags: Backend::IN_USE | Backend::IN_ROTATION,
            set,
            next_hop: NextHop { ifindex: LOOPBACK, peer: BACKEND_MAC, local: OWN },
            ..Backend::default()
        };
        dataplane.maps.set_backend(id, &backend)?;
        members.push(Member { address, id, weight: 1 });
    }
    dataplane.maps.set_tables(&[(set, &members)])?;
    Ok(maglev::build(&members))
}

/// The id of a family's listener.
const fn listener_id(family: Family, service: Service) -> u32 {
    family as u32 * Service::ALL.len() as u32 + service as u32
}

/// The id of a family's backend.
fn id(family: Family, number: u8) -> u32 {
    family as u32 * u32::from(BACKENDS) + u32::from(number)
}

/// The backend of a family with this id.
fn number(family: Family, id: u32) -> Option<u8> {
    (1..=BACKENDS).find(|number| self::id(family, *number) == id)
}
