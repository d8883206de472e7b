use super::*;
use proptest::prelude::*;

use crate::network::netlink::Unroutable;

const LOCAL: Mac = [2, 0, 0, 0, 0, 1];
const PEER: Mac = [2, 0, 0, 0, 0, 2];
const OTHER: Mac = [2, 0, 0, 0, 0, 3];

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn link(name: &str) -> Link {
    Link { name: name.into(), mac: Some(LOCAL), mtu: 1500, up: true }
}

fn on_link(ifindex: u32) -> Lookup {
    Ok(Route { ifindex, gateway: None, source: Some(ip("10.0.1.5")), prefix_len: 24, mtu: None })
}

fn through(ifindex: u32, gateway: &str) -> Lookup {
    Ok(Route { ifindex, gateway: Some(ip(gateway)), source: None, prefix_len: 0, mtu: Some(1400) })
}

fn hop(ifindex: u32, address: &str) -> Hop {
    Hop { ifindex, address: ip(address) }
}

fn neighbour(state: NeighbourState, mac: Option<Mac>) -> Option<Neighbour> {
    Some(Neighbour { state, mac })
}

fn own(ifindex: u32, address: &str) -> HostAddress {
    let address = ip(address);
    HostAddress { ifindex, address, prefix_len: if address.is_ipv4() { 24 } else { 64 }, verified: true }
}

/// A table with eth0 (1, attached) and eth1 (2, not attached) that watches the given addresses.
fn table(watched: &[&str]) -> Table {
    let mut table = Table::new(["eth0".to_owned()].into());
    table.set_links([(1, link("eth0")), (2, link("eth1"))].into());
    table.watch(&watched.iter().map(|text| ip(text)).collect());
    table
}

fn published(table: &mut Table, ways: &mut Ways, address: &str) -> Way {
    table.publish(ways);
    ways[&ip(address)].clone()
}

#[test]
fn a_way_is_pending_then_resolved() {
    let mut table = table(&["10.0.1.10"]);
    let mut ways = Ways::new();
    assert_eq!(published(&mut table, &mut ways, "10.0.1.10"), Way::default());
    assert_eq!(table.take_stale(10), [ip("10.0.1.10")]);
    assert!(!table.has_stale());

    table.set_lookup(ip("10.0.1.10"), on_link(1));
    assert_eq!(table.take_urgent(10), [hop(1, "10.0.1.10")], "a new neighbour is solicited at once");
    assert!(!published(&mut table, &mut ways, "10.0.1.10").is_settled());

    table.apply(Event::Neighbour(hop(1, "10.0.1.10"), neighbour(NeighbourState::Reachable, Some(PEER))));
    let expected = Way {
        next_hop: Some(NextHop { ifindex: 1, peer: PEER, local: LOCAL }),
        onlink_prefix_len: 24,
        mtu: 1500,
        interface: Some("eth0".into()),
        gateway: None,
        source: Some(ip("10.0.1.5")),
        problem: None,
    };
    assert_eq!(published(&mut table, &mut ways, "10.0.1.10"), expected);
    assert!(!table.publish(&mut ways), "nothing has changed");
}

#[test]
fn a_gateway_counts_as_not_on_link_and_the_smaller_mtu_wins() {
    let mut table = table(&["192.0.2.1"]);
    table.set_lookup(ip("192.0.2.1"), through(1, "10.0.1.1"));
    table.apply(Event::Neighbour(hop(1, "10.0.1.1"), neighbour(NeighbourState::Stale, Some(PEER))));
    let way = published(&mut table, &mut Ways::new(), "192.0.2.1");
    assert_eq!(way.next_hop.expect("resolved").peer, PEER);
    assert_eq!((way.onlink_prefix_len, way.gateway, way.mtu), (0, Some(ip("10.0.1.1")), 1400));

    let mut huge = link("eth0");
    huge.mtu = 65_536;
    table.apply(Event::Link(1, Some(huge)));
    table.set_lookup(ip("192.0.2.1"), on_link(1));
    assert_eq!(published(&mut table, &mut Ways::new(), "192.0.2.1").mtu, u16::MAX);
}

#[test]
fn a_changed_address_on_either_side_is_published() {
    let mut table = table(&["10.0.1.10"]);
    let mut ways = Ways::new();
    table.take_stale(10);
    table.set_lookup(ip("10.0.1.10"), on_link(1));
    table.apply(Event::Neighbour(hop(1, "10.0.1.10"), neighbour(NeighbourState::Reachable, Some(PEER))));
    table.publish(&mut ways);
    table.apply(Event::Neighbour(hop(1, "10.0.1.10"), neighbour(NeighbourState::Stale, Some(OTHER))));
    assert_eq!(published(&mut table, &mut ways, "10.0.1.10").next_hop.expect("resolved").peer, OTHER);

    let mut changed = link("eth0");
    changed.mac = Some(OTHER);
    table.apply(Event::Link(1, Some(changed)));
    assert_eq!(published(&mut table, &mut ways, "10.0.1.10").next_hop.expect("resolved").local, OTHER);
    assert!(!table.has_stale(), "the link stayed up: its routes are what they were");
}

