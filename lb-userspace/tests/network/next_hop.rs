//! The resolver follows what happens on the network.

use std::collections::BTreeSet;
use std::future::Future;
use std::io::Write;
use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lb_common::NextHop;
use lb_userspace::network::next_hop::{Problem, Resolver, Way, Ways};
use lb_userspace::network::{NeighbourState, neighbour_state};
use rtnetlink::MulticastGroup;
use rtnetlink::sys::Socket;
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use tokio::time::timeout;

use crate::namespace::{
    LINK, MAC, PEER_LINK, PEER_MAC, add_link, balancer_and_peer, ip, ip_json, sysctl, text,
};

/// More than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);
const OTHER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x99];

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn addresses(texts: &[&str]) -> BTreeSet<IpAddr> {
    texts.iter().map(|text| address(text)).collect()
}

/// Runs a test on a runtime in the namespace of the calling thread.
fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(test);
}

fn resolver(watched: &[&str]) -> Resolver {
    let resolver = Resolver::new([LINK.to_owned()]).expect("a resolver");
    resolver.watch(addresses(watched));
    resolver
}

/// Waits until the way to an address is as wanted, and returns it.
async fn wait_for(resolver: &Resolver, to: &str, wanted: impl Fn(&Way) -> bool) -> Way {
    let mut ways = resolver.ways();
    let arrived = timeout(PATIENCE, ways.wait_for(|ways| ways.get(&address(to)).is_some_and(&wanted))).await;
    let Ok(found) = arrived.map(|ways| ways.expect("the resolver runs")[&address(to)].clone()) else {
        panic!("the way to {to} is not as expected: {:?}", resolver.ways().borrow().get(&address(to)));
    };
    found
}

fn peer_mac(way: &Way) -> Option<[u8; 6]> {
    way.next_hop.map(|hop| hop.peer)
}

fn ifindex(link: &str) -> u32 {
    nix::net::if_::if_nametoindex(link).expect("the link")
}

#[test]
fn on_link_backends_of_both_families_are_resolved() {
    let _peer = balancer_and_peer();
    run(async {
        let resolver = resolver(&["10.0.1.10", "fd00:1::10"]);
        assert!(resolver.first_round(PATIENCE).await);
        let way = |onlink_prefix_len, source| Way {
            next_hop: Some(NextHop { ifindex: ifindex(LINK), peer: PEER_MAC, local: MAC }),
            onlink_prefix_len,
            mtu: 1500,
            interface: Some(LINK.into()),
            gateway: None,
            source: Some(address(source)),
            problem: None,
        };
        let expected: Ways =
            [(address("10.0.1.10"), way(24, "10.0.1.5")), (address("fd00:1::10"), way(64, "fd00:1::5"))]
                .into();
        assert_eq!(*resolver.ways().borrow(), expected);
    });
}

#[test]
fn a_gateway_is_resolved_in_place_of_the_backend() {
    let _peer = balancer_and_peer();
    ip("route add 192.0.2.0/24 via 10.0.1.10 mtu 1400");
    ip("route add fd00:9::/64 via fd00:1::10");
    ip("route add 198.51.100.0/24 via inet6 fd00:1::10");
    run(async {
        let resolver = resolver(&["192.0.2.1", "fd00:9::1", "198.51.100.1"]);
        assert!(resolver.first_round(PATIENCE).await);
        for (to, gateway, mtu) in [
            ("192.0.2.1", "10.0.1.10", 1400),
            ("fd00:9::1", "fd00:1::10", 1500),
            ("198.51.100.1", "fd00:1::10", 1500),
        ] {
            let way = resolver.ways().borrow()[&address(to)].clone();
            assert_eq!(peer_mac(&way), Some(PEER_MAC), "{to}: {way:?}");
            assert_eq!((way.gateway, way.onlink_prefix_len, way.mtu), (Some(address(gateway)), 0, mtu));
            assert_eq!(way.problem, None);
        }
    });
}

#[test]
fn a_moved_address_is_published_when_the_peer_says_so() {
    let peer = balancer_and_peer();
    run(async {
        let resolver = resolver(&["10.0.1.10", "fd00:1::10"]);
        assert!(resolver.first_round(PATIENCE).await);
        peer.ip(&format!("link set {PEER_LINK} address {}", text(OTHER_MAC)));
        // The peer asks for the balancer's address, and its question carries its own new one.
        peer.enter(|| {
            for to in ["10.0.1.5", "fd00:1::5"] {
                let status = Command::new("ping").args(["-c1", "-W5", to]).stdout(Stdio::null()).status();
                assert!(status.expect("ping is installed").success(), "ping {to}");
            }
        });
        for to in ["10.0.1.10", "fd00:1::10"] {
            wait_for(&resolver, to, |way| peer_mac(way) == Some(OTHER_MAC)).await;
        }
    });
}

