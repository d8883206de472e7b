//! What is measured side by side: `lb`, and what else brings a client's packets to a backend.

use std::fmt::Write as _;

use anyhow::{Context as _, Result, ensure};
use lb_common::traffic::PORT;
use lb_tests::netns::{Host, Lb, Process, binary, wait};
use serde::Serialize;

use crate::site::{BACKENDS, BULK_PORT, Names, PATIENCE, REQUEST_PORT, VIP};

/// A way from the client to the backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub(crate) enum Peer {
    /// The kernel's routing, without translation: clients know the backends.
    Routing,
    /// nftables, destination translated.
    Dnat,
    /// nftables, destination and source translated: what `lb` does.
    Masquerade,
    /// HAProxy, `mode tcp`.
    HaProxy,
    /// nginx, `stream`.
    Nginx,
    /// `lb` in the driver.
    LbNative,
    /// `lb` in the kernel's generic path.
    LbGeneric,
}

impl Peer {
    /// In the order of the report.
    pub(crate) const ALL: [Self; 7] = [
        Self::Routing,
        Self::Dnat,
        Self::Masquerade,
        Self::HaProxy,
        Self::Nginx,
        Self::LbNative,
        Self::LbGeneric,
    ];

    /// What it is called in the report.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Routing => "kernel routing",
            Self::Dnat => "nftables DNAT",
            Self::Masquerade => "nftables DNAT + masquerade",
            Self::HaProxy => "HAProxy (mode tcp)",
            Self::Nginx => "nginx (stream)",
            Self::LbNative => "lb, native",
            Self::LbGeneric => "lb, generic",
        }
    }

    /// Whether datagrams can go this way.
    pub(crate) const fn forwards_udp(self) -> bool {
        !matches!(self, Self::HaProxy | Self::Nginx)
    }

    /// Whether the kernel forwards the packets.
    pub(crate) const fn is_kernel(self) -> bool {
        matches!(self, Self::Routing | Self::Dnat | Self::Masquerade)
    }

    /// Whether it is `lb`.
    pub(crate) const fn is_lb(self) -> bool {
        matches!(self, Self::LbNative | Self::LbGeneric)
    }

    /// Starts it on the balancer of a site, on a CPU.
    pub(crate) fn start(self, host: &Host, names: &Names, cpu: usize) -> Result<Running> {
        match self {
            Self::Routing => Ok(Running::default()),
            Self::Dnat => translate(host, names, false),
            Self::Masquerade => translate(host, names, true),
            Self::HaProxy => haproxy(host, cpu),
            Self::Nginx => nginx(host, cpu),
            Self::LbNative => lb(host, names, cpu, "native"),
            Self::LbGeneric => lb(host, names, cpu, "generic"),
        }
    }
}

/// What runs in user space for a peer.
#[derive(Debug, Default)]
pub(crate) struct Running {
    process: Option<Process>,
    lb: Option<Lb>,
}

/// What `lb` has counted for the UDP listener.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counted {
    /// In both directions.
    pub(crate) packets: u64,
    /// Flows made.
    pub(crate) new_flows: u64,
}

impl Running {
    /// Ids of the processes.
    pub(crate) fn processes(&self) -> Vec<u32> {
        self.process.iter().map(Process::id).chain(self.lb.iter().map(Lb::id)).collect()
    }

    /// What `lb` has counted; `None` if it is not `lb` that runs.
    pub(crate) fn counted(&self) -> Result<Option<Counted>> {
        let Some(lb) = &self.lb else { return Ok(None) };
        let status = lb.status()?;
        let listener = status.listener("udp")?;
        let count =
            |name| listener[name].as_u64().with_context(|| format!("no count of {name} in {listener}"));
        Ok(Some(Counted { packets: count("packets")?, new_flows: count("new_flows")? }))
    }
}

/// nftables: each new flow to the next backend.
fn translate(host: &Host, names: &Names, masquerade: bool) -> Result<Running> {
    let backends: Vec<String> =
        BACKENDS.iter().enumerate().map(|(number, address)| format!("{number} : {address}")).collect();
    let choice = format!("dnat to numgen inc mod {} map {{ {} }}", BACKENDS.len(), backends.join(", "));
    let rule = if masquerade { format!("oifname \"{}\" masquerade", names.rear) } else { String::new() };
    host.write(
        "/run/rules",
        &format!(
            "table ip lb {{\n\
             chain before {{ type nat hook prerouting priority dstnat\n\
             ip daddr {VIP} udp dport {PORT} {choice}\n\
             ip daddr {VIP} tcp dport {{ {REQUEST_PORT}, {BULK_PORT} }} {choice}\n}}\n\
             chain after {{ type nat hook postrouting priority srcnat\n{rule}\n}}\n}}\n"
        ),
    )?;
    host.run("nft -f /run/rules")?.success()?;
    // Flows are to last from one round to the next, as those of lb do.
    for parameter in ["udp_timeout", "udp_timeout_stream"] {
        host.sysctl(&format!("net/netfilter/nf_conntrack_{parameter}"), UDP_IDLE_S)?;
    }
    Ok(Running::default())
}

