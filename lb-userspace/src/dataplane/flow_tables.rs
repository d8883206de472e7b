//! The maps in which the flows of a family stand, and what ending a flow takes: first the flow itself goes, which only one of all
//! who try succeeds in, and whoever did gives back what the flow had claimed. So a SNAT port is free again only when nothing sends
//! from it any more.

mod answers;
mod half_open;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use anyhow::{Context, Result};
use aya::maps::MapData;
use aya::{Ebpf, Pod};
use lb_common::{Address, Flow, FlowKey, HalfOpen};

pub(super) use self::answers::{Answers, Claim};
pub(super) use self::half_open::HalfOpenFlows;
use self::half_open::HalfOpenTable;
use super::load::{array_of, take_hash};
use super::sys;

/// The flows of a family.
#[derive(Debug)]
pub(super) struct FlowTables<A> {
    connections: MapData,
    half_open: HalfOpenTable<A>,
    answers: Answers<A>,
}

impl<A> FlowTables<A>
where
    A: Address + Pod,
    FlowKey<A>: Pod + PartialEq,
    Flow<A>: Pod,
    HalfOpen<A>: Pod,
{
    /// Takes those of them that are hash maps out of the object, and maps the others.
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self> {
        let name = |name: &str| format!("{name}_v{}", A::VERSION);
        let unreadable = || format!("cannot map the flows of IPv{}", A::VERSION);
        let connections = take_hash(ebpf, &name("connections"))?;
        let more = take_hash(ebpf, &name("answers_more"))?;
        let array = |of: &str| array_of(ebpf, &name(of));
        let half_open = HalfOpenTable::new(array("half_open")?, array("flows_at")?);
        let answers = Answers::new(array("answers")?, more);
        Ok(Self {
            connections,
            half_open: half_open.with_context(unreadable)?,
            answers: answers.with_context(unreadable)?,
        })
    }

    /// The map of promoted flows.
    pub(super) fn connections(&self) -> BorrowedFd<'_> {
        self.connections.fd().as_fd()
    }

    /// Promoted flows that there is room for.
    pub(super) fn room(&self) -> Result<u32> {
        Ok(self.connections.info().context("cannot look at a connection map")?.max_entries())
    }

    /// The flows that are not promoted yet.
    pub(super) const fn half_open(&self) -> &HalfOpenFlows<A> {
        self.half_open.flows()
    }

    /// What the flows have claimed.
    pub(super) const fn answers(&self) -> &Answers<A> {
        &self.answers
    }

    /// The flow of a client's tuple. One that is promoted is entered among the promoted ones before it leaves the others, so it is
    /// found meanwhile, too.
    pub(super) fn find(&self, key: &FlowKey<A>) -> io::Result<Option<Flow<A>>> {
        match self.half_open.find(key) {
            Some(found) => Ok(Some(found.flow)),
            None => sys::lookup(self.connections(), key),
        }
    }

    /// Ends a promoted flow; what it was, `None` if it was gone already.
    pub(super) fn end(&self, key: &FlowKey<A>) -> io::Result<Option<Flow<A>>> {
        let ended = sys::take::<_, Flow<A>>(self.connections(), key)?;
        if let Some(flow) = &ended {
            self.half_open.forget_promoted(key);
            self.answers.give_back(key, flow)?;
        }
        Ok(ended)
    }

    /// Ends the flow that stood in a slot of the half-open ones; whether it did not end or get promoted before.
    pub(super) fn end_half_open(&self, slot: u32, flow: &HalfOpen<A>) -> io::Result<bool> {
        let is_ours = self.half_open.take(slot, flow);
        if is_ours {
            self.answers.give_back(&flow.key, &flow.flow)?;
        }
        Ok(is_ours)
    }
}
