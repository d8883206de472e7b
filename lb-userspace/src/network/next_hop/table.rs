//! What is known, and what follows from it: links, neighbours and routes in, ways out. No input or output here.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::Bound;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use lb_common::NextHop;
use netlink_packet_route::neighbour::NeighbourState;

use super::{Problem, Way, Ways};
use crate::network::Mac;
use crate::network::netlink::{Hop, HostAddress, Link, Lookup, Neighbour, Route};

/// A change the kernel has announced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// A link is new or has changed; `None`: it is gone.
    Link(u32, Option<Link>),
    /// A neighbour entry is new or has changed; `None`: it is gone.
    Neighbour(Hop, Option<Neighbour>),
    /// A route to this prefix has come, changed or gone, or a rule for it (then it is that of the family).
    Route(IpNet),
    /// An address of this host is new or has changed.
    Address(HostAddress),
    /// An address of this host is gone.
    AddressGone(HostAddress),
    /// The kernel had to drop announcements.
    Lost,
}

/// A neighbour entry with what the kernel forgets and we do not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Known {
    state: NeighbourState,
    /// The last one known.
    mac: Option<Mac>,
    /// The kernel has given up on it, and nothing has been heard from it since.
    silent: bool,
    /// The kernel refused to resolve it: `errno`.
    refused: Option<i32>,
}

impl Known {
    fn update(&mut self, neighbour: Neighbour) {
        self.state = neighbour.state;
        // An entry that is incomplete or has failed comes without address.
        if neighbour.mac.is_some() {
            self.mac = neighbour.mac;
            self.silent = false;
        }
        if neighbour.state == NeighbourState::Failed {
            self.silent = true;
        }
        self.refused = None;
    }

    /// The kernel has given the entry up: garbage collection, a link that went down.
    fn forgotten(&mut self) {
        self.state = NeighbourState::None;
    }

    /// Neither fresh, nor static, nor being resolved or verified.
    fn needs_solicitation(&self) -> bool {
        use NeighbourState::{Failed, None, Stale};
        matches!(self.state, None | Stale | Failed)
    }

    fn problem(&self, neighbour: IpAddr) -> Option<Problem> {
        match self.refused {
            Some(libc::ENOBUFS) => Some(Problem::NeighbourTableFull { neighbour }),
            Some(errno) => Some(Problem::NeighbourRefused { neighbour, errno }),
            None => self.silent.then_some(Problem::NeighbourSilent { neighbour }),
        }
    }
}

/// Everything the ways are made of. A watched address is `stale` when its route has to be looked up (again), and
/// `dirty` when its way has to be put together again.
#[derive(Debug, Default)]
pub(super) struct Table {
    interfaces: BTreeSet<String>,
    links: BTreeMap<u32, Link>,
    /// The link-local IPv6 addresses of this host that may be used, by link.
    link_locals: BTreeSet<(u32, IpAddr)>,
    neighbours: BTreeMap<Hop, Known>,
    /// The watched addresses with their routes; `None` before the first lookup.
    lookups: BTreeMap<IpAddr, Option<Lookup>>,
    /// The watched addresses by the neighbour they are handed to.
    hops: BTreeMap<Hop, BTreeSet<IpAddr>>,
    stale: BTreeSet<IpAddr>,
    dirty: BTreeSet<IpAddr>,
    /// Neighbours to be solicited without waiting for their turn.
    urgent: BTreeSet<Hop>,
    /// Where the round of solicitations stands.
    round: Option<Hop>,
}

impl Table {
    pub(super) fn new(interfaces: BTreeSet<String>) -> Self {
        Self { interfaces, ..Self::default() }
    }

