//! Every way a check can fail, and the words for it.

use std::borrow::Cow;
use std::io;
use std::time::Duration;

use nix::errno::Errno;

use crate::health::result::{CheckStatus, Outcome};

/// What a check was waiting for when its deadline struck.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waiting {
    /// The TCP handshake.
    Connection,
    /// The TCP handshake and then the TLS handshake: which of them is not known.
    Session,
    /// The answer, or the rest of it.
    Answer,
}

/// Why a check did not end well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The deadline struck.
    TimedOut(Waiting),
    /// A system call failed.
    Os {
        /// Its name: `connect`, `bind`, `socket`; `read`, `write` on a stream; `send`, `recv` on a datagram socket.
        syscall: &'static str,
        /// With what.
        errno: Errno,
    },
    /// An HTTP status code that is not accepted.
    StatusCode {
        /// The one that came.
        found: u16,
        /// The accepted ones, as configured.
        expected: String,
    },
    /// A DNS response code that is not accepted.
    Rcode {
        /// The one that came.
        found: u16,
        /// Its name.
        name: Cow<'static, str>,
        /// The accepted ones.
        expected: String,
    },
    /// The answer differs from `response_data`, or `response_body_regex` is not found in it.
    Mismatch,
    /// The regex was given up: it backtracks more than `REGEX_BACKTRACK_LIMIT` allows.
    Backtracking,
    /// The peer speaks another protocol, or hung up before a single byte of an answer.
    WrongProtocol,
    /// The peer speaks the protocol, but wrongly or in a dialect we have not in common.
    Protocol(String),
    /// The certificate was not accepted.
    Certificate {
        /// OpenSSL's name for it.
        code: &'static str,
        /// What was wrong.
        msg: String,
    },
    /// The peer closed the connection before the whole answer.
    Closed,
    /// The check cannot be made, and it is not the backend's fault.
    Unusable(String),
}

impl Failure {
    /// The failure of a system call; one without an errno means that the peer closed the connection.
    pub(super) fn os(syscall: &'static str, error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(errno) => Self::Os { syscall, errno: Errno::from_raw(errno) },
            None => Self::Closed,
        }
    }

    /// A host that answers neither ARP nor neighbour discovery.
    pub(super) const UNREACHABLE: Self = Self::Os { syscall: "connect", errno: Errno::EHOSTUNREACH };

    /// The words for it. `timeout` is the one of the check.
    pub(super) fn outcome(self, timeout: Duration) -> Outcome {
        let io_error = Outcome::new(CheckStatus::IoError);
        match self {
            Self::TimedOut(waiting) => timed_out(waiting, timeout),
            Self::Os { syscall, errno } => os_error(syscall, errno),
            Self::StatusCode { found, expected } => Outcome {
                msg: Some("invalid statusCode".into()),
                status_code: Some(found),
                expected: Some(expected),
                ..Outcome::new(CheckStatus::InvalidStatusCode)
            },
            Self::Rcode { found, name, expected } => Outcome {
                msg: Some("invalid rcode".into()),
                status_code: Some(found),
                expected: Some(expected),
                code: Some(name.into_owned()),
                ..Outcome::new(CheckStatus::InvalidStatusCode)
            },
            Self::Mismatch => mismatch(None),
            Self::Backtracking => mismatch(Some("BACKTRACK_LIMIT")),
            Self::WrongProtocol => eproto(None),
            Self::Protocol(msg) => eproto(Some(msg)),
            Self::Certificate { code, msg } => {
                Outcome { msg: Some(msg), code: Some(code.into()), ..io_error }
            }
            Self::Closed => {
                Outcome { msg: Some("connection closed before the whole answer".into()), ..io_error }
            }
            Self::Unusable(msg) => Outcome { msg: Some(msg), ..Outcome::new(CheckStatus::Unknown) },
        }
    }
}

fn timed_out(waiting: Waiting, timeout: Duration) -> Outcome {
    let (what, syscall) = match waiting {
        Waiting::Connection => ("connection", Some("connect")),
        Waiting::Session => ("connection and TLS session", None),
        Waiting::Answer => ("complete answer", Some("read")),
    };
    Outcome {
        msg: Some(format!("no {what} within {} ms", timeout.as_millis())),
        syscall: syscall.map(Into::into),
        ..Outcome::new(CheckStatus::TimedOut)
    }
}

