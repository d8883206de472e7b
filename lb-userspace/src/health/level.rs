//! The four levels. Everything here is a pure total function: the same input gives the same level and the same
//! reason, and there is no input without one.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::config::MinHealthy;

/// How much attention something needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Level {
    /// None.
    Ok,
    /// Some: it works, but not all of it.
    Warning,
    /// At once.
    Critical,
    /// It cannot be told.
    Unknown,
}

impl Level {
    /// Every level, in the order of its exit code.
    pub const ALL: [Self; 4] = [Self::Ok, Self::Warning, Self::Critical, Self::Unknown];

    /// The word in JSON, in metrics and on the terminal.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Warning => "WARNING",
            Self::Critical => "CRITICAL",
            Self::Unknown => "UNKNOWN",
        }
    }

    /// The exit status of `lb status` and `lb diagnose`.
    pub const fn exit_code(self) -> u8 {
        self as u8
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

/// A level and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// The level.
    #[serde(rename = "status")]
    pub level: Level,
    /// Why, in one line. UNKNOWN has a single word for it: [`NO_LISTENER`], [`NO_BACKENDS`], [`PENDING`],
    /// [`NO_SETS`].
    pub reason: String,
}

impl Verdict {
    fn new(level: Level, reason: impl Into<String>) -> Self {
        Self { level, reason: reason.into() }
    }
}

/// Reason of a set that no listener names.
pub const NO_LISTENER: &str = "no_listener";
/// Reason of a set without a backend that counts: all are offline or draining.
pub const NO_BACKENDS: &str = "no_backends";
/// Reason of what has too few results yet.
pub const PENDING: &str = "pending";
/// Reason of an instance without sets.
pub const NO_SETS: &str = "no_sets";

/// One backend, as its set sees it.
#[derive(Clone, Copy, Debug)]
pub struct Member<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its level.
    pub level: Level,
    /// False if it is offline or draining.
    pub counted: bool,
}

/// The level of a set, and whom it is owed to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetLevel {
    /// Level and reason.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// Backends that count.
    pub total: usize,
    /// How many of them are OK.
    pub ok: usize,
    /// Names of those that are WARNING.
    pub warning: Vec<String>,
    /// Names of those that are CRITICAL.
    pub critical: Vec<String>,
    /// Names of those that are UNKNOWN.
    pub unknown: Vec<String>,
}

