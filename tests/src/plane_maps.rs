//! Maps of a loaded data plane that the controller has no access to.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use aya::Ebpf;
use aya::maps::MapData;

/// The map of this name that a loaded program uses. Names are those of the kernel: 15 bytes at most.
///
/// # Errors
///
/// If none uses it, or the kernel does not tell.
pub fn map_of(ebpf: &Ebpf, name: &str) -> Result<MapData> {
    let mut ids = BTreeSet::new();
    for (_, program) in ebpf.programs() {
        // A program that is not loaded has no maps.
        let Ok(info) = program.info() else { continue };
        let maps = info.map_ids().context("cannot ask for a program's maps")?;
        ids.extend(maps.context("this kernel does not tell which maps a program has")?);
    }
    for id in ids {
        let map = MapData::from_id(id).context("cannot open a program's map")?;
        if map.info().context("cannot ask about a map")?.name_as_str() == Some(name) {
            return Ok(map);
        }
    }
    anyhow::bail!("the programs have no map `{name}`")
}