/// Seconds until a UDP flow is forgotten, longer than from one round to the next.
const UDP_IDLE_S: u32 = 600;

fn haproxy(host: &Host, cpu: usize) -> Result<Running> {
    let mut text = "global\n  nbthread 1\n  maxconn 8000\ndefaults\n  mode tcp\n  timeout connect 5s\n  \
                    timeout client 60s\n  timeout server 60s\n"
        .to_owned();
    for port in [REQUEST_PORT, BULK_PORT] {
        writeln!(text, "listen port{port}\n  bind {VIP}:{port}\n  balance roundrobin")?;
        for (number, address) in BACKENDS.iter().enumerate() {
            writeln!(text, "  server backend{number} {address}:{port}")?;
        }
    }
    host.write("/run/haproxy.cfg", &text)?;
    proxy(host, &format!("taskset -c {cpu} haproxy -db -f /run/haproxy.cfg"))
}

fn nginx(host: &Host, cpu: usize) -> Result<Running> {
    let mut text =
        "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\ndaemon off;\nmaster_process off;\n\
                    worker_processes 1;\npid /run/nginx.pid;\nerror_log stderr error;\n\
                    events { worker_connections 8000; }\nstream {\n"
            .to_owned();
    for port in [REQUEST_PORT, BULK_PORT] {
        let servers: String = BACKENDS.iter().map(|address| format!(" server {address}:{port};")).collect();
        writeln!(text, "upstream port{port} {{{servers} }}")?;
        writeln!(text, "server {{ listen {VIP}:{port} backlog=4096; proxy_pass port{port}; }}")?;
    }
    host.write("/run/nginx.conf", &(text + "}\n"))?;
    proxy(host, &format!("taskset -c {cpu} nginx -e stderr -c /run/nginx.conf"))
}

/// Starts a proxy and waits until it listens.
fn proxy(host: &Host, line: &str) -> Result<Running> {
    let process = host.spawn(line)?;
    let listening = format!("{VIP}:{BULK_PORT}");
    wait::until(&format!("`{line}` to listen"), PATIENCE, || {
        let sockets = host.run("ss --tcp --listening --numeric --no-header")?.success()?.stdout;
        Ok(sockets.contains(&listening).then_some(()))
    })
    .with_context(|| process.log())?;
    Ok(Running { process: Some(process), lb: None })
}

fn lb(host: &Host, names: &Names, cpu: usize, mode: &str) -> Result<Running> {
    let Names { front, rear, .. } = names;
    let mut text = format!("[lb]\ninterfaces = [{front:?}, {rear:?}]\nxdp_mode = {mode:?}\n");
    for (name, protocol, port) in
        [("udp", "udp", PORT), ("requests", "tcp", REQUEST_PORT), ("bulk", "tcp", BULK_PORT)]
    {
        writeln!(text, "\n[[listener]]\nname = {name:?}\naddress = \"{VIP}\"\nprotocol = {protocol:?}")?;
        writeln!(text, "port = {port}\nbackend_set = {name:?}\nudp_idle_timeout_s = {UDP_IDLE_S}")?;
        writeln!(text, "\n[backend_set.{name}.health_check]\nprotocol = \"tcp\"\nport = {REQUEST_PORT}")?;
        for address in BACKENDS {
            writeln!(text, "\n[[backend_set.{name}.backend]]\naddress = \"{address}\"\nport = {port}")?;
        }
    }
    host.write("/run/lb.toml", &text)?;
    let mut command = host.command("taskset");
    command.args(["-c", &cpu.to_string()]).arg(binary("lb")?).args(["run", "--config", "/run/lb.toml"]);
    let lb = Lb::start_command(host, command, false)?;
    let status = lb.wait_for_rotation(BACKENDS.len(), PATIENCE)?;
    let modes = status.modes()?;
    ensure!(modes.iter().all(|found| *found == mode), "expected {mode} mode, found {modes:?}");
    Ok(Running { process: None, lb: Some(lb) })
}

impl Counted {
    /// Since an earlier time.
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        Self { packets: self.packets - earlier.packets, new_flows: self.new_flows - earlier.new_flows }
    }
}
