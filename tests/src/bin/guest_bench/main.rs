//! `cargo xtask bench guest`: how many instructions a packet takes from wire to wire, through `lb` and through what the
//! kernel of the machine may lack, such as IPVS. All of it runs in a virtual machine that counts instructions, on one CPU,
//! so the figures are the same whatever else the machine does.
//!
//! The program runs twice: outside it boots the virtual machine, inside ([`inside`]) it measures.

mod inside;
mod report;
mod site;
mod subject;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use lb_tests::netns::binary;
use lb_tests::report::Output;

use crate::inside::{Inside, Samples};
use crate::report::Report;

/// What the kernel of the virtual machine has to load.
const MODULES: &str = "veth ip_vs ip_vs_rr nf_tables nft_chain_nat nft_nat nft_masq nft_ct";
/// What else is put into it, beside `lb` and this program.
const TOOLS: &[&str] = &["ethtool", "ip", "ipvsadm", "nft"];
/// How a line of output begins that holds what was measured.
const MEASURED: &str = "measured: ";
/// Where the eBPF object is inside.
const OBJECT: &str = "/bench.o";

#[derive(Parser)]
#[command(
    name = "cargo xtask bench guest",
    about = "Counts the instructions that a packet takes from wire to wire, in a virtual machine"
)]
struct Options {
    /// Kernel of the virtual machine.
    #[arg(long, default_value = "6.12")]
    kernel: String,
    /// How often everything is measured.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// The eBPF object with the programs that send and count.
    #[arg(long)]
    object: PathBuf,
    /// The script that boots the virtual machine.
    #[arg(long)]
    boot: PathBuf,
    /// Seconds after which the virtual machine is given up.
    #[arg(long, default_value_t = 900)]
    timeout: u32,
    #[command(flatten)]
    output: Output,
}

fn main() -> Result<()> {
    if std::env::args().nth(1).as_deref() == Some(Inside::WORD) {
        let Inside { rounds, .. } = Inside::parse();
        let samples = inside::measure(Path::new(OBJECT), rounds)?;
        println!("\n{MEASURED}{}", serde_json::to_string(&samples)?);
        return Ok(());
    }
    let options = Options::parse();
    let report = Report::new(&boot(&options)?);
    println!("\n{report}");
    options.output.write(&report)
}

/// Boots the virtual machine, has this program measure in it, and returns what it says.
fn boot(options: &Options) -> Result<Samples> {
    let mut boot = Command::new(&options.boot);
    boot.arg(&options.kernel).arg("--count-instructions");
    boot.args(["--timeout", &options.timeout.to_string(), "--memory", "2048", "--modules", MODULES]);
    let this = std::env::current_exe().context("cannot find this program's file")?;
    let mut put = |file: &Path, target: &str| {
        boot.arg("--file").arg(format!("{}:{target}", file.display()));
    };
    put(&this, "bin/guest_bench");
    put(&binary("lb")?, "bin/lb");
    put(&options.object, OBJECT);
    for tool in TOOLS {
        put(&find(tool)?, &format!("bin/{tool}"));
    }
    boot.args(["--", "env", "LB_BIN=/bin/lb", "/bin/guest_bench", Inside::WORD]);
    boot.args(["--rounds", &options.rounds.to_string()]);
    eprintln!("booting Linux {} in a virtual machine that counts instructions", options.kernel);
    let output = boot.output().with_context(|| format!("cannot run {}", options.boot.display()))?;
    let console = String::from_utf8_lossy(&output.stdout);
    let measured = console.lines().find_map(|line| line.strip_prefix(MEASURED));
    ensure!(
        output.status.success() && measured.is_some(),
        "nothing was measured in the virtual machine ({}); its last words:\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr),
        last_lines(&console, 40)
    );
    serde_json::from_str(measured.unwrap_or_default()).context("what was measured is not understood")
}

/// Looks a tool up in `$PATH` and where Debian keeps those of root.
fn find(tool: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    let found = folders.map(|folder| folder.join(tool)).find(|file| file.is_file());
    found.with_context(|| format!("there is no {tool}; `cargo xtask setup bench` installs it"))
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}
