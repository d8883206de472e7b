//! Records that the program hands over by a ring buffer.

use std::io;
use std::marker::PhantomData;

use anyhow::{Context, Result, anyhow};
use aya::maps::{MapData, RingBuf};
use aya::{Ebpf, Pod};
use tokio::io::unix::AsyncFd;

use super::sys;

/// A ring buffer with records of one type.
pub struct Ring<T> {
    ring: RingBuf<MapData>,
    of: PhantomData<T>,
}

impl<T: Pod> Ring<T> {
    pub(super) fn take(ebpf: &mut Ebpf, name: &str) -> Result<Self> {
        let map = ebpf.take_map(name).ok_or_else(|| anyhow!("the eBPF object has no map `{name}`"))?;
        let ring = map.try_into().with_context(|| format!("the map `{name}` is not a ring buffer"))?;
        Ok(Self { ring, of: PhantomData })
    }

    /// Begins to wait for records; within a runtime.
    ///
    /// # Errors
    ///
    /// If the kernel cannot tell when there are any.
    pub fn into_records(self) -> io::Result<Records<T>> {
        Ok(Records { ring: sys::watch(self.ring)?, of: PhantomData })
    }
}

/// A ring buffer whose records are waited for.
pub struct Records<T> {
    ring: AsyncFd<RingBuf<MapData>>,
    of: PhantomData<T>,
}

impl<T: Pod> Records<T> {
    /// Waits until there are records and hands each of them out. When this is dropped while it waits, none is lost.
    ///
    /// # Errors
    ///
    /// If the runtime ends.
    pub async fn read(&mut self, mut each: impl FnMut(T)) -> io::Result<()> {
        let mut ready = self.ring.readable_mut().await?;
        while let Some(record) = ready.get_inner_mut().next() {
            // A shorter one would be of another program than the one that was loaded with this map.
            if let Some(record) = sys::record(&record) {
                each(record);
            }
        }
        ready.clear_ready();
        Ok(())
    }
}
