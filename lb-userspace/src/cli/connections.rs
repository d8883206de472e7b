//! `lb connections`

use std::collections::BTreeSet;
use std::io::{BufWriter, Write};
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use serde::Serialize;

use super::names::Names;
use super::{FAILED, OK, Target, no_data_plane};
use crate::dataplane::connections::{Connection, Connections as Maps, Filter, State, Which};
use crate::instance::Instance;

#[derive(Debug, Args)]
pub(super) struct Connections {
    /// Print them as JSON
    #[arg(long)]
    json: bool,
    /// Only flows of this listener: its name, VIP:PORT, or #ID in the maps
    #[arg(long, value_name = "LISTENER")]
    listener: Option<String>,
    /// Only flows to this backend: SET/BACKEND, BACKEND, ADDRESS:PORT, or #ID in the maps
    #[arg(long, value_name = "BACKEND")]
    backend: Option<String>,
    /// Stop after so many
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    #[command(flatten)]
    target: Target,
}

/// A flow as JSON; the form is documented in docs/api.md.
#[derive(Serialize)]
struct Row<'a> {
    protocol: &'static str,
    client: SocketAddr,
    vip: SocketAddr,
    source: SocketAddr,
    destination: SocketAddr,
    listener: Option<&'a str>,
    listener_id: u32,
    backend_set: Option<&'a str>,
    backend: Option<&'a str>,
    backend_id: u32,
    state: State,
    age_ms: u64,
    idle_ms: u64,
}

impl Connections {
    pub(super) async fn execute(&self) -> Result<u8> {
        let instance = self.target.instance()?;
        let Some(maps) = Maps::open(&instance.pins())? else { return Ok(no_data_plane(&instance)) };
        let names = Names::find(&instance, &maps).await?;
        let filter = match names.filter(self.listener.as_deref(), self.backend.as_deref()) {
            Ok(filter) => filter,
            Err(unknown) => {
                eprintln!("lb: {unknown}");
                return Ok(FAILED);
            }
        };
        let mut out = BufWriter::new(std::io::stdout().lock());
        if self.json {
            self.print_json(&instance, &maps, &names, &filter, &mut out)?;
        } else {
            self.print_table(&maps, &names, &filter, &mut out)?;
        }
        out.flush().context("cannot write")?;
        Ok(OK)
    }

    /// Shows flows as they are found; whether the limit has cut the list short.
    fn visit(
        &self,
        maps: &Maps,
        filter: &Filter,
        mut show: impl FnMut(&Connection) -> Result<()>,
    ) -> Result<bool> {
        let (mut shown, mut truncated) = (0, false);
        maps.visit(filter, |connection| {
            if self.limit.is_some_and(|limit| shown >= limit) {
                truncated = true;
                return Ok(ControlFlow::Break(()));
            }
            shown += 1;
            show(connection)?;
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(truncated)
    }

    fn print_json(
        &self,
        instance: &Instance,
        maps: &Maps,
        names: &Names,
        filter: &Filter,
        out: &mut impl Write,
    ) -> Result<()> {
        write!(out, "{{\"version\":1,\"instance\":{},\"connections\":[", serde_json::json!(instance.name()))?;
        let mut separator = "\n";
        let truncated = self.visit(maps, filter, |connection| {
            write!(out, "{separator}{}", serde_json::to_string(&names.row(connection))?)?;
            separator = ",\n";
            Ok(())
        })?;
        writeln!(out, "],\n\"truncated\":{truncated}}}").context("cannot write")
    }

    fn print_table(&self, maps: &Maps, names: &Names, filter: &Filter, out: &mut impl Write) -> Result<()> {
        writeln!(
            out,
            "{:<5} {:<21} {:<21} {:<21} {:<21} {:<11} {:>6} {:>6}  {:<16} BACKEND",
            "PROTO", "CLIENT", "VIP", "SOURCE", "DESTINATION", "STATE", "AGE", "IDLE", "LISTENER"
        )?;
        let truncated = self.visit(maps, filter, |connection| {
            let row = names.row(connection);
            let numbered = |name: Option<&str>, id: u32| name.map_or_else(|| format!("#{id}"), str::to_owned);
            let (listener, backend) =
                (numbered(row.listener, row.listener_id), numbered(row.backend, row.backend_id));
            writeln!(
                out,
                "{:<5} {:<21} {:<21} {:<21} {:<21} {:<11} {:>6} {:>6}  {listener:<16} {}{backend}",
                row.protocol,
                row.client.to_string(),
                row.vip.to_string(),
                row.source.to_string(),
                row.destination.to_string(),
                row.state.word(),
                brief(connection.age),
                brief(connection.idle),
                row.backend_set.map(|set| format!("{set}/")).unwrap_or_default(),
            )
            .context("cannot write")
        })?;
        if truncated {
            writeln!(out, "and more: stopped at --limit")?;
        }
        Ok(())
    }
}

impl Names {
    /// What the user means, or what there is instead.
    fn filter(&self, listener: Option<&str>, backend: Option<&str>) -> Result<Filter, String> {
        let owners = self.listeners.iter().map(|(&id, name)| (id, vec![name.clone()]));
        let listener =
            listener.map(|wanted| which("listener", wanted, &owners.collect::<Vec<_>>())).transpose()?;
        let owners =
            self.backends.iter().map(|(&id, (set, name))| (id, vec![format!("{set}/{name}"), name.clone()]));
        let backend =
            backend.map(|wanted| which("backend", wanted, &owners.collect::<Vec<_>>())).transpose()?;
        Ok(Filter { listener, backend })
    }

    fn row<'a>(&'a self, connection: &Connection) -> Row<'a> {
        let backend = self.backends.get(&connection.backend);
        let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Row {
            protocol: connection.protocol_name(),
            client: connection.client,
            vip: connection.vip,
            source: connection.source,
            destination: connection.destination,
            listener: self.listeners.get(&connection.listener).map(String::as_str),
            listener_id: connection.listener,
            backend_set: backend.map(|(set, _)| set.as_str()),
            backend: backend.map(|(_, name)| name.as_str()),
            backend_id: connection.backend,
            state: connection.state,
            age_ms: milliseconds(connection.age),
            idle_ms: milliseconds(connection.idle),
        }
    }
}

