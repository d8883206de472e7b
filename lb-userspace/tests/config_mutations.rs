//! Whatever a file holds, it is accepted or refused with reasons; never a panic.

use lb_userspace::config::{Diagnostic, parse, show};
use proptest::prelude::*;

const VALID: &str = include_str!("../../examples/health-checks.toml");

/// One change of a text, as a slip or as malice would make it. Places are taken modulo what there is.
#[derive(Clone, Debug)]
enum Mutation {
    Delete { at: usize, length: usize },
    Insert { at: usize, text: String },
    CopyLine { from: usize, to: usize },
    DeleteLine { line: usize },
    SwapValues { a: usize, b: usize },
}

const SCRAPS: &[&str] = &[
    "[[listener]]\n",
    "[lb]\n",
    "\"\"\"",
    "0",
    "-1",
    "1e9",
    "true",
    "\"\"",
    "nan",
    "{}",
    "[]",
    "'(?='",
    "\"::1\"",
];

fn mutation() -> impl Strategy<Value = Mutation> {
    let scrap = prop_oneof![
        any::<char>().prop_map(String::from),
        "[\\[\\]\"'=.,#{}\n 0-9a-z-]{1,6}",
        prop::sample::select(SCRAPS).prop_map(String::from),
    ];
    let place = any::<usize>;
    prop_oneof![
        (place(), 1usize..20).prop_map(|(at, length)| Mutation::Delete { at, length }),
        (place(), scrap).prop_map(|(at, text)| Mutation::Insert { at, text }),
        (place(), place()).prop_map(|(from, to)| Mutation::CopyLine { from, to }),
        place().prop_map(|line| Mutation::DeleteLine { line }),
        (place(), place()).prop_map(|(a, b)| Mutation::SwapValues { a, b }),
    ]
}

fn mutate(text: &str, mutation: &Mutation) -> String {
    let mut characters: Vec<char> = text.chars().collect();
    let mut lines: Vec<&str> = text.lines().collect();
    let swapped: [String; 2];
    match *mutation {
        Mutation::Delete { at, length } => {
            let start = at % characters.len();
            characters.drain(start..characters.len().min(start + length));
            return characters.into_iter().collect();
        }
        Mutation::Insert { at, ref text } => {
            let at = at % characters.len();
            characters.splice(at..at, text.chars());
            return characters.into_iter().collect();
        }
        Mutation::CopyLine { from, to } => lines.insert(to % lines.len(), lines[from % lines.len()]),
        Mutation::DeleteLine { line } => {
            lines.remove(line % lines.len());
        }
        Mutation::SwapValues { a, b } => {
            let values: Vec<(usize, (&str, &str))> = lines
                .iter()
                .enumerate()
                .filter_map(|(line, text)| Some((line, text.split_once(" = ")?)))
                .collect();
            let (a, b) = (a % values.len(), b % values.len());
            let ((line_a, (key_a, value_a)), (line_b, (key_b, value_b))) = (values[a], values[b]);
            swapped = [format!("{key_a} = {value_b}"), format!("{key_b} = {value_a}")];
            (lines[line_a], lines[line_b]) = (&swapped[0], &swapped[1]);
        }
    }
    lines.join("\n")
}

/// Errors in the order of the file, each pointing into it.
fn check_errors(text: &str, errors: &[Diagnostic]) -> Result<(), TestCaseError> {
    prop_assert!(!errors.is_empty(), "refused without a reason:\n{}", text);
    prop_assert!(errors.is_sorted_by_key(|error| (error.line, error.column)));
    let lines: Vec<&str> = text.split('\n').collect();
    for error in errors {
        prop_assert!((1..=lines.len()).contains(&error.line), "{}", error);
        prop_assert!((1..=lines[error.line - 1].chars().count() + 1).contains(&error.column), "{}", error);
        prop_assert!(!error.message.is_empty());
        prop_assert!(!error.to_string().contains('\u{1b}'), "an escape sequence reaches the terminal");
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn mutated_files_are_accepted_or_refused(mutations in prop::collection::vec(mutation(), 1..6)) {
        let text = mutations.iter().fold(VALID.to_owned(), |text, mutation| mutate(&text, mutation));
        match parse(&text, "lb.toml") {
            Ok(loaded) => {
                let shown = show(&loaded.config);
                let again = parse(&shown, "lb.toml").map_err(|report| TestCaseError::fail(report.to_string()))?;
                prop_assert_eq!(again.config, loaded.config);
            }
            Err(report) => check_errors(&text, &report.errors)?,
        }
    }
}
