//! Collects what is wrong, so that one run over a file finds everything.

use std::cell::RefCell;
use std::collections::HashSet;
use std::ops::Range;

use serde_json::Value as Json;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::document::{Found, Path, find};
use super::problem::Problem;
use super::report::{Diagnostic, Report, Severity};
use super::source::Source;

/// The errors and warnings about one document so far.
pub(super) struct Findings<'d> {
    source: &'d Source<'d>,
    root: &'d Spanned<DeTable<'d>>,
    /// Lines that are no proper TOML: what the parser made of them is not judged any further.
    broken_lines: HashSet<usize>,
    /// With the byte offset of each.
    diagnostics: RefCell<Vec<(usize, Diagnostic)>>,
}

impl<'d> Findings<'d> {
    /// Starts with the errors of TOML syntax, of which each line shows its first.
    pub(super) fn new(
        source: &'d Source<'d>,
        root: &'d Spanned<DeTable<'d>>,
        syntax_errors: &[toml::de::Error],
    ) -> Self {
        let mut findings =
            Self { source, root, broken_lines: HashSet::new(), diagnostics: RefCell::default() };
        for error in syntax_errors {
            let span = error.span().unwrap_or(0..0);
            let written = source.text.get(span.clone()).filter(|text| !text.trim().is_empty());
            let message = match written {
                Some(written) => format!("invalid TOML at `{}`: {}", written.escape_debug(), error.message()),
                None => format!("invalid TOML: {}", error.message()),
            };
            if findings.broken_lines.insert(source.position(span.start).line) {
                findings.push(Severity::Error, span, String::new(), None, Problem::new(message));
            }
        }
        findings
    }

    /// The document that is judged.
    pub(super) fn root(&self) -> &'d Spanned<DeTable<'d>> {
        self.root
    }

    /// An error at a value that the caller has before it.
    pub(super) fn refuse(
        &self,
        path: &Path<'_>,
        span: Range<usize>,
        value: Option<&DeValue<'_>>,
        problem: Problem,
    ) {
        self.add(Severity::Error, path, span, value, problem);
    }

    /// An error at whatever stands at `path`, or should.
    pub(super) fn refuse_at(&self, path: &Path<'_>, problem: Problem) {
        let Found { span, value } = find(self.root, path);
        self.add(Severity::Error, path, span, value, problem);
    }

    /// A warning at whatever stands at `path`, or could.
    pub(super) fn warn_at(&self, path: &Path<'_>, problem: Problem) {
        let Found { span, value } = find(self.root, path);
        self.add(Severity::Warning, path, span, value, problem);
    }

    /// Whether anything stands at `path`.
    pub(super) fn has(&self, path: &Path<'_>) -> bool {
        find(self.root, path).value.is_some()
    }

    /// `line N`, for a message that names another place.
    pub(super) fn line_of(&self, path: &Path<'_>) -> String {
        format!("line {}", self.source.position(find(self.root, path).span.start).line)
    }

    /// Everything found, in the order of the file.
    pub(super) fn conclude(self) -> Report {
        let mut diagnostics = self.diagnostics.into_inner();
        diagnostics
            .sort_by(|(a_offset, a), (b_offset, b)| (a_offset, &a.message).cmp(&(b_offset, &b.message)));
        let (errors, warnings) = diagnostics
            .into_iter()
            .map(|(_, diagnostic)| diagnostic)
            .partition(|diagnostic| diagnostic.severity == Severity::Error);
        Report { errors, warnings }
    }

    fn add(
        &self,
        severity: Severity,
        path: &Path<'_>,
        span: Range<usize>,
        value: Option<&DeValue<'_>>,
        problem: Problem,
    ) {
        if !self.broken_lines.contains(&self.source.position(span.start).line) {
            self.push(severity, span, path.to_string(), value.and_then(json), problem);
        }
    }

    fn push(
        &self,
        severity: Severity,
        span: Range<usize>,
        path: String,
        value: Option<Json>,
        problem: Problem,
    ) {
        let position = self.source.position(span.start);
        let diagnostic = Diagnostic {
            severity,
            file: self.source.file.to_owned(),
            line: position.line,
            column: position.column,
            path,
            value,
            message: problem.message,
            allowed: problem.allowed,
            suggestion: problem.suggestion,
            excerpt: Some(self.source.excerpt(&span)),
        };
        self.diagnostics.borrow_mut().push((span.start, diagnostic));
    }
}

/// A value as data; `None` for a table and for an array that holds one.
fn json(value: &DeValue<'_>) -> Option<Json> {
    Some(match value {
        DeValue::String(text) => Json::from(text.as_ref()),
        DeValue::Boolean(flag) => Json::from(*flag),
        DeValue::Integer(integer) => match i64::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(number) => Json::from(number),
            Err(_) => Json::from(integer.to_string()),
        },
        DeValue::Float(float) => match float.as_str().parse().ok().and_then(serde_json::Number::from_f64) {
            Some(number) => Json::from(number),
            None => Json::from(float.as_str()),
        },
        DeValue::Datetime(datetime) => Json::from(datetime.to_string()),
        DeValue::Array(elements) => {
            elements.iter().map(|element| json(element.get_ref())).collect::<Option<_>>()?
        }
        DeValue::Table(_) => return None,
    })
}
