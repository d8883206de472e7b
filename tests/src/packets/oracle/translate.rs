//! Writes other addresses and ports into a packet.
//!
//! A checksum that was right, or wrong by some amount, is so afterwards, by the same amount: an error of the sender must
//! not be covered up. One that was absent stays so. Of a part of a packet the checksum looks wrong by what is missing,
//! which translation does not touch: the same rule serves fragments, and packets that ICMP errors carry.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, bail};

use super::{Dissected, State, checksum};
use crate::packets::network::Mac;

/// What translation and forwarding make of a frame.
#[derive(Clone, Copy, Debug)]
pub struct Translation {
    /// New source; the port counts where the packet has one.
    pub src: SocketAddr,
    /// New destination.
    pub dst: SocketAddr,
    /// New source MAC.
    pub src_mac: Mac,
    /// New destination MAC.
    pub dst_mac: Mac,
    /// New TTL or hop limit.
    pub ttl: u8,
    /// New source and destination of the packet that an ICMP error is about.
    pub about: Option<(SocketAddr, SocketAddr)>,
}

impl Dissected<'_> {
    /// The frame that this one must become.
    ///
    /// # Errors
    ///
    /// If the packet cannot be translated to these addresses.
    pub fn translated(&self, to: &Translation) -> Result<Vec<u8>> {
        let mut frame = self.frame.to_vec();
        frame[0..6].copy_from_slice(&to.dst_mac.0);
        frame[6..12].copy_from_slice(&to.src_mac.0);
        if let Some((src, dst)) = to.about {
            let about = self.about()?;
            about.write_ends(&mut frame, src, dst)?;
            about.write_checksums(&mut frame, (src, dst), about.ip_checksum(), about.transport_checksum());
        }
        self.write_ends(&mut frame, to.src, to.dst)?;
        frame[self.ttl_at()] = to.ttl;
        self.write_checksums(&mut frame, (to.src, to.dst), self.ip_checksum(), self.transport_checksum());
        Ok(frame)
    }

    /// The same frame with right checksums.
    pub fn corrected(&self) -> Vec<u8> {
        let mut frame = self.frame.to_vec();
        if let Ok(about) = self.about() {
            about.write_checksums(&mut frame, (about.src, about.dst), State::Right, State::Right);
        }
        self.write_checksums(&mut frame, (self.src, self.dst), State::Right, State::Right);
        frame
    }

    pub(super) const fn ttl_at(&self) -> usize {
        self.l3 + if self.src.is_ipv4() { 8 } else { 7 }
    }

    fn write_ends(&self, frame: &mut [u8], src: SocketAddr, dst: SocketAddr) -> Result<()> {
        match (src.ip(), dst.ip()) {
            (IpAddr::V4(src), IpAddr::V4(dst)) if self.src.is_ipv4() => {
                frame[self.l3 + 12..self.l3 + 16].copy_from_slice(&src.octets());
                frame[self.l3 + 16..self.l3 + 20].copy_from_slice(&dst.octets());
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) if self.src.is_ipv6() => {
                frame[self.l3 + 8..self.l3 + 24].copy_from_slice(&src.octets());
                frame[self.l3 + 24..self.l3 + 40].copy_from_slice(&dst.octets());
            }
            _ => bail!("{} to {} cannot be translated to {src} to {dst}", self.src, self.dst),
        }
        if self.has_ports() {
            frame[self.l4..self.l4 + 2].copy_from_slice(&src.port().to_be_bytes());
            frame[self.l4 + 2..self.l4 + 4].copy_from_slice(&dst.port().to_be_bytes());
        }
        Ok(())
    }

    /// Computes both checksums of a frame of this shape, which has these ends by now; they come out in these states.
    pub(super) fn write_checksums(
        &self,
        frame: &mut [u8],
        (src, dst): (SocketAddr, SocketAddr),
        ip: State,
        transport: State,
    ) {
        if self.src.is_ipv4() {
            let header = self.l3..self.l3 + usize::from(frame[self.l3] & 0x0f) * 4;
            fill_in(frame, self.l3 + 10, ip, |frame| checksum(&[&frame[header.clone()]]));
        }
        let Some(at) = self.checksum_at() else { return };
        if transport == State::Absent {
            return;
        }
        fill_in(frame, at, transport, |frame| {
            let place = Dissected { frame, src, dst, ..*self };
            checksum(&[&place.pseudo_header(), place.covered()])
        });
        if self.is_udp() && frame[at..at + 2] == [0, 0] {
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

const fn fold(sum: u32) -> u16 {
    (sum & 0xffff) as u16 + (sum >> 16) as u16
}
