//! What the balancer says itself, in place of the packet: a RST, an ICMP port unreachable, or that a packet is too big.
//! Every checksum here is computed in full, since there is none to start from.

use lb_common::{Flow, FlowKey, NextHop, PROTO_TCP, Reason};

use crate::checksum::Sum;
use crate::family::Family;
use crate::flow::Seen;
use crate::frame::Frame;
use crate::maps::{ANSWER, ANSWER_RATES, Scratch};
use crate::parse::Packet;
use crate::stop::Stop;
use crate::wire::{Ethernet, Icmp, Ports, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, Tcp, VlanTag, Word};
use crate::{count, flow, forward, rate};

/// ICMP errors a CPU sends each second at most (RFC 1812, 4.3.2.8; RFC 4443, 2.4 (f)).
const ERRORS_PER_SECOND: u64 = 1000;

/// Bytes of IP header that an error can carry with the first 8 behind it.
const MAX_QUOTED_HEADER: usize = 120;

/// Words of 16 bits in the longest ICMP error: its header and what it quotes.
const MAX_ERROR_WORDS: usize = (8 + MAX_QUOTED_HEADER + 8) / 2;

/// Notes what [`reset`] or [`error`] has to do with this packet.
#[inline(always)]
pub(crate) fn request(stop: Stop) -> Option<()> {
    let request = ANSWER.get_ptr_mut(0)?;
    // SAFETY: the slot belongs to this CPU and XDP programs do not interrupt each other on one CPU.
    unsafe { *request = [stop.answer, stop.mtu, stop.counters, 0] };
    Some(())
}

/// Turns the packet, which a journey has read, into a RST. `None` if that is not possible; the packet is then dropped.
#[inline(always)]
pub(crate) fn reset<F: Family>(frame: &mut Frame) -> Option<u32> {
    let Scratch { packet, .. } = F::scratch()?;
    // SAFETY: as in `request`.
    let [answer, _, counters, _] = unsafe { *ANSWER.get_ptr_mut(0)? };
    let verdict = match answer {
        Stop::CUT => cut::<F>(frame, packet)?,
        _ => refuse::<F>(frame, packet)?,
    };
    count::reason(Reason::Answered as u32, counters);
    Some(verdict)
}

/// Turns the packet, which a journey has read, into an ICMP error. `None` if that is not possible; the packet is then dropped.
#[inline(always)]
pub(crate) fn error<F: Family>(frame: &mut Frame) -> Option<u32> {
    let Scratch { packet, .. } = F::scratch()?;
    // SAFETY: as in `request`.
    let [answer, mtu, counters, _] = unsafe { *ANSWER.get_ptr_mut(0)? };
    let (source, kind, rest) = match answer {
        Stop::TOO_BIG => (seen_source::<F>(packet), F::TOO_BIG, mtu.to_be()),
        _ => (packet.key.destination, F::PORT_UNREACHABLE, 0),
    };
    let verdict = quote::<F>(frame, packet, source, kind, rest)?;
    count::reason(Reason::Answered as u32, counters);
    Some(verdict)
}

/// A RST to the sender that its stack accepts (RFC 9293, 3.10.7.1).
#[inline(always)]
fn refuse<F: Family>(frame: &mut Frame, packet: &Packet<F::Addr>) -> Option<u32> {
    // First, since the compiler sees that a frame which holds TCP holds Ethernet, and the verifier does not.
    let sender = frame.sender()?;
    let tcp: Tcp = *frame.at(packet.l4())?;
    let (sequence, acknowledgement, flags) = if tcp.flags & TCP_ACK != 0 {
        (tcp.acknowledgement, 0, TCP_RST)
    } else {
        let header = packet.l4() - packet.l3() + 4 * usize::from(tcp.data_offset >> 4);
        let data = u32::from(packet.length).wrapping_sub(header as u32);
        let controls = u32::from(tcp.flags & TCP_SYN != 0) + u32::from(tcp.flags & TCP_FIN != 0);
        let next = u32::from_be(tcp.sequence).wrapping_add(data).wrapping_add(controls);
        (0, next.to_be(), TCP_RST | TCP_ACK)
    };
    write_reset::<F>(frame, packet.l3(), &packet.key.reversed(), [sequence, acknowledgement], flags, &sender)
}

/// A RST to the client of a flow in place of a packet from its backend: its sequence number is the next one that the
/// client expects, unless packets were lost or reordered; then the next packet brings another.
#[inline(always)]
fn cut<F: Family>(frame: &mut Frame, packet: &Packet<F::Addr>) -> Option<u32> {
    let tcp: Tcp = *frame.at(packet.l4())?;
    let Seen { flow, client, .. } = flow::look::<F>(&packet.key)?;
    let (tuple, client) = (client.reversed(), flow.client);
    let numbers = [tcp.sequence, tcp.acknowledgement];
    write_reset::<F>(frame, packet.l3(), &tuple, numbers, TCP_RST | TCP_ACK, &client)
}

