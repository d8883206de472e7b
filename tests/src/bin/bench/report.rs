//! The report: a table for the terminal, and the same with every sample as JSON.

use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::case::{Case, MANY, Subject};
use crate::chart::{self, Bar};

/// What was measured, where, and how.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    machine: Machine,
    rounds: usize,
    unit_hot: Summary,
    unit_cold: Summary,
    rows: Vec<Row>,
    beside: Vec<Beside>,
}

/// What a packet costs while another CPU treats packets of the same flows, beside what it costs alone.
#[derive(Debug, Serialize)]
struct Beside {
    #[serde(flatten)]
    case: Case,
    ratio: Summary,
}

#[derive(Debug, Serialize)]
struct Machine {
    processor: String,
    cpus: usize,
    kernel: String,
}

/// One case. All times are nanoseconds for a packet.
#[derive(Debug, Serialize)]
struct Row {
    name: &'static str,
    #[serde(flatten)]
    case: Case,
    /// Above replaying; of replaying itself, all of it.
    cost: Summary,
    /// Above the floor of the same family.
    above_floor: Option<Summary>,
    /// The same in lookups: hot ones for one flow, cold ones for a million.
    units: Option<Summary>,
    /// As measured, a value for each round.
    samples: Vec<f64>,
}

/// Of the rounds.
#[derive(Clone, Copy, Debug, Serialize)]
struct Summary {
    median: f64,
    least: f64,
    most: f64,
}

impl Summary {
    /// Of one value a round.
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 { at(middle) } else { (at(middle - 1) + at(middle)) / 2.0 };
        Self { median, least: at(0), most: at(values.len() - 1) }
    }
}

/// A case with its samples, one for each round.
pub(crate) type Measured = (Case, Vec<f64>);

impl Report {
    /// Differences and ratios are taken within each round, so that what slows a whole round down cancels out.
    pub(crate) fn new(measured: &[Measured], beside: &[Measured]) -> Self {
        let rounds = measured.first().map_or(0, |(_, samples)| samples.len());
        let times = Times { measured };
        let (hot, cold) = (times.unit(1), times.unit(MANY));
        let rows = measured.iter().map(|(case, samples)| times.row(*case, samples, &hot, &cold)).collect();
        Self {
            machine: Machine::this(),
            rounds,
            unit_hot: Summary::of(hot.into_iter()),
            unit_cold: Summary::of(cold.into_iter()),
            rows,
            beside: beside.iter().map(|(case, samples)| times.beside(*case, samples)).collect(),
        }
    }
}

/// The samples, to be subtracted from each other.
struct Times<'a> {
    measured: &'a [Measured],
}

impl Times<'_> {
    fn row(&self, case: Case, samples: &[f64], hot: &[f64], cold: &[f64]) -> Row {
        let is_replay = case.subject == Subject::Replay;
        let cost = if is_replay { samples.to_vec() } else { self.cost(case) };
        let above_floor = (!is_replay && case.subject != Subject::Floor).then(|| self.above_floor(case));
        let unit = match case.flows {
            1 => Some(hot),
            MANY => Some(cold),
            _ => None,
        };
        let units = above_floor.as_ref().zip(unit).map(|(above, unit)| ratios(above, unit));
        Row {
            name: case.subject.name(),
            case,
            cost: Summary::of(cost.into_iter()),
            above_floor: above_floor.map(|values| Summary::of(values.into_iter())),
            units,
            samples: samples.to_vec(),
        }
    }

    /// The cost of a case that was measured beside another CPU, in costs of the case alone.
    fn beside(&self, case: Case, samples: &[f64]) -> Beside {
        let cost = difference(samples, self.samples(Case { subject: Subject::Replay, ..case }));
        Beside { case, ratio: ratios(&cost, &self.cost(case)) }
    }

    /// One lookup: what it adds to the floor.
    fn unit(&self, flows: u32) -> Vec<f64> {
        let lookups = self.measured.iter().map(|(case, _)| *case);
        let lookup = lookups.into_iter().find(|case| case.subject == Subject::Lookup && case.flows == flows);
        lookup.map(|case| self.above_floor(case)).unwrap_or_default()
    }

    fn above_floor(&self, case: Case) -> Vec<f64> {
        difference(&self.cost(case), &self.cost(Case { subject: Subject::Floor, flows: 1, ..case }))
    }

    /// Time above that of replaying as many flows of the same family.
    fn cost(&self, case: Case) -> Vec<f64> {
        difference(self.samples(case), self.samples(Case { subject: Subject::Replay, ..case }))
    }

    fn samples(&self, wanted: Case) -> &[f64] {
        self.measured.iter().find(|(case, _)| *case == wanted).map_or(&[], |(_, samples)| samples)
    }
}

fn difference(from: &[f64], subtract: &[f64]) -> Vec<f64> {
    from.iter().zip(subtract).map(|(from, subtract)| from - subtract).collect()
}

fn ratios(values: &[f64], units: &[f64]) -> Summary {
    Summary::of(values.iter().zip(units).map(|(value, unit)| value / unit))
}

