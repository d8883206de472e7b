//! One CPU for the balancer, another for all that makes and takes its traffic.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// Which CPU does what.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cores {
    /// Where the balancer works and nobody else: the last, since interrupts mostly go to the first.
    pub(crate) balancer: usize,
    /// Where everything else is.
    pub(crate) traffic: usize,
}

impl Cores {
    /// Chooses among those this process may use.
    pub(crate) fn choose() -> Result<Self> {
        let allowed = sched_getaffinity(Pid::from_raw(0)).context("cannot ask for the CPUs to run on")?;
        let mut cpus = (0..CpuSet::count()).rev().filter(|cpu| allowed.is_set(*cpu).unwrap_or_default());
        match (cpus.next(), cpus.next()) {
            (Some(balancer), Some(traffic)) => Ok(Self { balancer, traffic }),
            _ => bail!("two CPUs are needed, one for the balancer alone; this process may use only one"),
        }
    }
}

/// Keeps a thread on a CPU; 0 is the calling one, and those it will start.
pub(crate) fn keep_on(thread: i32, cpu: usize) -> Result<()> {
    let mut only = CpuSet::new();
    only.set(cpu)?;
    sched_setaffinity(Pid::from_raw(thread), &only)
        .with_context(|| format!("cannot keep thread {thread} on CPU {cpu}"))
}

/// How urgent programs are. Whatever else the machine does can wait.
pub(crate) const PROGRAMS: i32 = 1;
/// How urgent it is to take packets, by how many cables they have come over: the further they are, the more work was
/// put into them.
pub(crate) const PACKETS: [i32; 4] = [2, 3, 4, 5];

/// Lets a thread run before all that is less urgent (SCHED_FIFO); 0 is the calling one, and those it will start.
pub(crate) fn make_urgent(thread: i32, urgency: i32) -> Result<()> {
    schedule(thread, libc::SCHED_FIFO, urgency)
}

fn schedule(thread: i32, policy: i32, priority: i32) -> Result<()> {
    let parameter = libc::sched_param { sched_priority: priority };
    // SAFETY: the parameter outlives the call, which only reads it.
    let outcome = unsafe { libc::sched_setscheduler(thread, policy, &raw const parameter) };
    Errno::result(outcome).map(drop).with_context(|| format!("cannot set the priority of thread {thread}"))
}

/// Keeps CPUs from halting when they have nothing to do. An idle CPU of a virtual machine is given to others, and it may take
/// milliseconds to get it back: far longer than the queues of a balancer last that has nothing to do for a moment because it is
/// fast.
#[derive(Debug)]
pub(crate) struct Awake {
    /// While this file is open an idle CPU looks for work all the time (Documentation/power/pm_qos_interface.rst), and sees what
    /// others give it without the interrupt that any other CPU is sent, and that a hypervisor makes dear.
    _wish: Option<File>,
    /// Where the kernel cannot do that, threads run when nothing else does.
    _spinning: Option<Spinning>,
}

impl Awake {
    /// Until it is dropped.
    pub(crate) fn keep(cpus: &[usize]) -> Self {
        let wish = wish_no_latency();
        let spinning = wish.is_none().then(|| Spinning::on(cpus));
        Self { _wish: wish, _spinning: spinning }
    }
}

/// Has the kernel poll on idle CPUs; `None` where it knows but one way to be idle.
fn wish_no_latency() -> Option<File> {
    let first = fs::read_to_string("/sys/devices/system/cpu/cpu0/cpuidle/state0/name").ok()?;
    if first.trim() != "POLL" {
        return None;
    }
    let mut wish = File::options().write(true).open("/dev/cpu_dma_latency").ok()?;
    // Microseconds.
    wish.write_all(&0_i32.to_ne_bytes()).ok()?;
    Some(wish)
}

