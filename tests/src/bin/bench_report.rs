//! `cargo xtask bench report`: puts the parts of the benchmark together, and compares what they reached with the targets.

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;
use lb_tests::report;

#[derive(Parser)]
#[command(name = "cargo xtask bench report", about = "Puts the parts of the benchmark together")]
struct Options {
    /// Where the parts have left their JSON, and where `report.json` goes.
    #[arg(long, value_name = "FOLDER")]
    parts: PathBuf,
    /// A folder to keep the comparison with the targets in, as `README.md`.
    #[arg(long, value_name = "FOLDER")]
    save: Option<PathBuf>,
}

fn main() -> Result<()> {
    let Options { parts, save } = Options::parse();
    report::merge(&parts, save.as_deref())
}
