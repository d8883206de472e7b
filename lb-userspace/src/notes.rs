//! What an instance notes in its run directory for the next controller: small files of JSON, each replaced in one
//! step.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;

/// The addresses that were added to the host.
pub const ASSIGNED: &str = "assigned.json";

/// The life-cycle changes made at run time.
pub const LIFE_CYCLE: &str = "life-cycle.json";

/// Replaces a note, or makes it.
///
/// # Errors
///
/// If it cannot be written; then the one before stays.
pub fn replace(run_dir: &Path, name: &str, note: &impl Serialize) -> io::Result<()> {
    fs::create_dir_all(run_dir)?;
    let temporary = run_dir.join(unfinished(name));
    let mut file = File::create(&temporary)?;
    serde_json::to_writer_pretty(&mut file, note)?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    fs::rename(&temporary, run_dir.join(name))
}

/// Removes a note, if it is there.
///
/// # Errors
///
/// If it cannot be removed.
pub fn remove(run_dir: &Path, name: &str) -> io::Result<()> {
    match fs::remove_file(run_dir.join(name)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Names of what may be left of an instance without a data plane: its life-cycle changes, and notes that a process was
/// killed over. The record of its addresses goes with the last of them.
pub fn left_over() -> impl Iterator<Item = String> {
    [ASSIGNED, LIFE_CYCLE].map(unfinished).into_iter().chain([LIFE_CYCLE.to_owned()])
}

fn unfinished(name: &str) -> String {
    format!("{name}.new")
}
