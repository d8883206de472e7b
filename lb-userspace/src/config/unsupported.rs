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
const NOT_YET: &[NotYet] = &[
    not_yet("lb.icmp_echo", |value| is_flag(value, false), "true"),
    not_yet("listener[].port", |value| is_integer(value, 0), "a port from 1 to 65535"),
    not_yet("listener[].ports", |_| true, "`port` with a single port"),
    not_yet("listener[].tcp_reset_on_idle", |value| is_flag(value, true), "false"),
    not_yet("listener[].on_untracked_tcp", |value| is_word(value, "reset"), "\"pickup\" or \"drop\""),
    not_yet("listener[].allow_sources", is_filled, "[]"),
    not_yet("listener[].deny_sources", is_filled, "[]"),
    not_yet("listener[].max_new_flows_per_s", |value| !is_integer(value, 0), "0"),
    not_yet("backend_set.*.mode", |value| is_word(value, "dsr"), "\"nat\""),
    not_yet("backend_set.*.on_unhealthy", |value| is_word(value, "reset"), "\"keep\" or \"move\""),
    not_yet("backend_set.*.no_backend_action", |value| is_word(value, "reset"), "\"drop\""),
    not_yet("backend_set.*.preempt", |value| is_flag(value, false), "true"),
];

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

fn is_word(value: &DeValue<'_>, word: &str) -> bool {
    value.as_str() == Some(word)
}

fn is_integer(value: &DeValue<'_>, number: i64) -> bool {
    let integer = value.as_integer();
    integer.is_some_and(|integer| i64::from_str_radix(integer.as_str(), integer.radix()) == Ok(number))
}

fn is_filled(value: &DeValue<'_>) -> bool {
    match value {
        DeValue::String(text) => !text.is_empty(),
        DeValue::Array(elements) => !elements.is_empty(),
        _ => false,
    }
}
