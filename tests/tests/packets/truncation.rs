//! Frames cut off at every length: never a crash, never half a translation.

use anyhow::{Context as _, Result, ensure};
use lb_tests::packets::case::{Extension, Fragment, Hex, IcmpError, Packet, Tag};
use lb_tests::packets::{Family, Verdict, oracle};
use libtest_mimic::Trial;

use crate::lab::{Lab, ONE_BACKEND, tcp, udp};
use crate::trial_for_each_family;

pub(crate) fn trials() -> Vec<Trial> {
    trial_for_each_family(
        "truncation",
        "a frame cut off anywhere is passed or dropped, untouched",
        every_length,
    )
}

/// The shortest frame that BPF_PROG_TEST_RUN takes: an Ethernet header.
const SHORTEST: usize = 14;

fn every_length(family: Family) -> Result<()> {
    let mut lab = Lab::new(ONE_BACKEND, "", family)?;
    for packet in new_ones(family) {
        let frame = lab.frame(&packet)?;
        cut_everywhere(&mut lab, &frame)?;
        ensure!(lab.bench.halves()?.is_empty(), "a frame that is cut off opened a flow: {packet:?}");
    }
    // The same for both directions of flows that exist.
    for packet in [tcp("client:40000", "vip:80", "S"), udp("client:40000", "vip:80", "request")] {
        let request = lab.frame(&packet)?;
        let out = lab.send(&request)?;
        ensure!(out.verdict == Verdict::Tx, "expected the verdict Tx, found {:?}", out.verdict);
        let answer = lab.answer_to(&out.frame, "SA")?;
        let before = lab.bench.halves()?;
        cut_everywhere(&mut lab, &request)?;
        cut_everywhere(&mut lab, &answer)?;
        ensure!(lab.bench.halves()? == before, "frames that are cut off changed the flows");
        lab.through(&answer)?;
    }
    Ok(())
}

fn new_ones(family: Family) -> Vec<Packet> {
    let options = Hex(vec![1; 12]);
    let mut packets = vec![
        tcp("client:40000", "vip:80", "S"),
        Packet { tcp_options: options.clone(), ..tcp("client:40000", "vip:80", "S") },
        Packet { payload: "data".into(), ..tcp("client:40000", "vip:80", "PA") },
        udp("client:40000", "vip:80", ""),
        udp("client:40000", "vip:80", "a datagram"),
        Packet { vlan: vec![Tag::Id(100), Tag::Id(200)], ..tcp("client:40000", "vip:80", "S") },
        Packet { echo: true, src: "client".into(), dst: "vip".into(), ..Packet::default() },
        Packet {
            error: Some(IcmpError::TimeExceeded),
            about: Some(Box::new(udp("vip:80", "client:40000", "an answer"))),
            src: "client".into(),
            dst: "vip".into(),
            ..Packet::default()
        },
    ];
    match family {
        Family::V4 => packets.push(Packet { ip_options: options, ..tcp("client:40000", "vip:80", "S") }),
        Family::V6 => {
            let extensions = [0, 43, 60].map(|header| Extension { header, data: Hex(vec![0; 14]) }).into();
            packets.push(Packet { extensions, ..tcp("client:40000", "vip:80", "S") });
            let fragment = Some(Fragment { offset: 0, length: Some(64), id: 1 });
            packets.push(Packet { fragment, payload_length: 100, ..udp("client:40000", "vip:80", "") });
        }
    }
    packets
}

fn cut_everywhere(lab: &mut Lab, frame: &[u8]) -> Result<()> {
    for length in SHORTEST..frame.len() {
        let cut = &frame[..length];
        let answer = lab.send(cut).with_context(|| format!("cut to {length} bytes"))?;
        ensure!(
            matches!(answer.verdict, Verdict::Pass | Verdict::Drop),
            "expected Pass or Drop, found {:?} for the first {length} bytes of\n{}",
            answer.verdict,
            oracle::describe(frame)
        );
        oracle::require_equal(cut, &answer.frame)?;
    }
    Ok(())
}
