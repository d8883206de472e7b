//! Ids of listeners and backends, which counters and flows refer to, over restarts and reloads.

use anyhow::{Result, ensure};
use lb_tests::packets::Family;
use libtest_mimic::Trial;

use crate::lab::{Lab, THREE_BACKENDS, tcp, udp};
use crate::trial_for_each_family;

/// More than it takes until a flow is copied.
const PACKETS: u64 = 20;

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials =
        trial_for_each_family("ids", "a restarted controller takes over ids and counters", adoption);
    trials.extend(trial_for_each_family(
        "ids",
        "an id that is given anew begins at zero, and no other",
        anew,
    ));
    trials
}

/// Two listeners of one set. What packets of copied flows count stands in one place for listener and backend.
fn anew(family: Family) -> Result<()> {
    let listener = |name: &str, port: u16| {
        format!(
            r#"
            [[listener]]
            name = "{name}"
            address = "vip"
            protocol = "udp"
            port = {port}
            backend_set = "web"
            "#
        )
    };
    let backend = "[[backend_set.web.backend]]\naddress = \"alpha\"\nport = 0";
    let (stays, goes) = (listener("stays", 80) + backend, listener("goes", 81));
    let mut lab = Lab::new(&stays, &goes, family)?;
    for _ in 0..PACKETS {
        for dst in ["vip:80", "vip:81"] {
            let frame = lab.frame(&udp("client:40000", dst, "datagram"))?;
            lab.through(&frame)?;
        }
    }
    let require = |lab: &Lab, expected: [u64; 3]| {
        let counts = lab.bench.counts()?;
        let found = ["listener stays", "listener goes", "backend"].map(|who| counts.sum(who, "packets"));
        ensure!(found == expected, "expected {expected:?} packets, found {found:?}");
        Ok(())
    };
    require(&lab, [PACKETS, PACKETS, 2 * PACKETS])?;
    lab.bench.restart()?;
    require(&lab, [PACKETS, PACKETS, 2 * PACKETS])?;
    lab.reload(&stays, "")?;
    lab.reload(&stays, &goes)?;
    require(&lab, [PACKETS, 0, 2 * PACKETS])?;
    let frame = lab.frame(&udp("client:40001", "vip:81", "datagram"))?;
    for _ in 0..PACKETS {
        lab.through(&frame)?;
    }
    require(&lab, [PACKETS, PACKETS, 3 * PACKETS])?;

    // A flow goes on when its listener is gone, and counts for no other.
    lab.reload(&stays, &listener("other", 82))?;
    for _ in 0..PACKETS {
        lab.through(&frame)?;
    }
    let other = lab.bench.counts()?.sum("listener other", "packets");
    ensure!(other == 0, "expected no packets of a listener that nobody talks to, found {other}");
    require(&lab, [PACKETS, 0, 4 * PACKETS])
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
