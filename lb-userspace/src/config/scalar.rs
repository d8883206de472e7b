//! What the strings of the file mean: addresses, networks, ports, names, bytes.

use std::net::{IpAddr, SocketAddr};

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use ipnet::IpNet;

use super::problem::Problem;
use super::schema::PortRange;

/// Longest name of a listener or a set, in characters.
const MAX_NAME: usize = 64;
/// Longest name of a backend, in characters.
const MAX_BACKEND_NAME: usize = 128;
/// Longest `request_data` and `response_data`, in bytes after decoding.
const MAX_PAYLOAD: usize = 1024;
/// Longest name of a network interface: IFNAMSIZ of linux/if.h less the terminating zero, in bytes.
const MAX_INTERFACE_NAME: usize = 15;

/// Takes base64 with and without padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The name of a listener or of a set.
pub(super) fn name(text: &str) -> Result<String, Problem> {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if (1..=MAX_NAME).contains(&text.len()) && text.chars().all(is_allowed) {
        return Ok(text.to_owned());
    }
    let close: String =
        text.chars().map(|c| if is_allowed(c) { c } else { '-' }).take(MAX_NAME).collect::<String>();
    let problem = Problem::new("not a name")
        .allowed(format!("1 to {MAX_NAME} letters, digits, `-` and `_`, all of ASCII"));
    Err(if close.is_empty() { problem } else { problem.suggest(close) })
}

/// The name of a backend, which also stands in `SET/BACKEND` on the command line.
pub(super) fn backend_name(text: &str) -> Result<String, Problem> {
    let is_allowed = |c: char| !c.is_control() && !c.is_whitespace() && c != '/';
    if (1..=MAX_BACKEND_NAME).contains(&text.chars().count()) && text.chars().all(is_allowed) {
        return Ok(text.to_owned());
    }
    Err(Problem::new("not a name of a backend")
        .allowed(format!("1 to {MAX_BACKEND_NAME} printable characters other than `/` and white space")))
}

/// The name of a network interface, by the kernel's rules (`dev_valid_name` of net/core/dev.c).
pub(super) fn interface(text: &str) -> Result<String, Problem> {
    let is_allowed = |byte: u8| byte != b'/' && byte != b':' && !byte.is_ascii_whitespace() && byte != 0;
    let has_length = (1..=MAX_INTERFACE_NAME).contains(&text.len());
    if has_length && text.bytes().all(is_allowed) && text != "." && text != ".." {
        return Ok(text.to_owned());
    }
    Err(Problem::new("not a name of a network interface").allowed(format!(
        "the name of one interface as `ip link` shows it, 1 to {MAX_INTERFACE_NAME} bytes without `/`, \
         `:` and white space"
    )))
}

/// An address without a prefix length, a port or brackets.
fn address(text: &str) -> Result<IpAddr, Problem> {
    text.parse().map_err(|_| {
        let without_more = text
            .parse::<SocketAddr>()
            .map(|address| address.ip())
            .or_else(|_| text.parse::<IpNet>().map(|network| network.addr()))
            .or_else(|_| text.trim().trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>());
        Problem::new("not an IP address")
            .allowed("an IPv4 or IPv6 address without port and prefix length")
            .suggest_any(without_more.ok().map(|address| address.to_string()))
    })
}

/// An address that a packet on the wire can have as its destination.
pub(super) fn unicast(text: &str) -> Result<IpAddr, Problem> {
    let address = address(text)?;
    let refused = |kind: &str| {
        Err(Problem::new(format!("{kind}, no packet on the wire can be sent to it alone"))
            .allowed("a unicast IPv4 or IPv6 address"))
    };
    match address {
        _ if address.is_unspecified() => refused("the unspecified address"),
        _ if address.is_multicast() => refused("a multicast address"),
        _ if address.is_loopback() => refused("a loopback address"),
        IpAddr::V4(v4) if v4.is_broadcast() => refused("the broadcast address"),
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => Err(Problem::new("an IPv4 address written as an IPv6 one")
                .allowed("IPv4 addresses in dotted notation")
                .suggest(v4.to_string())),
            None => Ok(address),
        },
        IpAddr::V4(_) => Ok(address),
    }
}