    /// Replaces the set of watched addresses.
    pub(super) fn watch(&mut self, addresses: &BTreeSet<IpAddr>) {
        let gone: Vec<_> = self.lookups.keys().copied().filter(|known| !addresses.contains(known)).collect();
        for address in gone {
            if let Some(Some(Ok(route))) = self.lookups.remove(&address) {
                self.detach(route.hop(address), address);
            }
            self.stale.remove(&address);
            self.dirty.insert(address);
        }
        for &address in addresses {
            if let Entry::Vacant(slot) = self.lookups.entry(address) {
                slot.insert(None);
                self.stale.insert(address);
                self.dirty.insert(address);
            }
        }
    }

    /// Takes note of a change. [`Event::Lost`] is the caller's: everything has to be read again.
    pub(super) fn apply(&mut self, event: Event) {
        match event {
            Event::Link(ifindex, link) => self.set_link(ifindex, link),
            Event::Neighbour(hop, neighbour) => self.set_neighbour(hop, neighbour),
            Event::Route(prefix) => self.expire(prefix),
            Event::Address(address) => self.set_address(address, true),
            Event::AddressGone(address) => self.set_address(address, false),
            Event::Lost => {}
        }
    }

    /// Replaces all links.
    pub(super) fn set_links(&mut self, links: BTreeMap<u32, Link>) {
        let gone: Vec<_> = self.links.keys().copied().filter(|known| !links.contains_key(known)).collect();
        for ifindex in gone {
            self.set_link(ifindex, None);
        }
        for (ifindex, link) in links {
            self.set_link(ifindex, Some(link));
        }
    }

    /// Replaces all addresses of this host.
    pub(super) fn set_addresses(&mut self, addresses: &[HostAddress]) {
        let usable: BTreeSet<_> =
            addresses.iter().filter(|own| own.verified).filter_map(link_local).collect();
        let before = std::mem::replace(&mut self.link_locals, usable);
        let changed: Vec<_> =
            before.symmetric_difference(&self.link_locals).map(|&(ifindex, _)| ifindex).collect();
        for ifindex in changed {
            self.touch(ifindex);
        }
    }

    /// Replaces all neighbours; of those in use the last known address stays.
    pub(super) fn set_neighbours(&mut self, neighbours: Vec<(Hop, Neighbour)>) {
        let listed: BTreeSet<Hop> = neighbours.iter().map(|&(hop, _)| hop).collect();
        let gone: Vec<_> = self.neighbours.keys().copied().filter(|known| !listed.contains(known)).collect();
        for hop in gone {
            self.set_neighbour(hop, None);
        }
        for (hop, neighbour) in neighbours {
            self.set_neighbour(hop, Some(neighbour));
        }
    }

    /// Every route has to be looked up again.
    pub(super) fn expire_all(&mut self) {
        self.stale.extend(self.lookups.keys());
    }

    pub(super) fn has_stale(&self) -> bool {
        !self.stale.is_empty()
    }

    /// The next addresses to look up the route of; the answers go to [`Table::set_lookup`].
    pub(super) fn take_stale(&mut self, limit: usize) -> Vec<IpAddr> {
        take(&mut self.stale, limit)
    }

    /// The route to a watched address.
    pub(super) fn set_lookup(&mut self, address: IpAddr, lookup: Lookup) {
        let Some(slot) = self.lookups.get_mut(&address) else { return };
        let hop = |route: &Route| route.hop(address);
        let new = lookup.as_ref().ok().map(hop);
        let old = slot.replace(lookup).and_then(Result::ok).as_ref().map(hop);
        self.dirty.insert(address);
        if old == new {
            return;
        }
        if let Some(old) = old {
            self.detach(old, address);
        }
        if let Some(new) = new {
            self.attach(new, address);
        }
    }

    pub(super) fn has_urgent(&self) -> bool {
        !self.urgent.is_empty()
    }

    /// The next neighbours to solicit out of turn.
    pub(super) fn take_urgent(&mut self, limit: usize) -> Vec<Hop> {
        let hops = take(&mut self.urgent, limit);
        hops.into_iter().filter(|&hop| self.may_solicit(hop)).collect()
    }

