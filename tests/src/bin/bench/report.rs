//! The report: a table for the terminal, and the same with every sample as JSON.

use std::fmt;

use lb_tests::report::{Bar, Chart, Goal, Machine, Part, Reached, Summary};
use serde::Serialize;

use crate::case::{Case, MANY, SOME, Subject};
use crate::packet::Family;

/// What was measured, and how.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
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

/// One case. All times are nanoseconds for a packet.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    #[serde(flatten)]
    case: Case,
    /// Above replaying; of replaying itself, all of it.
    cost: Summary,
    /// Above the floor of the same family.
    above_floor: Option<Summary>,
    /// The same in lookups: hot ones for one flow, cold ones where memory is cold.
    units: Option<Summary>,
    /// As measured, a value for each round.
    samples: Vec<f64>,
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
            rounds,
            unit_hot: Summary::of(hot),
            unit_cold: Summary::of(cold),
            rows,
            beside: beside.iter().map(|(case, ratios)| Beside::new(*case, ratios)).collect(),
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
            _ if case.is_cold() => Some(cold),
            _ => None,
        };
        let units = above_floor.as_ref().zip(unit).map(|(above, unit)| ratios(above, unit));
        Row {
            name: case.subject.name(),
            case,
            cost: Summary::of(cost),
            above_floor: above_floor.map(Summary::of),
            units,
            samples: samples.to_vec(),
        }
    }

    /// One lookup: what it adds to the floor.
    fn unit(&self, flows: u32) -> Vec<f64> {
        let lookups = self.measured.iter().map(|(case, _)| *case);
        let lookup = lookups.into_iter().find(|case| case.subject == Subject::Lookup && case.flows == flows);
        lookup.map(|case| self.above_floor(case)).unwrap_or_default()
    }

    fn above_floor(&self, case: Case) -> Vec<f64> {
        let floor = self.measured.iter().map(|(case, _)| *case);
        let floor =
            floor.into_iter().find(|other| other.subject == Subject::Floor && other.family == case.family);
        floor.map(|floor| difference(&self.cost(case), &self.cost(floor))).unwrap_or_default()
    }

    /// Time above that of replaying as many flows of the same family.
    fn cost(&self, case: Case) -> Vec<f64> {
        difference(self.samples(case.subject, case), self.samples(Subject::Replay, case))
    }

    /// Those of a subject, with the family and flows of a case.
    fn samples(&self, subject: Subject, like: Case) -> &[f64] {
        let mut all = self.measured.iter();
        let found = all.find(|(case, _)| {
            case.subject == subject && case.family == like.family && case.flows == like.flows
        });
        found.map_or(&[], |(_, samples)| samples)
    }
}

fn difference(from: &[f64], subtract: &[f64]) -> Vec<f64> {
    from.iter().zip(subtract).map(|(from, subtract)| from - subtract).collect()
}

fn ratios(values: &[f64], units: &[f64]) -> Summary {
    Summary::of(values.iter().zip(units).map(|(value, unit)| value / unit))
}

impl Report {
    /// The medians of those rows that are chosen, the largest of them.
    fn largest(&self, choose: impl Fn(&Row) -> Option<Summary>) -> Option<f64> {
        self.rows.iter().filter_map(|row| Some(choose(row)?.median)).reduce(f64::max)
    }

    /// The largest of established flows, in lookups.
    fn established(
        &self,
        family: Family,
        flows: u32,
        value: impl Fn(&Row) -> Option<Summary>,
    ) -> Option<f64> {
        self.largest(|row| {
            let Row { case, .. } = row;
            let is_it = case.subject.is_established() && case.family == family && case.flows == flows;
            is_it.then(|| value(row))?
        })
    }
}

impl Part for Report {
    const NAME: &'static str = "packet";

    fn reached(&self) -> Reached {
        let units = |row: &Row| row.units;
        let not_ours =
            self.largest(|row| (row.case.subject == Subject::NotOurs).then_some(row.above_floor)?);
        let new = self.largest(|row| matches!(row.case.subject, Subject::New(_)).then_some(row.units)?);
        let found = [
            (Goal::EstablishedV4Hot, self.established(Family::V4, 1, units)),
            (Goal::EstablishedV6Hot, self.established(Family::V6, 1, units)),
            (Goal::EstablishedV4Of64k, self.established(Family::V4, SOME, |row| row.above_floor)),
            (Goal::EstablishedV4Of1M, self.established(Family::V4, MANY, units)),
            (Goal::EstablishedV6Of1M, self.established(Family::V6, MANY, units)),
            (Goal::NewFlow, new),
            (Goal::NotOurs, not_ours),
            (Goal::TwoCpus, self.beside.iter().map(|beside| beside.ratio.median).reduce(f64::max)),
        ];
        found.into_iter().filter_map(|(goal, value)| Some((goal, value?))).collect()
    }

