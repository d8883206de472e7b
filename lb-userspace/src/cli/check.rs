//! `lb check`

use anyhow::Result;
use clap::Args;
use serde_json::json;

use super::{BAD_CONFIG, ConfigFile, OK};
use crate::config;

#[derive(Debug, Args)]
pub(super) struct Check {
    #[command(flatten)]
    file: ConfigFile,
    /// Print the findings as JSON
    #[arg(long)]
    json: bool,
}

impl Check {
    pub(super) fn execute(&self) -> Result<u8> {
        let judged = config::load(&self.file.config);
        let document = match &judged {
            Ok(loaded) => json!(loaded),
            Err(report) => json!(report),
        };
        if self.json {
            println!("{document:#}");
        }
        match judged {
            Ok(loaded) => {
                if !self.json {
                    for warning in &loaded.warnings {
                        eprintln!("{warning}");
                    }
                    println!("{}: ok", self.file.config.display());
                }
                Ok(OK)
            }
            Err(report) => {
                if !self.json {
                    eprintln!("{report}");
                }
                Ok(BAD_CONFIG)
            }
        }
    }
}
