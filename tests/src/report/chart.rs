//! Results as a picture: bars below each other.

use std::path::Path;

use anyhow::{Context as _, Result};
use plotters::prelude::*;

use super::Summary;

/// Bars with a title.
#[derive(Clone, Debug)]
pub struct Chart {
    /// What all bars have in common.
    pub title: String,
    /// What the numbers count; written behind each.
    pub unit: &'static str,
    /// From top to bottom.
    pub bars: Vec<Bar>,
}

/// A bar, as long as the median, with a line from the least to the most.
#[derive(Clone, Debug)]
pub struct Bar {
    /// What is written beside it.
    pub label: String,
    /// Bars of one group have one colour.
    pub group: usize,
    /// What it shows.
    pub value: Summary,
}

/// Pixels.
const BAR: u32 = 26;
const GAP: u32 = 8;
const MARGIN: u32 = 60;
const LABELS: u32 = 430;
const NUMBERS: u32 = 150;
const WIDTH: u32 = 1000;

const COLOURS: [RGBColor; 4] = [
    RGBColor(0x2b, 0x6c, 0xb0),
    RGBColor(0x2f, 0x85, 0x5a),
    RGBColor(0xb7, 0x79, 0x1f),
    RGBColor(0x71, 0x80, 0x96),
];

impl Chart {
    /// Draws it, as SVG.
    ///
    /// # Errors
    ///
    /// If the file cannot be written.
    pub fn draw(&self, path: &Path) -> Result<()> {
        let height = MARGIN + self.bars.len() as u32 * (BAR + GAP) + GAP;
        let root = SVGBackend::new(path, (WIDTH, height)).into_drawing_area();
        let most = self.bars.iter().map(|bar| bar.value.most).fold(f64::MIN_POSITIVE, f64::max);
        let scale = f64::from(WIDTH - LABELS - NUMBERS) / most;
        root.fill(&WHITE)?;
        root.draw(&Text::new(self.title.clone(), (10, 14), ("sans-serif", 18)))?;
        for (index, bar) in self.bars.iter().enumerate() {
            let top = (MARGIN + index as u32 * (BAR + GAP)) as i32;
            let at = |value: f64| LABELS as i32 + (value.max(0.0) * scale).round() as i32;
            let Summary { median, least, most } = bar.value;
            let colour = COLOURS[bar.group % COLOURS.len()];
            root.draw(&Text::new(bar.label.clone(), (10, top + 6), ("sans-serif", 14)))?;
            root.draw(&Rectangle::new([(at(0.0), top), (at(median), top + BAR as i32)], colour.filled()))?;
            let middle = top + BAR as i32 / 2;
            root.draw(&PathElement::new(vec![(at(least), middle), (at(most), middle)], BLACK))?;
            let number = format!("{} {}", significant(median), self.unit);
            root.draw(&Text::new(number, (at(most) + 6, top + 6), ("sans-serif", 14)))?;
        }
        root.present().with_context(|| format!("cannot write {}", path.display()))
    }
}

/// A number with three digits, or all before the point.
fn significant(number: f64) -> String {
    let decimals = match number.abs() {
        small if small < 9.995 => 2,
        medium if medium < 99.95 => 1,
        _ => 0,
    };
    format!("{number:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_or_more() {
        assert_eq!([0.123, 9.996, 12.34, 1234.5].map(significant), ["0.12", "10.0", "12.3", "1234"]);
    }
}
