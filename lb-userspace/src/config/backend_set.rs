//! `[backend_set.NAME]` and `[[backend_set.NAME.backend]]`.

use std::net::{IpAddr, SocketAddr};

use super::facts::{BackendFacts, CheckFacts, SetFacts};
use super::health_check;
use super::problem::Problem;
use super::reader::{Table, Value};
use super::scalar;
use super::schema::{Backend, BackendSet, MinHealthy, Mode, NoBackendAction, OnUnhealthy, Policy, Snat};

/// Most backends of all sets together.
pub(super) const MAX_BACKENDS: usize = 16_384;

/// What `min_healthy` may hold.
const MIN_HEALTHY: &str = "\"half\", a number of backends such as 2, or a share such as \"50%\" (1% to 100%)";

/// Reads one set.
pub(super) fn read(mut table: Table<'_, '_>) -> (SetFacts, Option<BackendSet>) {
    let policy = table.optional_word("policy", Policy::FiveTuple);
    let mode = table.optional_word("mode", Mode::Nat);
    let snat = table.optional_word("snat", Snat::Always);
    let on_unhealthy = table.optional_word("on_unhealthy", OnUnhealthy::Keep);
    let on_unhealthy_udp = table.optional("on_unhealthy_udp", OnUnhealthy::Move, |value| {
        value.word_among(&[OnUnhealthy::Move, OnUnhealthy::Keep])
    });
    let fail_open = table.flag("fail_open", false);
    let no_backend_action = table.optional_word("no_backend_action", NoBackendAction::Drop);
    let min_healthy = table.optional("min_healthy", MinHealthy::Half, min_healthy);
    let preempt = table.flag("preempt", true);
    let drain_timeout_s = table.optional("drain_timeout_s", 300, |value| value.integer(0..=86_400));
    let (backend_facts, backends): (Vec<_>, Vec<_>) =
        backend_tables(&mut table).into_iter().map(|(index, table)| read_backend(index, table)).unzip();
    let check_table =
        table.required("health_check", "a table that says how to check the backends", Value::table);
    let (check, health_check) = check_table.map_or_else(|| (CheckFacts::default(), None), health_check::read);
    table.finish();

    let facts = SetFacts { mode, snat, preempt, min_healthy, backends: backend_facts, check };
    let set = || {
        Some(BackendSet {
            policy: policy?,
            mode: mode?,
            snat: snat?,
            on_unhealthy: on_unhealthy?,
            on_unhealthy_udp: on_unhealthy_udp?,
            fail_open: fail_open?,
            no_backend_action: no_backend_action?,
            min_healthy: min_healthy?,
            preempt: preempt?,
            drain_timeout_s: drain_timeout_s?,
            backends: backends.into_iter().collect::<Option<_>>()?,
            health_check: health_check?,
        })
    };
    (facts, set())
}

fn backend_tables<'r, 'd>(table: &mut Table<'r, 'd>) -> Vec<(usize, Table<'r, 'd>)> {
    let tables = table.tables("backend");
    if tables.as_ref().is_some_and(Vec::is_empty) {
        let path = table.path().then("backend");
        let problem = Problem::new("a set without backends").allowed(format!("at least one [[{path}]]"));
        table.findings().refuse_at(&path, problem);
    }
    tables.unwrap_or_default()
}

fn read_backend(index: usize, mut table: Table<'_, '_>) -> (BackendFacts, Option<Backend>) {
    let name = table.optional("name", None, |value| value.parsed(scalar::backend_name).map(Some));
    let address =
        table.required("address", "a unicast IPv4 or IPv6 address", |value| value.parsed(scalar::reachable));
    let port = table.required("port", "a port from 1 to 65535, or 0 to keep the destination port", |value| {
        value.integer(0..=u16::MAX)
    });
    let weight = table.optional("weight", 1, |value| value.integer(0..=1000));
    let backup = table.flag("backup", false);
    let drain = table.flag("drain", false);
    let offline = table.flag("offline", false);
    table.finish();

    let name = name.and_then(|name| name.or_else(|| Some(default_name(address?, port?))));
    let facts = BackendFacts { index, name: name.clone(), address, port, weight, backup };
    let backend = || {
        Some(Backend {
            name: name?,
            address: address?,
            port: port?,
            weight: weight?,
            backup: backup?,
            drain: drain?,
            offline: offline?,
        })
    };
    (facts, backend())
}

/// `10.0.1.10:8080`, `[fd00::10]:8080`
fn default_name(address: IpAddr, port: u16) -> String {
    SocketAddr::new(address, port).to_string()
}

fn min_healthy(value: &Value<'_, '_>) -> Option<MinHealthy> {
    let refused = |message: &str| Problem::new(message).allowed(MIN_HEALTHY);
    if let Some(number) = value.as_integer() {
        let count = u32::try_from(number).ok().filter(|count| (1..=MAX_BACKENDS as u32).contains(count));
        return count
            .map(MinHealthy::Count)
            .or_else(|| value.refuse(refused("out of range").allowed(format!("from 1 to {MAX_BACKENDS}"))));
    }
    let text = value.text_or(MIN_HEALTHY)?;
    if text == "half" {
        return Some(MinHealthy::Half);
    }
    match text.strip_suffix('%').map(str::parse) {
        Some(Ok(percent @ 1..=100)) => Some(MinHealthy::Percent(percent)),
        Some(_) => value.refuse(refused("not a share from 1% to 100%")),
        None => {
            let number = text.parse::<u32>().ok();
            value.refuse(
                refused("neither \"half\" nor a share").suggest_any(number.map(|number| number.to_string())),
            )
        }
    }
}
