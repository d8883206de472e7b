//! Who may open flows through a listener: from the two lists of the configuration to rules of which the longest
//! that matches decides.

use std::collections::BTreeMap;

use ipnet::IpNet;
use lb_common::SourceKey;

/// `allow_sources` and `deny_sources` of a listener, without the prefixes of the other family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceLists {
    /// Who may; not looked at for whom `deny` names.
    pub allow: Vec<IpNet>,
    /// Who may not.
    pub deny: Vec<IpNet>,
}

impl SourceLists {
    /// Whether nobody is named.
    pub const fn is_empty(&self) -> bool {
        self.allow.is_empty() && self.deny.is_empty()
    }

    /// The rules: [`SourceKey::ALLOW`] or [`SourceKey::DENY`] by prefix. A prefix that a denied one covers is denied,
    /// however long it is, so that no longer prefix hides a denial.
    pub fn rules(&self) -> BTreeMap<IpNet, u32> {
        let allowed = self.allow.iter().map(|prefix| (prefix.trunc(), SourceKey::ALLOW));
        let denied = self.deny.iter().map(|prefix| (prefix.trunc(), SourceKey::DENY));
        // Of equal prefixes the last counts: the denied one.
        let mut rules: BTreeMap<IpNet, u32> = allowed.chain(denied).collect();
        // Prefixes nest, and one comes before those it covers: the last denied one is the only one to look at.
        let mut denied: Option<IpNet> = None;
        for (prefix, verdict) in &mut rules {
            if denied.is_some_and(|denied| denied.contains(prefix)) {
                *verdict = SourceKey::DENY;
            } else if *verdict == SourceKey::DENY {
                denied = Some(*prefix);
            }
        }
        rules
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::{IpAddr, Ipv4Addr};

    fn lists(allow: &[&str], deny: &[&str]) -> SourceLists {
        let prefixes = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        SourceLists { allow: prefixes(allow), deny: prefixes(deny) }
    }

    fn rules(allow: &[&str], deny: &[&str]) -> Vec<(String, u32)> {
        let rules = lists(allow, deny).rules();
        rules.into_iter().map(|(prefix, verdict)| (prefix.to_string(), verdict)).collect()
    }

    #[test]
    fn a_denial_is_never_hidden_behind_a_longer_permission() {
        let (allow, deny) = (SourceKey::ALLOW, SourceKey::DENY);
        assert_eq!(
            rules(&["10.0.0.0/8", "10.1.2.0/24", "10.2.0.0/16"], &["10.1.0.0/16", "10.1.0.0/24"]),
            [
                ("10.0.0.0/8".to_owned(), allow),
                ("10.1.0.0/16".to_owned(), deny),
                ("10.1.0.0/24".to_owned(), deny),
                ("10.1.2.0/24".to_owned(), deny),
                ("10.2.0.0/16".to_owned(), allow),
            ]
        );
        assert_eq!(rules(&["fd00::/8"], &["fd00::/8"]), [("fd00::/8".to_owned(), deny)]);
        assert_eq!(rules(&["10.1.2.3/8"], &[]), [("10.0.0.0/8".to_owned(), allow)]);
    }

    fn prefix() -> impl Strategy<Value = IpNet> {
        // Few addresses, so that prefixes cover each other often.
        (0..16_u8, 0..16_u8, 0..=32_u8).prop_map(|(high, low, length)| {
            IpNet::new(Ipv4Addr::new(high << 4, 0, 0, low).into(), length).unwrap()
        })
    }

    proptest! {
        #[test]
        fn the_longest_rule_says_what_the_lists_say(
            allow in prop::collection::vec(prefix(), 0..8),
            deny in prop::collection::vec(prefix(), 0..8),
            (high, low) in (0..16_u8, 0..16_u8),
        ) {
            let source = IpAddr::from([high << 4, 0, 0, low]);
            let lists = SourceLists { allow, deny };
            let rules = lists.rules();
            let matching = rules.iter().filter(|(prefix, _)| prefix.contains(&source));
            let longest = matching.max_by_key(|(prefix, _)| prefix.prefix_len()).map(|(_, &verdict)| verdict);
            let names = |prefixes: &[IpNet]| prefixes.iter().any(|prefix| prefix.contains(&source));
            let expected = match (names(&lists.deny), names(&lists.allow)) {
                (true, _) => Some(SourceKey::DENY),
                (false, true) => Some(SourceKey::ALLOW),
                (false, false) => None,
            };
            prop_assert_eq!(longest, expected);
        }
    }
}
