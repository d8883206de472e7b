//! Port allocation in a range that is mostly taken.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use lb_tests::packets::{Family, Verdict};
use libtest_mimic::Trial;

use crate::lab::{Lab, ONE_BACKEND, tcp};
use crate::{scaled, trial_for_each_family};

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = trial_for_each_family(
        "ports",
        "no flow fails while 80 % of the ports are taken, and 2 % at 95 %",
        occupancy,
    );
    trials.extend(trial_for_each_family(
        "ports",
        "100,000 short flows pass through 1,000 ports, 800 at a time",
        many_short_flows,
    ));
    trials.extend(trial_for_each_family(
        "ports",
        "a new data plane does not begin with the ports of the last one",
        starts_anywhere,
    ));
    trials
}

const RANGE: u16 = 1000;

/// Long-lived flows take most of a range; short ones come and go in what is left.
fn occupancy(family: Family) -> Result<()> {
    let rounds = u16::try_from(scaled(20)?.clamp(3, 100))?;
    let mut found = Vec::new();
    for (long_lived, short) in [(650, 150), (800, 150)] {
        found.push(churn(family, long_lived, short, rounds)?);
    }
    ensure!(
        found[0] == 0.0 && found[1] <= 0.02,
        "expected no failure at 65-80 % and at most 2 % at 80-95 %, found {:.1} % and {:.1} %",
        100.0 * found[0],
        100.0 * found[1]
    );
    Ok(())
}

/// Each port is used again a hundred times, and never while its last flow may still be known.
fn many_short_flows(family: Family) -> Result<()> {
    let short = RANGE / 10 * 8;
    let rounds = u16::try_from(scaled(100_000)?.div_ceil(u64::from(short)))?;
    let failures = churn(family, 0, short, rounds)?;
    ensure!(failures == 0.0, "{:.3} % of the flows failed", 100.0 * failures);
    Ok(())
}

/// A backend that holds the last data plane's flows in TIME_WAIT refuses new ones from the same ports.
fn starts_anywhere(family: Family) -> Result<()> {
    let mut first_ports = BTreeSet::new();
    for _ in 0..4 {
        let mut lab = Lab::new(ONE_BACKEND, "", family)?;
        let frame = lab.frame(&tcp("client:4096", "vip:80", "S"))?;
        let (source, _) = lab.through(&frame)?;
        first_ports.insert(source.port());
    }
    ensure!(first_ports.len() > 2, "four data planes began with the ports {first_ports:?}");
    Ok(())
}

/// The share of short flows that found no port.
fn churn(family: Family, long_lived: u16, short: u16, rounds: u16) -> Result<f64> {
    let changes = format!(
        "lb.snat_ports = \"20000-{}\"\nlistener = [{{ name = \"web\", tcp_idle_timeout_s = 86400 }}]",
        20000 + RANGE - 1
    );
    let mut lab = Lab::new(ONE_BACKEND, &changes, family)?;
    for number in 0..long_lived {
        for flags in ["S", "A"] {
            let frame = lab.frame(&tcp(format!("client:{}", 1024 + number), "vip:80", flags))?;
            lab.through(&frame)?;
        }
    }
    let mut failures = 0;
    for round in 0..rounds {
        for number in 0..short {
            let port = 4096 + (u32::from(round) * u32::from(short) + u32::from(number)) % 60_000;
            for flags in ["S", "A", "R"] {
                let frame = lab.frame(&tcp(format!("client2:{port}"), "vip:80", flags))?;
                let verdict = lab.send(&frame)?.verdict;
                let is_refused = verdict == Verdict::Drop;
                failures += u32::from(is_refused && flags == "S");
                if is_refused {
                    break;
                }
            }
        }
        // The reset ones end after 10 s.
        lab.bench.age(std::time::Duration::from_secs(10))?;
        let census = lab.bench.sweep()?;
        let alive = census.by_listener.values().sum::<u64>();
        ensure!(alive == u64::from(long_lived), "expected {long_lived} flows to live, found {alive}");
    }
    Ok(f64::from(failures) / f64::from(u32::from(short) * u32::from(rounds)))
}
