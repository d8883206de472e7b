//! The resources of the API. `utoipa` makes the OpenAPI document from the same attributes that route the requests.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, FromRequest, Path as UrlPath, Request, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::json;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use utoipa::openapi::OpenApi as Document;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::{Modify, OpenApi, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::access::{Access, MayChange};
use super::{Action, Answer, Call, Question};
use crate::status::{Names, Status};

/// Most bytes of a request's body. No resource takes one yet.
pub const MAX_BODY: usize = 64 << 10;

/// How long a body may take to come.
const BODY_PATIENCE: Duration = Duration::from_secs(10);

/// The media type of the text format of Prometheus.
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What every handler knows.
#[derive(Clone, Debug)]
pub struct Server {
    calls: mpsc::Sender<Call>,
    pub(super) access: Access,
}

#[derive(OpenApi)]
#[openapi(
    info(title = "lb", description = "Status and life-cycle of one instance of the load balancer lb."),
    modifiers(&BearerToken),
    components(schemas(Failure, Refusal))
)]
struct Description;

struct BearerToken;

impl Modify for BearerToken {
    fn modify(&self, document: &mut Document) {
        let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        document.components.get_or_insert_default().add_security_scheme("token", scheme);
    }
}

/// Every answer with a status of 400 or above, but for a file that is refused.
#[derive(Debug, Serialize, ToSchema)]
struct Failure {
    /// What was expected, what was found, what to do.
    error: String,
}

/// A configuration file that was refused; the running configuration stays.
#[derive(Debug, Serialize, ToSchema)]
struct Refusal {
    /// That it was refused.
    error: String,
    /// Every error with its place, as `lb check` prints it.
    report: String,
}

/// The API, for callers with this kind of access.
pub fn router(calls: mpsc::Sender<Call>, access: Access) -> Router {
    let (router, document) = OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(status))
        .routes(routes!(config))
        .routes(routes!(names))
        .routes(routes!(history))
        .routes(routes!(history_of_set))
        .routes(routes!(history_of_backend))
        .routes(routes!(diagnose))
        .routes(routes!(diagnose_set))
        .routes(routes!(events))
        .routes(routes!(metrics))
        .routes(routes!(reload))
        .routes(routes!(detach))
        .routes(routes!(change_backend))
        .split_for_parts();
    let document: Arc<str> = json!(document).to_string().into();
    let document = move || async move { ([(CONTENT_TYPE, "application/json")], document.to_string()) };
    router
        .route("/v1/openapi.json", axum::routing::get(document))
        .fallback(|| async {
            error(StatusCode::NOT_FOUND, "no such resource; GET /v1/openapi.json lists them")
        })
        .method_not_allowed_fallback(|| async {
            error(
                StatusCode::METHOD_NOT_ALLOWED,
                "this resource does not take that method; see the header `Allow`",
            )
        })
        .layer(from_fn(take_whole_body))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(from_fn(speak_json))
        .with_state(Server { calls, access })
}

/// Status: health, rotation and counters
#[utoipa::path(get, path = "/v1/status", responses((status = 200, body = Status)))]
async fn status(State(server): State<Server>) -> Response {
    ask(server, Question::Status).await
}

/// The configuration in force, every default spelled out, as TOML in a string
#[utoipa::path(get, path = "/v1/config", responses((status = 200, body = Value)))]
async fn config(State(server): State<Server>) -> Response {
    ask(server, Question::Config).await
}

/// The names behind the ids in the maps
#[utoipa::path(get, path = "/v1/names", responses((status = 200, body = Names)))]
async fn names(State(server): State<Server>) -> Response {
    ask(server, Question::Names).await
}

/// The last transitions of every backend
#[utoipa::path(get, path = "/v1/history", responses((status = 200, body = Value)))]
async fn history(State(server): State<Server>) -> Response {
    ask(server, Question::History { set: None, backend: None }).await
}

/// The last transitions of the backends of a set
#[utoipa::path(
    get,
    path = "/v1/history/{set}",
    params(("set" = String, Path, description = "Name of a backend set")),
    responses((status = 200, body = Value), (status = 404, body = Failure))
)]
async fn history_of_set(State(server): State<Server>, UrlPath(set): UrlPath<String>) -> Response {
    ask(server, Question::History { set: Some(set), backend: None }).await
}

/// The last transitions of a backend
#[utoipa::path(
    get,
    path = "/v1/history/{set}/{backend}",
    params(
        ("set" = String, Path, description = "Name of a backend set"),
        ("backend" = String, Path, description = "Name of a backend")
    ),
    responses((status = 200, body = Value), (status = 404, body = Failure))
)]
async fn history_of_backend(
    State(server): State<Server>,
    UrlPath((set, backend)): UrlPath<(String, String)>,
) -> Response {
    ask(server, Question::History { set: Some(set), backend: Some(backend) }).await
}

/// Why backends are bad, and what to try by hand
#[utoipa::path(get, path = "/v1/diagnose", responses((status = 200, body = Value)))]
async fn diagnose(State(server): State<Server>) -> Response {
    ask(server, Question::Diagnose { set: None }).await
}

