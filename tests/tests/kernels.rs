//! The program on other kernels: the verifier of each is another one, and so are the helpers. Each kernel is
//! booted in a virtual machine, which runs the load test of this file and the packet tests.

use std::env;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context as _, Result, bail, ensure};
use lb_userspace::dataplane::{Dataplane, LoadOptions};

/// The most the verifier may have to walk: half of the kernel's own limit, since what a change adds is often a
/// factor, and differs from kernel to kernel.
const MOST_INSTRUCTIONS: u32 = 500_000;

/// How the line begins that tells the verifier's work, after the kernel's version.
const WALKED: &str = "verified instructions of `lb`";

#[test]
fn running_kernel() -> Result<()> {
    let mut dataplane = Dataplane::load(&LoadOptions { max_connections: 1024, ..LoadOptions::default() })?;
    let info = dataplane.program()?.info().context("cannot ask the kernel about the program")?;
    let walked = info.verified_instruction_count().context("this kernel does not count what it verifies")?;
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    tell(&format!("Linux {}: {WALKED}: {walked}", kernel.trim()))?;
    ensure!(walked <= MOST_INSTRUCTIONS, "{walked} verified instructions are more than {MOST_INSTRUCTIONS}");
    Ok(())
}

#[test]
fn linux_6_1() -> Result<()> {
    boot("6.1")
}

#[test]
fn linux_6_12() -> Result<()> {
    boot("6.12")
}

/// Boots a kernel and runs the tests in it.
fn boot(version: &str) -> Result<()> {
    if env::var_os("LB_SKIP_KERNELS").is_some() {
        return tell(&format!("Linux {version}: skipped, because LB_SKIP_KERNELS is set"));
    }
    let this = env::current_exe().context("cannot find this test's file")?;
    let tests = xtask::workspace().join("tests");
    let output = Command::new(tests.join("kernels/boot"))
        .args([version, "--timeout", "900", "--modules", "veth"])
        .args(["--file", &format!("{}:bin/kernels", this.display())])
        .args(["--file", &format!("{}:bin/packets", packet_tests()?.display())])
        .args(["--file", &format!("{}:cases", tests.join("packets").display())])
        .args([
            "--",
            "sh",
            "-c",
            "kernels running_kernel --exact && LB_PACKET_CASES=/cases LB_PACKET_EFFORT=5 packets --test-threads 1",
        ])
        .output()
        .context("cannot run tests/kernels/boot")?;
    let (console, errors) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(
        output.status.success(),
        "the tests failed on Linux {version} ({}); QEMU and the kernels come with `cargo xtask setup kernels`\n\
         {errors}{console}",
        output.status
    );
    let results: Vec<&str> = console.lines().filter(|line| line.starts_with("test result: ok.")).collect();
    let [_, packets] = results[..] else { bail!("expected the results of two tests, found:\n{console}") };
    let walked =
        console.lines().find(|line| line.contains(WALKED)).context("the kernel's count is missing")?;
    tell(&format!("{walked} (virtual machine); packet tests: {packets}"))
}

/// The executable of the packet tests. It is asked of cargo, with the choice of packages that
/// `cargo xtask test` makes, so that nothing is compiled again.
fn packet_tests() -> Result<PathBuf> {
    static FOUND: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let found = FOUND.get_or_init(|| ask_for_packet_tests().map_err(|error| format!("{error:#}")));
    found.clone().map_err(anyhow::Error::msg)
}

fn ask_for_packet_tests() -> Result<PathBuf> {
    let mut cargo = xtask::cargo::cargo();
    cargo.args(["test", "--workspace", "--test", "packets", "--no-run", "--message-format=json"]);
    let output = cargo.output().context("cannot run cargo")?;
    ensure!(
        output.status.success(),
        "the packet tests do not compile:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let messages = String::from_utf8(output.stdout).context("cargo's messages are not UTF-8")?;
    let executable = messages.lines().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        (message["target"]["name"] == "packets").then(|| message["executable"].as_str().map(PathBuf::from))?
    });
    executable.context("cargo names no executable of the packet tests")
}

/// Prints a line that also shows when the test passes: the harness captures only what the print macros write.
/// It may be in the middle of a line of its own.
fn tell(line: &str) -> Result<()> {
    writeln!(io::stdout(), "\n{line}").context("cannot write to stdout")
}
