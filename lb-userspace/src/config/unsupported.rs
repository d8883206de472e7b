//! What the schema has and this version cannot do yet. Such a key is taken at its default and refused at any
//! other value, so that nothing is silently ignored. Supporting a key means deleting its line here.

use toml::de::DeValue;

use super::document::visit;
use super::findings::Findings;
use super::problem::Problem;

/// A key, the values of it that are refused, and what to write instead.
struct NotYet {
    pattern: &'static str,
    refuses: fn(&DeValue<'_>) -> bool,
    instead: &'static str,
}

const fn not_yet(pattern: &'static str, refuses: fn(&DeValue<'_>) -> bool, instead: &'static str) -> NotYet {
    NotYet { pattern, refuses, instead }
}

/// Everything that is not supported yet.
const NOT_YET: &[NotYet] = &[not_yet("backend_set.*.preempt", |value| is_flag(value, false), "true")];

/// Refuses what is not supported yet. A value that was refused for another reason is not refused twice.
pub(super) fn refuse(findings: &Findings<'_>) {
    let refused = findings.refused_paths();
    for NotYet { pattern, refuses, instead } in NOT_YET {
        visit(findings.root(), pattern, &mut |path, span, value| {
            if refuses(value) && !refused.contains(&path.to_string()) {
                let problem = Problem::new("not supported yet in this version of lb").allowed(*instead);
                findings.refuse(&path, span, Some(value), problem);
            }
        });
    }
}

fn is_flag(value: &DeValue<'_>, flag: bool) -> bool {
    value.as_bool() == Some(flag)
}
