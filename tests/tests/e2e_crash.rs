//! `kill -9` at any moment of a start, a restart, a reload or a detach: the next command goes on from there, and
//! `lb detach` leaves no trace.

use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lb_tests::netns::traffic::{self, Session};
use lb_tests::netns::{Config, Family, Host, Lab, Lb, Process, Topology, binary};
use nix::sys::signal::Signal;

const FAMILY: Family = Family::V4;
const CONFIG: &str = "/run/lb.toml";
/// Moments at which each of them is killed, spread over the time that it takes undisturbed. `LB_CRASHES` names
/// another number.
const CRASHES: u32 = 8;
/// How long a start may take on a busy machine.
const LONG: Duration = Duration::from_secs(20);

fn crashes() -> Result<u32> {
    let more = std::env::var("LB_CRASHES").ok();
    more.map_or(Ok(CRASHES), |text| text.parse().context("LB_CRASHES is no number"))
}

/// The moments to kill something that takes so long.
fn moments(length: Duration) -> Result<impl Iterator<Item = Duration>> {
    let count = crashes()?;
    Ok((0..count).map(move |step| length * step / count))
}

/// Begins `lb run`, without waiting for anything.
fn begin(host: &Host, arguments: &str) -> Result<Process> {
    host.spawn(&format!("{} {arguments}", binary("lb")?.display()))
}

/// Kills a process after so long, unless it has ended by itself: then there was nothing more to interrupt.
fn kill_after(mut process: Process, moment: Duration) {
    // The moment is what is being tested.
    thread::sleep(moment);
    let _ = process.kill();
}

/// No program, no pin, no VIP, no socket and no notes on the host.
fn assert_no_trace(host: &Host) -> Result<()> {
    let links = host.run("ip -details link show")?.success()?.stdout;
    ensure!(!links.contains("xdp"), "a program is still attached:\n{links}");
    let left = host.shell("find /sys/fs/bpf/lb /run/lb 2>/dev/null; true")?.stdout;
    ensure!(left.is_empty(), "pins or notes are left:\n{left}");
    let addresses = host.run("ip address show")?.success()?.stdout;
    for vip in [FAMILY.vip(), FAMILY.lan(101)] {
        ensure!(!addresses.contains(&format!("{vip}/")), "the VIP {vip} is left:\n{addresses}");
    }
    Ok(())
}

/// Requests to the VIP, all of which are answered.
fn requests(lab: &Lab) -> Result<()> {
    lab.explained(|| traffic::curl_many(&lab.client, FAMILY.vip_port(80), 20).map(drop))
}

/// Whether a start after a crash serves requests.
fn starts_again(lab: &Lab) -> Result<()> {
    let lb = Lb::run(&lab.balancer, CONFIG.as_ref(), true)?;
    requests(lab)?;
    lb.stop()
}

/// Whether a detach leaves nothing.
fn leaves_no_trace(host: &Host) -> Result<()> {
    Lb::detach(host)?;
    assert_no_trace(host)
}

/// How long a start takes undisturbed.
fn length_of_start(host: &Host) -> Result<Duration> {
    let begin_of_start = Instant::now();
    let process = begin(host, &format!("run --config {CONFIG}"))?;
    process.wait_for_line("ready", LONG)?;
    Ok(begin_of_start.elapsed())
}

#[test]
fn a_first_start_that_is_killed_can_be_repeated_or_detached() -> Result<()> {
    let lab = Lab::new(Topology::TwoArm)?;
    let host = &lab.balancer;
    host.write(CONFIG, &Config::new(&lab, FAMILY).to_string())?;
    let length = length_of_start(host)?;
    Lb::detach(host)?;
    assert_no_trace(host)?;
    for (step, moment) in moments(length)?.enumerate() {
        kill_after(begin(host, &format!("run --config {CONFIG}"))?, moment);
        let outcome = if step % 2 == 1 { starts_again(&lab) } else { Ok(()) };
        let outcome = outcome.and_then(|()| leaves_no_trace(host));
        outcome.with_context(|| format!("a start that was killed after {moment:?}"))?;
    }
    Ok(())
}

#[test]
fn an_adoption_that_is_killed_breaks_no_connection() -> Result<()> {
    let lab = Lab::new(Topology::TwoArm)?;
    let host = &lab.balancer;
    Lb::start_with_rotation(host, &Config::new(&lab, FAMILY).to_string(), 3)?.kill9()?;
    let mut session = Session::open(&lab.client, None, FAMILY.vip_port(7))?;
    let length = length_of_start(host)?;
    for moment in moments(length)? {
        kill_after(begin(host, &format!("run --config {CONFIG}"))?, moment);
        let mut outcome = || -> Result<()> {
            session.echo(b"nobody is there")?;
            requests(&lab)?;
            traffic::ask_udp_many(&lab.client, FAMILY.vip_port(7), 20).map(drop)
        };
        outcome().with_context(|| format!("an adoption that was killed after {moment:?}"))?;
    }
    let lb = Lb::run(host, CONFIG.as_ref(), true)?;
    lb.wait_for_rotation(3, LONG)?;
    session.echo(b"adopted at last")?;
    requests(&lab)?;
    lb.stop()?;
    Lb::detach(host)?;
    assert_no_trace(host)
}

