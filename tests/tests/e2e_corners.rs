//! Packets in the corners, with the stacks of real clients and servers: small links on either side, datagrams in
//! fragments, ports that nobody serves, and every SNAT port in use.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use lb_tests::netns::traffic::{self, PATIENCE, Session};
use lb_tests::netns::{Config, Family, Host, Lab, Lb, Service, wait};

/// MTU of the small link, in bytes.
const SMALL_MTU: usize = 1300;
/// More than a small link takes at once, less than a usual one does.
const BETWEEN_MTUS: usize = 1400;
const LARGE_DATAGRAM_LEN: usize = 60_000;
const DOWNLOAD_LEN: usize = 1 << 20;

/// A datagram to the echo service and back.
fn echo_datagram(socket: &UdpSocket, target: SocketAddr, length: usize) -> Result<()> {
    let payload: Vec<u8> = (0..length).map(|number| number as u8).collect();
    socket.send_to(&payload, target).context("cannot send")?;
    let mut buffer = vec![0; 2 * LARGE_DATAGRAM_LEN];
    let (received, from) = socket.recv_from(&mut buffer).context("no answer")?;
    ensure!(from == target, "the answer came from {from}");
    ensure!(buffer[..received].ends_with(&payload), "the answer does not end in what was sent");
    Ok(())
}

fn socket(target: SocketAddr) -> Result<UdpSocket> {
    let any = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

#[test]
fn datagrams_of_60_kb_pass_in_both_directions() -> Result<()> {
    for (lab, snat) in [(Lab::one_arm()?, "always"), (Lab::two_arm()?, "auto")] {
        if snat == "auto" {
            lab.route_servers_through_balancer()?;
        }
        for family in Family::ALL {
            let lb = Lb::start_with_rotation(
                &lab.balancer,
                &Config { snat, ..Config::new(&lab, family) }.to_string(),
                3,
            )?;
            let target = family.vip_port(7);
            lab.explained(|| {
                lab.client.enter(|| {
                    let socket = socket(target)?;
                    (0..20).try_for_each(|_| echo_datagram(&socket, target, LARGE_DATAGRAM_LEN))
                })
            })?;
            lb.stop()?;
            Lb::detach(&lab.balancer)?;
        }
    }
    Ok(())
}

/// The way from the VIP to the client is narrower than both of its ends know: the router says so to the VIP.
#[test]
fn a_small_link_on_the_clients_side_does_not_stop_a_download() -> Result<()> {
    let mut lab = Lab::one_arm()?;
    let client = lab.add_routed_client("routed")?;
    lab.narrow_router(SMALL_MTU)?;
    for family in Family::ALL {
        let lb = Lb::start_with_rotation(&lab.balancer, &Config::new(&lab, family).to_string(), 3)?;
        let url = format!("/bytes/{DOWNLOAD_LEN}");
        let target = family.vip_port(80);
        lab.explained(|| {
            let output = traffic::try_curl(&client, target, &url)?.success()?;
            ensure!(output.stdout.len() >= DOWNLOAD_LEN, "only {} bytes arrived", output.stdout.len());
            Ok(())
        })?;
        lb.stop()?;
        Lb::detach(&lab.balancer)?;
    }
    Ok(())
}

/// The link to the backends is narrower than the client's: the balancer says so to the client.
#[test]
fn a_small_link_on_the_backends_side_is_told_to_the_client() -> Result<()> {
    let lab = Lab::two_arm()?;
    lab.balancer.run_all(&[&format!("ip link set eth1 mtu {SMALL_MTU}")])?;
    for backend in &lab.backends {
        backend.host.run_all(&[&format!("ip link set eth0 mtu {SMALL_MTU}")])?;
    }
    for family in Family::ALL {
        let lb = Lb::start_with_rotation(&lab.balancer, &Config::new(&lab, family).to_string(), 3)?;
        let target = family.vip_port(7);
        lab.explained(|| {
            lab.client.enter(|| {
                let socket = socket(target)?;
                // The first is lost, and its sender learns why; the next ones come in fragments that fit.
                let first = echo_datagram(&socket, target, BETWEEN_MTUS);
                ensure!(first.is_err(), "a datagram passed through a link that is too small for it");
                echo_datagram(&socket, target, BETWEEN_MTUS)
            })?;
            let route = lab.client.run(&format!("ip route get {}", family.vip()))?.success()?;
            let mtu = format!("mtu {SMALL_MTU}");
            ensure!(route.stdout.contains(&mtu), "expected {mtu:?}, found {:?}", route.stdout);
            traffic::echo_tcp(&lab.client, target, DOWNLOAD_LEN).map(drop)
        })?;
        assert!(lb.status()?.listener("echo-0")?["drops"]["too_big"].as_u64() >= Some(1));
        lb.stop()?;
        Lb::detach(&lab.balancer)?;
    }
    Ok(())
}

#[test]
fn the_vip_answers_ping_unless_told_otherwise() -> Result<()> {
    let lab = Lab::one_arm()?;
    for family in Family::ALL {
        let config = Config::new(&lab, family).to_string();
        let ping = format!("ping -n -c 3 -i 0.2 -W 1 {}", family.vip());
        let lb = Lb::start_with_rotation(&lab.balancer, &config, 3)?;
        lab.client.run(&ping)?.success()?;
        lb.stop()?;
        let silent = config.replacen("[lb]\n", "[lb]\nicmp_echo = false\n", 1);
        let lb = Lb::start_with_rotation(&lab.balancer, &silent, 3)?;
        lab.client.run(&ping)?.exit_code(1)?;
        lb.stop()?;
        Lb::detach(&lab.balancer)?;
    }
    Ok(())
}

#[test]
fn tracepath_reaches_the_vip_across_a_small_link() -> Result<()> {
    let mut lab = Lab::one_arm()?;
    let client = lab.add_routed_client("routed")?;
    lab.narrow_router(SMALL_MTU)?;
    for family in Family::ALL {
        let lb = Lb::start_with_rotation(&lab.balancer, &Config::new(&lab, family).to_string(), 3)?;
        let trace = client.run(&format!("tracepath -n -m 5 {}", family.vip()))?.success()?;
        let mtu = format!("pmtu {SMALL_MTU}");
        ensure!(trace.stdout.contains("reached") && trace.stdout.contains(&mtu), "{}", trace.stdout);
        lb.stop()?;
        Lb::detach(&lab.balancer)?;
    }
    Ok(())
}

/// With SYNs and with datagrams, to ports of listeners: the path ends at the VIP, behind every router before it.
#[test]
fn traceroute_shows_the_way_to_the_vip() -> Result<()> {
    let mut lab = Lab::one_arm()?;
    let client = lab.add_routed_client("routed")?;
    for family in Family::ALL {
        let lb = Lb::start_with_rotation(&lab.balancer, &Config::new(&lab, family).to_string(), 3)?;
        for service in ["-T -p 80", "-U -p 7"] {
            let vip = family.vip().to_string();
            let trace = client.run(&format!("traceroute -n -q 1 -m 5 {service} {vip}"))?.success()?;
            let hops: Vec<_> =
                trace.stdout.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1)).collect();
            ensure!(hops.len() > 1 && hops.last() == Some(&&*vip), "{service}: {}", trace.stdout);
            ensure!(!hops.contains(&"*"), "{service}: {}", trace.stdout);
        }
        lb.stop()?;
        Lb::detach(&lab.balancer)?;
    }
    Ok(())
}

