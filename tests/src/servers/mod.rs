//! The server that stands behind the balancer in tests and in the demo: it says who it is and whom it has seen.
//!
//! | port | service |
//! | --- | --- |
//! | 8080/tcp | HTTP: `/` answers `NAME PEER`; `/health` answers a status that `PUT /health/503` changes; `/bytes/N` answers N bytes, always the same |
//! | 7/tcp | a line `NAME PEER`, then an echo |
//! | 7/udp | `NAME PEER ` followed by the datagram |
//!
//! `PEER` is `address:port` of the other end as this host sees it. Every connection is closed after one request, so
//! that every request is a new flow.

mod echo;
mod http;

use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::Result;

use crate::netns::{Host, Process, binary};

/// Port of the HTTP service.
pub const HTTP_PORT: u16 = 8080;
/// Port of both echo services (RFC 862).
pub const ECHO_PORT: u16 = 7;

const READY: &str = "ready";

/// Serves for ever under the name `name`; says `ready` on standard output once every port listens.
pub async fn serve(name: String) -> Result<()> {
    let everywhere = |port| SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let http = tokio::net::TcpListener::bind(everywhere(HTTP_PORT)).await?;
    let tcp = tokio::net::TcpListener::bind(everywhere(ECHO_PORT)).await?;
    let udp = tokio::net::UdpSocket::bind(everywhere(ECHO_PORT)).await?;
    println!("{READY}");
    tokio::try_join!(http::serve(http, &name), echo::serve_tcp(tcp, &name), echo::serve_udp(udp, &name))?;
    Ok(())
}

/// Starts the server on `host`, under the host's name, and waits until it listens.
pub fn start(host: &Host) -> Result<Process> {
    let server = host.spawn(&format!("{} {}", binary("testserver")?.display(), host.name()))?;
    server.wait_for_line(READY, Duration::from_secs(10))?;
    Ok(server)
}

/// How a server calls the other end: a socket of both families sees IPv4 addresses as IPv4-mapped ones.
fn peer(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
