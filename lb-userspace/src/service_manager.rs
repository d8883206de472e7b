//! What a service manager that started this process is told (sd_notify(3)): systemd with `Type=notify`, or any other
//! that sets `NOTIFY_SOCKET`. Without one, nothing is sent.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};
use tracing::debug;

/// How often a start that waits for first results asks for more time.
const PATIENCE_PERIOD: Duration = Duration::from_secs(5);

/// How much it asks for, in microseconds: twice the period, so that one late message does no harm.
const PATIENCE_USEC: u32 = 10_000_000;

/// The service manager, as the controller's loop sees it.
#[derive(Debug)]
pub struct ServiceManager {
    is_ready: bool,
    /// Due when the manager has to hear that the loop is alive; `None`: it does not want to.
    beat: Option<Interval>,
}

impl ServiceManager {
    /// The manager that the environment names: `NOTIFY_SOCKET`, `WATCHDOG_USEC`, `WATCHDOG_PID`.
    pub fn from_environment() -> Self {
        let is_there = std::env::var_os("NOTIFY_SOCKET").is_some();
        // Half of the time the manager waits, as sd_watchdog_enabled(3) recommends.
        let watchdog = sd_notify::watchdog_enabled().map(|timeout| timeout / 2);
        let period = watchdog.unwrap_or(PATIENCE_PERIOD).min(PATIENCE_PERIOD).max(Duration::from_millis(1));
        let beat = is_there.then(|| {
            let mut beat = interval_at(Instant::now(), period);
            beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
            beat
        });
        Self { is_ready: false, beat }
    }

    /// Waits until it is time for [`ServiceManager::is_alive`].
    pub async fn due(&mut self) {
        match &mut self.beat {
            Some(beat) => {
                beat.tick().await;
            }
            None => std::future::pending().await,
        }
    }

    /// The controller's loop is alive. Only the loop itself says so: a process whose loop hangs falls silent, and the
    /// watchdog restarts it.
    pub fn is_alive(&self) {
        if self.is_ready {
            send(&[NotifyState::Watchdog]);
        } else {
            // The first results of all checks may take longer than a start usually does.
            send(&[
                NotifyState::ExtendTimeoutUsec(PATIENCE_USEC),
                NotifyState::Status("waiting for the first results of the health checks"),
            ]);
        }
    }

    /// Every listener forwards.
    pub fn ready(&mut self) {
        self.is_ready = true;
        send(&[NotifyState::Ready, NotifyState::Status("forwarding")]);
    }

    /// The configuration is being read again.
    pub fn reloading(&self) {
        // A reload during the start must not end in "ready".
        if !self.is_ready {
            return;
        }
        match NotifyState::monotonic_usec_now() {
            Ok(now) => send(&[NotifyState::Reloading, now]),
            Err(_) => send(&[NotifyState::Reloading]),
        }
    }

    /// The reload is over; `is_taken`: the file was accepted.
    pub fn reloaded(&self, is_taken: bool) {
        if self.is_ready {
            let refused = "forwarding; the last reload was refused, see `lb status`";
            send(&[NotifyState::Ready, NotifyState::Status(if is_taken { "forwarding" } else { refused })]);
        }
    }

    /// The controller ends.
    pub fn stopping(&self, farewell: &str) {
        send(&[NotifyState::Stopping, NotifyState::Status(farewell)]);
    }
}

fn send(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        debug!("cannot tell the service manager: {error}");
    }
}
