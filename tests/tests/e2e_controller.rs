//! What the controller has a part in beyond health: ports of many, sources, flows that end early, fragments out of
//! order, events.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use etherparse::{IpFragOffset, IpNumber, Ipv4Header, Ipv6FragmentHeader, Ipv6Header, UdpHeader};
use lb_tests::netns::traffic::{self, PATIENCE, Session};
use lb_tests::netns::{Config, Family, Lab, Lb, Status, wait};
use serde_json::Value;
use socket2::{Domain, Protocol, Socket, Type};

/// How long what takes a few seconds may take on a busy machine.
const LONG: Duration = Duration::from_secs(40);

/// The configuration with lines added to the first listener of a service and to its set.
fn config(lab: &Lab, family: Family, service: &str, listener: &str, set: &str) -> String {
    let text = Config::new(lab, family).to_string();
    let name = format!("name = \"{service}-0\"\n");
    let table = format!("[backend_set.{service}]\n");
    text.replace(&name, &format!("{name}{listener}\n")).replace(&table, &format!("{table}{set}\n"))
}

fn number(status: &Status, kind: &str, reason: &str) -> u64 {
    status.0[kind][reason].as_u64().unwrap_or_default()
}

macro_rules! for_each_family {
    ($($v4:ident, $v6:ident: $test:ident;)+) => {$(
        #[test]
        fn $v4() -> Result<()> {
            $test(Family::V4)
        }

        #[test]
        fn $v6() -> Result<()> {
            $test(Family::V6)
        }
    )+};
}

for_each_family! {
    a_range_of_ports_is_served_v4, a_range_of_ports_is_served_v6: a_range_of_ports_is_served;
    denied_sources_are_turned_away_v4, denied_sources_are_turned_away_v6: denied_sources_are_turned_away;
    offline_resets_v4, offline_resets_v6: a_backend_taken_offline_has_its_connections_reset;
    drain_resets_v4, drain_resets_v6: a_drain_that_takes_too_long_ends_with_a_reset;
    idle_resets_v4, idle_resets_v6: both_ends_of_an_idle_connection_are_reset;
    fragments_in_reverse_v4, fragments_in_reverse_v6: fragments_arrive_whole_in_reverse_order;
}

fn a_range_of_ports_is_served(family: Family) -> Result<()> {
    let lab = Lab::one_arm()?;
    let range = |ports: &str, port: u16| {
        Config::new(&lab, family)
            .to_string()
            .replace("port = 80\nbackend_set", &format!("{ports}\nbackend_set"))
            .replace("\nport = 8080\n\n[[", &format!("\nport = {port}\n\n[["))
            .replace(
                "\nport = 8080\n\n[backend_set.web.health",
                &format!("\nport = {port}\n\n[backend_set.web.health"),
            )
    };
    let lb = Lb::start_with_rotation(&lab.balancer, &range("ports = \"8000-8100\"", 0), 3)?;
    traffic::curl_many(&lab.client, family.vip_port(8080), 10)?;
    let outside = traffic::try_curl(&lab.client, family.vip_port(7999), "/")?;
    ensure!(!outside.status.success(), "port 7999 is outside of the range");
    let listener = lb.status()?.listener("web-0")?.clone();
    ensure!(listener["ports"] == "8000-8100" && listener["new_flows"] == 10, "{listener}");

    let mut session = Session::open(&lab.client, None, family.vip_port(7))?;
    lb.reload(&range("port = 80", 8080))?;
    traffic::curl_many(&lab.client, family.vip_port(80), 10)?;
    session.echo(b"another listener is not touched")
}

fn denied_sources_are_turned_away(family: Family) -> Result<()> {
    let lab = Lab::one_arm()?;
    let client = lab.client_address(family);
    let deny = format!("deny_sources = [\"{client}\"]");
    let lb = Lb::start_with_rotation(&lab.balancer, &config(&lab, family, "web", &deny, ""), 3)?;
    let denied = traffic::try_curl(&lab.client, family.vip_port(80), "/")?;
    ensure!(!denied.status.success(), "{client} is denied: {}", denied.stdout);
    let other = lab.add_client("other", 51)?;
    traffic::curl(&other, family.vip_port(80))?;

    let status = lb.status()?;
    let dropped = number(&Status(status.listener("web-0")?.clone()), "drops", "source_denied");
    ensure!(dropped > 0, "no drop is counted: {}", status.0);
    let events = Lb::command(&lab.balancer, "events --json")?.success()?;
    let events: Value = serde_json::from_str(&events.stdout)?;
    let is_it = |event: &&Value| event["reason"] == "source_denied";
    let event = events["events"].as_array().into_iter().flatten().find(is_it);
    let event = event.with_context(|| format!("no event tells of it: {events}"))?;
    let source: SocketAddr = event["source"].as_str().unwrap_or_default().parse()?;
    ensure!(
        event["listener"] == "web-0" && event["interface"] == "eth0" && source.ip() == client,
        "the event tells another story: {event}"
    );
    ensure!(event["destination"] == family.vip_port(80).to_string(), "{event}");

    let allow_other = format!("allow_sources = [\"{}\"]", family.lan(51));
    lb.reload(&config(&lab, family, "web", &allow_other, ""))?;
    let unlisted = traffic::try_curl(&lab.client, family.vip_port(80), "/")?;
    ensure!(!unlisted.status.success(), "{client} is not allowed");
    traffic::curl(&other, family.vip_port(80))?;
    lb.reload(&config(&lab, family, "web", "", ""))?;
    traffic::curl(&lab.client, family.vip_port(80)).map(drop)
}