    fn chart(&self) -> Chart {
        // New flows cost so much more that beside them nothing else could be told apart.
        let rows = self.rows.iter().filter(|row| !row.case.subject.is_new());
        let bars = rows.filter_map(|row| {
            let flows =
                if row.case.flows == 1 { String::new() } else { format!(", {} flows", row.case.flows) };
            let label = format!("{} {}{flows}", row.case.family.name(), row.name);
            Some(Bar { label, group: row.case.family as usize, value: row.above_floor? })
        });
        let title = "Cost of a packet above the floor, new flows apart: median, least and most".to_owned();
        Chart { title, unit: "ns", bars: bars.collect() }
    }

    fn document(&self, machine: &Machine) -> String {
        let table: String = self.rows.iter().map(Row::line).collect();
        let beside: String = self.beside.iter().map(Beside::line).collect();
        format!(
            "# What a packet costs\n\n\
             Written by `cargo xtask bench packet --save docs/benchmarks`: the loaded program, run by BPF_PROG_TEST_RUN on one CPU. A \
             program that is repeated sees its own output, so another one lays the packet anew each time and calls it; what that costs \
             is measured with an empty program beside each group of cases and subtracted, and so is waiting until the packet has left \
             the processor's store queue, where no NIC's packet ever is. Each round loads programs and maps afresh, since where they come to \
             lie makes a hot lookup up to a tenth dearer or cheaper, and takes the least of several passes: each \
             group is repeated until nothing disturbed a few of them, as far as the cost of replaying tells, or a limit is reached. Verdict, bytes and counters are checked before a time \
             counts. The *floor* parses, swaps the MACs and sends; the *unit* is one lookup in an LRU hash map with 16-byte keys, which \
             says more than nanoseconds of a machine that others use too. New flows are opened in a table that holds {MANY} others, so \
             few that no ring of half-open flows comes round; in the flood each SYN ends a half-open flow, whose slot it takes. \
             The targets take the dearest of what they are about: either protocol, direction and mode of `snat`.\n\n\
             {machine}; {} rounds; median (least - most), ns a packet. One unit: {} hot, {} over {MANY} keys.\n\n\
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
    fn new(case: Case, ratios: &[f64]) -> Self {
        Self { case, ratio: Summary::of(ratios.iter().copied()) }
    }

    /// A line of a table in Markdown.
    fn line(&self) -> String {
        let Self { case, ratio } = self;
        let (name, family, flows) = (case.subject.name(), case.family.name(), case.flows);
        format!("| {name} | {family} | {flows} | {ratio:.2} |\n")
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
        writeln!(f, "{} rounds; ns per packet, median (least - most)", self.rounds)?;
        writeln!(f)?;
        let (above_replay, above_floor) = ("above replay", "above floor");
        writeln!(f, "{:<54} {:<6} {:>9}  {above_replay:<22} {above_floor:<22} units", "", "family", "flows")?;
        for row in &self.rows {
            write!(f, "{:<54} {:<6} {:>9}  ", row.name, row.case.family.name(), row.case.flows)?;
            write!(f, "{:<22} ", row.cost.to_string())?;
            write!(f, "{:<22} ", row.above_floor.map_or(String::new(), |above| above.to_string()))?;
            writeln!(f, "{}", row.units.map_or(String::new(), |units| format!("{:.2}", units.median)))?;
        }
        for Beside { case, ratio } in &self.beside {
            let (name, family, flows) = (case.subject.name(), case.family.name(), case.flows);
            writeln!(
                f,
                "two CPUs at once: {name}, {family}, {flows} flows: {ratio:.2} times the cost of one"
            )?;
        }
        writeln!(f)?;
        let (hot, cold) = (self.unit_hot, self.unit_cold);
        writeln!(f, "unit: one LRU lookup, 16-byte key. hot: {hot}; {MANY} keys: {cold}")
    }
}
