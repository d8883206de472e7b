//! What becomes of the flows of a backend that leaves the rotation: drained by the operator, or found ill.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lb_tests::netns::traffic::{self, Session};
use lb_tests::netns::{Config, Family, Lab, Lb, wait};
use lb_tests::servers::HTTP_PORT;

/// From the command to the last new flow of a drained backend.
const DRAINS_WITHIN: Duration = Duration::from_secs(1);
/// How long what takes a second may take on a busy machine.
const LONG: Duration = Duration::from_secs(20);
/// So many requests that one of three backends gets some of them for sure.
const REQUESTS: usize = 60;

macro_rules! for_each_family {
    ($($v4:ident, $v6:ident: $test:ident;)+) => {$(
        #[test]
        fn $v4() -> Result<()> {
            $test(Family::V4)
        }

        #[test]
        fn $v6() -> Result<()> {
            $test(Family::V6)
        }
    )+};
}

for_each_family! {
    a_drain_lets_a_download_end_v4, a_drain_lets_a_download_end_v6: a_drain_lets_a_download_end;
    an_ill_server_resets_v4, an_ill_server_resets_v6: connections_of_an_ill_server_are_reset;
    an_ill_server_keeps_v4, an_ill_server_keeps_v6: connections_of_an_ill_server_are_kept;
    datagrams_move_v4, datagrams_move_v6: datagrams_leave_an_ill_server;
    datagrams_stay_v4, datagrams_stay_v6: datagrams_stay_with_an_ill_server;
}

fn a_drain_lets_a_download_end(family: Family) -> Result<()> {
    const BYTES: usize = 3_000_000;
    let lab = Lab::one_arm()?;
    let lb = Lb::start_with_rotation(&lab.balancer, &Config::new(&lab, family).to_string(), 3)?;
    let vip = family.vip_port(80);
    let slowly = "curl --silent --show-error --fail --output /dev/null --limit-rate 600k";
    let measure = "--write-out %{size_download}";
    let mut download = lab.client.spawn(&format!("{slowly} {measure} http://{vip}/bytes/{BYTES}"))?;
    let backend = wait::until("the download to be somebody's flow", LONG, || {
        let status = lb.status()?;
        let backends = status.set("web")?["backends"].as_array().into_iter().flatten();
        let mut busy = backends.filter(|backend| backend["active_flows"] == 1);
        Ok(busy.next().and_then(|backend| Some(backend["name"].as_str()?.to_owned())))
    })?;

    let begin = Instant::now();
    Lb::command(&lab.balancer, &format!("drain web/{backend}"))?.success()?;
    ensure!(begin.elapsed() < DRAINS_WITHIN, "the drain took {:?}", begin.elapsed());
    let drained = server_at(&lab, family, &backend)?;
    let after = traffic::curl_many(&lab.client, vip, REQUESTS)?;
    ensure!(!after.contains_key(&drained) && after.len() == 2, "{drained} is drained, and yet: {after:?}");

    let active = lb.status()?.backend("web", &backend)?["active_flows"].clone();
    ensure!(active == 1, "the download was over before anything was shown");
    let output = download.wait(LONG)?.success()?;
    ensure!(output.stdout.trim() == BYTES.to_string(), "downloaded {} of {BYTES} bytes", output.stdout);

    Lb::command(&lab.balancer, &format!("undrain web/{backend}"))?.success()?;
    let after = traffic::curl_many(&lab.client, vip, REQUESTS)?;
    ensure!(after.contains_key(&drained), "{drained} is back, and yet: {after:?}");
    Ok(())
}

/// The name that a server gives itself, by that of the backend: `ADDRESS:PORT`.
fn server_at(lab: &Lab, family: Family, backend: &str) -> Result<String> {
    let socket: SocketAddr = backend.parse().context("a backend without a name is called by its address")?;
    let found = lab.backends.iter().find(|server| server.address(family) == socket.ip());
    Ok(found.with_context(|| format!("no server at {socket}"))?.name().to_owned())
}

