//! What the verifier has to walk.

use std::io::{self, Write as _};

use anyhow::{Context as _, Result, ensure};
use lb_userspace::dataplane::{Dataplane, LoadOptions};
use libtest_mimic::Trial;

/// The most instructions: well below the kernel's limit of a million, since what a change adds is often a factor,
/// and other kernels walk more than this one.
const MOST: u32 = 400_000;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        Trial::test("budget::the verifier walks at most 400,000 instructions", || {
            budget().map_err(super::failed)
        }),
        Trial::test("budget::the program's log costs instructions only where it is switched on", || {
            log_is_free_when_off().map_err(super::failed)
        }),
    ]
}

/// Instructions of all programs as the kernel runs them, dead code removed.
fn instructions(packet_log: bool) -> Result<u32> {
    let options = LoadOptions { max_connections: 16, packet_log, ..LoadOptions::default() };
    let mut dataplane = Dataplane::load(&options)?;
    let mut total = 0;
    for (name, program) in dataplane.ebpf().programs() {
        let size = program.info().with_context(|| format!("no info of `{name}`"))?.size_translated();
        total += size.context("this kernel does not tell the size of a program")? / 8;
    }
    Ok(total)
}

fn log_is_free_when_off() -> Result<()> {
    let (off, on) = (instructions(false)?, instructions(true)?);
    ensure!(off < on, "with the log off the programs have {off} instructions, with it on {on}");
    Ok(())
}

fn budget() -> Result<()> {
    let options = LoadOptions { max_connections: 16, ..LoadOptions::default() };
    let mut dataplane = Dataplane::load(&options)?;
    for (name, program) in dataplane.ebpf().programs() {
        let info = program.info().with_context(|| format!("no info of `{name}`"))?;
        let walked =
            info.verified_instruction_count().context("this kernel does not count what it verifies")?;
        let size = info.size_translated().unwrap_or_default() / 8;
        writeln!(io::stdout(), "\nverified instructions: {walked}, of the program `{name}` of {size}")?;
        ensure!(walked <= MOST, "the verifier walked {walked} instructions of `{name}`, more than {MOST}");
    }
    Ok(())
}
