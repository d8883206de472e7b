//! Life-cycle changes made at run time. They last until the next reload of a changed file, also over restarts.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::api::Action;
use crate::config::{self, Config};
use crate::notes::{self, LIFE_CYCLE};

/// Changes by set and backend name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    backends: BTreeMap<(String, String), Change>,
}

/// What was changed about a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Change {
    drain: Option<bool>,
    offline: Option<bool>,
}

/// What stands in the run directory.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    /// The configuration that the changes were made to, as TOML: a later version may have keys that this one lacks.
    config: String,
    backends: Vec<NotedChange>,
}

#[derive(Debug, Serialize, Deserialize)]
struct NotedChange {
    set: String,
    backend: String,
    #[serde(flatten)]
    change: Change,
}

impl Overrides {
    /// Notes a change.
    ///
    /// # Errors
    ///
    /// If there is no such backend; says which there are.
    pub fn set(&mut self, config: &Config, set: &str, backend: &str, action: Action) -> Result<(), String> {
        let Some(found) = config.backend_sets.get(set) else {
            let names: Vec<&str> = config.backend_sets.keys().map(String::as_str).collect();
            return Err(format!("no backend set `{set}`; there are: {}", names.join(", ")));
        };
        if !found.backends.iter().any(|known| known.name == backend) {
            let names: Vec<&str> = found.backends.iter().map(|known| known.name.as_str()).collect();
            return Err(format!("no backend `{backend}` in set `{set}`; there are: {}", names.join(", ")));
        }
        let change = self.backends.entry((set.to_owned(), backend.to_owned())).or_default();
        match action {
            Action::Drain => change.drain = Some(true),
            Action::Undrain => change.drain = Some(false),
            Action::Offline => change.offline = Some(true),
            Action::Online => change.offline = Some(false),
        }
        Ok(())
    }

    /// Writes them down for the next controller, with the configuration they were made to; no changes are no file.
    ///
    /// # Errors
    ///
    /// If the run directory cannot be written.
    pub fn note(&self, run_dir: &Path, config: &Config) -> Result<()> {
        let noted = if self.backends.is_empty() {
            notes::remove(run_dir, LIFE_CYCLE)
        } else {
            let changes = self.backends.iter().map(|((set, backend), &change)| NotedChange {
                set: set.clone(),
                backend: backend.clone(),
                change,
            });
            let note = Note { config: config::show(config), backends: changes.collect() };
            notes::replace(run_dir, LIFE_CYCLE, &note)
        };
        noted.with_context(|| format!("cannot write {}", run_dir.join(LIFE_CYCLE).display()))
    }

    /// The changes that an earlier controller was asked for, if it ran the same configuration.
    ///
    /// # Errors
    ///
    /// If its note cannot be read.
    pub fn recall(run_dir: &Path, config: &Config) -> Result<Self> {
        let path = run_dir.join(LIFE_CYCLE);
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            text => text.with_context(|| format!("cannot read {}", path.display()))?,
        };
        let note: Note =
            serde_json::from_slice(&text).with_context(|| format!("{} is damaged", path.display()))?;
        let is_same = config::parse(&note.config, LIFE_CYCLE).is_ok_and(|noted| noted.config == *config);
        let changes = note.backends.into_iter().filter(|_| is_same);
        Ok(Self { backends: changes.map(|noted| ((noted.set, noted.backend), noted.change)).collect() })
    }

    /// The backends that are changed, as `SET/BACKEND`.
    pub fn names(&self) -> Vec<String> {
        self.backends.keys().map(|(set, backend)| format!("{set}/{backend}")).collect()
    }

    /// The configuration with these changes in it.
    pub fn applied_to(&self, config: &Config) -> Config {
        let mut config = config.clone();
        for ((set, name), change) in &self.backends {
            let Some(set) = config.backend_sets.get_mut(set) else { continue };
            for backend in set.backends.iter_mut().filter(|backend| backend.name == *name) {
                backend.drain = change.drain.unwrap_or(backend.drain);
                backend.offline = change.offline.unwrap_or(backend.offline);
            }
        }
        config
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        config_of(80)
    }

    fn config_of(port: u16) -> Config {
        let source = format!(
            "[lb]\ninterfaces = [\"eth0\"]\n\
            [backend_set.web]\n[[backend_set.web.backend]]\nname = \"a\"\naddress = \"10.0.1.10\"\nport = {port}\n\
            drain = true\n[backend_set.web.health_check]\nprotocol = \"tcp\"\n"
        );
        config::parse(&source, "test.toml").unwrap_or_else(|report| panic!("{report}")).config
    }

    #[test]
    fn a_change_wins_over_the_file_and_can_be_taken_back() {
        let config = config();
        let mut overrides = Overrides::default();
        let state = |overrides: &Overrides| {
            let applied = overrides.applied_to(&config);
            let backend = &applied.backend_sets["web"].backends[0];
            (backend.drain, backend.offline)
        };
        assert_eq!(state(&overrides), (true, false));
        overrides.set(&config, "web", "a", Action::Undrain).unwrap();
        overrides.set(&config, "web", "a", Action::Offline).unwrap();
        assert_eq!(state(&overrides), (false, true));
        overrides.set(&config, "web", "a", Action::Online).unwrap();
        assert_eq!(state(&overrides), (false, false));
    }

    #[test]
    fn an_unknown_name_is_answered_with_those_there_are() {
        let mut overrides = Overrides::default();
        let error = overrides.set(&config(), "wbe", "a", Action::Drain).unwrap_err();
        assert!(error.contains("wbe") && error.contains("web"), "{error}");
        let error = overrides.set(&config(), "web", "b", Action::Drain).unwrap_err();
        assert!(error.contains('b') && error.contains("there are: a"), "{error}");
        assert_eq!(overrides, Overrides::default());
    }

    #[test]
    fn the_next_controller_recalls_them_for_the_same_configuration_only() {
        let run_dir = std::env::temp_dir().join(format!("lb-overrides-{}", std::process::id()));
        let recall = |config: &Config| Overrides::recall(&run_dir, config).unwrap();
        assert_eq!(recall(&config()), Overrides::default(), "there is no note");
        let mut overrides = Overrides::default();
        overrides.set(&config(), "web", "a", Action::Offline).unwrap();
        overrides.set(&config(), "web", "a", Action::Undrain).unwrap();
        overrides.note(&run_dir, &config()).unwrap();
        assert_eq!(recall(&config()), overrides);
        assert_eq!(recall(&config_of(81)), Overrides::default(), "the file has changed");
        Overrides::default().note(&run_dir, &config()).unwrap();
        assert_eq!(fs::read_dir(&run_dir).unwrap().count(), 0);
        fs::write(run_dir.join(LIFE_CYCLE), "{").unwrap();
        let error = format!("{:#}", Overrides::recall(&run_dir, &config()).unwrap_err());
        assert!(error.contains("life-cycle.json"), "{error}");
        fs::remove_dir_all(&run_dir).unwrap();
    }
}
