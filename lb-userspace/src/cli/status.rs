//! `lb status`

use std::fmt::Write as _;

use anyhow::{Context, Result, bail};
use clap::Args;
use reqwest::Method;

use super::paint::Paint;
use super::{Target, not_running};
use crate::api::client;
use crate::status::{BackendStatus, InterfaceStatus, ListenerStatus, SetStatus, Status as Document};

#[derive(Debug, Args)]
pub(super) struct Status {
    /// Print it as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: Target,
}

impl Status {
    pub(super) async fn execute(&self) -> Result<u8> {
        let instance = self.target.instance()?;
        let Some(reply) = client::ask(&instance.socket(), Method::GET, "/v1/status").await? else {
            return Ok(not_running(&instance));
        };
        if !reply.is_success() {
            bail!("the instance did not give its status: {}", reply.error());
        }
        let status: Document = serde_json::from_value(reply.body.clone())
            .context("the instance answered with another kind of status")?;
        if self.json {
            println!("{:#}", reply.body);
        } else {
            print!("{}", render(&status, &Paint::for_stdout()));
        }
        Ok(exit_status(&status.status))
    }
}

/// The contract's exit status of a level.
pub(super) fn exit_status(level: &str) -> u8 {
    match level {
        "OK" => 0,
        "WARNING" => 1,
        "CRITICAL" => 2,
        _ => 3,
    }
}

fn render(status: &Document, paint: &Paint) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write_status(&mut text, status, paint);
    text
}

fn write_status(text: &mut String, status: &Document, paint: &Paint) -> std::fmt::Result {
    writeln!(text, "{} instance {}: {}", paint.level(&status.status), status.instance, status.reason)?;
    writeln!(text, "         {} loaded {}", status.config.file, status.config.loaded_at)?;
    if let Some(error) = &status.config.last_reload_error {
        writeln!(text, "         the last reload was refused: {}", error.lines().next().unwrap_or_default())?;
    }
    for interface in &status.interfaces {
        let InterfaceStatus { name, mode, program_id } = interface;
        if mode == "gone" {
            writeln!(text, "         {name} is gone: nothing comes in by it")?;
        } else {
            writeln!(text, "         {name} ({mode} XDP, program {program_id})")?;
        }
    }
    for listener in &status.listeners {
        write_listener(text, listener, paint)?;
    }
    for set in &status.backend_sets {
        write_set(text, set, paint)?;
    }
    let drops: Vec<String> = status
        .drops
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(name, count)| format!("{name} {count}"))
        .collect();
    if !drops.is_empty() {
        writeln!(text, "\ndrops: {}", drops.join(", "))?;
    }
    Ok(())
}

fn write_listener(text: &mut String, listener: &ListenerStatus, paint: &Paint) -> std::fmt::Result {
    writeln!(
        text,
        "\n{} listener {}: {} {} {} -> {}",
        paint.level(&listener.status),
        listener.name,
        listener.protocol,
        listener.address,
        ports(listener),
        listener.backend_set
    )?;
    let ListenerStatus { active_flows, new_flows, packets, bytes, .. } = listener;
    writeln!(
        text,
        "         {active_flows} flows, {new_flows} since the start, {packets} packets, {bytes} bytes"
    )
}

fn ports(listener: &ListenerStatus) -> String {
    match listener.ports.split_once('-') {
        _ if listener.port == 0 => "every port".to_owned(),
        Some((first, last)) if first != last => format!("ports {first}-{last}"),
        _ => format!("port {}", listener.port),
    }
}

fn write_set(text: &mut String, set: &SetStatus, paint: &Paint) -> std::fmt::Result {
    writeln!(text, "\n{} backend set {}: {}", paint.level(&set.status), set.name, set.reason)?;
    for backend in &set.backends {
        let BackendStatus { name, status, state, active_flows, new_flows, weight, .. } = backend;
        let mark = if backend.in_rotation { "in rotation" } else { "out" };
        writeln!(
            text,
            "  {} {name:<24} {state:<8} {mark:<11} weight {weight}, {active_flows} flows, {new_flows} since the start",
            paint.level(status)
        )?;
        if status != "OK" {
            writeln!(text, "           {}", backend.result)?;
        }
        if let Some(problem) = &backend.next_hop_problem {
            writeln!(text, "           {problem}")?;
        }
    }
    Ok(())
}