/// A port of the VIP without listener is refused by the host, one whose server is gone by the backend; both at once.
#[test]
fn who_knocks_at_a_closed_port_is_told_at_once() -> Result<()> {
    let lab = Lab::one_arm()?;
    let closed = Service { name: "closed", protocol: "tcp_and_udp", port: 99, backend_port: 99 };
    for family in Family::ALL {
        let services = vec![Service::WEB, closed];
        let config = Config { services, ..Config::new(&lab, family) };
        let lb = Lb::start_with_rotation(&lab.balancer, &config.to_string(), 3)?;
        for port in [99, 98] {
            let target = family.vip_port(port);
            let begin = Instant::now();
            let refused = 7;
            traffic::try_curl(&lab.client, target, "/")?.exit_code(refused)?;
            let error = lab.client.enter(|| refused_datagram(target))?;
            assert_eq!(error, ErrorKind::ConnectionRefused, "UDP port {port}");
            assert!(begin.elapsed() < PATIENCE, "port {port} took {:?}", begin.elapsed());
        }
        lb.stop()?;
        Lb::detach(&lab.balancer)?;
    }
    Ok(())
}

/// What a connected socket learns of a datagram that nobody wants.
fn refused_datagram(target: SocketAddr) -> Result<ErrorKind> {
    let socket = socket(target)?;
    socket.connect(target)?;
    socket.send(b"anybody?")?;
    match socket.recv(&mut [0; 16]) {
        Ok(_) => bail!("somebody answered"),
        Err(error) => Ok(error.kind()),
    }
}

