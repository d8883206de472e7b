//! Configuration files of the tests.

use std::fmt;
use std::net::IpAddr;

use super::{Family, Lab};
use crate::servers::{ECHO_PORT, HTTP_PORT};

/// A configuration: every service on every VIP, one backend set a service. Tests change its fields; its text is
/// the file.
#[derive(Clone, Debug)]
pub struct Config {
    /// `lb.interfaces`
    pub interfaces: Vec<String>,
    /// `lb.xdp_mode`
    pub xdp_mode: &'static str,
    /// `lb.snat_addresses`
    pub snat_addresses: Vec<IpAddr>,
    /// `backend_set.*.snat`
    pub snat: &'static str,
    /// Addresses of the listeners.
    pub vips: Vec<IpAddr>,
    /// What listens on each.
    pub services: Vec<Service>,
    /// Addresses of the backends of every set.
    pub backends: Vec<IpAddr>,
    /// `health_check.interval_ms`, which is also the time limit of a check.
    pub interval_ms: u32,
    /// `health_check.retries`
    pub retries: u32,
}

/// A listener and a backend set of the same name.
#[derive(Clone, Copy, Debug)]
pub struct Service {
    /// Name of both.
    pub name: &'static str,
    /// `tcp`, `udp` or `tcp_and_udp`
    pub protocol: &'static str,
    /// Port of the listener.
    pub port: u16,
    /// Port of the backends.
    pub backend_port: u16,
}

impl Service {
    /// The HTTP service, on its usual port.
    pub const WEB: Self = Self { name: "web", protocol: "tcp", port: 80, backend_port: HTTP_PORT };
    /// Both echo services.
    pub const ECHO: Self =
        Self { name: "echo", protocol: "tcp_and_udp", port: ECHO_PORT, backend_port: ECHO_PORT };

    /// A TCP service that keeps its port.
    pub const fn tcp(name: &'static str, port: u16) -> Self {
        Self { name, protocol: "tcp", port, backend_port: port }
    }
}

impl Config {
    /// Every backend of `lab` behind the VIP, the HTTP and echo services, source translation always. Checks are
    /// patient enough for a machine that is busy with traffic.
    pub fn new(lab: &Lab, family: Family) -> Self {
        Self {
            interfaces: lab.interfaces.iter().map(|&name| name.into()).collect(),
            xdp_mode: "native",
            snat_addresses: Vec::new(),
            snat: "always",
            vips: vec![family.vip()],
            services: vec![Service::WEB, Service::ECHO],
            backends: lab.backends.iter().map(|backend| backend.address(family)).collect(),
            interval_ms: 500,
            retries: 4,
        }
    }
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // TOML's strings and arrays of strings are written as Rust's.
        let Self {
            interfaces,
            xdp_mode,
            snat_addresses,
            snat,
            vips,
            services,
            backends,
            interval_ms,
            retries,
        } = self;
        let snat_addresses: Vec<_> = snat_addresses.iter().map(IpAddr::to_string).collect();
        writeln!(f, "[lb]\ninterfaces = {interfaces:?}\nxdp_mode = {xdp_mode:?}")?;
        writeln!(f, "snat_addresses = {snat_addresses:?}")?;
        for Service { name, protocol, port, backend_port } in services {
            for (place, vip) in vips.iter().enumerate() {
                writeln!(f, "\n[[listener]]\nname = \"{name}-{place}\"\naddress = \"{vip}\"")?;
                writeln!(f, "protocol = {protocol:?}\nport = {port}\nbackend_set = {name:?}")?;
            }
            writeln!(f, "\n[backend_set.{name}]\nsnat = {snat:?}")?;
            for address in backends {
                writeln!(
                    f,
                    "\n[[backend_set.{name}.backend]]\naddress = \"{address}\"\nport = {backend_port}"
                )?;
            }
            writeln!(f, "\n[backend_set.{name}.health_check]\nprotocol = \"http\"\nport = {HTTP_PORT}")?;
            writeln!(f, "path = \"/health\"\ninterval_ms = {interval_ms}\ntimeout_ms = {interval_ms}")?;
            writeln!(f, "retries = {retries}")?;
        }
        Ok(())
    }
}
