//! Configurations in which each backend set has a check of its own.

use std::fmt::Write as _;
use std::net::SocketAddr;

use super::{Family, Lab};

/// Port of the listener of the first set; those of the others follow.
const FIRST_PORT: u16 = 9000;

/// A backend set. It has a listener of the same name on the VIP of the family of its backends.
#[derive(Clone, Debug)]
pub struct Checked {
    /// Its name.
    pub name: &'static str,
    /// Its backends.
    pub backends: Vec<SocketAddr>,
    /// Lines of its `health_check`, tables below it included.
    pub check: String,
    /// More lines of the set itself.
    pub set: &'static str,
    /// Port of the listener; 0: any that is free.
    pub port: u16,
}

impl Checked {
    /// A set whose listener nobody is interested in.
    pub fn new(name: &'static str, backends: impl Into<Vec<SocketAddr>>, check: impl Into<String>) -> Self {
        Self { name, backends: backends.into(), check: check.into(), set: "", port: 0 }
    }

    fn family(&self) -> Family {
        if self.backends.iter().all(SocketAddr::is_ipv4) { Family::V4 } else { Family::V6 }
    }

    /// As the tables of a configuration file.
    fn tables(&self, port: u16) -> String {
        let Self { name, backends, check, set, .. } = self;
        let vip = self.family().vip();
        let mut text = format!(
            "\n[[listener]]\nname = {name:?}\naddress = \"{vip}\"\nprotocol = \"tcp_and_udp\"\nport = {port}\n\
             backend_set = {name:?}\n\n[backend_set.{name}]\n{set}\n"
        );
        for backend in backends {
            let (address, port) = (backend.ip(), backend.port());
            // Writing to a string cannot fail.
            let _ =
                write!(text, "\n[[backend_set.{name}.backend]]\naddress = \"{address}\"\nport = {port}\n");
        }
        let check = check.replace("[dns]", &format!("[backend_set.{name}.health_check.dns]"));
        text + &format!("\n[backend_set.{name}.health_check]\n{check}\n")
    }
}

/// The configuration file with these sets. In `check`, `[dns]` stands for the table of that name.
pub fn document(lab: &Lab, sets: &[Checked]) -> String {
    let mut text = format!("[lb]\ninterfaces = {:?}\n", lab.interfaces);
    for (free, set) in (FIRST_PORT..).zip(sets) {
        text += &set.tables(if set.port == 0 { free } else { set.port });
    }
    text
}
