//! The last events that the program has sampled, for whoever asks what just happened to packets.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use jiff::Timestamp;
use lb_common::{Event, Kind, PROTO_TCP, PROTO_UDP, Reason};
use serde::Serialize;
use serde_json::{Value, json};
use tracing::{debug, error};

use crate::dataplane::EventSource;
use crate::dataplane::clock::Tick;
use crate::network::interface_name;

/// Events that are kept.
const KEPT: usize = 256;

/// An event as it is told.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Told {
    timestamp: String,
    /// `drop`, `pass` or `note`.
    kind: &'static str,
    reason: String,
    /// Name of the listener, where one is known.
    listener: Option<String>,
    /// `tcp`, `udp` or a number.
    protocol: Option<String>,
    source: Option<SocketAddr>,
    destination: Option<SocketAddr>,
    /// The interface that the packet came in through.
    interface: String,
}

/// The last events, and what is needed to tell them.
#[derive(Clone, Debug, Default)]
pub struct Events {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Listener names by id.
    listeners: BTreeMap<u32, String>,
    /// The oldest first.
    last: VecDeque<Told>,
}

impl Events {
    /// Begins to take events, within a runtime.
    pub fn follow(source: EventSource) -> Self {
        let events = Self::default();
        let followed = events.clone();
        tokio::spawn(async move {
            if let Err(error) = followed.take(source).await {
                error!("no more events: {error:#}");
            }
        });
        events
    }

    async fn take(&self, source: EventSource) -> Result<()> {
        let (ring, clock) = source.into_parts();
        let mut records = ring.into_records().context("cannot wait for events")?;
        loop {
            let mut taken = Vec::new();
            records.read(|event| taken.push(event)).await.context("cannot read events")?;
            let now = clock.now()?;
            let mut shared = self.lock();
            taken.iter().for_each(|event| shared.add(event, now));
        }
    }

    /// Learns the names of listeners, by id.
    pub fn name_listeners(&self, names: BTreeMap<u32, String>) {
        self.lock().listeners = names;
    }

    /// The last events, the oldest first.
    pub fn document(&self) -> Value {
        json!({ "events": self.lock().last })
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        // Whoever panicked while holding it has left whole events.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    fn add(&mut self, event: &Event, now: Tick) {
        let told = self.tell(event, now);
        debug!(event = %json!(told), "packet");
        if self.last.len() == KEPT {
            self.last.pop_front();
        }
        self.last.push_back(told);
    }

    fn tell(&self, event: &Event, now: Tick) -> Told {
        let Event { key, reason, listener, ingress, tick } = event;
        let known = Reason::ALL.iter().find(|known| **known as u32 == *reason);
        let age = jiff::SignedDuration::try_from(now.since(*tick)).unwrap_or_default();
        let timestamp = Timestamp::now().checked_sub(age).unwrap_or(Timestamp::UNIX_EPOCH);
        let end = |address: IpAddr, port| {
            // What was not understood that far is zero.
            let is_known = key.protocol != 0 || !address.is_unspecified();
            is_known.then_some(SocketAddr::new(address, port))
        };
        Told {
            timestamp: format!("{timestamp:.3}"),
            kind: known.map_or("note", |reason| kind(reason.kind())),
            reason: known.map_or_else(|| reason.to_string(), |reason| reason.name().to_owned()),
            listener: listener.checked_sub(1).and_then(|id| self.listeners.get(&id).cloned()),
            protocol: protocol(key.protocol),
            source: end(key.source.into(), key.source_port),
            destination: end(key.destination.into(), key.destination_port),
            interface: interface(*ingress),
        }
    }
}

const fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Drop => "drop",
        Kind::Pass => "pass",
        Kind::Note => "note",
    }
}

fn protocol(number: u8) -> Option<String> {
    match number {
        0 => None,
        PROTO_TCP => Some("tcp".to_owned()),
        PROTO_UDP => Some("udp".to_owned()),
        other => Some(other.to_string()),
    }
}

/// The name of an interface; its number when it is gone.
fn interface(index: u32) -> String {
    interface_name(index).unwrap_or_else(|| index.to_string())
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use lb_common::{Addr6, FlowKey};

    use super::*;

    fn event(reason: Reason, source_port: u16) -> Event {
        let address = |last| Addr6::from(IpAddr::from(Ipv4Addr::new(192, 0, 2, last)));
        let key = FlowKey {
            source: address(1),
            destination: address(2),
            source_port,
            destination_port: 80,
            protocol: PROTO_TCP,
            _pad: [0; 3],
        };
        Event { key, reason: reason as u32, listener: 8, ingress: 1, tick: 1000 }
    }

    #[test]
    fn an_event_is_told_in_words() {
        let shared = Shared { listeners: BTreeMap::from([(7, "web".to_owned())]), ..Shared::default() };
        let told = shared.tell(&event(Reason::NoBackend, 40_000), Tick::new(1000, 250));
        assert_eq!((told.kind, told.reason.as_str()), ("drop", "no_backend"));
        assert_eq!(told.listener.as_deref(), Some("web"));
        assert_eq!(told.protocol.as_deref(), Some("tcp"));
        assert_eq!(told.source, "192.0.2.1:40000".parse().ok());
        assert_eq!(told.destination, "192.0.2.2:80".parse().ok());
        assert_eq!(told.interface, "lo");
        let unknown = Event { ingress: u32::MAX >> 1, reason: 9999, ..Event::default() };
        let told = shared.tell(&unknown, Tick::new(1000, 250));
        assert_eq!((told.source, told.protocol, told.listener), (None, None, None));
        assert_eq!(told.reason, "9999");
    }

    #[test]
    fn the_last_events_are_kept() {
        let mut shared = Shared::default();
        for port in 1..=300 {
            shared.add(&event(Reason::NotOurs, port), Tick::new(1000, 250));
        }
        let ports: Vec<u16> = shared.last.iter().filter_map(|told| Some(told.source?.port())).collect();
        assert_eq!((ports.len(), ports[0], ports[255]), (256, 45, 300));
    }
}
