//! `[lb]` and `[api]`.

use std::collections::HashSet;
use std::net::IpAddr;

use super::facts::InstanceFacts;
use super::problem::Problem;
use super::reader::{Table, Value};
use super::scalar;
use super::schema::{Api, Instance, OnExit, PortRange, XdpMode};

/// What `interfaces` may hold.
const INTERFACES: &str = "an array with at least one interface, such as [\"eth0\"]";

/// Reads `[lb]`.
pub(super) fn read(root: &mut Table<'_, '_>) -> (InstanceFacts, Option<Instance>) {
    let Some(value) = root.get("lb") else {
        let problem =
            Problem::new("the required table [lb] with the key `interfaces` is missing").allowed(INTERFACES);
        root.findings().refuse_at(&root.path().then("lb"), problem);
        return (InstanceFacts::default(), None);
    };
    let Some(mut table) = value.table() else { return (InstanceFacts::default(), None) };

    let interfaces = table.required("interfaces", INTERFACES, interfaces);
    let xdp_mode = table.optional_word("xdp_mode", XdpMode::Auto);
    let snat_addresses = table.optional("snat_addresses", Vec::new(), snat_addresses);
    let snat_ports = table.optional("snat_ports", PortRange { first: 1024, last: 65535 }, |value| {
        value.parsed(scalar::port_range)
    });
    let max_connections =
        table.optional("max_connections", 1_048_576, |value| value.integer(1024..=16_777_216));
    let assign_vips = table.flag("assign_vips", true);
    let icmp_echo = table.flag("icmp_echo", true);
    let on_exit = table.optional_word("on_exit", OnExit::Keep);
    table.finish();

    let facts = InstanceFacts { snat_addresses: snat_addresses.clone(), snat_ports };
    let instance = || {
        Some(Instance {
            interfaces: interfaces?,
            xdp_mode: xdp_mode?,
            snat_addresses: snat_addresses?,
            snat_ports: snat_ports?,
            max_connections: max_connections?,
            assign_vips: assign_vips?,
            icmp_echo: icmp_echo?,
            on_exit: on_exit?,
        })
    };
    (facts, instance())
}

fn interfaces(value: &Value<'_, '_>) -> Option<Vec<String>> {
    let mut seen = HashSet::new();
    let interfaces = value.list(|element| {
        let name = element.parsed(scalar::interface)?;
        if !seen.insert(name.clone()) {
            return element.refuse(Problem::new("the same interface twice").allowed("each interface once"));
        }
        Some(name)
    })?;
    if interfaces.is_empty() {
        return value.refuse(Problem::new("no interface").allowed(INTERFACES));
    }
    Some(interfaces)
}

fn snat_addresses(value: &Value<'_, '_>) -> Option<Vec<IpAddr>> {
    let limit = lb_common::MAX_SNAT_ADDRESSES as usize;
    let mut seen = HashSet::new();
    let addresses = value.list(|element| {
        let address = element.parsed(scalar::unicast)?;
        if !seen.insert(address) {
            return element.refuse(Problem::new("the same address twice").allowed("each address once"));
        }
        Some(address)
    })?;
    let v4 = addresses.iter().filter(|address| address.is_ipv4()).count();
    if v4.max(addresses.len() - v4) > limit {
        return value.refuse(
            Problem::new(format!("{v4} IPv4 and {} IPv6 addresses", addresses.len() - v4))
                .allowed(format!("at most {limit} addresses of each family")),
        );
    }
    Some(addresses)
}

/// Reads `[api]`.
pub(super) fn read_api(root: &mut Table<'_, '_>) -> Option<Api> {
    let Some(value) = root.get("api") else { return Some(Api::default()) };
    let mut table = value.table()?;
    let listen = table.optional("listen", None, |value| match value.text()? {
        "" => Some(None),
        text => value.accept(scalar::socket_address(text)).map(Some),
    });
    let token_file = table.optional("token_file", "", Value::text);
    let at_listen = table.path().then("listen");
    let findings = table.findings();
    table.finish();

    let (listen, token_file) = (listen?, token_file?);
    if let Some(address) = listen
        && !address.ip().to_canonical().is_loopback()
        && token_file.is_empty()
    {
        findings.refuse_at(
            &at_listen,
            Problem::new(
                "whoever can reach this address could control the balancer, for `token_file` is empty",
            )
            .allowed("a loopback address, or any address together with `token_file`")
            .suggest(format!("127.0.0.1:{}", address.port())),
        );
        return None;
    }
    let listen = listen.map(|address| address.to_string()).unwrap_or_default();
    Some(Api { listen, token_file: token_file.to_owned() })
}
