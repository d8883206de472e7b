//! The kernel's own NAT as the judge: the same frames go through nftables in a namespace and through the program, and
//! must come out equal, byte for byte. Both know the same hosts, MACs and SNAT port, so nothing needs to be left out of
//! the comparison but what [`Exchange::comparable`] names.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lb_tests::netns::{Host, Net, wire::Wire};
use lb_tests::packets::case::{Fragment, IcmpError, Packet};
use lb_tests::packets::oracle::{self, Dissected};
use lb_tests::packets::packet::{self, Ends};
use lb_tests::packets::symbols::{Scope, Symbols};
use lb_tests::packets::{Bench, Family, Network, Verdict, interfaces, settings};
use toml::Table;

/// The only SNAT port there is, so that both take the same.
const PORT: u16 = 20000;

/// How long the kernel may take for a frame, and how long it must be silent to have no more.
const PATIENCE: Duration = Duration::from_secs(5);
const SILENCE: Duration = Duration::from_millis(10);

#[test]
fn nftables_and_the_program_agree_with_snat_v4() -> Result<()> {
    agree(Family::V4, "always")
}

#[test]
fn nftables_and_the_program_agree_with_snat_v6() -> Result<()> {
    agree(Family::V6, "always")
}

#[test]
fn nftables_and_the_program_agree_without_snat_v4() -> Result<()> {
    agree(Family::V4, "never")
}

#[test]
fn nftables_and_the_program_agree_without_snat_v6() -> Result<()> {
    agree(Family::V6, "never")
}