fn mismatch(code: Option<&str>) -> Outcome {
    Outcome {
        msg: Some("response match result: failed".into()),
        code: code.map(Into::into),
        ..Outcome::new(CheckStatus::RegexMismatch)
    }
}

fn eproto(msg: Option<String>) -> Outcome {
    Outcome {
        msg,
        code: Some("EPROTO".into()),
        errno: Some("EPROTO".into()),
        ..Outcome::new(CheckStatus::IoError)
    }
}

fn os_error(syscall: &'static str, errno: Errno) -> Outcome {
    // Want of files or memory here says nothing about the backend.
    let ours = matches!(errno, Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM);
    let status = match syscall {
        _ if ours => CheckStatus::Unknown,
        _ if errno == Errno::ETIMEDOUT => CheckStatus::TimedOut,
        "read" | "write" => CheckStatus::IoError,
        "socket" => CheckStatus::Unknown,
        _ => CheckStatus::ConnectFailed,
    };
    Outcome {
        msg: ours.then(|| "not checked: this host is short of files or memory".into()),
        errno: Some(format!("{errno:?}")),
        syscall: Some(syscall.into()),
        ..Outcome::new(status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_millis(3000);

    fn json(failure: Failure) -> serde_json::Value {
        serde_json::to_value(failure.outcome(TIMEOUT)).expect("an outcome serialises")
    }

    fn connect(errno: Errno) -> serde_json::Value {
        json(Failure::Os { syscall: "connect", errno })
    }

    #[test]
    fn t1_t2_t5_connect_errors_name_errno_and_syscall() {
        for errno in ["EHOSTUNREACH", "ECONNREFUSED", "ENETUNREACH"] {
            let raw = match errno {
                "EHOSTUNREACH" => Errno::EHOSTUNREACH,
                "ECONNREFUSED" => Errno::ECONNREFUSED,
                _ => Errno::ENETUNREACH,
            };
            let expected = serde_json::json!({
                "healthCheckStatus": "CONNECT_FAILED", "errno": errno, "syscall": "connect"
            });
            assert_eq!(connect(raw), expected);
        }
        let text = serde_json::to_string(&Failure::UNREACHABLE.outcome(TIMEOUT)).expect("serialises");
        assert!(text.contains(r#""errno":"EHOSTUNREACH","syscall":"connect""#), "{text}");
    }

    #[test]
    fn t4_a_timeout_says_what_it_waited_for() {
        let outcome = Failure::TimedOut(Waiting::Connection).outcome(TIMEOUT);
        assert_eq!(outcome.to_string(), "TIMED_OUT: no connection within 3000 ms");
        assert_eq!(outcome.syscall.as_deref(), Some("connect"));
        assert_eq!(connect(Errno::ETIMEDOUT)["healthCheckStatus"], "TIMED_OUT");
    }

    #[test]
    fn t9_the_wrong_protocol_is_the_seeds_eproto() {
        let text = serde_json::to_string(&Failure::WrongProtocol.outcome(TIMEOUT)).expect("serialises");
        assert_eq!(text, r#"{"healthCheckStatus":"IO_ERROR","code":"EPROTO","errno":"EPROTO"}"#);
    }

    #[test]
    fn t12_a_mismatch_is_worded_as_in_the_seed() {
        let expected = serde_json::json!({
            "healthCheckStatus": "REGEX_MISMATCH", "msg": "response match result: failed"
        });
        assert_eq!(json(Failure::Mismatch), expected);
    }

    #[test]
    fn errors_after_the_connection_are_io_errors() {
        let outcome = Failure::Os { syscall: "read", errno: Errno::ECONNRESET }.outcome(TIMEOUT);
        assert_eq!(outcome.to_string(), "IO_ERROR: ECONNRESET in read");
    }

    #[test]
    fn want_of_files_on_this_host_is_no_verdict_on_the_backend() {
        for syscall in ["socket", "connect", "bind", "read"] {
            let outcome = Failure::Os { syscall, errno: Errno::EMFILE }.outcome(TIMEOUT);
            assert_eq!(outcome.status, CheckStatus::Unknown, "{syscall}");
            assert_eq!(outcome.verdict(), None);
        }
    }
}