/// As [`unicast`], for an address that the controller itself connects to or from.
pub(super) fn reachable(text: &str) -> Result<IpAddr, Problem> {
    match unicast(text)? {
        IpAddr::V6(v6) if v6.is_unicast_link_local() => {
            Err(Problem::new("a link-local address, which means nothing without an interface")
                .allowed("a global or unique local address"))
        }
        address => Ok(address),
    }
}

/// Where the API listens.
pub(super) fn socket_address(text: &str) -> Result<SocketAddr, Problem> {
    let problem =
        || Problem::new("not an address and port").allowed("\"127.0.0.1:9180\", \"[::1]:9180\" or \"\"");
    match text.parse::<SocketAddr>() {
        Ok(address) if address.port() == 0 => Err(problem().allowed("a port from 1 to 65535")),
        Ok(address) => Ok(address),
        Err(_) => {
            let local = text.strip_prefix("localhost:").or_else(|| text.strip_prefix(':'));
            let port = local.unwrap_or(text).parse::<u16>().ok().filter(|port| *port != 0);
            Err(problem().suggest_any(port.map(|port| format!("127.0.0.1:{port}"))))
        }
    }
}

/// A network; a bare address is the network of that address alone.
pub(super) fn network(text: &str) -> Result<IpNet, Problem> {
    let parsed = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    let network = parsed.map_err(|_| {
        Problem::new("not a network")
            .allowed("an IPv4 or IPv6 network such as \"10.0.0.0/8\" or \"fd00::/8\"")
    })?;
    if network.trunc() != network {
        return Err(Problem::new(format!("bits beyond the prefix length {} are set", network.prefix_len()))
            .allowed("a network whose host bits are zero")
            .suggest(network.trunc().to_string()));
    }
    Ok(network)
}

/// `"8000-8100"`.
pub(super) fn port_range(text: &str) -> Result<PortRange, Problem> {
    let problem = |message: &str| {
        Problem::new(message)
            .allowed("a range of ports from 1 to 65535 such as \"8000-8100\", the lower one first")
    };
    let port = |digits: &str| {
        let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        if is_number { digits.parse::<u16>().ok().filter(|port| *port != 0) } else { None }
    };
    match text.split_once('-').map(|(first, last)| (port(first.trim()), port(last.trim()))) {
        Some((Some(first), Some(last))) if first <= last => Ok(PortRange { first, last }),
        Some((Some(first), Some(last))) => {
            Err(problem("the range is reversed").suggest(format!("{last}-{first}")))
        }
        Some(_) => Err(problem("not a range of ports")),
        None => {
            Err(problem("not a range of ports").suggest_any(port(text).map(|port| format!("{port}-{port}"))))
        }
    }
}

