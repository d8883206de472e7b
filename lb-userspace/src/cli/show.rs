//! `lb show`

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use reqwest::Method;
use serde_json::Value;

use super::{BAD_CONFIG, OK, Target, not_running};
use crate::api::client;
use crate::config;

#[derive(Debug, Args)]
pub(super) struct Show {
    /// Configuration file; without it, what runs now
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    target: Target,
}

impl Show {
    pub(super) async fn execute(&self) -> Result<u8> {
        match &self.config {
            Some(path) => match config::load(path) {
                Ok(loaded) => {
                    print!("{}", config::show(&loaded.config));
                    Ok(OK)
                }
                Err(report) => {
                    eprintln!("{report}");
                    Ok(BAD_CONFIG)
                }
            },
            None => self.show_running().await,
        }
    }

    async fn show_running(&self) -> Result<u8> {
        let instance = self.target.instance()?;
        let Some(reply) = client::ask(&instance.socket(), Method::GET, "/v1/config").await? else {
            return Ok(not_running(&instance));
        };
        let Some(toml) = reply.body.get("toml").and_then(Value::as_str) else {
            bail!("the instance did not say what it runs: {}", reply.error());
        };
        print!("{toml}");
        Ok(OK)
    }
}
