//! What must come out of the program: computed from the frame that went in, by a library that knows nothing of
//! the program. etherparse finds the headers; the bytes that translation changes are written over, all others
//! stay; checksums are computed in full over what results.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, bail, ensure};
use etherparse::checksum::Sum16BitWords;
use etherparse::{IpHeaders, SlicedPacket, ip_number};

use super::network::Mac;

/// What translation and forwarding make of a frame.
#[derive(Clone, Copy, Debug)]
pub struct Translation {
    /// New source.
    pub src: SocketAddr,
    /// New destination.
    pub dst: SocketAddr,
    /// New source MAC.
    pub src_mac: Mac,
    /// New destination MAC.
    pub dst_mac: Mac,
    /// New TTL or hop limit.
    pub ttl: u8,
}

/// The state of a checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// As it must be.
    Right,
    /// Wrong by this much: the folded sum over everything it covers, which would be all ones.
    Wrong(u16),
    /// The sender computed none: a UDP checksum of zero.
    Absent,
}

/// A TCP or UDP packet whose parts have been found.
#[derive(Clone, Copy, Debug)]
pub struct Dissected<'a> {
    frame: &'a [u8],
    /// Offset of the IP header.
    l3: usize,
    /// Offset of the TCP or UDP header.
    l4: usize,
    /// Offset of the first byte that is no part of the IP packet.
    l3_end: usize,
    /// Whether it is a part of a packet only.
    pub is_fragment: bool,
    /// IP protocol number.
    pub protocol: u8,
    /// Source.
    pub src: SocketAddr,
    /// Destination.
    pub dst: SocketAddr,
    /// TTL or hop limit.
    pub ttl: u8,
}

impl<'a> Dissected<'a> {
    /// Finds the parts of a frame.
    ///
    /// # Errors
    ///
    /// If it is no TCP or UDP packet, with at most VLAN tags before it.
    pub fn new(frame: &'a [u8]) -> Result<Self> {
        let tags = frame.get(12..).map_or(0, |types| {
            types.chunks(4).take_while(|tag| matches!(tag, [0x81, 0x00, ..] | [0x88, 0xa8, ..])).count()
        });
        let l3 = 14 + 4 * tags;
        let packet = frame.get(l3..).context("the frame ends before its IP header")?;
        let (ip, payload) = IpHeaders::from_slice(packet)?;
        let l4 = l3 + payload.payload.as_ptr().addr() - packet.as_ptr().addr();
        let l3_end = l4 + payload.payload.len();
        let (src, dst, ttl): (IpAddr, IpAddr, u8) = match &ip {
            IpHeaders::Ipv4(ip, _) => (ip.source.into(), ip.destination.into(), ip.time_to_live),
            IpHeaders::Ipv6(ip, _) => (ip.source.into(), ip.destination.into(), ip.hop_limit),
        };
        let protocol = payload.ip_number.0;
        let least = match payload.ip_number {
            ip_number::TCP => 20,
            ip_number::UDP => 8,
            other => bail!("expected TCP or UDP, found IP protocol {}", other.0),
        };
        ensure!(l3_end - l4 >= least, "the transport header is cut off");
        let port = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
        Ok(Self {
            frame,
            l3,
            l4,
            l3_end,
            is_fragment: payload.fragmented,
            protocol,
            src: SocketAddr::new(src, port(l4)),
            dst: SocketAddr::new(dst, port(l4 + 2)),
            ttl,
        })
    }

    /// Bytes of the IP packet, header included.
    pub const fn ip_length(&self) -> usize {
        self.l3_end - self.l3
    }

    /// The IPv4 header's checksum; always right for IPv6, which has none.
    pub fn ip_checksum(&self) -> State {
        if self.src.is_ipv6() {
            return State::Right;
        }
        let length = usize::from(self.frame[self.l3] & 0x0f) * 4;
        state(checksum(&[&self.frame[self.l3..self.l3 + length]]))
    }

    /// The TCP or UDP checksum.
    pub fn transport_checksum(&self) -> State {
        let at = self.checksum_at();
        if self.is_udp() && self.frame[at..at + 2] == [0, 0] {
            return State::Absent;
        }
        state(checksum(&[&self.pseudo_header(), self.covered()]))
    }

    const fn is_udp(&self) -> bool {
        self.protocol == ip_number::UDP.0
    }

    const fn checksum_at(&self) -> usize {
        self.l4 + if self.is_udp() { 6 } else { 16 }
    }