/// Why backends of a set are bad, and what to try by hand
#[utoipa::path(
    get,
    path = "/v1/diagnose/{set}",
    params(("set" = String, Path, description = "Name of a backend set")),
    responses((status = 200, body = Value), (status = 404, body = Failure))
)]
async fn diagnose_set(State(server): State<Server>, UrlPath(set): UrlPath<String>) -> Response {
    ask(server, Question::Diagnose { set: Some(set) }).await
}

/// The last events of packets
#[utoipa::path(get, path = "/v1/events", responses((status = 200, body = Value)))]
async fn events(State(server): State<Server>) -> Response {
    ask(server, Question::Events).await
}

/// Metrics in the text format of Prometheus
#[utoipa::path(get, path = "/metrics", responses((status = 200, body = String, content_type = "text/plain")))]
async fn metrics(State(server): State<Server>) -> Response {
    ask(server, Question::Metrics).await
}

/// Read the configuration file again and apply what changed
#[utoipa::path(
    post,
    path = "/v1/reload",
    security(("token" = [])),
    responses(
        (status = 200, body = Value),
        (status = 401, body = Failure),
        (status = 403, body = Failure),
        (status = 422, body = Refusal)
    )
)]
async fn reload(_: MayChange, State(server): State<Server>) -> Response {
    ask(server, Question::Reload).await
}

/// Remove the data plane, its pins and the addresses it assigned, and stop the controller
#[utoipa::path(
    post,
    path = "/v1/detach",
    security(("token" = [])),
    responses((status = 200, body = Value), (status = 401, body = Failure), (status = 403, body = Failure))
)]
async fn detach(_: MayChange, State(server): State<Server>) -> Response {
    ask(server, Question::Detach).await
}

/// Change the life-cycle of a backend until the next reload of a changed file
#[utoipa::path(
    post,
    path = "/v1/backends/{set}/{backend}/{action}",
    params(
        ("set" = String, Path, description = "Name of a backend set"),
        ("backend" = String, Path, description = "Name of a backend"),
        ("action" = String, Path, description = "drain, undrain, offline or online")
    ),
    security(("token" = [])),
    responses(
        (status = 200, body = Value),
        (status = 401, body = Failure),
        (status = 403, body = Failure),
        (status = 404, body = Failure)
    )
)]
async fn change_backend(
    _: MayChange,
    State(server): State<Server>,
    UrlPath((set, backend, action)): UrlPath<(String, String, String)>,
) -> Response {
    match Action::from_word(&action) {
        Some(action) => ask(server, Question::Backend { set, backend, action }).await,
        None => error(
            StatusCode::NOT_FOUND,
            &format!("no action `{action}`; expected drain, undrain, offline or online"),
        ),
    }
}

async fn ask(server: Server, question: Question) -> Response {
    let (reply, answer) = oneshot::channel();
    let stopping = || Answer::Failed("the controller is stopping".to_owned());
    let answer = match server.calls.send((question, reply)).await {
        Ok(()) => answer.await.unwrap_or_else(|_| stopping()),
        Err(_) => stopping(),
    };
    respond(answer)
}

fn respond(answer: Answer) -> Response {
    let (code, body) = match answer {
        Answer::Document(document) => (StatusCode::OK, document),
        Answer::Detached => (StatusCode::OK, json!({ "detached": true })),
        Answer::Metrics(text) => return ([(CONTENT_TYPE, PROMETHEUS)], text).into_response(),
        Answer::NotFound(message) => return error(StatusCode::NOT_FOUND, &message),
        Answer::Refused(details) => (StatusCode::UNPROCESSABLE_ENTITY, details),
        Answer::Failed(message) => return error(StatusCode::INTERNAL_SERVER_ERROR, &message),
    };
    (code, axum::Json(body)).into_response()
}

/// An error as JSON.
pub(super) fn error(code: StatusCode, message: &str) -> Response {
    (code, axum::Json(Failure { error: message.to_owned() })).into_response()
}

/// Reads the body before anything is done: one that is too long or broken off does nothing, whatever the resource.
async fn take_whole_body(request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    // The limit is one of the extensions.
    let whole = Request::from_parts(parts.clone(), body);
    match timeout(BODY_PATIENCE, Bytes::from_request(whole, &())).await {
        Ok(Ok(body)) => next.run(Request::from_parts(parts, Body::from(body))).await,
        Ok(Err(rejection)) => rejection.into_response(),
        Err(_) => error(StatusCode::REQUEST_TIMEOUT, "the body did not come in time"),
    }
}

/// Makes every error a document, those of the framework included, whose own are plain text.
async fn speak_json(request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    let code = response.status();
    let is_json = response.headers().get(CONTENT_TYPE).is_some_and(|kind| kind == "application/json");
    if !(code.is_client_error() || code.is_server_error()) || is_json {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    // What the framework says of an error is a sentence.
    let text = axum::body::to_bytes(body, MAX_BODY).await.unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let message = if text.is_empty() { code.canonical_reason().unwrap_or("refused") } else { &text };
    let document = error(code, message);
    parts.headers.extend(document.headers().clone());
    parts.headers.remove(axum::http::header::CONTENT_LENGTH);
    Response::from_parts(parts, document.into_body())
}
