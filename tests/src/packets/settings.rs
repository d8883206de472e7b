//! From the configuration of a case, which is that of `lb` with hosts' names for addresses, to the one that the
//! controller reads. What a packet case does not care about is filled in here, so that it need not be written.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result, anyhow};
use lb_userspace::config::{self, Config};
use toml::{Table, Value};

use super::{Family, Network};

/// Reads a configuration with the controller's own parser.
///
/// # Errors
///
/// If a name is unknown, or the parser refuses what stands there.
pub fn parse(table: &Table, network: &Network, family: Family) -> Result<Config> {
    let mut table = table.clone();
    fill_in(&mut table);
    resolve(&mut table, network, family)?;
    let text = toml::to_string(&table)?;
    let loaded = config::parse(&text, "configuration of the case")
        .map_err(|report| anyhow!("{report}\nin this configuration:\n{text}"))?;
    Ok(loaded.config)
}

/// Changes a configuration: tables are merged, elements of an array of tables by their `name`; `remove = true` in
/// an element takes it out. Any other value replaces.
pub fn merge(table: &mut Table, change: &Table) {
    for (key, new) in change {
        match (table.get_mut(key), new) {
            (Some(Value::Table(old)), Value::Table(new)) => merge(old, new),
            (Some(Value::Array(old)), Value::Array(new)) if new.iter().any(Value::is_table) => {
                merge_elements(old, new);
            }
            _ => {
                table.insert(key.clone(), new.clone());
            }
        }
    }
}

fn merge_elements(old: &mut Vec<Value>, new: &[Value]) {
    for change in new {
        let Value::Table(change) = change else { continue };
        let is_meant = |element: &Value| name(element).is_some_and(|found| change.get("name") == Some(found));
        match old.iter().position(is_meant) {
            Some(index) if change.get("remove") == Some(&Value::Boolean(true)) => {
                old.remove(index);
            }
            Some(index) => {
                if let Some(element) = old[index].as_table_mut() {
                    merge(element, change);
                }
            }
            None => old.push(Value::Table(change.clone())),
        }
    }
}

/// The name of an element: that of a backend is the host's where none is given.
fn name(element: &Value) -> Option<&Value> {
    element.get("name").or_else(|| element.get("address"))
}

/// Adds what the controller requires and packets do not care about, with small connection maps.
fn fill_in(table: &mut Table) {
    let lb = table.entry("lb").or_insert_with(|| Table::new().into());
    if let Value::Table(lb) = lb {
        lb.entry("interfaces").or_insert_with(|| vec!["front"].into());
        lb.entry("max_connections").or_insert(Value::Integer(1024));
    }
    let Some(Value::Table(sets)) = table.get_mut("backend_set") else { return };
    for set in sets.iter_mut().filter_map(|(_, set)| set.as_table_mut()) {
        let check = Table::from_iter([
            ("protocol".to_owned(), Value::from("tcp")),
            ("port".to_owned(), Value::from(1)),
        ]);
        set.entry("health_check").or_insert(check.into());
        let Some(Value::Array(backends)) = set.get_mut("backend") else { continue };
        for backend in backends.iter_mut().filter_map(Value::as_table_mut) {
            if let Some(address) = backend.get("address").cloned() {
                backend.entry("name").or_insert(address);
            }
        }
    }
}

/// Writes addresses for names.
fn resolve(table: &mut Table, network: &Network, family: Family) -> Result<()> {
    for (key, value) in table.iter_mut() {
        match value {
            Value::String(name) if key == "address" => *name = network.address(name, family)?.to_string(),
            Value::Array(names) if key == "snat_addresses" => {
                for name in names.iter_mut() {
                    let address = network.address(name.as_str().unwrap_or_default(), family)?;
                    *name = address.to_string().into();
                }
            }
            Value::Array(networks) if key == "allow_sources" || key == "deny_sources" => {
                for value in networks.iter_mut() {
                    *value = source(value.as_str().unwrap_or_default(), network, family)?.into();
                }
            }
            Value::Table(table) => resolve(table, network, family)?,
            Value::Array(elements) => {
                for element in elements.iter_mut().filter_map(Value::as_table_mut) {
                    resolve(element, network, family)?;
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// The network that `host/24/64` stands for: a host's address with as many bits of it as are said for the family.
fn source(text: &str, network: &Network, family: Family) -> Result<String> {
    let parts: Vec<&str> = text.split('/').collect();
    let [name, v4, v6] = parts[..] else { return Ok(text.to_owned()) };
    let length = if family == Family::V4 { v4 } else { v6 };
    let bits: u32 = length.parse().with_context(|| format!("expected a prefix length in `{text}`"))?;
    let address = match network.address(name, family)? {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - bits).unwrap_or_default();
            IpAddr::from(Ipv4Addr::from_bits(v4.to_bits() & mask))
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - bits).unwrap_or_default();
            IpAddr::from(Ipv6Addr::from_bits(v6.to_bits() & mask))
        }
    };
    Ok(format!("{address}/{length}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_merges_elements_by_name() {
        let mut table: Table = toml::from_str(
            "lb.max_connections = 1024\n\
             [[set.backend]]\naddress = \"alpha\"\nport = 1\n\
             [[set.backend]]\nname = \"b\"\naddress = \"beta\"\nport = 2\n",
        )
        .unwrap();
        let change = toml::from_str(
            "lb.snat_ports = \"1-2\"\n\
             set.backend = [{ name = \"alpha\", port = 3 }, { name = \"b\", remove = true }, { name = \"c\" }]",
        )
        .unwrap();
        merge(&mut table, &change);
        let expected: Table = toml::from_str(
            "lb = { max_connections = 1024, snat_ports = \"1-2\" }\n\
             set.backend = [{ name = \"alpha\", address = \"alpha\", port = 3 }, { name = \"c\" }]",
        )
        .unwrap();
        assert_eq!(table, expected);
    }
}
