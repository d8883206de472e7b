//! The documentation and the schema say the same: each key with its default, and no example that would be refused.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::{VALID, accepted};
use crate::config::show;

const DOCUMENTS: [&str; 4] = ["README.md", "docs/configuration.md", "docs/operating.md", "docs/migration.md"];

fn document(name: &str) -> String {
    let repository: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the repository").into();
    std::fs::read_to_string(repository.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// What stands between the fences of a language.
fn blocks<'d>(document: &'d str, language: &str) -> Vec<&'d str> {
    let fence = format!("```{language}\n");
    document.split(fence.as_str()).skip(1).filter_map(|rest| rest.split("```").next()).collect()
}

/// Fills what a block leaves out, as its reader would.
fn completed(block: &str) -> Table {
    let mut whole: Table = block.parse().unwrap_or_else(|error| panic!("{error}\n{block}"));
    let base: Table = VALID.parse().expect("valid");
    let lb = table(&mut whole, "lb");
    lb.entry("interfaces").or_insert_with(|| base["lb"]["interfaces"].clone());
    let listeners = whole.get("listener").and_then(Value::as_array).cloned().unwrap_or_default();
    let sets = table(&mut whole, "backend_set");
    for listener in &listeners {
        let name = listener["backend_set"].as_str().expect("a name");
        table(sets, name);
    }
    if sets.is_empty() {
        table(sets, "web");
    }
    let mut unheard = Vec::new();
    for (name, set) in sets.iter_mut() {
        let listener = listeners.iter().find(|listener| listener["backend_set"].as_str() == Some(name));
        let port = complete(set.as_table_mut().expect("a table"), listener);
        if listener.is_none() {
            unheard.push((name.clone(), port));
        }
    }
    let listeners = whole.entry("listener").or_insert_with(|| Value::Array(Vec::new()));
    for (set, port) in unheard {
        let name = format!("for-{set}");
        let listener =
            toml::toml! { name = name address = "10.0.1.250" protocol = "tcp" port = port backend_set = set };
        listeners.as_array_mut().expect("an array").push(listener.into());
    }
    whole
}

/// Gives a set the backend and the check that it lacks; returns the port of its first backend.
fn complete(set: &mut Table, listener: Option<&Value>) -> i64 {
    let is_v6 = listener.is_some_and(|listener| listener["address"].as_str().unwrap_or("").contains(':'));
    let address = if is_v6 { "fd00:1::10" } else { "10.0.1.10" };
    let backends = set.entry("backend").or_insert_with(|| Value::Array(Vec::new()));
    let backends = backends.as_array_mut().expect("an array");
    let given = backends.first().and_then(|backend| backend["port"].as_integer());
    let port = given.or(listener.and_then(|one| one.get("port")?.as_integer())).unwrap_or(80);
    let is_backup = |backend: &Value| backend.get("backup").and_then(Value::as_bool) == Some(true);
    if backends.iter().all(is_backup) {
        backends.push(toml::toml! { address = address port = port }.into());
    }
    let check = table(set, "health_check");
    if check.is_empty() {
        check.insert("protocol".to_owned(), "tcp".into());
    }
    port
}

fn table<'t>(parent: &'t mut Table, key: &str) -> &'t mut Table {
    let value = parent.entry(key).or_insert_with(|| Value::Table(Table::new()));
    value.as_table_mut().unwrap_or_else(|| panic!("{key} is a table"))
}

#[test]
fn every_example_in_the_documents_is_valid() {
    for name in DOCUMENTS {
        let text = document(name);
        for block in blocks(&text, "toml") {
            // A whole file is judged as it stands.
            let is_whole = ["[lb]", "[[listener]]", "health_check]"].iter().all(|part| block.contains(part));
            let file = if is_whole { block.to_owned() } else { completed(block).to_string() };
            let loaded = super::result(&file).unwrap_or_else(|report| panic!("{name}:\n{block}\n{report}"));
            assert_eq!(loaded.warnings, [], "{name}:\n{block}");
        }
    }
    for name in ["docs/configuration.md", "docs/migration.md"] {
        assert!(blocks(&document(name), "toml").len() > 3, "{name} has no examples");
    }
}

/// One listener for a set of each protocol, nothing given that has a default.
const EVERY_PROTOCOL: [(&str, &str); 5] = [
    ("tcp", ""),
    ("udp", "request_data = \"aGk=\""),
    ("http", ""),
    ("https", ""),
    ("dns", "[backend_set.dns.health_check.dns]\nname = \"example.org\""),
];