#[test]
fn a_neighbour_that_falls_silent_keeps_its_address_and_is_asked_for_by_broadcast() {
    let mut table = table(&["10.0.1.10"]);
    let mut ways = Ways::new();
    let here = hop(1, "10.0.1.10");
    table.set_lookup(ip("10.0.1.10"), on_link(1));
    table.take_urgent(10);
    table.apply(Event::Neighbour(here, neighbour(NeighbourState::Probe, Some(PEER))));
    table.apply(Event::Neighbour(here, neighbour(NeighbourState::Failed, None)));
    assert_eq!(table.take_urgent(10), [here]);
    let silent = Some(Problem::NeighbourSilent { neighbour: ip("10.0.1.10") });
    let way = published(&mut table, &mut ways, "10.0.1.10");
    assert_eq!((way.next_hop.map(|hop| hop.peer), way.problem), (Some(PEER), silent.clone()));

    // The kernel asks again, and gives up again: the problem stays, and the next time waits for its turn.
    for state in [NeighbourState::Incomplete, NeighbourState::Failed] {
        table.apply(Event::Neighbour(here, neighbour(state, None)));
        assert_eq!(published(&mut table, &mut ways, "10.0.1.10").problem, silent);
    }
    table.apply(Event::Neighbour(here, None));
    assert_eq!(published(&mut table, &mut ways, "10.0.1.10").problem, silent);
    assert!(!table.has_urgent());
    assert_eq!(table.next_in_round(10), [here]);

    table.apply(Event::Neighbour(here, neighbour(NeighbourState::Reachable, Some(OTHER))));
    let way = published(&mut table, &mut ways, "10.0.1.10");
    assert_eq!((way.next_hop.map(|hop| hop.peer), way.problem), (Some(OTHER), None));
}

#[test]
fn a_neighbour_that_never_answered_is_settled_without_a_next_hop() {
    let mut table = table(&["10.0.1.10"]);
    table.set_lookup(ip("10.0.1.10"), on_link(1));
    table.take_urgent(10);
    table.apply(Event::Neighbour(hop(1, "10.0.1.10"), neighbour(NeighbourState::Incomplete, None)));
    assert!(!published(&mut table, &mut Ways::new(), "10.0.1.10").is_settled());
    table.apply(Event::Neighbour(hop(1, "10.0.1.10"), neighbour(NeighbourState::Failed, None)));
    let way = published(&mut table, &mut Ways::new(), "10.0.1.10");
    assert!(way.is_settled() && way.next_hop.is_none());
    assert_eq!(way.problem.expect("a problem").to_string(), "neighbour 10.0.1.10 did not answer");
    assert!(!table.has_urgent());
}

#[test]
fn when_a_route_changes_the_old_next_hop_stays_until_the_new_one_is_resolved() {
    let mut table = table(&["192.0.2.1"]);
    let mut ways = Ways::new();
    table.set_lookup(ip("192.0.2.1"), through(1, "10.0.1.1"));
    table.apply(Event::Neighbour(hop(1, "10.0.1.1"), neighbour(NeighbourState::Reachable, Some(PEER))));
    table.publish(&mut ways);

    table.apply(Event::Route("192.0.2.0/24".parse().expect("a prefix")));
    assert_eq!(table.take_stale(10), [ip("192.0.2.1")]);
    table.set_lookup(ip("192.0.2.1"), through(1, "10.0.1.2"));
    let way = published(&mut table, &mut ways, "192.0.2.1");
    assert_eq!((way.next_hop.map(|hop| hop.peer), way.gateway), (Some(PEER), Some(ip("10.0.1.2"))));
    assert_eq!(table.next_in_round(10), [hop(1, "10.0.1.2")], "nobody uses the old gateway any more");

    table.apply(Event::Neighbour(hop(1, "10.0.1.2"), neighbour(NeighbourState::Reachable, Some(OTHER))));
    assert_eq!(published(&mut table, &mut ways, "192.0.2.1").next_hop.map(|hop| hop.peer), Some(OTHER));

    table.set_lookup(ip("192.0.2.1"), Err(Unroutable::NoRoute));
    assert_eq!(published(&mut table, &mut ways, "192.0.2.1"), Way::none(Problem::NoRoute));
}

