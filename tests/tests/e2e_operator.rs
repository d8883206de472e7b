//! What outlasts a restart, a refused file, a card that is pulled out, and maps that another version has left.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lb_tests::netns::traffic::{self, Session};
use lb_tests::netns::{Config, Family, Lab, Lb, wait};
use serde_json::Value;

const FAMILY: Family = Family::V4;
const CONFIG: &str = "/run/lb.toml";
/// How long what takes two seconds may take on a busy machine.
const LONG: Duration = Duration::from_secs(20);

fn state(lb: &Lb, set: &str, backend: &str) -> Result<String> {
    let state = lb.status()?.backend(set, backend)?["state"].clone();
    Ok(state.as_str().unwrap_or_default().to_owned())
}

/// Contract, section 2: what was changed by request lasts until the next reload of a changed file.
#[test]
fn a_drain_outlasts_restarts_and_ends_with_a_changed_file() -> Result<()> {
    let lab = Lab::one_arm()?;
    let host = &lab.balancer;
    let config = Config::new(&lab, FAMILY);
    let mut lb = Lb::start_with_rotation(host, &config.to_string(), 3)?;
    let [first, second] = [0, 1].map(|place| format!("{}:8080", lab.backends[place].address(FAMILY)));
    Lb::command(host, &format!("drain web/{first}"))?.success()?;
    Lb::command(host, &format!("offline web/{second}"))?.success()?;
    let changed = |lb: &Lb| -> Result<()> {
        ensure!(state(lb, "web", &first)? == "DRAINING" && state(lb, "web", &second)? == "OFFLINE");
        let served = traffic::curl_many(&lab.client, FAMILY.vip_port(80), 30)?;
        ensure!(served.keys().eq([lab.backends[2].name()]), "served by {served:?}");
        Ok(())
    };
    changed(&lb)?;
    lb.kill9()?;
    lb = Lb::run(host, CONFIG.as_ref(), true)?;
    changed(&lb).context("after kill -9")?;
    lb.stop()?;
    lb = Lb::run(host, CONFIG.as_ref(), true)?;
    changed(&lb).context("after a stop")?;
    lb.reload(&format!("# only a comment\n{config}"))?;
    changed(&lb).context("after a reload that changes nothing")?;

    let other = Config { interval_ms: 400, ..config.clone() };
    lb.reload(&other.to_string())?;
    lb.wait_for_rotation(3, LONG).context("after a reload of a changed file")?;
    Lb::command(host, &format!("drain web/{first}"))?.success()?;
    lb.stop()?;
    let lb = Lb::start(host, &config.to_string())?;
    lb.wait_for_rotation(3, LONG).context("after a start with a changed file")?;
    Lb::command(host, &format!("drain web/{first}"))?.success()?;
    lb.stop()?;
    Lb::detach(host)?;
    host.run("ls -d /run/lb")?.exit_code(2)?;
    Ok(())
}

#[test]
fn an_interface_that_is_made_anew_is_attached_to_again() -> Result<()> {
    let lab = Lab::one_arm()?;
    let lb = Lb::start_with_rotation(&lab.balancer, &Config::new(&lab, FAMILY).to_string(), 3)?;
    traffic::curl(&lab.client, FAMILY.vip_port(80))?;
    lab.unplug_balancer()?;
    wait::until("the status to tell that the interface is gone", LONG, || {
        let status = lb.status()?;
        let reason = status.0["reason"].as_str().unwrap_or_default().to_owned();
        Ok((reason.contains("eth0 is gone") && status.modes()? == ["gone"]).then_some(()))
    })?;
    lab.plug_balancer()?;
    wait::until("requests to be answered", LONG, || {
        Ok(traffic::try_curl(&lab.client, FAMILY.vip_port(80), "/")?.status.success().then_some(()))
    })?;
    ensure!(lb.status()?.modes()? == ["native"], "{}", lb.status()?.0);
    lb.stop()
}