/// Sections of the schema as the reference divides them: the keys, and what they hold in a file that is as short as
/// can be.
fn schema() -> BTreeMap<&'static str, BTreeMap<String, Value>> {
    let mut file = "[lb]\ninterfaces = [\"eth0\"]\n".to_owned();
    for (port, (protocol, more)) in (80..).zip(EVERY_PROTOCOL) {
        file += &format!(
            "[[listener]]\nname = \"{protocol}\"\naddress = \"10.0.1.100\"\nprotocol = \"tcp\"\nport = {port}\n\
             backend_set = \"{protocol}\"\n[[backend_set.{protocol}.backend]]\naddress = \"10.0.1.10\"\n\
             port = 8080\n[backend_set.{protocol}.health_check]\nprotocol = \"{protocol}\"\n{more}\n"
        );
    }
    let shown: Table = show(&accepted(&file).config).parse().expect("what is shown is TOML");
    let keys = |value: &Value| -> BTreeMap<String, Value> {
        let plain = |(_, value): &(&String, &Value)| {
            !value.is_table() && value.as_array().is_none_or(|array| !array.iter().any(Value::is_table))
        };
        let entries = value.as_table().expect("a table").iter().filter(plain);
        entries.map(|(key, value)| (key.clone(), value.clone())).collect()
    };
    let check = |protocol: &str| keys(&shown["backend_set"][protocol]["health_check"]);
    let without = |mut all: BTreeMap<String, Value>, known: &BTreeMap<String, Value>| {
        all.retain(|key, _| !known.contains_key(key));
        all
    };
    let dns = check("dns");
    let http = without(check("http"), &dns);
    let mut https = without(check("https"), &dns);
    https.retain(|key, _| !http.contains_key(key));
    let mut listener = keys(&shown["listener"][0]);
    // Shown instead of `port` for a range.
    listener.insert("ports".to_owned(), "".into());
    [
        ("[lb]", keys(&shown["lb"])),
        ("[api]", keys(&shown["api"])),
        ("[[listener]]", listener),
        ("[backend_set.NAME]", keys(&shown["backend_set"]["tcp"])),
        ("[[backend_set.NAME.backend]]", keys(&shown["backend_set"]["tcp"]["backend"][0])),
        ("[backend_set.NAME.health_check.dns]", keys(&shown["backend_set"]["dns"]["health_check"]["dns"])),
        ("`tcp`", without(check("tcp"), &dns)),
        ("`http`", http.into_iter().chain(https).collect()),
        ("[backend_set.NAME.health_check]", dns),
    ]
    .into()
}

/// The rows of the tables of keys below each heading: key and default, as they are written.
fn reference() -> BTreeMap<String, Vec<(String, String)>> {
    let text = document("docs/configuration.md");
    let mut sections: BTreeMap<String, Vec<_>> = BTreeMap::new();
    let (mut heading, mut is_of_keys) = (String::new(), false);
    for line in text.lines() {
        if let Some(title) = line.trim_start_matches('#').strip_prefix(' ').filter(|_| line.starts_with('#'))
        {
            heading = title.to_owned();
        }
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        match cells[..] {
            ["key", "default", ..] => is_of_keys = true,
            [key, default, values, meaning] if is_of_keys && key.starts_with('`') => {
                assert!(!values.is_empty() && !meaning.is_empty(), "{line}");
                let row = (key.trim_matches('`').to_owned(), default.to_owned());
                sections.entry(heading.clone()).or_default().push(row);
            }
            _ => is_of_keys &= line.starts_with('|'),
        }
    }
    sections
}

#[test]
fn the_reference_has_every_key_with_its_default_and_no_other() {
    let reference = reference();
    let mut defaults = 0;
    for (section, keys) in schema() {
        let (heading, rows) = reference
            .iter()
            .find(|(heading, _)| {
                heading.contains(&format!("{section}`")) || heading.contains(&format!("of {section}"))
            })
            .unwrap_or_else(|| panic!("no section {section} in {:?}", reference.keys()));
        let documented: BTreeSet<&str> = rows.iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(documented, keys.keys().map(String::as_str).collect(), "{heading}");
        for (key, default) in rows {
            let written = default.strip_prefix('`').and_then(|rest| rest.split('`').next()).unwrap_or("");
            // A default that depends on other keys is told in words.
            if let Ok(parsed) = format!("value = {written}").parse::<Table>() {
                assert_eq!(parsed["value"], keys[key], "{heading}: {key}");
                defaults += 1;
            }
        }
    }
    assert!(defaults > 45, "only {defaults} defaults were compared");
}