fn agree(family: Family, snat: &str) -> Result<()> {
    let network = Network::read(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/packets")))?;
    let kernel = Kernel::new(&network, family, snat)?;
    // Only now: whoever enters a namespace stays there.
    let mut program = Program::new(&network, family, snat)?;
    let source = if snat == "always" { format!("vip:{PORT}") } else { "client:40000".into() };
    for exchange in exchanges(&source) {
        let frames: Vec<(&str, Vec<u8>)> =
            exchange.packets.iter().map(|packet| program.frame(packet)).collect::<Result<_>>()?;
        let ours = program.send(&frames)?;
        let theirs = kernel.send(&frames, ours.len())?;
        exchange.require_equal(ours, theirs).with_context(|| {
            let sent: Vec<String> = frames.iter().map(|(_, frame)| oracle::describe(frame)).collect();
            format!("{} with snat {snat} over IP{family}; sent:\n{}", exchange.about, sent.join("\n"))
        })?;
    }
    Ok(())
}

/// Frames that came out, with the interface each left through.
type Out = Vec<(String, Vec<u8>)>;

/// Packets that are sent one after the other before anybody looks at what came out.
struct Exchange {
    about: &'static str,
    packets: Vec<Packet>,
}

impl Exchange {
    fn one(about: &'static str, packet: Packet) -> Self {
        Self { about, packets: vec![packet] }
    }

    /// What is compared of the frames that came out. The differences that are known, and why:
    ///
    /// - order: the kernel puts fragments together before it translates, and sends them when the last has come;
    /// - the identification of IPv6 fragments: the kernel takes a new one when it fragments again.
    fn comparable(out: Out) -> Out {
        let mut out: Out = out
            .into_iter()
            .map(|(interface, mut frame)| {
                let is_fragment = Dissected::new(&frame).is_ok_and(|packet| packet.part.is_some());
                if is_fragment && frame[12..14] == [0x86, 0xdd] {
                    frame[58..62].fill(0);
                }
                (interface, frame)
            })
            .collect();
        out.sort();
        out
    }

    fn require_equal(&self, ours: Out, theirs: Out) -> Result<()> {
        let (ours, theirs) = (Self::comparable(ours), Self::comparable(theirs));
        for ((our_interface, our), (their_interface, their)) in ours.iter().zip(&theirs) {
            oracle::require_equal(their, our).context("the kernel's is the expected one")?;
            ensure!(
                our_interface == their_interface,
                "ours left through {our_interface}, not {their_interface}"
            );
        }
        ensure!(ours.len() == theirs.len(), "ours are {} frames, the kernel's {}", ours.len(), theirs.len());
        Ok(())
    }
}

/// Everything that is sent. `source` is what the backend sees as the client.
fn exchanges(source: &str) -> Vec<Exchange> {
    [tcp_life(source), udp_life(source), errors(source), fragments(source)].into_iter().flatten().collect()
}

fn to_vip() -> Packet {
    Packet { src: "client:40000".into(), dst: "vip:80".into(), ..Packet::default() }
}

fn from_backend(source: &str) -> Packet {
    Packet { on: Some("back".into()), src: "far:8080".into(), dst: source.into(), ..Packet::default() }
}

fn tcp_life(source: &str) -> Vec<Exchange> {
    let client = |flags: &str, seq, ack| Packet { tcp: Some(flags.into()), seq, ack, ..to_vip() };
    let backend =
        |flags: &str, seq, ack| Packet { tcp: Some(flags.into()), seq, ack, ..from_backend(source) };
    let data = "GET / HTTP/1.1\r\n\r\n";
    let end = 1001 + data.len() as u32;
    vec![
        Exchange::one("SYN", client("S", 1000, 0)),
        Exchange::one("SYN-ACK", backend("SA", 5000, 1001)),
        Exchange::one("ACK", client("A", 1001, 5001)),
        Exchange::one("data", Packet { payload: data.into(), tos: 0xb8, ..client("PA", 1001, 5001) }),
        Exchange::one("an answer", Packet { payload_length: 1447, ttl: Some(2), ..backend("PA", 5001, end) }),
    ]
}

fn udp_life(source: &str) -> Vec<Exchange> {
    let client = Packet { udp: true, payload: "who?".into(), ..to_vip() };
    let backend = Packet { udp: true, payload: "me!".into(), ..from_backend(source) };
    vec![
        Exchange::one("a datagram", client.clone()),
        Exchange::one("its answer", backend.clone()),
        Exchange::one("an empty datagram", Packet { payload: String::new(), ..client }),
        Exchange::one("a large answer", Packet { payload_length: 1400, ..backend }),
    ]
}

/// ICMP errors about what both have seen: from backend and client, and from a router before the client.
fn errors(source: &str) -> Vec<Exchange> {
    let (host, _) = source.split_once(':').unwrap_or((source, ""));
    let seen_by_backend = Packet { src: source.into(), dst: "far:8080".into(), ..Packet::default() };
    let seen_by_client = Packet { src: "vip:80".into(), dst: "client:40000".into(), ..Packet::default() };
    let error = |error, from: &str, about: Packet, bytes| Packet {
        error: Some(error),
        mtu: if error == IcmpError::TooBig { 1300 } else { 0 },
        on: (from == "far").then(|| "back".into()),
        src: from.into(),
        dst: if from == "far" { host.into() } else { "vip".into() },
        about: Some(Box::new(about)),
        about_bytes: bytes,
        ..Packet::default()
    };
    let tcp = |about: &Packet| Packet { tcp: Some("A".into()), seq: 1001, ack: 5001, ..about.clone() };
    let udp = |about: &Packet| Packet { udp: true, payload: "data".into(), ..about.clone() };
    let mut all = Vec::new();
    for kind in [
        IcmpError::Unreachable,
        IcmpError::PortUnreachable,
        IcmpError::TooBig,
        IcmpError::TimeExceeded,
        IcmpError::ParameterProblem,
    ] {
        for bytes in [Some(8), None] {
            for (from, about) in
                [("far", &seen_by_backend), ("client", &seen_by_client), ("transit", &seen_by_client)]
            {
                all.push(Exchange::one("an ICMP error about TCP", error(kind, from, tcp(about), bytes)));
                all.push(Exchange::one("an ICMP error about UDP", error(kind, from, udp(about), bytes)));
            }
        }
    }
    all
}

fn fragments(source: &str) -> Vec<Exchange> {
    let cut = |whole: Packet, id| {
        let part = |offset, length| Packet {
            fragment: Some(Fragment { offset, length, id }),
            payload_length: 4000,
            udp: true,
            ..whole.clone()
        };
        vec![part(0, Some(1448)), part(1448, Some(1448)), part(2896, None)]
    };
    vec![
        Exchange { about: "a fragmented datagram", packets: cut(to_vip(), 7) },
        Exchange { about: "a fragmented answer", packets: cut(from_backend(source), 8) },
    ]
}

/// Our program.
struct Program<'a> {
    bench: Bench,
    network: &'a Network,
    family: Family,
}

