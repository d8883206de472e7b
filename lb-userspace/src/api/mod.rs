//! The HTTP API on the instance's unix socket. Handlers only carry questions to the controller's loop and
//! answers back; they share no state with it.

pub mod client;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use axum::Router;
use axum::extract::{DefaultBodyLimit, Path as UrlPath, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};

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
    /// Metrics in the OpenMetrics format.
    Metrics(String),
    /// There is no such thing; says what there is.
    NotFound(String),
    /// It was refused; says why, as data.
    Refused(Value),
    /// It failed; says why.
    Failed(String),
}

/// The media type of what `prometheus-client` writes.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A question on its way to the controller.
pub type Call = (Question, oneshot::Sender<Answer>);

/// Serves the API on a unix socket of mode 0600 until the process ends.
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
    let router = router(calls);
    Ok(tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!("the API stopped: {error}");
        }
    }))
}

fn router(calls: mpsc::Sender<Call>) -> Router {
    Router::new()
        .route("/v1/status", get(|State(calls)| ask(calls, Question::Status)))
        .route("/v1/config", get(|State(calls)| ask(calls, Question::Config)))
        .route("/v1/history", get(|State(calls)| ask_history(calls, None, None)))
        .route("/v1/history/{set}", get(|State(calls), UrlPath(set)| ask_history(calls, Some(set), None)))
        .route(
            "/v1/history/{set}/{backend}",
            get(|State(calls), UrlPath((set, backend))| ask_history(calls, Some(set), Some(backend))),
        )
        .route("/v1/diagnose", get(|State(calls)| ask(calls, Question::Diagnose { set: None })))
        .route(
            "/v1/diagnose/{set}",
            get(|State(calls), UrlPath(set)| ask(calls, Question::Diagnose { set: Some(set) })),
        )
        .route("/v1/events", get(|State(calls)| ask(calls, Question::Events)))
        .route("/metrics", get(|State(calls)| ask(calls, Question::Metrics)))
        .route("/v1/reload", post(|State(calls)| ask(calls, Question::Reload)))
        .route("/v1/detach", post(|State(calls)| ask(calls, Question::Detach)))
        .route("/v1/backends/{set}/{backend}/{action}", post(change_backend))
        .fallback(|| async { respond(Answer::NotFound("no such resource".to_owned())) })
        .layer(DefaultBodyLimit::max(64 * 1024))
        .with_state(calls)
}

async fn ask_history(calls: mpsc::Sender<Call>, set: Option<String>, backend: Option<String>) -> Response {
    ask(calls, Question::History { set, backend }).await
}

async fn change_backend(
    State(calls): State<mpsc::Sender<Call>>,
    UrlPath((set, backend, action)): UrlPath<(String, String, String)>,
) -> Response {
    match Action::from_word(&action) {
        Some(action) => ask(calls, Question::Backend { set, backend, action }).await,
        None => respond(Answer::NotFound(format!(
            "no action `{action}`; expected drain, undrain, offline or online"
        ))),
    }
}

async fn ask(calls: mpsc::Sender<Call>, question: Question) -> Response {
    let (reply, answer) = oneshot::channel();
    let stopping = || Answer::Failed("the controller is stopping".to_owned());
    let answer = match calls.send((question, reply)).await {
        Ok(()) => answer.await.unwrap_or_else(|_| stopping()),
        Err(_) => stopping(),
    };
    respond(answer)
}

fn respond(answer: Answer) -> Response {
    let (code, body) = match answer {
        Answer::Document(document) => (StatusCode::OK, document),
        Answer::Detached => (StatusCode::OK, json!({ "detached": true })),
        Answer::Metrics(text) => return ([(CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Answer::NotFound(message) => (StatusCode::NOT_FOUND, json!({ "error": message })),
        Answer::Refused(details) => (StatusCode::UNPROCESSABLE_ENTITY, details),
        Answer::Failed(message) => (StatusCode::INTERNAL_SERVER_ERROR, json!({ "error": message })),
    };
    (code, axum::Json(body)).into_response()
}
