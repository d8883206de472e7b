//! Sockets of checks.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};

use super::Attempt;
use super::failure::{Failure, Waiting};

/// A TCP connection to the target of the attempt, from its source address.
pub(super) async fn tcp(attempt: &mut Attempt<'_>) -> Result<TcpStream, Failure> {
    let target = attempt.spec.target;
    let socket = if target.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    let socket = socket.map_err(|error| Failure::os("socket", &error))?;
    if let Some(source) = attempt.spec.source_address {
        // Else every check would take one port of the whole host instead of one towards its target.
        setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)
            .map_err(|errno| Failure::Os { syscall: "bind", errno })?;
        socket.bind(SocketAddr::new(source, 0)).map_err(|error| Failure::os("bind", &error))?;
    }
    let stream = attempt
        .within(Waiting::Connection, socket.connect(target))
        .await?
        .map_err(|error| Failure::os("connect", &error))?;
    attempt.source = stream.local_addr().ok().map(|local| local.ip());
    Ok(stream)
}

/// A UDP socket that hears only the target of the attempt, and the ICMP errors about it.
pub(super) async fn udp(attempt: &mut Attempt<'_>) -> Result<UdpSocket, Failure> {
    let target = attempt.spec.target;
    let socket = UdpSocket::bind(SocketAddr::new(source_or_any(target, attempt.spec.source_address), 0))
        .await
        .map_err(|error| Failure::os("bind", &error))?;
    // Without it the kernel keeps "host unreachable" from a router, and from itself, to itself.
    let all_errors = match target {
        SocketAddr::V4(_) => setsockopt(&socket, sockopt::Ipv4RecvErr, &true),
        SocketAddr::V6(_) => setsockopt(&socket, sockopt::Ipv6RecvErr, &true),
    };
    all_errors.map_err(|errno| Failure::Os { syscall: "socket", errno })?;
    socket.connect(target).await.map_err(|error| Failure::os("connect", &error))?;
    attempt.source = socket.local_addr().ok().map(|local| local.ip());
    Ok(socket)
}

/// The source address that the routing table chooses towards `target`, found without sending a packet.
pub(super) fn chosen_source(target: SocketAddr, source: Option<IpAddr>) -> Option<IpAddr> {
    let choose = || -> io::Result<IpAddr> {
        let socket = std::net::UdpSocket::bind(SocketAddr::new(source_or_any(target, source), 0))?;
        socket.connect(target)?;
        Ok(socket.local_addr()?.ip())
    };
    choose().ok().or(source)
}

fn source_or_any(target: SocketAddr, source: Option<IpAddr>) -> IpAddr {
    source.unwrap_or(match target {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    })
}
