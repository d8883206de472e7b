//! A client, a balancer with two arms and the backends, for each peer one set of them, all alike:
//!
//! ```text
//! client 10.0.2.50-57 ── 10.0.2.2 balancer 10.0.1.2 ── 10.0.1.10-13 backends, on one host
//! flows 10.9.0.0/16 ┘             VIP 10.0.1.100
//! ```
//!
//! Packets never change their CPU by chance: each end of a cable has a kernel thread that takes what arrives (threaded
//! NAPI), and those of the balancer's ends are on the balancer's CPU, all others on the other.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lb_tests::netns::{Host, Net};

use crate::cores::{Awake, Cores, PACKETS, Work, keep_on, kernel_threads, make_urgent};
use crate::frames::{End, Sender};
use crate::peer::{Peer, Running};

/// The address of the listeners.
pub(crate) const VIP: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 100);
/// The addresses of the backends: 100,000 flows from one address need more ports than one of them has.
pub(crate) const BACKENDS: [Ipv4Addr; 4] = [backend(10), backend(11), backend(12), backend(13)];
/// The addresses of the client's sockets: enough for ports not to be used twice.
pub(crate) const CLIENTS: [Ipv4Addr; 8] =
    [client(50), client(51), client(52), client(53), client(54), client(55), client(56), client(57)];
/// Where the flows come from that a program makes up.
pub(crate) const FLOWS: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 0);
/// TCP port that answers with what it gets.
pub(crate) const REQUEST_PORT: u16 = 8080;
/// TCP port that takes everything and answers nothing.
pub(crate) const BULK_PORT: u16 = 8081;
/// How long anything may take that is not measured.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

const fn backend(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 1, number)
}

const fn client(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 2, number)
}

/// Names of the ends of the two cables. The kernel threads are named after them, so no two runs may have the same.
#[derive(Debug)]
pub(crate) struct Names {
    pub(crate) client: String,
    /// The balancer's end of the cable to the client.
    pub(crate) front: String,
    /// The balancer's end of the cable to the backends.
    pub(crate) rear: String,
    pub(crate) backend: String,
}

impl Names {
    fn of(number: usize) -> Self {
        let name = |letter| format!("{letter}{number}-{:x}", process::id());
        Self { client: name('c'), front: name('f'), rear: name('r'), backend: name('b') }
    }
}

/// Three hosts with a peer on the one in the middle.
pub(crate) struct Site {
    pub(crate) peer: Peer,
    pub(crate) client: Host,
    pub(crate) backend: Host,
    pub(crate) running: Running,
    pub(crate) sender: Sender,
    pub(crate) client_end: End,
    pub(crate) backend_end: End,
    balancer: Host,
    names: Names,
    cores: Cores,
}

impl Site {
    /// Connects the hosts; nothing runs on them yet.
    pub(crate) fn build(net: &Net, peer: Peer, cores: Cores, object: &Path) -> Result<Self> {
        let [client, balancer, backend] = ["client", "balancer", "backend"].map(|name| net.host(name));
        let (client, balancer, backend) = (client?, balancer?, backend?);
        let names = Names::of(peer as usize);
        for host in [&client, &balancer, &backend] {
            prepare(host)?;
        }
        cable(&balancer, &names, &client, &backend)?;
        addresses(peer, &client, &balancer, &backend, &names)?;
        let client_end = End::load(object, &client, &names.client)?;
        let backend_end = End::load(object, &backend, &names.backend)?;
        let sender = Sender::load(object, &client, &names.client, mac(&balancer, &names.front)?)?;
        let running = Running::default();
        Ok(Self { peer, client, backend, running, sender, client_end, backend_end, balancer, names, cores })
    }

    /// Starts the peer, and gives everybody its CPU. The servers have to listen by now.
    pub(crate) fn start(&mut self) -> Result<()> {
        self.running = self.peer.start(&self.balancer, &self.names, self.cores.balancer)?;
        let Names { client, front, rear, backend } = &self.names;
        let Cores { balancer, traffic } = self.cores;
        let ends = [(front, balancer), (backend, traffic), (rear, balancer), (client, traffic)];
        for ((end, cpu), urgency) in ends.into_iter().zip(PACKETS) {
            for thread in napi_threads(end)? {
                keep_on(thread, cpu)?;
                make_urgent(thread, urgency)?;
            }
        }
        Ok(())
    }

    /// What the balancer does, its processes included.
    pub(crate) fn work(&self) -> Result<Work> {
        self.work_of(&self.running.processes())
    }

    /// What the balancer does when a packet arrives. What its processes do besides is too uneven for short trials.
    pub(crate) fn packet_work(&self) -> Result<Work> {
        self.work_of(&[])
    }

    /// Keeps the CPUs from being idle.
    pub(crate) fn awake(&self) -> Awake {
        Awake::keep(&[self.cores.balancer, self.cores.traffic])
    }

    fn work_of(&self, processes: &[u32]) -> Result<Work> {
        let mut threads = napi_threads(&self.names.front)?;
        threads.extend(napi_threads(&self.names.rear)?);
        Work::of(self.cores.balancer, threads, processes)
    }

    /// Where a client finds the service.
    pub(crate) fn targets(&self) -> &'static [Ipv4Addr] {
        if self.peer == Peer::Routing { &BACKENDS } else { &[VIP] }
    }

    /// Segments and datagrams that hosts have refused for their checksum.
    pub(crate) fn refused(&self) -> Result<u64> {
        let [tcp, udp] = counts([&self.client, &self.backend], ["TcpInCsumErrors", "UdpInCsumErrors"])?;
        Ok(tcp + udp)
    }

    /// Segments that whoever sends to the backends, or to a proxy before them, has sent for the first time, and again.
    pub(crate) fn segments(&self) -> Result<[u64; 2]> {
        counts([&self.client, &self.balancer], ["TcpOutSegs", "TcpRetransSegs"])
    }
}

