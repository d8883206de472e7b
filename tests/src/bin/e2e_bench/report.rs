//! The report: a table for the terminal, and the same with every sample as JSON.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use lb_tests::report::{Machine, Reached, Summary};
use serde::Serialize;

use crate::chart::{self, Bar, Panel};
use crate::goal::{Goal, Outcome};
use crate::measure::{Figure, Sample};
use crate::peer::Peer;
use crate::rate::Highest;

/// Every sample, a value for each round.
#[derive(Debug, Default)]
pub(crate) struct Measured {
    samples: BTreeMap<(Figure, Peer), Vec<f64>>,
    /// In how many rounds no more could be sent.
    limited: BTreeMap<(Figure, Peer), usize>,
    searches: BTreeMap<(Figure, Peer), Vec<Highest>>,
}

impl Measured {
    /// Adds what a run of a round gave.
    pub(crate) fn add(&mut self, peer: Peer, sample: &Sample) {
        for (figure, value) in &sample.figures {
            self.samples.entry((*figure, peer)).or_default().push(*value);
        }
        if let Some(figure) = sample.limited {
            *self.limited.entry((figure, peer)).or_default() += 1;
        }
        if let (Some(search), Some((figure, _))) = (&sample.search, sample.figures.first()) {
            self.searches.entry((*figure, peer)).or_default().push(search.clone());
        }
    }

    fn samples(&self, figure: Figure, peer: Peer) -> &[f64] {
        self.samples.get(&(figure, peer)).map_or(&[], Vec::as_slice)
    }

    /// Whether a figure was limited by what could be sent, in most rounds.
    pub(crate) fn is_limited(&self, figure: Figure, peer: Peer) -> bool {
        let limited = self.limited.get(&(figure, peer)).copied().unwrap_or_default();
        2 * limited > self.samples(figure, peer).len()
    }

    /// A peer's figure in those of another, taken within each round, so that what slows a whole round down cancels out.
    pub(crate) fn ratio(&self, figure: Figure, peer: Peer, to: Peer) -> Summary {
        let (values, units) = (self.samples(figure, peer), self.samples(figure, to));
        Summary::of(values.iter().zip(units).map(|(value, unit)| value / unit))
    }
}

/// Three numbers with as many digits as say something.
pub(crate) fn text_of(summary: &Summary) -> String {
    let decimals = match summary.median {
        ..10.0 => 2,
        ..100.0 => 1,
        _ => 0,
    };
    format!("{summary:.decimals$}")
}

/// What was measured, where, and how.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    machine: Machine,
    /// Versions of the peers.
    peers: Vec<String>,
    reached: Reached,
    rounds: u32,
    quick: bool,
    /// MiB of memory for packets that no hypervisor takes back.
    backed: usize,
    goals: Vec<Outcome>,
    rows: Vec<Row>,
}

/// A figure of a peer.
#[derive(Debug, Serialize)]
struct Row {
    figure: Figure,
    name: &'static str,
    unit: &'static str,
    peer: Peer,
    value: Summary,
    /// The sender could not send more than the balancer forwarded.
    is_limited: bool,
    to_masquerade: Summary,
    to_routing: Summary,
    samples: Vec<f64>,
    /// How a rate was found in each round.
    searches: Vec<Highest>,
}

impl Report {
    /// Of all rounds.
    pub(crate) fn new(measured: &Measured, rounds: u32, quick: bool, backed: usize) -> Self {
        let row = |(figure, peer): (Figure, Peer)| {
            let samples = measured.samples(figure, peer);
            (!samples.is_empty()).then(|| Row {
                figure,
                name: figure.name(),
                unit: figure.unit(),
                peer,
                value: Summary::of(samples.iter().copied()),
                is_limited: measured.is_limited(figure, peer),
                to_masquerade: measured.ratio(figure, peer, Peer::Masquerade),
                to_routing: measured.ratio(figure, peer, Peer::Routing),
                samples: samples.to_vec(),
                searches: measured.searches.get(&(figure, peer)).cloned().unwrap_or_default(),
            })
        };
        let goals: Vec<Outcome> = Goal::ALL.iter().map(|goal| goal.outcome(measured)).collect();
        let reached = goals.iter().map(|outcome| (outcome.goal.name, outcome.reached.median));
        let versions = [("nft", "--version"), ("haproxy", "-v"), ("nginx", "-v")];
        let all = Figure::ALL.iter().flat_map(|figure| Peer::ALL.map(|peer| (*figure, peer)));
        Self {
            machine: Machine::this(),
            peers: versions.into_iter().filter_map(|(program, flag)| version(program, flag)).collect(),
            reached: reached.filter(|(_, median)| median.is_finite()).collect(),
            rounds,
            quick,
            backed,
            goals,
            rows: all.filter_map(row).collect(),
        }
    }

