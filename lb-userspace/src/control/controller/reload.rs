//! From one configuration to the next.

use anyhow::{Context, Result};
use jiff::Timestamp;
use tracing::{error, info, warn};

use super::{Controller, NEIGHBOUR_WAIT};
use crate::config::{self, Config};
use crate::network::next_hop::Resolver;
use crate::network::vip::{self, Ours};

/// Why a reload did not happen.
pub(super) enum Refusal {
    /// The file is wrong.
    Config(String),
    /// The host cannot be brought to what the file says.
    Host(anyhow::Error),
}

impl Refusal {
    fn text(&self) -> String {
        match self {
            Self::Config(report) => report.clone(),
            Self::Host(error) => format!("{error:#}"),
        }
    }
}

impl Controller {
    pub(super) async fn reload_or_complain(&mut self) {
        match self.reload().await {
            Ok(()) => {}
            Err(Refusal::Config(report)) => {
                warn!("the file was refused, the running configuration stays:\n{report}")
            }
            Err(Refusal::Host(error)) => error!("the reload failed: {error:#}"),
        }
    }

    /// Reads the file again. One that is refused, by itself or by the host, changes nothing but what the status says
    /// of it.
    pub(super) async fn reload(&mut self) -> Result<(), Refusal> {
        self.service_manager.reloading();
        let switched = match config::load(&self.file) {
            Ok(loaded) => {
                for warning in &loaded.warnings {
                    warn!("{warning}");
                }
                self.switch_to(loaded.config).await.map_err(Refusal::Host)
            }
            Err(report) => Err(Refusal::Config(report.to_string())),
        };
        self.last_reload_error = switched.as_ref().err().map(Refusal::text);
        self.reload_failures += u64::from(switched.is_err());
        self.service_manager.reloaded(switched.is_ok());
        switched
    }

    /// Makes a configuration the running one. If the host cannot be brought to it, the one before is put back.
    async fn switch_to(&mut self, config: Config) -> Result<()> {
        let is_changed = config != self.config;
        let before = std::mem::replace(&mut self.config, config);
        let overrides = if is_changed { std::mem::take(&mut self.overrides) } else { self.overrides.clone() };
        if let Err(refused) = self.reconcile(&before).await {
            let failed = std::mem::replace(&mut self.config, before);
            self.overrides = overrides;
            if let Err(error) = self.reconcile(&failed).await {
                error!("cannot put the running configuration back: {error:#}");
            }
            return Err(refused);
        }
        if is_changed {
            self.loaded_at = Timestamp::now();
        }
        info!("{}", if is_changed { "reloaded" } else { "the file has not changed" });
        Ok(())
    }

    /// Brings the host from one configuration to the running one: API and attachments first, since they are what a
    /// host refuses. Also mends what has changed on the host meanwhile, an interface that was made anew for example.
    async fn reconcile(&mut self, before: &Config) -> Result<()> {
        self.tcp_api.follow(&self.config.api).await?;
        self.attach()?;
        if before.lb.interfaces != self.config.lb.interfaces {
            self.resolver = Resolver::new(self.config.lb.interfaces.clone())
                .context("cannot follow routes and neighbours")?;
            self.ways = self.resolver.ways();
        }
        self.watch_backends();
        self.resolver.first_round(NEIGHBOUR_WAIT).await;
        self.apply()?;
        self.look_at_host_ports();
        let Ours { added, .. } = self.assign_vips()?;
        tokio::spawn(async move { vip::announce(&added).await });
        self.judge_host_ports();
        Ok(())
    }
}
