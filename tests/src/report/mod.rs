//! What the parts of the benchmark have in common: what a part writes, and how they become one report.
//!
//! A part is a program that measures, fills a value that is a [`Part`], and has [`Output::write`] write it: as JSON, and
//! with `--save` as Markdown with a chart. [`merge()`] puts the JSON of all parts together, and compares what they reached with
//! the [`Goal`]s.

mod chart;
mod goal;
mod machine;
mod merge;
mod summary;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::Args;
use serde::Serialize;

pub use chart::{Bar, Chart};
pub use goal::{Bound, Goal, Reached};
pub use machine::{Machine, bytes_of};
pub use merge::{PARTS, merge};
pub use summary::Summary;

/// Where a part writes what it found.
#[derive(Args, Clone, Debug)]
pub struct Output {
    /// Where to write the report, as JSON.
    #[arg(long, value_name = "FILE")]
    report: PathBuf,
    /// A folder to keep the report in besides, as Markdown with a chart.
    #[arg(long, value_name = "FOLDER")]
    save: Option<PathBuf>,
}

/// What a part of the benchmark found.
pub trait Part: Serialize {
    /// Name of its files.
    const NAME: &'static str;

    /// It in Markdown; the chart of the same name lies beside it.
    fn document(&self, machine: &Machine) -> String;

    /// It as a picture.
    fn chart(&self) -> Chart;

    /// What it says about the goals.
    fn reached(&self) -> Reached;
}

/// A part's file.
#[derive(Serialize)]
struct File<'a, P> {
    machine: &'a Machine,
    reached: Reached,
    #[serde(flatten)]
    results: &'a P,
}

impl Output {
    /// Writes what a part found, and says where.
    ///
    /// # Errors
    ///
    /// If a file cannot be written.
    pub fn write<P: Part>(&self, results: &P) -> Result<()> {
        let machine = Machine::this();
        let file = File { machine: &machine, reached: results.reached(), results };
        write(&self.report, &serde_json::to_string_pretty(&file)?)?;
        println!("every sample: {}", self.report.display());
        if let Some(folder) = &self.save {
            write(&folder.join(P::NAME).with_extension("md"), &results.document(&machine))?;
            results.chart().draw(&folder.join(P::NAME).with_extension("svg"))?;
            println!("kept in {}", folder.display());
        }
        Ok(())
    }
}

/// Writes a file, and makes its folder.
fn write(path: &Path, text: &str) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
