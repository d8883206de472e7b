//! Plays a case step by step against the real program, and checks after each packet: the verdict, every byte of
//! the frame, all counters; and, whatever the case says, that checksums are right, that a frame which does not
//! travel on is untouched, and that no two flows look alike to a backend.
//!
//! | file | what it does |
//! | --- | --- |
//! | `surroundings` | changes what a step changes before its packet |
//! | `judge` | compares verdict and frame with what the step expects |
//! | `explanation` | compares what the program has said would become of the packet with what became of it |
//! | `count` | tells which counters must have moved |

mod count;
mod explanation;
mod judge;
mod surroundings;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use lb_common::InterfaceMac;
use toml::Table;

use super::case::{Case, CaseFile, Packet, Step};
use super::interfaces;
use super::network::Interface;
use super::oracle::{self, Reassembly};
use super::packet::{self, Ends};
use super::symbols::{Scope, Symbols};
use super::{Bench, Family, Network, settings};

/// Plays a case for one IP version.
///
/// # Errors
///
/// Says what was expected, what was found, and in which line of the file the step is.
pub fn play(file: &CaseFile, case: &Case, network: &Network, family: Family) -> Result<()> {
    let mut result = play_once(file, case, network, family);
    for _ in 0..2 {
        // A second that ends in the middle of a case gives a listener new allowance.
        if result.is_ok() || !has_rate_limit(file, case) {
            break;
        }
        result = play_once(file, case, network, family);
    }
    result
}

fn has_rate_limit(file: &CaseFile, case: &Case) -> bool {
    let limits = |table: &Table| table.to_string().contains("max_new_flows_per_s");
    limits(&file.topic.config) || limits(&case.change)
}

fn play_once(file: &CaseFile, case: &Case, network: &Network, family: Family) -> Result<()> {
    let place = |line| format!("{}:{line}", file.path.display());
    let begin = || {
        let why = case.why.as_ref().map_or(String::new(), |why| format!(" ({why})"));
        format!("{}: {}{why}", place(file.line(&case.name)), case.name.get_ref())
    };
    let mut player = Player::new(file, case, network, family).with_context(begin)?;
    for (number, step) in case.steps.iter().enumerate() {
        player
            .step(step.get_ref())
            .with_context(|| format!("{}: step {}", place(file.line(step)), number + 1))
            .with_context(begin)?;
    }
    Ok(())
}

/// A tuple: protocol, source, destination.
type Tuple = (u8, SocketAddr, SocketAddr);

struct Player<'a> {
    network: &'a Network,
    family: Family,
    table: Table,
    bench: Bench,
    symbols: Symbols,
    /// What the program has been told of its interfaces.
    interfaces: BTreeMap<String, InterfaceMac>,
    /// Which client tuple each tuple that a backend sees belongs to.
    owners: BTreeMap<Tuple, Tuple>,
    /// Fragments that came out.
    reassembly: Reassembly,
    /// Fragments that wait for their first, the oldest first.
    held: VecDeque<Sent<'a>>,
}

/// A packet of a step, about to be judged.
struct Sent<'a> {
    packet: &'a Packet,
    frame: Vec<u8>,
    ends: Option<Ends>,
    ingress: Interface,
    number: u16,
}

impl<'a> Player<'a> {
    fn new(file: &CaseFile, case: &Case, network: &'a Network, family: Family) -> Result<Self> {
        let mut table = file.topic.config.clone();
        settings::merge(&mut table, &case.change);
        let config = settings::parse(&table, network, family)?;
        let sends_elsewhere = |step: &Step| step.send.as_ref().is_some_and(|packet| packet.on.is_some());
        if case.steps.iter().any(|step| sends_elsewhere(step.get_ref())) {
            interfaces::enter(network)?;
        }
        let mut bench = Bench::new(config, network.states(family)?)?;
        let mut interfaces = BTreeMap::new();
        for (name, interface) in &network.interfaces {
            let told = network.told(interface);
            bench.set_interface(interface.index, told)?;
            interfaces.insert(name.clone(), told);
        }
        Ok(Self {
            network,
            family,
            table,
            bench,
            symbols: Symbols::default(),
            interfaces,
            owners: BTreeMap::new(),
            reassembly: Reassembly::default(),
            held: VecDeque::new(),
        })
    }

    fn step(&mut self, step: &'a Step) -> Result<()> {
        self.surroundings(step)?;
        let packets = step.repeat.unwrap_or(1);
        match (&step.send, step.send_held) {
            (Some(packet), false) => {
                for number in 0..packets {
                    let sent = self.build(packet, number)?;
                    self.packet(step, sent).with_context(|| format!("packet {number}"))?;
                }
            }
            (None, true) => {
                for number in 0..packets {
                    let sent = self.held.pop_front().context("no fragment is held")?;
                    self.packet(step, sent).with_context(|| format!("held fragment {number}"))?;
                }
            }
            (None, false) => ensure!(step.outcomes() == 0, "a step without `send` expects a packet"),
            (Some(_), true) => anyhow::bail!("a step sends a packet or a held one, not both"),
        }
        if let Some(expected) = step.connections {
            let flows = self.bench.flows()?;
            ensure!(
                flows.len() == expected,
                "expected {expected} connections, found {}: {flows:#?}",
                flows.len()
            );
        }
        Ok(())
    }

    fn packet(&mut self, step: &Step, sent: Sent<'a>) -> Result<()> {
        ensure!(
            step.outcomes() == 1,
            "a step that sends a packet expects exactly one of `tx`, `redirect`, `pass`, `hold` and `drop` or \
             `answer`"
        );
        let before = self.bench.counts()?;
        let explanation = self.bench.explain(&sent.frame, sent.ingress.index)?;
        let answer = self.bench.send(&sent.frame, sent.ingress.index)?;
        let moved = self.bench.counts()?.since(&before);
        let judged = self.judge(step, &sent, &answer, &moved);
        let expected = judged.with_context(|| format!("sent:\n{}", oracle::describe(&sent.frame)))?;
        explanation::require(step, &sent.frame, &explanation, &answer)?;
        ensure!(moved == expected, "expected these counters to move:\n{expected}\nfound:\n{moved}");
        if step.hold {
            self.held.push_back(sent);
        }
        Ok(())
    }

    fn build(&self, packet: &'a Packet, number: u16) -> Result<Sent<'a>> {
        let ingress = self.network.interface(packet.on.as_deref().unwrap_or(Network::FRONT))?;
        let (frame, ends) = match &packet.hex {
            Some(hex) => (hex.0.clone(), None),
            None => {
                let ends = Ends::of(packet, &self.symbols, self.scope(number), ingress)?;
                (packet::build(packet, &ends)?, Some(ends))
            }
        };
        Ok(Sent { packet, frame, ends, ingress, number })
    }

    const fn scope(&self, number: u16) -> Scope<'a> {
        Scope { network: self.network, family: self.family, number }
    }
}

impl Step {
    /// How many outcomes a packet is said to have.
    fn outcomes(&self) -> usize {
        let ends_here = self.drop.is_some() || self.answer.is_some();
        let outcomes =
            [self.tx.is_some(), self.redirect.is_some(), self.pass.is_some(), self.hold, ends_here];
        outcomes.into_iter().filter(|&is_said| is_said).count()
    }
}
