//! The configuration that is reloaded: many listeners, each with a VIP and a set of its own.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use lb_tests::netns::{Family, Lab};
use lb_tests::servers::{ECHO_PORT, HTTP_PORT};

/// Backends of each set.
pub(crate) const BACKENDS: u32 = 16;
/// Where the VIPs are; everybody reaches them through the balancer.
pub(crate) const VIPS: &str = "10.8.0.0/16";
/// Where the backends are; the balancer reaches them through one server.
pub(crate) const SERVERS: &str = "10.9.0.0/16";

/// The configuration file: many listeners, one that never changes, and perhaps a new one. The backends of the latter two
/// are the servers of the lab.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Services {
    /// How many listeners of 16 backends, and as many sets.
    pub(crate) many: u32,
    /// Whether there is a new one.
    pub(crate) with_new: bool,
    /// Weight of the first backend of each of the many sets.
    pub(crate) weight: u16,
    /// From check to check of each backend, in milliseconds.
    pub(crate) interval_ms: u32,
}

/// The address of a backend of one of the many sets.
pub(crate) fn backend(set: u32, index: u32) -> Ipv4Addr {
    numbered([10, 9], set * BACKENDS + index + 1)
}

fn numbered([a, b]: [u8; 2], number: u32) -> Ipv4Addr {
    let [_, _, c, d] = number.to_be_bytes();
    [a, b, c, d].into()
}

impl Services {
    /// The listener that stays as it is.
    pub(crate) fn unchanged(&self) -> SocketAddr {
        (numbered([10, 8], self.many + 1), ECHO_PORT).into()
    }

    /// The listener that comes.
    pub(crate) fn new_one(&self) -> SocketAddr {
        (numbered([10, 8], self.many + 2), ECHO_PORT).into()
    }

    /// The text of the file.
    pub(crate) fn text(&self, lab: &Lab) -> String {
        let mut text = format!("[lb]\ninterfaces = {:?}\n", lab.interfaces);
        let servers = lab.backends.iter().map(|server| (server.address(Family::V4), 1)).collect::<Vec<_>>();
        let add = |text: &mut String, number: u32, backends: &[(IpAddr, u16)]| {
            self.add(text, number, backends).expect("a string takes everything");
        };
        for set in 0..self.many {
            let weight = |index| if index == 0 { self.weight } else { 1 };
            let backends = (0..BACKENDS).map(|index| (backend(set, index).into(), weight(index)));
            add(&mut text, set, &backends.collect::<Vec<_>>());
        }
        add(&mut text, self.many, &servers);
        if self.with_new {
            add(&mut text, self.many + 1, &servers);
        }
        text
    }

    fn add(&self, text: &mut String, number: u32, backends: &[(IpAddr, u16)]) -> std::fmt::Result {
        let vip = numbered([10, 8], number + 1);
        writeln!(text, "[[listener]]\nname = \"l{number}\"\naddress = \"{vip}\"")?;
        writeln!(text, "protocol = \"udp\"\nport = {ECHO_PORT}\nbackend_set = \"s{number}\"")?;
        for (address, weight) in backends {
            writeln!(text, "[[backend_set.s{number}.backend]]\naddress = \"{address}\"")?;
            writeln!(text, "port = {ECHO_PORT}\nweight = {weight}")?;
        }
        writeln!(text, "[backend_set.s{number}.health_check]\nprotocol = \"tcp\"\nport = {HTTP_PORT}")?;
        writeln!(text, "interval_ms = {}", self.interval_ms)
    }
}
