//! What a configuration makes use of, so that the programs contain nothing else.

use lb_common::Features;

use crate::config::Config;

/// What the programs need for this configuration.
pub fn features(config: &Config) -> Features {
    let any = |feature: Features, is_used: fn(&crate::config::Listener) -> bool| {
        feature.only_if(config.listeners.iter().any(is_used))
    };
    let families = any(Features::IPV4, |listener| listener.address.is_ipv4())
        .and(any(Features::IPV6, |listener| listener.address.is_ipv6()));
    // Without listeners the programs have nothing to do, but have to be there for the first.
    let families = if families == Features::NONE { Features::IPV4.and(Features::IPV6) } else { families };
    families
        .and(any(Features::PORT_RANGES, |listener| listener.ports.first != listener.ports.last))
        .and(any(Features::SOURCE_RULES, |listener| {
            !(listener.allow_sources.is_empty() && listener.deny_sources.is_empty())
        }))
        .and(any(Features::FLOW_LIMITS, |listener| listener.max_new_flows_per_s != 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a configuration with a listener of this address and these lines.
    fn of(address: &str, lines: &str) -> Features {
        let backend = if address.contains(':') { "fd00::1" } else { "10.0.0.1" };
        let port = if lines.contains("ports") { 0 } else { 80 };
        let text = format!(
            "[lb]\ninterfaces = [\"eth0\"]\n\
             [[listener]]\nname = \"web\"\naddress = \"{address}\"\nprotocol = \"tcp\"\nbackend_set = \"web\"\n{lines}\n\
             [[backend_set.web.backend]]\naddress = \"{backend}\"\nport = {port}\n\
             [backend_set.web.health_check]\nprotocol = \"tcp\"\nport = 80\n"
        );
        features(&crate::config::parse(&text, "test.toml").unwrap_or_else(|report| panic!("{report}")).config)
    }

    #[test]
    fn only_what_some_listener_needs_is_asked_for() {
        assert_eq!(of("10.0.0.100", "port = 80"), Features::IPV4);
        assert_eq!(of("fd00::100", "port = 80"), Features::IPV6);
        assert_eq!(of("10.0.0.100", "ports = \"80-81\""), Features::IPV4.and(Features::PORT_RANGES));
        assert_eq!(
            of("10.0.0.100", "port = 80\ndeny_sources = [\"10.9.0.0/16\"]"),
            Features::IPV4.and(Features::SOURCE_RULES)
        );
        assert_eq!(
            of("10.0.0.100", "port = 80\nmax_new_flows_per_s = 10"),
            Features::IPV4.and(Features::FLOW_LIMITS)
        );
    }
}
