//! What an operator asks of a running instance, and of the host: `connections`, `top` and `doctor`.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lb_tests::netns::traffic::{self, Session};
use lb_tests::netns::{Config, Family, Host, Lab, Lb, Output, Topology, binary, wait};
use nix::pty::{Winsize, openpty};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(10);

#[test]
fn connections_shows_live_flows_with_and_without_a_controller_v4() -> Result<()> {
    connections_shows_live_flows_with_and_without_a_controller(Topology::OneArm, Family::V4)
}

#[test]
fn connections_shows_live_flows_with_and_without_a_controller_v6() -> Result<()> {
    connections_shows_live_flows_with_and_without_a_controller(Topology::TwoArm, Family::V6)
}

fn connections_shows_live_flows_with_and_without_a_controller(
    topology: Topology,
    family: Family,
) -> Result<()> {
    let lab = Lab::new(topology)?;
    let lb = Lb::start_with_rotation(&lab.balancer, &Config::new(&lab, family).to_string(), 3)?;
    let mut session = Session::open(&lab.client, None, family.vip_port(7))?;
    session.echo(b"hello")?;
    traffic::ask_udp_from(&lab.client, 4711, family.vip_port(7))?;

    let of = |protocol: &str, rows: &[Value]| -> Result<Value> {
        let row = rows.iter().find(|row| row["protocol"] == protocol);
        row.cloned().with_context(|| format!("no {protocol} flow in {rows:?}"))
    };
    let rows = connections(&lab.balancer, "--listener echo-0")?;
    assert_eq!(rows.len(), 2, "{rows:?}");
    let tcp = of("tcp", &rows)?;
    let server = lab.backends.iter().find(|backend| backend.name() == session.answer.server);
    let server = std::net::SocketAddr::new(server.context("no such server")?.address(family), 7).to_string();
    for (key, expected) in [
        ("vip", family.vip_port(7).to_string()),
        ("source", session.answer.client.to_string()),
        ("destination", server.clone()),
        ("listener", "echo-0".into()),
        ("backend_set", "echo".into()),
        ("backend", server.clone()),
        ("state", "established".into()),
    ] {
        assert_eq!(tcp[key], expected, "{key} of {tcp}");
    }
    let is_client =
        |row: &Value| row["client"].as_str().is_some_and(|text| text.contains(&client_text(&lab, family)));
    assert!(is_client(&tcp), "{tcp}");
    let udp = of("udp", &rows)?;
    assert!(
        is_client(&udp) && udp["client"].as_str().is_some_and(|client| client.ends_with(":4711")),
        "{udp}"
    );
    assert!(
        udp["age_ms"].as_u64() >= udp["idle_ms"].as_u64() && udp["age_ms"].as_u64() < Some(60_000),
        "{udp}"
    );

    let of_backend = connections(&lab.balancer, &format!("--backend echo/{server}"))?;
    assert!(of_backend.iter().any(|row| row["source"] == tcp["source"]), "{of_backend:?}");
    let table = Lb::command(&lab.balancer, "connections --listener echo-0")?.success()?.stdout;
    assert!(table.lines().count() == 3 && table.contains("established"), "{table}");
    let unknown = Lb::command(&lab.balancer, "connections --listener nobody")?.exit_code(1)?;
    assert!(unknown.stderr.contains("web-0"), "it says what there is: {}", unknown.stderr);

    lb.kill9()?;
    let rows = connections(&lab.balancer, &format!("--listener {}", family.vip_port(7)))?;
    let tcp = of("tcp", &rows)?;
    assert_eq!((&tcp["listener"], &tcp["backend"]), (&Value::Null, &server.into()), "{tcp}");
    assert!(tcp["listener_id"].is_u64() && tcp["backend_set"] == "echo", "{tcp}");
    let limited = document(&lab.balancer, "--limit 1")?;
    assert_eq!((list(&limited)?.len(), &limited["truncated"]), (1, &Value::Bool(true)), "{limited}");

    Lb::detach(&lab.balancer)?;
    Lb::command(&lab.balancer, "connections")?.exit_code(4).map(drop)
}

#[test]
fn connections_tells_half_open_and_closing_flows() -> Result<()> {
    let family = Family::V4;
    let lab = Lab::one_arm()?;
    let _lb = Lb::start_with_rotation(&lab.balancer, &Config::new(&lab, family).to_string(), 3)?;
    traffic::curl(&lab.client, family.vip_port(80))?;
    let states = |listener: &str| -> Result<Vec<String>> {
        let rows = connections(&lab.balancer, &format!("--listener {listener}"))?;
        Ok(rows.iter().filter_map(|row| row["state"].as_str().map(str::to_owned)).collect())
    };
    assert_eq!(states("web-0")?, ["closing"]);

    // Nobody answers the SYN: the servers drop it.
    for backend in &lab.backends {
        backend.host.firewall(&["tcp dport 7 drop"])?;
    }
    traffic::knock(&lab.client, family.vip_port(7), 3)?;
    wait::until("three half-open flows", PATIENCE, || {
        Ok((states("echo-0")? == ["half-open"; 3]).then_some(()))
    })
}

