//! Where the cache keeps what flows have in common, and counts their packets: see `lb_common::lane`.
//!
//! A lane changes only after [`LANE_S`] seconds in which no flow was copied into it: no copy that names it holds by then.

use lb_common::lane::{LANE_S, LANE_WAYS, MARK_WORDS, book_of};
use lb_common::{Course, LaneBook, Traffic};

use crate::clock::now;
use crate::family::{Family, Pair};
use crate::maps::{LANE_BOOKS, TICKS_PER_SECOND};
use crate::{atomic, count};

/// No number of a lane.
const NO_LANE: u32 = u32::MAX;

/// Where a CPU has its lanes.
#[derive(Clone, Copy)]
pub(crate) struct Lanes {
    pub(crate) cpu: u32,
    /// Index of its first.
    pub(crate) first: u32,
}

impl Lanes {
    /// The lane for a flow of this course, which is about to be copied. `None` if others have all of its places.
    #[inline(always)]
    pub(crate) fn find<F: Family>(self, course: &Course<Pair<F>>) -> Option<u16> {
        // Never zero, which says that a lane has not been used yet.
        let this_tick = now() | 1;
        let begin = course.hash() & (F::lanes() - 1);
        // Not an Option: the compiler saves the number that it does not have from whatever register it likes, and the verifier lets
        // no half of an address be saved.
        let mut idle = NO_LANE;
        for way in 0..LANE_WAYS {
            let number = begin ^ way;
            let lane = F::lane(self.first + number)?;
            if lane.course == *course {
                lane.used = this_tick;
                return Some(number as u16);
            }
            if lane.used == 0 || this_tick.wrapping_sub(lane.used) > TICKS_PER_SECOND.load() * LANE_S {
                idle = number;
            }
        }
        if idle == NO_LANE { None } else { self.turn::<F>(idle, course, this_tick) }
    }

    /// Makes an idle lane that of another course.
    #[inline(always)]
    fn turn<F: Family>(self, number: u32, course: &Course<Pair<F>>, this_tick: u32) -> Option<u16> {
        let lane = F::lane(self.first + number)?;
        let book = LANE_BOOKS.get_ptr_mut(book_of(self.cpu, F::NUMBER))?;
        // SAFETY: the book belongs to this CPU, as the lane does; the controller only reads it.
        let LaneBook { changes, marks } = unsafe { &mut *book };
        let changes = &raw mut *changes;
        // SAFETY: an aligned word of the book. The operation is atomic, since the controller must see each change before and
        // after what it tells of.
        let change = || unsafe { atomic::fetch_add(changes, 1) };
        // In this order, so that whoever interrupts this (see `cache`) finds it in use, and of no protocol.
        lane.course.protocol = 0;
        lane.used = this_tick;
        change();
        let Course { listener, backend, direction, .. } = lane.course;
        if lane.traffic.packets != 0 {
            count::traffic(listener.into(), backend.into(), direction, &lane.traffic);
        }
        lane.traffic = Traffic::default();
        marks[number as usize / 64 % MARK_WORDS] |= 1 << (number % 64);
        lane.course = Course { protocol: 0, ..*course };
        change();
        lane.course.protocol = course.protocol;
        Some(number as u16)
    }
}