/// The owners of ids that go by this name; else what may stand there.
fn which(what: &str, wanted: &str, owners: &[(u32, Vec<String>)]) -> Result<Which, String> {
    let ids: BTreeSet<u32> = owners
        .iter()
        .filter(|(_, names)| names.iter().any(|name| name == wanted))
        .map(|(id, _)| *id)
        .collect();
    if !ids.is_empty() {
        return Ok(Which::Ids(ids));
    }
    if let Some(id) = wanted.strip_prefix('#').and_then(|id| id.parse().ok()) {
        return Ok(Which::Ids(BTreeSet::from([id])));
    }
    if let Ok(address) = wanted.parse() {
        return Ok(Which::At(address));
    }
    let known: Vec<&str> = owners.iter().filter_map(|(_, names)| names.first()).map(String::as_str).collect();
    let known = match known.as_slice() {
        [] => "no names are known while no controller runs: use ADDRESS:PORT or #ID".to_owned(),
        known => format!("there are: {}", known.join(", ")),
    };
    Err(format!("no {what} `{wanted}`; {known}"))
}

/// A time in at most six characters.
fn brief(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_and_backends_are_found_by_name_address_or_id() {
        let owners =
            [(3, vec!["web/a".to_owned(), "a".to_owned()]), (5, vec!["dns/a".to_owned(), "a".to_owned()])];
        let ids = |wanted: &str| match which("backend", wanted, &owners) {
            Ok(Which::Ids(ids)) => ids.into_iter().collect::<Vec<u32>>(),
            other => panic!("{wanted}: {other:?}"),
        };
        assert_eq!((ids("web/a"), ids("a"), ids("#7")), (vec![3], vec![3, 5], vec![7]));
        let address = which("backend", "[fd00::1]:80", &owners);
        assert!(matches!(address, Ok(Which::At(at)) if at == "[fd00::1]:80".parse().unwrap()));
        let error = which("backend", "b", &owners).unwrap_err();
        assert!(error.contains("`b`") && error.contains("web/a, dns/a"), "{error}");
        assert!(which("listener", "web", &[]).unwrap_err().contains("no controller runs"));
    }

    #[test]
    fn times_are_brief() {
        for (seconds, text) in [(0, "0s"), (59, "59s"), (61, "1m01s"), (3660, "1h01m"), (90_000, "1d01h")] {
            assert_eq!(brief(Duration::from_secs(seconds)), text);
        }
    }
}