#[test]
fn the_old_next_hop_does_not_outlive_its_link() {
    let mut table = table(&["192.0.2.1"]);
    let mut ways = Ways::new();
    table.set_lookup(ip("192.0.2.1"), through(1, "10.0.1.1"));
    table.apply(Event::Neighbour(hop(1, "10.0.1.1"), neighbour(NeighbourState::Reachable, Some(PEER))));
    table.publish(&mut ways);
    table.apply(Event::Link(1, None));
    table.set_lookup(ip("192.0.2.1"), through(2, "10.0.2.1"));
    assert_eq!(published(&mut table, &mut ways, "192.0.2.1").next_hop, None);
}

#[test]
fn links_without_the_program_or_without_ethernet_are_a_problem() {
    let mut table = table(&["10.0.2.10", "10.0.3.10"]);
    let mut ways = Ways::new();
    let tunnel = Link { name: "tun0".into(), mac: None, mtu: 1400, up: true };
    table.apply(Event::Link(3, Some(tunnel)));
    table.set_lookup(ip("10.0.2.10"), on_link(2));
    table.set_lookup(ip("10.0.3.10"), on_link(3));
    assert_eq!(table.take_urgent(10), [hop(2, "10.0.2.10")], "a tunnel has no neighbours");
    table.apply(Event::Neighbour(hop(2, "10.0.2.10"), neighbour(NeighbourState::Reachable, Some(PEER))));

    let foreign = published(&mut table, &mut ways, "10.0.2.10");
    assert!(foreign.next_hop.is_some());
    assert_eq!(
        foreign.problem.expect("a problem").to_string(),
        "reached through eth1, which is not in lb.interfaces"
    );
    let layer3 = published(&mut table, &mut ways, "10.0.3.10");
    assert_eq!((layer3.next_hop, layer3.mtu), (None, 1400));
    assert_eq!(layer3.problem, Some(Problem::NotEthernet { interface: "tun0".into() }));
}

/// Without one the kernel asks nothing, and gives up on a neighbour that is alive.
#[test]
fn ipv6_neighbours_are_solicited_once_there_is_a_link_local_address_to_ask_from() {
    let mut table = table(&["fd00:1::10"]);
    let mut ways = Ways::new();
    let here = hop(1, "fd00:1::10");
    let mut tentative = own(1, "fe80::1");
    tentative.verified = false;
    table.set_lookup(ip("fd00:1::10"), on_link(1));
    table.set_addresses(&[own(1, "fd00:1::5"), own(2, "fe80::2"), tentative]);
    assert_eq!(table.take_urgent(10), []);
    assert_eq!(table.next_in_round(10), []);
    let way = published(&mut table, &mut ways, "fd00:1::10");
    assert_eq!(way.problem, Some(Problem::NoLinkLocal { interface: "eth0".into() }));
    assert!(!way.is_settled());

    table.apply(Event::Address(own(1, "fe80::1")));
    assert_eq!(table.take_urgent(10), [here]);
    assert_eq!(published(&mut table, &mut ways, "fd00:1::10"), Way { problem: None, ..way });
    table.set_addresses(&[own(1, "fe80::1")]);
    assert_eq!(table.take_urgent(10), [], "nothing has changed");

    table.apply(Event::AddressGone(own(1, "fe80::1")));
    table.apply(Event::Neighbour(here, neighbour(NeighbourState::Stale, Some(PEER))));
    assert_eq!(table.take_urgent(10), []);
    let way = published(&mut table, &mut ways, "fd00:1::10");
    assert!(
        way.next_hop.is_some() && way.problem.is_none(),
        "the host's own traffic has resolved it: {way:?}"
    );
}

#[test]
fn a_link_that_comes_up_has_every_route_looked_up_and_its_neighbours_solicited() {
    let mut table = table(&["10.0.1.10", "192.0.2.1"]);
    table.set_lookup(ip("10.0.1.10"), on_link(1));
    let mut down = link("eth0");
    down.up = false;
    table.apply(Event::Link(1, Some(down)));
    table.take_stale(10);
    assert_eq!(table.take_urgent(10), [], "there is no point while the link is down");
    table.apply(Event::Link(1, Some(link("eth0"))));
    assert_eq!(table.take_stale(10), [ip("10.0.1.10"), ip("192.0.2.1")]);
    assert_eq!(table.take_urgent(10), [hop(1, "10.0.1.10")]);
}

