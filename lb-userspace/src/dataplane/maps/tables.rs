//! Maglev tables: built, filled and installed, many at a time.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result};
use aya::maps::MapData;
use aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_ARRAY;
use lb_common::MaglevTable;

use super::Maps;
use crate::dataplane::maglev::{self, Member};
use crate::dataplane::sys;

/// Tables that one call installs, each of which is an open file until then.
const AT_ONCE: usize = 16;

/// Threads that build and install tables. More than there are processors: the kernel answers when no packet reads the
/// old tables any more, which takes it tens of milliseconds (for each table by itself before Linux 6.8), and those who
/// wait at the same time wait together.
const THREADS: usize = 16;

impl Maps {
    /// Builds the tables of sets, each given as its id and its rotation, and puts each in the place of the old one as
    /// one step. Returns when no packet sees an old one any more.
    ///
    /// # Errors
    ///
    /// If there is no memory for a table; some of the others may be installed then.
    pub fn set_tables(&mut self, sets: &[(u32, &[Member])]) -> Result<()> {
        let chunks = Mutex::new(sets.chunks(AT_ONCE));
        let next = || chunks.lock().unwrap_or_else(PoisonError::into_inner).next();
        let work = || {
            while let Some(chunk) = next() {
                self.install(chunk)?;
            }
            Ok(())
        };
        thread::scope(|scope| {
            let threads = sets.len().div_ceil(AT_ONCE).min(THREADS);
            let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            threads
                .into_iter()
                .try_for_each(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        })
    }

    fn install(&self, sets: &[(u32, &[Member])]) -> Result<()> {
        let tables = sets.iter().map(|(_, rotation)| filled(&maglev::build(rotation)));
        let tables: Vec<MapData> = tables.collect::<Result<_>>()?;
        let ids: Vec<u32> = sets.iter().map(|(id, _)| *id).collect();
        let descriptors: Vec<i32> = tables.iter().map(|table| table.fd().as_fd().as_raw_fd()).collect();
        sys::update_all(self.maglev.as_fd(), &ids, &descriptors)
            .with_context(|| format!("cannot install the Maglev tables of the sets {ids:?}"))
    }

    /// Removes the Maglev table of a set, if it has one.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn remove_table(&mut self, set: u32) -> Result<()> {
        sys::delete(self.maglev.as_fd(), &set)
            .with_context(|| format!("cannot remove the table of set {set}"))?;
        Ok(())
    }
}

/// A map that holds a table and that no packet sees yet.
fn filled(table: &MaglevTable) -> Result<MapData> {
    let key_size = size_of::<u32>() as u32;
    let value_size = size_of::<MaglevTable>() as u32;
    let shape = aya_obj::Map::new_from_params(BPF_MAP_TYPE_ARRAY as u32, key_size, value_size, 1, 0);
    let map = MapData::create(shape, "maglev_table", None).context("cannot create a Maglev table")?;
    sys::replace(map.fd().as_fd(), &0_u32, table).context("cannot fill a Maglev table")?;
    Ok(map)
}
