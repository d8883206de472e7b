//! The API from the outside, with a controller that only remembers what it was asked.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use proptest::prelude::*;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tower::Service;

use super::access::{Access, Token};
use super::routes::{MAX_BODY, router};

use super::tcp::TcpApi;
use super::*;
use crate::config::Api;

/// What the controller was asked.
type Asked = Arc<Mutex<Vec<Question>>>;

fn controller() -> (mpsc::Sender<Call>, Asked) {
    let (calls, mut received) = mpsc::channel::<Call>(16);
    let asked = Asked::default();
    let notes = Arc::clone(&asked);
    tokio::spawn(async move {
        while let Some((question, reply)) = received.recv().await {
            let answer = match &question {
                Question::Metrics => Answer::Metrics("lb_backend_up 1\n".to_owned()),
                Question::Reload => Answer::Refused(serde_json::json!({ "error": "no", "report": "no" })),
                Question::Backend { set, .. } if set != "web" => Answer::NotFound("no such set".to_owned()),
                Question::History { set: Some(_), .. } => Answer::Failed("broken".to_owned()),
                Question::Detach => Answer::Detached,
                _ => Answer::Document(serde_json::json!({ "of": format!("{question:?}") })),
            };
            notes.lock().unwrap().push(question);
            let _ = reply.send(answer);
        }
    });
    (calls, asked)
}

/// The API as over TCP, with or without a token.
fn over_tcp(token: Option<&str>) -> (Router, Asked) {
    let (calls, asked) = controller();
    let (_, token) = watch::channel(token.map(Token::new));
    (router(calls, Access::Token(token)), asked)
}

async fn send(router: &Router, request: Request<Body>) -> (StatusCode, Value) {
    let response = router.clone().call(request).await.expect("a router never fails");
    let code = response.status();
    let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.expect("a whole body");
    (code, serde_json::from_slice(&body).unwrap_or(Value::Null))
}

fn request(method: Method, path: &str, authorization: Option<&str>) -> Request<Body> {
    let mut request = Request::builder().method(method).uri(path);
    if let Some(value) = authorization {
        request = request.header("Authorization", value);
    }
    request.body(Body::empty()).unwrap()
}

const DRAIN: &str = "/v1/backends/web/10.0.1.10%3A8080/drain";

#[tokio::test]
async fn over_tcp_reads_are_open_and_writes_need_the_token() {
    let (router, asked) = over_tcp(Some("geheim"));
    assert_eq!(send(&router, request(Method::GET, "/v1/status", None)).await.0, 200);
    for (authorization, expected) in [
        (None, 401),
        (Some("Bearer falsch"), 401),
        (Some("Bearer geheimer"), 401),
        (Some("Bearer "), 401),
        (Some("Bearer"), 401),
        (Some("Basic geheim"), 401),
        (Some("Bearer geheim"), 200),
        (Some("bearer geheim"), 200),
    ] {
        let before = asked.lock().unwrap().len();
        let (code, body) = send(&router, request(Method::POST, DRAIN, authorization)).await;
        assert_eq!(code, expected, "{authorization:?}: {body}");
        assert_eq!(asked.lock().unwrap().len() - before, usize::from(expected == 200), "{authorization:?}");
        assert!(expected == 200 || body["error"].is_string(), "{body}");
    }
    let asked = asked.lock().unwrap();
    let (set, backend) = ("web".to_owned(), "10.0.1.10:8080".to_owned());
    assert_eq!(asked.last(), Some(&Question::Backend { set, backend, action: Action::Drain }));
}

#[tokio::test]
async fn without_a_token_nothing_can_be_changed_over_tcp_but_by_the_owner_of_the_socket() {
    let (router, asked) = over_tcp(None);
    for path in [DRAIN, "/v1/reload", "/v1/detach"] {
        let (code, body) = send(&router, request(Method::POST, path, Some("Bearer "))).await;
        assert_eq!(code, 403, "{path}");
        assert!(body["error"].as_str().is_some_and(|error| error.contains("api.token_file")), "{body}");
    }
    assert!(asked.lock().unwrap().is_empty());
    let owners = routes::router(controller().0, Access::Owner);
    assert_eq!(send(&owners, request(Method::POST, DRAIN, None)).await.0, 200);
    assert_eq!(send(&owners, request(Method::POST, "/v1/reload", None)).await.0, 422);
}

