//! The configuration file: what may stand in it, what it means, and everything that is wrong with it at once.
//!
//! The text goes through these steps, each of which adds to the same [findings](Report) and leaves the rest
//! to be judged: TOML syntax, each section by itself, the rules between sections, and the host the file is for.
//! A file without an error is a [`Config`] with every default spelled out.

mod backend_set;
mod dns_name;
mod document;
mod facts;
mod findings;
mod health_check;
mod host;
mod http;
mod instance;
mod listener;
mod port_prefix;
mod problem;
mod reader;
mod report;
mod rules;
mod scalar;
pub mod schema;
mod sections;
mod show;
mod source;
mod syntax;
#[cfg(test)]
mod tests;
mod words;

use std::fs::File;
use std::io::Read;
use std::path::Path;

use toml::de::DeTable;

pub use host::{HostFacts, ThisHost};
pub use port_prefix::PortPrefix;
pub use report::{Diagnostic, Report, Severity};
pub use schema::*;
pub use show::show;

use findings::Findings;
use source::Source;

/// Largest configuration file, in bytes: ten times what the largest allowed configuration needs.
const MAX_FILE: u64 = 64 << 20;

/// An accepted file.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    /// What it says.
    pub config: Config,
    /// What is suspicious about it, in the order of the file.
    pub warnings: Vec<Diagnostic>,
}

/// Reads a file and judges it, also by the host this program runs on.
///
/// # Errors
/// Everything that is wrong with the file, or why it cannot be read.
pub fn load(path: &Path) -> Result<Loaded, Report> {
    let name = path.display().to_string();
    let bytes = read(path).map_err(|error| Report::unreadable(&name, error))?;
    let text = String::from_utf8(bytes).map_err(|error| Report::not_utf8(&name, &error))?;
    parse_for(&text, &name, &ThisHost)
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes))
        .map_err(|error| error.to_string())?;
    if bytes.len() as u64 > MAX_FILE { Err("larger than 64 MiB".into()) } else { Ok(bytes) }
}

/// Judges a text by itself, whatever the host. `file_name` only appears in the diagnostics.
///
/// # Errors
/// Everything that is wrong with the text.
pub fn parse(source: &str, file_name: &str) -> Result<Loaded, Report> {
    judge(source, file_name, None)
}

/// Judges a text and whether it suits a host.
///
/// # Errors
/// Everything that is wrong with the text, interfaces that the host does not have and files that cannot be
/// used.
pub fn parse_for(source: &str, file_name: &str, host: &dyn HostFacts) -> Result<Loaded, Report> {
    judge(source, file_name, Some(host))
}

fn judge(text: &str, file_name: &str, host: Option<&dyn HostFacts>) -> Result<Loaded, Report> {
    let source = Source::new(file_name, text);
    let (root, syntax_errors) = DeTable::parse_recoverable(source.text);
    let findings = Findings::new(&source, &root, &syntax_errors);
    let mut config = None;
    if syntax::rest_is_sound(source.text, &root, &syntax_errors) {
        let (facts, complete) = sections::read(&findings);
        config = complete;
        rules::judge(&findings, &facts);
        if let Some(host) = host {
            host::judge(&findings, &facts, host);
        }
    }
    let report = findings.conclude();
    match config {
        Some(config) if report.errors.is_empty() => Ok(Loaded { config, warnings: report.warnings }),
        _ => Err(report),
    }
}
