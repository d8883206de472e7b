//! What an HTTP or HTTPS check may ask for and accept.

use super::problem::Problem;
use super::reader::Value;
use super::schema::StatusCodes;
use super::{dns_name, scalar};

/// Longest `path`, in bytes.
const MAX_PATH: usize = 1024;
/// Longest `host`, in bytes: a DNS name, a colon and a port.
const MAX_HOST: usize = 253 + 6;
/// Longest `response_body_regex`, in bytes.
const MAX_REGEX: usize = 4096;

/// What `return_code` may hold.
const RETURN_CODE: &str = "200, \"200\", \"200,302\" or \"200-299\", each from 100 to 599";

/// The path and query of a request (RFC 9112, section 3.2.1: origin-form).
pub(super) fn path(text: &str) -> Result<String, Problem> {
    let problem = |message: &str| {
        Problem::new(message).allowed(format!(
            "a path that begins with `/`, at most {MAX_PATH} bytes of ASCII without spaces, control \
             characters and `#`"
        ))
    };
    if !text.starts_with('/') {
        return Err(problem("does not begin with `/`").suggest(format!("/{text}")));
    }
    if text.len() > MAX_PATH {
        return Err(problem(&format!("{} bytes long", text.len())));
    }
    let is_allowed = |byte: u8| byte.is_ascii_graphic() && byte != b'#';
    if text.bytes().all(is_allowed) {
        return Ok(text.to_owned());
    }
    let encode =
        |byte: u8| if is_allowed(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    Err(problem("some characters cannot stand in a path as they are")
        .suggest(text.bytes().map(encode).collect::<String>()))
}

/// The value of the Host header.
pub(super) fn host(text: &str) -> Result<String, Problem> {
    let is_allowed = |c: char| c.is_ascii_graphic() && !"/?#@\\\"<>^`{|}".contains(c);
    if text.len() <= MAX_HOST && text.chars().all(is_allowed) {
        return Ok(text.to_owned());
    }
    let meant = text.split_once("://").map(|(_, rest)| rest.split('/').next().unwrap_or_default());
    Err(Problem::new("not a host")
        .allowed(format!("a host name or address with or without a port, at most {MAX_HOST} bytes, or \"\""))
        .suggest_any(meant.filter(|host| host.chars().all(is_allowed))))
}

/// The default of `return_code`.
pub(super) fn only_200() -> StatusCodes {
    StatusCodes { text: "200".into(), ranges: vec![(200, 200)] }
}

/// Reads `return_code`.
pub(super) fn return_code(value: &Value<'_, '_>) -> Option<StatusCodes> {
    match value.as_integer() {
        Some(code) => value.accept(status_codes(&code.to_string())),
        None => value.accept(status_codes(value.text_or(RETURN_CODE)?)),
    }
}

fn status_codes(text: &str) -> Result<StatusCodes, Problem> {
    let problem = |message: String| Problem::new(message).allowed(RETURN_CODE);
    let code = |digits: &str| {
        let is_number = digits.len() == 3 && digits.bytes().all(|byte| byte.is_ascii_digit());
        let code = digits.parse::<u16>().ok().filter(|code| is_number && (100..=599).contains(code));
        code.ok_or_else(|| problem(format!("{digits:?} is not a status code")))
    };
    let mut ranges = Vec::new();
    for part in text.split(',').map(str::trim) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (code(first.trim())?, code(last.trim())?);
        if first > last {
            return Err(problem(format!("the range {part} is reversed")).suggest(format!("{last}-{first}")));
        }
        ranges.push((first, last));
    }
    Ok(StatusCodes { text: text.to_owned(), ranges })
}

/// A regular expression with look-around.
pub(super) fn body_regex(text: &str) -> Result<String, Problem> {
    let allowed = format!("a regular expression of at most {MAX_REGEX} bytes, or \"\" for any body");
    if text.len() > MAX_REGEX {
        return Err(Problem::new(format!("{} bytes long", text.len())).allowed(allowed));
    }
    match fancy_regex::Regex::new(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(fancy_regex::Error::ParseError(offset, kind)) => {
            let character = text.get(..offset).unwrap_or(text).chars().count() + 1;
            Err(Problem::new(format!("at character {character} of the expression: {kind}")).allowed(allowed))
        }
        Err(error) => Err(Problem::new(format!("not a regular expression: {error}")).allowed(allowed)),
    }
}

/// Whether an empty body is found by an expression that [`body_regex`] took.
pub(super) fn matches_nothing(regex: &str) -> bool {
    fancy_regex::Regex::new(regex).is_ok_and(|regex| regex.is_match("").unwrap_or(false))
}

/// The name sent as SNI (RFC 6066, section 3: a host name, no address).
pub(super) fn server_name(text: &str) -> Result<String, Problem> {
    if text.is_empty() {
        return Ok(String::new());
    }
    if scalar::unicast(text).is_ok() {
        return Err(
            Problem::new("an IP address, which SNI does not carry").allowed("a DNS name, or \"\" for none")
        );
    }
    dns_name::parse(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        assert!(path("/").is_ok());
        assert!(path("/health?full=1&x=%20").is_ok());
        assert!(path(&format!("/{}", "x".repeat(1023))).is_ok());
        assert!(path(&format!("/{}", "x".repeat(1024))).is_err());
        assert_eq!(path("health").unwrap_err().suggestion.unwrap(), "/health");
        assert_eq!(path("/a b").unwrap_err().suggestion.unwrap(), "/a%20b");
        assert_eq!(path("/ä").unwrap_err().suggestion.unwrap(), "/%C3%A4");
        for refused in ["", "/a\r\nHost: b", "/a\u{0}", "/#top"] {
            assert!(path(refused).is_err(), "{refused:?}");
        }
    }

    #[test]
    fn hosts() {
        for accepted in ["", "example.org", "example.org:8080", "10.0.0.1:80", "[fd00::1]:80"] {
            assert!(host(accepted).is_ok(), "{accepted}");
        }
        for refused in ["a b", "a\r\nX: y", "user@host", "exämple.org"] {
            assert!(host(refused).is_err(), "{refused:?}");
        }
        assert_eq!(host("http://example.org/x").unwrap_err().suggestion.unwrap(), "example.org");
    }

    #[test]
    fn status_code_lists_and_ranges() {
        let codes = status_codes("200, 301-302,404").unwrap();
        assert_eq!(codes.ranges, [(200, 200), (301, 302), (404, 404)]);
        assert!(codes.contains(302) && !codes.contains(303));
        assert_eq!(status_codes("100-599").unwrap().ranges, [(100, 599)]);
        for refused in ["", "99", "600", "200,", ",", "200-", "-200", "2xx", "+200", "0200", "200-100"] {
            assert!(status_codes(refused).is_err(), "{refused:?}");
        }
        assert_eq!(status_codes("299-200").unwrap_err().suggestion.unwrap(), "200-299");
    }

    #[test]
    fn regular_expressions() {
        assert!(body_regex(r"^(?!.*error).*ok").is_ok(), "look-around");
        assert!(body_regex("").is_ok());
        let problem = body_regex("é(ab").unwrap_err();
        assert!(problem.message.contains("at character "), "{}", problem.message);
        assert!(body_regex(&"(".repeat(4000)).is_err(), "nesting");
        assert!(body_regex(&"a".repeat(4097)).is_err());
        assert!(matches_nothing(".*") && !matches_nothing("ok"));
    }

    #[test]
    fn server_names() {
        assert!(server_name("").is_ok());
        assert!(server_name("www.example.org").is_ok());
        assert!(server_name("10.0.0.1").is_err());
        assert!(server_name("a b").is_err());
    }
}
