//! Values that a case names without knowing them, like the port that translation chooses: `$port` is bound where
//! it first appears in an expected packet, and must be the same ever after.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, bail};

use super::{Family, Network};

/// What symbols stand for, so far.
#[derive(Clone, Debug, Default)]
pub struct Symbols {
    addresses: BTreeMap<String, IpAddr>,
    ports: BTreeMap<String, u16>,
}

/// Where to look up what the parts of an endpoint mean.
#[derive(Clone, Copy, Debug)]
pub struct Scope<'a> {
    /// Hosts.
    pub network: &'a Network,
    /// Which of their addresses.
    pub family: Family,
    /// Number of this packet among those of its step, from 0.
    pub number: u16,
}

/// An endpoint as a case writes it: `client:40000`, `vip:$port`, `$backend:8080`, `10.0.0.1:80`, `[2001:db8::1]:80`.
/// A `+` at the end of a part counts with the packets of a step: `40000+` is 40000, 40001 ..., and `$port+` is a
/// symbol of its own for each.
impl Symbols {
    /// The endpoint of a packet that is sent: everything must be known.
    ///
    /// # Errors
    ///
    /// If a symbol is not bound yet, or the text is no endpoint.
    pub fn endpoint(&self, text: &str, scope: Scope<'_>) -> Result<SocketAddr> {
        let (host, port) = split(text)?;
        let address = match symbol(host, scope) {
            Some(symbol) => *self.addresses.get(&symbol).with_context(|| unbound(&symbol))?,
            None => scope.network.address(host, scope.family)?,
        };
        let port = match symbol(port, scope) {
            Some(symbol) => *self.ports.get(&symbol).with_context(|| unbound(&symbol))?,
            None => number(port, scope)?,
        };
        Ok(SocketAddr::new(address, port))
    }

    /// The endpoint of a packet that is expected: symbols without a value are bound to what is `found`. Whether
    /// there were such is told for address and port.
    ///
    /// # Errors
    ///
    /// If the text is no endpoint.
    pub fn bind(&mut self, text: &str, scope: Scope<'_>, found: SocketAddr) -> Result<SocketAddr> {
        let (host, port) = split(text)?;
        if let Some(symbol) = symbol(host, scope) {
            self.addresses.entry(symbol).or_insert(found.ip());
        }
        if let Some(symbol) = symbol(port, scope) {
            self.ports.entry(symbol).or_insert(found.port());
        }
        self.endpoint(text, scope)
    }
}

fn unbound(symbol: &str) -> String {
    format!("`{symbol}` is used before an expected packet has shown what it is")
}

/// Host and port; what has no ports, like an echo request, goes without.
fn split(text: &str) -> Result<(&str, &str)> {
    anyhow::ensure!(!text.is_empty(), "a packet needs `src` and `dst`");
    Ok(text.rsplit_once(':').filter(|_| !text.ends_with(']')).unwrap_or((text, "0")))
}

/// The symbol that a part names, if it does: one for each packet where it ends in `+`.
fn symbol(part: &str, scope: Scope<'_>) -> Option<String> {
    let name = part.strip_prefix('$')?;
    Some(match name.strip_suffix('+') {
        Some(name) => format!("${name}[{}]", scope.number),
        None => format!("${name}"),
    })
}

fn number(part: &str, scope: Scope<'_>) -> Result<u16> {
    let (digits, more) = match part.strip_suffix('+') {
        Some(digits) => (digits, scope.number),
        None => (part, 0),
    };
    match digits.parse::<u16>().ok().and_then(|port| port.checked_add(more)) {
        Some(port) => Ok(port),
        None => bail!("expected a port, `40000+` or `$port`, found `{part}`"),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn symbols_are_bound_once_and_count_along() {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/packets"));
        let network = Network::read(folder).unwrap();
        let scope = |number| Scope { network: &network, family: Family::V4, number };
        let found = |port| SocketAddr::from(([10, 0, 1, 100], port));
        let mut symbols = Symbols::default();
        assert!(symbols.endpoint("vip:$port", scope(0)).is_err(), "nothing has shown its value");
        assert_eq!(symbols.bind("vip:$port", scope(0), found(7)).unwrap(), found(7));
        assert_eq!(symbols.bind("vip:$port", scope(0), found(8)).unwrap(), found(7));
        assert_eq!(symbols.bind("vip:$each+", scope(0), found(1)).unwrap(), found(1));
        assert_eq!(symbols.bind("$host:$each+", scope(1), found(2)).unwrap(), found(2));
        assert_eq!(symbols.endpoint("$host:$each+", scope(0)).unwrap(), found(1));
        assert_eq!(symbols.endpoint("vip:40000+", scope(3)).unwrap(), found(40003));
        assert_eq!(symbols.endpoint("[::1]:80", scope(0)).unwrap(), "[::1]:80".parse().unwrap());
        assert!(symbols.endpoint("nobody:80", scope(0)).is_err());
        assert!(symbols.endpoint("vip:http", scope(0)).is_err());
    }
}
