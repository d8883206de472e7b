//! What was measured, told as it comes and as a report.

use std::time::Duration;

use lb_tests::report::{Bar, Chart, Goal, Machine, Part, Reached, Summary};
use serde::Serialize;

/// All figures.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    rows: Vec<Row>,
    #[serde(skip)]
    reached: Reached,
}

#[derive(Debug, Serialize)]
struct Row {
    what: String,
    unit: &'static str,
    value: Summary,
    samples: Vec<f64>,
}

/// The unit of everything that stands in the chart.
const MILLISECONDS: &str = "ms";

impl Report {
    /// Notes and prints a figure, a value for each round.
    pub(crate) fn add(&mut self, what: impl Into<String>, unit: &'static str, samples: Vec<f64>) {
        let (what, value) = (what.into(), Summary::of(samples.iter().copied()));
        println!("{what}: {value:.1} {unit}");
        self.rows.push(Row { what, unit, value, samples });
    }

    /// The same of times.
    pub(crate) fn add_times(&mut self, what: impl Into<String>, samples: &[Duration]) {
        let milliseconds = samples.iter().map(|time| time.as_secs_f64() * 1000.0);
        self.add(what, MILLISECONDS, milliseconds.collect());
    }

    /// Notes what was reached of a goal.
    pub(crate) fn reach(&mut self, goal: Goal, value: f64) {
        self.reached.insert(goal, value);
    }
}

impl Part for Report {
    const NAME: &'static str = "control";

    fn reached(&self) -> Reached {
        self.reached.clone()
    }

    fn chart(&self) -> Chart {
        let times = self.rows.iter().filter(|row| row.unit == MILLISECONDS);
        let bars = times.map(|row| Bar { label: row.what.clone(), group: 0, value: row.value });
        Chart { title: "How long it takes".to_owned(), unit: MILLISECONDS, bars: bars.collect() }
    }

    fn document(&self, machine: &Machine) -> String {
        let line = |row: &Row| format!("| {} | {:.1} | {} |\n", row.what, row.value, row.unit);
        format!(
            "# What the controller takes\n\n\
             Written by `cargo xtask bench control --save docs/benchmarks`: the real `lb` in network namespaces, but for the tables, the \
             collector and the memory for flows, which are measured in a process of their own. Kernel memory is the growth of \
             `SUnreclaim`, `Percpu` and `VmallocUsed` in `/proc/meminfo`; *counted* is what the kernel says of the map itself (`memlock` in \
             its `fdinfo`). Flows are of IPv4.\n\n\
             {machine}; median (least - most).\n\n\
             ![The times as a picture](control.svg)\n\n\
             | what | | unit |\n| --- | ---: | --- |\n{}",
            self.rows.iter().map(line).collect::<String>()
        )
    }
}
