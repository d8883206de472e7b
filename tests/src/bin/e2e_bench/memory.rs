//! Memory that is there. A hypervisor gives a page to its guest when that writes to it for the first time, which takes 14 µs
//! instead of one, and takes back what has been free for two seconds ("free page reporting"). Packets that are copied to
//! pages of their own, as veth does for native XDP, were then slower by more than all else that happens to them.

use std::fs;
use std::io::{PipeReader, PipeWriter, Read as _, Write as _, pipe};

use anyhow::{Context as _, Result};
use lb_tests::report::bytes_of;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Bytes that are wanted; far more than is on its way at any time.
const WANTED: u64 = 2 << 30;
/// The part of the memory that is free which may be taken.
const PART: u64 = 4;
/// Bytes that a pipe holds: half of the least that is reported as free (`pageblock_order`).
const PIPE: usize = 1 << 20;
/// Bytes that stay in each pipe: they hold a page.
const REST: usize = 4096;
/// Files that the rest of the benchmark may open.
const OTHERS: u64 = 1024;

/// Free memory of the kernel that the hypervisor has given and does not take back, until this is dropped: of all pages that
/// were written to, a few between the others stay in use.
#[derive(Debug)]
pub(crate) struct Backed {
    pipes: Vec<(PipeReader, PipeWriter)>,
}

impl Backed {
    /// Writes to so much of it as packets will need, as far as files may be opened, pipes be large and memory is free. Pages of
    /// pipes are of the kind that packets are in, which no page of a process is.
    pub(crate) fn take() -> Result<Self> {
        let (now, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
        let files = setrlimit(Resource::RLIMIT_NOFILE, most, most).map_or(now, |()| most);
        let wanted = WANTED.min(available()? / PART) / PIPE as u64;
        let number = wanted.min(files.saturating_sub(OTHERS) / 2);
        let (mut pipes, bytes) = (Vec::new(), vec![1; PIPE]);
        for _ in 0..number {
            let (reader, mut writer) = pipe().context("cannot make a pipe")?;
            // Only root may have as many large ones as it likes. What does not fit into one would be waited for.
            if fcntl(&writer, FcntlArg::F_SETPIPE_SZ(PIPE as i32)).is_err() {
                break;
            }
            writer.write_all(&bytes)?;
            pipes.push((reader, writer));
        }
        let mut bytes = vec![0; PIPE - REST];
        for (reader, _) in &mut pipes {
            reader.read_exact(&mut bytes)?;
        }
        Ok(Self { pipes })
    }

    /// How much of it there is, in MiB.
    pub(crate) const fn mebibytes(&self) -> usize {
        self.pipes.len() * (PIPE >> 20)
    }
}

/// Bytes that are free or can be made so (proc_meminfo(5)), for this process (cgroups(7), version 2).
fn available() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
    let of_all = bytes_of(&text, "MemAvailable:")?;
    Ok(left_to_group().map_or(of_all, |left| left.min(of_all)))
}

/// Bytes that this process' control group may still use. `None` if it may use what it likes.
fn left_to_group() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let group = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    let number = |name: &str| -> Option<u64> {
        fs::read_to_string(format!("/sys/fs/cgroup{group}/{name}")).ok()?.trim().parse().ok()
    };
    Some(number("memory.max")?.saturating_sub(number("memory.current")?))
}