fn client_text(lab: &Lab, family: Family) -> String {
    lab.client_address(family).to_string()
}

fn document(host: &Host, arguments: &str) -> Result<Value> {
    let output = Lb::command(host, &format!("connections --json {arguments}"))?.success()?;
    serde_json::from_str(&output.stdout).with_context(|| format!("no JSON: {}", output.stdout))
}

fn connections(host: &Host, arguments: &str) -> Result<Vec<Value>> {
    list(&document(host, arguments)?)
}

fn list(document: &Value) -> Result<Vec<Value>> {
    document["connections"].as_array().cloned().with_context(|| format!("no connections in {document}"))
}

#[test]
fn top_refuses_what_is_no_terminal_and_shows_rates_on_one() -> Result<()> {
    let family = Family::V4;
    let lab = Lab::one_arm()?;
    let refused = Lb::command(&lab.balancer, "top")?.exit_code(1)?;
    assert!(refused.stderr.contains("terminal") && refused.stdout.is_empty(), "{refused:?}");

    let _lb = Lb::start_with_rotation(&lab.balancer, &Config::new(&lab, family).to_string(), 3)?;
    traffic::curl_many(&lab.client, family.vip_port(80), 10)?;
    let size = Winsize { ws_row: 40, ws_col: 130, ws_xpixel: 0, ws_ypixel: 0 };
    let pty = openpty(Some(&size), None)?;
    let end = |of: &OwnedFd| -> Result<Stdio> { Ok(of.try_clone()?.into()) };
    let mut command = lab.balancer.command(binary("lb")?);
    command.arg("top").env("TERM", "xterm-256color");
    let mut top =
        command.stdin(end(&pty.slave)?).stdout(end(&pty.slave)?).stderr(end(&pty.slave)?).spawn()?;
    drop((command, pty.slave));
    let screen = Screen::of(File::from(pty.master.try_clone()?));
    for text in ["web-0", "web/10.0.1.10:8080", "ACTIVE", "native", "SNAT"] {
        screen.wait_for(text)?;
    }
    let mut keys = File::from(pty.master);
    keys.write_all(b"sp")?;
    screen.wait_for("PAUSED")?;
    keys.write_all(b"q")?;
    let status = wait::until("the end of top", PATIENCE, || Ok(top.try_wait()?))?;
    ensure!(status.success(), "{status}");
    // It has left the alternate screen.
    screen.wait_for("\u{1b}[?1049l")
}

/// What has been written to a terminal so far.
struct Screen(std::sync::mpsc::Receiver<Vec<u8>>, std::cell::RefCell<String>);

