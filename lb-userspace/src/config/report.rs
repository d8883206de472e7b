//! What is wrong with a configuration file, for people and for programs.

use std::fmt;
use std::string::FromUtf8Error;

use serde::{Serialize, Serializer};

use super::Loaded;
use super::source::{Excerpt, Position, Source};

/// Longest value that the text of a diagnostic repeats, in characters.
const VALUE_WIDTH: usize = 60;

/// Whether a file is refused because of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The file is refused.
    Error,
    /// The file is accepted, but probably does not do what was meant.
    Warning,
}

/// One error or warning: where, which key, what stands there, why that is wrong and what to write instead.
/// Its `Display` ends with a newline.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Diagnostic {
    /// Error or warning.
    pub severity: Severity,
    /// The file, as it was named by the caller.
    pub file: String,
    /// Line, from 1; 0 when the file could not be read.
    pub line: usize,
    /// Column in characters, from 1; 0 when the file could not be read.
    pub column: usize,
    /// The key, for example `backend_set.web.backend[1].port`; elements are counted from 0. Empty for an
    /// error of TOML syntax.
    pub path: String,
    /// The value that stands there, unless there is none or it is a table.
    pub value: Option<serde_json::Value>,
    /// What is wrong.
    pub message: String,
    /// What may stand there.
    pub allowed: Option<String>,
    /// What was probably meant: a name, a value without its quotes, or a piece of TOML.
    pub suggestion: Option<String>,
    /// The line of the file.
    #[serde(skip)]
    pub(super) excerpt: Option<Excerpt>,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.file)?;
        if self.line > 0 {
            write!(formatter, ":{}:{}", self.line, self.column)?;
        }
        formatter.write_str(match self.severity {
            Severity::Error => ": error: ",
            Severity::Warning => ": warning: ",
        })?;
        formatter.write_str(&self.path)?;
        if let Some(value) = &self.value {
            let equals = if self.path.is_empty() { "" } else { " = " };
            write!(formatter, "{equals}{}", shorten(&value.to_string()))?;
        }
        if self.value.is_some() || !self.path.is_empty() {
            formatter.write_str(": ")?;
        }
        writeln!(formatter, "{}", self.message)?;
        let margin = self.line.to_string().len();
        if let Some(Excerpt { text, indent, width }) = &self.excerpt {
            writeln!(formatter, " {} | {text}", self.line)?;
            writeln!(formatter, " {:margin$} | {:indent$}{}", "", "", "^".repeat(*width))?;
        }
        if let Some(allowed) = &self.allowed {
            writeln!(formatter, " {:margin$} = allowed: {allowed}", "")?;
        }
        if let Some(suggestion) = &self.suggestion {
            writeln!(formatter, " {:margin$} = did you mean `{suggestion}`?", "")?;
        }
        Ok(())
    }
}

fn shorten(text: &str) -> String {
    match text.char_indices().nth(VALUE_WIDTH) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// Everything that is wrong with a refused file, in the order of the file. `Display` gives the text for
/// people, `Serialize` the same as data: `{"ok": false, "errors": […], "warnings": […]}`.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// At least one.
    pub errors: Vec<Diagnostic>,
    /// What else is suspicious.
    pub warnings: Vec<Diagnostic>,
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for diagnostic in self.errors.iter().chain(&self.warnings) {
            writeln!(formatter, "{diagnostic}")?;
        }
        write!(formatter, "{}", count(self.errors.len(), "error"))?;
        if !self.warnings.is_empty() {
            write!(formatter, ", {}", count(self.warnings.len(), "warning"))?;
        }
        formatter.write_str("; the file is refused as a whole, nothing was applied")
    }
}

impl Report {
    /// A file that could not be read.
    pub(super) fn unreadable(file: &str, error: String) -> Self {
        Self::about_file(file, 0, 0, format!("cannot be read: {error}"))
    }

    /// A file whose bytes are no text.
    pub(super) fn not_utf8(file: &str, error: &FromUtf8Error) -> Self {
        let valid_up_to = error.utf8_error().valid_up_to();
        let before = String::from_utf8_lossy(&error.as_bytes()[..valid_up_to]);
        let Position { line, column } = Source::new(file, &before).position(valid_up_to);
        Self::about_file(file, line, column, "not UTF-8, which every TOML file is".into())
    }

    fn about_file(file: &str, line: usize, column: usize, message: String) -> Self {
        let diagnostic = Diagnostic {
            severity: Severity::Error,
            file: file.to_owned(),
            line,
            column,
            path: String::new(),
            value: None,
            message,
            allowed: Some("a readable TOML file of at most 64 MiB".into()),
            suggestion: None,
            excerpt: None,
        };
        Self { errors: vec![diagnostic], warnings: Vec::new() }
    }
}

fn count(number: usize, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{plural}")
}

impl std::error::Error for Report {}

/// What `lb check --json` prints, whether the file is accepted or not.
#[derive(Serialize)]
struct Verdict<'a> {
    ok: bool,
    errors: &'a [Diagnostic],
    warnings: &'a [Diagnostic],
}

impl Serialize for Report {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Verdict { ok: false, errors: &self.errors, warnings: &self.warnings }.serialize(serializer)
    }
}

/// `{"ok": true, "errors": [], "warnings": […]}`; the configuration itself is what [`super::show`] prints.
impl Serialize for Loaded {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Verdict { ok: true, errors: &[], warnings: &self.warnings }.serialize(serializer)
    }
}
