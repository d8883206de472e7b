//! What a file needs of the host it is for: interfaces and readable files.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use toml::de::DeValue;

use super::document::{at, visit};
use super::facts::{Facts, SetFacts};
use super::findings::Findings;
use super::problem::{Problem, nearest, one_of};
use super::scalar;
use super::schema::{Mode, Snat};

/// Largest token or certificate file, in bytes.
const MAX_FILE: u64 = 4 << 20;

/// What the configuration asks about a host. Tests answer for hosts that do not exist.
pub trait HostFacts {
    /// Whether the host has a network interface of this name, alternative names included.
    fn has_interface(&self, name: &str) -> bool;

    /// Names of the network interfaces.
    fn interfaces(&self) -> Vec<String>;

    /// The networks that are on-link, each with its interface.
    fn networks(&self) -> Vec<(String, IpNet)>;

    /// The content of a regular file.
    ///
    /// # Errors
    /// Those of the operating system, and `InvalidInput` for a file that is not regular or larger than 4 MiB.
    fn read_file(&self, path: &Path) -> io::Result<Vec<u8>>;
}

/// The host that this program runs on, in the network namespace of the calling thread.
pub struct ThisHost;

impl HostFacts for ThisHost {
    fn has_interface(&self, name: &str) -> bool {
        nix::net::if_::if_nametoindex(name).is_ok()
    }

    fn interfaces(&self) -> Vec<String> {
        let Ok(interfaces) = nix::net::if_::if_nameindex() else { return Vec::new() };
        interfaces.iter().map(|interface| interface.name().to_string_lossy().into_owned()).collect()
    }

    fn networks(&self) -> Vec<(String, IpNet)> {
        let Ok(addresses) = nix::ifaddrs::getifaddrs() else { return Vec::new() };
        addresses
            .filter_map(|entry| {
                let network = IpNet::with_netmask(ip(entry.address?)?, ip(entry.netmask?)?).ok()?;
                Some((entry.interface_name, network.trunc()))
            })
            .collect()
    }

    fn read_file(&self, path: &Path) -> io::Result<Vec<u8>> {
        // Opening a FIFO would wait for a writer, so look first.
        if !std::fs::metadata(path)?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        let mut content = Vec::new();
        File::open(path)?.take(MAX_FILE + 1).read_to_end(&mut content)?;
        if content.len() as u64 > MAX_FILE {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "larger than 4 MiB"));
        }
        Ok(content)
    }
}

fn ip(address: nix::sys::socket::SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
}

/// Judges a file by the host it is for.
pub(super) fn judge(findings: &Findings<'_>, facts: &Facts<'_>, host: &dyn HostFacts) {
    refuse_unknown_interfaces(findings, host);
    refuse_bad_files(findings, host, "api.token_file", holds_token);
    refuse_bad_files(findings, host, "backend_set.*.health_check.tls_ca_file", holds_certificate);
    warn_of_bypassed_answers(findings, facts, host);
}

fn refuse_unknown_interfaces(findings: &Findings<'_>, host: &dyn HostFacts) {
    visit(findings.root(), "lb.interfaces[]", &mut |path, span, value| {
        let Some(name) = value.as_str().filter(|name| scalar::interface(name).is_ok()) else { return };
        if !host.has_interface(name) {
            let mut interfaces = host.interfaces();
            interfaces.sort_unstable();
            let meant = nearest(name, interfaces.iter().map(String::as_str));
            let problem = Problem::new("this host has no interface of this name")
                .allowed(one_of(&interfaces, "\""))
                .suggest_any(meant);
            findings.refuse(&path, span, Some(value), problem);
        }
    });
}

/// Says what is wrong with the content of a file.
type JudgeContent = fn(&[u8]) -> Result<(), &'static str>;

fn holds_token(content: &[u8]) -> Result<(), &'static str> {
    if content.trim_ascii().is_empty() { Err("the file is empty, but should hold the token") } else { Ok(()) }
}

fn holds_certificate(content: &[u8]) -> Result<(), &'static str> {
    let mut certificates = CertificateDer::pem_slice_iter(content).peekable();
    if certificates.peek().is_none() {
        return Err("the file holds no certificate in PEM form");
    }
    if certificates.all(|certificate| certificate.is_ok()) { Ok(()) } else { Err("the file is damaged PEM") }
}

/// Refuses each file at `pattern` that cannot be read or holds the wrong thing. A file is read once.
fn refuse_bad_files(findings: &Findings<'_>, host: &dyn HostFacts, pattern: &str, judge: JudgeContent) {
    let mut judged: HashMap<&str, Result<(), String>> = HashMap::new();
    visit(findings.root(), pattern, &mut |path, span, value: &DeValue<'_>| {
        let Some(file) = value.as_str().filter(|file| !file.is_empty()) else { return };
        let result = judged.entry(file).or_insert_with(|| match host.read_file(Path::new(file)) {
            Ok(content) => judge(&content).map_err(str::to_owned),
            Err(error) => Err(format!("cannot be read: {error}")),
        });
        if let Err(message) = result {
            let problem = Problem::new(message.clone()).allowed("a file that this user can read, or \"\"");
            findings.refuse(&path, span, Some(value), problem);
        }
    });
}

/// With `snat = "never"` a client in the backend's own network gets the answer from the backend, not from the
/// VIP.
fn warn_of_bypassed_answers(findings: &Findings<'_>, facts: &Facts<'_>, host: &dyn HostFacts) {
    let bypassable = |set: &SetFacts| (set.mode, set.snat) == (Some(Mode::Nat), Some(Snat::Never));
    if !facts.sets.values().any(bypassable) {
        return;
    }
    let networks: Vec<_> = host
        .networks()
        .into_iter()
        .filter(|(_, network)| network.prefix_len() < network.max_prefix_len())
        .collect();
    let listeners = facts.listeners_by_set();
    for (&name, set) in facts.sets.iter().filter(|(_, set)| bypassable(set)) {
        let listeners = listeners.get(name).map(Vec::as_slice).unwrap_or_default();
        let shared = networks.iter().find_map(|(interface, network)| {
            let is_inside =
                |address: &Option<IpAddr>| address.is_some_and(|address| network.contains(&address));
            let listener = listeners.iter().find(|listener| is_inside(&listener.address))?;
            let backend = set.backends.iter().find(|backend| is_inside(&backend.address))?;
            Some((interface, network, listener, backend))
        });
        if let Some((interface, network, listener, backend)) = shared {
            let problem = Problem::new(format!(
                "{} and {} are both in {network} on {interface}; a client in that network would be answered by \
                 the backend itself and drop the answer",
                listener.title(),
                backend.title()
            ))
            .suggest("snat = \"auto\"");
            findings.warn_at(&at!["backend_set", name, "snat"], problem);
        }
    }
}
