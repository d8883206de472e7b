//! Reads tables key by key. What is refused is reported where it stands, and reading goes on: every reader
//! answers `None` for what it has reported.

use std::fmt::Display;
use std::ops::{Range, RangeInclusive};

use toml::de::{DeTable, DeValue};

use super::document::Path;
use super::findings::Findings;
use super::problem::{Problem, nearest, one_of};
use super::schema::Word;

/// One value of the document.
pub(super) struct Value<'r, 'd> {
    findings: &'r Findings<'d>,
    path: Path<'d>,
    span: Range<usize>,
    value: &'d DeValue<'d>,
}

/// One table of the document, and which of its keys have been asked for.
pub(super) struct Table<'r, 'd> {
    findings: &'r Findings<'d>,
    path: Path<'d>,
    span: Range<usize>,
    entries: &'d DeTable<'d>,
    known: Vec<&'static str>,
}

impl<'r, 'd> Value<'r, 'd> {
    /// Reports a problem with this value.
    pub(super) fn refuse<T>(&self, problem: Problem) -> Option<T> {
        self.findings.refuse(&self.path, self.span.clone(), Some(self.value), problem);
        None
    }

    /// Passes a good result on and reports a bad one.
    pub(super) fn accept<T>(&self, result: Result<T, Problem>) -> Option<T> {
        result.map_err(|problem| self.refuse::<T>(problem)).ok()
    }

    /// Reports that the value has the wrong type, with the value in the right one if that is obvious.
    fn wrong_type<T>(&self, expected: impl Display) -> Option<T> {
        let found = match self.value.type_str() {
            kind @ ("integer" | "array") => format!("an {kind}"),
            kind => format!("a {kind}"),
        };
        self.refuse(
            Problem::new(format!("wrong type: {found}"))
                .allowed(expected.to_string())
                .suggest_any(self.unquoted()),
        )
    }

    /// What is in a string, if it is a number or a boolean that needs no quotes.
    fn unquoted(&self) -> Option<&'d str> {
        let text = self.value.as_str()?;
        (text.parse::<i64>().is_ok() || text.parse::<bool>().is_ok()).then_some(text)
    }

    /// An integer within bounds.
    pub(super) fn integer<T>(&self, bounds: RangeInclusive<T>) -> Option<T>
    where
        T: TryFrom<i64> + PartialOrd + Display,
    {
        let allowed = || format!("an integer from {} to {}", bounds.start(), bounds.end());
        let Some(integer) = self.value.as_integer() else { return self.wrong_type(allowed()) };
        let number = i64::from_str_radix(integer.as_str(), integer.radix()).ok();
        match number.and_then(|number| T::try_from(number).ok()).filter(|number| bounds.contains(number)) {
            Some(number) => Some(number),
            None => self.refuse(Problem::new("out of range").allowed(allowed())),
        }
    }

    /// `true` or `false`.
    pub(super) fn boolean(&self) -> Option<bool> {
        self.value.as_bool().or_else(|| self.wrong_type("true or false"))
    }

    /// A string.
    pub(super) fn text(&self) -> Option<&'d str> {
        self.value.as_str().or_else(|| self.wrong_type("a string"))
    }

    /// A string, for a key that takes other types too: `allowed` says which.
    pub(super) fn text_or(&self, allowed: &str) -> Option<&'d str> {
        self.value.as_str().or_else(|| self.wrong_type(allowed))
    }

    /// A string that `parse` makes something of.
    pub(super) fn parsed<T>(&self, parse: impl FnOnce(&'d str) -> Result<T, Problem>) -> Option<T> {
        self.accept(parse(self.text()?))
    }

    /// One of an enumeration's words.
    pub(super) fn word<T: Word>(&self) -> Option<T> {
        self.word_among(T::ALL)
    }

    /// One of some words of an enumeration.
    pub(super) fn word_among<T: Word>(&self, values: &[T]) -> Option<T> {
        let allowed = || one_of(values.iter().map(|value| value.word()), "\"");
        let Some(text) = self.value.as_str() else { return self.wrong_type(allowed()) };
        if let Some(value) = values.iter().find(|value| value.word() == text) {
            return Some(*value);
        }
        let meant = nearest(text, values.iter().map(|value| value.word()));
        self.refuse(Problem::new("not one of the allowed words").allowed(allowed()).suggest_any(meant))
    }

    /// The string as it stands, for a key that takes other types too.
    pub(super) fn as_text(&self) -> Option<&'d str> {
        self.value.as_str()
    }

    /// An integer as it stands, for a key that takes other types too.
    pub(super) fn as_integer(&self) -> Option<i64> {
        let integer = self.value.as_integer()?;
        i64::from_str_radix(integer.as_str(), integer.radix()).ok()
    }

    /// An array; `None` if it is none, or if any element was refused.
    pub(super) fn list<T>(&self, mut element: impl FnMut(&Value<'r, 'd>) -> Option<T>) -> Option<Vec<T>> {
        let Some(elements) = self.value.as_array() else { return self.wrong_type("an array") };
        let read: Vec<Option<T>> = elements
            .iter()
            .enumerate()
            .map(|(index, value)| {
                element(&Value {
                    findings: self.findings,
                    path: self.path.then(index),
                    span: value.span(),
                    value: value.get_ref(),
                })
            })
            .collect();
        read.into_iter().collect()
    }

    /// A table.
    pub(super) fn table(&self) -> Option<Table<'r, 'd>> {
        self.table_or("a table")
    }

    /// A table; `allowed` says how to begin one.
    pub(super) fn table_or(&self, allowed: &str) -> Option<Table<'r, 'd>> {
        let Some(entries) = self.value.as_table() else { return self.wrong_type(allowed) };
        Some(Table {
            findings: self.findings,
            path: self.path.clone(),
            span: self.span.clone(),
            entries,
            known: Vec::with_capacity(16),
        })
    }
}

