//! `lb doctor`

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use serde_json::json;

use super::paint::Paint;
use super::{FAILED, OK, UNFIT};
use crate::doctor::{self, Finding, Grade};

#[derive(Debug, Args)]
pub(super) struct Doctor {
    /// Configuration file; without it, the host is examined by itself
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print the findings as JSON
    #[arg(long)]
    json: bool,
}

impl Doctor {
    pub(super) async fn execute(&self) -> Result<u8> {
        let examination = doctor::examine(self.config.as_deref()).await?;
        if self.json {
            println!("{:#}", json!(examination));
        } else {
            let paint = Paint::for_stdout();
            for finding in &examination.findings {
                print!("{}", describe(finding, &paint));
            }
            println!("\n{} {}", paint.level(level(examination.verdict)), verdict(examination.verdict));
        }
        Ok(match examination.verdict {
            Grade::Ok | Grade::Note => OK,
            Grade::Warning => FAILED,
            Grade::Unfit => UNFIT,
        })
    }
}

/// The word of a grade, of which the levels of health have the colours.
const fn level(grade: Grade) -> &'static str {
    match grade {
        Grade::Ok => "OK",
        Grade::Note => "note",
        Grade::Warning => "WARNING",
        Grade::Unfit => "CRITICAL",
    }
}

const fn verdict(grade: Grade) -> &'static str {
    match grade {
        Grade::Ok | Grade::Note => "this host is fit for lb",
        Grade::Warning => "this host is fit for lb, but for the warnings",
        Grade::Unfit => "this host is not fit for lb",
    }
}

fn describe(finding: &Finding, paint: &Paint) -> String {
    let subject = finding.subject.as_ref().map(|subject| format!("{subject}: ")).unwrap_or_default();
    let line =
        format!("{} {:<12} {subject}{}\n", paint.level(level(finding.grade)), finding.check, finding.text);
    match &finding.fix {
        Some(fix) if finding.grade > Grade::Ok => format!("{line}         {:<12} fix: {fix}\n", ""),
        _ => line,
    }
}