    /// What the transport checksum covers: TCP all of the packet, UDP as much as its length says.
    fn covered(&self) -> &'a [u8] {
        let rest = &self.frame[self.l4..self.l3_end];
        if !self.is_udp() {
            return rest;
        }
        let length = usize::from(u16::from_be_bytes([rest[4], rest[5]]));
        &rest[..length.min(rest.len())]
    }

    /// What the transport checksum covers besides (RFC 9293, 3.1; RFC 8200, 8.1).
    fn pseudo_header(&self) -> Vec<u8> {
        let length = self.covered().len() as u32;
        let mut bytes = match (self.src.ip(), self.dst.ip()) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => [src.octets(), dst.octets()].concat(),
            (IpAddr::V6(src), IpAddr::V6(dst)) => [src.octets(), dst.octets()].concat(),
            _ => vec![],
        };
        bytes.extend(length.to_be_bytes());
        bytes.extend([0, 0, 0, self.protocol]);
        bytes
    }

    /// The same frame with right checksums.
    pub fn corrected(&self) -> Vec<u8> {
        let mut frame = self.frame.to_vec();
        self.write_checksums(&mut frame, State::Right, State::Right);
        frame
    }

    /// The frame that this one must become.
    ///
    /// A checksum that was right, or wrong by some amount, is so afterwards, by the same amount: an error of the
    /// sender must not be covered up. One that was absent stays so.
    ///
    /// # Errors
    ///
    /// If the packet cannot be translated to these addresses.
    pub fn translated(&self, to: &Translation) -> Result<Vec<u8>> {
        ensure!(!self.is_fragment, "the checksum of a part of a packet cannot be computed");
        let (ip_before, transport_before) = (self.ip_checksum(), self.transport_checksum());
        let mut frame = self.frame.to_vec();
        frame[0..6].copy_from_slice(&to.dst_mac.0);
        frame[6..12].copy_from_slice(&to.src_mac.0);
        match (to.src.ip(), to.dst.ip()) {
            (IpAddr::V4(src), IpAddr::V4(dst)) if self.src.is_ipv4() => {
                frame[self.l3 + 8] = to.ttl;
                frame[self.l3 + 12..self.l3 + 16].copy_from_slice(&src.octets());
                frame[self.l3 + 16..self.l3 + 20].copy_from_slice(&dst.octets());
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) if self.src.is_ipv6() => {
                frame[self.l3 + 7] = to.ttl;
                frame[self.l3 + 8..self.l3 + 24].copy_from_slice(&src.octets());
                frame[self.l3 + 24..self.l3 + 40].copy_from_slice(&dst.octets());
            }
            _ => bail!("{} to {} cannot be translated to {} to {}", self.src, self.dst, to.src, to.dst),
        }
        frame[self.l4..self.l4 + 2].copy_from_slice(&to.src.port().to_be_bytes());
        frame[self.l4 + 2..self.l4 + 4].copy_from_slice(&to.dst.port().to_be_bytes());
        let place = Self { src: to.src, dst: to.dst, ..*self };
        place.write_checksums(&mut frame, ip_before, transport_before);
        Ok(frame)
    }

    /// Computes both checksums of a frame of this shape; they come out as these.
    fn write_checksums(&self, frame: &mut [u8], ip: State, transport: State) {
        if self.src.is_ipv4() {
            let header = self.l3..self.l3 + usize::from(frame[self.l3] & 0x0f) * 4;
            fill_in(frame, self.l3 + 10, ip, |frame| checksum(&[&frame[header.clone()]]));
        }
        let at = self.checksum_at();
        match transport {
            State::Absent => frame[at..at + 2].fill(0),
            state => fill_in(frame, at, state, |frame| {
                let place = Dissected { frame, ..*self };
                checksum(&[&place.pseudo_header(), place.covered()])
            }),
        }
        if self.is_udp() && transport != State::Absent && frame[at..at + 2] == [0, 0] {
            // Zero would say that there is none (RFC 768).
            frame[at..at + 2].fill(0xff);
        }
    }
}