#[tokio::test]
async fn every_error_is_a_document() {
    let (router, _) = over_tcp(Some("geheim"));
    let token = Some("Bearer geheim");
    for (method, path, expected) in [
        (Method::GET, "/", 404),
        (Method::GET, "/v1/nothing", 404),
        (Method::POST, "/v1/nothing", 404),
        (Method::GET, "/v1/history/web", 500),
        (Method::GET, "/v1/diagnose/%ff", 400),
        (Method::POST, "/v1/status", 405),
        (Method::DELETE, "/v1/reload", 405),
        (Method::GET, DRAIN, 405),
        (Method::POST, "/v1/backends/web/a/explode", 404),
        (Method::POST, "/v1/backends/other/a/drain", 404),
    ] {
        let (code, body) = send(&router, request(method.clone(), path, token)).await;
        assert_eq!(code, expected, "{method} {path}: {body}");
        assert!(body["error"].as_str().is_some_and(|error| !error.is_empty()), "{method} {path}: {body}");
    }
    let too_long = request(Method::POST, "/v1/reload", token).map(|_| Body::from(vec![b'x'; MAX_BODY + 1]));
    let (code, body) = send(&router, too_long).await;
    assert!(code == 413 && body["error"].is_string(), "{code} {body}");
    let longest = request(Method::GET, "/v1/status", None).map(|_| Body::from(vec![b'x'; MAX_BODY]));
    assert_eq!(send(&router, longest).await.0, 200);
}

/// Requests that are in the document are answered, and only they.
#[tokio::test]
async fn the_openapi_document_lists_what_there_is() {
    let (router, _) = over_tcp(Some("geheim"));
    let (code, document) = send(&router, request(Method::GET, "/v1/openapi.json", None)).await;
    assert_eq!(code, 200);
    assert!(document["openapi"].as_str().is_some_and(|version| version.starts_with("3.1")), "{document}");
    let paths = document["paths"].as_object().expect("paths");
    assert!(paths.len() >= 12, "{paths:?}");
    for (path, operations) in paths {
        let path = path.replace("{set}", "web").replace("{backend}", "a").replace("{action}", "online");
        for method in ["get", "post", "put", "patch", "delete"] {
            let operation = &operations[method];
            let method = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
            let (code, _) = send(&router, request(method.clone(), &path, None)).await;
            let is_write = method == Method::POST;
            match operation {
                Value::Null => assert_eq!(code, 405, "{method} {path}"),
                operation if is_write => {
                    assert_eq!(code, 401, "{method} {path}");
                    assert!(operation["security"][0]["token"].is_array(), "{operation}");
                }
                _ => assert!([200, 500].contains(&code.as_u16()), "{method} {path}: {code}"),
            }
        }
    }
    for schema in ["Status", "BackendStatus", "ListenerStatus", "SetStatus", "Names", "Failure"] {
        assert!(document["components"]["schemas"][schema].is_object(), "no schema {schema}");
    }
    assert_eq!(document["components"]["securitySchemes"]["token"]["scheme"], "bearer");
}

/// A request of which any part may be wrong.
fn any_request() -> impl Strategy<Value = (String, String, Option<String>, usize)> {
    let method = prop_oneof![
        4 => Just("GET".to_owned()),
        4 => Just("POST".to_owned()),
        2 => prop::sample::select(vec!["HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT"])
            .prop_map(str::to_owned),
        1 => "[A-Z]{1,12}",
    ];
    let words = vec![
        "v1",
        "status",
        "config",
        "history",
        "diagnose",
        "metrics",
        "reload",
        "detach",
        "backends",
        "names",
        "web",
        "openapi.json",
        "drain",
        "undrain",
        "offline",
        "online",
        "10.0.1.10%3A8080",
        "%",
        "%ff",
        "..",
        "",
        "%00",
    ];
    let segment = prop_oneof![
        6 => prop::sample::select(words).prop_map(str::to_owned),
        1 => "[!-\"$-.0->@-~]{0,40}",
        1 => Just("x".repeat(3000)),
    ];
    let known =
        vec!["/v1/status", "/v1/reload", "/v1/detach", "/metrics", DRAIN, "/v1/history/web/a", "*", "/"];
    let path = prop_oneof![
        1 => prop::sample::select(known).prop_map(str::to_owned),
        2 => (prop::collection::vec(segment, 0..8), "(\\?[!-~]{0,20})?")
            .prop_map(|(segments, query)| format!("/{}{query}", segments.join("/"))),
    ];
    let authorization = prop::option::of(prop_oneof![
        Just("Bearer geheim".to_owned()),
        Just("Bearer falsch".to_owned()),
        "[ -~]{0,30}",
    ]);
    let length = prop_oneof![8 => Just(0), 2 => 0..200_usize, 1 => MAX_BODY - 2..MAX_BODY + 2];
    (method, path, authorization, length)
}

