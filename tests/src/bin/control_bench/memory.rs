//! Memory: the kernel's, a map's, a process's.

use std::fs;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use aya::maps::MapData;
use lb_tests::report::bytes_of;

/// Long enough for the kernel to free what nobody uses.
const FREED: Duration = Duration::from_secs(3);

/// What the kernel holds for itself, in bytes: small objects but caches of files, those of each CPU, and large areas. What a
/// process had is freed some time after its end, so this is the least of many looks.
pub(crate) fn of_kernel() -> Result<f64> {
    let (begin, mut least) = (Instant::now(), f64::INFINITY);
    while begin.elapsed() < FREED {
        let text = fs::read_to_string("/proc/meminfo")?;
        let parts = ["SUnreclaim:", "Percpu:", "VmallocUsed:"].iter().map(|name| bytes_of(&text, name));
        least = least.min(parts.sum::<Result<u64>>()? as f64);
        thread::sleep(FREED / 100);
    }
    Ok(least)
}

/// Resident memory of a process, in bytes (proc(5)).
pub(crate) fn of_process(process: u32) -> Result<f64> {
    let path = Path::new("/proc").join(process.to_string()).join("status");
    Ok(bytes_of(&fs::read_to_string(path)?, "VmRSS:")? as f64)
}

/// What the kernel says that a map holds, in bytes.
pub(crate) fn of_map(map: &MapData) -> Result<f64> {
    use std::os::fd::AsFd as _;
    let path = format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd());
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("memlock:")).context("no memlock")?;
    line.trim().parse().context("memlock is no number")
}