impl<'a> Program<'a> {
    fn new(network: &'a Network, family: Family, snat: &str) -> Result<Self> {
        interfaces::enter(network)?;
        let table: Table = toml::from_str(&format!(
            r#"
            lb.snat_ports = "{PORT}-{PORT}"
            [[listener]]
            name = "web"
            address = "vip"
            protocol = "tcp_and_udp"
            port = 80
            backend_set = "web"
            [backend_set.web]
            snat = "{snat}"
            [[backend_set.web.backend]]
            address = "far"
            port = 8080
            "#
        ))?;
        let config = settings::parse(&table, network, family)?;
        let mut bench = Bench::new(config, network.states(family)?)?;
        bench.introduce(network)?;
        Ok(Self { bench, network, family })
    }

    /// The frame of a packet, with the interface it comes in through.
    fn frame(&self, packet: &Packet) -> Result<(&'static str, Vec<u8>)> {
        let name = if packet.on.is_some() { "back" } else { Network::FRONT };
        let ingress = self.network.interface(name)?;
        let scope = Scope { network: self.network, family: self.family, number: 0 };
        let ends = Ends::of(packet, &Symbols::default(), scope, ingress)?;
        Ok((name, packet::build(packet, &ends)?))
    }

    fn send(&mut self, frames: &[(&str, Vec<u8>)]) -> Result<Out> {
        let mut out = Out::new();
        for (name, frame) in frames {
            let answer = self.bench.send(frame, self.network.interface(name)?.index)?;
            ensure!(
                matches!(answer.verdict, Verdict::Tx | Verdict::Redirect),
                "the program does not forward it ({:?}):\n{}{}",
                answer.verdict,
                oracle::describe(frame),
                self.bench.counts()?
            );
            let egress = self.network.interfaces.iter().find(|(_, own)| own.mac.0[..] == answer.frame[6..12]);
            let (egress, _) = egress.context("a frame leaves with a MAC that is no interface's")?;
            out.push((egress.clone(), answer.frame));
        }
        Ok(out)
    }
}

/// The kernel as a router with NAT between two links, whose other ends are in our hands.
struct Kernel {
    links: Vec<(String, [u8; 6], Wire)>,
    /// Keeps the namespaces.
    _hosts: [Host; 2],
}

impl Kernel {
    fn new(network: &Network, family: Family, snat: &str) -> Result<Self> {
        let net = Net::new()?;
        let (router, outside) = (net.host("router")?, net.host("outside")?);
        outside.sysctl("net/ipv6/conf/default/disable_ipv6", 1)?;
        for parameter in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            router.sysctl(&format!("net/{parameter}"), 1)?;
        }
        for parameter in ["ipv4/conf/all/rp_filter", "ipv4/conf/default/rp_filter"] {
            router.sysctl(&format!("net/{parameter}"), 0)?;
        }
        let mut links = Vec::new();
        for (name, own) in &network.interfaces {
            let [a, b, c, d, e, f] = own.mac.0;
            router.run_all(&[
                &format!(
                    "ip link add {name} address {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x} mtu 9000 \
                     type veth peer name {name} mtu 9000 netns {}",
                    outside.net_path()
                ),
                &format!("ip link set {name} up"),
            ])?;
            outside.run_all(&[&format!("ip link set {name} up")])?;
            links.push((name.clone(), own.mac.0, Wire::open(&outside, name)?));
        }
        router.shell(&routes(network, family)?)?.success()?;
        router.shell(&rules(network, family, snat)?)?.success()?;
        Ok(Self { links, _hosts: [router, outside] })
    }

    /// Sends frames and waits for as many as are `expected` to come out, and then a little for more that should not.
    fn send(&self, frames: &[(&str, Vec<u8>)], expected: usize) -> Result<Out> {
        for (name, frame) in frames {
            let link = self.links.iter().find(|(link, ..)| link == name);
            link.with_context(|| format!("no link {name}"))?.2.send(frame)?;
        }
        let mut out = Out::new();
        let is_expected = |name: &str| frames.iter().any(|(from, _)| *from != name);
        for (name, mac, wire) in self.links.iter().filter(|(name, ..)| is_expected(name)) {
            let deadline = Instant::now() + PATIENCE;
            while out.len() < expected && Instant::now() < deadline {
                out.extend(forwarded(name, *mac, wire.receive(PATIENCE)?));
            }
        }
        for (name, mac, wire) in &self.links {
            while let Some(frame) = wire.receive(SILENCE)? {
                out.extend(forwarded(name, *mac, Some(frame)));
            }
        }
        Ok(out)
    }
}

