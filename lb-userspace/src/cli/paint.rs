//! Colours, on a terminal only and not where the user asks for none (no-color.org).

use std::io::IsTerminal;

/// Paints levels, or leaves them plain.
pub(super) struct Paint {
    colours: bool,
}

impl Paint {
    pub(super) fn for_stdout() -> Self {
        let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { colours: std::io::stdout().is_terminal() && !no_colour }
    }

    /// A level, padded to the width of the longest.
    pub(super) fn level(&self, level: &str) -> String {
        let colour = match level {
            "OK" => 32,
            "WARNING" => 33,
            "CRITICAL" => 31,
            _ => 90,
        };
        if self.colours { format!("\x1b[{colour}m{level:<8}\x1b[0m") } else { format!("{level:<8}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn l10_levels_have_colours_on_a_terminal_only() {
        assert_eq!(Paint { colours: false }.level("OK"), "OK      ");
        let painted =
            ["OK", "WARNING", "CRITICAL", "UNKNOWN"].map(|level| Paint { colours: true }.level(level));
        for (painted, colour) in painted.iter().zip(["32", "33", "31", "90"]) {
            assert!(
                painted.starts_with(&format!("\x1b[{colour}m")) && painted.ends_with("\x1b[0m"),
                "{painted:?}"
            );
        }
    }
}