/// Connections that the servers see as established to the echo service.
fn established(lab: &Lab) -> Result<usize> {
    let mut count = 0;
    for backend in &lab.backends {
        let sockets = backend.host.run("ss --no-header --tcp --numeric state established sport = :7")?;
        count += sockets.success()?.stdout.lines().count();
    }
    Ok(count)
}

/// The one backend of the echo service that has a flow.
fn busy_backend(status: &Status) -> Result<String> {
    let backends = status.set("echo")?["backends"].as_array().into_iter().flatten();
    let busy: Vec<&Value> = backends.filter(|backend| backend["active_flows"] == 1).collect();
    let [backend] = busy[..] else { bail!("expected one backend with a flow, found {busy:?}") };
    Ok(backend["name"].as_str().unwrap_or_default().to_owned())
}

fn a_backend_taken_offline_has_its_connections_reset(family: Family) -> Result<()> {
    connections_are_reset(family, "offline", "backend_offline")
}

fn a_drain_that_takes_too_long_ends_with_a_reset(family: Family) -> Result<()> {
    connections_are_reset(family, "drain", "flow_cut")
}

fn connections_are_reset(family: Family, action: &str, reason: &str) -> Result<()> {
    let lab = Lab::one_arm()?;
    let config = config(&lab, family, "echo", "", "drain_timeout_s = 1");
    let lb = Lb::start_with_rotation(&lab.balancer, &config, 3)?;
    let mut session = Session::open(&lab.client, None, family.vip_port(7))?;
    session.echo(b"before")?;
    let name = busy_backend(&lb.status()?)?;
    Lb::command(&lab.balancer, &format!("{action} echo/{name}"))?.success()?;
    wait::until("the connection to be reset", LONG, || match session.echo(b"?") {
        Ok(()) => Ok(None),
        Err(error) => {
            let io = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
            ensure!(io == Some(ErrorKind::ConnectionReset), "expected a RST, found {error:#}");
            Ok(Some(()))
        }
    })?;
    ensure!(number(&lb.status()?, "drops", reason) > 0, "no {reason} in {}", lb.status()?.0);
    wait::until("the flow to be gone", LONG, || {
        let flows = lb.status()?.backend("echo", &name)?["active_flows"].clone();
        Ok((flows == 0).then_some(()))
    })?;
    Session::open(&lab.client, None, family.vip_port(7))?.echo(b"another backend serves")
}

fn both_ends_of_an_idle_connection_are_reset(family: Family) -> Result<()> {
    let lab = Lab::one_arm()?;
    let lines = "tcp_reset_on_idle = true\ntcp_idle_timeout_s = 10";
    let lb = Lb::start_with_rotation(&lab.balancer, &config(&lab, family, "echo", lines, ""), 3)?;
    let mut session = Session::open(&lab.client, None, family.vip_port(7))?;
    session.echo(b"now silence")?;
    ensure!(established(&lab)? == 1, "the server does not see the connection");
    session.wait_for_reset(LONG)?;
    wait::until("an answer of either end to be cut", PATIENCE, || {
        Ok((number(&lb.status()?, "drops", "flow_cut") >= 2).then_some(()))
    })
}

/// A UDP datagram from `source` to `target` in two fragments, the second first.
fn fragments(source: SocketAddr, target: SocketAddr, payload: &[u8]) -> Result<[Vec<u8>; 2]> {
    let (sport, dport) = (source.port(), target.port());
    let header = match (source.ip(), target.ip()) {
        (IpAddr::V4(source), IpAddr::V4(target)) => {
            let ip = Ipv4Header::new(0, 64, IpNumber::UDP, source.octets(), target.octets())?;
            UdpHeader::with_ipv4_checksum(sport, dport, &ip, payload)?
        }
        (IpAddr::V6(source), IpAddr::V6(target)) => {
            let (source, destination) = (source.octets(), target.octets());
            let ip = Ipv6Header { source, destination, ..Ipv6Header::default() };
            UdpHeader::with_ipv6_checksum(sport, dport, &ip, payload)?
        }
        _ => bail!("{source} and {target} are of different families"),
    };
    let datagram = [&header.to_bytes()[..], payload].concat();
    let half = datagram.len() / 2 / 8 * 8;
    let packet = |offset, more, part| fragment(source.ip(), target.ip(), offset, more, part);
    Ok([packet(half, false, &datagram[half..])?, packet(0, true, &datagram[..half])?])
}