#[test]
fn a_moved_address_is_found_though_nobody_says_so() {
    let peer = balancer_and_peer();
    run(async {
        let resolver = resolver(&["10.0.1.10", "fd00:1::10"]);
        assert!(resolver.first_round(PATIENCE).await);
        peer.ip(&format!("link set {PEER_LINK} address {}", text(OTHER_MAC)));
        for to in ["10.0.1.10", "fd00:1::10"] {
            wait_for(&resolver, to, |way| peer_mac(way) == Some(OTHER_MAC) && way.problem.is_none()).await;
        }
    });
}

#[test]
fn a_neighbour_that_dies_keeps_its_address_with_a_problem_and_recovers() {
    let peer = balancer_and_peer();
    run(async {
        let resolver = resolver(&["10.0.1.10", "10.0.1.77"]);
        let absent = wait_for(&resolver, "10.0.1.77", Way::is_settled).await;
        assert_eq!(absent.problem, Some(Problem::NeighbourSilent { neighbour: address("10.0.1.77") }));
        assert_eq!(absent.next_hop, None);
        assert!(resolver.first_round(PATIENCE).await);

        peer.ip(&format!("address delete 10.0.1.10/24 dev {PEER_LINK}"));
        let dead = wait_for(&resolver, "10.0.1.10", |way| way.problem.is_some()).await;
        assert_eq!(dead.problem, Some(Problem::NeighbourSilent { neighbour: address("10.0.1.10") }));
        assert_eq!(peer_mac(&dead), Some(PEER_MAC));

        peer.ip(&format!("address add 10.0.1.10/24 dev {PEER_LINK}"));
        let back = wait_for(&resolver, "10.0.1.10", |way| way.problem.is_none()).await;
        assert_eq!(peer_mac(&back), Some(PEER_MAC));
    });
}

#[test]
fn what_cannot_be_reached_is_settled_with_the_reason() {
    let peer = balancer_and_peer();
    add_link(&peer, "lb1", [2, 0, 0, 0, 0, 3], "peer1", [2, 0, 0, 0, 0, 4]);
    ip("address add 10.0.2.5/24 dev lb1");
    peer.ip("address add 10.0.2.10/24 dev peer1");
    ip("route add 192.0.2.0/24 dev lo");
    ip("route add blackhole 198.51.100.0/24");
    ip("route add unreachable fd00:8::/64");
    run(async {
        let lo = Problem::NotEthernet { interface: "lo".into() };
        let lb1 = Problem::NotInInterfaces { interface: "lb1".into() };
        let expected = [
            ("203.0.113.1", Problem::NoRoute),
            ("fd00:7::1", Problem::NoRoute),
            ("10.0.1.5", Problem::OwnAddress),
            ("fd00:1::5", Problem::OwnAddress),
            ("127.0.0.1", Problem::OwnAddress),
            ("10.0.1.255", Problem::NotUnicast),
            ("198.51.100.1", Problem::Refused),
            ("fd00:8::1", Problem::Refused),
            ("192.0.2.1", lo),
            ("10.0.2.10", lb1),
        ];
        let resolver = resolver(&expected.each_ref().map(|(to, _)| *to));
        assert!(resolver.first_round(PATIENCE).await);
        for (to, problem) in &expected {
            let way = wait_for(&resolver, to, |way| way.problem.as_ref() == Some(problem)).await;
            assert!(way.next_hop.is_none() || *to == "10.0.2.10", "{to}: {way:?}");
        }
        wait_for(&resolver, "10.0.2.10", |way| peer_mac(way) == Some([2, 0, 0, 0, 0, 4])).await;
    });
}

