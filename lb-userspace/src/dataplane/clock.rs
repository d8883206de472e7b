//! The clock that flows are stamped with: kernel ticks (jiffies), 32 bits of them.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, Result};
use aya::programs::Xdp;

use super::sys;

/// Reads the kernel's ticks by running a program that returns them.
#[derive(Debug)]
pub struct Clock {
    program: OwnedFd,
    ticks_per_second: u32,
}

impl Clock {
    pub(super) fn new(program: &Xdp) -> Result<Self> {
        let program =
            program.fd()?.as_fd().try_clone_to_owned().context("cannot keep the program `clock`")?;
        Ok(Self { program, ticks_per_second: ticks_per_second()? })
    }

    /// A clock for a process that has loaded no data plane.
    pub(super) fn alone() -> Result<Self> {
        let program = sys::load_clock().context("cannot load a program into the kernel")?;
        Ok(Self { program, ticks_per_second: ticks_per_second()? })
    }

    pub(super) fn try_clone(&self) -> Result<Self> {
        let program = self.program.try_clone().context("cannot keep the program `clock`")?;
        Ok(Self { program, ticks_per_second: self.ticks_per_second })
    }

    /// Whether the kernel runs its program as machine code.
    pub(super) fn is_compiled(&self) -> Result<bool> {
        sys::is_compiled(self.program.as_fd()).context("cannot look at a loaded program")
    }

    /// The current tick.
    ///
    /// # Errors
    ///
    /// If BPF_PROG_TEST_RUN fails.
    pub fn now(&self) -> Result<Tick> {
        let now = sys::run(self.program.as_fd()).context("cannot read the kernel's tick counter")?;
        Ok(Tick { now, rate: self.ticks_per_second })
    }
}

/// A moment, for asking how long ago others were.
#[derive(Clone, Copy, Debug)]
pub struct Tick {
    now: u32,
    rate: u32,
}

impl Tick {
    /// A moment made up by a test.
    #[cfg(test)]
    pub(crate) const fn new(now: u32, rate: u32) -> Self {
        Self { now, rate }
    }

    /// The tick itself.
    pub const fn ticks(self) -> u32 {
        self.now
    }

    /// Time since an earlier tick, to the millisecond. A tick that seems to lie ahead, stamped after this moment
    /// was taken, is zero old.
    pub fn since(self, earlier: u32) -> Duration {
        let ticks = self.now.wrapping_sub(earlier);
        if ticks > u32::MAX / 2 {
            return Duration::ZERO;
        }
        Duration::from_millis(u64::from(ticks) * 1000 / u64::from(self.rate))
    }
}

/// Loads a tiny XDP program into the kernel, to see whether that is allowed and whether the kernel compiles it to machine
/// code.
///
/// # Errors
///
/// If the kernel refuses it.
pub fn try_kernel() -> Result<bool> {
    Clock::alone()?.is_compiled()
}

/// How often this is in a second, rounded: the kernel tells its tick in whole nanoseconds, of which 300 times as many are not a second.
fn per_second(tick: Duration) -> u128 {
    let nanoseconds = tick.as_nanos().max(1);
    (1_000_000_000 + nanoseconds / 2) / nanoseconds
}

/// The kernel's HZ: the coarse clocks advance once a tick, so their resolution is its length (kernel 2.6.32).
pub(super) fn ticks_per_second() -> Result<u32> {
    let resolution = nix::time::clock_getres(nix::time::ClockId::CLOCK_MONOTONIC_COARSE)
        .context("cannot read the resolution of the coarse clock")?;
    let tick = Duration::from(resolution);
    u32::try_from(per_second(tick)).context("the kernel's tick is too short")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_wrap_and_never_run_backwards() {
        let tick = Tick { now: 100, rate: 250 };
        assert_eq!(tick.since(u32::MAX - 149), Duration::from_secs(1));
        assert_eq!(tick.since(100), Duration::ZERO);
        assert_eq!(tick.since(101), Duration::ZERO);
    }

    #[test]
    fn the_kernel_ticks_at_a_rate_it_can_be_built_with() {
        assert!([100, 250, 300, 1000].contains(&ticks_per_second().unwrap()));
        let rate = |nanoseconds| per_second(Duration::from_nanos(nanoseconds));
        assert_eq!([10_000_000, 4_000_000, 3_333_333, 1_000_000].map(rate), [100, 250, 300, 1000]);
    }
}
