//! HTTP and HTTPS checks: status code first, body second.

use std::error::Error;
use std::io;
use std::iter;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use fancy_regex::{Regex, RegexBuilder};
use nix::errno::Errno;
use reqwest::header::{CONNECTION, HOST, HeaderValue};
use reqwest::{Client, Method, Response, Url, redirect, retry};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::sync::Semaphore;
use tower::{Layer, Service};

use super::failure::{Failure, Waiting};
use super::tls::{self, Trust};
use super::{Attempt, Shared};
use crate::config::{self, HttpCheck, StatusCodes, TlsCheck};

/// Steps back that a match may take. One pass of the usual "does not contain" pattern over a body of 64 KiB takes
/// a tenth of it.
const REGEX_BACKTRACK_LIMIT: usize = 1_000_000;

const USER_AGENT: &str = concat!("lb-health-check/", env!("CARGO_PKG_VERSION"));

/// A prepared request, and what is made of the response.
pub(super) struct Request {
    method: Method,
    /// Its host is what the server's certificate is held against and what SNI says: never looked up.
    url: Url,
    /// Where the connection goes.
    target: SocketAddr,
    host: HeaderValue,
    tls: Arc<ClientConfig>,
    return_code: StatusCodes,
    /// `None`: any body will do, so none is read.
    body: Option<(Arc<BodyRegex>, usize)>,
}

impl Request {
    pub(super) fn new(check: &HttpCheck, target: SocketAddr, shared: &mut Shared) -> Result<Self, String> {
        let host = if check.host.is_empty() { target.to_string() } else { check.host.clone() };
        let max_body_bytes = usize::try_from(check.max_body_bytes).unwrap_or(usize::MAX);
        Ok(Self {
            method: match check.method {
                config::Method::Get => Method::GET,
                config::Method::Head => Method::HEAD,
            },
            url: url(check, target)?,
            target,
            host: HeaderValue::from_str(&host).map_err(|error| format!("host {host:?}: {error}"))?,
            tls: shared.tls(Trust::from(check.tls.as_ref()))?,
            return_code: check.return_code.clone(),
            body: shared.body_regex(&check.response_body_regex)?.map(|regex| (regex, max_body_bytes)),
        })
    }

    pub(super) async fn check(&self, attempt: &mut Attempt<'_>) -> Result<(), Failure> {
        let connected = Arc::new(AtomicBool::new(false));
        let client = self
            .client(attempt, Arc::clone(&connected))
            .map_err(|error| Failure::Unusable(format!("no HTTP client: {error}")))?;
        let request = client
            .request(self.method.clone(), self.url.clone())
            .header(HOST, &self.host)
            .header(CONNECTION, "close")
            .send();
        let response = match attempt.within(Waiting::Answer, request).await {
            Err(_) if !connected.load(Ordering::Relaxed) => {
                return Err(Failure::TimedOut(self.before_answer()));
            }
            ended => ended?.map_err(|error| failure_of(&error, attempt))?,
        };
        self.judge(response, attempt).await
    }

    /// A client of its own for every check: it costs 2 µs and 1.5 KB, and no connection can outlive the check.
    fn client(&self, attempt: &Attempt<'_>, connected: Arc<AtomicBool>) -> reqwest::Result<Client> {
        Client::builder()
            .tls_backend_preconfigured(ClientConfig::clone(&self.tls))
            .resolve(self.url.host_str().unwrap_or_default(), self.target)
            .local_address(attempt.spec.source_address)
            .connector_layer(NoteConnection(connected))
            .http1_only()
            .pool_max_idle_per_host(0)
            .no_proxy()
            .redirect(redirect::Policy::none())
            .retry(retry::never())
            .referer(false)
            .user_agent(USER_AGENT)
            .build()
    }

    fn before_answer(&self) -> Waiting {
        if self.url.scheme() == "https" { Waiting::Session } else { Waiting::Connection }
    }

    async fn judge(&self, mut response: Response, attempt: &Attempt<'_>) -> Result<(), Failure> {
        let found = response.status().as_u16();
        if !self.return_code.contains(found) {
            return Err(Failure::StatusCode { found, expected: self.return_code.text.clone() });
        }
        let Some((regex, max_body_bytes)) = &self.body else { return Ok(()) };
        let mut body = Vec::new();
        while body.len() < *max_body_bytes {
            match attempt
                .within(Waiting::Answer, response.chunk())
                .await?
                .map_err(|error| body_failure(&error))?
            {
                Some(chunk) => body.extend_from_slice(&chunk),
                None => break,
            }
        }
        body.truncate(*max_body_bytes);
        attempt.within(Waiting::Answer, Arc::clone(regex).search(body)).await?
    }
}

/// `http://ADDRESS:PORT/path`, or for HTTPS with a server name `https://NAME:PORT/path`.
fn url(check: &HttpCheck, target: SocketAddr) -> Result<Url, String> {
    if !check.path.starts_with('/') {
        return Err(format!("path {:?}: must begin with /", check.path));
    }
    let text = match check.tls.as_ref().map(|tls| server_name(tls, &check.host)) {
        None => format!("http://{target}{}", check.path),
        Some(None) => format!("https://{target}{}", check.path),
        Some(Some(name)) => {
            ServerName::try_from(name).map_err(|error| format!("tls_server_name {name:?}: {error}"))?;
            format!("https://{name}:{}{}", target.port(), check.path)
        }
    };
    Url::parse(&text).map_err(|error| format!("{text}: {error}"))
}

