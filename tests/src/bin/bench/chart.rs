//! The report as a picture: what each case costs above the floor.

use std::path::Path;

use anyhow::{Context as _, Result};
use plotters::prelude::*;

use crate::packet::Family;

/// A bar: the label below it, the family it is of, and nanoseconds: median, least, most.
pub(crate) struct Bar {
    pub(crate) label: String,
    pub(crate) family: Family,
    pub(crate) nanoseconds: [f64; 3],
}

/// Pixels.
const BAR: u32 = 26;
const GAP: u32 = 8;
const MARGIN: u32 = 60;
const LABELS: u32 = 330;
const WIDTH: u32 = 900;

/// Draws the bars below each other, as SVG.
pub(crate) fn draw(path: &Path, title: &str, bars: &[Bar]) -> Result<()> {
    let height = MARGIN + bars.len() as u32 * (BAR + GAP) + GAP;
    let root = SVGBackend::new(path, (WIDTH, height)).into_drawing_area();
    let most = bars.iter().map(|bar| bar.nanoseconds[2]).fold(1.0, f64::max);
    // Room for the number behind the longest bar.
    let scale = f64::from(WIDTH - LABELS - 130) / most;
    let at = |nanoseconds: f64| LABELS as i32 + (nanoseconds.max(0.0) * scale).round() as i32;
    root.fill(&WHITE)?;
    root.draw(&Text::new(title.to_owned(), (10, 14), ("sans-serif", 18)))?;
    for (index, bar) in bars.iter().enumerate() {
        let top = (MARGIN + index as u32 * (BAR + GAP)) as i32;
        let bottom = top + BAR as i32;
        let [median, least, most] = bar.nanoseconds;
        let colour = match bar.family {
            Family::V4 => RGBColor(0x2b, 0x6c, 0xb0),
            Family::V6 => RGBColor(0x2f, 0x85, 0x5a),
        };
        root.draw(&Text::new(bar.label.clone(), (10, top + 6), ("sans-serif", 14)))?;
        root.draw(&Rectangle::new([(at(0.0), top), (at(median), bottom)], colour.filled()))?;
        let middle = i32::midpoint(top, bottom);
        root.draw(&PathElement::new(vec![(at(least), middle), (at(most), middle)], BLACK))?;
        let number = format!("{median:.0} ns");
        root.draw(&Text::new(number, (at(most) + 6, top + 6), ("sans-serif", 14)))?;
    }
    root.present().with_context(|| format!("cannot write {}", path.display()))
}
