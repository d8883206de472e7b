//! Puts the fragments that came out together again: only then can it be told whether their checksum is right.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Result, ensure};

use super::{Dissected, State};

/// Fragments that came out, by what those of a datagram share.
#[derive(Clone, Debug, Default)]
pub struct Reassembly(BTreeMap<(IpAddr, IpAddr, u32, u8), Datagram>);

#[derive(Clone, Debug, Default)]
struct Datagram {
    /// Bytes by offset.
    parts: BTreeMap<usize, Vec<u8>>,
    /// Length, once the last is there.
    length: Option<usize>,
}

impl Reassembly {
    /// Adds a packet, and requires the checksum of its datagram to be right when it is complete.
    ///
    /// # Errors
    ///
    /// If it is not.
    pub fn add(&mut self, packet: &Dissected<'_>) -> Result<()> {
        let Some(part) = packet.part else { return Ok(()) };
        let key = (packet.src.ip(), packet.dst.ip(), part.id, packet.protocol);
        let datagram = self.0.entry(key).or_default();
        datagram.parts.insert(part.offset, packet.payload().to_vec());
        if !part.is_followed {
            datagram.length = Some(part.offset + packet.payload().len());
        }
        let Some(whole) = datagram.whole() else { return Ok(()) };
        self.0.remove(&key);
        let place = Dissected { frame: &whole, l3: 0, l4: 0, l3_end: whole.len(), part: None, ..*packet };
        let state = place.transport_checksum();
        ensure!(
            !matches!(state, State::Wrong(_)),
            "the checksum of {} bytes in fragments from {} to {} is wrong: {state:?}",
            whole.len(),
            packet.src.ip(),
            packet.dst.ip()
        );
        Ok(())
    }
}

impl Datagram {
    /// All bytes, if they are there.
    fn whole(&self) -> Option<Vec<u8>> {
        let mut whole = vec![];
        for (&offset, part) in &self.parts {
            if offset > whole.len() {
                return None;
            }
            whole.truncate(offset);
            whole.extend(part);
        }
        self.length.filter(|&length| length == whole.len()).map(|_| whole)
    }
}
