//! What can go wrong between the controller and the kernel's network configuration.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

/// A failure of the network layer: what was attempted, what the system said, and what to do where that is not
/// obvious.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No route netlink socket.
    #[error("cannot open a route netlink socket: {0}; a container or service manager may forbid AF_NETLINK")]
    Open(#[source] io::Error),

    /// The kernel refused a request.
    #[error("cannot {action}: {source}{}", remedy(.source))]
    Kernel {
        /// What was asked, as a verb phrase.
        action: String,
        /// The kernel's answer.
        source: io::Error,
    },

    /// An interface of the configuration is not there.
    #[error("interface \"{name}\" of lb.interfaces does not exist; `ip link` lists the ones that do")]
    NoInterface {
        /// Its name in the configuration.
        name: String,
    },

    /// There is no interface a virtual address could be added to.
    #[error("no interface to add {vip} to: lb.interfaces is empty, name at least one")]
    NoInterfaces {
        /// The virtual address.
        vip: IpAddr,
    },

    /// The record of assigned addresses cannot be read or written.
    #[error("cannot {action} {}, the record of the addresses lb has added: {source}", .path.display())]
    Record {
        /// `read`, `write` or `delete`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },

    /// The record of assigned addresses is not what this program writes.
    #[error(
        "{} is not a record of the addresses lb has added: {source}; delete it, and with `ip address del` any \
         address lb has left behind", .path.display()
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },

    /// Some addresses could not be removed; they stay in the record.
    #[error("{} of the assigned addresses could not be removed: {}", .0.len(), list(.0))]
    Release(Vec<Error>),
}

impl Error {
    /// The kernel's refusal to do what `action`, a verb phrase, says.
    pub(crate) fn kernel(action: impl Into<String>, source: io::Error) -> Self {
        Self::Kernel { action: action.into(), source }
    }
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "; this needs root or CAP_NET_ADMIN",
        _ => "",
    }
}

fn list(errors: &[Error]) -> String {
    errors.iter().map(Error::to_string).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_what_was_attempted_and_what_is_missing() {
        let denied = Error::kernel("list the links", io::Error::from_raw_os_error(libc::EPERM));
        assert_eq!(
            denied.to_string(),
            "cannot list the links: Operation not permitted (os error 1); this needs root or CAP_NET_ADMIN"
        );
        let busy = Error::kernel("add 10.0.1.100 to eth0", io::Error::from_raw_os_error(libc::EBUSY));
        let both = Error::Release(vec![denied, busy]).to_string();
        assert!(both.starts_with("2 of the assigned addresses"), "{both}");
        assert!(
            both.ends_with("cannot add 10.0.1.100 to eth0: Device or resource busy (os error 16)"),
            "{both}"
        );
    }
}
