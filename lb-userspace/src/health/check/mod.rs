//! One check of one backend: what is asked, and a single deadline for everything it takes to ask it.

mod body;
mod connector;
mod dns;
mod failure;
mod http;
mod neighbour;
mod net;
mod tcp;
mod tls;
mod udp;

use std::collections::HashMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout, timeout_at};

use self::failure::{Failure, Waiting};
pub(super) use self::http::server_name;
pub use self::neighbour::{KernelNeighbours, Neighbours};
use super::result::{CheckResult, CheckStatus, Outcome};
use crate::config::{self, CheckKind, CheckProtocol, Payload};

/// Whose check it is. Written `SET/BACKEND`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CheckId {
    /// Name of the backend set.
    #[serde(rename = "backend_set")]
    pub set: String,
    /// Name of the backend in it.
    pub backend: String,
}

impl CheckId {
    /// The check of a backend in a set.
    pub fn new(set: impl Into<String>, backend: impl Into<String>) -> Self {
        Self { set: set.into(), backend: backend.into() }
    }
}

impl fmt::Display for CheckId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.set, self.backend)
    }
}

/// Everything that decides what a check sends, when, and what it makes of the answer. Equal specifications of
/// several sets are one check; `rise`, `fall` and `retries` are not part of it.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckSpec {
    /// Address and port that are checked.
    pub target: SocketAddr,
    /// From check to check.
    pub interval: Duration,
    /// From the start of a check to its verdict.
    pub timeout: Duration,
    /// Where it comes from; `None`: the kernel's choice.
    pub source_address: Option<IpAddr>,
    /// Protocol, and what is asked in it.
    pub protocol: CheckProtocol,
    /// What belongs to the protocol.
    pub kind: CheckKind,
}

/// Holds because no field has a value that differs from itself.
impl Eq for CheckSpec {}

/// What tells most checks apart; [`Eq`] tells the rest.
impl Hash for CheckSpec {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.target, self.interval, self.timeout, self.source_address, self.protocol).hash(state);
    }
}

impl CheckSpec {
    /// The check of `backend` by the health check of its set.
    pub fn new(backend: &config::Backend, check: &config::HealthCheck) -> Self {
        let port = if check.port == 0 { backend.port } else { check.port };
        Self {
            target: SocketAddr::new(backend.address, port),
            interval: Duration::from_millis(check.interval_ms.into()),
            timeout: Duration::from_millis(check.timeout_ms.into()),
            source_address: check.source_address,
            protocol: check.protocol,
            kind: check.kind.clone(),
        }
    }
}

/// How long after its deadline a check waits to hear of the neighbour; then it is `TIMED_OUT`.
const NEIGHBOUR_PATIENCE: Duration = Duration::from_millis(50);

/// Makes one check, once. Checks that are repeated are better prepared once: see [`Check`].
///
/// Never fails and never panics: whatever goes wrong is the result.
pub async fn run(spec: &CheckSpec) -> CheckResult {
    Check::new(spec.clone(), &mut Shared::default()).run().await
}

/// What prepared checks have in common, so that 10,000 checks do not hold 10,000 copies of it.
pub struct Shared {
    neighbours: Arc<dyn Neighbours>,
    regexes: HashMap<String, Arc<body::BodyRegex>>,
    tls: HashMap<tls::Trust, Arc<rustls::ClientConfig>>,
}

impl Default for Shared {
    fn default() -> Self {
        Self::new(Arc::new(KernelNeighbours))
    }
}

impl Shared {
    /// Nothing yet, and a table of neighbours.
    pub fn new(neighbours: Arc<dyn Neighbours>) -> Self {
        Self { neighbours, regexes: HashMap::new(), tls: HashMap::new() }
    }

    /// Forgets what no check uses any more; a CA file is read anew when it is needed again.
    pub fn prune(&mut self) {
        self.regexes.retain(|_, regex| Arc::strong_count(regex) > 1);
        self.tls.retain(|_, tls| Arc::strong_count(tls) > 1);
    }
}

/// A check that is ready to be made over and over: patterns are compiled, certificates read, names parsed.
pub struct Check {
    spec: CheckSpec,
    prepared: Prepared,
    neighbours: Arc<dyn Neighbours>,
}

enum Prepared {
    Tcp(Payload),
    Udp(Payload),
    Http(Box<http::Request>),
    Dns(dns::Question),
    /// Cannot be made; why.
    Unusable(String),
}

