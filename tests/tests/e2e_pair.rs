//! A pair that does not preempt: who takes over keeps the role, whatever becomes of the other and of the controller.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lb_tests::netns::traffic;
use lb_tests::netns::{Config, Family, Lab, Lb, Service, wait};

/// How long two checks and a start may take on a busy machine.
const LONG: Duration = Duration::from_secs(20);
const REQUESTS: usize = 20;

/// A primary and its standby, behind the VIP.
struct Pair {
    lab: Lab,
    family: Family,
    config: String,
}

impl Pair {
    fn new(family: Family) -> Result<Self> {
        let lab = Lab::one_arm()?;
        let both = lab.backends[..2].iter().map(|backend| backend.address(family)).collect();
        let services = vec![Service::WEB];
        let text = Config { backends: both, services, retries: 2, ..Config::new(&lab, family) }.to_string();
        let standby = format!("address = \"{}\"\n", lab.backends[1].address(family));
        let config = text
            .replace("[backend_set.web]\n", "[backend_set.web]\npreempt = false\n")
            .replace(&standby, &format!("{standby}backup = true\n"));
        Ok(Self { lab, family, config })
    }

    fn start(&self) -> Result<Lb> {
        Lb::start(&self.lab.balancer, &self.config)
    }

    /// Waits until the status says this of the primary and of the standby.
    fn wait_for_states(&self, lb: &Lb, expected: [&str; 2]) -> Result<()> {
        let mut last = Vec::new();
        let found = wait::until(&format!("the states {expected:?}"), LONG, || {
            let status = lb.status()?;
            let backends = status.set("web")?["backends"].as_array().cloned().unwrap_or_default();
            last =
                backends.iter().map(|backend| backend["state"].as_str().unwrap_or("?").to_owned()).collect();
            Ok((last == expected).then_some(()))
        });
        found.with_context(|| format!("last states {last:?}"))
    }

    /// Checks that all requests go to one of the two.
    fn all_go_to(&self, index: usize) -> Result<()> {
        let expected = self.lab.backends[index].name();
        let tally = traffic::curl_many(&self.lab.client, self.family.vip_port(80), REQUESTS)?;
        ensure!(
            tally == [(expected.to_owned(), REQUESTS)].into(),
            "expected {expected} alone, found {tally:?}"
        );
        Ok(())
    }
}

#[test]
fn the_standby_keeps_the_role_over_return_reload_and_restart_v4() -> Result<()> {
    the_standby_keeps_the_role_over_return_reload_and_restart(Family::V4)
}

#[test]
fn the_standby_keeps_the_role_over_return_reload_and_restart_v6() -> Result<()> {
    the_standby_keeps_the_role_over_return_reload_and_restart(Family::V6)
}

fn the_standby_keeps_the_role_over_return_reload_and_restart(family: Family) -> Result<()> {
    let mut pair = Pair::new(family)?;
    let lb = pair.start()?;
    pair.wait_for_states(&lb, ["ACTIVE", "STANDBY"])?;
    pair.all_go_to(0)?;

    pair.lab.backends[0].kill()?;
    pair.wait_for_states(&lb, ["DOWN", "ACTIVE"])?;
    pair.all_go_to(1)?;
    pair.lab.backends[0].start()?;
    pair.wait_for_states(&lb, ["STANDBY", "ACTIVE"])?;
    pair.all_go_to(1)?;

    lb.reload(&pair.config)?;
    pair.wait_for_states(&lb, ["STANDBY", "ACTIVE"])?;
    lb.kill9()?;
    let lb = pair.start()?;
    pair.wait_for_states(&lb, ["STANDBY", "ACTIVE"])?;
    pair.all_go_to(1)?;
    lb.stop()?;
    let lb = pair.start()?;
    pair.wait_for_states(&lb, ["STANDBY", "ACTIVE"])?;
    pair.all_go_to(1)?;

    pair.lab.backends[1].kill()?;
    pair.wait_for_states(&lb, ["ACTIVE", "DOWN"])?;
    pair.lab.backends[1].start()?;
    pair.wait_for_states(&lb, ["ACTIVE", "STANDBY"])?;
    pair.all_go_to(0)
}

#[test]
fn draining_the_active_one_hands_the_role_over() -> Result<()> {
    let pair = Pair::new(Family::V4)?;
    let lb = pair.start()?;
    pair.wait_for_states(&lb, ["ACTIVE", "STANDBY"])?;
    let primary = format!("web/{}:8080", pair.lab.backends[0].address(pair.family));
    Lb::command(&pair.lab.balancer, &format!("drain {primary}"))?.success()?;
    pair.wait_for_states(&lb, ["DRAINING", "ACTIVE"])?;
    Lb::command(&pair.lab.balancer, &format!("undrain {primary}"))?.success()?;
    pair.wait_for_states(&lb, ["STANDBY", "ACTIVE"])?;
    pair.all_go_to(1)
}
