//! The demo: a small network of its own, the real `lb` with `examples/demo.toml`, real traffic, a dying server.
//! It ends with an error if anything turns out otherwise than it says. `cargo xtask demo` builds and runs it.

mod tell;

use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lb_tests::netns::traffic;
use lb_tests::netns::{Family, Host, Lab, Lb, wait};
use serde_json::Value;

use crate::tell::Teller;

/// The configuration, seen from this crate.
const CONFIG: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/demo.toml");
const FAMILY: Family = Family::V4;
const REQUESTS: usize = 300;
/// How long a change of the rotation may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);
/// Lines of the controller's log that are shown when the demo fails.
const LOG_TAIL: usize = 30;

fn main() -> ExitCode {
    let mut tell = Teller::new();
    let start = Instant::now();
    match demo(&mut tell) {
        Ok(()) => {
            tell.success(format_args!("All of it in {:.0} seconds.", start.elapsed().as_secs_f32()));
            ExitCode::SUCCESS
        }
        Err(error) => {
            tell.failure(format_args!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn demo(tell: &mut Teller) -> Result<()> {
    let mut lab = build_network(tell)?;
    let lb = start_lb(tell, &lab)?;
    let outcome = show(tell, &mut lab, &lb);
    if outcome.is_err() {
        let log = lb.log();
        let lines: Vec<_> = log.lines().collect();
        tell.say("The log of the controller ends with:");
        tell.output(&lines[lines.len().saturating_sub(LOG_TAIL)..].join("\n"));
    }
    outcome?;
    clean_up(tell, lab, lb)
}

fn show(tell: &mut Teller, lab: &mut Lab, lb: &Lb) -> Result<()> {
    send_requests(tell, lab)?;
    kill_a_server(tell, lab, lb)?;
    bring_it_back(tell, lab, lb)?;
    hairpin(tell, lab)?;
    look_into_the_kernel(tell, lab)
}

fn build_network(tell: &mut Teller) -> Result<Lab> {
    tell.step("A network of namespaces, five hosts on one switch");
    tell.output(
        "client    10.0.1.50  ──┐\n\
         balancer  10.0.1.2   ──┤   10.0.1.0/24\n\
         web1      10.0.1.10  ──┤   \n\
         web2      10.0.1.11  ──┤   The service is 10.0.1.100:80; no server has that address.\n\
         web3      10.0.1.12  ──┘",
    );
    let lab = Lab::one_arm()?;
    for server in &lab.backends {
        let answer = traffic::curl(&lab.balancer, (server.address(FAMILY), 8080).into())?;
        ensure!(answer.server == server.name(), "{} answers for {}", answer.server, server.name());
    }
    tell.done("three web servers answer on port 8080");
    Ok(lab)
}

fn start_lb(tell: &mut Teller, lab: &Lab) -> Result<Lb> {
    tell.step("The balancer");
    tell.say(
        "It loads its XDP program, attaches it to eth0, takes the address 10.0.1.100 and checks the servers.",
    );
    tell.command("balancer", "lb run --config examples/demo.toml");
    let config = Path::new(CONFIG).canonicalize().with_context(|| format!("find {CONFIG}"))?;
    let lb = Lb::run(&lab.balancer, &config, false)?;
    let status = lb.wait_for_rotation(3, PATIENCE)?;
    tell.done(format_args!("every listener forwards, XDP is {}", status.modes()?.join(", ")));
    tell.done(format_args!("in rotation: {}", status.rotation("web").join(", ")));
    Ok(lb)
}

fn send_requests(tell: &mut Teller, lab: &Lab) -> Result<()> {
    tell.step("Requests over HTTP, each in a connection of its own");
    tell.command("client", format_args!("curl http://10.0.1.100/?[1-{REQUESTS}]"));
    let tally = traffic::curl_many(&lab.client, FAMILY.vip_port(80), REQUESTS)?;
    tell.shares(&tally);
    tell.expect(format_args!("{REQUESTS} of {REQUESTS} answered, by all three servers"), tally.len() == 3)?;

    tell.step("Datagrams over UDP, each from a port of its own");
    let tally = traffic::ask_udp_many(&lab.client, FAMILY.vip_port(7), REQUESTS)?;
    tell.shares(&tally);
    let text = format_args!("{REQUESTS} of {REQUESTS} answered from 10.0.1.100:7, by all three servers");
    tell.expect(text, tally.len() == 3)
}

fn kill_a_server(tell: &mut Teller, lab: &mut Lab, lb: &Lb) -> Result<()> {
    tell.step("A server dies while requests go on");
    tell.command("web2", "kill -9 $(pidof testserver)");
    let (requests, left) = {
        let (client, victim) = (lab.client.clone(), &mut lab.backends[1]);
        while_requesting(&client, || {
            let killed = Instant::now();
            victim.kill()?;
            lb.wait_for_rotation(2, PATIENCE)?;
            Ok(killed.elapsed())
        })?
    };
    let failed = requests.iter().filter(|answered| !**answered).count();
    tell.say(format_args!(
        "{} requests meanwhile, {failed} of them were sent to web2 and refused.",
        requests.len()
    ));
    tell.expect(
        format_args!("web2 left the rotation after {} ms", left.as_millis()),
        left < Duration::from_secs(1),
    )?;

    let tally = traffic::curl_many(&lab.client, FAMILY.vip_port(80), REQUESTS)?;
    tell.shares(&tally);
    let by_others = tally.keys().map(String::as_str).eq(["web1", "web3"]);
    tell.expect(format_args!("from then on {REQUESTS} of {REQUESTS} answered, none by web2"), by_others)?;
    let warning = 1;
    show_status(tell, lab, warning)
}

fn bring_it_back(tell: &mut Teller, lab: &mut Lab, lb: &Lb) -> Result<()> {
    tell.step("It returns");
    tell.command("web2", "testserver web2");
    let started = Instant::now();
    lab.backends[1].start()?;
    lb.wait_for_rotation(3, PATIENCE)?;
    let back = started.elapsed().as_millis();
    tell.done(format_args!("web2 was back in rotation after {back} ms, by itself"));
    let tally = traffic::curl_many(&lab.client, FAMILY.vip_port(80), REQUESTS)?;
    tell.shares(&tally);
    tell.expect("all three servers answer again", tally.len() == 3)?;
    wait::until("the level OK", PATIENCE, || Ok((lb.status()?.level() == "OK").then_some(())))?;
    let ok = 0;
    show_status(tell, lab, ok)
}

fn hairpin(tell: &mut Teller, lab: &Lab) -> Result<()> {
    tell.step("A hairpin: web1 asks the service and is its own answer");
    tell.say("With the destination translated alone, web1 would get a packet from itself and drop it.");
    tell.command("web1", "curl http://10.0.1.100/");
    let web1 = &lab.backends[0];
    let answer = wait::until("web1 to be chosen for its own request", PATIENCE, || {
        let answer = traffic::curl(&web1.host, FAMILY.vip_port(80))?;
        Ok((answer.server == web1.name()).then_some(answer))
    })?;
    tell.output(&format!("{} {}", answer.server, answer.client));
    tell.expect("web1 has answered web1, and has seen 10.0.1.100", answer.client.ip() == FAMILY.vip())
}

fn look_into_the_kernel(tell: &mut Teller, lab: &Lab) -> Result<()> {
    tell.step("What the XDP program works with, readable without lb");
    tell.command("balancer", "bpftool map dump pinned /sys/fs/bpf/lb/backends");
    let dump = lab.balancer.run("bpftool map dump pinned /sys/fs/bpf/lb/backends")?.success()?.stdout;
    let entries: Vec<Value> = serde_json::from_str(&dump).context("bpftool has not named the fields")?;
    let in_use: Vec<_> = entries.iter().filter(|entry| entry["value"]["port"] == 8080).collect();
    let first = in_use.first().context("no backend with port 8080")?;
    tell.say("The entry of the first web server:");
    for (field, value) in first["value"].as_object().context("the value is not a struct")? {
        tell.output(&format!("{field}: {value}"));
    }
    tell.expect("the three web servers, by name of field", in_use.len() == 3)
}

fn clean_up(tell: &mut Teller, lab: Lab, lb: Lb) -> Result<()> {
    tell.step("Cleaning up");
    tell.command("balancer", "kill $(pidof lb); lb detach");
    lb.stop()?;
    traffic::curl(&lab.client, FAMILY.vip_port(80))?;
    tell.done("without the controller the data plane still forwarded");
    Lb::detach(&lab.balancer)?;
    let interface = lab.balancer.run("ip address show eth0")?.success()?.stdout;
    let pins = lab.balancer.run("ls -R /sys/fs/bpf")?.success()?.stdout;
    tell.expect("the program is gone", !interface.contains("xdp"))?;
    tell.expect("the address is gone", !interface.contains("10.0.1.100/"))?;
    tell.expect("the maps are gone", !pins.contains("backends"))?;
    drop(lab);
    tell.say("The namespaces had no names; with their last process they have vanished.");
    Ok(())
}

fn show_status(tell: &Teller, lab: &Lab, expected_code: i32) -> Result<()> {
    tell.command("balancer", "lb status");
    let status = Lb::command(&lab.balancer, "status")?.exit_code(expected_code)?;
    tell.output(&status.stdout);
    Ok(())
}

/// Requests without a pause while `work` runs; gives whether each was answered, and what `work` gave.
fn while_requesting<T>(client: &Host, work: impl FnOnce() -> Result<T>) -> Result<(Vec<bool>, T)> {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let requests = scope.spawn(|| {
            let mut answered = Vec::new();
            while !done.load(Ordering::Relaxed) {
                answered.push(traffic::try_curl(client, FAMILY.vip_port(80), "/")?.status.success());
            }
            Ok(answered)
        });
        let outcome = work();
        done.store(true, Ordering::Relaxed);
        let answered: Result<Vec<bool>> =
            requests.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok((answered?, outcome?))
    })
}
