//! Part of finding a flow: can a packet be one of ours at all? Two bits tell most that are not, before any map is
//! searched.

use lb_common::{Address, Bit, FlowKey};

use crate::maps::{LISTENER_PORTS, OUR_ADDRESSES};

/// Who a packet comes from or goes to, as far as a bit can tell: what is said to be ours may not be.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Concern {
    /// Goes to a VIP, a SNAT address or a backend: it may be of a flow, or open one.
    ToOurs,
    /// Comes from one of them, to somebody else: it may be an answer that goes to the client's own address.
    FromOurs,
    /// Neither.
    Nobody,
}

/// What is to be thought of a packet with this tuple.
#[inline(always)]
pub(crate) fn concern<A: Address>(key: &FlowKey<A>) -> Concern {
    match () {
        () if may_be_ours(key.destination) => Concern::ToOurs,
        () if may_be_ours(key.source) => Concern::FromOurs,
        () => Concern::Nobody,
    }
}

/// Whether an address may be a VIP, a SNAT address or that of a backend.
#[inline(always)]
pub(crate) fn may_be_ours<A: Address>(address: A) -> bool {
    let bit = Bit::of_address(address);
    OUR_ADDRESSES.get(bit.word()).is_some_and(|word| word & bit.mask() != 0)
}

/// Whether a port may be that of a listener on any address.
#[inline(always)]
pub(crate) fn may_listen(port: u16) -> bool {
    let bit = Bit::of_port(port);
    LISTENER_PORTS.get(bit.word()).is_some_and(|word| word & bit.mask() != 0)
}
