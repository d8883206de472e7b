//! The report as a picture: a panel for each figure, in it a bar for each peer.

use std::path::Path;

use anyhow::{Context as _, Result};
use plotters::coord::Shift;
use plotters::prelude::*;

use crate::peer::Peer;
use lb_tests::report::Summary;

/// A figure.
pub(crate) struct Panel {
    pub(crate) title: String,
    pub(crate) bars: Vec<Bar>,
}

/// A peer's value of a figure.
pub(crate) struct Bar {
    pub(crate) peer: Peer,
    pub(crate) value: Summary,
    pub(crate) label: String,
}

/// Pixels.
const BAR: u32 = 20;
const GAP: u32 = 6;
const TITLE: u32 = 30;
const MARGIN: u32 = 18;
const LABELS: u32 = 200;
/// Room for the number behind the longest bar.
const NUMBERS: u32 = 150;
const WIDTH: u32 = 900;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Draws the panels below each other, as SVG.
pub(crate) fn draw(path: &Path, panels: &[Panel]) -> Result<()> {
    let height = panels.iter().map(Panel::height).sum::<u32>() + MARGIN;
    let root = SVGBackend::new(path, (WIDTH, height)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut top = MARGIN;
    for panel in panels {
        panel.draw(&root, top.cast_signed())?;
        top += panel.height();
    }
    root.present().with_context(|| format!("cannot write {}", path.display()))
}

impl Panel {
    fn height(&self) -> u32 {
        TITLE + self.bars.len() as u32 * (BAR + GAP) + MARGIN
    }

    fn draw(&self, root: &Area<'_>, top: i32) -> Result<()> {
        let most = self.bars.iter().map(|bar| bar.value.most).fold(f64::MIN_POSITIVE, f64::max);
        let scale = f64::from(WIDTH - LABELS - NUMBERS) / most;
        let at = |value: f64| LABELS as i32 + (value.max(0.0) * scale).round() as i32;
        root.draw(&Text::new(self.title.clone(), (10, top), ("sans-serif", 17)))?;
        for (index, bar) in self.bars.iter().enumerate() {
            let top = top + (TITLE + index as u32 * (BAR + GAP)).cast_signed();
            let bottom = top + BAR as i32;
            let Summary { median, least, most } = bar.value;
            root.draw(&Text::new(bar.peer.name(), (10, top + 4), ("sans-serif", 13)))?;
            root.draw(&Rectangle::new([(at(0.0), top), (at(median), bottom)], colour(bar.peer).filled()))?;
            let middle = i32::midpoint(top, bottom);
            root.draw(&PathElement::new(vec![(at(least), middle), (at(most), middle)], BLACK))?;
            root.draw(&Text::new(bar.label.clone(), (at(most) + 6, top + 4), ("sans-serif", 13)))?;
        }
        Ok(())
    }
}

/// lb stands out, its peers are grouped by what they are.
const fn colour(peer: Peer) -> RGBColor {
    match peer {
        Peer::Routing => RGBColor(0xa0, 0xae, 0xc0),
        Peer::Dnat | Peer::Masquerade => RGBColor(0x71, 0x80, 0x96),
        Peer::HaProxy | Peer::Nginx => RGBColor(0xb7, 0x79, 0x1f),
        Peer::LbNative => RGBColor(0x2b, 0x6c, 0xb0),
        Peer::LbGeneric => RGBColor(0x63, 0xb3, 0xed),
    }
}
