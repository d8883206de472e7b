//! The host's network as the balancer needs it: the way to each backend, kept resolved, and the virtual addresses
//! of the listeners, added and announced.
//!
//! Everything goes through route netlink (rtnetlink(7)) and acts on the network namespace of the calling thread.

mod error;
mod netlink;
pub mod next_hop;
pub mod nic;
pub mod nudge;
pub mod sockets;
pub mod vip;

use std::net::IpAddr;

pub use error::Error;
pub use netlink_packet_route::neighbour::NeighbourState;

use netlink::Netlink;
use nix::net::if_::if_indextoname;

/// An Ethernet address, as on the wire.
pub type Mac = [u8; 6];

/// A network interface of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its number.
    pub ifindex: u32,
    /// Its name.
    pub name: String,
    /// Its own address; zero where frames are not Ethernet, as those of loopback.
    pub mac: Mac,
    /// Bytes, from the IP header on.
    pub mtu: u32,
}

/// The interfaces of the calling thread's network namespace. Asked by netlink: `/sys` may be that of another one.
///
/// # Errors
///
/// If the kernel does not answer.
pub fn interfaces() -> Result<Vec<Interface>, Error> {
    let links = Netlink::open()?.links()?;
    let interface = |(ifindex, link): (u32, netlink::Link)| Interface {
        ifindex,
        name: link.name.to_string(),
        mac: link.mac.unwrap_or_default(),
        mtu: link.mtu,
    };
    Ok(links.into_iter().map(interface).collect())
}

/// The state of the kernel's neighbour entry for the next hop to `address`: its own entry where it is on-link, the
/// gateway's otherwise. `None` where there is no route, no neighbour is needed or the kernel has no entry.
///
/// Asks the kernel twice and does not wait: a health check that times out asks here whether the kernel itself still
/// waits for an answer to ARP or neighbour discovery (it gives up after about three seconds).
pub fn neighbour_state(address: IpAddr) -> Option<NeighbourState> {
    let state = || -> Result<Option<NeighbourState>, Error> {
        let mut netlink = Netlink::open()?;
        match netlink.route(address)? {
            Ok(route) => netlink.neighbour_state(route.hop(address)),
            Err(_) => Ok(None),
        }
    };
    state().unwrap_or_else(|error| {
        tracing::debug!(%address, %error, "cannot ask for the state of a neighbour");
        None
    })
}

/// The name of an interface of this network namespace; `None` if there is none of this number.
pub fn interface_name(index: u32) -> Option<String> {
    let name = if_indextoname(index).ok()?.to_string_lossy().into_owned();
    // nix takes the null pointer, by which the C library says that there is none, for success.
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_that_is_not_there_has_no_name() {
        assert_eq!(interface_name(1).as_deref(), Some("lo"));
        assert_eq!(interface_name(i32::MAX as u32), None);
    }
}
