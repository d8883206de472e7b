//! `lb diagnose`

use anyhow::{Context, Result};
use clap::Args;
use reqwest::Method;
use serde::Deserialize;

use super::paint::Paint;
use super::{Target, UNKNOWN, not_running, status};
use crate::api::client;

#[derive(Debug, Args)]
pub(super) struct Diagnose {
    /// Name of a backend set; without it, all of them
    #[arg(value_name = "SET")]
    set: Option<String>,
    /// Print the findings as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: Target,
}

/// What this command needs of the answer.
#[derive(Debug, Deserialize)]
struct Diagnosis {
    status: String,
    reason: String,
    findings: Vec<Finding>,
}

/// What this command prints of a finding.
#[derive(Debug, Deserialize)]
struct Finding {
    level: String,
    backend_set: String,
    #[serde(default)]
    backends: Vec<String>,
    text: String,
    #[serde(default)]
    advice: Vec<String>,
    #[serde(default, rename = "try")]
    commands: Vec<String>,
}

impl Diagnose {
    pub(super) async fn execute(&self) -> Result<u8> {
        let instance = self.target.instance()?;
        let path = match &self.set {
            Some(set) => format!("/v1/diagnose/{}", client::segment(set)),
            None => "/v1/diagnose".to_owned(),
        };
        let Some(reply) = client::ask(&instance.socket(), Method::GET, &path).await? else {
            return Ok(not_running(&instance));
        };
        if !reply.is_success() {
            eprintln!("lb: {}", reply.error());
            return Ok(UNKNOWN);
        }
        let diagnosis: Diagnosis = serde_json::from_value(reply.body.clone())
            .context("the instance answered with another kind of diagnosis")?;
        if self.json {
            println!("{:#}", reply.body);
        } else {
            print(&diagnosis, &Paint::for_stdout());
        }
        Ok(status::exit_status(&diagnosis.status))
    }
}

fn print(diagnosis: &Diagnosis, paint: &Paint) {
    println!("{} {}", paint.level(&diagnosis.status), diagnosis.reason);
    for finding in &diagnosis.findings {
        let whom = match finding.backends.as_slice() {
            [] => String::new(),
            backends => format!(" ({})", backends.join(", ")),
        };
        println!("\n{} {}{whom}: {}", paint.level(&finding.level), finding.backend_set, finding.text);
        for advice in &finding.advice {
            println!("         - {advice}");
        }
        for command in &finding.commands {
            println!("         try: {command}");
        }
    }
    if diagnosis.findings.is_empty() {
        println!("nothing found that is not as it should be");
    }
}
