//! `GET /metrics`: the status document in the text format of Prometheus. Names are the contract's.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabel, EncodeLabelSet, EncodeMetric, LabelSetEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Metric, Registry};

use crate::status::{ListenerStatus, Status};

/// Whom a number belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Labels {
    listener: Option<String>,
    backend_set: Option<String>,
    backend: Option<String>,
    address: Option<String>,
    protocol: Option<String>,
    reason: Option<String>,
    result: Option<String>,
}

impl EncodeLabelSet for Labels {
    /// Leaves out what does not apply; the derived implementation would write empty values.
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Self { listener, backend_set, backend, address, protocol, reason, result } = self;
        let labels = [
            ("listener", listener),
            ("backend_set", backend_set),
            ("backend", backend),
            ("address", address),
            ("protocol", protocol),
            ("reason", reason),
            ("result", result),
        ];
        let mut present = labels.into_iter().filter_map(|(name, value)| Some((name, value.as_deref()?)));
        present.try_for_each(|label| label.encode(encoder.encode_label()))
    }
}

type Counters = Family<Labels, Counter<u64, AtomicU64>>;
type Gauges = Family<Labels, Gauge<i64>>;

/// Renders the metrics. `checks` are the checks made since the start, by set, backend and verdict.
///
/// # Errors
///
/// Never: writing to a string cannot fail, but the encoder does not know.
pub fn render<'a>(
    status: &Status,
    checks: impl Iterator<Item = (&'a str, &'a str, &'static str, u64)>,
) -> Result<String, std::fmt::Error> {
    let mut registry = Registry::with_prefix("lb");
    traffic(&mut registry, status);
    health(&mut registry, status);
    let made = counters(&mut registry, "health_checks", "Health checks made, by verdict");
    for (set, backend, result, count) in checks {
        let labels = Labels { result: Some(result.to_owned()), ..of_backend(set, backend) };
        made.get_or_create(&labels).inc_by(count);
    }
    let drops = counters(&mut registry, "drops", "Packets that did not travel on, by reason");
    by_reason(&drops, status, &status.drops, |listener| &listener.drops);
    let passes = counters(&mut registry, "passes", "Packets left to the kernel, by reason");
    by_reason(&passes, status, &status.passes, |listener| &listener.passes);
    let notes = counters(&mut registry, "notes", "What else happened to packets");
    by_reason(&notes, status, &status.notes, |listener| &listener.notes);
    let ports = gauges(&mut registry, "snat_ports_in_use", "SNAT ports in use towards a backend");
    for snat in &status.snat {
        let labels = Labels {
            address: Some(snat.address.to_string()),
            protocol: Some(snat.protocol.clone()),
            ..of_backend(&snat.backend_set, &snat.backend)
        };
        ports.get_or_create(&labels).set(saturate(snat.in_use));
    }
    let refused =
        counters(&mut registry, "config_reload_failures", "Configuration files refused by a reload");
    refused.get_or_create(&Labels::default()).inc_by(status.config.reload_failures);
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(prometheus_text(&text))
}

/// OpenMetrics, which the encoder writes, as the older text format of Prometheus, which every reader knows. There the
/// family of a counter has the name of its samples, with `_total`, and nothing marks the end.
fn prometheus_text(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len());
    let mut help = None;
    for line in open_metrics.lines() {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some("EOF"), ..) => {}
            // Written with the type, which comes next and says what the family is called.
            (Some("#"), Some("HELP"), _, Some(words)) => help = Some(words),
            (Some("#"), Some("TYPE"), Some(name), Some(kind)) => {
                let suffix = if kind == "counter" { "_total" } else { "" };
                if let Some(help) = help.take() {
                    text += &format!("# HELP {name}{suffix} {help}\n");
                }
                text += &format!("# TYPE {name}{suffix} {kind}\n");
            }
            _ => {
                text += line;
                text.push('\n');
            }
        }
    }
    text
}

/// Counts each packet once: the status counts all of them, here each is under its listener or under none.
fn by_reason(
    metric: &Counters,
    status: &Status,
    all: &BTreeMap<String, u64>,
    of: impl Fn(&ListenerStatus) -> &BTreeMap<String, u64>,
) {
    for (reason, &count) in all {
        let of_listeners: u64 = status.listeners.iter().filter_map(|listener| of(listener).get(reason)).sum();
        let labels = Labels { reason: Some(reason.clone()), ..Labels::default() };
        metric.get_or_create(&labels).inc_by(count.saturating_sub(of_listeners));
    }
    for listener in &status.listeners {
        for (reason, &count) in of(listener) {
            let labels = Labels { reason: Some(reason.clone()), ..of_listener(&listener.name) };
            metric.get_or_create(&labels).inc_by(count);
        }
    }
}

