//! What a service manager hears from `lb run`: sd_notify(3), with this test in the place of systemd.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lb_tests::netns::{Config, Family, Host, Lab, Lb, binary, traffic};

const SOCKET: &str = "/run/notify";
const CONFIG: &str = "/run/lb.toml";

/// How long a message may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// The other end of `NOTIFY_SOCKET`.
struct Manager {
    socket: UnixDatagram,
}

impl Manager {
    fn new(host: &Host) -> Result<Self> {
        let socket = host.enter(|| Ok(UnixDatagram::bind(SOCKET)?))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { socket })
    }

    /// Starts `lb run` and returns when it says `ready` on standard output.
    fn start(&self, host: &Host, config: &str) -> Result<Lb> {
        host.write(CONFIG, config)?;
        let mut command = host.command(binary("lb")?);
        command.args(["run", "--config", CONFIG]).env("NOTIFY_SOCKET", SOCKET).env("WATCHDOG_USEC", "400000");
        Lb::start_command(host, command, true)
    }

    /// Messages up to the first with a line that begins with `line`, that one included.
    fn wait_for(&self, line: &str) -> Result<Vec<String>> {
        let mut messages: Vec<String> = Vec::new();
        let mut datagram = [0; 4096];
        while !messages.last().is_some_and(|message| has(message, line)) {
            let length = self
                .socket
                .recv(&mut datagram)
                .with_context(|| format!("waited {PATIENCE:?} for {line}; came: {messages:?}"))?;
            messages.push(String::from_utf8(datagram[..length].to_vec())?);
        }
        Ok(messages)
    }

    /// The one message with such a line, with only signs of life before it.
    fn next(&self, line: &str) -> Result<String> {
        let mut messages = self.wait_for(line)?;
        let found = messages.pop().context("no message")?;
        ensure!(messages.iter().all(|message| has(message, "WATCHDOG=1")), "before {line}: {messages:?}");
        Ok(found)
    }
}

fn has(message: &str, line: &str) -> bool {
    message.lines().any(|found| found.starts_with(line))
}

#[test]
fn the_service_manager_hears_of_start_life_reload_and_stop() -> Result<()> {
    let lab = Lab::one_arm()?;
    let host = &lab.balancer;
    let manager = Manager::new(host)?;
    let config = Config::new(&lab, Family::V4).to_string();
    let lb = manager.start(host, &config)?;

    let mut starting = manager.wait_for("READY=1")?;
    starting.pop();
    ensure!(!starting.is_empty(), "a start that waits for health checks asks for time");
    ensure!(starting.iter().all(|message| has(message, "EXTEND_TIMEOUT_USEC=")), "{starting:?}");
    traffic::curl(&lab.client, Family::V4.vip_port(80))?;
    for _ in 0..3 {
        manager.next("WATCHDOG=1")?;
    }

    lb.reload(&config.replace("snat = \"always\"", "snat = \"auto\""))?;
    let reloading = manager.next("RELOADING=1")?;
    ensure!(has(&reloading, "MONOTONIC_USEC="), "{reloading}");
    let again = manager.next("READY=1")?;
    ensure!(has(&again, "STATUS=forwarding"), "{again}");

    let refused = lb.reload("[lb]\n");
    ensure!(refused.is_err(), "an empty configuration is refused");
    manager.next("RELOADING=1")?;
    let unchanged = manager.next("READY=1")?;
    ensure!(has(&unchanged, "STATUS=forwarding; the last reload was refused"), "{unchanged}");
    // The loop went on meanwhile.
    manager.next("WATCHDOG=1")?;

    lb.stop()?;
    let stopping = manager.next("STOPPING=1")?;
    ensure!(stopping.contains("lb detach"), "the status says what goes on: {stopping}");
    Ok(())
}

#[test]
fn a_reload_during_the_start_does_not_announce_readiness() -> Result<()> {
    let lab = Lab::one_arm()?;
    let host = &lab.balancer;
    let manager = Manager::new(host)?;
    // The first results are spread over three seconds.
    let config = Config { interval_ms: 3000, ..Config::new(&lab, Family::V4) }.to_string();
    host.write(CONFIG, &config)?;
    let mut command = host.command(binary("lb")?);
    command.args(["run", "--config", CONFIG]).env("NOTIFY_SOCKET", SOCKET);
    let lb = std::thread::scope(|scope| {
        let reload = scope.spawn(|| {
            manager.wait_for("EXTEND_TIMEOUT_USEC=")?;
            Lb::command(host, "reload")?.success()
        });
        let lb = Lb::start_command(host, command, true)?;
        reload.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        anyhow::Ok(lb)
    })?;
    let mut starting = manager.wait_for("READY=1")?;
    starting.pop();
    ensure!(starting.iter().all(|message| !has(message, "RELOADING=1")), "{starting:?}");
    lb.stop()
}
