//! What was measured, told.

use std::fmt;

use lb_tests::report::{Bar, Chart, Goal, Machine, Part, Reached, Summary};
use serde::Serialize;

use crate::inside::Samples;
use crate::subject::Subject;

/// Instructions for a packet.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// Kernel of the virtual machine.
    kernel: String,
    rows: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    subject: Subject,
    name: &'static str,
    /// All of it: generator, links and sink too.
    instructions: Summary,
    /// Above generator, one link and sink alone.
    above_nobody: f64,
    samples: Vec<f64>,
}

impl Report {
    pub(crate) fn new(samples: &Samples) -> Self {
        let summaries =
            samples.of.iter().map(|(subject, values)| (*subject, Summary::of(values.iter().copied())));
        let summaries: Vec<(Subject, Summary)> = summaries.collect();
        let nobody = summaries.iter().find(|(subject, _)| *subject == Subject::Nobody);
        let nobody = nobody.map_or(f64::NAN, |(_, summary)| summary.median);
        let rows =
            summaries.into_iter().zip(&samples.of).map(|((subject, instructions), (_, samples))| Row {
                subject,
                name: subject.name(),
                instructions,
                above_nobody: instructions.median - nobody,
                samples: samples.clone(),
            });
        Self { kernel: samples.kernel.clone(), rows: rows.collect() }
    }

    fn median(&self, subject: Subject) -> Option<f64> {
        self.rows.iter().find(|row| row.subject == subject).map(|row| row.instructions.median)
    }
}

impl Part for Report {
    const NAME: &'static str = "guest";

    fn reached(&self) -> Reached {
        self.median(Subject::LbNative).map(|native| (Goal::GuestInstructions, native)).into_iter().collect()
    }

    fn chart(&self) -> Chart {
        let bar = |row: &Row| Bar {
            label: row.name.to_owned(),
            group: usize::from(row.subject.xdp_mode().is_none()),
            value: row.instructions,
        };
        Chart {
            title: "Instructions for a packet from wire to wire".to_owned(),
            unit: "",
            bars: self.rows.iter().map(bar).collect(),
        }
    }

    fn document(&self, machine: &Machine) -> String {
        let native = self.median(Subject::LbNative).unwrap_or(f64::NAN);
        let lines = self.rows.iter().map(|row| {
            let Row { name, instructions, above_nobody, .. } = row;
            let times = instructions.median / native;
            format!("| {name} | {instructions} | {above_nobody:.0} | {times:.2} |\n")
        });
        format!(
            "# Instructions for a packet from wire to wire\n\n\
             Written by `cargo xtask bench guest --save docs/benchmarks`, in a virtual machine with Linux {} and one CPU that counts \
             each instruction (QEMU, `-icount shift=0`), on {machine}. Instructions are not time: caches and branches that are \
             guessed wrong do not count here. But they are the same on every run, and show the way of a packet whole.\n\n\
             A client, the one that forwards, and a backend, linked by veths. BPF_PROG_TEST_RUN with live frames sends 64-byte UDP \
             packets of one flow into the first link, in batches of 64; an XDP program at the end of the second counts and drops them. \
             Everything between is included: generator, both links with their NAPI, sink. Two runs of different length are \
             subtracted from each other, all packets must have arrived, and the last one's addresses and ports must be what \
             they have to be. `lb` translates source and destination; it runs as installed, with its controller stopped, so that only \
             packets count.\n\n\
             ![The same as a picture](guest.svg)\n\n\
             | forwarded by | instructions | above nobody | in those of lb, native |\n\
             | --- | ---: | ---: | ---: |\n{}",
            self.kernel,
            lines.collect::<String>()
        )
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "Linux {}; instructions for a packet, median (least - most), and above nobody",
            self.kernel
        )?;
        for Row { name, instructions, above_nobody, .. } in &self.rows {
            writeln!(f, "{name:<45} {:<24} {above_nobody:>6.0}", instructions.to_string())?;
        }
        Ok(())
    }
}
