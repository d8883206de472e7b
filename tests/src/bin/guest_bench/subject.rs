//! What packets are sent through.

use std::net::{Ipv4Addr, SocketAddrV4};

use serde::{Deserialize, Serialize};

/// Who sends.
pub(crate) const CLIENT: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 1, 0, 2), 20_000);
/// What the balancers listen on; its network is routed to them.
pub(crate) const VIP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 3, 0, 100), 80);
/// Where packets end.
pub(crate) const BACKEND: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 2, 0, 2), 8080);
/// The balancer's own address on the side of the backend.
pub(crate) const NEAR_BACKEND: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 1);

/// Who forwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Subject {
    /// Nobody: packets end where the balancer would get them.
    Nobody,
    /// The kernel, as a router.
    Routing,
    /// nftables, destinations translated.
    Dnat,
    /// nftables, sources translated as well.
    Masquerade,
    /// IPVS, destinations translated.
    Ipvs,
    /// `lb` in the driver.
    LbNative,
    /// `lb` in the kernel's generic path.
    LbGeneric,
}

impl Subject {
    pub(crate) const ALL: [Self; 7] = [
        Self::Nobody,
        Self::LbNative,
        Self::LbGeneric,
        Self::Routing,
        Self::Dnat,
        Self::Masquerade,
        Self::Ipvs,
    ];

    /// What it is called in the report.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Nobody => "nobody: generator, one link and sink alone",
            Self::Routing => "kernel routing",
            Self::Dnat => "nftables, DNAT",
            Self::Masquerade => "nftables, DNAT and masquerade",
            Self::Ipvs => "IPVS, NAT",
            Self::LbNative => "lb, native",
            Self::LbGeneric => "lb, generic",
        }
    }

    /// Whether it is `lb`, and in which mode.
    pub(crate) const fn xdp_mode(self) -> Option<&'static str> {
        match self {
            Self::LbNative => Some("native"),
            Self::LbGeneric => Some("generic"),
            _ => None,
        }
    }

    /// Where packets are sent to.
    pub(crate) const fn target(self) -> SocketAddrV4 {
        match self {
            Self::Nobody | Self::Routing => BACKEND,
            _ => VIP,
        }
    }

    /// Where packets have to seem to come from when they arrive.
    pub(crate) const fn source(self) -> Ipv4Addr {
        match self {
            Self::Nobody | Self::Routing | Self::Dnat | Self::Ipvs => *CLIENT.ip(),
            Self::Masquerade => NEAR_BACKEND,
            Self::LbNative | Self::LbGeneric => *VIP.ip(),
        }
    }
}