fn connections_of_an_ill_server_are_reset(family: Family) -> Result<()> {
    let lab = Lab::one_arm()?;
    let lb = start(&lab, family, "on_unhealthy = \"reset\"")?;
    let mut session = Session::open(&lab.client, None, family.vip_port(7))?;
    let mut other = session_with_another(&lab, family, &session.answer.server)?;
    session.echo(b"before")?;
    fall_ill(&lab, &lb, family, &session.answer.server)?;

    let error = session.echo(b"one packet").expect_err("the connection to be reset");
    let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
    ensure!(kind == Some(ErrorKind::ConnectionReset), "expected a RST, found {error:#}");
    other.echo(b"healthy as before")?;
    let ill = session.answer.server;
    let next = Session::open(&lab.client, None, family.vip_port(7))?;
    ensure!(next.answer.server != ill, "a new flow went to {ill}, which is ill");
    Ok(())
}

fn connections_of_an_ill_server_are_kept(family: Family) -> Result<()> {
    let lab = Lab::one_arm()?;
    let lb = start(&lab, family, "on_unhealthy = \"keep\"")?;
    let mut session = Session::open(&lab.client, None, family.vip_port(7))?;
    fall_ill(&lab, &lb, family, &session.answer.server)?;
    session.echo(b"ill, but serving")
}

fn datagrams_leave_an_ill_server(family: Family) -> Result<()> {
    let (before, after) = datagrams_before_and_after(family, "move")?;
    ensure!(before != after, "{before} is ill and still gets the datagrams");
    Ok(())
}

fn datagrams_stay_with_an_ill_server(family: Family) -> Result<()> {
    let (before, after) = datagrams_before_and_after(family, "keep")?;
    ensure!(before == after, "the flow left {before} for {after}");
    Ok(())
}

/// Who answers two datagrams of one flow, before and after the server that answers the first falls ill.
fn datagrams_before_and_after(family: Family, action: &str) -> Result<(String, String)> {
    const SOURCE_PORT: u16 = 5555;
    let lab = Lab::one_arm()?;
    let lb = start(&lab, family, &format!("on_unhealthy_udp = \"{action}\""))?;
    let ask = || traffic::ask_udp_from(&lab.client, SOURCE_PORT, family.vip_port(7));
    let before = ask()?.server;
    fall_ill(&lab, &lb, family, &before)?;
    Ok((before, ask()?.server))
}

/// Serves with a line more in the set `echo`, and with quick checks.
fn start(lab: &Lab, family: Family, line: &str) -> Result<Lb> {
    let config = Config { interval_ms: 200, retries: 2, ..Config::new(lab, family) }.to_string();
    let table = "[backend_set.echo]\n";
    ensure!(config.contains(table), "no {table} in {config}");
    Lb::start_with_rotation(&lab.balancer, &config.replace(table, &format!("{table}{line}\n")), 3)
}

/// A connection to any server but this one.
fn session_with_another(lab: &Lab, family: Family, server: &str) -> Result<Session> {
    for _ in 0..REQUESTS {
        let session = Session::open(&lab.client, None, family.vip_port(7))?;
        if session.answer.server != server {
            return Ok(session);
        }
    }
    bail!("every connection went to {server}")
}

/// Has the checks of a server fail, and waits until it has left the rotation. It serves as before.
fn fall_ill(lab: &Lab, lb: &Lb, family: Family, server: &str) -> Result<()> {
    let server = lab.backends.iter().find(|backend| backend.name() == server).context("no such server")?;
    let http = SocketAddr::new(server.address(family), HTTP_PORT);
    let put = format!("curl --silent --show-error --fail --globoff --request PUT http://{http}/health/503");
    lab.balancer.run(&put)?.success()?;
    lb.wait_for_rotation(2, LONG)?;
    Ok(())
}
