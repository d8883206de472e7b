//! Maps of a loaded data plane that the controller has no access to.

use anyhow::{Context as _, Result};
use aya::maps::MapData;
use aya::programs::ProgramInfo;

/// The map of this name that a program uses. Names are those of the kernel: 15 bytes at most.
///
/// # Errors
///
/// If the program uses none, or the kernel does not tell.
pub fn map_of(program: &ProgramInfo, name: &str) -> Result<MapData> {
    let ids = program.map_ids().context("cannot ask for a program's maps")?;
    for id in ids.context("this kernel does not tell a program's maps")? {
        let map = MapData::from_id(id).context("cannot open a program's map")?;
        if map.info().context("cannot ask about a map")?.name_as_str() == Some(name) {
            return Ok(map);
        }
    }
    anyhow::bail!("the program uses no map `{name}`")
}
