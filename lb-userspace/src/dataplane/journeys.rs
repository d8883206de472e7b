//! The programs that the entry program goes on to by tail calls, and the array it finds them in.
//!
//! A program array loses its entries when the last reference of user space to it goes, a descriptor or a pin, even
//! while programs still use it. So it is pinned; and since an array belongs to the programs of one load, a
//! controller that adopts a data plane makes a new one. It is pinned under a name of its own first, and takes the place
//! of the old one only when every interface runs the new entry program: until then, old entry and old journeys stay
//! together.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use aya::Ebpf;
use aya::maps::{Map, MapData, ProgramArray};
use lb_common::Features;

use super::load::load_program;

/// The map, and its pin when it is in use.
pub(super) const JOURNEYS: &str = "journeys";

/// The programs, each at its index, and what they are for.
const PROGRAMS: [(&str, Features); 10] = [
    ("journey_v4", Features::IPV4),
    ("journey_v6", Features::IPV6),
    ("icmp_v4", Features::IPV4),
    ("icmp_v6", Features::IPV6),
    ("reset_v4", Features::IPV4),
    ("reset_v6", Features::IPV6),
    ("error_v4", Features::IPV4),
    ("error_v6", Features::IPV6),
    ("begin_v4", Features::IPV4),
    ("begin_v6", Features::IPV6),
];

/// The array of a loaded object.
pub(super) struct Journeys {
    /// Keeps the entries while nothing is pinned.
    _array: ProgramArray<MapData>,
    /// Where it is pinned until it takes the place of another.
    pin: Option<PathBuf>,
}

impl Journeys {
    /// Loads the programs of an object that are needed into the kernel and fills the array.
    pub(super) fn load(ebpf: &mut Ebpf, pins: Option<&Path>, features: Features) -> Result<Self> {
        let Some(Map::ProgramArray(map)) = ebpf.take_map(JOURNEYS) else {
            bail!("the eBPF object has no array of programs `{JOURNEYS}`");
        };
        let mut programs = Vec::new();
        for (index, (name, feature)) in (0..).zip(PROGRAMS) {
            if !features.include(feature) {
                continue;
            }
            let program = load_program(ebpf, name)?;
            programs.push((index, program.info()?.id(), program.fd()?.try_clone()?));
        }
        let pin = match (pins, programs.first()) {
            (Some(pins), Some((_, id, _))) => Some(pin(&map, pins, *id)?),
            _ => None,
        };
        let mut array = ProgramArray::try_from(Map::ProgramArray(map))?;
        for (index, _, program) in programs {
            array
                .set(index, &program, 0)
                .with_context(|| format!("cannot write program {index} into the map `{JOURNEYS}`"))?;
        }
        Ok(Self { _array: array, pin })
    }

    /// Lets the array take the place of the one before: every interface runs the new entry program.
    pub(super) fn settle(&mut self, pins: &Path) -> Result<()> {
        let Some(pin) = self.pin.take() else { return Ok(()) };
        let place = pins.join(JOURNEYS);
        fs::rename(&pin, &place)
            .with_context(|| format!("cannot rename {} to {}", pin.display(), place.display()))?;
        for stale in unsettled(pins)? {
            fs::remove_file(&stale).with_context(|| format!("cannot remove {}", stale.display()))?;
        }
        Ok(())
    }
}

/// Pins an array under the id of its first program, which no other has.
fn pin(array: &MapData, pins: &Path, id: u32) -> Result<PathBuf> {
    let path = pins.join(format!("{JOURNEYS}_{id}"));
    array.pin(&path).with_context(|| format!("cannot pin the map `{JOURNEYS}` at {}", path.display()))?;
    Ok(path)
}

/// Arrays of controllers that ended before every interface ran their program.
fn unsettled(pins: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(pins).with_context(|| format!("cannot read {}", pins.display()))?;
    let entries = entries.collect::<std::io::Result<Vec<_>>>()?;
    let paths = entries.iter().filter(|entry| entry.file_name().to_str().is_some_and(is_unsettled));
    Ok(paths.map(fs::DirEntry::path).collect())
}

/// Whether a pin of this name is an array that has not taken its place.
pub(super) fn is_unsettled(name: &str) -> bool {
    let id = name.strip_prefix(JOURNEYS).and_then(|rest| rest.strip_prefix('_'));
    id.is_some_and(|id| !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_pins_are_unsettled_arrays() {
        assert!(is_unsettled("journeys_42"));
        for name in ["journeys", "journeys_", "journeys_x1", "other_42"] {
            assert!(!is_unsettled(name), "{name}");
        }
    }
}