impl Machine {
    fn this() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let of_each_cpu = |name| cpuinfo.lines().filter_map(move |line| line.strip_prefix(name));
        let model = of_each_cpu("model name").next().map(|model| model.trim_start_matches(['\t', ' ', ':']));
        Self {
            processor: model.unwrap_or("unknown processor").to_owned(),
            // Not those this process may use: it has bound itself to one.
            cpus: of_each_cpu("processor").count(),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        }
    }
}

impl Report {
    /// Writes `packet.md` and `packet.svg` into a folder.
    pub(crate) fn save(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        // New flows cost so much more that beside them nothing else could be told apart.
        let rows = self.rows.iter().filter(|row| row.case.subject != Subject::NewTcp);
        let bars = rows.filter_map(|row| {
            let Summary { median, least, most } = row.above_floor?;
            let flows =
                if row.case.flows == 1 { String::new() } else { format!(", {} flows", row.case.flows) };
            let label = format!("{} {}{flows}", row.case.family.name(), row.name);
            Some(Bar { label, family: row.case.family, nanoseconds: [median, least, most] })
        });
        let title = "Cost of a packet above the floor, new flows apart: median, least and most";
        chart::draw(&folder.join("packet.svg"), title, &bars.collect::<Vec<_>>())?;
        let path = folder.join("packet.md");
        fs::write(&path, self.document()).with_context(|| format!("cannot write {}", path.display()))
    }

    fn document(&self) -> String {
        let Machine { processor, cpus, kernel } = &self.machine;
        let table: String = self.rows.iter().map(Row::line).collect();
        let beside: String = self.beside.iter().map(Beside::line).collect();
        format!(
            "# What a packet costs\n\n\
             Written by `cargo xtask bench --save docs/benchmarks`: the loaded program, run by BPF_PROG_TEST_RUN on one CPU. A program \
             that is repeated sees its own output, so another one lays the packet anew each time and calls it; what that costs is \
             measured with an empty program in the same round and subtracted. Verdict, bytes and counters are checked before a time \
             counts. The *floor* parses, swaps the MACs and sends; the *unit* is one lookup in an LRU hash map with 16-byte keys, which \
             says more than nanoseconds of a machine that others use too.\n\n\
             {processor}, {cpus} CPUs, Linux {kernel}; {} rounds; median (least - most), ns a packet. One unit: {} hot, {} over {MANY} keys.\n\n\
             ![The same as a picture](packet.svg)\n\n\
             | case | | flows | above replaying | above the floor | units |\n\
             | --- | --- | ---: | ---: | ---: | ---: |\n{table}\n\
             Two CPUs inside at once, on the same flows, in costs of one CPU alone:\n\n\
             | case | | flows | times |\n| --- | --- | ---: | ---: |\n{beside}",
            self.rounds, self.unit_hot, self.unit_cold
        )
    }
}

impl Beside {
    /// A line of a table in Markdown.
    fn line(&self) -> String {
        let Self { case, ratio: Summary { median, least, most } } = self;
        let (name, family, flows) = (case.subject.name(), case.family.name(), case.flows);
        format!("| {name} | {family} | {flows} | {median:.2} ({least:.2} - {most:.2}) |\n")
    }
}

impl Row {
    /// A line of a table in Markdown.
    fn line(&self) -> String {
        let above = self.above_floor.map_or(String::new(), |above| above.to_string());
        let units = self.units.map_or(String::new(), |units| format!("{:.2}", units.median));
        let Self { name, case, cost, .. } = self;
        format!("| {name} | {} | {} | {cost} | {above} | {units} |\n", case.family.name(), case.flows)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Machine { processor, cpus, kernel } = &self.machine;
        writeln!(f, "{processor}, {cpus} CPUs, Linux {kernel}; {} rounds", self.rounds)?;
        writeln!(f, "ns per packet, median (least - most); every packet's verdict was checked")?;
        writeln!(f)?;
        writeln!(
            f,
            "{:<42} {:<6} {:>9}  {:<22} {:<22} units",
            "", "family", "flows", "above replay", "above floor"
        )?;
        for row in &self.rows {
            write!(f, "{:<42} {:<6} {:>9}  ", row.name, format!("{:?}", row.case.family), row.case.flows)?;
            write!(f, "{:<22} ", row.cost.to_string())?;
            write!(f, "{:<22} ", row.above_floor.map_or(String::new(), |above| above.to_string()))?;
            writeln!(f, "{}", row.units.map_or(String::new(), |units| format!("{:.2}", units.median)))?;
        }
        for Beside { case, ratio } in &self.beside {
            let Summary { median, least, most } = ratio;
            let (name, family, flows) = (case.subject.name(), case.family.name(), case.flows);
            write!(f, "two CPUs at once: {name}, {family}, {flows} flows: ")?;
            writeln!(f, "{median:.2} times the cost of one ({least:.2} - {most:.2})")?;
        }
        writeln!(f)?;
        writeln!(
            f,
            "unit: one LRU lookup, 16-byte key. hot: {}; {MANY} keys: {}",
            self.unit_hot, self.unit_cold
        )
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { median, least, most } = self;
        write!(f, "{median:.0} ({least:.0} - {most:.0})")
    }
}
