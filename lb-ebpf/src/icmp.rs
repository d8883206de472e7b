//! ICMP: errors about a flow, and echo requests to a VIP.
//!
//! An error carries the packet it is about as that packet left the balancer. Turned round, its tuple is the tuple of
//! packets in the opposite direction, which is the way the error has to go; their translation, read backwards,
//! restores the packet to what its sender had sent. 8 bytes of the inner transport header are enough (RFC 792); the
//! checksum of an inner TCP header is set right where it is there.

use core::mem::offset_of;

use aya_ebpf::bindings::xdp_action::XDP_TX;
use lb_common::listener::Vip;
use lb_common::{Address, Flow, FlowKey, PROTO_TCP, PROTO_UDP, Reason, Settings};

use crate::checksum::{self, Sum};
use crate::choose::vip_flags;
use crate::family::Family;
use crate::flow::Seen;
use crate::frame::Frame;
use crate::maps::{BACKENDS, SETTINGS, Scratch};
use crate::parse::Packet;
use crate::stop::Stop;
use crate::translate::Translation;
use crate::wire::{Icmp, Ports, Tcp, Udp, Word};
use crate::{count, flow, forward};

/// TTL or hop limit of an echo reply (RFC 1700).
const REPLY_TTL: u8 = 64;

/// The journey of an ICMP message that another has read.
#[inline(always)]
pub(crate) fn travel<F: Family>(frame: &mut Frame) -> Result<u32, Stop> {
    let Scratch { packet, key, .. } = F::scratch().ok_or(Stop::pass(Reason::OtherProtocol))?;
    let unrelated = Stop::pass(Reason::IcmpUnrelated);
    if packet.fragment.is_later()
        || !packet.is_sound
        || packet.l4() + size_of::<Icmp>() > packet.l3() + usize::from(packet.length)
    {
        return Err(unrelated);
    }
    let icmp: Icmp = *frame.at(packet.l4()).ok_or(unrelated)?;
    if icmp.kind == F::ECHO.0 && icmp.code == 0 {
        return echo::<F>(frame, packet);
    }
    if !F::is_icmp_error(icmp.kind) || packet.fragment.is_first() {
        return Err(unrelated);
    }
    let inner = Inner::read::<F>(frame, packet, key).ok_or(unrelated)?;
    error::<F>(frame, packet, &inner)
}

/// The packet that an error is about.
struct Inner<'a, A> {
    /// Its tuple, turned round: that of the packets in the opposite direction.
    key: &'a FlowKey<A>,
    /// Offset of its IP header.
    l3: usize,
    /// Offset of its transport header.
    l4: usize,
}

impl<'a, A: Address> Inner<'a, A> {
    #[inline(always)]
    fn read<F: Family<Addr = A>>(frame: &Frame, packet: &Packet<A>, key: &'a mut FlowKey<A>) -> Option<Self> {
        let l3 = packet.l4() + size_of::<Icmp>();
        let ip = F::read_ip(frame, l3)?;
        if ip.fragment.is_later() || (ip.protocol != PROTO_TCP && ip.protocol != PROTO_UDP) {
            return None;
        }
        // An error goes to whoever sent the packet in it. Any other would be let in as part of a flow that it only names.
        if ip.source != packet.key.destination {
            return None;
        }
        let l4 = l3 + usize::from(ip.header_length);
        // The error must hold the 8 bytes itself: what lies behind its end is padding.
        let end = packet.l3() + usize::from(packet.length);
        if l4 + size_of::<Udp>() > end {
            return None;
        }
        let ports: Ports = frame.at::<Udp>(l4)?.ports;
        *key = FlowKey {
            source: ip.destination,
            destination: ip.source,
            source_port: u16::from_be(ports.destination),
            destination_port: u16::from_be(ports.source),
            protocol: ip.protocol,
            _pad: [0; 3],
        };
        Some(Self { key, l3, l4 })
    }
}

/// Translates an error about a flow and sends it the way of the flow.
#[inline(always)]
fn error<F: Family>(
    frame: &mut Frame,
    packet: &Packet<F::Addr>,
    inner: &Inner<'_, F::Addr>,
) -> Result<u32, Stop> {
    let Seen { flow, client, direction } =
        flow::look::<F>(inner.key).ok_or(Stop::pass(Reason::IcmpUnrelated))?;
    if !frame.is_to_this_host() {
        return Err(Stop::pass(Reason::OtherHost));
    }
    let next_hop = if direction == Flow::<F::Addr>::TO_BACKEND {
        BACKENDS.get(flow.backend).map(|backend| backend.next_hop)
    } else {
        Some(flow.client)
    };
    let unresolved = Stop::drop(Reason::NextHopUnresolved, flow.listener);
    let next_hop = next_hop.filter(|next_hop| next_hop.is_resolved()).ok_or(unresolved)?;
    let to = Translation::of::<F>(flow, client, direction);
    rewrite::<F>(frame, packet, inner, &to).ok_or(Stop::drop(Reason::Malformed, flow.listener))?;
    count::reason(Reason::IcmpTranslated as u32, flow.listener + 1);
    forward::forward(frame, &next_hop).ok_or(unresolved)
}

