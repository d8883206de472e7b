//! How much of a document that is no proper TOML can still be judged.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue, Error};

/// More errors than this are hardly slips in single values.
const MAX_LOCAL_ERRORS: usize = 64;

/// Whether the errors lie within single values or are keys that stand twice, so that the parser has
/// understood everything around them. Then the rest of the document is judged as well, to show all errors at
/// once; after a lost bracket, the rest would only draw errors that are none.
pub(super) fn rest_is_sound(text: &str, root: &Spanned<DeTable<'_>>, errors: &[Error]) -> bool {
    if errors.is_empty() {
        return true;
    }
    if errors.len() > MAX_LOCAL_ERRORS {
        return false;
    }
    let mut values = Vec::new();
    collect_table(text, root.get_ref(), &mut values);
    errors.iter().all(|error| {
        let is_within = |span: Range<usize>| {
            values.iter().any(|value| value.start <= span.start && span.end <= value.end)
        };
        error.message() == "duplicate key" || error.span().is_some_and(is_within)
    })
}

fn collect_table(text: &str, table: &DeTable<'_>, values: &mut Vec<Range<usize>>) {
    for value in table.values() {
        collect(text, value, values);
    }
}

/// Spans of the values other than tables and arrays that end on the line they begin on.
fn collect(text: &str, value: &Spanned<DeValue<'_>>, values: &mut Vec<Range<usize>>) {
    match value.get_ref() {
        DeValue::Table(table) => collect_table(text, table, values),
        DeValue::Array(elements) => elements.iter().for_each(|element| collect(text, element, values)),
        _ if text.get(value.span()).is_some_and(|written| !written.contains('\n')) => {
            values.push(value.span())
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sound(text: &str) -> bool {
        let (root, errors) = DeTable::parse_recoverable(text);
        assert!(!errors.is_empty(), "{text}");
        rest_is_sound(text, &root, &errors)
    }

    #[test]
    fn a_slip_in_a_value_is_local() {
        assert!(sound("[lb]\naddress = 10.0.1.1\nport = 80\n"));
        assert!(sound("interfaces = [eth0]\n"));
        assert!(sound("name = \"web\nport = 80\n"));
        assert!(sound("a = 1\na = 2\n"));
        assert!(sound("[a]\n[a]\n"));
    }

    #[test]
    fn a_lost_bracket_is_not() {
        assert!(!sound("[lb\nport = 80\n"));
        assert!(!sound("a = [1, 2\nb = 3\n"));
        assert!(!sound("= 3\n"));
        assert!(!sound("a = \"\"\"x\nb = 3\n"));
    }
}
