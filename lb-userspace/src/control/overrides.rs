//! Life-cycle changes made at run time. They last until the next reload of a changed file.

use std::collections::BTreeMap;

use crate::api::Action;
use crate::config::Config;

/// Changes by set and backend name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    backends: BTreeMap<(String, String), Change>,
}

/// What was changed about a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Change {
    drain: Option<bool>,
    offline: Option<bool>,
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
        let source = "[lb]\ninterfaces = [\"eth0\"]\n\
            [backend_set.web]\n[[backend_set.web.backend]]\nname = \"a\"\naddress = \"10.0.1.10\"\nport = 80\n\
            drain = true\n[backend_set.web.health_check]\nprotocol = \"tcp\"\n";
        crate::config::parse(source, "test.toml").unwrap_or_else(|report| panic!("{report}")).config
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
}
