//! The HTTP API on the instance's unix socket and, where the configuration says so, on a TCP port. Handlers only carry
//! questions to the controller's loop and answers back; they share no state with it.
//!
//! | file | what it does |
//! | --- | --- |
//! | `routes` | the resources, each documented where it is served: `GET /v1/openapi.json` cannot drift away from them |
//! | `access` | who may change something |
//! | `tcp` | the TCP port, which comes, goes and moves with the configuration |
//! | `client` | what the commands ask |

pub mod access;
pub mod client;
pub mod routes;
pub mod tcp;
#[cfg(test)]
mod tests;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};

use access::Access;

/// What a client may ask of the controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// The status document.
    Status,
    /// The configuration in force, as TOML.
    Config,
    /// The last transitions of each backend, of one set or of one backend.
    History {
        /// Name of a set.
        set: Option<String>,
        /// Name of a backend of that set.
        backend: Option<String>,
    },
    /// What is wrong, with all sets or with one.
    Diagnose {
        /// Name of a set.
        set: Option<String>,
    },
    /// The last events of packets.
    Events,
    /// The names behind the ids in the maps.
    Names,
    /// The metrics, as text.
    Metrics,
    /// Read the file again.
    Reload,
    /// Change the life-cycle of a backend until the next reload of a changed file.
    Backend {
        /// Name of the set.
        set: String,
        /// Name of the backend.
        backend: String,
        /// What to do with it.
        action: Action,
    },
    /// Remove the data plane and stop.
    Detach,
}

/// A change in the life-cycle of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// No new flows.
    Drain,
    /// Ends a drain.
    Undrain,
    /// No traffic, no checks.
    Offline,
    /// Ends that.
    Online,
}

impl Action {
    /// The action behind a word of the path.
    pub fn from_word(word: &str) -> Option<Self> {
        match word {
            "drain" => Some(Self::Drain),
            "undrain" => Some(Self::Undrain),
            "offline" => Some(Self::Offline),
            "online" => Some(Self::Online),
            _ => None,
        }
    }

    /// The word of the path.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Drain => "drain",
            Self::Undrain => "undrain",
            Self::Offline => "offline",
            Self::Online => "online",
        }
    }
}

/// What the controller answers.
#[derive(Clone, Debug)]
pub enum Answer {
    /// A document.
    Document(Value),
    /// The data plane has been removed.
    Detached,
    /// Metrics in the text format of Prometheus.
    Metrics(String),
    /// There is no such thing; says what there is.
    NotFound(String),
    /// It was refused; says why, as data.
    Refused(Value),
    /// It failed; says why.
    Failed(String),
}

/// A question on its way to the controller.
pub type Call = (Question, oneshot::Sender<Answer>);

/// Serves the API on a unix socket of mode 0600 until nobody takes calls any more; the task ends when what was asked
/// until then is answered.
///
/// # Errors
///
/// If the socket cannot be made.
pub fn serve(socket: &Path, calls: mpsc::Sender<Call>) -> Result<tokio::task::JoinHandle<()>> {
    // Left behind by a controller that was killed; the instance's lock says that nobody serves it.
    let _ = fs::remove_file(socket);
    let listener =
        UnixListener::bind(socket).with_context(|| format!("cannot listen on {}", socket.display()))?;
    fs::set_permissions(socket, fs::Permissions::from_mode(0o600))
        .context("cannot restrict the API socket")?;
    let router = routes::router(calls.clone(), Access::Owner);
    let end = async move { calls.closed().await };
    Ok(tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).with_graceful_shutdown(end).await {
            tracing::error!("the API stopped: {error}");
        }
    }))
}