    /// Writes all of it as JSON.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        }
        fs::write(path, serde_json::to_string_pretty(self)?)
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Writes `e2e.md` and `e2e.svg` into a folder.
    pub(crate) fn save(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        chart::draw(&folder.join("e2e.svg"), &self.panels())?;
        let path = folder.join("e2e.md");
        fs::write(&path, self.document()).with_context(|| format!("cannot write {}", path.display()))
    }

    fn of(&self, figure: Figure) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(move |row| row.figure == figure)
    }

    fn panels(&self) -> Vec<Panel> {
        let bar = |row: &Row| Bar { peer: row.peer, value: row.value, label: row.value_text() };
        // The second way of telling the same time would only fill the picture.
        let figures = Figure::ALL.into_iter().filter(|figure| *figure != Figure::ConnectionCpu);
        let panels = figures.map(|figure| {
            let sense = if figure.is_cost() { "less is better" } else { "more is better" };
            let title = format!("{}, {} ({sense})", figure.name(), figure.unit());
            Panel { title, bars: self.of(figure).map(bar).collect() }
        });
        panels.collect()
    }

    fn document(&self) -> String {
        let Self { machine, peers, backed, .. } = self;
        let goals: String =
            self.goals.iter().map(|goal| format!("| {} |\n", goal.words().join(" | "))).collect();
        let rows: String = Figure::ALL.iter().flat_map(|figure| self.of(*figure)).map(Row::line).collect();
        format!(
            "# Side by side with other balancers\n\n\
             Written by `cargo xtask bench e2e --save docs/benchmarks`.\n\n\
             {HOW}\n\n\
             Memory that was free for a while a hypervisor takes back, and giving it again takes longer than all that happens to a packet \
             which is copied there: {backed} MiB that the kernel may use for packets were kept from that.\n\n\
             {machine}; {}; {} rounds, in each of them one peer after the other; median (least - \
             most). A ratio is taken within each round.\n\n\
             ## Goals\n\n\
             | figure of lb, native | goal | reached | |\n| --- | --- | ---: | --- |\n{goals}\n\
             ## All figures\n\n\
             ![The same as a picture](e2e.svg)\n\n\
             | figure | | value | × masquerade | × routing |\n\
             | --- | --- | ---: | ---: | ---: |\n{rows}\n\
             ≥: in most rounds the other CPU could not send more, and the balancer's was not busy all the time.\n",
            peers.join(", "),
            self.rounds,
        )
    }
}

