//! Part of finding a flow and of a new one: whose is an answer? Its tuple is claimed for the flow before that is entered
//! anywhere, and given back when the flow is gone; so two flows never have the same answers, and a SNAT port is nobody else's.
//!
//! A claim names the tuple of the client's packets, and whoever finds it compares what the flow of that tuple says of its answers.

use core::ptr;

use lb_common::bucket::{BUCKET_WAYS, GATE_OVERFLOWED, Home, claim_of, claim_word};
use lb_common::cache::{split_ports, wire_ports};
use lb_common::{Address, FlowBucket, FlowKey, Reason};

use crate::atomic;
use crate::bucket::{self, Gate};
use crate::family::Family;
use crate::maps::{ANSWER_BUCKETS, BPF_NOEXIST, EEXIST};

/// Where an answer is claimed, by a call: see [`bucket::hash_of`].
#[inline(never)]
fn home_of<A: Address>(answer: &FlowKey<A>) -> Home {
    Home::of(answer, ANSWER_BUCKETS.load())
}

/// Whether the tuple of an answer is claimed, and by whom: then `client` becomes the tuple of that client's packets.
#[inline(always)]
pub(crate) fn client_of<F: Family>(answer: &FlowKey<F::Addr>, client: &mut FlowKey<F::Addr>) -> bool {
    let home = home_of(answer);
    let Some(bucket) = F::answers(home.bucket()) else { return false };
    // SAFETY: `bucket` points into a map.
    let (claim, way) = unsafe { bucket::find(bucket.cast(), home.tag()) };
    if claim == 0 {
        return client_elsewhere::<F>(bucket.cast(), answer, client);
    }
    // SAFETY: as above, and `way` is less than there are. If the claim is taken away and another made meanwhile, the client is a
    // mixture, and no flow of it has such answers. A tuple begins with both addresses.
    unsafe {
        let addresses = (&raw const (*bucket).clients).cast::<[F::Addr; 2]>().add(way);
        ptr::from_mut(client).cast::<[F::Addr; 2]>().copy_from_nonoverlapping(addresses, 1);
    }
    let (source_port, destination_port) = split_ports(claim_word(claim));
    client.source_port = u16::from_be(source_port);
    client.destination_port = u16::from_be(destination_port);
    client.protocol = answer.protocol;
    client._pad = [0; 3];
    true
}

/// The same of a claim that found its bucket full.
#[inline(always)]
fn client_elsewhere<F: Family>(
    bucket: *const FlowBucket,
    answer: &FlowKey<F::Addr>,
    client: &mut FlowKey<F::Addr>,
) -> bool {
    // SAFETY: `bucket` points into a map.
    if unsafe { bucket::gate(bucket) } & GATE_OVERFLOWED == 0 {
        return false;
    }
    // SAFETY: entries are never changed, and stay readable during this run of the program (RCU).
    let Some(found) = (unsafe { F::answers_more().get(answer) }) else { return false };
    *client = *found;
    true
}

/// Has the processor fetch what [`claim`] needs, and says where that is.
#[inline(always)]
pub(crate) fn fetch<F: Family>(answer: &FlowKey<F::Addr>) -> Home {
    let home = home_of(answer);
    if let Some(bucket) = F::answers(home.bucket()) {
        // SAFETY: `bucket` points into a map.
        unsafe { bucket::gate(bucket.cast()) };
    }
    home
}

/// Claims the tuple of the answers of a client's flow where it belongs. `false` if it is claimed already; once in a billion of
/// times, if one that looks like it in the same bucket is; and, unless it `insists`, where the bucket is full.
#[inline(always)]
pub(crate) fn claim<F: Family>(
    answer: &FlowKey<F::Addr>,
    client: &FlowKey<F::Addr>,
    home: Home,
    insists: bool,
) -> Result<bool, Reason> {
    let Some(bucket) = F::answers(home.bucket()) else {
        return Err(Reason::ConnectionsFull);
    };
    // SAFETY: `bucket` points into a map.
    let Some(mut gate) = (unsafe { Gate::hold(bucket.cast()) }) else {
        return Ok(false);
    };
    let tag = home.tag();
    // SAFETY: as above.
    let (claimed, way) = unsafe { (bucket::find(bucket.cast(), tag).0, bucket::free(bucket.cast())) };
    // SAFETY: only whether there is one.
    let is_elsewhere = gate.has(GATE_OVERFLOWED) && unsafe { F::answers_more().get(answer) }.is_some();
    let result = if claimed != 0 || is_elsewhere {
        Ok(false)
    } else if way < BUCKET_WAYS {
        // SAFETY: one of the clients; nobody reads it before there is its claim.
        unsafe {
            let clients = (&raw mut (*bucket).clients).cast::<[F::Addr; 2]>();
            *clients.add(way) = [client.source, client.destination];
            atomic::publish(bucket::claim_at(bucket.cast(), way), claim_of(tag, ports_of(client)));
        }
        Ok(true)
    } else if !insists {
        Ok(false)
    } else {
        gate.note(GATE_OVERFLOWED);
        match F::answers_more().insert(answer, client, BPF_NOEXIST) {
            Ok(()) => Ok(true),
            Err(EEXIST) => Ok(false),
            Err(_) => Err(Reason::ConnectionsFull),
        }
    };
    gate.leave();
    result
}

/// Gives the tuple back. Whoever ends a flow does so once it is gone.
#[inline(never)]
pub(crate) fn give_back<F: Family>(answer: &FlowKey<F::Addr>, client: &FlowKey<F::Addr>) {
    let home = home_of(answer);
    let Some(bucket) = F::answers(home.bucket()) else { return };
    let tag = home.tag();
    // SAFETY: `bucket` points into a map.
    let (claim, way) = unsafe { bucket::find(bucket.cast(), tag) };
    if claim == claim_of(tag, ports_of(client)) {
        // SAFETY: as in `client_of`.
        unsafe {
            let [source, destination] = *(&raw const (*bucket).clients).cast::<[F::Addr; 2]>().add(way);
            if source.is(client.source) && destination.is(client.destination) {
                bucket::change(bucket::claim_at(bucket.cast(), way), claim, 0);
            }
        }
        return;
    }
    // SAFETY: as in `client_elsewhere`.
    let is_elsewhere = unsafe {
        bucket::gate(bucket.cast()) & GATE_OVERFLOWED != 0
            && F::answers_more().get(answer).is_some_and(|found| found.is(client))
    };
    if is_elsewhere {
        // It may be gone already.
        let _ = F::answers_more().remove(answer);
    }
}

/// The word of a client's claim.
#[inline(always)]
const fn ports_of<A>(client: &FlowKey<A>) -> u32 {
    wire_ports(client.source_port, client.destination_port)
}
