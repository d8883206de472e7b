//! Samples of what is dropped, for whoever asks why. A flood must not become a flood of events, so each CPU tells a
//! bounded number a second; the counters count everything.

use lb_common::{Address, EVENTS_PER_SECOND};

use crate::clock::now;
use crate::frame::Frame;
use crate::maps::{EVENT_RATES, EVENTS};
use crate::parse::Packet;
use crate::rate;
use crate::stop::Stop;

/// Tells user space of a packet, if this second still has room for it.
#[inline(always)]
pub(crate) fn sample<A: Address>(frame: &Frame, packet: Option<&Packet<A>>, stop: Stop) {
    if !rate::has_room(&EVENT_RATES, EVENTS_PER_SECOND) {
        return;
    }
    // A full ring loses the event: nobody reads it.
    let Some(mut entry) = EVENTS.reserve(0) else { return };
    let event = entry.as_mut_ptr();
    // SAFETY: the entry is as large as an event; field by field, since a whole one would first be built on the stack.
    let event = unsafe {
        event.write_bytes(0, 1);
        &mut *event
    };
    if let Some(Packet { key, .. }) = packet {
        event.key.source = key.source.widen();
        event.key.destination = key.destination.widen();
        event.key.source_port = key.source_port;
        event.key.destination_port = key.destination_port;
        event.key.protocol = key.protocol;
    }
    event.reason = stop.reason;
    event.listener = stop.counters;
    event.ingress = frame.ingress();
    event.tick = now();
    entry.submit(0);
}