impl Screen {
    fn of(mut master: File) -> Self {
        let (send, receive) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // The read fails when the last process on the terminal has ended.
            while let Ok(length @ 1..) = master.read(&mut buffer) {
                if send.send(buffer[..length].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self(receive, std::cell::RefCell::default())
    }

    fn wait_for(&self, text: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !self.1.borrow().contains(text) {
            let left = deadline.saturating_duration_since(Instant::now());
            let bytes = self.0.recv_timeout(left);
            let bytes = bytes.with_context(|| format!("no {text:?} on the screen: {:?}", self.1.borrow()))?;
            self.1.borrow_mut().push_str(&String::from_utf8_lossy(&bytes));
        }
        Ok(())
    }
}

#[test]
fn doctor_finds_nothing_on_a_fit_host_and_every_fault_with_its_fix() -> Result<()> {
    let family = Family::V4;
    let lab = Lab::two_arm()?;
    let good = Config::new(&lab, family);
    let (output, findings) = doctor(&lab.balancer, &good.to_string())?;
    let complaints = complaints(&findings);
    assert!(complaints.is_empty(), "{complaints:?}");
    output.exit_code(0)?;
    let of =
        |check: &str, subject: &str| findings.iter().any(|f| f["check"] == check && f["subject"] == subject);
    assert!(of("route", "web/10.0.1.10:8080") && of("xdp", "eth0") && of("queues", "eth1"), "{findings:?}");

    let silent = Config { backends: vec![family.lan(77)], ..good.clone() };
    let eth0_only = Config { interfaces: vec!["eth0".into()], ..good.clone() };
    lab.balancer.run("ip link add br0 type bridge")?.success()?;
    let no_native = Config { interfaces: vec!["eth0".into(), "eth1".into(), "br0".into()], ..good.clone() };
    let falls_back = Config { xdp_mode: "auto", ..no_native.clone() };
    let mistake = good.to_string().replacen("xdp_mode", "xpd_mode", 1);
    for (config, exit, check, subject, words) in [
        (silent.to_string(), 1, "route", "web/10.0.1.77:8080", "10.0.1.77"),
        (eth0_only.to_string(), 1, "route", "web/10.0.1.10:8080", "eth1"),
        (no_native.to_string(), 2, "xdp", "br0", "auto"),
        (falls_back.to_string(), 1, "xdp", "br0", "below it"),
        (mistake, 2, "config", "lb.xpd_mode", "xdp_mode"),
    ] {
        let (output, findings) = doctor(&lab.balancer, &config)?;
        output.exit_code(exit)?;
        assert_found(&findings, check, subject, words);
    }

    lab.balancer.run("ip link set eth1 mtu 1400")?.success()?;
    let (output, findings) = doctor(&lab.balancer, &good.to_string())?;
    output.exit_code(1)?;
    assert_found(&findings, "mtu", "eth1", "ip link set eth0 mtu 1400");
    lab.balancer.run("ip link set eth1 mtu 1500")?.success()?;

    let auto = Config { snat: "auto", ..good.clone() };
    let (_, findings) = doctor(&lab.balancer, &auto.to_string())?;
    assert_found(&findings, "way_back", "web", "via 10.0.1.2");

    let unprivileged = "setpriv --bounding-set=-bpf,-perfmon,-sys_admin";
    let output = lab.balancer.run(&format!("{unprivileged} {} doctor --json", binary("lb")?.display()))?;
    let examination: Value = serde_json::from_str(&output.stdout)?;
    assert_eq!(examination["verdict"], "unfit");
    let text = output.stdout.clone();
    assert!(text.contains("CAP_BPF") && text.contains("AmbientCapabilities"), "{text}");
    output.exit_code(2)?;
    let table = Lb::command(&lab.balancer, "doctor")?;
    assert!(table.stdout.contains("kernel") && table.stdout.contains("fit for lb"), "{table:?}");
    Ok(())
}

/// Runs `lb doctor` with a configuration; what it says, and its findings.
fn doctor(host: &Host, config: &str) -> Result<(Output, Vec<Value>)> {
    host.write("/run/doctor.toml", config)?;
    let output = Lb::command(host, "doctor --config /run/doctor.toml --json")?;
    let examination: Value = serde_json::from_str(&output.stdout).with_context(|| format!("{output:?}"))?;
    let findings = examination["findings"].as_array().cloned().context("no findings")?;
    Ok((output, findings))
}

fn complaints(findings: &[Value]) -> Vec<&Value> {
    findings.iter().filter(|finding| finding["grade"] == "warning" || finding["grade"] == "unfit").collect()
}

/// That this is complained of, with a fix that says `words`.
#[track_caller]
fn assert_found(findings: &[Value], check: &str, subject: &str, words: &str) {
    let found =
        findings.iter().find(|f| f["check"] == check && f["subject"] == subject && f["grade"] != "ok");
    let fix = found.and_then(|finding| finding["fix"].as_str());
    assert!(
        fix.is_some_and(|fix| fix.contains(words)),
        "{check} of {subject}, {words}: {found:?} in {findings:?}"
    );
}

#[test]
fn run_says_why_it_falls_back_to_generic_mode() -> Result<()> {
    let family = Family::V4;
    let lab = Lab::one_arm()?;
    // One driver that has no native mode, and one with too few queues for it.
    lab.balancer.run_all(&[
        "ip link add br0 type bridge",
        "ip link add few numrxqueues 1 type veth peer name many numtxqueues 4",
        "ethtool --set-channels many tx 4",
        "ip link set br0 up",
        "ip link set few up",
        "ip link set many up",
    ])?;
    let interfaces = ["eth0", "br0", "few"].map(str::to_owned).into();
    let config = Config { interfaces, xdp_mode: "auto", ..Config::new(&lab, family) };
    let lb = Lb::start(&lab.balancer, &config.to_string())?;
    let log = lb.log();
    for (interface, reason) in [("br0", "no native XDP"), ("few", "too few queues")] {
        let line =
            log.lines().find(|line| line.contains("falling back to generic") && line.contains(interface));
        assert!(line.is_some_and(|line| line.contains(reason)), "{interface}, {reason}:\n{log}");
    }
    let modes: Vec<Value> = lb.status()?.0["interfaces"].as_array().cloned().unwrap_or_default();
    let modes: Vec<_> = modes.iter().filter_map(|interface| interface["mode"].as_str()).collect();
    assert_eq!(modes, ["native", "generic", "generic"]);
    let (_, findings) = doctor(&lab.balancer, &config.to_string())?;
    let attached = findings.iter().filter(|f| f["check"] == "xdp" && f["grade"] == "ok");
    assert_eq!(attached.count(), 3, "its own programs are no reason to complain: {findings:?}");
    // A controller that adopts them leaves them as they are, and says that too.
    lb.kill9()?;
    let lb = Lb::start(&lab.balancer, &config.to_string())?;
    let log = lb.log();
    let stays = |interface| {
        log.lines().any(|line| line.contains("stays in generic mode") && line.contains(interface))
    };
    assert!(stays("br0") && stays("few") && !stays("eth0"), "{log}");
    Ok(())
}