/// The name for SNI: `tls_server_name`, else `host` without its port if that is a name.
pub(in crate::health) fn server_name<'a>(tls: &'a TlsCheck, host: &'a str) -> Option<&'a str> {
    if !tls.tls_server_name.is_empty() {
        return Some(&tls.tls_server_name);
    }
    if host.parse::<SocketAddr>().is_ok() {
        return None;
    }
    let name = host.rsplit_once(':').map_or(host, |(name, _port)| name);
    matches!(ServerName::try_from(name), Ok(ServerName::DnsName(_))).then_some(name)
}

/// A pattern that is searched in bodies, away from the thread that answers everybody else.
pub(super) struct BodyRegex {
    regex: Regex,
    /// One match of a pattern at a time: a costly pattern costs one thread.
    turn: Arc<Semaphore>,
}

impl BodyRegex {
    fn new(pattern: &str) -> Result<Self, String> {
        let regex = RegexBuilder::new(pattern)
            .backtrack_limit(REGEX_BACKTRACK_LIMIT)
            .build()
            .map_err(|error| format!("response_body_regex {pattern:?}: {error}"))?;
        Ok(Self { regex, turn: Arc::new(Semaphore::new(1)) })
    }

    async fn search(self: Arc<Self>, body: Vec<u8>) -> Result<(), Failure> {
        let stopped = |_| Failure::Unusable("not checked: shutting down".into());
        // Kept to the end of the match, which goes on when the check has given up.
        let turn = Arc::clone(&self.turn).acquire_owned().await.map_err(|_| Failure::Backtracking)?;
        let found = tokio::task::spawn_blocking(move || {
            let found = self.regex.is_match(String::from_utf8_lossy(&body).as_ref());
            drop(turn);
            found
        });
        match found.await.map_err(stopped)? {
            Ok(true) => Ok(()),
            Ok(false) => Err(Failure::Mismatch),
            Err(_) => Err(Failure::Backtracking),
        }
    }
}

impl Shared {
    fn tls(&mut self, trust: Trust) -> Result<Arc<ClientConfig>, String> {
        if let Some(config) = self.tls.get(&trust) {
            return Ok(Arc::clone(config));
        }
        let config = Arc::new(trust.client_config()?);
        self.tls.insert(trust, Arc::clone(&config));
        Ok(config)
    }

    /// `None` for the patterns that everything matches.
    fn body_regex(&mut self, pattern: &str) -> Result<Option<Arc<BodyRegex>>, String> {
        if matches!(pattern, "" | ".*") {
            return Ok(None);
        }
        if let Some(regex) = self.regexes.get(pattern) {
            return Ok(Some(Arc::clone(regex)));
        }
        let regex = Arc::new(BodyRegex::new(pattern)?);
        self.regexes.insert(pattern.to_owned(), Arc::clone(&regex));
        Ok(Some(regex))
    }
}

/// Why there was no response.
fn failure_of(error: &reqwest::Error, attempt: &Attempt<'_>) -> Failure {
    if error.is_builder() {
        return Failure::Unusable(format!("no HTTP request: {error}"));
    }
    match root_cause(error) {
        Some(Cause::Tls(error)) => tls::failure(error),
        // It hung up on our first bytes: what servers of another protocol do.
        Some(Cause::Os(Errno::ECONNRESET | Errno::EPIPE)) | None => Failure::WrongProtocol,
        Some(Cause::Os(errno)) => {
            let bound = errno == Errno::EADDRNOTAVAIL && attempt.spec.source_address.is_some();
            let syscall = match bound {
                true => "bind",
                false if error.is_connect() => "connect",
                false => "read",
            };
            Failure::Os { syscall, errno }
        }
    }
}

/// Why the body stopped.
fn body_failure(error: &reqwest::Error) -> Failure {
    match root_cause(error) {
        Some(Cause::Tls(error)) => tls::failure(error),
        Some(Cause::Os(errno)) => Failure::Os { syscall: "read", errno },
        None => Failure::Closed,
    }
}

enum Cause<'a> {
    Os(Errno),
    Tls(&'a rustls::Error),
}

/// The system's or the TLS library's error at the bottom of a chain; `None` when it is one of HTTP itself.
fn root_cause(error: &reqwest::Error) -> Option<Cause<'_>> {
    iter::successors(Some(error as &(dyn Error + 'static)), |&error| next_cause(error)).find_map(|error| {
        if let Some(error) = error.downcast_ref::<rustls::Error>() {
            return Some(Cause::Tls(error));
        }
        let errno = error.downcast_ref::<io::Error>()?.raw_os_error()?;
        Some(Cause::Os(Errno::from_raw(errno)))
    })
}

/// `io::Error::source` skips the error that the `io::Error` was made of.
fn next_cause<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(inner) => Some(inner),
        None => error.source(),
    }
}

/// Notes that the connection stands (for HTTPS: with its TLS session), which the client would keep to itself.
#[derive(Clone)]
struct NoteConnection(Arc<AtomicBool>);

#[derive(Clone)]
struct NotingConnector<C> {
    connector: C,
    connected: Arc<AtomicBool>,
}

impl<C> Layer<C> for NoteConnection {
    type Service = NotingConnector<C>;

    fn layer(&self, connector: C) -> Self::Service {
        NotingConnector { connector, connected: Arc::clone(&self.0) }
    }
}

impl<C, R> Service<R> for NotingConnector<C>
where
    C: Service<R>,
    C::Future: Send + 'static,
    C::Response: Send,
    C::Error: Send,
{
    type Response = C::Response;
    type Error = C::Error;
    type Future = futures::future::BoxFuture<'static, Result<C::Response, C::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), C::Error>> {
        self.connector.poll_ready(context)
    }

    fn call(&mut self, request: R) -> Self::Future {
        let connecting = self.connector.call(request);
        let connected = Arc::clone(&self.connected);
        Box::pin(async move {
            let connection = connecting.await?;
            connected.store(true, Ordering::Relaxed);
            Ok(connection)
        })
    }
}
