//! Commands that carry one question to a running instance: `lb reload`, `drain`, `undrain`, `offline`, `online`
//! and `history`.

use anyhow::{Result, bail};
use clap::Args;
use reqwest::Method;
use serde_json::Value;

use super::{BAD_CONFIG, FAILED, OK, Target, not_running};
use crate::api::{Action, client};
use crate::instance::Instance;

/// `lb reload`
pub(super) async fn reload(instance: &Instance) -> Result<u8> {
    let Some(reply) = client::ask(&instance.socket(), Method::POST, "/v1/reload").await? else {
        return Ok(not_running(instance));
    };
    if reply.is_success() {
        for warning in reply.body.get("warnings").and_then(Value::as_array).into_iter().flatten() {
            eprintln!("{}", warning.as_str().unwrap_or_default());
        }
        return Ok(OK);
    }
    match reply.body.get("report").and_then(Value::as_str) {
        Some(report) => {
            eprintln!("{report}");
            eprintln!("lb: the file was refused, the running configuration stays");
            Ok(BAD_CONFIG)
        }
        None => bail!("the reload failed: {}", reply.error()),
    }
}

/// Names a backend of a running instance.
#[derive(Debug, Args)]
pub(super) struct Backend {
    /// SET/BACKEND, both by their names in the configuration
    #[arg(value_name = "SET/BACKEND")]
    name: String,
    #[command(flatten)]
    target: Target,
}

impl Backend {
    pub(super) async fn execute(&self, action: Action) -> Result<u8> {
        let instance = self.target.instance()?;
        let Some((set, backend)) = self.name.split_once('/') else {
            bail!("`{}`: expected SET/BACKEND, for example web/10.0.1.10:8080", self.name);
        };
        let path =
            format!("/v1/backends/{}/{}/{}", client::segment(set), client::segment(backend), action.word());
        let Some(reply) = client::ask(&instance.socket(), Method::POST, &path).await? else {
            return Ok(not_running(&instance));
        };
        if reply.is_success() {
            return Ok(OK);
        }
        eprintln!("lb: {}", reply.error());
        Ok(FAILED)
    }
}

/// `lb history`
#[derive(Debug, Args)]
pub(super) struct History {
    /// SET or SET/BACKEND; without it, everything
    #[arg(value_name = "SET[/BACKEND]")]
    name: Option<String>,
    /// Print it as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: Target,
}

impl History {
    pub(super) async fn execute(&self) -> Result<u8> {
        let instance = self.target.instance()?;
        let path = match self.name.as_deref().map(|name| name.split_once('/').unwrap_or((name, ""))) {
            None => "/v1/history".to_owned(),
            Some((set, "")) => format!("/v1/history/{}", client::segment(set)),
            Some((set, backend)) => {
                format!("/v1/history/{}/{}", client::segment(set), client::segment(backend))
            }
        };
        let Some(reply) = client::ask(&instance.socket(), Method::GET, &path).await? else {
            return Ok(not_running(&instance));
        };
        if !reply.is_success() {
            eprintln!("lb: {}", reply.error());
            return Ok(FAILED);
        }
        if self.json {
            println!("{:#}", reply.body);
            return Ok(OK);
        }
        for transition in reply.body.get("transitions").and_then(Value::as_array).into_iter().flatten() {
            let field = |name: &str| transition.get(name).and_then(Value::as_str).unwrap_or("-");
            println!(
                "{}  {}/{}  {} -> {}  {}",
                field("timestamp"),
                field("backend_set"),
                field("backend"),
                field("from"),
                field("to"),
                field("reason")
            );
        }
        Ok(OK)
    }
}
