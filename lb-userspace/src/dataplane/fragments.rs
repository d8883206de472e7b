//! Fragments that came before the first of their datagram, which alone has ports. The program hands them over; they
//! wait here until it knows the ports, and are handed back as if they came in again.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use aya::Ebpf;
use aya::maps::{Map, MapData};
use aya::programs::ProgramFd;
use lb_common::{FragmentPorts, HeldFragment};
use tokio::time::{Instant, timeout_at};
use tracing::{debug, warn};

use super::clock::Clock;
use super::load::{load_program, xdp_md};
use super::records::{Records, Ring};
use super::sys;

/// How long a fragment waits for the first of its datagram.
const PATIENCE: Duration = Duration::from_millis(100);

/// How often the waiting are looked at.
const TICK: Duration = Duration::from_millis(1);

/// How long ago the first of a datagram came at most that others wait for. An older one is of another datagram with the
/// same identification: the program did not go by it, and would not when the fragment came round again.
const FRESH: Duration = Duration::from_secs(1);

/// Fragments that wait at once; more are lost, as they would be without anybody to hold them.
const ROOM: usize = 1024;

/// Holds fragments for one loaded program.
pub struct FragmentHolder {
    ring: Ring<HeldFragment>,
    kernel: Kernel,
}

/// What the program knows, the program, and the one that counts what was lost.
struct Kernel {
    fragments: MapData,
    clock: Clock,
    program: ProgramFd,
    lose: ProgramFd,
}

impl FragmentHolder {
    pub(super) fn take(ebpf: &mut Ebpf, program: ProgramFd, clock: Clock) -> Result<Self> {
        let ring = Ring::take(ebpf, "held_fragments")?;
        let Some(Map::LruHashMap(fragments)) = ebpf.take_map("fragments") else {
            return Err(anyhow!("the eBPF object has no LRU hash map `fragments`"));
        };
        let lose = load_program(ebpf, "lose_fragment")?.fd()?.try_clone().context("cannot keep a program")?;
        Ok(Self { ring, kernel: Kernel { fragments, clock, program, lose } })
    }

    /// Takes fragments and hands them back, until it is dropped.
    ///
    /// # Errors
    ///
    /// If the kernel cannot tell when there are any.
    pub async fn run(self) -> Result<()> {
        let mut records = self.ring.into_records().context("cannot wait for held fragments")?;
        let mut waiting = Waiting::default();
        let mut next_look = Instant::now();
        loop {
            take_in(&mut records, &mut waiting, next_look).await?;
            if Instant::now() >= next_look {
                // The kernel runs the program here and now, which may take a while for many fragments.
                tokio::task::block_in_place(|| waiting.look(&self.kernel, Instant::now()));
                next_look = Instant::now() + TICK;
            }
        }
    }
}

/// Takes what there is. While nobody waits, it takes its time; else it comes back for the next look.
async fn take_in(
    records: &mut Records<HeldFragment>,
    waiting: &mut Waiting,
    next_look: Instant,
) -> Result<()> {
    let is_idle = waiting.fragments.is_empty();
    let read = records.read(|fragment| waiting.add(fragment, Instant::now()));
    let read = if is_idle { Ok(read.await) } else { timeout_at(next_look, read).await };
    match read {
        Ok(result) => result.context("cannot read held fragments"),
        Err(_) => Ok(()),
    }
}

/// Fragments, the first to come first.
#[derive(Default)]
struct Waiting {
    fragments: VecDeque<WaitingFragment>,
    /// Since the last one that there was room for.
    lost: u64,
    /// Lost, but not counted yet.
    uncounted: u32,
}

struct WaitingFragment {
    fragment: HeldFragment,
    came: Instant,
    /// When to ask again. The time in between grows, so that a flood of fragments without a first costs little.
    ask_at: Instant,
}

impl Waiting {
    fn add(&mut self, fragment: HeldFragment, now: Instant) {
        if self.fragments.len() < ROOM {
            self.lost = 0;
            self.fragments.push_back(WaitingFragment { fragment, came: now, ask_at: now });
            return;
        }
        self.lost += 1;
        self.uncounted += 1;
        if self.lost == 1 {
            warn!("more than {ROOM} fragments wait for the first of their datagram; some are lost");
        }
    }

    /// Hands back those whose first has come, and lets go of those that have waited long enough.
    fn look(&mut self, kernel: &impl Ports, now: Instant) {
        let uncounted = &mut self.uncounted;
        self.fragments.retain_mut(|waiting| {
            if waiting.ask_at > now {
                return true;
            }
            let waited = now - waiting.came;
            if kernel.knows(&waiting.fragment) {
                kernel.hand_back(&waiting.fragment);
                return false;
            }
            waiting.ask_at = (now + waited.max(TICK)).min(waiting.came + PATIENCE);
            *uncounted += u32::from(waited >= PATIENCE);
            waited < PATIENCE
        });
        if self.uncounted > 0 {
            kernel.lose(std::mem::take(&mut self.uncounted));
        }
    }
}