/// Bytes written as base64 (RFC 4648, section 4), padded or not.
pub(super) fn base64(text: &str) -> Result<Vec<u8>, Problem> {
    let allowed = format!("base64, padded or not, of at most {MAX_PAYLOAD} bytes");
    let bytes = BASE64
        .decode(text)
        .map_err(|error| Problem::new(format!("not base64: {error}")).allowed(allowed.as_str()))?;
    if bytes.len() > MAX_PAYLOAD {
        return Err(Problem::new(format!("{} bytes long after decoding", bytes.len())).allowed(allowed));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn suggestion<T: std::fmt::Debug>(result: Result<T, Problem>) -> Option<String> {
        result.expect_err("refused").suggestion
    }

    #[test]
    fn names() {
        assert_eq!(name("web-1_A").unwrap(), "web-1_A");
        assert!(name(&"x".repeat(64)).is_ok());
        assert!(name(&"x".repeat(65)).is_err());
        assert!(name("").is_err());
        assert_eq!(suggestion(name("my web.1")), Some("my-web-1".into()));
        for refused in ["a/b", "a b", "a\u{7}b", "", "\u{a0}"] {
            assert!(backend_name(refused).is_err(), "{refused:?}");
        }
        assert!(backend_name("[fd00::1]:80").is_ok());
        assert!(backend_name(&"é".repeat(128)).is_ok());
        assert!(backend_name(&"é".repeat(129)).is_err());
    }

    #[test]
    fn interfaces() {
        for accepted in ["eth0", "eth0.100", "veth-client-arm"] {
            assert!(interface(accepted).is_ok(), "{accepted}");
        }
        for refused in ["", ".", "..", "a/b", "a b", "eth0:1", "sixteen-bytes-it"] {
            assert!(interface(refused).is_err(), "{refused}");
        }
    }

    #[test]
    fn addresses() {
        for accepted in ["10.0.1.100", "fd00::1", "240.0.0.1", "169.254.1.1", "fe80::1"] {
            assert!(unicast(accepted).is_ok(), "{accepted}");
        }
        for refused in [
            "0.0.0.0",
            "::",
            "224.0.0.1",
            "ff02::1",
            "127.0.0.1",
            "::1",
            "255.255.255.255",
            "::ffff:10.0.0.1",
            "web",
            "010.0.0.1",
            "",
        ] {
            assert!(unicast(refused).is_err(), "{refused}");
        }
        assert!(reachable("fe80::1").is_err());
        assert_eq!(suggestion(unicast("10.0.1.100/24")), Some("10.0.1.100".into()));
        assert_eq!(suggestion(unicast("10.0.1.100:80")), Some("10.0.1.100".into()));
        assert_eq!(suggestion(unicast("[fd00::1]")), Some("fd00::1".into()));
        assert_eq!(suggestion(unicast("::ffff:10.0.0.1")), Some("10.0.0.1".into()));
    }

    #[test]
    fn socket_addresses() {
        assert!(socket_address("127.0.0.1:9180").is_ok());
        assert!(socket_address("[::1]:9180").is_ok());
        assert!(socket_address("127.0.0.1:0").is_err());
        assert!(socket_address("127.0.0.1").is_err());
        for short in ["localhost:9180", ":9180", "9180"] {
            assert_eq!(suggestion(socket_address(short)), Some("127.0.0.1:9180".into()), "{short}");
        }
    }

    #[test]
    fn networks() {
        assert_eq!(network("10.0.0.0/8").unwrap().to_string(), "10.0.0.0/8");
        assert_eq!(network("10.1.2.3").unwrap().to_string(), "10.1.2.3/32");
        assert_eq!(network("fd00::1").unwrap().to_string(), "fd00::1/128");
        assert_eq!(suggestion(network("10.0.1.7/24")), Some("10.0.1.0/24".into()));
        assert_eq!(suggestion(network("fd00::1/64")), Some("fd00::/64".into()));
        assert!(network("10.0.0.0/33").is_err());
    }

    #[test]
    fn port_ranges() {
        assert_eq!(port_range("8000-8100").unwrap(), PortRange { first: 8000, last: 8100 });
        assert_eq!(port_range("80-80").unwrap(), PortRange { first: 80, last: 80 });
        assert_eq!(suggestion(port_range("9-1")), Some("1-9".into()));
        assert_eq!(suggestion(port_range("80")), Some("80-80".into()));
        for refused in ["", "-", "1-", "-1", "0-10", "1-65536", "+1-+9", "1-2-3", "a-b", "1..2"] {
            assert!(port_range(refused).is_err(), "{refused}");
        }
    }

    #[test]
    fn base64_with_and_without_padding() {
        assert_eq!(base64("UElORw==").unwrap(), b"PING");
        assert_eq!(base64("UElORw").unwrap(), b"PING");
        assert_eq!(base64("").unwrap(), b"");
        assert!(base64("UElO Rw").is_err());
        assert!(base64("UElOR").is_err());
        assert_eq!(base64(&BASE64.encode([7; 1024])).unwrap().len(), 1024);
        assert!(base64(&BASE64.encode([7; 1025])).is_err());
    }
}
