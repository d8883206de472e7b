//! A host: a namespace that runs commands.

use std::ffi::OsStr;
use std::fmt::Display;
use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{self, Command};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getppid};

use super::{Namespace, Output, Process};

/// How long [`Host::run`] lets a command take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Least, first and largest size of a TCP socket's send buffer in bytes, for both families.
///
/// Frames between namespaces wait in queues of the CPUs (1,000 frames, `net.core.netdev_max_backlog`) that all networks of
/// the machine share, and before a native XDP program in one of 256. TCP fills such a queue until something is lost, and
/// repeats it; a datagram of another test that is lost to a full queue is not repeated. So no connection has much more under
/// way than this: at most one segment of those that are cut up only where they leave.
const SEND_BUFFER: &str = "4096 16384 32768";

/// A host of a [`super::Net`]. Clones are the same host.
#[derive(Clone, Debug)]
pub struct Host {
    name: String,
    namespace: Arc<Namespace>,
}

impl Host {
    /// Makes a host without links.
    pub(super) fn new(name: &str) -> Result<Self> {
        let host = Self { name: name.into(), namespace: Arc::new(Namespace::new()?) };
        // Duplicate address detection would keep every new IPv6 address unusable for a second.
        host.sysctl("net/ipv6/conf/default/accept_dad", 0)?;
        host.sysctl("net/ipv4/tcp_wmem", SEND_BUFFER)?;
        host.run("ip link set lo up")?.success()?;
        Ok(host)
    }

    /// Its name in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its namespaces.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Runs `work` on a thread inside the host; see [`Namespace::enter`].
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        self.namespace.enter(work).with_context(|| format!("on host {}", self.name))
    }

    /// Sets a kernel parameter, named by its path below `/proc/sys`.
    pub fn sysctl(&self, parameter: &str, value: impl Display + Sync) -> Result<()> {
        let path = format!("/proc/sys/{parameter}");
        self.enter(|| fs::write(&path, value.to_string()).with_context(|| format!("write {value} to {path}")))
    }

    /// Writes a file as the host sees it; below `/run` it is the host's own and goes with it.
    pub fn write(&self, path: &str, text: &str) -> Result<()> {
        self.enter(|| fs::write(path, text).with_context(|| format!("write {path}")))
    }

    /// Runs a command line to its end, at most a minute. It is split at white space; there is no shell and no
    /// quoting.
    pub fn run(&self, line: &str) -> Result<Output> {
        self.run_words(&line.split_whitespace().collect::<Vec<_>>())
    }

    /// Runs several command lines, all of which must succeed.
    pub fn run_all(&self, lines: &[&str]) -> Result<()> {
        lines.iter().try_for_each(|line| self.run(line)?.success().map(drop))
    }

    /// Runs a script of the shell to its end, at most a minute.
    pub fn shell(&self, script: &str) -> Result<Output> {
        self.run_words(&["sh", "-c", script])
    }

    /// Starts a command line, split as by [`Host::run`]. The process dies when its handle is dropped, and with the
    /// thread that starts it.
    pub fn spawn(&self, line: &str) -> Result<Process> {
        let words: Vec<_> = line.split_whitespace().collect();
        let (program, arguments) = words.split_first().context("an empty command line")?;
        let mut command = self.command(program);
        command.args(arguments);
        Process::start(self.title(line), command, true)
    }

    /// A command that will run on this host and die with the thread that starts it.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let namespace = Arc::clone(&self.namespace);
        let parent = Pid::from_raw(process::id().cast_signed());
        let mut command = Command::new(program);
        // SAFETY: between fork and exec the closure makes plain system calls on descriptors that `namespace` keeps
        // open; it neither allocates nor takes a lock.
        unsafe {
            command.pre_exec(move || {
                set_pdeathsig(Signal::SIGKILL)?;
                // The parent may have died before the line above.
                if getppid() != parent {
                    return Err(io::ErrorKind::BrokenPipe.into());
                }
                Ok(namespace.join()?)
            })
        };
        command
    }

    /// Replaces the firewall of the host by these rules of nftables for what comes in; without any it is open.
    pub fn firewall(&self, rules: &[&str]) -> Result<()> {
        // Else one ICMP error a second would be all that a peer gets.
        self.sysctl("net/ipv4/icmp_ratelimit", 0)?;
        let rules = rules.join("; ");
        self.shell(&format!(
            "nft -f - <<'E'\n\
             flush ruleset\n\
             table inet firewall {{ chain input {{ type filter hook input priority 0; {rules}; }}; }}\n\
             E"
        ))?
        .success()
        .map(drop)
    }

    fn run_words(&self, words: &[&str]) -> Result<Output> {
        let (program, arguments) = words.split_first().context("an empty command line")?;
        let mut command = self.command(program);
        command.args(arguments);
        Process::start(self.title(&words.join(" ")), command, false)?.wait(PATIENCE)
    }

    /// Starts a command made by [`Host::command`].
    pub(super) fn start(&self, what: &str, command: Command, echo: bool) -> Result<Process> {
        Process::start(self.title(what), command, echo)
    }

    fn title(&self, what: &str) -> String {
        format!("{}: {what}", self.name)
    }

    /// Path of its network namespace for other processes.
    pub fn net_path(&self) -> String {
        self.namespace.net_path().display().to_string()
    }
}