#[test]
fn a_route_concerns_only_the_addresses_within_it() {
    let mut table = table(&["10.0.1.10", "10.0.2.10", "fd00:1::10"]);
    table.take_stale(10);
    table.apply(Event::Route("10.0.2.0/24".parse().expect("a prefix")));
    assert_eq!(table.take_stale(10), [ip("10.0.2.10")]);
    table.apply(Event::Address(own(1, "fd00:1::5")));
    assert_eq!(table.take_stale(10), [ip("fd00:1::10")], "its source may be another now");
    table.apply(Event::AddressGone(own(1, "10.0.1.5")));
    assert_eq!(table.take_stale(1), [ip("10.0.1.10")]);
    assert_eq!(table.take_stale(1), [ip("10.0.2.10")]);
}

#[test]
fn what_the_kernel_refuses_to_resolve_is_a_problem_until_it_does() {
    let mut table = table(&["10.0.1.10"]);
    table.set_lookup(ip("10.0.1.10"), on_link(1));
    table.solicited(hop(1, "10.0.1.10"), Some(libc::ENOBUFS));
    let problem =
        published(&mut table, &mut Ways::new(), "10.0.1.10").problem.expect("a problem").to_string();
    assert!(problem.contains("net.ipv4.neigh.default.gc_thresh3"), "{problem}");
    table.solicited(hop(1, "10.0.1.10"), None);
    assert_eq!(published(&mut table, &mut Ways::new(), "10.0.1.10").problem, None);
}

#[test]
fn what_is_no_longer_watched_disappears_and_its_neighbour_is_left_alone() {
    let mut table = table(&["10.0.1.10", "192.0.2.1"]);
    let mut ways = Ways::new();
    table.set_lookup(ip("10.0.1.10"), on_link(1));
    table.set_lookup(ip("192.0.2.1"), through(1, "10.0.1.10"));
    table.publish(&mut ways);
    table.watch(&[ip("192.0.2.1")].into());
    assert!(table.publish(&mut ways));
    assert_eq!(ways.keys().collect::<Vec<_>>(), [&ip("192.0.2.1")]);
    assert_eq!(table.hop_count(), 1, "the gateway of the other one is the same neighbour");
    table.set_lookup(ip("10.0.1.10"), on_link(1));
    table.watch(&BTreeSet::new());
    assert!(table.publish(&mut ways) && ways.is_empty());
    assert_eq!((table.hop_count(), table.has_stale(), table.has_urgent()), (0, false, false));
}

#[test]
fn a_list_read_again_replaces_what_was_missed() {
    let mut table = table(&["10.0.1.10", "10.0.1.11"]);
    let mut ways = Ways::new();
    for address in ["10.0.1.10", "10.0.1.11"] {
        table.set_lookup(ip(address), on_link(1));
        table.apply(Event::Neighbour(hop(1, address), neighbour(NeighbourState::Reachable, Some(PEER))));
    }
    table.publish(&mut ways);
    table.take_urgent(10);
    let moved = Neighbour { state: NeighbourState::Reachable, mac: Some(OTHER) };
    table.set_neighbours(vec![(hop(1, "10.0.1.10"), moved)]);
    assert_eq!(published(&mut table, &mut ways, "10.0.1.10").next_hop.map(|hop| hop.peer), Some(OTHER));
    assert_eq!(published(&mut table, &mut ways, "10.0.1.11").next_hop.map(|hop| hop.peer), Some(PEER));
    assert_eq!(table.next_in_round(10), [hop(1, "10.0.1.11")], "the kernel has forgotten it");

    table.take_stale(10);
    table.set_links([(2, link("eth1"))].into());
    assert_eq!(table.take_stale(10).len(), 2);
}

proptest! {
    /// However a round is cut into turns, it reaches every neighbour once before it reaches one again.
    #[test]
    fn a_round_reaches_every_neighbour(count in 1_u8..60, size in 1_usize..20) {
        let names: Vec<String> = (0..count).map(|n| format!("10.0.1.{n}")).collect();
        let mut table = table(&names.iter().map(String::as_str).collect::<Vec<_>>());
        for name in &names {
            table.set_lookup(ip(name), on_link(1));
        }
        let mut reached = Vec::new();
        while reached.len() < names.len() {
            reached.extend(table.next_in_round(size));
        }
        prop_assert_eq!(reached.len(), names.len());
        prop_assert_eq!(reached.iter().collect::<BTreeSet<_>>().len(), names.len());
    }

    /// Taking in pieces takes everything, in order.
    #[test]
    fn taking_in_pieces_takes_everything(mut set in proptest::collection::btree_set(0_u32..100, 0..50), limit in 1_usize..20) {
        let all: Vec<u32> = set.iter().copied().collect();
        let mut taken = Vec::new();
        while !set.is_empty() {
            let piece = take(&mut set, limit);
            prop_assert!(!piece.is_empty() && piece.len() <= limit);
            taken.extend(piece);
        }
        prop_assert_eq!(taken, all);
    }
}
