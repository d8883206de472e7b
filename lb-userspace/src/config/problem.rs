//! What is wrong with a value, before it is known where the value stands.

use std::fmt::Display;

/// Names less alike than this are not suggested.
const LEAST_LIKENESS: f64 = 0.5;

/// A refused value or combination: what is wrong, what is allowed, what was probably meant.
#[derive(Debug)]
pub(super) struct Problem {
    pub(super) message: String,
    pub(super) allowed: Option<String>,
    pub(super) suggestion: Option<String>,
}

impl Problem {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), allowed: None, suggestion: None }
    }

    /// Says what may stand there.
    pub(super) fn allowed(self, allowed: impl Into<String>) -> Self {
        Self { allowed: Some(allowed.into()), ..self }
    }

    /// Says what to write instead.
    pub(super) fn suggest(self, suggestion: impl Into<String>) -> Self {
        Self { suggestion: Some(suggestion.into()), ..self }
    }

    /// As [`Self::suggest`], when there is something to suggest.
    pub(super) fn suggest_any(self, suggestion: Option<impl Into<String>>) -> Self {
        Self { suggestion: suggestion.map(Into::into), ..self }
    }
}

/// The candidate most like `name`, if any is alike enough to be a likely meaning.
pub(super) fn nearest<'c>(name: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    let name = canonical(name);
    candidates
        .into_iter()
        .map(|candidate| (likeness(&name, &canonical(candidate)), candidate))
        .filter(|(likeness, _)| *likeness >= LEAST_LIKENESS)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, candidate)| candidate)
}

fn canonical(name: &str) -> String {
    name.to_lowercase().replace('-', "_")
}

/// From 0 to 1. A part of a name (`timeout` of `timeout_ms`) is as good as a name with a few typing errors.
fn likeness(a: &str, b: &str) -> f64 {
    let longest = a.chars().count().max(b.chars().count()).max(1);
    let typing_errors = strsim::osa_distance(a, b);
    let by_typing = 1.0 - typing_errors as f64 / longest as f64;
    let (short, long) = if a.len() < b.len() { (a, b) } else { (b, a) };
    let is_part = short.len() >= 3 && long.contains(short);
    if is_part { by_typing.max(0.6 + 0.4 * by_typing) } else { by_typing }
}

/// `a, b or c`, each in the given quotes.
pub(super) fn one_of(words: impl IntoIterator<Item = impl Display>, quote: &str) -> String {
    join(words, quote, "or")
}

/// `a, b and c`.
pub(super) fn all_of(words: impl IntoIterator<Item = impl Display>) -> String {
    join(words, "", "and")
}

fn join(words: impl IntoIterator<Item = impl Display>, quote: &str, conjunction: &str) -> String {
    let words: Vec<String> = words.into_iter().map(|word| format!("{quote}{word}{quote}")).collect();
    match words.split_last() {
        None => "nothing".into(),
        Some((only, [])) => only.clone(),
        Some((last, others)) => format!("{} {conjunction} {last}", others.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typing_errors_lead_to_the_meant_name() {
        let keys = ["interval_ms", "timeout_ms", "retries", "return_code", "response_data", "rise"];
        for (written, meant) in [
            ("intreval_ms", "interval_ms"),
            ("interval", "interval_ms"),
            ("interval-ms", "interval_ms"),
            ("Timeout_MS", "timeout_ms"),
            ("retrys", "retries"),
            ("returncode", "return_code"),
        ] {
            assert_eq!(nearest(written, keys), Some(meant), "{written}");
        }
    }

    #[test]
    fn a_name_like_none_leads_nowhere() {
        assert_eq!(nearest("zzz", ["port", "name"]), None);
        assert_eq!(nearest("", ["port"]), None);
    }

    #[test]
    fn lists_read_as_sentences() {
        assert_eq!(one_of(["a"], "`"), "`a`");
        assert_eq!(one_of(["a", "b", "c"], "\""), "\"a\", \"b\" or \"c\"");
        assert_eq!(all_of([1, 2]), "1 and 2");
    }
}
