//! From one configuration to the next.

use anyhow::{Context, Result};
use jiff::Timestamp;
use tracing::{error, info, warn};

use super::{Controller, NEIGHBOUR_WAIT, load};
use crate::config::{self, Config};
use crate::control::features::features;
use crate::control::overrides::Overrides;
use crate::instance::Instance;
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
            Ok(_) => {}
            Err(Refusal::Config(report)) => {
                warn!("the file was refused, the running configuration stays:\n{report}")
            }
            Err(Refusal::Host(error)) => error!("the reload failed: {error:#}"),
        }
    }

    /// Reads the file again; gives back what is suspicious about it. One that is refused, by itself or by the host,
    /// changes nothing but what the status says of it.
    pub(super) async fn reload(&mut self) -> Result<Vec<String>, Refusal> {
        self.service_manager.reloading();
        let switched = match config::load(&self.file) {
            Ok(loaded) => {
                let mut warnings: Vec<String> = loaded.warnings.iter().map(ToString::to_string).collect();
                warnings.extend(takes_effect_later(self.dataplane.room, &loaded.config));
                for warning in &warnings {
                    warn!("{warning}");
                }
                self.switch_to(loaded.config).await.map_err(Refusal::Host).map(|()| warnings)
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
            self.note_overrides();
        }
        info!("{}", if is_changed { "reloaded" } else { "the file has not changed" });
        Ok(())
    }

    /// Brings the host from one configuration to the running one: API and attachments first, since they are what a
    /// host refuses. Also mends what has changed on the host meanwhile, an interface that was made anew for example.
    async fn reconcile(&mut self, before: &Config) -> Result<()> {
        self.tcp_api.follow(&self.config.api).await?;
        self.renew()?;
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

    /// Loads the programs anew where the running ones were made without something that the configuration uses. Maps and flows
    /// stay, as when another controller takes over; [`Controller::attach`] puts the new programs in the place of the old ones.
    fn renew(&mut self) -> Result<()> {
        let wanted = features(&self.config);
        if self.dataplane.features.include(wanted) {
            return Ok(());
        }
        let features = self.dataplane.features.and(wanted);
        let (mut dataplane, fragments) = load(&self.instance, &self.config, features, self.packet_log)
            .context("cannot load the programs for what the configuration has come to use")?;
        self.flows.follow(dataplane.take_collector().context("the data plane was taken apart")?);
        self.fragments = fragments;
        // Whether state was taken over is told of the start.
        dataplane.origin = self.dataplane.origin;
        self.dataplane = dataplane;
        info!("loaded the programs anew, with what the configuration has come to use");
        Ok(())
    }

    /// Lets the next controller know of the life-cycle changes made at run time.
    pub(super) fn note_overrides(&self) {
        if let Err(error) = self.overrides.note(&self.instance.run_dir(), &self.config) {
            warn!("a restart will forget the life-cycle changes made by request: {error:#}");
        }
    }
}

/// What a reload cannot change.
fn takes_effect_later(room: u32, config: &Config) -> Option<String> {
    let wanted = config.lb.max_connections;
    (wanted != room).then(|| {
        format!(
            "lb.max_connections = {wanted}: the maps were made with room for {room} flows and keep it; this takes \
             effect after `lb detach` and a new start"
        )
    })
}

/// Life-cycle changes that the controller before was asked for. What cannot be read is no reason not to start.
pub(super) fn recall(instance: &Instance, config: &Config) -> Overrides {
    let recalled = Overrides::recall(&instance.run_dir(), config).unwrap_or_else(|error| {
        warn!("life-cycle changes made before the restart are forgotten: {error:#}");
        Overrides::default()
    });
    for backend in recalled.names() {
        info!(backend, "its life-cycle was changed by request before the restart, and stays so");
    }
    recalled
}
