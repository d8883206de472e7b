//! `lb doctor`: examines the host by itself and for a configuration. Nothing on the host is changed; neighbours are
//! asked for, as any packet to them would.
//!
//! Each part first gathers facts, then judges them, so that the judgement can be tested for hosts that are not at
//! hand: [`host`] the kernel and this process, [`interface`] the network cards, [`routes`] the ways.

pub mod host;
pub mod interface;
pub mod routes;

use std::path::Path;

use anyhow::Result;
use serde::Serialize;

use crate::config::{self, Config, Report, XdpMode};
use crate::network::nic::{self, Nic};

/// How grave a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Grade {
    /// As it should be.
    Ok,
    /// Worth knowing; needs nothing.
    Note,
    /// `lb` runs, but not as well as it could, or not for everybody.
    Warning,
    /// `lb run` fails here, or forwards nothing.
    Unfit,
}

impl Grade {
    /// The word for it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Unfit => "unfit",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How grave it is.
    pub grade: Grade,
    /// What was looked at: a stable word.
    pub check: &'static str,
    /// Interface, backend or set; null for the host as a whole.
    pub subject: Option<String>,
    /// What was found.
    pub text: String,
    /// What to do about it; null where nothing is to be done.
    pub fix: Option<String>,
}

impl Finding {
    fn new(grade: Grade, check: &'static str, text: impl Into<String>) -> Self {
        Self { grade, check, subject: None, text: text.into(), fix: None }
    }

    fn of(self, subject: impl Into<String>) -> Self {
        Self { subject: Some(subject.into()), ..self }
    }

    fn fix(self, fix: impl Into<String>) -> Self {
        Self { fix: Some(fix.into()), ..self }
    }
}

/// Everything that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Examination {
    /// Version of this shape: 1.
    pub version: u32,
    /// The gravest grade.
    pub verdict: Grade,
    /// In the order in which they were looked at.
    pub findings: Vec<Finding>,
}

impl Examination {
    fn of(findings: Vec<Finding>) -> Self {
        let verdict = findings.iter().map(|finding| finding.grade).max().unwrap_or(Grade::Ok);
        Self { version: 1, verdict, findings }
    }
}

/// Examines the host, and whether it suits the configuration in a file.
///
/// # Errors
///
/// If the host does not let itself be looked at.
pub async fn examine(file: Option<&Path>) -> Result<Examination> {
    let mut findings = Vec::new();
    let config = match file.map(config::load) {
        None => None,
        Some(Ok(loaded)) => {
            for warning in &loaded.warnings {
                findings.push(of_diagnostic(Grade::Warning, warning));
            }
            Some(loaded.config)
        }
        Some(Err(report)) => {
            findings.extend(of_report(&report));
            None
        }
    };
    let host = host::Host::look()?;
    findings.extend(host.judge(config.as_ref().is_none_or(|config| config.lb.assign_vips)));
    let nics = nic::list().await?;
    let mode = config.as_ref().map_or(XdpMode::Auto, |config| config.lb.xdp_mode);
    let examined = subjects(&nics, config.as_ref());
    for nic in &examined {
        findings.extend(interface::judge(nic, mode, host.cpus));
    }
    findings.extend(interface::compare(&examined));
    if let Some(config) = &config {
        findings.extend(routes::judge(config, &routes::Facts::gather(config).await?));
    }
    Ok(Examination::of(findings))
}

/// The interfaces of the configuration; without one, those that it could name.
fn subjects<'n>(nics: &'n [Nic], config: Option<&Config>) -> Vec<&'n Nic> {
    match config {
        Some(config) => nics.iter().filter(|nic| config.lb.interfaces.contains(&nic.name)).collect(),
        None => nics.iter().filter(|nic| nic.is_ethernet && nic.is_up && nic.controller.is_none()).collect(),
    }
}

fn of_report(report: &Report) -> Vec<Finding> {
    let errors = report.errors.iter().map(|error| of_diagnostic(Grade::Unfit, error));
    errors.chain(report.warnings.iter().map(|warning| of_diagnostic(Grade::Warning, warning))).collect()
}

fn of_diagnostic(grade: Grade, diagnostic: &config::Diagnostic) -> Finding {
    let finding = Finding::new(grade, "config", diagnostic.message.clone()).of(diagnostic.path.clone());
    let allowed = diagnostic.allowed.as_ref().map(|allowed| format!("allowed: {allowed}"));
    let remedy = diagnostic.suggestion.as_ref().map(|suggestion| format!("write {suggestion}")).or(allowed);
    finding.fix(remedy.unwrap_or_else(|| "`lb check` shows the place".to_owned()))
}