/// The level of a set: the first rule that fits.
///
/// No listener, or no backend that counts: UNKNOWN. More than half UNKNOWN: UNKNOWN. All OK: OK. As many OK as a
/// numeric `min_healthy` wants: OK. At least half OK: WARNING. Else CRITICAL.
pub fn set(members: &[Member<'_>], has_listener: bool, min_healthy: MinHealthy) -> SetLevel {
    let at = |level| -> Vec<String> {
        let at_level = members.iter().filter(|member| member.counted && member.level == level);
        at_level.map(|member| member.name.to_owned()).collect()
    };
    let total = members.iter().filter(|member| member.counted).count();
    let ok = at(Level::Ok).len();
    let mut set = SetLevel {
        verdict: Verdict::new(Level::Ok, format!("all {total} backends OK")),
        total,
        ok,
        warning: at(Level::Warning),
        critical: at(Level::Critical),
        unknown: at(Level::Unknown),
    };
    let tally = || set.tally();
    set.verdict = if !has_listener {
        Verdict::new(Level::Unknown, NO_LISTENER)
    } else if total == 0 {
        Verdict::new(Level::Unknown, NO_BACKENDS)
    } else if set.unknown.len() * 2 > total {
        Verdict::new(Level::Unknown, PENDING)
    } else if ok == total {
        return set;
    } else if enough(min_healthy, ok, total) {
        Verdict::new(Level::Ok, format!("{}, as many as min_healthy wants", tally()))
    } else if ok * 2 >= total {
        Verdict::new(Level::Warning, tally())
    } else {
        Verdict::new(Level::Critical, tally())
    };
    set
}

/// Whether a numeric `min_healthy` is reached.
const fn enough(min_healthy: MinHealthy, ok: usize, total: usize) -> bool {
    match min_healthy {
        MinHealthy::Half => false,
        MinHealthy::Count(count) => ok >= count as usize,
        MinHealthy::Percent(percent) => ok * 100 >= total * percent as usize,
    }
}

impl SetLevel {
    /// `3 of 4 backends OK; CRITICAL: 10.0.1.13:8080`
    fn tally(&self) -> String {
        let mut text = format!("{} of {} backends OK", self.ok, self.total);
        for (level, names) in [
            (Level::Critical, &self.critical),
            (Level::Warning, &self.warning),
            (Level::Unknown, &self.unknown),
        ] {
            if !names.is_empty() {
                text += &format!("; {level}: {}", listed(names));
            }
        }
        text
    }
}

/// Names that a reason spells out before it counts the rest.
const NAMES_IN_REASON: usize = 5;

fn listed<S: AsRef<str>>(names: &[S]) -> String {
    let shown: Vec<&str> = names.iter().take(NAMES_IN_REASON).map(AsRef::as_ref).collect();
    match names.len() - shown.len() {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// The level of a listener is that of its set.
pub fn listener(set_name: &str, set: &Verdict) -> Verdict {
    Verdict::new(set.level, format!("backend set {set_name}: {}", set.reason))
}

/// The level of the instance, from the names and levels of its sets: the first rule that fits.
///
/// No sets: UNKNOWN. Any CRITICAL. Any WARNING. All OK. More than half UNKNOWN: UNKNOWN. Else WARNING.
pub fn instance(sets: &[(&str, Level)]) -> Verdict {
    let at = |level| -> Vec<&str> {
        sets.iter().filter(|(_, set_level)| *set_level == level).map(|(name, _)| *name).collect()
    };
    let (critical, warning, unknown) = (at(Level::Critical), at(Level::Warning), at(Level::Unknown));
    let are = |level: Level, names: &[&str]| format!("{level}: backend set {}", listed(names));
    if sets.is_empty() {
        Verdict::new(Level::Unknown, NO_SETS)
    } else if !critical.is_empty() {
        Verdict::new(Level::Critical, are(Level::Critical, &critical))
    } else if !warning.is_empty() {
        Verdict::new(Level::Warning, are(Level::Warning, &warning))
    } else if unknown.is_empty() {
        Verdict::new(Level::Ok, format!("all {} backend sets OK", sets.len()))
    } else if unknown.len() * 2 > sets.len() {
        Verdict::new(Level::Unknown, are(Level::Unknown, &unknown))
    } else {
        Verdict::new(Level::Warning, are(Level::Unknown, &unknown))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NAMES: [&str; 10] = ["b0", "b1", "b2", "b3", "b4", "b5", "b6", "b7", "b8", "b9"];

    /// One letter a backend: O, W, C, U; lower case for one that does not count.
    fn members(letters: &str) -> Vec<Member<'static>> {
        let member = |(index, letter): (usize, char)| Member {
            name: NAMES[index],
            level: match letter.to_ascii_uppercase() {
                'O' => Level::Ok,
                'W' => Level::Warning,
                'C' => Level::Critical,
                _ => Level::Unknown,
            },
            counted: letter.is_ascii_uppercase(),
        };
        letters.chars().enumerate().map(member).collect()
    }

    fn of(letters: &str, min_healthy: MinHealthy) -> Level {
        set(&members(letters), true, min_healthy).verdict.level
    }

    fn half(letters: &str) -> Level {
        of(letters, MinHealthy::Half)
    }

    #[test]
    fn l1_set_of_four() {
        assert_eq!(half("OOOO"), Level::Ok);
        assert_eq!(half("OOOC"), Level::Warning);
        assert_eq!(half("OOCC"), Level::Warning);
        assert_eq!(half("OCCC"), Level::Critical);
        assert_eq!(half("CCCC"), Level::Critical);
    }

    #[test]
    fn l2_sets_of_three_and_of_one() {
        assert_eq!(half("OOC"), Level::Warning);
        assert_eq!(half("OCC"), Level::Critical);
        assert_eq!(half("C"), Level::Critical);
        assert_eq!(half("O"), Level::Ok);
    }

    #[test]
    fn l3_unknown_has_a_reason() {
        let reason = |letters: &str, listener| {
            let verdict = set(&members(letters), listener, MinHealthy::Half).verdict;
            assert_eq!(verdict.level, Level::Unknown, "{letters}");
            verdict.reason
        };
        assert_eq!(reason("UUU", true), "pending");
        assert_eq!(reason("OOO", false), "no_listener");
        assert_eq!(reason("", true), "no_backends");
        assert_eq!(reason("uoc", true), "no_backends");
        let none = instance(&[]);
        assert_eq!((none.level, none.reason.as_str()), (Level::Unknown, "no_sets"));
    }

    #[test]
    fn l4_more_than_half_unknown_is_unknown_and_not_critical() {
        assert_eq!(half("UUUO"), Level::Unknown);
        assert_eq!(half("UUUC"), Level::Unknown);
        assert_eq!(half("UUOO"), Level::Warning);
        assert_eq!(half("UUCO"), Level::Critical);
    }

    #[test]
    fn l5_the_instance_is_what_its_sets_are() {
        use Level::{Critical, Ok, Unknown, Warning};
        let level = |levels: &[Level]| {
            let sets: Vec<_> = NAMES.into_iter().zip(levels.iter().copied()).collect();
            instance(&sets).level
        };
        assert_eq!(level(&[Ok, Warning, Unknown, Critical]), Critical);
        assert_eq!(level(&[Ok, Warning, Unknown, Unknown, Unknown]), Warning);
        assert_eq!(level(&[Ok, Ok]), Ok);
        assert_eq!(level(&[Ok, Unknown]), Warning);
        assert_eq!(level(&[Ok, Unknown, Unknown]), Unknown);
        assert_eq!(level(&[Unknown]), Unknown);
    }

    #[test]
    fn l6_everybody_but_the_good_is_named() {
        let found = set(&members("OWCUOoc"), true, MinHealthy::Half);
        assert_eq!((found.total, found.ok), (5, 2));
        assert_eq!(
            (found.warning, found.critical, found.unknown),
            (vec!["b1".into()], vec!["b2".into()], vec!["b3".into()])
        );
        assert_eq!(found.verdict.reason, "2 of 5 backends OK; CRITICAL: b2; WARNING: b1; UNKNOWN: b3");
    }

    #[test]
    fn l7_offline_and_drained_backends_do_not_count() {
        assert_eq!(half("OOOOcccu"), Level::Ok);
        assert_eq!(half("Oooo"), Level::Ok);
    }

    #[test]
    fn min_healthy_makes_a_mirrored_pair_ok() {
        assert_eq!(half("OC"), Level::Warning);
        assert_eq!(of("OC", MinHealthy::Count(1)), Level::Ok);
        assert_eq!(of("CC", MinHealthy::Count(1)), Level::Critical);
        assert_eq!(of("OCC", MinHealthy::Count(1)), Level::Ok);
        assert_eq!(of("OCC", MinHealthy::Count(2)), Level::Critical);
        assert_eq!(of("OOCC", MinHealthy::Percent(50)), Level::Ok);
        assert_eq!(of("OOCC", MinHealthy::Percent(51)), Level::Warning);
        assert_eq!(of("OCC", MinHealthy::Percent(34)), Level::Critical);
        assert_eq!(of("UUO", MinHealthy::Count(1)), Level::Unknown, "the earlier rule wins");
        assert_eq!(of("OO", MinHealthy::Count(3)), Level::Ok, "all OK is OK");
    }

    #[test]
    fn long_lists_are_counted() {
        let reason = set(&members("CCCCCCCCCO"), true, MinHealthy::Half).verdict.reason;
        assert_eq!(reason, "1 of 10 backends OK; CRITICAL: b0, b1, b2, b3, b4 and 4 more");
        let verdict = instance(&[("web", Level::Critical), ("dns", Level::Ok)]);
        assert_eq!(verdict.reason, "CRITICAL: backend set web");
        let verdict = listener("web", &verdict);
        assert_eq!(
            (verdict.level, verdict.reason.as_str()),
            (Level::Critical, "backend set web: CRITICAL: backend set web")
        );
    }

    #[test]
    fn exit_codes_and_words_are_those_of_monitoring_plugins() {
        let table = [("OK", 0), ("WARNING", 1), ("CRITICAL", 2), ("UNKNOWN", 3)];
        for (level, (word, code)) in Level::ALL.into_iter().zip(table) {
            assert_eq!((level.word(), level.exit_code()), (word, code));
            assert_eq!(serde_json::to_value(level).expect("serialises"), word);
        }
    }

    proptest! {
        #[test]
        fn a_set_accounts_for_every_backend(letters in "[OWCUowcu]{0,10}", listener: bool, count in 0u32..12) {
            for min_healthy in
                [MinHealthy::Half, MinHealthy::Count(count), MinHealthy::Percent((count * 9).min(100) as u8)]
            {
                let found = set(&members(&letters), listener, min_healthy);
                let counted = letters.chars().filter(char::is_ascii_uppercase).count();
                prop_assert_eq!(found.total, counted);
                let named = found.warning.len() + found.critical.len() + found.unknown.len();
                prop_assert_eq!(found.ok + named, counted);
                prop_assert!(!found.verdict.reason.is_empty());
                // One more good backend never makes it worse.
                if listener && counted > 0 && counted < 10 {
                    let better = set(&members(&letters.replacen(['W', 'C', 'U'], "O", 1)), true, min_healthy);
                    let rank = |level| [Level::Ok, Level::Warning, Level::Unknown, Level::Critical]
                        .iter().position(|&known| known == level);
                    if found.verdict.level != Level::Unknown {
                        prop_assert!(rank(better.verdict.level) <= rank(found.verdict.level));
                    }
                }
            }
        }
    }
}
