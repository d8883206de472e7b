//! The two representations of zero in UDP checksums. The payload must be made to fit, which a case cannot say.

use anyhow::{Context as _, Result, ensure};
use lb_tests::packets::case::{Hex, Packet};
use lb_tests::packets::{Family, Verdict, oracle};
use libtest_mimic::Trial;

use crate::lab::{Lab, ONE_BACKEND, udp};
use crate::trial_for_each_family;

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials =
        trial_for_each_family("checksums", "a UDP checksum that becomes zero is sent as ffff", becomes_zero);
    trials.extend(trial_for_each_family(
        "checksums",
        "a UDP checksum of ffff is translated as zero",
        was_zero,
    ));
    trials
}

fn becomes_zero(family: Family) -> Result<()> {
    let mut lab = Lab::new(ONE_BACKEND, "", family)?;
    let (source, backend) = becomes_zero_between(&mut lab, "client:40000", "vip:80")?;
    becomes_zero_between(&mut lab, &backend, &source)?;
    Ok(())
}

/// Sends two datagrams that differ in one word: the second has for it what the first came out with as checksum,
/// which makes its sum all ones, and the checksum of that is zero. Tells source and destination as they came out.
fn becomes_zero_between(lab: &mut Lab, src: &str, dst: &str) -> Result<(String, String)> {
    let first = lab.frame(&with_word(src, dst, 0))?;
    let out = lab.send(&first)?;
    ensure!(out.verdict == Verdict::Tx, "expected the verdict Tx, found {:?}", out.verdict);
    let second = lab.frame(&with_word(src, dst, checksum(&out.frame)?))?;
    let out = lab.send(&second)?.frame;
    let found = checksum(&out)?;
    ensure!(found == 0xffff, "expected the checksum ffff, found {found:04x}:\n{}", oracle::describe(&out));
    let (source, destination) = lab.through(&second)?;
    Ok((source.to_string(), destination.to_string()))
}

fn was_zero(family: Family) -> Result<()> {
    let mut lab = Lab::new(ONE_BACKEND, "", family)?;
    let first = lab.frame(&with_word("client:40000", "vip:80", 0))?;
    let second = lab.frame(&with_word("client:40000", "vip:80", checksum(&first)?))?;
    ensure!(checksum(&second)? == 0xffff, "the payload does not make the checksum zero");
    lab.through(&second)?;
    Ok(())
}

fn with_word(src: &str, dst: &str, word: u16) -> Packet {
    Packet { payload_hex: Hex(word.to_be_bytes().into()), ..udp(src, dst, "") }
}

/// The UDP checksum of a frame whose payload is one word.
fn checksum(frame: &[u8]) -> Result<u16> {
    let (_, end) = frame.split_last_chunk::<4>().context("the frame is too short")?;
    Ok(u16::from_be_bytes([end[0], end[1]]))
}