impl<'r, 'd> Table<'r, 'd> {
    /// The whole document.
    pub(super) fn root(findings: &'r Findings<'d>) -> Self {
        let root = findings.root();
        Self {
            findings,
            path: Path::default(),
            span: root.span(),
            entries: root.get_ref(),
            known: Vec::with_capacity(16),
        }
    }

    /// Where this table is.
    pub(super) fn path(&self) -> &Path<'d> {
        &self.path
    }

    /// Where to report what concerns more than one value.
    pub(super) fn findings(&self) -> &'r Findings<'d> {
        self.findings
    }

    /// The value of a key that may stand here.
    pub(super) fn get(&mut self, key: &'static str) -> Option<Value<'r, 'd>> {
        self.known.push(key);
        let value = self.entries.get(key)?;
        Some(Value {
            findings: self.findings,
            path: self.path.then(key),
            span: value.span(),
            value: value.get_ref(),
        })
    }

    /// Whether a key stands here.
    pub(super) fn has(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    /// A key that must stand here. `allowed` says what, for when it is missing.
    pub(super) fn required<T>(
        &mut self,
        key: &'static str,
        allowed: impl Into<String>,
        read: impl FnOnce(&Value<'r, 'd>) -> Option<T>,
    ) -> Option<T> {
        match self.get(key) {
            Some(value) => read(&value),
            None => self.missing(key, allowed),
        }
    }

    /// Reports a missing key.
    pub(super) fn missing<T>(&self, key: &'static str, allowed: impl Into<String>) -> Option<T> {
        let problem = Problem::new(format!("the required key `{key}` is missing")).allowed(allowed);
        self.findings.refuse(&self.path.then(key), self.span.clone(), None, problem);
        None
    }

    /// A key with a default.
    pub(super) fn optional<T>(
        &mut self,
        key: &'static str,
        default: T,
        read: impl FnOnce(&Value<'r, 'd>) -> Option<T>,
    ) -> Option<T> {
        match self.get(key) {
            Some(value) => read(&value),
            None => Some(default),
        }
    }

    /// A key whose value is one of the words of an enumeration.
    pub(super) fn optional_word<T: Word>(&mut self, key: &'static str, default: T) -> Option<T> {
        self.optional(key, default, |value| value.word())
    }

    /// A key that is `true` or `false`.
    pub(super) fn flag(&mut self, key: &'static str, default: bool) -> Option<bool> {
        self.optional(key, default, Value::boolean)
    }

    /// The tables of `[[key]]`, each with its place among them. A single `[key]` is reported, and read as if
    /// it were the first of several.
    pub(super) fn tables(&mut self, key: &'static str) -> Option<Vec<(usize, Table<'r, 'd>)>> {
        let Some(value) = self.get(key) else { return Some(Vec::new()) };
        if value.value.is_array() {
            let mut index = 0..;
            let tables = value.list(|element| Some((index.next()?, element.table())))?;
            return Some(tables.into_iter().filter_map(|(index, table)| Some((index, table?))).collect());
        }
        value.wrong_type::<()>(format!("an array of tables, each beginning with [[{}]]", value.path));
        if !value.value.is_table() {
            return None;
        }
        let first = Value { path: value.path.then(0), ..value };
        Some(vec![(0, first.table()?)])
    }

    /// All entries, for a table whose keys are names. They count as known.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&'d str, Range<usize>, Value<'r, 'd>)> {
        self.entries.iter().map(|(key, value)| {
            let name = key.get_ref().as_ref();
            let (path, span) = (self.path.then(name), value.span());
            (name, key.span(), Value { findings: self.findings, path, span, value: value.get_ref() })
        })
    }

    /// Reports every key that nobody asked for.
    pub(super) fn finish(self) {
        for (key, value) in self.entries {
            let name: &str = key.get_ref().as_ref();
            if self.known.contains(&name) {
                continue;
            }
            let mut known = self.known.clone();
            known.sort_unstable();
            let problem = Problem::new("unknown key")
                .allowed(one_of(&known, ""))
                .suggest_any(nearest(name, known.iter().copied()));
            self.findings.refuse(&self.path.then(name), key.span(), Some(value.get_ref()), problem);
        }
    }
}
