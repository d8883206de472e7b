//! The text of a configuration file, and where in it things stand.

use std::ops::Range;

/// Longest piece of a line that an excerpt shows, in characters.
const EXCERPT_WIDTH: usize = 100;
/// Most characters that an excerpt shows before the mark.
const EXCERPT_INDENT: usize = EXCERPT_WIDTH / 2;

/// A file's name and text, indexed so that a position takes no scan: a file may be one long line of errors.
pub(super) struct Source<'s> {
    pub(super) file: &'s str,
    pub(super) text: &'s str,
    /// Byte offset of the first character of each line.
    line_starts: Vec<usize>,
    /// Offset of each byte that begins no character.
    continuation_bytes: Vec<usize>,
}

/// A place in a file. Both counts start at 1; the column counts characters, not bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) line: usize,
    pub(super) column: usize,
}

/// A line of the file with a part of it marked.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Excerpt {
    /// The line, or the piece around the mark when it is long. Free of control characters.
    pub(super) text: String,
    /// Characters before the mark.
    pub(super) indent: usize,
    /// Characters that are marked, at least one.
    pub(super) width: usize,
}

impl<'s> Source<'s> {
    /// A byte order mark at the beginning is not part of the text.
    pub(super) fn new(file: &'s str, text: &'s str) -> Self {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let line_starts =
            std::iter::once(0).chain(text.match_indices('\n').map(|(newline, _)| newline + 1)).collect();
        let continuation_bytes = match text.is_ascii() {
            true => Vec::new(),
            false => (0..text.len()).filter(|&offset| !text.is_char_boundary(offset)).collect(),
        };
        Self { file, text, line_starts, continuation_bytes }
    }

    /// Where a byte offset lies. Offsets beyond the end mean the end.
    pub(super) fn position(&self, offset: usize) -> Position {
        let offset = self.character_start(offset);
        let line = self.line_starts.partition_point(|&start| start <= offset);
        let line_start = self.line_starts[line - 1];
        Position { line, column: self.characters(&(line_start..offset)) + 1 }
    }

    /// How many characters begin in a range of bytes.
    fn characters(&self, range: &Range<usize>) -> usize {
        let before = |offset| self.continuation_bytes.partition_point(|&byte| byte < offset);
        range.len() - (before(range.end) - before(range.start))
    }

    /// The line at the beginning of `span`, with as much of `span` marked as stands on that line.
    pub(super) fn excerpt(&self, span: &Range<usize>) -> Excerpt {
        let start = self.character_start(span.start);
        let line = self.position(start).line;
        let line_start = self.line_starts[line - 1];
        let line_end = self.line_starts.get(line).map_or(self.text.len(), |next| next - 1);
        let line_end = line_start + self.text[line_start..line_end].trim_end_matches('\r').len();

        let is_long = self.characters(&(line_start..line_end)) > EXCERPT_WIDTH;
        let most_before = if is_long { EXCERPT_INDENT } else { EXCERPT_WIDTH };
        let before = self.text[line_start..start].char_indices().rev().take(most_before).last();
        let shown_start = before.map_or(start, |(offset, _)| line_start + offset);
        let indent = self.characters(&(shown_start..start));
        let marked =
            self.characters(&(start..self.character_start(span.end).clamp(start, line_end.max(start))));
        Excerpt {
            text: self.text[shown_start..line_end.max(start)]
                .chars()
                .take(EXCERPT_WIDTH)
                .map(printable)
                .collect(),
            indent,
            width: marked.clamp(1, EXCERPT_WIDTH - indent.min(EXCERPT_WIDTH - 1)),
        }
    }

    /// The beginning of the character that the byte at `offset` belongs to.
    fn character_start(&self, offset: usize) -> usize {
        self.text.floor_char_boundary(offset)
    }
}

/// What stands for a character in an excerpt: one column on a terminal, and never an escape sequence.
fn printable(character: char) -> char {
    match character {
        '\t' => ' ',
        control if control.is_control() => '\u{fffd}',
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_count_characters() {
        let source = Source::new("f", "a = 'é'\nbé = 'ü'\n");
        let u_umlaut = source.text.find('ü').unwrap();
        assert_eq!(source.position(u_umlaut), Position { line: 2, column: 7 });
        assert_eq!(source.position(u_umlaut + 1), Position { line: 2, column: 7 }, "inside the character");
        assert_eq!(source.position(0), Position { line: 1, column: 1 });
        assert_eq!(source.position(usize::MAX), Position { line: 3, column: 1 });
    }

    #[test]
    fn a_byte_order_mark_takes_no_column() {
        let source = Source::new("f", "\u{feff}a = 1");
        assert_eq!(source.position(source.text.find('1').unwrap()), Position { line: 1, column: 5 });
    }

    #[test]
    fn an_excerpt_marks_the_span() {
        let source = Source::new("f", "[lb]\r\nport = 70000\r\n");
        let excerpt = source.excerpt(&(13..18));
        assert_eq!(excerpt, Excerpt { text: "port = 70000".into(), indent: 7, width: 5 });
    }

    #[test]
    fn an_excerpt_of_a_long_line_stays_short() {
        let text = format!("a = '{}'\tport = 0\u{1b}[31m", "x".repeat(100_000));
        let source = Source::new("f", &text);
        let at = text.find("port").unwrap();
        let excerpt = source.excerpt(&(at..at + 4));
        assert!(excerpt.text.chars().count() <= EXCERPT_WIDTH);
        assert_eq!(&excerpt.text[excerpt.indent..excerpt.indent + excerpt.width], "port");
        assert!(!excerpt.text.contains('\u{1b}'));
    }

    #[test]
    fn an_excerpt_counts_characters() {
        let text = format!("{}port = 0{}", "é".repeat(300), "ü".repeat(300));
        let source = Source::new("f", &text);
        let at = text.find("port").unwrap();
        let excerpt = source.excerpt(&(at..at + 4));
        assert_eq!(excerpt.text.chars().count(), EXCERPT_WIDTH);
        assert_eq!(excerpt.text.chars().skip(excerpt.indent).take(excerpt.width).collect::<String>(), "port");
        assert_eq!(source.position(at).column, 301);
    }

    #[test]
    fn an_empty_file_has_a_first_line() {
        let source = Source::new("f", "");
        assert_eq!(source.position(0), Position { line: 1, column: 1 });
        assert_eq!(source.excerpt(&(0..0)), Excerpt { text: String::new(), indent: 0, width: 1 });
    }
}
