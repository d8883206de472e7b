//! Asks the loaded program what would become of a packet. The programs that answer share every step with those that
//! forward, and leave no trace; they are pinned, so that they answer without a controller too.

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use aya::Ebpf;
use aya::maps::{HashMap, Map, MapData};
use aya::programs::{ProgramFd, Xdp};
use aya_obj::programs::XdpAttachType;
use lb_common::{Explanation, InterfaceMac};

use super::load::{load_program, xdp_md};
use super::sys;

/// The programs, for IPv4 and for IPv6, and the names of their pins.
pub(super) const PROGRAMS: [&str; 2] = ["explain_v4", "explain_v6"];

/// How often it is asked at most for two equal answers in a row.
const TRIES: usize = 8;

/// The type of an Ethernet frame that carries IPv6.
const ETHER_IPV6: [u8; 2] = [0x86, 0xdd];

/// Answers of one loaded data plane.
pub struct Explainer {
    programs: [ProgramFd; 2],
}

impl Explainer {
    /// Loads the programs of an object into the kernel.
    pub(super) fn load(ebpf: &mut Ebpf) -> Result<Self> {
        let mut load = |name| -> Result<_> { Ok(load_program(ebpf, name)?.fd()?.try_clone()?) };
        let [v4, v6] = PROGRAMS.map(&mut load);
        Ok(Self { programs: [v4?, v6?] })
    }

    /// Opens what the data plane with these pins runs; `None` if there is none.
    ///
    /// # Errors
    ///
    /// If a pin cannot be opened.
    pub fn open(pins: &Path) -> Result<Option<Self>> {
        let is_there = |path: &Path| {
            path.try_exists().with_context(|| format!("cannot look at {}: this needs root", path.display()))
        };
        if !is_there(&pins.join(PROGRAMS[0]))? {
            return Ok(None);
        }
        let open = |name| -> Result<_> {
            let path = pins.join(name);
            let program = Xdp::from_pin(&path, XdpAttachType::Interface);
            let program = program
                .with_context(|| format!("cannot open {}: this needs root or CAP_BPF", path.display()))?;
            Ok(program.fd()?.try_clone()?)
        };
        let [v4, v6] = PROGRAMS.map(open);
        Ok(Some(Self { programs: [v4?, v6?] }))
    }

    /// What would become of a frame that came in through the interface with this index.
    ///
    /// # Errors
    ///
    /// If the kernel cannot run the program; the interface must exist in this network namespace.
    pub fn explain(&self, frame: &[u8], ingress: u32) -> Result<Explanation> {
        let mut before = self.ask(frame, ingress)?;
        for _ in 1..TRIES {
            let answer = self.ask(frame, ingress)?;
            if is_same(&answer, &before) {
                return Ok(answer);
            }
            before = answer;
        }
        Err(anyhow!("the program gave {TRIES} different answers: the host changes too fast; ask again"))
    }

    fn ask(&self, frame: &[u8], ingress: u32) -> Result<Explanation> {
        let is_v6 = ether_type(frame) == Some(ETHER_IPV6);
        let program = &self.programs[usize::from(is_v6)];
        // The answer is written over the frame, so there must be room for it.
        let mut question = frame.to_vec();
        question.resize(frame.len().max(size_of::<Explanation>()), 0);
        let mut answer = vec![0; question.len()];
        sys::test_run(program.as_fd(), &question, &xdp_md(question.len(), ingress), &mut answer)
            .context("the kernel does not run the program (BPF_PROG_TEST_RUN)")?;
        sys::record(&answer).context("the program gave no answer")
    }
}

/// The type of what a frame carries, behind VLAN tags.
fn ether_type(frame: &[u8]) -> Option<[u8; 2]> {
    let mut types = frame.get(12..)?.chunks_exact(4).filter_map(|tag| tag.first_chunk());
    types.find(|kind| !matches!(kind, [0x81, 0x00] | [0x88, 0xa8])).copied()
}

/// Whether two answers agree. Each new flow moves the search for a SNAT port on, so that may differ.
fn is_same(a: &Explanation, b: &Explanation) -> bool {
    let without_port = |answer: &Explanation| Explanation { source: b.source, source_port: 0, ..*answer };
    without_port(a) == without_port(b)
}

/// Pins the programs in place of those of an earlier controller.
pub(super) fn pin(ebpf: &mut Ebpf, pins: &Path) -> Result<()> {
    for name in PROGRAMS {
        let path = pins.join(name);
        let removed = fs::remove_file(&path);
        if let Err(error) = removed
            && error.kind() != std::io::ErrorKind::NotFound
        {
            return Err(error).with_context(|| format!("cannot remove {}", path.display()));
        }
        let program =
            ebpf.program_mut(name).with_context(|| format!("the object has no program `{name}`"))?;
        program.pin(&path).with_context(|| format!("cannot pin a program at {}", path.display()))?;
    }
    Ok(())
}

/// MACs of the interfaces that the data plane with these pins is attached to, by index.
///
/// # Errors
///
/// If the map cannot be read.
pub fn interfaces(pins: &Path) -> Result<Vec<(u32, InterfaceMac)>> {
    let path = pins.join("interfaces");
    let map = MapData::from_pin(&path).with_context(|| format!("cannot open {}", path.display()))?;
    let map: HashMap<_, u32, InterfaceMac> =
        Map::HashMap(map).try_into().context("`interfaces` is no hash map")?;
    let mut interfaces =
        map.iter().collect::<Result<Vec<_>, _>>().context("cannot read the map `interfaces`")?;
    interfaces.sort_by_key(|(index, _)| *index);
    Ok(interfaces)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_looked_through() {
        let frame = |types: &[u8]| [[0; 12].as_slice(), types, &[0; 20]].concat();
        assert_eq!(ether_type(&frame(&[0x86, 0xdd])), Some(ETHER_IPV6));
        assert_eq!(ether_type(&frame(&[0x81, 0, 0, 7, 0x86, 0xdd])), Some(ETHER_IPV6));
        assert_eq!(ether_type(&frame(&[0x88, 0xa8, 0, 7, 0x81, 0, 0, 8, 8, 0])), Some([8, 0]));
        assert_eq!(ether_type(&[0; 13]), None);
    }

    #[test]
    fn only_the_source_may_differ_from_answer_to_answer() {
        let answer = Explanation { source_port: 1024, backend: 3, ..Explanation::default() };
        assert!(is_same(&answer, &Explanation { source_port: 1025, ..answer }));
        assert!(!is_same(&answer, &Explanation { backend: 4, ..answer }));
    }
}
