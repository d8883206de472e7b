//! What the hosts of a lab know when a test fails. A lost packet leaves a trace in some counter; once the lab is gone
//! nobody can read it any more.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::lb::list;
use super::{Host, Lab, Lb};

/// Lines of one host that are shown, at most.
const LINES: usize = 80;

/// Neighbours, routes, and every counter of errors and drops that is not zero.
const LOOK: &str = "\
    ip neighbour show | head -n 20
    { ip -4 route show; ip -6 route show; } | head -n 20
    cd /sys/class/net
    grep -v '^0$' */statistics/*_dropped */statistics/*_errors
    for link in *; do
        ethtool --statistics $link 2>&1 | awk -v link=$link '/drop|error|xdp_tx|redirect/ && $2 > 0 {print link, $0}'
    done
    nstat --ignore --noupdate | awk '/[Ee]rr|[Dd]rop|Discard|ND|Icmp6.*(Neigh|Unreach)|NoPorts|NoRoutes|AddrErr|Retrans/ {print $1, $2}'";

impl Lab {
    /// Runs the part of a test that sends traffic. If it fails, by error or by panic, this also tells what the balancer
    /// and all hosts have counted. `lb` must outlive `work`: a controller that has ended cannot be asked.
    pub fn explained<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let before = backlog_drops();
        // `work` is not used again after a panic, nor is anything that it may have left half done.
        match catch_unwind(AssertUnwindSafe(work)) {
            Ok(outcome) => outcome.with_context(|| self.evidence(before)),
            Err(panic) => {
                eprintln!("{}", self.evidence(before));
                resume_unwind(panic)
            }
        }
    }

    /// The counters of frames that got lost in a queue of the network, those above zero. A frame that does not fit into
    /// the queue of the other end counts at both ends.
    pub fn lost_frames(&self) -> Result<Vec<String>> {
        let mut lost = Vec::new();
        for (name, host) in self.hosts() {
            let counters = host.shell("cd /sys/class/net; grep -v '^0$' */statistics/*_dropped")?.stdout;
            lost.extend(counters.lines().map(|counter| format!("{name}: {counter}")));
        }
        Ok(lost)
    }

    fn evidence(&self, backlog_drops_before: u64) -> String {
        let during = backlog_drops().saturating_sub(backlog_drops_before);
        let mut text = format!(
            "the test failed; what was counted:\n\
             machine: {during} packets of any network dropped meanwhile because a CPU's backlog was full\n"
        );
        let status = Lb::status_of(&self.balancer).map(|status| counts(&status.0));
        let _ = match status {
            Ok(status) => writeln!(text, "lb: {status:#}"),
            Err(error) => writeln!(text, "lb: {error:#}"),
        };
        for (name, host) in self.hosts() {
            let seen = look(&host).unwrap_or_else(|error| format!("{error:#}"));
            let _ = writeln!(text, "{name}:");
            for line in seen.lines().take(LINES) {
                let _ = writeln!(text, "  {}", line.trim());
            }
        }
        text
    }

    /// Every host that is plugged in, and the bridges between them, by name.
    fn hosts(&self) -> BTreeMap<String, Host> {
        let hosts = self.bridges().flat_map(|bridge| bridge.hosts());
        let all = hosts.chain([self.fabric().clone()]);
        all.map(|host| (host.name().to_owned(), host)).collect()
    }
}

fn look(host: &Host) -> Result<String> {
    Ok(host.shell(LOOK)?.stdout)
}

/// What a status says of packets: drops above all, and who would have got new flows.
fn counts(status: &Value) -> Value {
    let listeners = list(&status["listeners"]).iter().map(|listener| {
        json!({ "name": listener["name"], "packets": listener["packets"], "new_flows": listener["new_flows"],
                "active_flows": listener["active_flows"], "drops": listener["drops"] })
        .to_string()
    });
    let backends = list(&status["backend_sets"]).iter().flat_map(|set| list(&set["backends"])).map(|backend| {
        json!({ "name": backend["name"], "in_rotation": backend["in_rotation"], "packets": backend["packets"],
                "new_flows": backend["new_flows"], "result": backend["result"]["healthCheckStatus"] }).to_string()
    });
    json!({ "drops": status["drops"], "listeners": listeners.collect::<Vec<_>>(),
            "backends": backends.collect::<Vec<_>>() })
}

/// Packets that the CPUs' backlogs had no room for since the machine started: second column of
/// `/proc/net/softnet_stat`, one line a CPU (`softnet_seq_show`, kernel 2.6.14). The backlogs belong to the machine, not
/// to a namespace: what floods one network is lost in another.
fn backlog_drops() -> u64 {
    let text = fs::read_to_string("/proc/net/softnet_stat").unwrap_or_default();
    let of_cpu = |line: &str| u64::from_str_radix(line.split_whitespace().nth(1)?, 16).ok();
    text.lines().filter_map(of_cpu).sum()
}