fn traffic(registry: &mut Registry, status: &Status) {
    let packets = counters(registry, "packets", "Packets forwarded, both directions");
    let bytes = counters(registry, "bytes", "Bytes of IP packets forwarded, both directions");
    let new_flows = counters(registry, "new_flows", "Flows made");
    let active = gauges(registry, "active_flows", "Flows alive");
    for listener in &status.listeners {
        let labels = of_listener(&listener.name);
        packets.get_or_create(&labels).inc_by(listener.packets);
        bytes.get_or_create(&labels).inc_by(listener.bytes);
        new_flows.get_or_create(&labels).inc_by(listener.new_flows);
        active.get_or_create(&labels).set(saturate(listener.active_flows));
    }
    let refused = counters(registry, "refused_flows", "TCP flows whose SYN the backend answered with a RST");
    let unanswered = counters(registry, "unanswered_flows", "TCP flows whose SYN the backend did not answer");
    for set in &status.backend_sets {
        for backend in &set.backends {
            let labels = of_backend(&set.name, &backend.name);
            packets.get_or_create(&labels).inc_by(backend.packets);
            bytes.get_or_create(&labels).inc_by(backend.bytes);
            new_flows.get_or_create(&labels).inc_by(backend.new_flows);
            active.get_or_create(&labels).set(saturate(backend.active_flows));
            refused.get_or_create(&labels).inc_by(backend.refused);
            unanswered.get_or_create(&labels).inc_by(backend.unanswered);
        }
    }
}

fn health(registry: &mut Registry, status: &Status) {
    let up = gauges(registry, "backend_up", "1 while new flows may be given to the backend");
    let level = gauges(registry, "health_status", "0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN");
    level.get_or_create(&Labels::default()).set(number(&status.status));
    for listener in &status.listeners {
        level.get_or_create(&of_listener(&listener.name)).set(number(&listener.status));
    }
    for set in &status.backend_sets {
        let labels = Labels { backend_set: Some(set.name.clone()), ..Labels::default() };
        level.get_or_create(&labels).set(number(&set.status));
        for backend in &set.backends {
            let labels = of_backend(&set.name, &backend.name);
            up.get_or_create(&labels).set(backend.in_rotation.into());
            level.get_or_create(&labels).set(number(&backend.status));
        }
    }
}

fn counters(registry: &mut Registry, name: &str, help: &str) -> Counters {
    register(registry, name, help)
}

fn gauges(registry: &mut Registry, name: &str, help: &str) -> Gauges {
    register(registry, name, help)
}

fn register<M: Metric + EncodeMetric + Clone + Default>(
    registry: &mut Registry,
    name: &str,
    help: &str,
) -> M {
    let metric = M::default();
    registry.register(name, help, metric.clone());
    metric
}

fn of_listener(name: &str) -> Labels {
    Labels { listener: Some(name.to_owned()), ..Labels::default() }
}

fn of_backend(set: &str, backend: &str) -> Labels {
    Labels { backend_set: Some(set.to_owned()), backend: Some(backend.to_owned()), ..Labels::default() }
}

fn number(level: &str) -> i64 {
    ["OK", "WARNING", "CRITICAL"].iter().position(|known| *known == level).map_or(3, |number| number as i64)
}

fn saturate(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_families_by_the_name_of_their_samples() {
        let mut registry = Registry::with_prefix("lb");
        let drops = counters(&mut registry, "drops", "Packets # dropped");
        let labels = Labels { reason: Some("a\"b\nc".to_owned()), ..Labels::default() };
        drops.get_or_create(&labels).inc_by(3);
        gauges(&mut registry, "active_flows", "Flows alive").get_or_create(&of_listener("web")).set(7);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        assert_eq!(
            prometheus_text(&text),
            "# HELP lb_drops_total Packets # dropped.\n# TYPE lb_drops_total counter\n\
             lb_drops_total{reason=\"a\\\"b\\nc\"} 3\n# HELP lb_active_flows Flows alive.\n\
             # TYPE lb_active_flows gauge\nlb_active_flows{listener=\"web\"} 7\n"
        );
    }
}