    /// The number of neighbours in use.
    pub(super) fn hop_count(&self) -> usize {
        self.hops.len()
    }

    /// Goes on with the round over the neighbours in use by `count`, and returns those that need a solicitation.
    pub(super) fn next_in_round(&mut self, count: usize) -> Vec<Hop> {
        let start = self.round.map_or(Bound::Unbounded, Bound::Excluded);
        let turn: Vec<Hop> =
            self.hops.range((start, Bound::Unbounded)).take(count).map(|(&hop, _)| hop).collect();
        self.round = if turn.len() < count { None } else { turn.last().copied() };
        turn.into_iter().filter(|&hop| self.may_solicit(hop)).collect()
    }

    /// What came of a solicitation: the kernel's `errno`, or none.
    pub(super) fn solicited(&mut self, hop: Hop, refused: Option<i32>) {
        let known = self.neighbours.entry(hop).or_default();
        if known.refused != refused {
            known.refused = refused;
            self.dirty.extend(self.hops.get(&hop).into_iter().flatten());
        }
    }

    /// Brings the published ways up to date; says whether anything has changed.
    pub(super) fn publish(&mut self, ways: &mut Ways) -> bool {
        let mut changed = false;
        for address in std::mem::take(&mut self.dirty) {
            let Some(lookup) = self.lookups.get(&address) else {
                changed |= ways.remove(&address).is_some();
                continue;
            };
            let old = ways.get(&address);
            let mut way = lookup.as_ref().map_or_else(Way::default, |lookup| self.way(address, lookup));
            if !way.is_settled() {
                way.next_hop = old.and_then(|way| way.next_hop).filter(|hop| self.is_usable(hop));
            }
            if old != Some(&way) {
                ways.insert(address, way);
                changed = true;
            }
        }
        changed
    }

    fn way(&self, address: IpAddr, lookup: &Lookup) -> Way {
        let route = match lookup {
            Ok(route) => route,
            Err(reason) => return Way::none((*reason).into()),
        };
        // A link that is not known yet is about to be announced.
        let Some(link) = self.links.get(&route.ifindex) else { return Way::default() };
        let mut way = Way {
            next_hop: None,
            onlink_prefix_len: if route.gateway.is_some() { 0 } else { route.prefix_len },
            mtu: route.mtu.unwrap_or(u32::MAX).min(link.mtu).try_into().unwrap_or(u16::MAX),
            interface: Some(link.name.clone()),
            gateway: route.gateway,
            source: route.source,
            problem: None,
        };
        let Some(local) = link.mac else {
            way.problem = Some(Problem::NotEthernet { interface: link.name.clone() });
            return way;
        };
        let hop = route.hop(address);
        let known = self.neighbours.get(&hop).copied().unwrap_or_default();
        way.next_hop = known.mac.map(|peer| NextHop { ifindex: hop.ifindex, peer, local });
        way.problem = known.problem(hop.address).or_else(|| {
            let interface = link.name.clone();
            if !self.interfaces.contains(&*interface) {
                Some(Problem::NotInInterfaces { interface })
            } else if way.next_hop.is_none() && link.up && !self.can_ask(hop) {
                Some(Problem::NoLinkLocal { interface })
            } else {
                None
            }
        });
        way
    }

    /// Whether the kernel has a source address for asking a neighbour; see `Netlink::solicit`.
    fn can_ask(&self, hop: Hop) -> bool {
        let first = (hop.ifindex, IpAddr::from([0; 4]));
        hop.address.is_ipv4()
            || self.link_locals.range(first..).next().is_some_and(|&(ifindex, _)| ifindex == hop.ifindex)
    }

    /// Whether packets can still be sent this way while the new one is not resolved.
    fn is_usable(&self, next_hop: &NextHop) -> bool {
        self.links.get(&next_hop.ifindex).is_some_and(|link| link.up && link.mac == Some(next_hop.local))
    }

