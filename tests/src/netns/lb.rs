//! The real `lb` on a host.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::{Host, Output, Process, binary, wait};

/// The configuration file, in the host's private `/run`.
const CONFIG: &str = "/run/lb.toml";

/// How long loading, attaching and the first checks may take on a busy machine.
const START: Duration = Duration::from_secs(20);
/// How long a clean stop may take.
const STOP: Duration = Duration::from_secs(10);

/// A controller that runs in the foreground of a host.
#[derive(Debug)]
pub struct Lb {
    host: Host,
    controller: Process,
}

impl Lb {
    /// Starts `lb run` with `config` (TOML) and waits until every listener forwards. Its log is shown when the
    /// test fails.
    pub fn start(host: &Host, config: &str) -> Result<Self> {
        host.write(CONFIG, config)?;
        Self::run(host, CONFIG.as_ref(), true)
    }

    /// Starts `lb run` with a configuration file and waits until every listener forwards. With `echo`, its log
    /// also goes to standard error.
    pub fn run(host: &Host, config: &Path, echo: bool) -> Result<Self> {
        let mut command = host.command(binary("lb")?);
        command.args(["run", "--config"]).arg(config);
        Self::start_command(host, command, echo)
    }

    /// Starts a command that becomes `lb run`, in another way or with more than [`Lb::run`] gives it, and waits until
    /// every listener forwards.
    pub fn start_command(host: &Host, command: Command, echo: bool) -> Result<Self> {
        Self::start_command_within(host, command, echo, START)
    }

    /// The same with another limit of patience.
    pub fn start_command_within(
        host: &Host,
        mut command: Command,
        echo: bool,
        within: Duration,
    ) -> Result<Self> {
        command.env("LB_LOG", "info").env("NO_COLOR", "1");
        let controller = host.start("lb run", command, echo)?;
        controller.wait_for_line("ready", within)?;
        Ok(Self { host: host.clone(), controller })
    }

    /// Starts `lb run` and waits until all `count` backends of every set are in rotation.
    pub fn start_with_rotation(host: &Host, config: &str, count: usize) -> Result<Self> {
        let lb = Self::start(host, config)?;
        lb.wait_for_rotation(count, START)?;
        Ok(lb)
    }

    /// Runs another command of `lb` on `host`, for example `status --json`.
    pub fn command(host: &Host, arguments: &str) -> Result<Output> {
        host.run(&format!("{} {arguments}", binary("lb")?.display()))
    }

    /// What `lb status --json` says.
    pub fn status(&self) -> Result<Status> {
        Self::status_of(&self.host)
    }

    /// What `lb status --json` says on a host.
    pub(super) fn status_of(host: &Host) -> Result<Status> {
        let output = Self::command(host, "status --json")?;
        let value = serde_json::from_str(&output.stdout);
        Ok(Status(value.with_context(|| format!("`lb status --json` gave no JSON: {output:?}"))?))
    }

    /// What `lb diagnose --json` says of a set.
    pub fn diagnose(&self, set: &str) -> Result<Value> {
        let output = Self::command(&self.host, &format!("diagnose {set} --json"))?;
        let value = serde_json::from_str(&output.stdout);
        value.with_context(|| format!("`lb diagnose {set} --json` gave no JSON: {output:?}"))
    }

    /// The transitions of a backend, or of all of a set, the oldest first: what `lb history --json` says.
    pub fn history(&self, of: &str) -> Result<Vec<Value>> {
        let output = Self::command(&self.host, &format!("history {of} --json"))?.success()?;
        let value: Value = serde_json::from_str(&output.stdout)?;
        Ok(list(&value["transitions"]).to_vec())
    }

    /// What a scraper of metrics gets.
    pub fn metrics(&self) -> Result<String> {
        let scrape = "curl --silent --fail --unix-socket /run/lb/api.sock http://lb/metrics";
        Ok(self.host.run(scrape)?.success()?.stdout)
    }

