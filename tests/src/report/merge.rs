//! The parts put together, and what they reached beside what they were to reach.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Bound, Goal, Machine, Reached, write};

/// The parts of the report with what each measures, in the order they run in.
pub const PARTS: &[(&str, &str)] = &[
    ("packet", "what a packet costs inside of the program"),
    ("e2e", "what goes through a balancer on one core, beside what the kernel and HAProxy do there"),
    ("guest", "what a packet costs from wire to wire, in instructions, beside IPVS and nftables"),
    ("control", "what the controller takes: reloads, adoption, collection, memory, CPU"),
];

/// The whole report.
#[derive(Debug, Serialize, Deserialize)]
struct Report {
    machine: Machine,
    parts: BTreeMap<String, Value>,
}

/// What every part's file has.
#[derive(Debug, Default, Deserialize)]
struct Common {
    #[serde(default)]
    reached: Reached,
}

/// Reads `PART.json` of each part in the folder, those that are there, and writes all of them to `report.json` beside
/// them. With `save`, also writes a `README.md` there, which compares what was reached with the goals.
///
/// # Errors
///
/// If a file cannot be read or written, or holds something else.
pub fn merge(folder: &Path, save: Option<&Path>) -> Result<()> {
    let mut parts = BTreeMap::new();
    for (name, _) in PARTS {
        let path = folder.join(name).with_extension("json");
        match fs::read_to_string(&path) {
            Ok(text) => {
                let part = serde_json::from_str(&text);
                parts.insert(
                    (*name).to_owned(),
                    part.with_context(|| format!("no JSON: {}", path.display()))?,
                );
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                eprintln!("not measured: {name} (there is no {})", path.display());
            }
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }
    let report = Report { machine: Machine::this(), parts };
    let path = folder.join("report.json");
    write(&path, &serde_json::to_string_pretty(&report)?)?;
    let goals = report.goals()?;
    println!("\n{goals}\nall parts: {}", path.display());
    if let Some(folder) = save {
        write(&folder.join("README.md"), &report.document(&goals))?;
        println!("kept in {}", folder.display());
    }
    Ok(())
}

impl Report {
    fn document(&self, goals: &str) -> String {
        let mut parts = String::new();
        for (name, what) in PARTS.iter().filter(|(name, _)| self.parts.contains_key(*name)) {
            let _ = writeln!(parts, "- [{name}]({name}.md): {what}");
        }
        format!(
            "# Benchmarks\n\n\
             Written by `cargo xtask bench --save docs/benchmarks`, from what it measured, never by hand.\n\n\
             Measured on: {}.\n\n{parts}\n\
             A *lookup* is one in an LRU hash map of the kernel with 16-byte keys, measured in the same rounds: hot with one \
             key, cold with 1,048,576 keys in random order. The *floor* parses a packet, swaps its MACs and sends it. \
             What stands here are medians; how far the rounds lay apart is told with each part.\n\n\
             ## Targets\n\n{goals}",
            self.machine
        )
    }

    /// A table in Markdown: target, reached, missed by.
    fn goals(&self) -> Result<String> {
        let mut table = "| part | what | target | reached | missed by |\n\
                         | --- | --- | ---: | ---: | ---: |\n"
            .to_owned();
        for goal in Goal::ALL {
            let reached = self.reached(goal.part())?.get(goal).copied();
            let told = reached.map_or_else(|| "not measured".to_owned(), number);
            let missed = match reached.map(|reached| goal.bound().missed_by(reached)) {
                None => String::new(),
                Some(None) => "kept".to_owned(),
                Some(Some(part)) => format!("**{:.0} %**", part * 100.0),
            };
            let (word, bound) = match goal.bound() {
                Bound::AtMost(bound) => ("at most", bound),
                Bound::AtLeast(bound) => ("at least", bound),
            };
            let (part, what, unit) = (goal.part(), goal.what(), goal.unit());
            let _ =
                writeln!(table, "| {part} | {what} | {word} {} {unit} | {told} | {missed} |", number(bound));
        }
        Ok(table)
    }

    fn reached(&self, part: &str) -> Result<Reached> {
        let Some(part_value) = self.parts.get(part) else { return Ok(Reached::default()) };
        let common = Common::deserialize(part_value);
        Ok(common.with_context(|| format!("what the part {part} reached is not understood"))?.reached)
    }
}

/// A number as it is read best: large ones without decimals.
fn number(number: f64) -> String {
    let decimals = if number.abs() < 20.0 { 2 } else { 0 };
    let text = format!("{number:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_reached_stands_beside_its_target() {
        let part =
            serde_json::json!({ "reached": { "established_v4_hot": 1.03, "not_ours": 65.0 }, "rows": [] });
        let machine = Machine { processor: "P".into(), cpus: 2, memory_mib: 1, kernel: "6.18".into() };
        let report = Report { machine, parts: [("packet".to_owned(), part)].into() };
        let goals = report.goals().unwrap();
        let line = |what| goals.lines().find(|line| line.contains(what)).unwrap();
        assert!(line("IPv4 flow, hot").ends_with("| at most 1.2 lookups, hot | 1.03 | kept |"), "{goals}");
        assert!(line("not ours").ends_with("| at most 40 ns | 65 | **62 %** |"), "{goals}");
        assert!(line("bulk TCP").ends_with("| at least 0.9 times nftables | not measured |  |"), "{goals}");
        assert!(report.document(&goals).contains("P, 2 CPUs, 1 MiB, Linux 6.18"));
    }

    #[test]
    fn an_unknown_goal_is_an_error() {
        let part = serde_json::json!({ "reached": { "nonsense": 1.0 } });
        let machine = Machine::this();
        let report = Report { machine, parts: [("guest".to_owned(), part)].into() };
        assert!(report.goals().unwrap_err().to_string().contains("guest"));
    }
}