#[inline(always)]
fn rewrite<F: Family>(
    frame: &mut Frame,
    packet: &Packet<F::Addr>,
    inner: &Inner<'_, F::Addr>,
    flow: &Translation<F::Addr>,
) -> Option<()> {
    // The inner packet goes the opposite way: what its sender had sent has the flow's source as its destination.
    let inner_ip = F::write_inner_ip(frame, inner.l3, flow.destination, flow.source, flow.ip_difference)?;
    let inner_transport = rewrite_inner_transport(frame, packet, inner, flow)?;
    // Nobody but the balancer may be seen to answer where the flow hides the source; a router is, where it does not.
    let hides_source = flow.source != inner.key.source;
    let source = if hides_source { flow.source } else { packet.key.source };
    let (old, new) = ((packet.key.source, packet.key.destination), (source, flow.destination));
    let outer = Sum::default().address(old.0, new.0).address(old.1, new.1).fold();
    let message = inner_ip.and(inner_transport);
    // The checksum of ICMPv6 covers the addresses too; that of ICMP does not.
    let message = if F::Addr::VERSION == 6 { message.plus(outer) } else { message };
    let icmp: &mut Icmp = frame.at_mut(packet.l4())?;
    icmp.checksum = checksum::apply(icmp.checksum, message.fold());
    F::write_ip(frame, packet.l3(), new.0, new.1, F::ip_difference(outer))
}

/// Restores the ports of the inner packet, and its checksum as far as it is there. Gives what that adds to the sum.
#[inline(always)]
fn rewrite_inner_transport<A: Address>(
    frame: &mut Frame,
    packet: &Packet<A>,
    inner: &Inner<'_, A>,
    flow: &Translation<A>,
) -> Option<Sum> {
    let ports: &mut Ports = frame.at_mut(inner.l4)?;
    let (source, destination) = (flow.destination_port.to_be(), flow.source_port.to_be());
    let sum = Sum::default().word(ports.source, source).word(ports.destination, destination);
    *ports = Ports { source, destination };
    let end = packet.l3() + usize::from(packet.length);
    if inner.key.protocol == PROTO_UDP {
        let udp: &mut Udp = frame.at_mut(inner.l4)?;
        if udp.checksum == 0 {
            return Some(sum);
        }
        let old = udp.checksum;
        udp.checksum = checksum::apply_udp(old, flow.l4_difference);
        return Some(sum.word(old, udp.checksum));
    }
    let at = inner.l4 + offset_of!(Tcp, checksum);
    if at + size_of::<Word>() > end {
        return Some(sum);
    }
    match frame.at_mut::<Word>(at) {
        Some(Word(tcp_checksum)) => {
            let old = *tcp_checksum;
            *tcp_checksum = checksum::apply(old, flow.l4_difference);
            Some(sum.word(old, *tcp_checksum))
        }
        None => Some(sum),
    }
}

/// Answers an echo request to a VIP.
#[inline(always)]
fn echo<F: Family>(frame: &mut Frame, packet: &Packet<F::Addr>) -> Result<u32, Stop> {
    let unrelated = Stop::pass(Reason::IcmpUnrelated);
    let address = packet.key.destination.widen();
    // As in `choose`: a notation, never the address of a packet.
    let is_no_address = F::Addr::VERSION == 6 && address.is_ipv4_mapped();
    if is_no_address || vip_flags(&address).unwrap_or_default() & Vip::LISTENS == 0 {
        return Err(unrelated);
    }
    if !frame.is_to_this_host() {
        return Err(Stop::pass(Reason::OtherHost));
    }
    let settings = SETTINGS.get(0).ok_or(unrelated)?;
    if settings.flags & Settings::ICMP_ECHO == 0 {
        return Err(Stop::drop_unknown(Reason::EchoDisabled));
    }
    // The kernel puts fragments together.
    if packet.fragment.is_first() {
        return Err(unrelated);
    }
    reply::<F>(frame, packet).ok_or(unrelated)?;
    count::reason(Reason::EchoAnswered as u32, 0);
    Ok(XDP_TX)
}

#[inline(always)]
fn reply<F: Family>(frame: &mut Frame, packet: &Packet<F::Addr>) -> Option<()> {
    let sender = frame.sender()?;
    let icmp: &mut Icmp = frame.at_mut(packet.l4())?;
    let old = u16::from_ne_bytes([icmp.kind, icmp.code]);
    icmp.kind = F::ECHO.1;
    let difference = Sum::default().word(old, u16::from_ne_bytes([icmp.kind, icmp.code])).fold();
    icmp.checksum = checksum::apply(icmp.checksum, difference);
    // Swapped addresses leave every sum as it is.
    F::write_reply_ip(frame, packet.l3(), packet.key.destination, packet.key.source, REPLY_TTL)?;
    forward::forward(frame, &sender)?;
    Some(())
}