/// Threads that keep CPUs busy.
#[derive(Debug)]
struct Spinning {
    is_over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Spinning {
    fn on(cpus: &[usize]) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let keep = |cpu: &usize| {
            let (cpu, is_over) = (*cpu, Arc::clone(&is_over));
            thread::spawn(move || {
                keep_on(0, cpu)?;
                schedule(0, libc::SCHED_IDLE, 0)?;
                while !is_over.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
                Ok(())
            })
        };
        let threads = cpus.iter().map(keep).collect();
        Self { is_over, threads }
    }
}

impl Drop for Spinning {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            if let Ok(Err(error)) = thread.join() {
                eprintln!("cannot keep a CPU from being idle: {error:#}");
            }
        }
    }
}

/// Threads of the kernel whose name begins so.
pub(crate) fn kernel_threads(name: &str) -> Result<Vec<i32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(id) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // A process may be gone by now.
        let comm = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if comm.starts_with(name) {
            found.push(id);
        }
    }
    Ok(found)
}

/// The threads that do a balancer's work, and how long they have run.
#[derive(Debug)]
pub(crate) struct Work {
    cpu: usize,
    kernel: Vec<i32>,
    processes: Vec<u32>,
}

/// How long a CPU has worked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Worked {
    /// The threads of the balancer, as the scheduler counts it: to the nanosecond, and without what else ran there.
    pub(crate) threads: Duration,
    /// The CPU, in ticks: all of it, and idle.
    ticks: [u64; 2],
}

impl Work {
    /// Of these kernel threads, of these processes with their children, and of what the CPU had to put off.
    pub(crate) fn of(cpu: usize, mut kernel: Vec<i32>, processes: &[u32]) -> Result<Self> {
        kernel.extend(kernel_threads(&format!("ksoftirqd/{cpu}\n"))?);
        let mut all = processes.to_vec();
        for process in processes {
            let children = format!("/proc/{process}/task/{process}/children");
            let children =
                fs::read_to_string(&children).with_context(|| format!("cannot read {children}"))?;
            all.extend(children.split_whitespace().filter_map(|id| id.parse::<u32>().ok()));
        }
        Ok(Self { cpu, kernel, processes: all })
    }

    /// Until now.
    pub(crate) fn so_far(&self) -> Result<Worked> {
        let mut tasks: Vec<PathBuf> = self.kernel.iter().map(|id| format!("/proc/{id}").into()).collect();
        for process in &self.processes {
            let folder = format!("/proc/{process}/task");
            let threads = fs::read_dir(&folder).with_context(|| format!("cannot read {folder}"))?;
            tasks.extend(threads.flatten().map(|thread| thread.path()));
        }
        let threads = tasks.iter().map(|task| runtime(task)).sum::<Result<Duration>>()?;
        Ok(Worked { threads, ticks: ticks(self.cpu)? })
    }
}

impl Worked {
    /// Since an earlier time: of the threads, and the share of the CPU that was not idle.
    pub(crate) fn since(&self, earlier: &Self) -> (Duration, f64) {
        let [all, idle] = [0, 1].map(|of| self.ticks[of].saturating_sub(earlier.ticks[of]) as f64);
        (self.threads.saturating_sub(earlier.threads), (all - idle) / all)
    }
}

/// Time on a CPU of a task, the first number of its `schedstat` (Documentation/scheduler/sched-stats.rst).
fn runtime(task: &Path) -> Result<Duration> {
    let path = task.join("schedstat");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let nanoseconds = text.split(' ').next().and_then(|number| number.parse().ok());
    nanoseconds.map(Duration::from_nanos).with_context(|| format!("{} says {text:?}", path.display()))
}

/// What a CPU has done, in ticks (proc_stat(5)): everything, and being idle, for want of I/O or of anything.
fn ticks(cpu: usize) -> Result<[u64; 2]> {
    let text = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("cpu{cpu} ")));
    let line = line.with_context(|| format!("/proc/stat has no CPU {cpu}"))?;
    let ticks: Vec<u64> = line.split_whitespace().map_while(|number| number.parse().ok()).collect();
    // The last two, of guests, are contained in others.
    let all = ticks.iter().take(8).sum();
    Ok([all, ticks.get(3).copied().unwrap_or_default() + ticks.get(4).copied().unwrap_or_default()])
}
