//! Names of the domain name system.

use super::problem::Problem;

/// Longest name without its final dot, in bytes (RFC 1035, section 3.1: 255 on the wire).
const MAX_NAME: usize = 253;
/// Longest label, in bytes (RFC 1035, section 2.3.4).
const MAX_LABEL: usize = 63;

/// A name in its usual notation, with or without the final dot.
pub(super) fn parse(text: &str) -> Result<String, Problem> {
    let problem = |message: String| {
        Problem::new(message).allowed(format!(
            "a DNS name of at most {MAX_NAME} bytes, its labels of 1 to {MAX_LABEL} letters, digits, `-` \
             and `_`"
        ))
    };
    let name = text.strip_suffix('.').unwrap_or(text);
    if name.len() > MAX_NAME {
        return Err(problem(format!("{} bytes long", name.len())));
    }
    for label in name.split('.') {
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        match label {
            "" => return Err(problem("a label is empty".into())),
            _ if label.len() > MAX_LABEL => {
                return Err(problem(format!("the label {label:?} is {} bytes long", label.len())));
            }
            _ if !label.is_ascii() => {
                return Err(problem(format!(
                    "the label {label:?} is not ASCII; write its `xn--` form (RFC 5890)"
                )));
            }
            _ if !label.bytes().all(is_allowed) || label.starts_with('-') => {
                return Err(problem(format!("{label:?} is not a label")));
            }
            _ => {}
        }
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use hickory_proto::rr::Name;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lengths_count() {
        let label = "x".repeat(63);
        let longest = format!("{label}.{label}.{label}.{}", "x".repeat(61));
        assert_eq!(longest.len(), 253);
        assert!(parse(&longest).is_ok());
        assert!(parse(&format!("{longest}.")).is_ok(), "the final dot is not counted");
        assert!(parse(&format!("{longest}x")).is_err());
        assert!(parse(&format!("{label}x.org")).is_err());
        for refused in ["", ".", "a..b", ".a", "exämple.org", "a b", "-a", "a/b"] {
            assert!(parse(refused).is_err(), "{refused:?}");
        }
    }

    proptest! {
        /// Whatever is accepted here can be asked for.
        #[test]
        fn accepted_names_fit_a_query(name in "[a-z0-9_.-]{1,260}") {
            if parse(&name).is_ok() {
                prop_assert!(Name::from_str(&name).is_ok());
            }
        }
    }
}