/// Never a panic, always a status that means something, and no change without the token.
#[test]
fn ten_thousand_random_requests() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _inside = runtime.enter();
    let (router, asked) = over_tcp(Some("geheim"));
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 10_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let mut codes = std::collections::BTreeMap::<u16, usize>::new();
    let codes_seen = std::cell::RefCell::new(&mut codes);
    let outcome = runner.run(&any_request(), |(method, path, authorization, length)| {
        let mut request = Request::builder().method(method.as_str()).uri(&path);
        if let Some(authorization) = &authorization {
            request = request.header("Authorization", authorization);
        }
        // What is no request line never gets as far as the router.
        let Ok(request) = request.body(Body::from(vec![0xA5; length])) else { return Ok(()) };
        let may_change = authorization.as_deref() == Some("Bearer geheim");
        asked.lock().unwrap().clear();
        let (code, body) = runtime.block_on(send(&router, request));
        *codes_seen.borrow_mut().entry(code.as_u16()).or_default() += 1;
        prop_assert!([200, 400, 401, 404, 405, 413, 422, 500].contains(&code.as_u16()), "{code}");
        let is_head = method == "HEAD";
        prop_assert!(code == 200 || is_head || body["error"].is_string(), "{code} {body}");
        let changes = |question: &Question| {
            matches!(question, Question::Reload | Question::Detach | Question::Backend { .. })
        };
        prop_assert!(may_change || !asked.lock().unwrap().iter().any(changes), "changed without the token");
        Ok(())
    });
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
    for code in [200, 401, 404, 405, 413] {
        assert!(codes.get(&code).is_some_and(|count| *count > 20), "the requests are too tame: {codes:?}");
    }
}

fn api(listen: &str, token_file: &Path) -> Api {
    Api { listen: listen.to_owned(), token_file: token_file.display().to_string() }
}

/// The status code that a server answers with, if there is one.
async fn ask_over_tcp(port: u16, request: &str) -> Option<u16> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
    let request = format!("{request}\r\nHost: lb\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    answer.split(' ').nth(1)?.parse().ok()
}

#[tokio::test]
async fn the_port_and_the_token_follow_the_configuration() {
    let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (port, other) = (free(), free());
    let token_file = std::env::temp_dir().join(format!("lb-api-token-{}", std::process::id()));
    fs::write(&token_file, "eins\n").unwrap();
    let mut served = TcpApi::new(controller().0);
    let reload = |token: &str| format!("POST /v1/detach HTTP/1.1\r\nAuthorization: Bearer {token}");
    let status = "GET /v1/status HTTP/1.1";

    served.follow(&api(&format!("127.0.0.1:{port}"), &token_file)).await.unwrap();
    assert_eq!(ask_over_tcp(port, &reload("eins")).await, Some(200));
    fs::write(&token_file, "zwei\n").unwrap();
    served.follow(&api(&format!("127.0.0.1:{port}"), &token_file)).await.unwrap();
    assert_eq!(ask_over_tcp(port, &reload("eins")).await, Some(401));
    assert_eq!(ask_over_tcp(port, &reload("zwei")).await, Some(200));

    // An open connection does not hold up the move, nor does its socket hold the port.
    let _idle = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    served.follow(&api(&format!("0.0.0.0:{port}"), &token_file)).await.unwrap();
    assert_eq!(ask_over_tcp(port, status).await, Some(200));
    served.follow(&api(&format!("127.0.0.1:{other}"), &token_file)).await.unwrap();
    assert_eq!((ask_over_tcp(port, status).await, ask_over_tcp(other, status).await), (None, Some(200)));

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let refused = served.follow(&api(&taken.local_addr().unwrap().to_string(), &token_file)).await;
    let error = format!("{:#}", refused.unwrap_err());
    assert!(error.contains("api.listen") && error.contains("in use"), "{error}");
    assert_eq!(ask_over_tcp(other, status).await, Some(200), "the old port stays");
    fs::remove_file(&token_file).unwrap();
    served.follow(&api(&format!("127.0.0.1:{other}"), &token_file)).await.unwrap_err();
    assert_eq!(ask_over_tcp(other, &reload("zwei")).await, Some(200), "the old token stays");

    served.follow(&Api::default()).await.unwrap();
    assert_eq!(ask_over_tcp(other, status).await, None);
}