/// What counters of the kernel, as nstat(8) calls them, come to on two hosts.
fn counts<const N: usize>(hosts: [&Host; 2], names: [&str; N]) -> Result<[u64; N]> {
    let mut counts = [0; N];
    for host in hosts {
        let line = format!("nstat --zeros --ignore --noupdate {}", names.join(" "));
        let text = host.run(&line)?.success()?.stdout;
        for (count, name) in counts.iter_mut().zip(names) {
            let found = text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next());
            let number = found.and_then(|number| number.parse::<u64>().ok());
            *count += number.with_context(|| format!("nstat says nothing of {name}: {text}"))?;
        }
    }
    Ok(counts)
}

fn prepare(host: &Host) -> Result<()> {
    for scope in ["all", "default"] {
        host.sysctl(&format!("net/ipv6/conf/{scope}/disable_ipv6"), 1)?;
        host.sysctl(&format!("net/ipv4/conf/{scope}/rp_filter"), 0)?;
    }
    // A namespace takes over the machine's. BBR, where it is set, holds back segments by timers and lets one in six be
    // lost on such short queues; this one is in every kernel.
    host.sysctl("net/ipv4/tcp_congestion_control", "reno")?;
    // The kernel's own limits again, in place of what spares other tests.
    host.sysctl("net/ipv4/tcp_wmem", "4096 16384 4194304")?;
    host.sysctl("net/ipv4/ip_local_port_range", "1024 65535")?;
    host.sysctl("net/ipv4/tcp_max_syn_backlog", 4096)?;
    host.sysctl("net/core/somaxconn", 4096)
}

/// Lays both cables.
fn cable(balancer: &Host, names: &Names, client: &Host, backend: &Host) -> Result<()> {
    for (own, end, host) in [(&names.front, &names.client, client), (&names.rear, &names.backend, backend)] {
        balancer.run_all(&[
            &format!("ip link add {own} type veth peer name {end} netns {}", host.net_path()),
            &format!("ip link set {own} up"),
        ])?;
        host.run(&format!("ip link set {end} up"))?.success()?;
        // Sockets compute checksums themselves: an XDP program on the way loses the note that they did not.
        host.run(&format!("ethtool --features {end} tx off tso off gso off gro on"))?.success()?;
        balancer.run(&format!("ethtool --features {own} tso off gso off gro on"))?.success()?;
        // veth has a thread only with GRO. The balancer is to get each packet by itself: this makes every merged one too
        // large, so that none is. Hosts merge what they get, as hosts do.
        balancer.run(&format!("ip link set {own} gro_max_size 1"))?.success()?;
        for (at, end) in [(host, end), (balancer, own)] {
            let threaded = format!("/sys/class/net/{end}/threaded");
            at.enter(|| fs::write(&threaded, "1").with_context(|| format!("cannot write {threaded}")))?;
        }
    }
    Ok(())
}

fn addresses(peer: Peer, client: &Host, balancer: &Host, backend: &Host, names: &Names) -> Result<()> {
    let ends = CLIENTS.map(|address| (client, address, &names.client)).into_iter();
    let ends = ends.chain(BACKENDS.map(|address| (backend, address, &names.backend)));
    let (front, rear) = (self::client(2), self::backend(2));
    let ends = ends.chain([(balancer, front, &names.front), (balancer, rear, &names.rear)]);
    for (host, address, interface) in ends {
        host.run(&format!("ip address add {address}/24 dev {interface}"))?.success()?;
    }
    client.run(&format!("ip route add 10.0.1.0/24 via {front}"))?.success()?;
    backend.run(&format!("ip route add default via {rear}"))?.success()?;
    balancer.run(&format!("ip route add {FLOWS}/16 via {}", CLIENTS[0]))?.success()?;
    if !peer.is_lb() {
        balancer.run(&format!("ip address add {VIP}/32 dev lo"))?.success()?;
        neighbours(balancer, names, client, backend)?;
    }
    if peer.is_kernel() {
        balancer.sysctl("net/ipv4/ip_forward", 1)?;
    }
    Ok(())
}

/// Tells the kernel its neighbours for good: an answer to ARP that drowns in the traffic would stop it. lb looks after
/// its neighbours itself.
fn neighbours(balancer: &Host, names: &Names, client: &Host, backend: &Host) -> Result<()> {
    let (to_client, to_backend) = (mac(client, &names.client)?, mac(backend, &names.backend)?);
    let clients = CLIENTS.iter().map(|address| (address, to_client, &names.front));
    for (address, mac, interface) in
        clients.chain(BACKENDS.iter().map(|address| (address, to_backend, &names.rear)))
    {
        let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
        balancer.run(&format!("ip neighbour replace {address} lladdr {mac} dev {interface}"))?.success()?;
    }
    Ok(())
}

/// The MAC address of an interface.
fn mac(host: &Host, interface: &str) -> Result<[u8; 6]> {
    let path = format!("/sys/class/net/{interface}/address");
    let text = host.enter(|| fs::read_to_string(&path).with_context(|| format!("cannot read {path}")))?;
    let bytes: Vec<u8> = text.trim().split(':').map_while(|byte| u8::from_str_radix(byte, 16).ok()).collect();
    bytes.try_into().ok().with_context(|| format!("{path} says {text:?}"))
}

/// The kernel threads that take what arrives at an interface.
fn napi_threads(interface: &str) -> Result<Vec<i32>> {
    let threads = kernel_threads(&format!("napi/{interface}-"))?;
    ensure!(!threads.is_empty(), "no kernel thread takes what arrives at {interface}: is its NAPI threaded?");
    Ok(threads)
}
