//! `lb` as a normal user with a handful of capabilities, as its unit runs it.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lb_tests::netns::{Config, Family, Host, Lab, Lb, Output, Process, binary, traffic, wait};

/// The user of the service; any number does that is nobody's.
const USER: &str = "64321";
/// Another user.
const STRANGER: &str = "64322";

/// What packaging/lb.service gives it.
const CAPABILITIES: &[&str] = &["bpf", "net_admin", "perfmon", "net_raw"];

/// `lb` and a configuration where every user reaches them, which the build directory of a developer need not be.
const PROGRAM: &str = "/run/bin/lb";
const CONFIG: &str = "/run/lb.toml";

/// Puts `lb` and a configuration where a user finds them, and closes the bpffs as systemd does.
fn install(host: &Host, config: &str) -> Result<()> {
    host.run_all(&["chmod 0755 /run", "mkdir /run/bin", "touch /run/bin/lb", "chmod 0700 /sys/fs/bpf"])?;
    host.run(&format!("mount --bind {} {PROGRAM}", binary("lb")?.display()))?.success()?;
    host.write(CONFIG, config)
}

/// What the unit does as root before it starts the service.
fn prepare(host: &Host) -> Result<()> {
    host.run_all(&[
        &format!("install --directory --owner={USER} /run/lb"),
        "install --directory --mode=0700 /sys/fs/bpf/lb",
        &format!("chown --recursive {USER} /sys/fs/bpf/lb"),
        "chmod o+x /sys/fs/bpf",
    ])
}

/// The words that make a command run as a user with these capabilities and no others.
fn as_user(user: &str, capabilities: &[&str]) -> Vec<String> {
    let set = capabilities.iter().fold("-all".to_owned(), |set, name| format!("{set},+{name}"));
    let mut words: Vec<String> = ["setpriv", "--reuid", user, "--regid", user].map(str::to_owned).into();
    words.extend(["--clear-groups", "--no-new-privs"].map(str::to_owned));
    words.extend(["inh-caps", "ambient-caps", "bounding-set"].map(|option| format!("--{option}={set}")));
    words
}

fn lb_command(host: &Host, user: &str, capabilities: &[&str]) -> Command {
    let words = as_user(user, capabilities);
    let mut command = host.command(&words[0]);
    command.args(&words[1..]).arg(PROGRAM);
    command
}

fn start(host: &Host, user: &str, capabilities: &[&str]) -> Result<Lb> {
    let mut command = lb_command(host, user, capabilities);
    command.args(["run", "--config", CONFIG]);
    Lb::start_command(host, command, true)
}

/// Runs a verb as a user without any capability.
fn verb(host: &Host, user: &str, arguments: &str) -> Result<Output> {
    host.run(&format!("{} {PROGRAM} {arguments}", as_user(user, &[]).join(" ")))
}

/// The end of a start that cannot succeed.
fn refusal(host: &Host, user: &str, capabilities: &[&str]) -> Result<String> {
    let words = as_user(user, capabilities).join(" ");
    let mut process: Process = host.spawn(&format!("{words} {PROGRAM} run --config {CONFIG}"))?;
    Ok(process.wait(Duration::from_secs(20))?.exit_code(1)?.stderr)
}

#[test]
fn a_user_with_the_capabilities_of_the_unit_runs_it_and_leaves_no_trace() -> Result<()> {
    let family = Family::V4;
    let lab = Lab::one_arm()?;
    let host = &lab.balancer;
    install(host, &Config::new(&lab, family).to_string())?;
    prepare(host)?;

    let lb = start(host, USER, CAPABILITIES)?;
    lb.wait_for_rotation(3, traffic::PATIENCE)?;
    traffic::curl_many(&lab.client, family.vip_port(80), 20)?;
    let status = std::fs::read_to_string(format!("/proc/{}/status", lb.id()))?;
    let uids = status.lines().find(|line| line.starts_with("Uid:")).context("no Uid")?;
    ensure!(uids.split_whitespace().skip(1).all(|uid| uid == USER), "{uids}");

    // It goes on, and an upgrade adopts what it left, still as the user.
    lb.kill9()?;
    traffic::curl(&lab.client, family.vip_port(80))?;
    let lb = start(host, USER, CAPABILITIES)?;
    ensure!(lb.log().contains("adopted"), "{}", lb.log());
    traffic::curl(&lab.client, family.vip_port(80))?;

    verb(host, USER, "detach")?.success()?;
    let pins = host.run("find /sys/fs/bpf/lb /run/lb -mindepth 1")?;
    assert_eq!(pins.stdout, "", "pins or notes are left");
    let addresses = host.run("ip address show")?.success()?.stdout;
    ensure!(!addresses.contains(&format!("{}/", family.vip())), "the VIP is left:\n{addresses}");
    drop(lb);
    start(host, USER, CAPABILITIES)?.stop()?;
    // The controller is gone; root removes what it left, its directories included.
    Lb::detach(host)?;
    host.run("ls -d /sys/fs/bpf/lb /run/lb")?.exit_code(2)?;
    Ok(())
}

