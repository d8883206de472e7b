//! Ids of listeners and backends, which counters and flows refer to, over restarts and reloads.

use anyhow::{Result, ensure};
use lb_tests::packets::Family;
use libtest_mimic::Trial;

use crate::lab::{Lab, THREE_BACKENDS, tcp};
use crate::trial_for_each_family;

pub(crate) fn trials() -> Vec<Trial> {
    trial_for_each_family("ids", "a restarted controller takes over ids and counters", adoption)
}

fn adoption(family: Family) -> Result<()> {
    let other = r#"
        [[listener]]
        name = "other"
        address = "vip2"
        protocol = "tcp"
        port = 81
        backend_set = "other"

        [[backend_set.other.backend]]
        address = "beta"
        port = 8080
    "#;
    let mut lab = Lab::new(THREE_BACKENDS, other, family)?;
    for dst in ["vip:80", "vip2:81"] {
        let frame = lab.frame(&tcp("client:40000", dst, "S"))?;
        lab.through(&frame)?;
    }
    let (names, counts) = (lab.bench.names().clone(), lab.bench.counts()?);
    lab.bench.restart()?;
    ensure!(*lab.bench.names() == names, "expected the ids {names:#?}, found {:#?}", lab.bench.names());
    ensure!(lab.bench.counts()? == counts, "expected the counters\n{counts}\nfound\n{}", lab.bench.counts()?);

    // The same in another order of the file.
    lab.reload(other, THREE_BACKENDS)?;
    ensure!(*lab.bench.names() == names, "expected the ids {names:#?}, found {:#?}", lab.bench.names());

    // A listener whose id was freed begins at zero.
    lab.reload(other, "")?;
    lab.reload(other, THREE_BACKENDS)?;
    let found = lab.bench.counts()?.sum("listener web", "");
    ensure!(found == 0, "expected a listener that was removed and added to begin at zero, found {found}");
    let kept = lab.bench.counts()?.sum("listener other", "packets");
    ensure!(kept == 1, "expected a listener that stayed to keep its counters, found {kept} packets");
    Ok(())
}
