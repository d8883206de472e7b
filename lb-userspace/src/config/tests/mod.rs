//! Each rule by itself: a small valid file, one thing made wrong, and exactly one error about it.

mod between_sections;
mod checks;
mod documents;
mod host;
mod keys;
mod show;
mod structure;

use super::{Diagnostic, HostFacts, Loaded, Report, judge};

/// One listener, two backends, a TCP check.
const VALID: &str = r#"
[lb]
interfaces = ["eth0"]

[[listener]]
name = "web"
address = "10.0.1.100"
protocol = "tcp"
port = 80
backend_set = "web"

[backend_set.web]

[[backend_set.web.backend]]
address = "10.0.1.10"
port = 8080

[[backend_set.web.backend]]
address = "10.0.1.11"
port = 8080

[backend_set.web.health_check]
protocol = "tcp"
"#;

/// A second listener, to be put behind [`VALID`] and changed.
const OTHER_LISTENER: &str = r#"
[[listener]]
name = "other"
address = "10.0.1.100"
protocol = "tcp"
port = 81
backend_set = "web"
"#;

/// [`VALID`] with pieces replaced, each of which must be there.
fn edited(edits: &[(&str, &str)]) -> String {
    edit(VALID, edits)
}

fn edit(text: &str, edits: &[(&str, &str)]) -> String {
    edits.iter().fold(text.to_owned(), |text, (old, new)| {
        assert!(text.contains(old), "{old:?} is not in the text");
        text.replacen(old, new, 1)
    })
}

fn result(text: &str) -> Result<Loaded, Report> {
    judge(text, "lb.toml", None)
}

fn result_on(host: &dyn HostFacts, text: &str) -> Result<Loaded, Report> {
    judge(text, "lb.toml", Some(host))
}

#[track_caller]
fn accepted(text: &str) -> Loaded {
    result(text).unwrap_or_else(|report| panic!("refused:\n{report}\n{text}"))
}

#[track_caller]
fn refused(text: &str) -> Report {
    result(text).expect_err(text)
}

/// The error of a text that has one and no more.
#[track_caller]
fn only_error(text: &str) -> Diagnostic {
    let mut errors = refused(text).errors;
    assert_eq!(errors.len(), 1, "{errors:#?}\n{text}");
    errors.remove(0)
}

/// Asserts that a text has one error, at `path` and where `place` stands, and that it mentions all of `words`.
#[track_caller]
fn assert_only_error(text: &str, path: &str, place: &str, words: &[&str]) {
    assert_is(&only_error(text), text, path, place, words);
}

#[track_caller]
fn assert_is(error: &Diagnostic, text: &str, path: &str, place: &str, words: &[&str]) {
    assert_eq!(error.path, path, "{error}");
    let line = text.lines().nth(error.line - 1).expect("the line exists");
    let rest: String = line.chars().skip(error.column - 1).collect();
    assert!(rest.starts_with(place), "points to {rest:?}, not to {place:?}\n{error}");
    for word in words {
        assert!(error.to_string().contains(word), "{word:?} is not mentioned\n{error}");
    }
}

#[test]
fn the_valid_file_is_valid() {
    let loaded = accepted(VALID);
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
}
