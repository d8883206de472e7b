//! Building lookup tables.

use std::time::Instant;

use lb_userspace::dataplane::maglev::{self, Member};

use crate::report::Report;
use crate::service::{BACKENDS, backend};

/// How long the tables of as many sets take.
pub(crate) fn measure(report: &mut Report, sets: u32, rounds: u32) {
    let build = |_| {
        let begin = Instant::now();
        for set in 0..sets {
            let member = |index| Member { address: (backend(set, index), 7).into(), id: index, weight: 1 };
            let members: Vec<Member> = (0..BACKENDS).map(member).collect();
            std::hint::black_box(maglev::build(&members));
        }
        begin.elapsed()
    };
    let times: Vec<_> = (0..rounds).map(build).collect();
    report.add_times(format!("Maglev tables of {sets} sets of {BACKENDS} backends"), &times);
}
