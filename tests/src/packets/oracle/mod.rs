//! What must come out of the program: computed from the frame that went in, by a library that knows nothing of
//! the program. etherparse finds the headers; the bytes that translation changes are written over, all others
//! stay; checksums are computed in full over what results.
//!
//! | file | what it does |
//! | --- | --- |
//! | `dissect` | finds the parts of a packet, also of one that an ICMP error carries |
//! | `translate` | writes other addresses and ports into them, and checksums |
//! | `answer` | what the balancer says itself: RST, ICMP errors, echo replies |
//! | `reassembly` | puts fragments together, so that their checksum can be told |

mod answer;
mod dissect;
mod reassembly;
mod translate;

use std::fmt::Write as _;

use anyhow::{Result, bail};
use etherparse::SlicedPacket;
use etherparse::checksum::Sum16BitWords;

pub use answer::Error;
pub use dissect::{Dissected, Part};
pub use reassembly::Reassembly;
pub use translate::Translation;

/// The state of a checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// As it must be.
    Right,
    /// Wrong by this much: the folded sum over everything it covers, which would be all ones. That of a part of a
    /// packet is wrong by what is missing.
    Wrong(u16),
    /// There is none: a UDP checksum of zero, or a part of a packet that does not hold it.
    Absent,
}

/// The Internet checksum of parts of even length but for the last (RFC 1071): what belongs into a field that was
/// zero; zero over data with a right checksum in it.
pub fn checksum(parts: &[&[u8]]) -> u16 {
    let sum = parts.iter().fold(Sum16BitWords::new(), |sum, part| sum.add_slice(part));
    u16::from_be(sum.ones_complement())
}

const fn state(checksum: u16) -> State {
    match checksum {
        0 => State::Right,
        checksum => State::Wrong(!checksum),
    }
}

/// Requires all checksums of a frame to be right.
///
/// # Errors
///
/// Names the one that is not.
pub fn require_right_checksums(frame: &[u8]) -> Result<()> {
    for (name, state) in Dissected::new(frame)?.checksums() {
        if let State::Wrong(sum) = state {
            bail!(
                "the {name} checksum is wrong (the sum over everything is {sum:#06x}):\n{}",
                describe(frame)
            );
        }
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
                "  {} > {} protocol {} ttl {} IP length {} part {:?} checksums {:?}",
                packet.src,
                packet.dst,
                packet.protocol,
                packet.ttl,
                packet.ip_length(),
                packet.part,
                packet.checksums()
            );
            if let Ok(about) = packet.about() {
                let _ = writeln!(text, "  about {} > {} protocol {}", about.src, about.dst, about.protocol);
            }
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
    use crate::packets::network::Mac;

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
            about: None,
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