/// A frame that the router has forwarded over a link: neither ours nor its own.
fn forwarded(name: &str, mac: [u8; 6], frame: Option<Vec<u8>>) -> Option<(String, Vec<u8>)> {
    let is_forwarded = |frame: &Vec<u8>| {
        frame[6..12] == mac && Dissected::new(frame).is_ok_and(|packet| !is_discovery(&packet))
    };
    frame.filter(is_forwarded).map(|frame| (name.to_owned(), frame))
}

/// What the router says for itself: neighbour and multicast listener discovery.
fn is_discovery(packet: &Dissected<'_>) -> bool {
    packet.protocol == 58 && packet.payload().first().is_some_and(|&kind| kind >= 130)
}

/// A script that gives the router addresses, and routes and neighbours to everybody in the cases.
fn routes(network: &Network, family: Family) -> Result<String> {
    let (own, gateway, bits) = match family {
        Family::V4 => (["10.0.1.254/24", "10.0.2.254/24"], "10.0.1.1", 32),
        Family::V6 => (["fd00:1::fe/64", "fd00:2::fe/64"], "fd00:1::1", 128),
    };
    let mac = |name: &str| -> Result<String> {
        let bytes = network.host(name)?.mac.0.map(|byte| format!("{byte:02x}"));
        Ok(bytes.join(":"))
    };
    let far = network.address("far", family)?;
    let mut script = format!(
        "set -e\n\
         ip address add {} dev front nodad\nip address add {} dev back nodad\n\
         ip neighbour replace {gateway} lladdr {} dev front\n\
         ip neighbour replace {far} lladdr {} dev back\n",
        own[0],
        own[1],
        mac("client")?,
        mac("far")?
    );
    for name in ["client", "transit"] {
        let address = network.address(name, family)?;
        script += &format!("ip route add {address}/{bits} via {gateway} dev front\n");
    }
    Ok(script)
}

/// A script that has nftables do what the listener does.
fn rules(network: &Network, family: Family, snat: &str) -> Result<String> {
    let (vip, far) = (network.address("vip", family)?, network.address("far", family)?);
    let (table, to_far, to_vip) = match family {
        Family::V4 => ("ip", format!("{far}:8080"), format!("{vip}:{PORT}")),
        Family::V6 => ("ip6", format!("[{far}]:8080"), format!("[{vip}]:{PORT}")),
    };
    let mut rules = String::new();
    for protocol in ["tcp", "udp"] {
        rules +=
            &format!("add rule {table} nat in {table} daddr {vip} {protocol} dport 80 dnat to {to_far}\n");
        if snat == "always" {
            rules += &format!(
                "add rule {table} nat out {table} daddr {far} {protocol} dport 8080 snat to {to_vip}\n"
            );
        }
    }
    Ok(format!(
        "nft -f - <<'E'\n\
         add table {table} nat\n\
         add chain {table} nat in {{ type nat hook prerouting priority -100; }}\n\
         add chain {table} nat out {{ type nat hook postrouting priority 100; }}\n\
         {rules}E"
    ))
}
