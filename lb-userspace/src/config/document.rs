//! The TOML document with the position of everything in it, and paths through it.

use std::fmt;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// One step from a table to a key or from an array to an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step<'d> {
    Key(&'d str),
    /// Counted from 0.
    Element(usize),
}

impl<'d> From<&'d str> for Step<'d> {
    fn from(key: &'d str) -> Self {
        Self::Key(key)
    }
}

impl From<usize> for Step<'_> {
    fn from(index: usize) -> Self {
        Self::Element(index)
    }
}

/// The way from the top of the document to a value: `backend_set.web.backend[1].port`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Path<'d>(Vec<Step<'d>>);

/// Writes a path: `at!["listener", index, "port"]`.
macro_rules! at {
    ($($step:expr),* $(,)?) => {
        $crate::config::document::Path::default()$(.then($step))*
    };
}
pub(super) use at;

impl<'d> Path<'d> {
    /// This path and one more step.
    pub(super) fn then(&self, step: impl Into<Step<'d>>) -> Self {
        let mut steps = Vec::with_capacity(self.0.len() + 1);
        steps.extend_from_slice(&self.0);
        steps.push(step.into());
        Self(steps)
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (depth, step) in self.0.iter().enumerate() {
            match step {
                Step::Element(index) => write!(formatter, "[{index}]")?,
                Step::Key(key) => {
                    let dot = if depth == 0 { "" } else { "." };
                    match is_bare(key) {
                        true => write!(formatter, "{dot}{key}")?,
                        false => write!(formatter, "{dot}{key:?}")?,
                    }
                }
            }
        }
        Ok(())
    }
}

/// Whether TOML takes the key without quotes.
fn is_bare(key: &str) -> bool {
    !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
}

/// A value and its span, or the span of the nearest thing around the place where it would stand.
pub(super) struct Found<'d> {
    pub(super) span: Range<usize>,
    pub(super) value: Option<&'d DeValue<'d>>,
}

/// Looks a path up.
pub(super) fn find<'d>(root: &'d Spanned<DeTable<'d>>, path: &Path<'_>) -> Found<'d> {
    let mut span = root.span();
    let mut table = Some(root.get_ref());
    let mut value: Option<&DeValue<'_>> = None;
    for step in &path.0 {
        let next = match step {
            Step::Key(key) => table.and_then(|table| table.get(*key)),
            Step::Element(index) => match value {
                Some(DeValue::Array(elements)) => elements.get(*index),
                // A single table where an array of them belongs counts as its only element.
                Some(DeValue::Table(_)) if *index == 0 => continue,
                _ => None,
            },
        };
        let Some(next) = next else { return Found { span, value: None } };
        span = next.span();
        value = Some(next.get_ref());
        table = next.get_ref().as_table();
    }
    Found { span, value }
}

/// Calls `visit` for each value that a pattern matches: a path in which `*` is any key and `[]` any element.
pub(super) fn visit<'d>(
    root: &'d Spanned<DeTable<'d>>,
    pattern: &str,
    visit: &mut impl FnMut(Path<'d>, Range<usize>, &'d DeValue<'d>),
) {
    let steps: Vec<&str> = pattern
        .split('.')
        .flat_map(|key| [Some(key.trim_end_matches("[]")), key.ends_with("[]").then_some("[]")])
        .flatten()
        .collect();
    visit_table(root.get_ref(), Path::default(), &steps, visit);
}

fn visit_table<'d>(
    table: &'d DeTable<'d>,
    path: Path<'d>,
    steps: &[&str],
    visit: &mut impl FnMut(Path<'d>, Range<usize>, &'d DeValue<'d>),
) {
    let Some((first, rest)) = steps.split_first() else { return };
    for (key, value) in table.iter().filter(|(key, _)| *first == "*" || key.get_ref().as_ref() == *first) {
        visit_value(value, path.then(key.get_ref().as_ref()), rest, visit);
    }
}

fn visit_value<'d>(
    value: &'d Spanned<DeValue<'d>>,
    path: Path<'d>,
    steps: &[&str],
    visit: &mut impl FnMut(Path<'d>, Range<usize>, &'d DeValue<'d>),
) {
    match (steps, value.get_ref()) {
        ([], found) => visit(path, value.span(), found),
        (["[]", rest @ ..], DeValue::Array(elements)) => {
            for (index, element) in elements.iter().enumerate() {
                visit_value(element, path.then(index), rest, visit);
            }
        }
        (["[]", rest @ ..], DeValue::Table(_)) => visit_value(value, path.then(0), rest, visit),
        (["[]", ..], _) => {}
        (steps, DeValue::Table(table)) => visit_table(table, path, steps, visit),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "[[a.x.b]]\np = 1\n[[a.x.b]]\np = 2\n[a.y.b]\np = 3\n[a.z]\nb = 4\n";

    #[test]
    fn a_path_leads_to_its_value_or_to_what_surrounds_it() {
        let root = DeTable::parse(TEXT).unwrap();
        let found = find(&root, &at!["a", "x", "b", 1, "p"]);
        assert_eq!(&TEXT[found.span], "2");
        assert!(found.value.is_some());
        let missing = find(&root, &at!["a", "x", "b", 1, "q"]);
        assert_eq!((missing.span.start, missing.value.is_none()), (TEXT.rfind("[[a.x.b]]").unwrap(), true));
        let single = find(&root, &at!["a", "y", "b", 0, "p"]);
        assert_eq!(&TEXT[single.span], "3");
    }

    #[test]
    fn a_pattern_matches_any_key_and_element() {
        let root = DeTable::parse(TEXT).unwrap();
        let mut seen = Vec::new();
        visit(&root, "a.*.b[].p", &mut |path, span, _| seen.push(format!("{path} = {}", &TEXT[span])));
        assert_eq!(seen, ["a.x.b[0].p = 1", "a.x.b[1].p = 2", "a.y.b[0].p = 3"]);
    }

    #[test]
    fn a_path_quotes_what_is_no_bare_key() {
        assert_eq!(at!["a", "b c", 3, ""].to_string(), r#"a."b c"[3]."""#);
    }
}