#[test]
fn every_verb_works_for_root_and_for_the_user_of_the_service() -> Result<()> {
    let lab = Lab::one_arm()?;
    let host = &lab.balancer;
    install(host, &Config::new(&lab, Family::V4).to_string())?;
    prepare(host)?;
    let lb = start(host, USER, CAPABILITIES)?;
    lb.wait_for_rotation(3, traffic::PATIENCE)?;
    let backend = format!("web/{}:8080", lab.backends[0].address(Family::V4));
    for verb_of_life_cycle in ["drain", "undrain", "offline", "online"] {
        let line = format!("{verb_of_life_cycle} {backend}");
        verb(host, USER, &line)?.success()?;
        Lb::command(host, &line)?.success()?;
    }
    lb.wait_for_rotation(3, traffic::PATIENCE)?;
    for line in [
        "status",
        "status --json",
        "diagnose",
        "history",
        "show",
        "reload",
        &format!("check --config {CONFIG}"),
    ] {
        verb(host, USER, line)?.success()?;
        Lb::command(host, line)?.success()?;
    }
    for line in ["events", "events --json", "history --json", "diagnose --json", "show --instance lb"] {
        verb(host, USER, line)?.success()?;
        Lb::command(host, line)?.success()?;
    }
    // These look into the maps themselves, which takes rights that the service has and its user by itself has not.
    let explain = format!("explain --proto tcp --src 10.0.1.50:40000 --dst {}", Family::V4.vip_port(80));
    for line in
        ["connections", "connections --json --limit 1", &explain, &format!("doctor --config {CONFIG}")]
    {
        let words: Vec<&str> = line.split(' ').collect();
        let mut as_service = lb_command(host, USER, CAPABILITIES);
        as_service.args(&words);
        let output = as_service.output()?;
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        // 1: the host is fit, with warnings.
        let is_fine = output.status.success() || (words[0] == "doctor" && output.status.code() == Some(1));
        ensure!(is_fine, "{line}: {}: {told}", output.status);
        let as_root = Lb::command(host, line)?;
        ensure!(as_root.status.success() || words[0] == "doctor", "{as_root:?}");
    }
    // On a terminal it runs until it is told to end.
    let top = format!("{} {PROGRAM} top", as_user(USER, &[]).join(" "));
    let shown = host.shell(&format!(
        "stty_size='rows 24 cols 80'; (sleep 2; printf q) | script --quiet --return --command \"stty $stty_size; {top}\" /dev/null"
    ))?;
    let shown = shown.success()?.stdout;
    ensure!(shown.contains("web-0"), "{shown:?}");

    // Not everybody's, and it says whose.
    let refused = verb(host, STRANGER, "status")?.exit_code(3)?;
    ensure!(refused.stderr.contains("only root and the user that `lb run` runs as"), "{refused:?}");
    verb(host, USER, "detach")?.success()?;
    verb(host, USER, "status")?.exit_code(4)?;
    Ok(())
}

#[test]
fn a_host_without_certificates_can_ask_its_instance() -> Result<()> {
    let lab = Lab::one_arm()?;
    let host = &lab.balancer;
    let lb = Lb::start_with_rotation(host, &Config::new(&lab, Family::V4).to_string(), 3)?;
    host.run(&format!("env SSL_CERT_FILE=/none SSL_CERT_DIR=/none {} status", binary("lb")?.display()))?
        .success()?;
    lb.stop()
}

#[test]
fn what_is_missing_is_named_with_the_remedy() -> Result<()> {
    let lab = Lab::one_arm()?;
    let host = &lab.balancer;
    install(host, &Config::new(&lab, Family::V4).to_string())?;
    for (place, missing) in CAPABILITIES.iter().enumerate() {
        let mut capabilities = CAPABILITIES.to_vec();
        capabilities.remove(place);
        let refusal = refusal(host, USER, &capabilities)?;
        let named: Vec<_> = CAPABILITIES
            .iter()
            .filter(|name| refusal.contains(&format!("CAP_{}: to", name.to_uppercase())))
            .collect();
        assert_eq!(named, [missing], "{refusal}");
        ensure!(refusal.contains("setpriv"), "{refusal}");
    }

    let no_run_dir = refusal(host, USER, CAPABILITIES)?;
    ensure!(no_run_dir.contains("install --directory --mode=0700 --owner=64321 /run/lb"), "{no_run_dir}");
    host.run(&format!("install --directory --owner={USER} /run/lb"))?.success()?;
    let no_pins = refusal(host, USER, CAPABILITIES)?;
    ensure!(no_pins.contains("chmod o+x /sys/fs/bpf"), "{no_pins}");

    // Maps that root has pinned are handed over only by root.
    Lb::run(host, CONFIG.as_ref(), true)?.stop()?;
    host.run_all(&["chmod o+x /sys/fs/bpf", &format!("chown --recursive {USER} /run/lb")])?;
    let closed = refusal(host, USER, CAPABILITIES)?;
    ensure!(closed.contains("/sys/fs/bpf/lb"), "{closed}");
    host.run(&format!("chown {USER} /sys/fs/bpf/lb"))?.success()?;
    let foreign = refusal(host, USER, CAPABILITIES)?;
    ensure!(foreign.contains("belongs to user id 0") && foreign.contains("chown -R 64321"), "{foreign}");
    prepare(host)?;
    start(host, USER, CAPABILITIES)?.stop()?;

    let not_root = verb(host, USER, "detach")?.exit_code(1)?;
    ensure!(
        not_root.stderr.contains("CAP_NET_ADMIN") && not_root.stderr.contains("run it as root"),
        "{not_root:?}"
    );
    wait::until("the instance to be still pinned", Duration::from_secs(1), || {
        Ok(host.run("ls /sys/fs/bpf/lb/settings")?.status.success().then_some(()))
    })
}