/// Writes the checksum at an offset anew, as wrong as it was `before`.
fn fill_in(frame: &mut [u8], at: usize, before: State, compute: impl Fn(&[u8]) -> u16) {
    frame[at..at + 2].fill(0);
    let right = compute(frame);
    let value = match before {
        // All ones is the other representation of zero, which a computation never gives.
        State::Wrong(sum) => match fold(u32::from(right) + u32::from(sum)) {
            u16::MAX => 0,
            value => value,
        },
        _ => right,
    };
    frame[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// The Internet checksum of parts of even length but for the last (RFC 1071): what belongs into a field that was
/// zero; zero over data with a right checksum in it.
pub fn checksum(parts: &[&[u8]]) -> u16 {
    let sum = parts.iter().fold(Sum16BitWords::new(), |sum, part| sum.add_slice(part));
    u16::from_be(sum.ones_complement())
}

fn state(checksum: u16) -> State {
    match checksum {
        0 => State::Right,
        checksum => State::Wrong(!checksum),
    }
}

const fn fold(sum: u32) -> u16 {
    (sum & 0xffff) as u16 + (sum >> 16) as u16
}

/// Requires all checksums of a frame to be right.
///
/// # Errors
///
/// Names the one that is not.
pub fn require_right_checksums(frame: &[u8]) -> Result<()> {
    let packet = Dissected::new(frame)?;
    ensure!(packet.ip_checksum() == State::Right, "the IPv4 header checksum is wrong:\n{}", describe(frame));
    if let State::Wrong(sum) = packet.transport_checksum() {
        bail!(
            "the transport checksum is wrong (the sum over everything is {sum:#06x}):\n{}",
            describe(frame)
        );
    }
    Ok(())
}

/// Requires two frames to be equal.
///
/// # Errors
///
/// Shows both, as bytes and dissected.
pub fn require_equal(expected: &[u8], found: &[u8]) -> Result<()> {
    if expected == found {
        return Ok(());
    }
    let differing: Vec<usize> =
        (0..expected.len().max(found.len())).filter(|&at| expected.get(at) != found.get(at)).collect();
    bail!(
        "another frame came out than expected; they differ at bytes {differing:?}\n\
         expected:\n{}\nfound:\n{}",
        describe(expected),
        describe(found)
    )
}

/// A frame for people: what etherparse makes of it, and its bytes.
pub fn describe(frame: &[u8]) -> String {
    let mut text = String::new();
    match Dissected::new(frame) {
        Ok(packet) => {
            let _ = writeln!(
                text,
                "  {} > {} protocol {} ttl {} IP length {} checksums {:?} {:?}",
                packet.src,
                packet.dst,
                packet.protocol,
                packet.ttl,
                packet.ip_length(),
                packet.ip_checksum(),
                packet.transport_checksum()
            );
        }
        Err(error) => {
            let _ = writeln!(text, "  {error}; {:?}", SlicedPacket::from_ethernet(frame));
        }
    }
    for (row, bytes) in frame.chunks(16).take(12).enumerate() {
        let _ = write!(text, "  {:4}  ", row * 16);
        for byte in bytes {
            let _ = write!(text, "{byte:02x} ");
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    const CLIENT: ([u8; 4], [u8; 4]) = ([192, 0, 2, 1], [10, 0, 1, 100]);
    const BACKEND: ([u8; 4], [u8; 4]) = ([10, 0, 1, 100], [10, 0, 1, 10]);
    const MACS: ([u8; 6], [u8; 6]) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);

    /// A frame as etherparse builds it by itself.
    fn built(
        (src, dst): ([u8; 4], [u8; 4]),
        (from, to): (u16, u16),
        macs: ([u8; 6], [u8; 6]),
        ttl: u8,
    ) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2(macs.0, macs.1).ipv4(src, dst, ttl).udp(from, to);
        let mut frame = Vec::new();
        builder.write(&mut frame, b"payload").unwrap();
        frame
    }

    fn to_backend() -> Translation {
        Translation {
            src: (BACKEND.0, 1024).into(),
            dst: (BACKEND.1, 8080).into(),
            src_mac: Mac(MACS.1),
            dst_mac: Mac(MACS.0),
            ttl: 63,
        }
    }

    #[test]
    fn a_translated_frame_is_the_one_that_would_have_been_built() {
        let before = built(CLIENT, (40000, 80), MACS, 64);
        let after = built(BACKEND, (1024, 8080), (MACS.1, MACS.0), 63);
        assert_eq!(Dissected::new(&before).unwrap().translated(&to_backend()).unwrap(), after);
        require_right_checksums(&after).unwrap();
    }

    #[test]
    fn each_wrong_checksum_is_noticed_and_stays_as_wrong_as_it_was() {
        let right = built(CLIENT, (40000, 80), MACS, 64);
        for at in [24, 40] {
            let mut wrong = right.clone();
            wrong[at] ^= 0x40;
            assert!(require_right_checksums(&wrong).is_err(), "byte {at}");
            let before = Dissected::new(&wrong).unwrap();
            let out = before.translated(&to_backend()).unwrap();
            let after = Dissected::new(&out).unwrap();
            assert_eq!(after.ip_checksum(), before.ip_checksum());
            assert_eq!(after.transport_checksum(), before.transport_checksum());
            assert_eq!(before.corrected(), right);
        }
    }

    #[test]
    fn one_other_byte_is_another_frame() {
        let expected = built(CLIENT, (40000, 80), MACS, 64);
        let mut found = expected.clone();
        require_equal(&expected, &found).unwrap();
        found[30] ^= 1;
        let error = require_equal(&expected, &found).unwrap_err().to_string();
        assert!(error.contains("differ at bytes [30]"), "{error}");
        assert!(require_equal(&expected, &expected[..expected.len() - 1]).is_err());
    }
}
