//! The result of one check. Names, values and wording are an interface: scripts read them, people search for them.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize, Serializer};

/// What a check found, as `healthCheckStatus` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum CheckStatus {
    /// The answer satisfied the check.
    Ok,
    /// The HTTP status code, or the DNS response code, is not an accepted one.
    InvalidStatusCode,
    /// The deadline struck first.
    TimedOut,
    /// The answer is not the expected one.
    RegexMismatch,
    /// The backend could not be reached.
    ConnectFailed,
    /// The backend was reached, but request or answer failed on the way or is not of the protocol.
    IoError,
    /// The backend is offline by configuration: it is not checked.
    Offline,
    /// No verdict: not checked yet, or the check could not be made for a reason on this host.
    Unknown,
}

impl CheckStatus {
    /// Every status, in the order of the contract.
    pub const ALL: [Self; 8] = [
        Self::Ok,
        Self::InvalidStatusCode,
        Self::TimedOut,
        Self::RegexMismatch,
        Self::ConnectFailed,
        Self::IoError,
        Self::Offline,
        Self::Unknown,
    ];

    /// The word in JSON, in metrics and on the terminal.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::InvalidStatusCode => "INVALID_STATUS_CODE",
            Self::TimedOut => "TIMED_OUT",
            Self::RegexMismatch => "REGEX_MISMATCH",
            Self::ConnectFailed => "CONNECT_FAILED",
            Self::IoError => "IO_ERROR",
            Self::Offline => "OFFLINE",
            Self::Unknown => "UNKNOWN",
        }
    }
}

impl fmt::Display for CheckStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// What a check came to, without where and when: two backends with equal outcomes are ill for the same reason.
///
/// Fields that do not apply are absent from the JSON. Their order is that of the error strings users know from
/// their cloud's log, so that a search for such a string finds ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    /// The verdict.
    #[serde(rename = "healthCheckStatus")]
    pub status: CheckStatus,
    /// What happened, in a few words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub msg: Option<String>,
    /// The HTTP status code or DNS response code that came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status_code: Option<u16>,
    /// The accepted codes, as the configuration writes them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<String>,
    /// Name of the error: an errno, a certificate error, a DNS response code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// Name of the errno, e.g. `ECONNREFUSED`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errno: Option<String>,
    /// The system call that failed, or that the deadline cut short.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub syscall: Option<String>,
}

impl Outcome {
    /// A bare verdict.
    pub const fn new(status: CheckStatus) -> Self {
        Self { status, msg: None, status_code: None, expected: None, code: None, errno: None, syscall: None }
    }

    /// Whether the backend is good, bad, or the outcome says nothing about it.
    pub const fn verdict(&self) -> Option<bool> {
        match self.status {
            CheckStatus::Ok => Some(true),
            CheckStatus::Offline | CheckStatus::Unknown => None,
            _ => Some(false),
        }
    }
}

/// One line for people: `INVALID_STATUS_CODE: invalid statusCode 404, expected 200`.
impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.status.word())?;
        let error = self.errno.as_deref().or(self.code.as_deref());
        let mut separator = ": ";
        if let Some(msg) = &self.msg {
            write!(f, "{separator}{msg}")?;
            if let Some(code) = self.status_code {
                write!(f, " {code}")?;
            }
            separator = ", ";
        }
        if let Some(error) = error {
            write!(f, "{separator}{error}")?;
            if let Some(syscall) = &self.syscall {
                write!(f, " in {syscall}")?;
            }
            separator = ", ";
        }
        if let Some(expected) = &self.expected {
            write!(f, "{separator}expected {expected}")?;
        }
        Ok(())
    }
}

/// The result of one check.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckResult {
    /// What it came to.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// When it was known. RFC 3339 with milliseconds, UTC.
    #[serde(serialize_with = "serialize_milliseconds")]
    pub timestamp: Timestamp,
    /// The address the backend saw, or would have seen: the one its firewall must let in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_ip_address: Option<IpAddr>,
    /// Milliseconds from the first system call to the verdict.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_ms: Option<f64>,
    /// How many results up to this one were good, if this one is, or bad.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consecutive: Option<u32>,
}

impl CheckResult {
    /// The result of a check that was made just now.
    pub fn made(outcome: Outcome, source: Option<IpAddr>, latency: Duration) -> Self {
        // Microseconds are noise here; ten of them are not.
        let latency_ms = (latency.as_secs_f64() * 1e5).round() / 1e2;
        Self {
            outcome,
            timestamp: Timestamp::now(),
            source_ip_address: source,
            latency_ms: Some(latency_ms),
            consecutive: None,
        }
    }

    /// What stands for a result where no check was made: `OFFLINE`, or `UNKNOWN` before the first one.
    pub const fn not_made(status: CheckStatus, timestamp: Timestamp) -> Self {
        Self {
            outcome: Outcome::new(status),
            timestamp,
            source_ip_address: None,
            latency_ms: None,
            consecutive: None,
        }
    }
}

/// Serialises a time as RFC 3339 with exactly three decimals.
pub(super) fn serialize_milliseconds<S: Serializer>(
    time: &Timestamp,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{time:.3}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(outcome: &Outcome) -> String {
        serde_json::to_string(outcome).expect("an outcome serialises")
    }

    #[test]
    fn absent_fields_are_omitted() {
        assert_eq!(json(&Outcome::new(CheckStatus::Ok)), r#"{"healthCheckStatus":"OK"}"#);
    }

    #[test]
    fn every_status_is_written_as_its_word() {
        for status in CheckStatus::ALL {
            assert_eq!(serde_json::to_value(status).expect("serialises"), status.word());
        }
    }

    #[test]
    fn t6_the_seeds_strings_are_found_verbatim() {
        let outcome = Outcome {
            msg: Some("invalid statusCode".into()),
            status_code: Some(404),
            expected: Some("200".into()),
            ..Outcome::new(CheckStatus::InvalidStatusCode)
        };
        assert!(json(&outcome).contains(r#""msg":"invalid statusCode","statusCode":404,"expected":"200""#));
        assert_eq!(outcome.to_string(), "INVALID_STATUS_CODE: invalid statusCode 404, expected 200");
    }

    #[test]
    fn l9_a_result_carries_where_and_when() {
        let source = "10.0.1.2".parse().ok();
        let result = CheckResult::made(Outcome::new(CheckStatus::Ok), source, Duration::from_micros(1_234));
        let value = serde_json::to_value(&result).expect("serialises");
        assert_eq!(value["sourceIpAddress"], "10.0.1.2");
        assert_eq!(value["latencyMs"], 1.23);
        let timestamp = value["timestamp"].as_str().expect("a string");
        assert!(timestamp.parse::<Timestamp>().is_ok(), "{timestamp}");
        assert_eq!(timestamp.len(), "2026-11-05T12:00:00.000Z".len(), "{timestamp}");
        assert!(value.get("consecutive").is_none());
        let back: CheckResult = serde_json::from_value(value).expect("reads back");
        assert_eq!(back.outcome, result.outcome);
    }

    #[test]
    fn l7_an_offline_backend_has_a_result_without_a_check() {
        let value = serde_json::to_value(CheckResult::not_made(CheckStatus::Offline, Timestamp::UNIX_EPOCH))
            .expect("serialises");
        let expected = serde_json::json!({
            "healthCheckStatus": "OFFLINE", "timestamp": "1970-01-01T00:00:00.000Z"
        });
        assert_eq!(value, expected);
    }
}