/// An IP packet with a part of a UDP datagram.
fn fragment(source: IpAddr, target: IpAddr, offset: usize, more: bool, part: &[u8]) -> Result<Vec<u8>> {
    const IDENTIFICATION: u16 = 0x4c42;
    let offset = IpFragOffset::try_new((offset / 8) as u16)?;
    let headers = match (source, target) {
        (IpAddr::V4(source), IpAddr::V4(target)) => {
            let length = part.len() as u16;
            let mut ip = Ipv4Header::new(length, 64, IpNumber::UDP, source.octets(), target.octets())?;
            (ip.identification, ip.more_fragments, ip.fragment_offset) = (IDENTIFICATION, more, offset);
            ip.header_checksum = ip.calc_header_checksum();
            ip.to_bytes().to_vec()
        }
        (IpAddr::V6(source), IpAddr::V6(target)) => {
            let fragment = Ipv6FragmentHeader::new(IpNumber::UDP, offset, more, IDENTIFICATION.into());
            let ip = Ipv6Header {
                source: source.octets(),
                destination: target.octets(),
                next_header: IpNumber::IPV6_FRAGMENTATION_HEADER,
                hop_limit: 64,
                payload_length: (Ipv6FragmentHeader::LEN + part.len()) as u16,
                ..Ipv6Header::default()
            };
            [&ip.to_bytes()[..], &fragment.to_bytes()].concat()
        }
        _ => bail!("{source} and {target} are of different families"),
    };
    Ok([&headers, part].concat())
}

fn fragments_arrive_whole_in_reverse_order(family: Family) -> Result<()> {
    let lab = Lab::one_arm()?;
    let lb = Lb::start_with_rotation(&lab.balancer, &Config::new(&lab, family).to_string(), 3)?;
    let target = family.vip_port(7);
    lab.client.enter(|| {
        let socket = UdpSocket::bind(SocketAddr::new(lab.client_address(family), 0))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let payload = [b'x'; 1000];
        let raw =
            Socket::new(Domain::for_address(target), Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)))?;
        let [later, first] = fragments(socket.local_addr()?, target, &payload)?;
        let send = |fragment: &[u8]| raw.send_to(fragment, &SocketAddr::new(target.ip(), 0).into());
        send(&later)?;
        wait::until("a fragment without a first to be counted as lost", PATIENCE, || {
            Ok((number(&lb.status()?, "drops", "fragment") == 1).then_some(()))
        })?;
        send(&later)?;
        send(&first)?;
        let mut answer = [0; 2000];
        let (length, from) = socket.recv_from(&mut answer).context("no answer to the datagram")?;
        ensure!(from == target && answer[..length].ends_with(&payload), "{from} answered something else");
        Ok(())
    })?;
    let status = lb.status()?;
    ensure!(number(&status, "notes", "fragment_held") == 2, "{}", status.0);
    ensure!(number(&status, "drops", "fragment") == 1, "{}", status.0);
    Ok(())
}

#[test]
fn snat_usage_is_told() -> Result<()> {
    let family = Family::V4;
    let lab = Lab::one_arm()?;
    let one = Config { backends: vec![lab.backends[0].address(family)], ..Config::new(&lab, family) };
    let text = one.to_string().replace("[lb]\n", "[lb]\nsnat_ports = \"30000-30003\"\n");
    let lb = Lb::start_with_rotation(&lab.balancer, &text, 1)?;
    let open = |_| Session::open(&lab.client, None, family.vip_port(7));
    let mut sessions: Vec<Session> = (0..3).map(open).collect::<Result<_>>()?;
    let status = lb.status()?;
    let used = status.0["snat"].as_array().map(Vec::as_slice).unwrap_or_default();
    let [snat] = used else { bail!("expected one destination, found {used:?}") };
    let vip = family.vip().to_string();
    ensure!(
        snat["address"] == vip && snat["backend"] == "10.0.1.10:7" && snat["protocol"] == "tcp",
        "{snat}"
    );
    ensure!(snat["in_use"] == 3 && snat["ports"] == 4, "{snat}");
    let reason = status.0["reason"].as_str().unwrap_or_default();
    ensure!(reason.contains("3 of 4 in use (75 %)"), "the reason says nothing of the ports: {reason}");
    let metrics = lb.metrics()?;
    let gauge = format!(
        "lb_snat_ports_in_use{{backend_set=\"echo\",backend=\"10.0.1.10:7\",address=\"{vip}\",protocol=\"tcp\"}} 3\n"
    );
    ensure!(metrics.contains(&gauge), "no {gauge} in\n{metrics}");

    sessions.push(open(3)?);
    let status = lb.status()?;
    let reason = status.0["reason"].as_str().unwrap_or_default();
    ensure!(reason.contains("4 of 4 in use (100 %); new flows fail"), "the ports are used up: {reason}");
    ensure!(open(4).is_err(), "a fifth connection through four ports");
    let status = lb.status()?;
    ensure!(number(&status, "drops", "snat_ports_exhausted") > 0, "{}", status.0);
    sessions.iter_mut().try_for_each(|session| session.echo(b"still there?"))
}