#[test]
fn routes_links_and_addresses_that_come_and_go_are_followed() {
    let _peer = balancer_and_peer();
    run(async {
        let resolver = resolver(&["192.0.2.1", "10.0.1.10", "10.0.1.100"]);
        wait_for(&resolver, "192.0.2.1", |way| way.problem == Some(Problem::NoRoute)).await;
        ip("route add default via 10.0.1.10");
        wait_for(&resolver, "192.0.2.1", |way| peer_mac(way) == Some(PEER_MAC)).await;
        ip("route add blackhole 192.0.2.0/24");
        wait_for(&resolver, "192.0.2.1", |way| way.problem == Some(Problem::Refused)).await;
        ip("route delete blackhole 192.0.2.0/24");
        wait_for(&resolver, "192.0.2.1", |way| peer_mac(way) == Some(PEER_MAC)).await;

        ip(&format!("address add 10.0.1.100/32 dev {LINK}"));
        wait_for(&resolver, "10.0.1.100", |way| way.problem == Some(Problem::OwnAddress)).await;
        ip(&format!("address delete 10.0.1.100/32 dev {LINK}"));
        wait_for(&resolver, "10.0.1.100", |way| way.problem != Some(Problem::OwnAddress)).await;

        ip(&format!("link set {LINK} down"));
        wait_for(&resolver, "10.0.1.10", |way| way.problem == Some(Problem::NoRoute)).await;
        ip(&format!("link set {LINK} up"));
        let back = wait_for(&resolver, "10.0.1.10", |way| peer_mac(way) == Some(PEER_MAC)).await;
        assert_eq!(back.onlink_prefix_len, 24);

        ip(&format!("link set {LINK} address {} mtu 1280", text(OTHER_MAC)));
        let own = |way: &Way| way.next_hop.map(|hop| hop.local) == Some(OTHER_MAC) && way.mtu == 1280;
        wait_for(&resolver, "10.0.1.10", own).await;
    });
}

#[test]
fn an_ipv6_backend_waits_for_a_link_local_address_to_be_asked_from() {
    let _peer = balancer_and_peer();
    ip(&format!("-6 address flush dev {LINK} scope link"));
    run(async {
        let resolver = resolver(&["fd00:1::10"]);
        let way = wait_for(&resolver, "fd00:1::10", |way| way.problem.is_some()).await;
        assert_eq!(way.problem, Some(Problem::NoLinkLocal { interface: LINK.into() }));
        assert!(!resolver.first_round(Duration::ZERO).await);
        ip(&format!("-6 address add fe80::5/64 dev {LINK} nodad"));
        assert!(resolver.first_round(PATIENCE).await);
        wait_for(&resolver, "fd00:1::10", |way| peer_mac(way) == Some(PEER_MAC) && way.problem.is_none())
            .await;
    });
}

#[test]
fn the_set_of_addresses_is_replaced_at_run_time() {
    let _peer = balancer_and_peer();
    run(async {
        let resolver = resolver(&[]);
        assert!(resolver.first_round(Duration::ZERO).await, "there is nothing to wait for");
        resolver.watch(addresses(&["10.0.1.10", "203.0.113.1"]));
        assert!(resolver.first_round(PATIENCE).await);
        resolver.watch(addresses(&["fd00:1::10"]));
        assert!(resolver.first_round(PATIENCE).await);
        let mut ways = resolver.ways();
        let only = ways.wait_for(|ways| ways.len() == 1);
        assert!(timeout(PATIENCE, only).await.is_ok_and(|ways| ways.is_ok()), "{:?}", resolver.ways());
        wait_for(&resolver, "fd00:1::10", |way| peer_mac(way) == Some(PEER_MAC)).await;
    });
}

#[test]
fn the_first_round_is_bounded() {
    let _peer = balancer_and_peer();
    // Ten seconds until the kernel gives up.
    sysctl(&format!("net/ipv4/neigh/{LINK}/mcast_solicit"), 200);
    run(async {
        let resolver = resolver(&["10.0.1.77"]);
        let start = Instant::now();
        assert!(!resolver.first_round(Duration::from_millis(200)).await);
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    });
}

/// Feeds lines to `ip -batch`, which is done when this returns.
fn ip_batch(lines: &str) {
    let mut child = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("iproute2 is installed");
    child.stdin.take().expect("a pipe").write_all(lines.as_bytes()).expect("the lines are taken");
    assert!(child.wait().expect("it ends").success());
}

#[test]
fn lost_announcements_are_made_up_for() {
    let _peer = balancer_and_peer();
    run(async {
        let resolver = resolver(&["10.0.1.10", "10.0.1.20", "192.0.2.1"]);
        assert!(resolver.first_round(PATIENCE).await);
        // The runtime has this thread only: until the next `await` the resolver does not get to read anything.
        let bystander = Bystander::new();
        for block in 0_u8.. {
            let routes = (0..2_000)
                .map(|n| format!("route add 172.{}.{}.{}/32 dev {LINK}\n", 16 + block, n / 250, n % 250));
            ip_batch(&routes.collect::<String>());
            if bystander.has_lost() {
                break;
            }
        }
        ip(&format!("neigh replace 10.0.1.20 lladdr {} dev {LINK} nud permanent", text(OTHER_MAC)));
        ip("route add 192.0.2.0/24 via 10.0.1.20");
        for to in ["10.0.1.20", "192.0.2.1"] {
            let way = wait_for(&resolver, to, |way| peer_mac(way) == Some(OTHER_MAC)).await;
            assert_eq!(way.problem, None);
        }
    });
}

