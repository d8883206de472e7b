//! Telling the neighbours that a virtual address lives here now: gratuitous ARP (RFC 5944, section 4.6; RFC 5227,
//! section 2.3) and unsolicited neighbour advertisements (RFC 4861, section 7.2.6).

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use etherparse::icmpv6::NeighborAdvertisementHeader;
use etherparse::{ArpHardwareId, ArpOperation, ArpPacket, EtherType, Icmpv6Type, PacketBuilder};

use super::Assigned;
use super::packet_socket::PacketSocket;
use crate::network::netlink::Netlink;
use crate::network::{Error, Mac};

/// When the announcements are sent, from the first on. Three of them, because each may get lost (a switch port that
/// is not forwarding yet), and at least a second apart (RFC 4861, section 10: RETRANS_TIMER).
const TIMES: [Duration; 3] = [Duration::ZERO, Duration::from_secs(1), Duration::from_secs(3)];

/// Frames sent at most one after the other (two for an address), and the pause until the next ones: what is sent at once must not fill the queue of
/// an interface, which other packets need too.
const BURST: usize = 32;
const PAUSE: Duration = Duration::from_millis(2);

const BROADCAST: Mac = [0xff; 6];
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// The multicast group of [`ALL_NODES`] (RFC 2464, section 7).
const ALL_NODES_MAC: Mac = [0x33, 0x33, 0, 0, 0, 1];

/// Announces addresses a few times over the next seconds, the first time before it first waits. An announcement
/// that cannot be sent is logged: the neighbours then find out when they ask.
pub async fn announce(assigned: &[Assigned]) {
    let start = tokio::time::Instant::now();
    for time in TIMES {
        tokio::time::sleep_until(start + time).await;
        if let Err(error) = announce_once(assigned).await {
            tracing::warn!(%error, "cannot announce the virtual addresses");
        }
    }
}

async fn announce_once(assigned: &[Assigned]) -> Result<(), Error> {
    if assigned.is_empty() {
        return Ok(());
    }
    let links = Netlink::open()?.links()?;
    let socket = PacketSocket::open().map_err(|error| Error::kernel("open a packet socket", error))?;
    for (index, Assigned { vip, interface }) in assigned.iter().enumerate() {
        if index > 0 && index % (BURST / 2) == 0 {
            tokio::time::sleep(PAUSE).await;
        }
        let link = links.iter().find(|(_, link)| *link.name == **interface);
        let Some((&ifindex, Some(mac))) = link.map(|(ifindex, link)| (ifindex, link.mac)) else {
            tracing::debug!(%vip, interface, "not announced: the interface is gone or not Ethernet");
            continue;
        };
        let frames = match *vip {
            IpAddr::V4(vip) => gratuitous_arp(mac, vip),
            IpAddr::V6(vip) => vec![neighbour_advertisement(mac, vip, forwards(interface))],
        };
        for frame in frames {
            if let Err(error) = socket.send(ifindex, &frame) {
                tracing::warn!(%vip, interface, %error, "cannot announce the address");
            }
        }
    }
    Ok(())
}

/// Whether this host is a router on an interface; its advertisements have to say so (RFC 4861, section 4.4).
fn forwards(interface: &str) -> bool {
    fs::read(format!("/proc/sys/net/ipv6/conf/{interface}/forwarding"))
        .is_ok_and(|value| value.starts_with(b"1"))
}

/// Both forms, since some hosts heed only the one and some only the other.
fn gratuitous_arp(mac: Mac, vip: Ipv4Addr) -> Vec<Vec<u8>> {
    // The target's hardware address is not used in a request, and the sender's own in a reply (RFC 5944, 4.6).
    [(ArpOperation::REQUEST, [0; 6]), (ArpOperation::REPLY, mac)]
        .into_iter()
        .filter_map(|(operation, target_mac)| {
            let vip = vip.octets();
            let (ethernet, ipv4) = (ArpHardwareId::ETHERNET, EtherType::IPV4);
            let packet = ArpPacket::new(ethernet, ipv4, operation, &mac, &vip, &target_mac, &vip).ok()?;
            let builder = PacketBuilder::ethernet2(mac, BROADCAST).arp(packet);
            let mut frame = Vec::with_capacity(builder.size());
            builder.write(&mut frame).ok()?;
            Some(frame)
        })
        .collect()
}

fn neighbour_advertisement(mac: Mac, vip: Ipv6Addr, router: bool) -> Vec<u8> {
    let header = NeighborAdvertisementHeader { router, solicited: false, r#override: true };
    let mut body = vip.octets().to_vec();
    // Option 2, target link-layer address, in units of eight bytes (RFC 4861, section 4.6.1).
    body.extend([2, 1]);
    body.extend(mac);
    // The hop limit of 255 proves that no router has forwarded it.
    let builder = PacketBuilder::ethernet2(mac, ALL_NODES_MAC)
        .ipv6(vip.octets(), ALL_NODES.octets(), 255)
        .icmpv6(Icmpv6Type::NeighborAdvertisement(header));
    let mut frame = Vec::with_capacity(builder.size(body.len()));
    builder.write(&mut frame, &body).expect("a vector takes any number of bytes, and 72 fit an IPv6 packet");
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = [2, 0, 0, 0, 0, 7];

    #[test]
    fn gratuitous_arp_is_what_rfc_5944_shows() {
        let vip = [10, 0, 1, 100];
        let frame = |operation: u8, target_mac: Mac| {
            let ethernet = [BROADCAST, MAC].concat();
            let arp = [8, 6, 0, 1, 8, 0, 6, 4, 0, operation];
            [&ethernet[..], &arp, &MAC, &vip, &target_mac, &vip].concat()
        };
        assert_eq!(gratuitous_arp(MAC, vip.into()), [frame(1, [0; 6]), frame(2, MAC)]);
    }

    #[test]
    fn the_advertisement_is_what_rfc_4861_shows() {
        let vip: Ipv6Addr = "fd00:1::100".parse().expect("an address");
        for (router, flags) in [(false, 0x20), (true, 0xa0)] {
            let frame = neighbour_advertisement(MAC, vip, router);
            let (ethernet, ipv6) = frame.split_at(14);
            assert_eq!(ethernet, [&ALL_NODES_MAC[..], &MAC, &[0x86, 0xdd]].concat());
            assert_eq!(ipv6[..8], [0x60, 0, 0, 0, 0, 32, 58, 255]);
            assert_eq!(ipv6[8..24], vip.octets());
            assert_eq!(ipv6[24..40], ALL_NODES.octets());
            let icmp = &ipv6[40..];
            assert_eq!((icmp[0], icmp[1]), (136, 0));
            assert_eq!(icmp[4..8], [flags, 0, 0, 0]);
            assert_eq!(icmp[8..24], vip.octets());
            assert_eq!(icmp[24..], [&[2, 1], &MAC[..]].concat());
            assert_eq!(sum(&[&ipv6[8..40], &[0, 0, 0, 32, 0, 0, 0, 58], icmp].concat()), 0xffff);
        }
    }

    /// The one's complement sum of RFC 1071; 0xffff over data that carries its own right checksum.
    fn sum(bytes: &[u8]) -> u16 {
        let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
        let mut sum: u32 = words.sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }
}