/// Makes the frame a RST with this tuple; `numbers` are sequence and acknowledgement, in network order.
#[inline(always)]
fn write_reset<F: Family>(
    frame: &mut Frame,
    l3: usize,
    tuple: &FlowKey<F::Addr>,
    numbers: [u32; 2],
    flags: u8,
    next_hop: &NextHop,
) -> Option<u32> {
    let l4 = l3 + F::HEADER;
    let length = size_of::<Tcp>() as u16;
    frame.cut(l4 + size_of::<Tcp>())?;
    F::write_fresh_ip(frame, l3, tuple.source, tuple.destination, PROTO_TCP, length)?;
    let [sequence, acknowledgement] = numbers;
    let mut tcp = Tcp {
        ports: Ports { source: tuple.source_port.to_be(), destination: tuple.destination_port.to_be() },
        sequence,
        acknowledgement,
        data_offset: (size_of::<Tcp>() as u8 / 4) << 4,
        flags,
        window: 0,
        checksum: 0,
        urgent: 0,
    };
    let header = Sum::default()
        .plus(tcp.ports.source)
        .plus(tcp.ports.destination)
        .plus(u16::from_ne_bytes([tcp.data_offset, flags]));
    let pseudo_header = header
        .plus_double_word(sequence)
        .plus_double_word(acknowledgement)
        .plus_address(tuple.source)
        .plus_address(tuple.destination)
        .plus(length.to_be())
        .plus(u16::from(PROTO_TCP).to_be());
    tcp.checksum = !pseudo_header.fold();
    *frame.at_mut(l4)? = tcp;
    forward::forward(frame, next_hop)
}

/// Who tells the sender of a packet about it: the VIP. What the flow hides, the error hides.
#[inline(always)]
fn seen_source<F: Family>(packet: &Packet<F::Addr>) -> F::Addr {
    match flow::look::<F>(&packet.key) {
        Some(Seen { client, direction, .. }) if direction == Flow::<F::Addr>::TO_CLIENT => client.destination,
        _ => packet.key.destination,
    }
}

/// Makes the frame an ICMP error about the packet it held, to that packet's sender. It quotes the IP header and 8 bytes.
#[inline(always)]
fn quote<F: Family>(
    frame: &mut Frame,
    packet: &Packet<F::Addr>,
    source: F::Addr,
    (kind, code): (u8, u8),
    rest: u32,
) -> Option<u32> {
    let l3 = packet.l3();
    let header = packet.l4() - l3;
    if header > MAX_QUOTED_HEADER || !rate::has_room(&ANSWER_RATES, ERRORS_PER_SECOND) {
        return None;
    }
    let sender = frame.sender()?;
    let ethernet: Ethernet = *frame.at(0)?;
    let tags: [Option<VlanTag>; 2] = [
        if l3 > size_of::<Ethernet>() { frame.at(size_of::<Ethernet>()).copied() } else { None },
        if l3 > size_of::<Ethernet>() + 4 { frame.at(size_of::<Ethernet>() + 4).copied() } else { None },
    ];
    let room = F::HEADER + size_of::<Icmp>();
    let quoted = header + 8;
    frame.grow_front(room)?;
    frame.cut(l3 + room + quoted)?;
    *frame.at_mut(0)? = ethernet;
    if let Some(tag) = tags[0] {
        *frame.at_mut(size_of::<Ethernet>())? = tag;
    }
    if let Some(tag) = tags[1] {
        *frame.at_mut(size_of::<Ethernet>() + 4)? = tag;
    }
    let length = (size_of::<Icmp>() + quoted) as u16;
    F::write_fresh_ip(frame, l3, source, packet.key.source, F::ICMP, length)?;
    let l4 = l3 + F::HEADER;
    *frame.at_mut(l4)? = Icmp { kind, code, checksum: 0, rest };
    let sum = F::icmp_pseudo_header(source, packet.key.source, length).and(sum_to_end(frame, l4));
    let icmp: &mut Icmp = frame.at_mut(l4)?;
    icmp.checksum = !sum.fold();
    forward::forward(frame, &sender)
}

/// Sums everything from `from` on; the frame ends where the message does.
#[inline(always)]
fn sum_to_end(frame: &Frame, from: usize) -> Sum {
    let mut sum = Sum::default();
    for word in 0..MAX_ERROR_WORDS {
        let Some(Word(word)) = frame.at::<Word>(from + 2 * word) else { break };
        sum = sum.plus(*word);
    }
    sum
}
