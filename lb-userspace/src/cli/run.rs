//! `lb run`

use anyhow::Result;
use clap::Args;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tracing::warn;

use super::{BAD_CONFIG, ConfigFile, OK, Target, detach};
use crate::config::{self, Config, OnExit};
use crate::control::controller::{Controller, Signals, Stopped};
use crate::instance::Instance;
use crate::logging::{self, Format};
use crate::privilege;

/// Every check that is under way holds a socket: lets this process open as many as the hard limit allows.
fn allow_many_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        warn!(
            "cannot raise the limit of open files: {error}; with thousands of backends some checks may not be made"
        );
    }
}

#[derive(Debug, Args)]
pub(super) struct Run {
    #[command(flatten)]
    file: ConfigFile,
    #[command(flatten)]
    target: Target,
    /// How log lines look
    #[arg(long, value_enum, default_value_t = Format::Text)]
    log_format: Format,
    /// Let the XDP program log each packet it drops; slow, for debugging
    #[arg(long)]
    packet_log: bool,
}

impl Run {
    pub(super) async fn execute(&self) -> Result<u8> {
        let loaded = match config::load(&self.file.config) {
            Ok(loaded) => loaded,
            Err(report) => {
                eprintln!("{report}");
                return Ok(BAD_CONFIG);
            }
        };
        logging::start(self.log_format)?;
        for warning in &loaded.warnings {
            warn!("{warning}");
        }
        let instance = self.target.instance()?;
        privilege::require(loaded.config.lb.assign_vips)?;
        let lock = instance.lock()?;
        let (controller, signals) = match self.start(&instance, loaded.config).await {
            Ok(started) => started,
            Err(error) => {
                // Unless there is a data plane that still forwards, nothing is left of this.
                if !instance.has_pins() {
                    instance.forget(lock);
                }
                return Err(error);
            }
        };
        let (stopped, on_exit) = controller.run(signals).await?;
        if stopped == Stopped::BySignal && on_exit == OnExit::Detach {
            detach::remove(&instance)?;
        }
        if stopped == Stopped::Detached || on_exit == OnExit::Detach {
            instance.forget(lock);
        }
        Ok(OK)
    }

    async fn start(&self, instance: &Instance, config: Config) -> Result<(Controller, Signals)> {
        instance.ensure_pins()?;
        allow_many_files();
        let signals = Signals::take_over()?;
        let file = self.file.config.clone();
        let controller = Controller::start(instance.clone(), file, config, self.packet_log).await;
        Ok((controller.map_err(privilege::explain)?, signals))
    }
}