/// What the two files between which reloads go have not in common: a VIP, and a server.
fn files(lab: &Lab) -> [(IpAddr, String); 2] {
    let other = FAMILY.lan(101);
    let all = Config::new(lab, FAMILY);
    let with = |vip| Config { vips: vec![FAMILY.lan(100), vip], ..all.clone() };
    let fewer = Config { backends: all.backends[..2].to_vec(), ..with(other) };
    [(FAMILY.lan(102), with(FAMILY.lan(102)).to_string()), (other, fewer.to_string())]
}

#[test]
fn a_reload_that_is_killed_is_finished_by_the_next_start() -> Result<()> {
    let lab = Lab::one_arm()?;
    let host = &lab.balancer;
    let [first, second] = files(&lab);
    let mut lb = Lb::start_with_rotation(host, &first.1, 3)?;
    let mut session = Session::open(&lab.client, None, FAMILY.vip_port(7))?;
    let begin_of_reload = Instant::now();
    lb.reload(&second.1)?;
    let length = begin_of_reload.elapsed();
    for (step, moment) in moments(length)?.enumerate() {
        let [(vip, file), (gone, _)] = if step % 2 == 0 { [&first, &second] } else { [&second, &first] };
        host.write(CONFIG, file)?;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(lb.id().cast_signed()), Signal::SIGHUP)?;
        thread::sleep(moment);
        lb.kill9()?;
        session.echo(b"in between")?;
        traffic::curl_many(&lab.client, FAMILY.vip_port(80), 20)?;
        lb = Lb::run(host, CONFIG.as_ref(), true)?;
        let mut outcome = || -> Result<()> {
            session.echo(b"afterwards")?;
            requests(&lab)?;
            traffic::curl_many(&lab.client, SocketAddr::new(*vip, 80), 20)?;
            let addresses = host.run("ip address show")?.success()?.stdout;
            ensure!(!addresses.contains(&format!("{gone}/")), "the VIP {gone} is left:\n{addresses}");
            Ok(())
        };
        outcome().with_context(|| format!("a reload that was killed after {moment:?}"))?;
    }
    lb.stop()?;
    Lb::detach(host)?;
    assert_no_trace(host)
}

#[test]
fn a_detach_that_is_killed_can_be_repeated_or_started_over() -> Result<()> {
    let lab = Lab::new(Topology::TwoArm)?;
    let host = &lab.balancer;
    let config = Config::new(&lab, FAMILY).to_string();
    let prepare = || Lb::start_with_rotation(host, &config, 3)?.stop();
    prepare()?;
    let begin_of_detach = Instant::now();
    Lb::detach(host)?;
    let length = begin_of_detach.elapsed();
    for (step, moment) in moments(length)?.enumerate() {
        prepare()?;
        traffic::curl(&lab.client, FAMILY.vip_port(80))?;
        kill_after(begin(host, "detach")?, moment);
        let outcome = if step % 2 == 1 { starts_again(&lab) } else { Ok(()) };
        let outcome = outcome.and_then(|()| leaves_no_trace(host));
        outcome.with_context(|| format!("a detach that was killed after {moment:?}"))?;
    }
    Ok(())
}

/// What remains of a data plane of which the pins went one by one is no data plane to be adopted.
#[test]
fn what_is_left_of_a_data_plane_is_cleared_away_and_not_adopted() -> Result<()> {
    let lab = Lab::one_arm()?;
    let host = &lab.balancer;
    let config = Config::new(&lab, FAMILY).to_string();
    for lost in ["settings", "backends", "listeners"] {
        let lb = Lb::start_with_rotation(host, &config, 3)?;
        requests(&lab)?;
        lb.stop()?;
        host.shell(&format!("rm /sys/fs/bpf/lb/link_* /sys/fs/bpf/lb/{lost}"))?.success()?;
        let lb = Lb::start_with_rotation(host, &config, 3).with_context(|| format!("without {lost}"))?;
        let flows = lb.status()?.listener("web-0")?["new_flows"].clone();
        ensure!(flows == 0, "without {lost}: counters of an earlier data plane are left: {flows} flows");
        requests(&lab)?;
        lb.stop()?;
        Lb::detach(host)?;
        assert_no_trace(host)?;
    }
    Ok(())
}
