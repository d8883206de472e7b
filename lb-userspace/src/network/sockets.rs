//! Ports that sockets of this host are bound to, from `/proc/net` (proc(5)).

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Error;

/// The tables of bound sockets, and the state in which one of them takes packets of strangers; `None`: in any. Those in
/// that state come first in their table.
const TABLES: [(&str, Option<u8>); 4] = [
    ("/proc/thread-self/net/tcp", Some(LISTEN)),
    ("/proc/thread-self/net/tcp6", Some(LISTEN)),
    ("/proc/thread-self/net/udp", None),
    ("/proc/thread-self/net/udp6", None),
];

/// TCP_LISTEN of the kernel's `include/net/tcp_states.h`.
const LISTEN: u8 = 0x0A;

/// Bytes of a table to ask for: the least that the kernel makes ready.
const AT_A_TIME: usize = 4096;

/// Where the kernel's ports for connections of its own are written down (ip(7)).
const LOCAL_PORT_RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";

/// Ports on which this host, in the network namespace of the calling thread, accepts TCP connections or UDP datagrams
/// to any address, or to one that `concerns`.
///
/// # Errors
///
/// If a table cannot be read. Tables of IPv6 may be missing.
pub fn bound_ports(concerns: impl Fn(IpAddr) -> bool) -> Result<Vec<u16>, Error> {
    let mut ports = Vec::new();
    for (path, state) in TABLES {
        let refused = |error| Error::kernel(format!("read {path}"), error);
        let table = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            table => BufReader::with_capacity(AT_A_TIME, table.map_err(refused)?),
        };
        for line in table.lines().skip(1) {
            let Some(socket) = Socket::of_line(&line.map_err(refused)?) else { continue };
            // What follows are connections, of which there may be a million: the kernel would look for each.
            if state.is_some_and(|state| state != socket.state) {
                break;
            }
            if socket.address.to_canonical().is_unspecified() || concerns(socket.address) {
                ports.push(socket.port);
            }
        }
    }
    Ok(ports)
}

/// The ports that the kernel takes for connections of this host: first and last. `None` if it does not tell.
pub fn local_port_range() -> Option<(u16, u16)> {
    let text = fs::read_to_string(LOCAL_PORT_RANGE).ok()?;
    let mut numbers = text.split_ascii_whitespace().map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(first)), Some(Ok(last))) => Some((first, last)),
        _ => None,
    }
}

/// The local end of a socket, and its state.
#[derive(Debug, PartialEq, Eq)]
struct Socket {
    address: IpAddr,
    port: u16,
    state: u8,
}

impl Socket {
    /// Reads `  0: 0100007F:0277 00000000:0000 0A …`.
    fn of_line(line: &str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace().skip(1);
        let (local, _, state) = (words.next()?, words.next()?, words.next()?);
        let (address, port) = local.split_once(':')?;
        let (port, state) = (u16::from_str_radix(port, 16).ok()?, u8::from_str_radix(state, 16).ok()?);
        Some(Self { address: self::address(address)?, port, state })
    }
}

/// Words of 32 bits that hold bytes in network order, printed as numbers of this machine.
fn address(hex: &str) -> Option<IpAddr> {
    let word = |index: usize| {
        let digits = hex.get(index * 8..index * 8 + 8)?;
        Some(u32::from_str_radix(digits, 16).ok()?.to_ne_bytes())
    };
    match hex.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let mut octets = [0; 16];
            for (index, bytes) in octets.chunks_exact_mut(4).enumerate() {
                bytes.copy_from_slice(&word(index)?);
            }
            Some(Ipv6Addr::from(octets).to_canonical())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, UdpSocket};

    #[cfg(target_endian = "little")]
    #[test]
    fn the_kernels_lines_are_understood() {
        let line = "   0: 0100007F:0277 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0";
        let listening = Socket { address: Ipv4Addr::LOCALHOST.into(), port: 0x277, state: LISTEN };
        assert_eq!(Socket::of_line(line), Some(listening));
        let v6 = "  1: 00000000000000000000000001000000:0035 00000000000000000000000000000000:0000 07 x";
        let bound = Socket { address: Ipv6Addr::LOCALHOST.into(), port: 53, state: 7 };
        assert_eq!(Socket::of_line(v6), Some(bound));
        for broken in ["", "0:", "0: 0100:0035 x 0A", "0: 0100007F x 0A", "0: zz00007F:0035 x 0A"] {
            assert_eq!(Socket::of_line(broken), None, "{broken:?}");
        }
    }

    #[test]
    fn own_sockets_are_found() {
        let any = TcpListener::bind("0.0.0.0:0").unwrap();
        let loopback = UdpSocket::bind("127.0.0.1:0").unwrap();
        let ports = [any.local_addr().unwrap().port(), loopback.local_addr().unwrap().port()];
        let found = bound_ports(|_| false).unwrap();
        assert!(found.contains(&ports[0]), "{ports:?} {found:?}");
        let found = bound_ports(|address| address == Ipv4Addr::LOCALHOST).unwrap();
        assert!(ports.iter().all(|port| found.contains(port)), "{ports:?} {found:?}");
    }

    #[test]
    fn the_kernel_tells_its_ports() {
        let (first, last) = local_port_range().unwrap();
        assert!(first <= last);
    }
}