#[test]
fn a_refused_file_changes_nothing_is_counted_and_shown() -> Result<()> {
    let lab = Lab::one_arm()?;
    let host = &lab.balancer;
    let config = Config::new(&lab, FAMILY).to_string();
    let lb = Lb::start_with_rotation(host, &config, 3)?;
    let mut session = Session::open(&lab.client, None, FAMILY.vip_port(7))?;
    let shown = || -> Result<String> { Ok(Lb::command(host, "show")?.success()?.stdout) };
    let before = shown()?;
    for (times, (found, file)) in (1..).zip([
        ("wbe", config.replace("backend_set = \"web\"", "backend_set = \"wbe\"")),
        ("TOML", "nonsense".to_owned()),
        ("eth7", config.replace("eth0", "eth7")),
        ("interfaces", String::new()),
    ]) {
        host.write(CONFIG, &file)?;
        let refused = Lb::command(host, "reload")?.exit_code(2)?;
        ensure!(refused.stderr.contains(found) && refused.stderr.contains("lb.toml:"), "{}", refused.stderr);
        let status = lb.status()?.0;
        let error = status["config"]["last_reload_error"].as_str().unwrap_or_default();
        ensure!(error.contains(found), "{error}");
        let metrics = lb.metrics()?;
        let failures = format!("lb_config_reload_failures_total{{}} {times}");
        ensure!(metrics.lines().any(|line| line == failures), "no {failures} in\n{metrics}");
        ensure!(shown()? == before, "{found}: the running configuration has changed");
        session.echo(b"nothing has changed")?;
        traffic::curl_many(&lab.client, FAMILY.vip_port(80), 10)?;
    }
    lb.reload(&config)?;
    ensure!(lb.status()?.0["config"]["last_reload_error"].is_null());

    // What takes effect later is said at once.
    host.write(CONFIG, &config.replace("[lb]\n", "[lb]\nmax_connections = 4096\n"))?;
    let later = Lb::command(host, "reload")?.success()?;
    ensure!(later.stderr.contains("max_connections") && later.stderr.contains("lb detach"), "{later:?}");
    host.write(CONFIG, &config)?;
    let nothing = Lb::command(host, "reload")?.success()?;
    ensure!(nothing.stderr.is_empty(), "{nothing:?}");
    lb.stop()
}

/// The value of the only entry of a map, byte by byte.
fn bytes_of(lab: &Lab, map: &str) -> Result<Vec<String>> {
    let dump =
        lab.balancer.run(&format!("bpftool --json map dump pinned /sys/fs/bpf/lb/{map}"))?.success()?;
    let dump: Value = serde_json::from_str(&dump.stdout)?;
    let value = dump[0]["value"].as_array().with_context(|| format!("no bytes in {dump}"))?;
    Ok(value.iter().filter_map(|byte| byte.as_str().map(str::to_owned)).collect())
}

#[test]
fn maps_of_another_version_are_refused_and_go_on_forwarding() -> Result<()> {
    let lab = Lab::one_arm()?;
    let host = &lab.balancer;
    Lb::start_with_rotation(host, &Config::new(&lab, FAMILY).to_string(), 3)?.stop()?;
    let mut session = Session::open(&lab.client, None, FAMILY.vip_port(7))?;
    let refuse = |words: &[&str]| -> Result<()> {
        let refused = Lb::command(host, &format!("run --config {CONFIG}"))?.exit_code(1)?.stderr;
        for word in words.iter().chain(&["another version", "run `lb detach`", "then start again"]) {
            ensure!(refused.contains(word), "no {word:?} in: {refused}");
        }
        Ok(())
    };

    let mut value = bytes_of(&lab, "settings")?;
    let now = value[0].clone();
    for version in ["0x01", "0x63"] {
        version.clone_into(&mut value[0]);
        let update = "bpftool map update pinned /sys/fs/bpf/lb/settings key 0 0 0 0 value";
        host.run(&format!("{update} {}", value.join(" ")))?.success()?;
        let found = u8::from_str_radix(version.trim_start_matches("0x"), 16)?;
        refuse(&["expected layout", &format!("found {found}")])?;
        session.echo(b"the old program forwards")?;
        traffic::curl(&lab.client, FAMILY.vip_port(80))?;
    }
    now.clone_into(&mut value[0]);
    let update = "bpftool map update pinned /sys/fs/bpf/lb/settings key 0 0 0 0 value";
    host.run(&format!("{update} {}", value.join(" ")))?.success()?;

    // A map of another shape under the name of one of ours.
    host.run_all(&[
        "rm /sys/fs/bpf/lb/backends",
        "bpftool map create /sys/fs/bpf/lb/backends type array key 4 value 8 entries 16 name backends",
    ])?;
    refuse(&["map `backends`", "(4, 8)"])?;
    session.echo(b"the old program forwards")?;

    Lb::detach(host)?;
    let lb = Lb::start_with_rotation(host, &Config::new(&lab, FAMILY).to_string(), 3)?;
    traffic::curl_many(&lab.client, FAMILY.vip_port(80), 20)?;
    lb.stop()
}

