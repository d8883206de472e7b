//! `[[listener]]`.

use ipnet::IpNet;

use super::facts::ListenerFacts;
use super::problem::{Problem, one_of};
use super::reader::{Table, Value};
use super::scalar;
use super::schema::{Listener, OnUntrackedTcp, PortRange, Protocol, Word};

/// What `port` and `ports` may hold.
const PORTS: &str = "a port from 1 to 65535, 0 for every port, or ports = \"first-last\"";

/// Reads the listener at `index`.
pub(super) fn read<'d>(index: usize, mut table: Table<'_, 'd>) -> (ListenerFacts<'d>, Option<Listener>) {
    let name =
        table.required("name", "a name that no other listener has", |value| value.parsed(scalar::name));
    let address =
        table.required("address", "a unicast IPv4 or IPv6 address", |value| value.parsed(scalar::unicast));
    let protocol =
        table
            .required("protocol", one_of(Protocol::ALL.iter().map(|p| p.word()), "\""), |value| value.word());
    let ports = ports(&mut table);
    let backend_set = table.required("backend_set", "the name of a [backend_set.NAME]", Value::text);
    let tcp_idle_timeout_s = table.optional("tcp_idle_timeout_s", 360, |value| value.integer(10..=86_400));
    let udp_idle_timeout_s = table.optional("udp_idle_timeout_s", 120, |value| value.integer(5..=86_400));
    let tcp_reset_on_idle = table.flag("tcp_reset_on_idle", false);
    let on_untracked_tcp = table.optional_word("on_untracked_tcp", OnUntrackedTcp::Pickup);
    let allow_sources = table.optional("allow_sources", Vec::new(), networks);
    let deny_sources = table.optional("deny_sources", Vec::new(), networks);
    let max_new_flows_per_s = table.optional("max_new_flows_per_s", 0, |value| value.integer(0..=u32::MAX));
    table.finish();

    let facts = ListenerFacts {
        index,
        name: name.clone(),
        address,
        protocol,
        ports,
        backend_set,
        allow_sources: allow_sources.clone(),
        deny_sources: deny_sources.clone(),
    };
    let listener = || {
        Some(Listener {
            name: name?,
            address: address?,
            protocol: protocol?,
            ports: ports?,
            backend_set: backend_set?.to_owned(),
            tcp_idle_timeout_s: tcp_idle_timeout_s?,
            udp_idle_timeout_s: udp_idle_timeout_s?,
            tcp_reset_on_idle: tcp_reset_on_idle?,
            on_untracked_tcp: on_untracked_tcp?,
            allow_sources: allow_sources?,
            deny_sources: deny_sources?,
            max_new_flows_per_s: max_new_flows_per_s?,
        })
    };
    (facts, listener())
}

/// `port` or `ports`, exactly one of the two.
fn ports(table: &mut Table<'_, '_>) -> Option<PortRange> {
    match (table.get("port"), table.get("ports")) {
        (Some(port), None) => port_or_range(&port),
        (None, Some(ports)) => ports.parsed(scalar::port_range),
        (Some(port), Some(ports)) => {
            port_or_range(&port);
            ports.parsed(scalar::port_range);
            ports.refuse(Problem::new("`port` stands here too").allowed("exactly one of `port` and `ports`"))
        }
        (None, None) => table.missing("port", PORTS),
    }
}

fn port_or_range(value: &Value<'_, '_>) -> Option<PortRange> {
    if let Some(text) = value.as_text()
        && scalar::port_range(text).is_ok()
    {
        let problem = Problem::new("a range of ports").allowed(PORTS);
        return value.refuse(problem.suggest(format!("ports = \"{text}\"")));
    }
    match value.integer::<u16>(0..=u16::MAX)? {
        0 => Some(PortRange::EVERY),
        port => Some(PortRange { first: port, last: port }),
    }
}

fn networks(value: &Value<'_, '_>) -> Option<Vec<IpNet>> {
    value.list(|element| element.parsed(scalar::network))
}
