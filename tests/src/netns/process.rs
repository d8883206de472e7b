//! Processes of a host: their output, their end, and the guarantee that they do not outlive the test.

use std::env;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::wait;

/// A running process. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    title: String,
    child: Child,
    stdout: Transcript,
    stderr: Transcript,
}

/// What a finished process has left.
#[derive(Clone, Debug)]
pub struct Output {
    /// What was run, for messages.
    pub title: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Standard output, without the last line break.
    pub stdout: String,
    /// Standard error, without the last line break.
    pub stderr: String,
}

impl Output {
    /// The output itself if the exit status is 0, else an error with all that was said.
    pub fn success(self) -> Result<Self> {
        self.exit_code(0)
    }

    /// The output itself if the exit status is `code`, else an error with all that was said.
    pub fn exit_code(self, code: i32) -> Result<Self> {
        ensure!(
            self.status.code() == Some(code),
            "`{}`: expected exit status {code}, found {}\nstdout: {}\nstderr: {}",
            self.title,
            self.status,
            self.stdout,
            self.stderr
        );
        Ok(self)
    }
}

impl Process {
    /// Starts `command` with its output captured. With `echo`, its standard error is also printed as it comes;
    /// in a test that means: shown when the test fails.
    pub(super) fn start(title: String, mut command: Command, echo: bool) -> Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("start `{title}`"))?;
        let stdout = Transcript::of(child.stdout.take().context("no pipe for stdout")?, None);
        let prefix = echo.then(|| title.clone());
        let stderr = Transcript::of(child.stderr.take().context("no pipe for stderr")?, prefix);
        Ok(Self { title, child, stdout, stderr })
    }

    /// Process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal to this process alone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(self.child.id().cast_signed());
        kill(pid, signal).with_context(|| format!("send {signal} to `{}` ({pid})", self.title))
    }

    /// Kills it with SIGKILL and waits for its end.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().with_context(|| format!("kill `{}`", self.title))?;
        let status = self.child.wait()?;
        ensure!(
            status.signal() == Some(Signal::SIGKILL as i32),
            "`{}` was to be killed but had already ended: {status}\n{}",
            self.title,
            self.stderr.text()
        );
        Ok(())
    }

    /// Waits for the end of the process; kills it and fails when it has not ended `within`.
    pub fn wait(&mut self, within: Duration) -> Result<Output> {
        let ended = wait::until("the end of the process", within, || Ok(self.child.try_wait()?));
        let status = match ended {
            Ok(status) => status,
            Err(error) => {
                self.child.kill()?;
                self.child.wait()?;
                let (out, err) = (self.stdout.text(), self.stderr.text());
                return Err(error.context(format!("`{}`\nstdout: {out}\nstderr: {err}", self.title)));
            }
        };
        let (stdout, stderr) = (self.stdout.finish(), self.stderr.finish());
        Ok(Output { title: self.title.clone(), status, stdout, stderr })
    }

    /// Waits for a line of standard output that starts with `start`, and gives that line.
    pub fn wait_for_line(&self, start: &str, within: Duration) -> Result<String> {
        self.stdout.wait_for(start, within).with_context(|| {
            format!(
                "`{}`: expected a line `{start}`\nstdout: {}\nstderr: {}",
                self.title,
                self.stdout.text(),
                self.log()
            )
        })
    }

    /// What it has written to standard error so far.
    pub fn log(&self) -> String {
        self.stderr.text()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only if the process is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The lines of a pipe, collected by a thread so that the writer never blocks.
#[derive(Debug)]
struct Transcript {
    shared: Arc<Shared>,
    reader: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    lines: Mutex<Lines>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Lines {
    text: Vec<String>,
    ended: bool,
}

impl Shared {
    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Transcript {
    fn of(pipe: impl Read + Send + 'static, echo: Option<String>) -> Self {
        let shared = Arc::new(Shared::default());
        let writer = Arc::clone(&shared);
        let reader = thread::spawn(move || {
            for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).into_owned();
                if let Some(title) = &echo {
                    eprintln!("[{title}] {line}");
                }
                writer.lines().text.push(line);
                writer.changed.notify_all();
            }
            writer.lines().ended = true;
            writer.changed.notify_all();
        });
        Self { shared, reader: Some(reader) }
    }

    fn text(&self) -> String {
        self.shared.lines().text.join("\n")
    }

    /// All of it, once the last writer has closed the pipe.
    fn finish(&mut self) -> String {
        if let Some(reader) = self.reader.take() {
            // A reader that panicked has kept what it had read.
            let _ = reader.join();
        }
        self.text()
    }

    fn wait_for(&self, start: &str, within: Duration) -> Result<String> {
        let deadline = Instant::now() + within;
        let mut lines = self.shared.lines();
        loop {
            if let Some(line) = lines.text.iter().find(|line| line.starts_with(start)) {
                return Ok(line.clone());
            }
            ensure!(!lines.ended, "the output ended without it");
            let left = deadline.saturating_duration_since(Instant::now());
            ensure!(!left.is_zero(), "it did not come within {within:?}");
            let (guard, _) =
                self.shared.changed.wait_timeout(lines, left).unwrap_or_else(PoisonError::into_inner);
            lines = guard;
        }
    }
}

/// The path of a program of this workspace: `NAME_BIN` (`LB_BIN` for `lb`) or beside the running program.
pub fn binary(name: &str) -> Result<PathBuf> {
    let variable = format!("{}_BIN", name.to_uppercase());
    if let Some(path) = env::var_os(&variable) {
        let path = PathBuf::from(path).canonicalize().with_context(|| format!("{variable} names no file"))?;
        return Ok(path);
    }
    // Test programs lie in target/PROFILE/deps, ordinary ones in target/PROFILE; lb may have the other profile.
    let own = env::current_exe()?;
    let target = own.ancestors().find(|dir| dir.file_name().is_some_and(|name| name == "target"));
    let beside = own.ancestors().skip(1).take(2).map(|dir| dir.join(name));
    let profiles = ["debug", "release"].iter().filter_map(|profile| Some(target?.join(profile).join(name)));
    let places: Vec<_> = beside.chain(profiles).collect();
    match places.iter().find(|place| place.is_file()) {
        Some(found) => Ok(found.clone()),
        None => {
            bail!("no program `{name}` at {places:?}; run `cargo xtask build`, or set {variable} to its path")
        }
    }
}
