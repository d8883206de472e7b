//! HTTP and HTTPS checks: status code first, body second.

use std::error::Error;
use std::io;
use std::iter;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use reqwest::header::{CONNECTION, HOST, HeaderValue};
use reqwest::{Client, Method, Response, Url, redirect, retry};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;

use super::body::BodyRegex;
use super::connector::NoteConnection;
use super::failure::{Failure, Waiting};
use super::tls::{self, Trust};
use super::{Attempt, Shared};
use crate::config::{self, HttpCheck, StatusCodes, TlsCheck};

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
            let chunk = attempt.within(Waiting::Answer, response.chunk()).await?;
            match chunk.map_err(|error| body_failure(&error))? {
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
    let scheme = if check.tls.is_some() { "https" } else { "http" };
    let name = check.tls.as_ref().and_then(|tls| server_name(tls, &check.host));
    let authority = name.map_or_else(|| target.to_string(), |name| format!("{name}:{}", target.port()));
    let text = format!("{scheme}://{authority}{}", check.path);
    let url = Url::parse(&text).map_err(|error| format!("{text}: {error}"))?;
    match name {
        // An address would be connected to instead of the target.
        Some(name) if url.domain().is_none_or(|domain| ServerName::try_from(domain).is_err()) => {
            Err(format!("tls_server_name {name:?}: not a DNS name"))
        }
        _ => Ok(url),
    }
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