    /// Waits until the last check of a backend came out as `verdict` (its `healthCheckStatus`), and gives the result.
    pub fn wait_for_result(&self, set: &str, backend: &str, verdict: &str) -> Result<Value> {
        let mut last = Value::Null;
        let found = wait::until(&format!("{set}/{backend} to be {verdict}"), START, || {
            last = self.status()?.backend(set, backend)?["result"].clone();
            Ok((last["healthCheckStatus"] == verdict).then(|| last.clone()))
        });
        found.with_context(|| format!("last result {last}"))
    }

    /// Waits until every set has exactly `count` backends in rotation.
    pub fn wait_for_rotation(&self, count: usize, within: Duration) -> Result<Status> {
        wait::until(&format!("{count} backends in every rotation"), within, || {
            let status = self.status()?;
            let complete = status.sets().all(|set| status.rotation(set).len() == count);
            Ok(complete.then_some(status))
        })
    }

    /// Replaces the configuration file and has it applied.
    pub fn reload(&self, config: &str) -> Result<()> {
        self.host.write(CONFIG, config)?;
        Self::command(&self.host, "reload")?.success().map(drop)
    }

    /// Kills the controller with SIGKILL. The data plane stays.
    pub fn kill9(mut self) -> Result<()> {
        self.controller.kill()
    }

    /// Ends the controller with SIGTERM and checks that it ends cleanly.
    pub fn stop(mut self) -> Result<()> {
        self.controller.signal(Signal::SIGTERM)?;
        self.controller.wait(STOP)?.success().map(drop)
    }

    /// What the controller has logged so far.
    pub fn log(&self) -> String {
        self.controller.log()
    }

    /// The process id of the controller.
    pub fn id(&self) -> u32 {
        self.controller.id()
    }

    /// Removes the data plane of `host` with `lb detach`.
    pub fn detach(host: &Host) -> Result<()> {
        Self::command(host, "detach")?.success().map(drop)
    }
}

/// An instance's status, as `lb status --json` prints it.
#[derive(Clone, Debug)]
pub struct Status(pub Value);

impl Status {
    /// The instance's level: `OK`, `WARNING`, `CRITICAL` or `UNKNOWN`.
    pub fn level(&self) -> &str {
        self.0["status"].as_str().unwrap_or_default()
    }

    /// The names of the backend sets.
    pub fn sets(&self) -> impl Iterator<Item = &str> {
        list(&self.0["backend_sets"]).iter().filter_map(|set| set["name"].as_str())
    }

    /// The entry of a backend set.
    pub fn set(&self, name: &str) -> Result<&Value> {
        let found = list(&self.0["backend_sets"]).iter().find(|set| set["name"] == name);
        found.with_context(|| format!("no backend set {name} in {}", self.0))
    }

    /// The names of the backends of `set` that are in rotation.
    pub fn rotation(&self, set: &str) -> Vec<&str> {
        let backends = self.backends(set).filter(|backend| backend["in_rotation"] == true);
        backends.filter_map(|backend| backend["name"].as_str()).collect()
    }

    /// The entry of a backend.
    pub fn backend(&self, set: &str, name: &str) -> Result<&Value> {
        let found = self.backends(set).find(|backend| backend["name"] == name);
        found.with_context(|| format!("no backend {name} of set {set} in {}", self.0))
    }

    /// The entry of a listener.
    pub fn listener(&self, name: &str) -> Result<&Value> {
        let found = list(&self.0["listeners"]).iter().find(|listener| listener["name"] == name);
        found.with_context(|| format!("no listener {name} in {}", self.0))
    }

    /// The XDP mode of every interface, which must all have one.
    pub fn modes(&self) -> Result<Vec<&str>> {
        let modes: Vec<_> =
            list(&self.0["interfaces"]).iter().filter_map(|one| one["mode"].as_str()).collect();
        ensure!(!modes.is_empty(), "no interfaces in {}", self.0);
        Ok(modes)
    }

    fn backends(&self, set: &str) -> impl Iterator<Item = &Value> {
        self.set(set).map_or(&[][..], |set| list(&set["backends"])).iter()
    }
}

pub(super) fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}
