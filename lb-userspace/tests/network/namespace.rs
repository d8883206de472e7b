//! The two hosts of a test.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::panic::resume_unwind;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::geteuid;
use serde_json::Value;

/// The link of the balancer, and the peer's end of it.
pub(crate) const LINK: &str = "lb0";
pub(crate) const PEER_LINK: &str = "peer0";
pub(crate) const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub(crate) const PEER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// A machine on the other end of the link, in a network namespace that is gone with this value.
pub(crate) struct Peer {
    namespace: File,
}

impl Peer {
    /// Runs `work` on a thread inside the peer. Sockets it opens stay the peer's outside.
    pub(crate) fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            setns(&self.namespace, CloneFlags::CLONE_NEWNET).expect("enter the peer's namespace");
            work()
        };
        thread::scope(|scope| scope.spawn(inside).join()).unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// Runs `ip` with these words inside the peer.
    pub(crate) fn ip(&self, words: &str) -> String {
        self.enter(|| ip(words))
    }
}

/// Makes the calling thread a balancer with the addresses 10.0.1.5/24 and fd00:1::5/64 on `lb0`, and a peer with
/// 10.0.1.10 and fd00:1::10. The kernel's timers for neighbours are short on both, so that a test sees in tenths of a
/// second what takes half a minute otherwise.
pub(crate) fn balancer_and_peer() -> Peer {
    assert!(
        geteuid().is_root(),
        "this test makes network namespaces, which only root may do; found user id {}: run it as root, e.g. \
         `sudo -E cargo test -p lb-userspace`",
        geteuid()
    );
    let namespace = thread::scope(|scope| scope.spawn(new_namespace).join().expect("the peer's namespace"));
    let peer = Peer { namespace };
    // Every test has a thread of its own, which ends with it.
    unshare(CloneFlags::CLONE_NEWNET).expect("the balancer's namespace");
    ip("link set lo up");
    peer.ip("link set lo up");
    add_link(&peer, LINK, MAC, PEER_LINK, PEER_MAC);
    for (family, own, others) in
        [("-4", "10.0.1.5/24", "10.0.1.10/24"), ("-6", "fd00:1::5/64", "fd00:1::10/64")]
    {
        let nodad = if family == "-6" { "nodad" } else { "" };
        ip(&format!("{family} address add {own} dev {LINK} {nodad}"));
        peer.ip(&format!("{family} address add {others} dev {PEER_LINK} {nodad}"));
    }
    peer
}

/// Joins the balancer and the peer by a veth pair.
pub(crate) fn add_link(peer: &Peer, own: &str, mac: [u8; 6], others: &str, others_mac: [u8; 6]) {
    let namespace = format!("/proc/{}/fd/{}", std::process::id(), peer.namespace.as_raw_fd());
    let (mac, others_mac) = (text(mac), text(others_mac));
    ip(&format!(
        "link add name {own} address {mac} type veth peer name {others} address {others_mac} netns {namespace}"
    ));
    hurry(own);
    peer.enter(|| hurry(others));
    ip(&format!("link set {own} up"));
    peer.ip(&format!("link set {others} up"));
    wait_until_operational(own);
    peer.enter(|| wait_until_operational(others));
}

/// A link that is up discards what is sent until it is operational, up to a second later.
fn wait_until_operational(link: &str) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while ip_json(&format!("link show {link}"))[0]["operstate"] != "UP" {
        assert!(Instant::now() < deadline, "{link} does not become operational");
    }
}

/// Short timers for the neighbours on a link.
fn hurry(link: &str) {
    for family in ["ipv4", "ipv6"] {
        for (key, value) in [
            ("base_reachable_time_ms", 500),
            ("retrans_time_ms", 50),
            ("delay_first_probe_time", 0),
            ("locktime", 0),
        ] {
            sysctl(&format!("net/{family}/neigh/{link}/{key}"), value);
        }
    }
    // Neighbour solicitations come from the link-local address, which would be unusable for a second.
    sysctl(&format!("net/ipv6/conf/{link}/accept_dad"), 0);
}

/// Sets a kernel setting of the namespace of the calling thread.
pub(crate) fn sysctl(path: &str, value: u32) {
    fs::write(format!("/proc/sys/{path}"), value.to_string())
        .unwrap_or_else(|error| panic!("{path}: {error}"));
}

fn new_namespace() -> File {
    unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
    File::open("/proc/thread-self/ns/net").expect("the namespace's file")
}

/// Runs `ip` with these words in the namespace of the calling thread, and returns what it says.
pub(crate) fn ip(words: &str) -> String {
    let output = Command::new("ip").args(words.split_whitespace()).output().expect("iproute2 is installed");
    assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// What `ip -json` says, as data.
pub(crate) fn ip_json(words: &str) -> Value {
    serde_json::from_str(&ip(&format!("-json {words}"))).expect("JSON")
}

/// A MAC as `ip` writes it.
pub(crate) fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
