//! `lb events`

use anyhow::{Result, bail};
use clap::Args;
use reqwest::Method;
use serde_json::Value;

use super::{OK, Target, not_running};
use crate::api::client;

#[derive(Debug, Args)]
pub(super) struct Events {
    /// Print them as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: Target,
}

impl Events {
    pub(super) async fn execute(&self) -> Result<u8> {
        let instance = self.target.instance()?;
        let Some(reply) = client::ask(&instance.socket(), Method::GET, "/v1/events").await? else {
            return Ok(not_running(&instance));
        };
        if !reply.is_success() {
            bail!("the instance did not tell its events: {}", reply.error());
        }
        if self.json {
            println!("{:#}", reply.body);
            return Ok(OK);
        }
        for event in reply.body.get("events").and_then(Value::as_array).into_iter().flatten() {
            let field = |name: &str| event.get(name).and_then(Value::as_str).unwrap_or("-");
            println!(
                "{}  {} {}  {}  {} {} > {}  on {}",
                field("timestamp"),
                field("kind"),
                field("reason"),
                field("listener"),
                field("protocol"),
                field("source"),
                field("destination"),
                field("interface")
            );
        }
        Ok(OK)
    }
}