/// Another listener to the announcements of routes, who does not read them either.
struct Bystander(Socket);

impl Bystander {
    fn new() -> Self {
        let mut socket = Socket::new(NETLINK_ROUTE).expect("a netlink socket");
        socket.set_non_blocking(true).expect("a non-blocking socket");
        socket.bind_auto().expect("an address");
        // As much as the kernel grants anyone.
        socket.set_rx_buf_sz(i32::MAX / 2).expect("a large buffer");
        socket.add_membership(MulticastGroup::Ipv4Route as u32).expect("membership");
        Self(socket)
    }

    /// Whether the kernel has dropped announcements for want of room: for everybody, then.
    fn has_lost(&self) -> bool {
        let result = self.0.recv(&mut Vec::with_capacity(1), libc::MSG_PEEK);
        result.is_err_and(|error| error.raw_os_error() == Some(libc::ENOBUFS))
    }
}

#[test]
fn as_many_backends_as_there_can_be_are_resolved_and_followed() {
    let _peer = balancer_and_peer();
    ip("route add 172.16.0.0/16 via 10.0.1.10");
    run(async {
        let resolver = Resolver::new([LINK.to_owned()]).expect("a resolver");
        let many: BTreeSet<IpAddr> =
            (0..16_384_u32).map(|n| IpAddr::from([172, 16, (n >> 8) as u8, n as u8])).collect();
        let start = Instant::now();
        resolver.watch(many.clone());
        assert!(resolver.first_round(PATIENCE).await);
        let first = start.elapsed();
        assert!(resolver.ways().borrow().values().all(|way| peer_mac(way) == Some(PEER_MAC)));

        let start = Instant::now();
        ip("route replace 172.16.0.0/16 via 10.0.1.10 mtu 1400");
        let mut ways = resolver.ways();
        let followed = ways.wait_for(|ways| ways.values().all(|way| way.mtu == 1400));
        assert!(timeout(PATIENCE, followed).await.is_ok_and(|ways| ways.is_ok()));
        println!("16,384 routes: first round {first:?}, a change of the route to all {:?}", start.elapsed());
    });
}

#[test]
fn the_state_of_a_neighbour_is_told() {
    let _peer = balancer_and_peer();
    ip("route add 192.0.2.0/24 via 10.0.1.20");
    assert_eq!(neighbour_state(address("10.0.1.5")), None, "this host's own");
    assert_eq!(neighbour_state(address("203.0.113.1")), None, "no route");
    assert_eq!(neighbour_state(address("10.0.1.20")), None, "nobody has asked for it");
    for (state, expected) in [("permanent", NeighbourState::Permanent), ("stale", NeighbourState::Stale)] {
        ip(&format!("neigh replace 10.0.1.20 lladdr {} dev {LINK} nud {state}", text(OTHER_MAC)));
        assert_eq!(neighbour_state(address("10.0.1.20")), Some(expected));
        assert_eq!(neighbour_state(address("192.0.2.1")), Some(expected), "its gateway");
    }
    run(async {
        let resolver = resolver(&["10.0.1.77"]);
        wait_for(&resolver, "10.0.1.77", Way::is_settled).await;
        let state = neighbour_state(address("10.0.1.77"));
        assert!(matches!(state, Some(NeighbourState::Failed | NeighbourState::Incomplete)), "{state:?}");
    });
}

/// The entries it asks the kernel to keep warm are ordinary ones, which the kernel may still collect.
#[test]
fn nothing_permanent_is_left_in_the_neighbour_table() {
    let _peer = balancer_and_peer();
    run(async {
        let resolver = resolver(&["10.0.1.10"]);
        assert!(resolver.first_round(PATIENCE).await);
    });
    let entry = ip_json(&format!("neigh show 10.0.1.10 dev {LINK}"));
    let entry = entry[0].as_object().expect("an entry");
    assert_eq!(entry["lladdr"], text(PEER_MAC));
    assert_ne!(entry["state"][0], "PERMANENT");
    assert!(!entry.contains_key("managed") && !entry.contains_key("extern_learn"), "{entry:?}");
}