    fn set_link(&mut self, ifindex: u32, link: Option<Link>) {
        let old = self.links.get(&ifindex);
        if old == link.as_ref() {
            return;
        }
        let is_up = link.as_ref().is_some_and(|link| link.up);
        let turned = old.is_some_and(|old| old.up) != is_up;
        match link {
            Some(link) => self.links.insert(ifindex, link),
            None => self.links.remove(&ifindex),
        };
        self.touch(ifindex);
        if turned {
            // Routes follow a link's state without being announced one by one.
            self.expire_all();
        }
    }

    fn set_address(&mut self, own: HostAddress, present: bool) {
        // The source of any route of the family may be another now.
        self.expire(if own.address.is_ipv4() {
            Ipv4Net::default().into()
        } else {
            Ipv6Net::default().into()
        });
        let Some(key) = link_local(&own) else { return };
        let usable = present && own.verified;
        let changed = if usable { self.link_locals.insert(key) } else { self.link_locals.remove(&key) };
        if changed {
            self.touch(own.ifindex);
        }
    }

    /// Something about a link has changed: it may now be possible to ask its neighbours.
    fn touch(&mut self, ifindex: u32) {
        let first = Hop { ifindex, address: IpAddr::from([0; 4]) };
        let on_link = self.hops.range(first..).take_while(|(hop, _)| hop.ifindex == ifindex);
        for (&hop, addresses) in on_link {
            self.urgent.insert(hop);
            self.dirty.extend(addresses);
        }
    }

    fn set_neighbour(&mut self, hop: Hop, neighbour: Option<Neighbour>) {
        let users = self.hops.get(&hop);
        if neighbour.is_none() && users.is_none() {
            self.neighbours.remove(&hop);
            return;
        }
        let known = self.neighbours.entry(hop).or_default();
        let verified = !known.silent && known.mac.is_some();
        match neighbour {
            Some(neighbour) => known.update(neighbour),
            None => known.forgotten(),
        }
        if let Some(addresses) = users {
            self.dirty.extend(addresses);
            // The last probes went to the address it had. One that moved to another machine answers a broadcast.
            if verified && known.silent {
                self.urgent.insert(hop);
            }
        }
    }

    /// The routes to the addresses within a prefix have to be looked up again.
    fn expire(&mut self, prefix: IpNet) {
        let concerned = self.lookups.range(prefix.network()..=prefix.broadcast());
        self.stale.extend(concerned.map(|(address, _)| address));
    }

    fn attach(&mut self, hop: Hop, address: IpAddr) {
        let users = self.hops.entry(hop).or_default();
        if users.is_empty() {
            self.urgent.insert(hop);
        }
        users.insert(address);
    }

    fn detach(&mut self, hop: Hop, address: IpAddr) {
        let Some(users) = self.hops.get_mut(&hop) else { return };
        users.remove(&address);
        if users.is_empty() {
            self.hops.remove(&hop);
            self.urgent.remove(&hop);
        }
    }

    fn may_solicit(&self, hop: Hop) -> bool {
        self.links.get(&hop.ifindex).is_some_and(|link| link.up && link.mac.is_some())
            && self.can_ask(hop)
            && self.neighbours.get(&hop).is_none_or(Known::needs_solicitation)
    }
}

/// Where an address belongs among the link-local ones; `None` if it is none.
fn link_local(own: &HostAddress) -> Option<(u32, IpAddr)> {
    let is_link_local = matches!(own.address, IpAddr::V6(v6) if v6.is_unicast_link_local());
    is_link_local.then_some((own.ifindex, own.address))
}

/// Takes the first elements out of a set.
fn take<T: Ord + Copy>(set: &mut BTreeSet<T>, limit: usize) -> Vec<T> {
    let rest = match set.iter().nth(limit).copied() {
        Some(first_left) => set.split_off(&first_left),
        None => BTreeSet::new(),
    };
    std::mem::replace(set, rest).into_iter().collect()
}

#[cfg(test)]
mod tests;
