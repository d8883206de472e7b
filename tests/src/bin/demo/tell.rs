//! How the demo speaks: steps, commands, outcomes; in colour on a terminal unless `NO_COLOR` is set.

use std::env;
use std::fmt::Display;
use std::io::{IsTerminal, stdout};

use anyhow::{Result, bail};
use lb_tests::netns::traffic::Tally;

const BOLD: &str = "1";
const DIM: &str = "2";
const GREEN: &str = "32";
const RED: &str = "31";
const CYAN: &str = "36";

/// Width of the longest bar of [`Teller::shares`], in characters.
const BAR_WIDTH: usize = 40;

/// Tells the story on standard output.
pub(crate) struct Teller {
    colour: bool,
    step: u32,
}

impl Teller {
    pub(crate) fn new() -> Self {
        let refused = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { colour: stdout().is_terminal() && !refused, step: 0 }
    }

    /// Begins a step.
    pub(crate) fn step(&mut self, title: &str) {
        self.step += 1;
        println!("\n{}", self.paint(BOLD, format_args!("{}. {title}", self.step)));
    }

    /// Explains.
    pub(crate) fn say(&self, text: impl Display) {
        println!("   {text}");
    }

    /// Names a command and the host it runs on.
    pub(crate) fn command(&self, host: &str, line: impl Display) {
        println!("   {} {}", self.paint(DIM, format_args!("{host}#")), self.paint(CYAN, line));
    }

    /// Shows what a command has printed.
    pub(crate) fn output(&self, text: &str) {
        text.lines().for_each(|line| println!("     {}", self.paint(DIM, line)));
    }

    /// Shows how often each server has answered.
    pub(crate) fn shares(&self, tally: &Tally) {
        let total = tally.values().sum::<usize>().max(1);
        for (server, count) in tally {
            let bar = "█".repeat(count * BAR_WIDTH / total);
            println!("     {server} {count:>4} {}", self.paint(CYAN, bar));
        }
    }

    /// States what was expected, and ends the demo if it has not come true.
    pub(crate) fn expect(&self, what: impl Display, came_true: bool) -> Result<()> {
        if !came_true {
            bail!("expected, but not found: {what}");
        }
        self.done(what);
        Ok(())
    }

    /// States what a step has achieved by not ending the demo.
    pub(crate) fn done(&self, what: impl Display) {
        println!("   {} {what}", self.paint(GREEN, "✓"));
    }

    /// Ends the story well.
    pub(crate) fn success(&self, text: impl Display) {
        println!("\n{}", self.paint(GREEN, text));
    }

    /// Ends the story badly.
    pub(crate) fn failure(&self, text: impl Display) {
        println!("\n   {} {text}", self.paint(RED, "✗"));
    }

    fn paint(&self, colour: &str, text: impl Display) -> String {
        if self.colour { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_string() }
    }
}
