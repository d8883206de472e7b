//! A configuration as TOML, every default spelled out.

use super::schema::Config;

/// The text of a file that means exactly `config`.
pub fn show(config: &Config) -> String {
    toml::to_string(config).expect("every field of Config has a TOML form; the tests go through all of them")
}
