//! Many samples in three numbers.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Of the values of all rounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// As many values are less as are more.
    pub median: f64,
    /// The least.
    pub least: f64,
    /// The most.
    pub most: f64,
}

impl Summary {
    /// Of one value a round. Without any, nothing is known: all are NaN.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
        let last = values.len().saturating_sub(1);
        let median = f64::midpoint(at(last / 2), at(last.div_ceil(2)));
        Self { median, least: at(0), most: at(last) }
    }

    /// Every number divided.
    pub fn per(self, divisor: f64) -> Self {
        Self { median: self.median / divisor, least: self.least / divisor, most: self.most / divisor }
    }
}

/// Median, least and most, with the precision of the format, else without decimals.
impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { median, least, most } = self;
        let decimals = f.precision().unwrap_or(0);
        write!(f, "{median:.decimals$} ({least:.decimals$} - {most:.decimals$})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(Summary::of([3.0, 1.0, 2.0]), Summary { median: 2.0, least: 1.0, most: 3.0 });
        assert_eq!(Summary::of([4.0, 1.0, 2.0, 3.0]).median, 2.5);
        assert_eq!(Summary::of([7.0]), Summary { median: 7.0, least: 7.0, most: 7.0 });
        assert!(Summary::of([]).median.is_nan());
    }

    #[test]
    fn it_is_written_with_the_decimals_that_are_asked_for() {
        let summary = Summary::of([1.0, 2.0, 3.26]);
        assert_eq!(summary.to_string(), "2 (1 - 3)");
        assert_eq!(format!("{summary:.1}"), "2.0 (1.0 - 3.3)");
        assert_eq!(format!("{:.0}", summary.per(0.5)), "4 (2 - 7)");
    }
}
