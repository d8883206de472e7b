//! Before a packet is sent, the program is asked what would become of it; it must have told the truth. That asking leaves
//! no trace is seen by the counters and flows, which the packet alone must account for.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use lb_common::{Explanation, Reason};

use crate::packets::case::{Pass, Reply, Step};
use crate::packets::oracle::Dissected;
use crate::packets::{Answer, Verdict};

/// IP protocol numbers of TCP and UDP: `lb explain` asks about nothing else.
const TRANSPORTS: [u8; 2] = [6, 17];

/// Requires an explanation to be what has happened.
pub(super) fn require(step: &Step, sent: &[u8], told: &Explanation, answer: &Answer) -> Result<()> {
    let Ok(before) = Dissected::new(sent) else { return Ok(()) };
    if !TRANSPORTS.contains(&before.protocol) || before.part.is_some() || is_unforeseeable(step) {
        return Ok(());
    }
    let reason = Reason::ALL.get(told.reason as usize).map(|reason| reason.name());
    if step.tx.is_some() || step.redirect.is_some() {
        ensure!(told.verdict == Explanation::FORWARD, "explained as {reason:?}, but it travelled on");
        let after = Dissected::new(&answer.frame)?;
        let end = |address: lb_common::Addr6, port| {
            let address: std::net::IpAddr = address.into();
            let address = if before.src.is_ipv4() { address.to_canonical() } else { address };
            SocketAddr::new(address, port)
        };
        let explained = (end(told.source, told.source_port), end(told.destination, told.destination_port));
        ensure!(
            explained == (after.src, after.dst),
            "explained as {explained:?}, but it became {:?}",
            (after.src, after.dst)
        );
        let (peer, local) = (answer.frame.get(..6), answer.frame.get(6..12));
        ensure!(
            peer == Some(&told.next_hop.peer) && local == Some(&told.next_hop.local),
            "explained to leave by {:?}, but it left otherwise",
            told.next_hop
        );
        return Ok(());
    }
    let named = match (&step.pass, &step.drop) {
        (Some(Pass::Named(name)), _) | (_, Some(name)) => Some(name.as_str()),
        _ => None,
    };
    let verdict = if answer.verdict == Verdict::Pass { Explanation::PASS } else { Explanation::DROP };
    ensure!(told.verdict == verdict, "explained as {}, {reason:?}; that was not so", told.verdict);
    ensure!(named.is_none() || named == reason, "explained as {reason:?}, but it was {named:?}");
    let told = told.flags & (Explanation::RESET | Explanation::ERROR);
    let expected = match &step.answer {
        Some(Reply::Rst | Reply::TurnedIntoRst(_)) => Explanation::RESET,
        Some(Reply::PortUnreachable | Reply::TooBig(_)) => Explanation::ERROR,
        _ => 0,
    };
    ensure!(told == expected, "explained with the answer {told}, but it was {expected}");
    Ok(())
}

/// Whether it depends on what nobody can see beforehand: whether the connection map takes an entry.
fn is_unforeseeable(step: &Step) -> bool {
    step.drop.as_deref() == Some("connections_full")
}