/// What somebody has to know to judge the figures.
const HOW: &str = "\
A client, a balancer with two arms and a host with four backend addresses are network namespaces, connected by veth. The balancer \
has a CPU of its own: what arrives at its interfaces is taken by kernel threads (threaded NAPI) on that CPU, as are the processes of \
the balancers that have some. Everything that makes or takes traffic shares the other CPU. Each peer has such a set of hosts, all \
alike, and is shown to work first: every frame of 10,000 flows arrives with right checksums, requests and bulk arrive as they were \
sent, and what lb counts is what was sent. All of this runs before everything else on the machine (SCHED_FIFO), packets before \
programs. The kernel's peers are told their neighbours for good; lb finds its own.\n\n\
Every packet that the balancer gets is one MTU, for every peer: TSO and GSO are off, and GRO merges nothing there. veth hands native XDP \
no larger packets anyway, so lb could not use what the kernel saves with them; a NIC does not have this limit. The hosts at both ends do \
merge what they receive, as hosts do: they share a CPU, and without that it is them who are measured.\n\n\
*UDP*: frames of 64 bytes, in one cache line as a NIC lays them (kernel 6.18), made and counted by XDP programs. The kernel's peers \
hand veth one packet at a time, and wake the other CPU for it unless that is at work; XDP hands it up to 64. The rate is the highest \
of which at most 1 % is lost, searched in \
trials of 10 ms: 4 floods, then 64 that begin with what arrived of these and go up after two successes at a rate and down after four failures, in \
steps of 2 % and more. Queues gain nothing: the time of a trial goes on until the last frame has arrived, and it fails if the last comes more than 3 % late. \
What keeps a virtual machine from working for some milliseconds spoils a trial but can improve none, so two successes stand whatever else fails: the figure is \
what arrived in the second best. A CPU with nothing to do for a moment does not halt, lest it is \
taken away and costs an interrupt to wake: the kernel polls (PM QoS) or, where it cannot, a thread that yields to everything keeps it busy. \
The CPU time for a datagram is that of the kernel threads at this rate: the median of all trials that came within 10 % of it, 8 of them made only for this. *Short TCP connections*: 32 at a time connect, ask 64 bytes, get 64 bytes, close. The other CPU, which is client and server, is \
the bottleneck of all but the slowest peers, so what tells them apart is the *CPU time* of the balancer: of its kernel threads and its processes \
by the scheduler's count; from `/proc/stat`, all that was not idle on its CPU. *Requests*: 64 bytes, one at a time every half a millisecond. *Bulk*: four connections, sent from a file by reference and thrown away unread, \
under the congestion control \"reno\" whatever the machine's is: BBR loses one segment in six in the short queues of veth, and what is sent again would be measured. \
Of segments sent again the share is told, of those to a backend and to a proxy; a proxy's acknowledgements count as segments. \
What native XDP takes away from TCP on veth is in these figures, and no NIC does it: every packet is copied into a frame of its own on the balancer's CPU; on the other, its page \
goes back to the kernel and is not used again, and its checksum is summed, which the kernel's peers did on the balancer's.";

impl Row {
    /// A line of a table in Markdown.
    fn line(&self) -> String {
        let Self { name, unit, peer, to_masquerade, to_routing, .. } = self;
        format!(
            "| {name}, {unit} | {} | {} | {} | {} |\n",
            peer.name(),
            self.value_text(),
            times(to_masquerade),
            times(to_routing)
        )
    }

    fn value_text(&self) -> String {
        format!("{}{}", if self.is_limited { "≥ " } else { "" }, text_of(&self.value))
    }
}

/// A ratio as the report shows it, if there is one.
fn times(ratio: &Summary) -> String {
    if ratio.median.is_nan() { String::new() } else { format!("{:.2}", ratio.median) }
}

/// The name of a program with the first word of what it says of its version that looks like one.
fn version(program: &str, flag: &str) -> Option<String> {
    let output = Command::new(program).arg(flag).output().ok()?;
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    let number = |word: &str| word.split('/').next_back().map(|word| word.trim_start_matches('v').to_owned());
    let mut words = text.split_whitespace().filter_map(number);
    let found = words.find(|word| word.starts_with(|first: char| first.is_ascii_digit()))?;
    Some(format!("{program} {found}"))
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}; {}; {} rounds", self.machine, self.peers.join(", "), self.rounds)?;
        writeln!(f, "median (least - most); ratios within each round; one MTU a packet for every peer")?;
        for figure in Figure::ALL.into_iter().filter(|figure| self.of(*figure).next().is_some()) {
            writeln!(f)?;
            let title = format!("{}, {}", figure.name(), figure.unit());
            writeln!(f, "{title:<48} {:<26} × masquerade  × routing", "")?;
            for row in self.of(figure) {
                let (masquerade, routing) = (times(&row.to_masquerade), times(&row.to_routing));
                let value = row.value_text();
                writeln!(f, "  {:<46} {value:<26} {masquerade:>12} {routing:>10}", row.peer.name())?;
            }
        }
        writeln!(f, "\ngoals of lb, native:")?;
        for goal in self.goals.iter().filter(|goal| !goal.reached.median.is_nan()) {
            let [figure, target, reached, verdict] = goal.words();
            writeln!(f, "  {figure:<46} {target:<42} {reached:<22} {verdict}")?;
        }
        Ok(())
    }
}