impl Check {
    /// Prepares a check. One that cannot be made (a pattern that does not compile, a CA file that has gone) says
    /// so in each of its results.
    pub fn new(spec: CheckSpec, shared: &mut Shared) -> Self {
        let prepared = match &spec.kind {
            CheckKind::Tcp(payload) => Ok(Prepared::Tcp(payload.clone())),
            CheckKind::Udp(payload) => Ok(Prepared::Udp(payload.clone())),
            CheckKind::Http(check) => http::Request::new(check, spec.target, shared)
                .map(|request| Prepared::Http(Box::new(request))),
            CheckKind::Dns { dns } => dns::Question::new(dns).map(Prepared::Dns),
        };
        let prepared = prepared.unwrap_or_else(Prepared::Unusable);
        Self { spec, prepared, neighbours: Arc::clone(&shared.neighbours) }
    }

    /// What is checked.
    pub const fn spec(&self) -> &CheckSpec {
        &self.spec
    }

    /// Makes the check. It ends at the deadline at the latest, whatever the backend does.
    pub async fn run(&self) -> CheckResult {
        let started = Instant::now();
        let mut attempt = Attempt { spec: &self.spec, deadline: started + self.spec.timeout, source: None };
        let ended = match &self.prepared {
            Prepared::Tcp(payload) => tcp::check(payload, &mut attempt).await,
            Prepared::Udp(payload) => udp::check(payload, &mut attempt).await,
            Prepared::Http(request) => request.check(&mut attempt).await,
            Prepared::Dns(question) => question.check(&mut attempt).await,
            Prepared::Unusable(why) => Err(Failure::Unusable(why.clone())),
        };
        let latency = started.elapsed();
        let source = attempt.source;
        let outcome = match self.settle(ended).await {
            Ok(()) => Outcome::new(CheckStatus::Ok),
            Err(failure) => failure.outcome(self.spec.timeout),
        };
        let source = source.or_else(|| net::chosen_source(self.spec.target, self.spec.source_address));
        CheckResult::made(outcome, source, latency)
    }

    /// What a deadline means: a dead host, silence that is a good answer, or just that.
    async fn settle(&self, ended: Result<(), Failure>) -> Result<(), Failure> {
        let Err(Failure::TimedOut(_)) = ended else { return ended };
        if self.unresolved().await {
            return Err(Failure::UNREACHABLE);
        }
        match &self.prepared {
            Prepared::Udp(payload) if udp::accepts_silence(payload) => Ok(()),
            _ => ended,
        }
    }

    /// Asked on another thread: the kernel may answer under its lock for network configuration (RTNL), which others
    /// hold for long.
    async fn unresolved(&self) -> bool {
        let (neighbours, target) = (Arc::clone(&self.neighbours), self.spec.target.ip());
        let asked = tokio::task::spawn_blocking(move || neighbours.unresolved(target));
        matches!(timeout(NEIGHBOUR_PATIENCE, asked).await, Ok(Ok(true)))
    }
}

/// A check that is being made.
struct Attempt<'a> {
    spec: &'a CheckSpec,
    deadline: Instant,
    /// The local address of its socket, once there is one.
    source: Option<IpAddr>,
}

impl Attempt<'_> {
    /// Awaits `future`, but not past the deadline.
    async fn within<F: Future>(&self, waiting: Waiting, future: F) -> Result<F::Output, Failure> {
        timeout_at(self.deadline, future).await.map_err(|_| Failure::TimedOut(waiting))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Backend, HealthCheck};

    fn backend(port: u16) -> Backend {
        let address = [10, 0, 1, 10].into();
        Backend { name: "a".into(), address, port, weight: 1, backup: false, drain: false, offline: false }
    }

    fn health_check(port: u16, retries: u32) -> HealthCheck {
        HealthCheck {
            protocol: CheckProtocol::Tcp,
            port,
            interval_ms: 10_000,
            timeout_ms: 3_000,
            retries,
            rise: retries,
            fall: retries,
            source_address: None,
            kind: CheckKind::Tcp(Payload::default()),
        }
    }

    #[test]
    fn the_port_is_the_checks_or_else_the_backends() {
        let target = |backend_port, check_port| {
            CheckSpec::new(&backend(backend_port), &health_check(check_port, 3)).target.to_string()
        };
        assert_eq!(target(8080, 0), "10.0.1.10:8080");
        assert_eq!(target(8080, 9000), "10.0.1.10:9000");
        assert_eq!(target(0, 9000), "10.0.1.10:9000");
    }

    #[test]
    fn sets_with_other_thresholds_or_another_way_to_name_the_port_share_a_check() {
        let spec = CheckSpec::new(&backend(8080), &health_check(0, 3));
        assert_eq!(spec, CheckSpec::new(&backend(8080), &health_check(0, 5)));
        assert_eq!(spec, CheckSpec::new(&backend(0), &health_check(8080, 3)));
        assert_ne!(spec, CheckSpec::new(&backend(8081), &health_check(0, 3)));
        let payload = Payload { request_data: b"PING".into(), response_data: b"PONG".into() };
        assert_ne!(spec, CheckSpec { kind: CheckKind::Tcp(payload), ..spec.clone() });
    }
}
