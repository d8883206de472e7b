//! Virtual addresses are added, announced and removed again.

use std::collections::BTreeSet;
use std::fs;
use std::io::{ErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lb_userspace::network::Error;
use lb_userspace::network::vip::{self, Assigned, Ours, announce, release};
use serde_json::Value;
use socket2::{Domain, Protocol, Socket, Type};

use crate::namespace::{LINK, MAC, PEER_LINK, Peer, add_link, balancer_and_peer, ip, ip_json, sysctl, text};

/// A run directory of its own for a test, removed afterwards.
struct RunDir(PathBuf);

impl RunDir {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("lb-vip-{name}-{}", std::process::id()));
        fs::create_dir(&path).expect("a new directory");
        Self(path)
    }

    fn has_record(&self) -> bool {
        self.0.join("assigned.json").exists()
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn assign(run_dir: &Path, vips: &BTreeSet<IpAddr>, interfaces: &[String]) -> Result<Vec<Assigned>, Error> {
    vip::assign(run_dir, vips, interfaces).map(|ours| ours.all)
}

fn vips(texts: &[&str]) -> BTreeSet<IpAddr> {
    texts.iter().map(|text| text.parse().expect("an address")).collect()
}

fn links(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn on(interface: &str, texts: &[&str]) -> Vec<Assigned> {
    vips(texts).into_iter().map(|vip| Assigned { vip, interface: interface.to_owned() }).collect()
}

/// What the kernel knows of an address of this host.
fn address(text: &str) -> Option<Value> {
    let links = ip_json("address show");
    let all = links.as_array().expect("a list").iter().flat_map(|link| {
        let name = &link["ifname"];
        let list = link["addr_info"].as_array().into_iter().flatten();
        list.map(move |info| {
            let mut info = info.clone();
            info["ifname"] = name.clone();
            info
        })
    });
    all.into_iter().find(|info| info["local"] == text)
}

#[test]
fn vips_are_added_where_they_belong_and_removed_again() {
    let peer = balancer_and_peer();
    add_link(&peer, "lb1", [2, 0, 0, 0, 0, 3], "peer1", [2, 0, 0, 0, 0, 4]);
    ip("address add 10.0.2.5/24 dev lb1");
    let run_dir = RunDir::new("added");
    let wanted = vips(&["10.0.1.100", "10.0.2.100", "fd00:1::100", "192.0.2.100"]);
    let added = assign(&run_dir.0, &wanted, &links(&[LINK, "lb1"])).expect("added");
    let mut expected = on(LINK, &["10.0.1.100", "fd00:1::100", "192.0.2.100"]);
    expected.extend(on("lb1", &["10.0.2.100"]));
    expected.sort_by_key(|address| address.vip);
    assert_eq!(added, expected);

    let v4 = address("10.0.1.100").expect("added");
    assert_eq!((&v4["prefixlen"], &v4["scope"], &v4["ifname"]), (&32.into(), &"host".into(), &LINK.into()));
    let v6 = address("fd00:1::100").expect("added");
    assert_eq!((&v6["prefixlen"], &v6["ifname"]), (&128.into(), &LINK.into()));
    for flag in ["deprecated", "nodad", "noprefixroute"] {
        assert_eq!(v6[flag], true, "{flag}: {v6}");
    }
    assert_eq!(v6.get("tentative"), None);
    assert_eq!(address("10.0.2.100").expect("added")["ifname"], "lb1");
    for vip in ["10.0.1.100", "fd00:1::100"] {
        assert_eq!(ip(&format!("route show {vip}")), "", "no route but the local one");
    }

    assert_eq!(release(&run_dir.0, &BTreeSet::new()).expect("removed"), expected);
    for vip in &wanted {
        assert_eq!(address(&vip.to_string()), None);
    }
    assert!(address("10.0.1.5").is_some() && address("fd00:1::5").is_some());
    assert!(!run_dir.has_record());
}

/// The host's own connections, health checks among them, must not come from the virtual address.
#[test]
fn a_vip_is_never_the_source_of_the_hosts_own_connections() {
    let _peer = balancer_and_peer();
    let run_dir = RunDir::new("source");
    // The worst case: the virtual address is there before any other.
    ip(&format!("address flush dev {LINK}"));
    assign(&run_dir.0, &vips(&["10.0.1.100", "fd00:1::100"]), &links(&[LINK])).expect("added");
    ip(&format!("address add 10.0.1.5/24 dev {LINK}"));
    ip(&format!("-6 address add fd00:1::5/64 dev {LINK} nodad"));
    ip("route add 192.0.2.0/24 via 10.0.1.10");
    ip(&format!("route add 198.51.100.0/24 dev {LINK}"));
    ip(&format!("route add 203.0.113.0/24 via 10.9.9.9 dev {LINK} onlink"));
    ip("-6 route add fd00:9::/64 via fd00:1::10");
    for (to, source) in [
        ("10.0.1.10", "10.0.1.5"),
        ("192.0.2.1", "10.0.1.5"),
        ("198.51.100.1", "10.0.1.5"),
        ("203.0.113.1", "10.0.1.5"),
        ("fd00:1::10", "fd00:1::5"),
        ("fd00:9::1", "fd00:1::5"),
    ] {
        assert_eq!(ip_json(&format!("route get {to}"))[0]["prefsrc"], source, "to {to}");
    }
    release(&run_dir.0, &BTreeSet::new()).expect("removed");
}

#[test]
fn an_address_that_was_there_before_is_left_alone() {
    let _peer = balancer_and_peer();
    let run_dir = RunDir::new("foreign");
    ip(&format!("address add 10.0.1.100/24 dev {LINK}"));
    ip(&format!("-6 address add fd00:1::100/128 dev {LINK} nodad"));
    let wanted = vips(&["10.0.1.100", "10.0.1.101", "fd00:1::100"]);
    assert_eq!(assign(&run_dir.0, &wanted, &links(&[LINK])).expect("added"), on(LINK, &["10.0.1.101"]));
    assert_eq!(release(&run_dir.0, &BTreeSet::new()).expect("removed"), on(LINK, &["10.0.1.101"]));
    assert_eq!(address("10.0.1.101"), None);
    assert_eq!(address("10.0.1.100").expect("kept")["prefixlen"], 24);
    assert!(address("fd00:1::100").is_some());
}

#[test]
fn a_later_process_adopts_what_an_earlier_one_added() {
    let _peer = balancer_and_peer();
    let run_dir = RunDir::new("adopted");
    let both = vips(&["10.0.1.100", "fd00:1::100"]);
    let added = assign(&run_dir.0, &both, &links(&[LINK])).expect("added");
    assert_eq!(assign(&run_dir.0, &both, &links(&[LINK])).expect("adopted"), added);

    // One has been removed by hand: it is added again.
    ip(&format!("address delete 10.0.1.100/32 dev {LINK}"));
    let ours = vip::assign(&run_dir.0, &both, &links(&[LINK])).expect("adopted");
    assert_eq!((ours.all, ours.added), (added, on(LINK, &["10.0.1.100"])));
    assert!(address("10.0.1.100").is_some());

    // A reload drops one and brings another.
    let next = vips(&["fd00:1::100", "10.0.1.102"]);
    assert_eq!(release(&run_dir.0, &next).expect("removed"), on(LINK, &["10.0.1.100"]));
    let Ours { all: now, added } = vip::assign(&run_dir.0, &next, &links(&[LINK])).expect("added");
    assert_eq!(added, on(LINK, &["10.0.1.102"]));
    assert_eq!(now, on(LINK, &["fd00:1::100", "10.0.1.102"]));
    assert_eq!(address("10.0.1.100"), None);
    assert!(address("fd00:1::100").is_some() && address("10.0.1.102").is_some());

    assert_eq!(release(&run_dir.0, &BTreeSet::new()).expect("removed"), now);
    assert!(!run_dir.has_record());
    assert_eq!(release(&run_dir.0, &BTreeSet::new()).expect("nothing to do"), []);
}

#[test]
fn the_record_is_there_before_the_address_and_survives_a_refusal() {
    let _peer = balancer_and_peer();
    let run_dir = RunDir::new("crash");
    sysctl(&format!("net/ipv6/conf/{LINK}/disable_ipv6"), 1);
    let wanted = vips(&["10.0.1.100", "fd00:1::100"]);
    let error = assign(&run_dir.0, &wanted, &links(&[LINK])).expect_err("IPv6 is disabled").to_string();
    assert!(error.contains(&format!("add fd00:1::100 to {LINK}")), "{error}");
    let record = fs::read_to_string(run_dir.0.join("assigned.json")).expect("a record");
    assert!(record.contains("10.0.1.100") && record.contains("fd00:1::100"), "{record}");

    assert!(address("10.0.1.100").is_some());
    release(&run_dir.0, &BTreeSet::new()).expect("what is not there counts as removed");
    assert_eq!(address("10.0.1.100"), None);
    assert!(!run_dir.has_record());
}

#[test]
fn the_addresses_of_an_interface_that_is_gone_count_as_removed() {
    let peer = balancer_and_peer();
    add_link(&peer, "lb1", [2, 0, 0, 0, 0, 3], "peer1", [2, 0, 0, 0, 0, 4]);
    let run_dir = RunDir::new("gone");
    assign(&run_dir.0, &vips(&["10.0.3.100"]), &links(&["lb1"])).expect("added");
    ip("link delete lb1");
    assert_eq!(release(&run_dir.0, &BTreeSet::new()).expect("removed"), on("lb1", &["10.0.3.100"]));
    assert!(!run_dir.has_record());
}

#[test]
fn an_interface_that_does_not_exist_is_refused_before_anything_is_added() {
    let _peer = balancer_and_peer();
    let run_dir = RunDir::new("missing");
    let error = assign(&run_dir.0, &vips(&["10.0.1.100"]), &links(&[LINK, "eth7"])).expect_err("no eth7");
    assert!(matches!(&error, Error::NoInterface { name } if name == "eth7"), "{error}");
    assert_eq!(address("10.0.1.100"), None);
    assert!(!run_dir.has_record());
}

/// Listens to everything that reaches the peer.
fn capture(peer: &Peer) -> Socket {
    let every = Protocol::from(i32::from((libc::ETH_P_ALL as u16).to_be()));
    let open = || Socket::new(Domain::PACKET, Type::RAW, Some(every)).expect("a packet socket");
    let socket = peer.enter(open);
    socket.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout");
    socket
}

/// Reads frames until as many as wanted have come that pass the filter, or a deadline passes.
fn frames(mut socket: &Socket, wanted: usize, filter: impl Fn(&[u8]) -> bool) -> Vec<Vec<u8>> {
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut frames = Vec::new();
    let mut buffer = [0; 2048];
    while frames.len() < wanted && Instant::now() < deadline {
        match socket.read(&mut buffer) {
            Ok(length) if filter(&buffer[..length]) => frames.push(buffer[..length].to_vec()),
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => panic!("capture: {error}"),
        }
    }
    frames
}

/// Runs `announce` on a runtime in the namespace of the calling thread.
fn announce_all(assigned: &[Assigned]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(announce(assigned));
}

#[test]
fn the_neighbours_are_told_three_times_where_the_addresses_are() {
    let peer = balancer_and_peer();
    sysctl(&format!("net/ipv6/conf/{LINK}/forwarding"), 1);
    let run_dir = RunDir::new("announced");
    let (v4, v6) = (Ipv4Addr::new(10, 0, 1, 100), "fd00:1::100".parse::<Ipv6Addr>().expect("an address"));
    // The peer still remembers the balancer that had the addresses before.
    for vip in [IpAddr::from(v4), v6.into()] {
        peer.ip(&format!("neigh add {vip} lladdr 02:00:00:00:00:77 dev {PEER_LINK} nud stale"));
    }
    let assigned = assign(&run_dir.0, &vips(&["10.0.1.100", "fd00:1::100"]), &links(&[LINK])).expect("added");
    let socket = capture(&peer);
    announce_all(&assigned);

    let is_arp = |frame: &[u8]| frame[12..14] == [8, 6] && frame[28..32] == v4.octets();
    let is_advertisement = |frame: &[u8]| frame.get(54) == Some(&136) && frame[62..78] == v6.octets();
    let all = frames(&socket, 9, |frame| is_arp(frame) || is_advertisement(frame));
    let arps: Vec<_> = all.iter().filter(|frame| is_arp(frame)).collect();
    let advertisements: Vec<_> = all.iter().filter(|frame| is_advertisement(frame)).collect();
    assert_eq!((arps.len(), advertisements.len()), (6, 3));

    for (n, frame) in arps.into_iter().enumerate() {
        let (operation, target_mac) = if n % 2 == 0 { (1, [0; 6]) } else { (2, MAC) };
        let head = [&[0xff; 6][..], &MAC, &[8, 6, 0, 1, 8, 0, 6, 4, 0, operation]].concat();
        let body = [&MAC[..], &v4.octets(), &target_mac, &v4.octets()].concat();
        assert_eq!(frame[..42], [head, body].concat());
    }
    for frame in advertisements {
        assert_eq!(frame[..14], [&[0x33, 0x33, 0, 0, 0, 1][..], &MAC, &[0x86, 0xdd]].concat());
        assert_eq!(frame[14..22], [0x60, 0, 0, 0, 0, 32, 58, 255]);
        assert_eq!(frame[22..38], v6.octets());
        assert_eq!(frame[38..54], "ff02::1".parse::<Ipv6Addr>().expect("an address").octets());
        // Router (this host forwards) and override, but not solicited.
        assert_eq!(frame[58..62], [0xa0, 0, 0, 0]);
        assert_eq!(frame[78..86], [&[2, 1][..], &MAC].concat());
        assert_eq!(frame.len(), 86);
        assert_eq!(icmpv6_sum(&frame[14..]), 0xffff);
    }
    for vip in ["10.0.1.100", "fd00:1::100"] {
        let entry = peer.enter(|| ip_json(&format!("neigh show {vip} dev {PEER_LINK}")));
        assert_eq!(entry[0]["lladdr"], text(MAC), "the peer believes it: {entry}");
    }
    release(&run_dir.0, &BTreeSet::new()).expect("removed");
}

/// The one's complement sum (RFC 1071) over an ICMPv6 message and its pseudo header (RFC 8200, section 8.1): 0xffff if
/// the checksum in it is right.
fn icmpv6_sum(packet: &[u8]) -> u16 {
    let message = &packet[40..];
    let pseudo = [&packet[8..40], &(message.len() as u32).to_be_bytes(), &[0, 0, 0, 58]].concat();
    let words =
        pseudo.chunks(2).chain(message.chunks(2)).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    ((folded & 0xffff) + (folded >> 16)) as u16
}