/// Knows the ports of datagrams.
trait Ports {
    /// Whether the first fragment of this one has come.
    fn knows(&self, fragment: &HeldFragment) -> bool;

    /// Has it come in again.
    fn hand_back(&self, fragment: &HeldFragment);

    /// Counts as dropped so many for which no first has come.
    fn lose(&self, fragments: u32);
}

impl Ports for Kernel {
    fn knows(&self, fragment: &HeldFragment) -> bool {
        let known = sys::lookup::<_, FragmentPorts>(self.fragments.fd().as_fd(), &fragment.key);
        let Ok(Some(ports)) = known else { return false };
        self.clock.now().is_ok_and(|now| now.since(ports.since) < FRESH)
    }

    fn hand_back(&self, fragment: &HeldFragment) {
        let HeldFragment { ingress, length, frame, .. } = fragment;
        let Some(frame) = frame.get(..*length as usize) else { return };
        let context = xdp_md(frame.len(), *ingress);
        if let Err(error) = sys::inject(self.program.as_fd(), frame, &context) {
            debug!(ingress, length, "cannot hand back a fragment: {error}");
        }
    }

    fn lose(&self, fragments: u32) {
        if let Err(error) = sys::run_times(self.lose.as_fd(), fragments) {
            debug!(fragments, "cannot count lost fragments: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use lb_common::FragmentKey;
    use lb_common::fragment::HELD_FRAME;

    use super::*;

    /// Knows the datagrams of a list, and notes what it is handed and how often it is asked.
    #[derive(Default)]
    struct Program {
        known: Vec<u32>,
        handed_back: RefCell<Vec<u32>>,
        asked: RefCell<u32>,
        lost: RefCell<u32>,
    }

    impl Ports for Program {
        fn knows(&self, fragment: &HeldFragment) -> bool {
            *self.asked.borrow_mut() += 1;
            self.known.contains(&fragment.key.identification)
        }

        fn hand_back(&self, fragment: &HeldFragment) {
            self.handed_back.borrow_mut().push(fragment.key.identification);
        }

        fn lose(&self, fragments: u32) {
            *self.lost.borrow_mut() += fragments;
        }
    }

    fn fragment(identification: u32) -> HeldFragment {
        let key = FragmentKey { identification, ..FragmentKey::default() };
        HeldFragment { key, ingress: 1, length: 60, frame: [0; HELD_FRAME] }
    }

    /// Looks each millisecond, from the first to the last.
    fn look(waiting: &mut Waiting, program: &Program, came: Instant, from: u64, to: u64) {
        for ms in from..=to {
            waiting.look(program, came + Duration::from_millis(ms));
        }
    }

    #[test]
    fn fragments_go_back_in_order_when_the_first_has_come() {
        let (mut waiting, mut program) = (Waiting::default(), Program::default());
        let came = Instant::now();
        [1, 2, 1].into_iter().for_each(|datagram| waiting.add(fragment(datagram), came));
        look(&mut waiting, &program, came, 0, 20);
        assert!(program.handed_back.borrow().is_empty());
        program.known.push(1);
        look(&mut waiting, &program, came, 21, 40);
        assert_eq!(*program.handed_back.borrow(), [1, 1]);
        assert_eq!(waiting.fragments.len(), 1);
    }

    #[test]
    fn patience_ends_and_costs_little() {
        let (mut waiting, program) = (Waiting::default(), Program::default());
        let came = Instant::now();
        waiting.add(fragment(1), came);
        look(&mut waiting, &program, came, 0, 99);
        assert_eq!((waiting.fragments.len(), *program.lost.borrow()), (1, 0));
        look(&mut waiting, &program, came, 100, 100);
        assert_eq!((waiting.fragments.len(), *program.lost.borrow()), (0, 1));
        assert!(*program.asked.borrow() < 12, "asked {} times", program.asked.borrow());
    }

    #[test]
    fn a_first_that_comes_late_is_in_time() {
        let (mut waiting, mut program) = (Waiting::default(), Program::default());
        let came = Instant::now();
        waiting.add(fragment(1), came);
        look(&mut waiting, &program, came, 0, 98);
        program.known.push(1);
        look(&mut waiting, &program, came, 99, 100);
        assert_eq!(*program.handed_back.borrow(), [1]);
    }

    #[test]
    fn there_is_room_for_so_many_and_no_more() {
        let mut waiting = Waiting::default();
        for datagram in 0..2 * ROOM as u32 {
            waiting.add(fragment(datagram), Instant::now());
        }
        assert_eq!(waiting.fragments.len(), ROOM);
        assert_eq!(waiting.fragments[0].fragment.key.identification, 0, "the first to come stay");
        let program = Program::default();
        waiting.look(&program, Instant::now());
        assert_eq!(*program.lost.borrow(), ROOM as u32);
    }
}
