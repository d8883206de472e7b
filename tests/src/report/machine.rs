//! Where something was measured.

use std::fmt;
use std::fs;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

/// A computer and its kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Model of the processor.
    pub processor: String,
    /// How many processors there are.
    pub cpus: usize,
    /// Memory, in MiB.
    pub memory_mib: u64,
    /// Version of the kernel.
    pub kernel: String,
}

impl Machine {
    /// The one this program runs on.
    pub fn this() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let (cpuinfo, meminfo) = (read("/proc/cpuinfo"), read("/proc/meminfo"));
        let of_each_cpu = |name| cpuinfo.lines().filter_map(move |line| line.strip_prefix(name));
        let model = of_each_cpu("model name").next().map(|model| model.trim_start_matches(['\t', ' ', ':']));
        Self {
            processor: model.unwrap_or("unknown processor").to_owned(),
            // Not those this process may use: it may have bound itself to one.
            cpus: of_each_cpu("processor").count(),
            memory_mib: bytes_of(&meminfo, "MemTotal:").unwrap_or_default() >> 20,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        }
    }
}

/// Bytes that a line of a file like `/proc/meminfo` tells, which begins with this name and has a number of KiB (proc(5)).
///
/// # Errors
///
/// If there is no such line.
pub fn bytes_of(text: &str, name: &str) -> Result<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_suffix(" kB"));
    let number = line.and_then(|number| number.trim().parse::<u64>().ok());
    Ok(1024 * number.with_context(|| format!("no line {name} with a number of kB"))?)
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { processor, cpus, memory_mib, kernel } = self;
        write!(f, "{processor}, {cpus} CPUs, {memory_mib} MiB, Linux {kernel}")
    }
}
