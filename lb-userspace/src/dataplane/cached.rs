//! Makes the program forget the copies of flows that its CPUs keep in front of the connection maps.

use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result};
use aya::programs::Xdp;

use super::sys;

/// The program that does it.
pub(super) const PROGRAM: &str = "forget_cached";

/// The caches of one loaded data plane.
#[derive(Debug)]
pub struct CachedFlows {
    program: OwnedFd,
}

impl CachedFlows {
    pub(super) fn new(program: &Xdp) -> Result<Self> {
        let program = program.fd()?.as_fd().try_clone_to_owned();
        Ok(Self { program: program.with_context(|| format!("cannot keep the program `{PROGRAM}`"))? })
    }

    pub(super) fn try_clone(&self) -> Result<Self> {
        let program = self.program.try_clone();
        Ok(Self { program: program.with_context(|| format!("cannot keep the program `{PROGRAM}`"))? })
    }

    /// Has every CPU look at the flows themselves again: backends or flows have changed.
    ///
    /// # Errors
    ///
    /// If BPF_PROG_TEST_RUN fails.
    pub fn forget(&self) -> Result<()> {
        sys::run(self.program.as_fd()).map(drop).context("cannot make the program forget cached flows")
    }
}
