//! What may not stand in one file together. Every refusal names both sides.

mod families;
mod listeners;
mod ports;
mod sets;
mod source_ports;

use super::facts::Facts;
use super::findings::Findings;

/// Judges everything that concerns more than one section.
pub(super) fn judge(findings: &Findings<'_>, facts: &Facts<'_>) {
    listeners::judge(findings, facts);
    sets::judge(findings, facts);
    ports::judge(findings, facts);
    families::judge(findings, facts);
    source_ports::judge(findings, facts);
}