#[test]
fn without_a_backend_clients_are_refused_where_asked_to() -> Result<()> {
    let mut lab = Lab::one_arm()?;
    for backend in &mut lab.backends {
        backend.kill()?;
    }
    for family in Family::ALL {
        let config = Config::new(&lab, family).to_string();
        let config = config.replace("snat = \"always\"", "snat = \"always\"\nno_backend_action = \"reset\"");
        let lb = Lb::start(&lab.balancer, &config)?;
        let refused = 7;
        traffic::try_curl(&lab.client, family.vip_port(80), "/")?.exit_code(refused)?;
        let error = lab.client.enter(|| refused_datagram(family.vip_port(7)))?;
        assert_eq!(error, ErrorKind::ConnectionRefused);
        lb.stop()?;
        Lb::detach(&lab.balancer)?;
    }
    Ok(())
}

/// Opens `count` connections that stay, and says how many failed.
fn failures(client: &Host, target: SocketAddr, count: usize) -> Result<(Vec<Session>, usize)> {
    let mut open = Vec::new();
    let mut failed = 0;
    for _ in 0..count {
        match Session::open(client, None, target) {
            Ok(session) => open.push(session),
            Err(_) => failed += 1,
        }
    }
    Ok((open, failed))
}

/// 1,000 ports towards one backend: four in five can be taken without a failure, and nearly all with few.
#[test]
fn snat_ports_are_used_to_the_last() -> Result<()> {
    fills_the_ports("20000-20999", |family| vec![family.vip()], [(800, 0), (150, 19)])
}

#[test]
fn a_second_snat_address_doubles_the_ports() -> Result<()> {
    fills_the_ports("30000-30999", |family| vec![family.vip(), family.lan(101)], [(1600, 0), (300, 38)])
}

/// Opens connections step by step, of which so many may fail, while all before them go on.
fn fills_the_ports(
    ports: &str,
    addresses: impl Fn(Family) -> Vec<IpAddr>,
    steps: [(usize, usize); 2],
) -> Result<()> {
    let lab = Lab::one_arm()?;
    let family = Family::V4;
    let snat_addresses = addresses(family);
    let backends = vec![lab.backends[0].address(family)];
    let config = Config { snat_addresses, backends, ..Config::new(&lab, family) }.to_string();
    let config = config.replacen("[lb]\n", &format!("[lb]\nsnat_ports = {ports:?}\n"), 1);
    let lb = Lb::start_with_rotation(&lab.balancer, &config, 1)?;
    let mut sessions = Vec::new();
    for (count, tolerated) in steps {
        let (open, failed) = lab.explained(|| failures(&lab.client, family.vip_port(7), count))?;
        assert!(failed <= tolerated, "{failed} of {count} connections failed");
        sessions.extend(open);
    }
    wait::until("SNAT use in the status", PATIENCE, || {
        let status = lb.status()?;
        let uses = status.0["snat"].as_array().into_iter().flatten();
        let in_use: u64 = uses.filter_map(|one| one["in_use"].as_u64()).sum();
        Ok((in_use >= sessions.len() as u64).then_some(()))
    })?;
    sessions.iter_mut().try_for_each(|session| session.echo(b"still there?"))
}

/// Ranges of ports and every port, which keep their port at the backend.
#[test]
fn a_range_of_ports_keeps_each_port() -> Result<()> {
    let lab = Lab::one_arm()?;
    for family in Family::ALL {
        let config = Config { services: vec![Service::ECHO], ..Config::new(&lab, family) }.to_string();
        for ports in ["ports = \"1-1000\"", "port = 0"] {
            let snat = format!("[lb]\nsnat_addresses = [\"{}\"]\n", family.lan(101));
            let config = config
                .replacen("[lb]\n", &snat, 1)
                .replacen("snat_addresses = []\n", "", 1)
                .replacen("port = 7\nbackend_set", &format!("{ports}\nbackend_set"), 1)
                .replace("port = 7\n", "port = 0\n");
            let lb = Lb::start_with_rotation(&lab.balancer, &config, 3)?;
            traffic::echo_tcp(&lab.client, family.vip_port(7), DOWNLOAD_LEN)?;
            traffic::echo_udp(&lab.client, family.vip_port(7), DOWNLOAD_LEN)?;
            lb.stop()?;
            Lb::detach(&lab.balancer)?;
        }
    }
    Ok(())
}
