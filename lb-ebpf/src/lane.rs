//! Where the cache keeps what flows have in common: see `lb_common::lane`.
//!
//! A lane changes only after [`LANE_S`] seconds in which no flow was copied into it: no copy that names it holds by then.

use core::sync::atomic::{Ordering, compiler_fence};

use lb_common::Course;
use lb_common::lane::{LANE_S, LANE_WAYS};

use crate::clock::now;
use crate::family::{Family, Pair};
use crate::maps::TICKS_PER_SECOND;

/// The lane for a flow of this course, which is about to be copied; `first` is the index of this CPU's first lane. `None` if others
/// have all of its places.
#[inline(always)]
pub(crate) fn find<F: Family>(first: u32, course: &Course<Pair<F>>) -> Option<u16> {
    // Never zero, which says that a lane has not been used yet.
    let this_tick = now() | 1;
    let begin = course.hash() & (F::lanes() - 1);
    let mut idle = None;
    for way in 0..LANE_WAYS {
        let number = begin ^ way;
        let lane = F::lane(first + number)?;
        if lane.course == *course {
            lane.used = this_tick;
            return Some(number as u16);
        }
        if lane.used == 0 || this_tick.wrapping_sub(lane.used) > TICKS_PER_SECOND.load() * LANE_S {
            idle = Some(number);
        }
    }
    let number = idle?;
    let lane = F::lane(first + number)?;
    // In this order, so that whoever interrupts this (see `cache`) finds it in use, and of no protocol.
    lane.course.protocol = 0;
    lane.used = this_tick;
    compiler_fence(Ordering::SeqCst);
    lane.course = Course { protocol: 0, ..*course };
    compiler_fence(Ordering::SeqCst);
    lane.course.protocol = course.protocol;
    Some(number as u16)
}