/// Pins that are gone while the program is attached are no reason to lose its flows without a word.
#[test]
fn a_damaged_data_plane_is_refused_with_the_remedy() -> Result<()> {
    let lab = Lab::one_arm()?;
    let host = &lab.balancer;
    Lb::start_with_rotation(host, &Config::new(&lab, FAMILY).to_string(), 3)?.stop()?;
    let mut session = Session::open(&lab.client, None, FAMILY.vip_port(7))?;
    host.run("rm /sys/fs/bpf/lb/settings")?.success()?;
    let refused = Lb::command(host, &format!("run --config {CONFIG}"))?.exit_code(1)?.stderr;
    ensure!(refused.contains("damaged") && refused.contains("run `lb detach`"), "{refused}");
    session.echo(b"it still forwards")
}

#[test]
fn a_start_that_fails_leaves_nothing_and_says_why() -> Result<()> {
    let lab = Lab::one_arm()?;
    let host = &lab.balancer;
    let lb = Lb::start_with_rotation(host, &Config::new(&lab, FAMILY).to_string(), 3)?;
    let twice = Lb::command(host, &format!("run --config {CONFIG}"))?.exit_code(1)?;
    ensure!(twice.stderr.contains("is already running") && twice.stderr.contains("--instance"), "{twice:?}");
    for mode in ["native", "generic", "auto"] {
        let other = Config { vips: vec![FAMILY.lan(200)], xdp_mode: mode, ..Config::new(&lab, FAMILY) };
        host.write("/run/other.toml", &other.to_string())?;
        let busy = Lb::command(host, "run --config /run/other.toml --instance other")?.exit_code(1)?;
        ensure!(busy.stderr.contains("another XDP program is attached"), "{mode}: {}", busy.stderr);
        let left = host.shell("find /sys/fs/bpf/other /run/other 2>/dev/null; true")?.stdout;
        ensure!(left.is_empty(), "{mode}: left behind:\n{left}");
    }
    let addresses = host.run("ip address show")?.success()?.stdout;
    ensure!(!addresses.contains(&format!("{}/", FAMILY.lan(200))), "{addresses}");
    traffic::curl(&lab.client, FAMILY.vip_port(80))?;
    lb.stop()
}

#[test]
fn the_history_names_set_and_backend() -> Result<()> {
    let lab = Lab::one_arm()?;
    let lb = Lb::start_with_rotation(&lab.balancer, &Config::new(&lab, FAMILY).to_string(), 3)?;
    let backend = format!("web/{}:8080", lab.backends[0].address(FAMILY));
    for arguments in ["history".to_owned(), "history web".to_owned(), format!("history {backend}")] {
        let text = Lb::command(&lab.balancer, &arguments)?.success()?.stdout;
        ensure!(text.contains(&format!("  {backend}  UNKNOWN -> OK  ")), "{arguments}: {text}");
    }
    lb.stop()
}

/// Exit status 2 means CRITICAL where a monitoring system asks.
#[test]
fn a_word_that_is_not_understood_is_no_critical_state() -> Result<()> {
    let lab = Lab::one_arm()?;
    for (line, status) in [
        ("status --bogus", 3),
        ("diagnose --bogus", 3),
        ("status --instance a/b", 3),
        ("status", 4),
        ("diagnose", 4),
        ("show", 4),
        ("check", 2),
    ] {
        let output = Lb::command(&lab.balancer, line)?;
        if output.status.code() != Some(status) {
            bail!("{line}: expected exit status {status}, found {output:?}");
        }
    }
    Ok(())
}
