//! A flood of SYNs harms nobody else: established connections go on, and honest clients get through.

use std::env;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use etherparse::PacketBuilder;
use lb_tests::netns::traffic::Session;
use lb_tests::netns::wire::Wire;
use lb_tests::netns::{Config, Family, Host, Lab, Lb};

/// SYNs of the flood; `LB_FLOOD_SYNS` makes it longer.
const SYNS: usize = 400_000;
/// Connections that are there before.
const ESTABLISHED: usize = 1000;
/// Connections that honest clients try meanwhile, at least.
const HONEST: usize = 40;

fn mac(host: &Host) -> Result<[u8; 6]> {
    let text = host.run("cat /sys/class/net/eth0/address")?.success()?.stdout;
    let bytes = text.trim().split(':').map(|byte| u8::from_str_radix(byte, 16));
    let bytes: Vec<u8> = bytes.collect::<Result<_, _>>()?;
    bytes.try_into().map_err(|bytes| anyhow::anyhow!("expected six bytes, found {bytes:?}"))
}

/// A host that floods a port of a VIP.
struct Flood {
    wire: Wire,
    local: [u8; 6],
    balancer: [u8; 6],
    vip: Ipv4Addr,
    port: u16,
}

impl Flood {
    /// Sends SYNs, each from another of the sources of 198.18.0.0/15 (RFC 2544) and then from another port.
    fn send(&self, count: usize) -> Result<()> {
        (0..count).try_for_each(|number| self.wire.send(&self.frame(number)?))
    }

    fn frame(&self, number: usize) -> Result<Vec<u8>> {
        let source = Ipv4Addr::from(0xc612_0000 + number as u32 % (1 << 17));
        let source_port = 1024 + (number >> 17) as u16;
        let packet = PacketBuilder::ethernet2(self.local, self.balancer)
            .ipv4(source.octets(), self.vip.octets(), 64)
            .tcp(source_port, self.port, number as u32, 65_535)
            .syn();
        let mut frame = Vec::with_capacity(packet.size(0));
        packet.write(&mut frame, &[])?;
        Ok(frame)
    }
}

#[test]
fn a_flood_of_syns_breaks_no_connection_and_keeps_no_honest_client_out() -> Result<()> {
    survives(3)
}

/// The flood has more half-open connections than there are SNAT ports towards the backend.
#[test]
fn a_flood_that_one_backend_gets_leaves_ports_to_honest_clients() -> Result<()> {
    survives(1)
}

fn survives(backends: usize) -> Result<()> {
    let syns = match env::var("LB_FLOOD_SYNS") {
        Ok(count) => count.parse().context("expected a number in LB_FLOOD_SYNS")?,
        Err(_) => SYNS,
    };
    let lab = Lab::one_arm()?;
    let attacker = lab.add_client("attacker", 60)?;
    let mut config = Config::new(&lab, Family::V4);
    config.backends.truncate(backends);
    let config = config.to_string().replacen("[lb]\n", "[lb]\nmax_connections = 65536\n", 1);
    let lb = Lb::start_with_rotation(&lab.balancer, &config, backends)?;
    let target = Family::V4.vip_port(7);
    let IpAddr::V4(vip) = target.ip() else { bail!("{target} is not IPv4") };
    let wire = Wire::open(&attacker, "eth0")?;
    let flood = Flood { wire, local: mac(&attacker)?, balancer: mac(&lab.balancer)?, vip, port: 7 };

    let open = |_| Session::open(&lab.client, None, target);
    let mut sessions = (0..ESTABLISHED).map(open).collect::<Result<Vec<_>>>()?;
    let flooding = AtomicBool::new(true);
    let (tried, failed) = thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let result = flood.send(syns);
            flooding.store(false, Ordering::Relaxed);
            result
        });
        let (mut tried, mut failed) = (0, 0);
        while flooding.load(Ordering::Relaxed) || tried < HONEST {
            let honest = Session::open(&lab.client, None, target);
            tried += 1;
            failed += usize::from(honest.and_then(|mut session| session.echo(b"let me in")).is_err());
            let established = sessions.get_mut(tried % ESTABLISHED).context("no such session")?;
            established.echo(b"still there?").context("an established connection broke")?;
        }
        sender.join().map_err(|_| anyhow::anyhow!("the flood panicked"))??;
        anyhow::Ok((tried, failed))
    })?;
    for (number, session) in sessions.iter_mut().enumerate() {
        session.echo(b"still there?").with_context(|| format!("established connection {number} broke"))?;
    }
    let status = lb.status()?;
    let flooded = status.listener("echo-0")?["new_flows"].as_u64().unwrap_or_default();
    eprintln!("{flooded} flows of {syns} SYNs; {failed} of {tried} honest connections failed");
    ensure!(flooded >= syns as u64 / 2, "only {flooded} of {syns} SYNs made a flow: this was no flood");
    ensure!(failed * 20 <= tried, "{failed} of {tried} honest connections failed");
    Ok(())
}
