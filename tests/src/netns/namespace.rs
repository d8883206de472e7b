//! A network namespace together with a mount namespace: what makes a host.

use std::fs::File;
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::thread;

use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::geteuid;

/// A network namespace with a mount namespace of its own, both without a name: they live for as long as this
/// value or a process in them does.
///
/// Its mount namespace has its own `/sys` (interfaces are per network namespace), a bpffs on `/sys/fs/bpf` that
/// outlives the processes using it, and an empty `/run`, so that every host can run an instance of the default name.
#[derive(Debug)]
pub struct Namespace {
    net: File,
    mount: File,
}

impl Namespace {
    /// Makes a namespace that holds nothing but a loopback interface, which is down.
    pub fn new() -> Result<Self> {
        ensure!(
            geteuid().is_root(),
            "the namespace tests make network namespaces and load XDP programs, which only root may do; \
             found user id {}; run them as root, e.g. `sudo -E cargo xtask test`",
            geteuid()
        );
        // unshare(2) moves only the calling thread, so a thread that ends leaves nothing but the descriptors.
        on_own_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
                .context("unshare network and mounts")?;
            mount_private_file_systems()?;
            Ok(Self {
                net: File::open("/proc/thread-self/ns/net")?,
                mount: File::open("/proc/thread-self/ns/mnt")?,
            })
        })
    }

    /// Runs `work` on a thread inside the namespace. Sockets and files it opens stay usable outside.
    ///
    /// Start processes with [`super::Host::spawn`] instead: they die with the thread that starts them.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        on_own_thread(|| {
            self.join().context("enter the namespace")?;
            work()
        })
    }

    /// Moves the calling thread into the namespace for good. Async-signal-safe.
    pub(super) fn join(&self) -> nix::Result<()> {
        // A thread that shares its root directory with others may not change its mount namespace.
        unshare(CloneFlags::CLONE_FS)?;
        setns(&self.mount, CloneFlags::CLONE_NEWNS)?;
        setns(&self.net, CloneFlags::CLONE_NEWNET)
    }

    /// A path by which other processes, `ip link ... netns PATH` among them, find the network namespace.
    pub(super) fn net_path(&self) -> PathBuf {
        use std::os::fd::AsRawFd;
        format!("/proc/{}/fd/{}", std::process::id(), self.net.as_raw_fd()).into()
    }
}

/// Runs `work` on a thread of its own and hands on its panic.
fn on_own_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| scope.spawn(work).join()).unwrap_or_else(|panic| resume_unwind(panic))
}

fn mount_private_file_systems() -> Result<()> {
    let nothing = None::<&str>;
    // Without this, the mounts below would spread to the rest of the machine.
    mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing).context("make / private")?;
    for (kind, target) in [("sysfs", "/sys"), ("bpf", "/sys/fs/bpf"), ("tmpfs", "/run")] {
        mount(Some(kind), target, Some(kind), MsFlags::empty(), nothing)
            .with_context(|| format!("mount a {kind} on {target}"))?;
    }
    Ok(())
}
