//! A mirrored pair: two servers of which one, the primary, answers its check with 200 and the other with 503.
//! Z12 and Z13 of the reference.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Result;
use lb_tests::netns::{Checked, Family, Lab, Lb, document, traffic, wait};
use lb_tests::servers::HTTP_PORT;

const FAMILY: Family = Family::V4;
const INTERVAL_MS: u32 = 200;
const RETRIES: u32 = 3;
const SOON: Duration = Duration::from_secs(10);
const REQUESTS: usize = 200;

/// The pair with `min_healthy = 1`.
const MIRRORED: u16 = 80;
/// The same pair with the usual rule.
const PLAIN: u16 = 81;

/// The two servers, each behind two listeners.
struct Pair {
    lab: Lab,
    lb: Lb,
}

impl Pair {
    /// The first server is primary.
    fn start() -> Result<Self> {
        let lab = Lab::one_arm()?;
        let backends: Vec<_> = (0..2).map(|place| server(&lab, place)).collect();
        let check = format!(
            "protocol = \"http\"\npath = \"/health\"\ninterval_ms = {INTERVAL_MS}\ntimeout_ms = {INTERVAL_MS}\n\
             retries = {RETRIES}"
        );
        let set =
            |name, port, set| Checked { port, set, ..Checked::new(name, backends.clone(), check.as_str()) };
        let sets = [set("mirrored", MIRRORED, "min_healthy = 1"), set("plain", PLAIN, "")];
        let config = document(&lab, &sets);
        let primary = [200, 503];
        for (place, status) in primary.into_iter().enumerate() {
            set_health(&lab, place, status)?;
        }
        let lb = Lb::start_with_rotation(&lab.balancer, &config, 1)?;
        let pair = Self { lab, lb };
        pair.wait_for_levels("OK", "WARNING")?;
        Ok(pair)
    }

    /// Waits for the levels of both sets.
    fn wait_for_levels(&self, mirrored: &str, plain: &str) -> Result<()> {
        wait::until(&format!("the levels {mirrored} and {plain}"), SOON, || {
            let status = self.lb.status()?;
            let levels = (&status.set("mirrored")?["status"], &status.set("plain")?["status"]);
            Ok((levels == (&mirrored.into(), &plain.into())).then_some(()))
        })
    }

    /// Who answers new flows; all must be answered, and all by the same.
    fn primary(&self) -> Result<String> {
        let tally = traffic::curl_many(&self.lab.client, FAMILY.vip_port(MIRRORED), REQUESTS)?;
        assert_eq!(tally.len(), 1, "all new flows follow the primary: {tally:?}");
        Ok(tally.into_keys().next().unwrap_or_default())
    }
}

fn server(lab: &Lab, place: usize) -> SocketAddr {
    SocketAddr::new(lab.backends[place].address(FAMILY), HTTP_PORT)
}

/// Sets what a server answers its check.
fn set_health(lab: &Lab, place: usize, status: u16) -> Result<()> {
    let server = server(lab, place);
    lab.balancer
        .run(&format!("curl --silent --fail --request PUT http://{server}/health/{status}"))?
        .success()
        .map(drop)
}

#[test]
fn z12_new_flows_follow_the_primary_within_fall_and_rise_checks() -> Result<()> {
    let pair = Pair::start()?;
    assert_eq!(pair.primary()?, "web1");

    let swapped = Instant::now();
    set_health(&pair.lab, 0, 503)?;
    set_health(&pair.lab, 1, 200)?;
    // A SYN that comes while neither is primary is dropped; the client of this test does not wait to send another.
    let ask = format!("curl --silent --max-time 0.1 http://{}/", FAMILY.vip_port(MIRRORED));
    let first = wait::until("a flow to the new primary", SOON, || {
        let output = pair.lab.client.run(&ask)?;
        Ok(output.stdout.starts_with("web2 ").then(|| swapped.elapsed()))
    })?;
    // Until the old one has left as well, both are given flows.
    pair.lb.wait_for_rotation(1, SOON)?;
    let all = swapped.elapsed();
    // Failures and successes are counted at the same time, so this is generous even with its jitter.
    let limit = Duration::from_millis((2 * RETRIES * INTERVAL_MS).into()) * 11 / 10;
    println!(
        "roles swapped: first new flow moved after {first:?}, all after {all:?}; the limit is {limit:?}"
    );
    assert!(all <= limit, "moved after {all:?}, the limit is {limit:?}");

    assert_eq!(pair.primary()?, "web2");
    pair.wait_for_levels("OK", "WARNING")
}

#[test]
fn z13_without_a_primary_new_flows_are_dropped_until_there_is_one() -> Result<()> {
    let pair = Pair::start()?;
    set_health(&pair.lab, 0, 503)?;
    pair.lb.wait_for_rotation(0, SOON)?;
    pair.wait_for_levels("CRITICAL", "CRITICAL")?;
    assert_eq!(pair.lb.status()?.level(), "CRITICAL");
    let timed_out = 28;
    traffic::try_curl(&pair.lab.client, FAMILY.vip_port(MIRRORED), "/")?.exit_code(timed_out)?;

    set_health(&pair.lab, 1, 200)?;
    pair.lb.wait_for_rotation(1, SOON)?;
    pair.wait_for_levels("OK", "WARNING")?;
    assert_eq!(pair.primary()?, "web2");
    Ok(())
}
