//! Attaches the program to interfaces by pinned links, so that it goes on forwarding without a controller, and
//! replaces it inside the link of an earlier controller, so that no packet passes in between.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::{XdpLink, XdpLinkId};
use aya::programs::{ProgramError, XdpMode};
use tracing::{info, warn};

use super::explain;
use super::inspect;
use super::journeys::{JOURNEYS, is_unsettled};
use super::load::{Dataplane, pinned_maps};
use crate::config;

/// How the program is attached to an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachedMode {
    /// In the driver.
    Native,
    /// In the kernel's generic path.
    Generic,
}

impl AttachedMode {
    /// The word in status and in the name of the pin.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }

    /// Modes to try, in this order.
    const fn wanted(mode: config::XdpMode) -> &'static [Self] {
        match mode {
            config::XdpMode::Auto => &[Self::Native, Self::Generic],
            config::XdpMode::Native => &[Self::Native],
            config::XdpMode::Generic => &[Self::Generic],
        }
    }
}

/// An interface that runs the program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// Its name.
    pub interface: String,
    /// How it is attached to.
    pub mode: AttachedMode,
    /// Its number: one of the same name that was made anew has another.
    pub ifindex: u32,
}

impl Dataplane {
    /// Attaches to an interface, or takes over the link that an earlier controller pinned for it.
    ///
    /// # Errors
    ///
    /// If the interface does not exist, another XDP program is attached to it, or its driver cannot do what
    /// `mode` demands.
    pub fn attach(&mut self, interface: &str, mode: config::XdpMode) -> Result<Attachment> {
        let wanted = AttachedMode::wanted(mode);
        if let Some(adopted) = self.adopt_link(interface, wanted)? {
            return Ok(adopted);
        }
        let mut refusals = Vec::new();
        for &mode in wanted {
            let ifindex = self.introduce(interface, mode)?;
            match self.attach_fresh(interface, mode) {
                Ok(()) => {
                    for refusal in &refusals {
                        warn!(interface, "{refusal:#}; falling back to generic mode, which is slower");
                    }
                    info!(interface, mode = mode.word(), "XDP program attached");
                    return Ok(Attachment { interface: interface.to_owned(), mode, ifindex });
                }
                Err(error) => refusals.push(error.context(format!("cannot attach in {} mode", mode.word()))),
            }
        }
        let reasons: Vec<String> = refusals.iter().map(|error| format!("{error:#}")).collect();
        bail!("cannot attach to interface {interface}: {}", reasons.join("; "))
    }

    /// Replaces the program inside a pinned link.
    fn adopt_link(&mut self, interface: &str, wanted: &[AttachedMode]) -> Result<Option<Attachment>> {
        let Some(pins) = self.pins.clone() else { return Ok(None) };
        for mode in [AttachedMode::Native, AttachedMode::Generic] {
            let pin = link_pin(&pins, interface, mode);
            if !pin.exists() {
                continue;
            }
            if wanted.contains(&mode) {
                let ifindex = self.introduce(interface, mode)?;
                if self.replace_program(&pin).is_ok() {
                    info!(interface, mode = mode.word(), "took over the attached XDP program");
                    if mode != wanted[0] {
                        warn!(
                            interface,
                            "stays in generic mode, which is slower, so that no packet is lost; after `lb detach` a start \
                             tries the driver again"
                        );
                    }
                    return Ok(Some(Attachment { interface: interface.to_owned(), mode, ifindex }));
                }
            }
            // The interface was removed meanwhile, or another mode is wanted: this link is of no use.
            fs::remove_file(&pin).with_context(|| format!("cannot remove {}", pin.display()))?;
        }
        Ok(None)
    }

    fn replace_program(&mut self, pin: &Path) -> Result<()> {
        let link = PinnedLink::from_pin(pin).with_context(|| format!("cannot open {}", pin.display()))?;
        let link = XdpLink::try_from(FdLink::from(link)).context("the pinned link is not one of XDP")?;
        let program = self.program()?;
        let id = program.attach_to_link(link).context("cannot replace the program in the pinned link")?;
        // The pin keeps the link; this process must not take it along when it ends.
        drop(program.take_link(id).context("cannot let go of the link")?);
        Ok(())
    }

    fn attach_fresh(&mut self, interface: &str, mode: AttachedMode) -> Result<()> {
        let xdp_mode = match mode {
            AttachedMode::Native => XdpMode::Driver,
            AttachedMode::Generic => XdpMode::Skb,
        };
        let pins = self.pins.clone();
        let program = self.program()?;
        let id = program.attach(interface, xdp_mode).map_err(explain)?;
        match pins {
            Some(pins) => {
                let link = take_fd_link(program, id)?;
                let pin = link_pin(&pins, interface, mode);
                link.pin(&pin).with_context(|| format!("cannot pin the link at {}", pin.display()))?;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Lets go of what an earlier controller's program needed: every interface runs this one's now.
    ///
    /// # Errors
    ///
    /// If a pin cannot be renamed or removed.
    pub fn settle(&mut self) -> Result<()> {
        match &self.pins {
            Some(pins) => {
                self.journeys.settle(pins)?;
                explain::pin(&mut self.ebpf, pins)
            }
            None => Ok(()),
        }
    }

    /// Detaches from an interface that the configuration no longer names.
    ///
    /// # Errors
    ///
    /// If the pin cannot be removed, or the map `interfaces` cannot be written.
    pub fn detach_interface(&mut self, interface: &str) -> Result<()> {
        let Some(pins) = &self.pins else { return Ok(()) };
        for mode in [AttachedMode::Native, AttachedMode::Generic] {
            remove_if_there(&link_pin(pins, interface, mode))?;
        }
        self.forget(interface)
    }

    /// Interfaces for which an earlier controller has pinned a link.
    ///
    /// # Errors
    ///
    /// If the pin directory cannot be read.
    pub fn pinned_interfaces(&self) -> Result<Vec<String>> {
        let Some(pins) = &self.pins else { return Ok(Vec::new()) };
        let mut interfaces = Vec::new();
        for entry in fs::read_dir(pins).with_context(|| format!("cannot read {}", pins.display()))? {
            let name = entry?.file_name();
            let Some(rest) = name.to_str().and_then(|name| name.strip_prefix("link_")) else { continue };
            if let Some((_, interface)) = rest.split_once('_') {
                interfaces.push(interface.replace("%2E", ".").replace("%25", "%"));
            }
        }
        Ok(interfaces)
    }
}

/// Removes a pinned data plane: links first, so that no packet is forwarded from maps that are half gone.
/// Whether there was one.
///
/// # Errors
///
/// If a pin cannot be removed.
pub fn detach(pins: &Path) -> Result<bool> {
    if !pins.try_exists().with_context(|| format!("cannot look at {}", pins.display()))? {
        return Ok(false);
    }
    let entries = fs::read_dir(pins).with_context(|| format!("cannot read {}", pins.display()))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<PathBuf>>>()?;
    let mut ours = pinned_maps()?;
    ours.push(JOURNEYS.to_owned());
    ours.extend(explain::PROGRAMS.map(str::to_owned));
    // The directory may be another program's, if the name of the instance is a wrong guess.
    paths.retain(|path| {
        is_link(path) || is_unsettled(name_of(path)) || ours.iter().any(|own| own == name_of(path))
    });
    let (links, others): (Vec<_>, Vec<_>) = paths.iter().partition(|path| is_link(path));
    for path in links {
        remove_if_there(path)?;
    }
    // Whoever is killed from here on leaves pieces that nobody takes for a data plane.
    if let Err(error) = inspect::void(pins) {
        warn!("what is removed cannot be marked as such: {error:#}");
    }
    for path in others {
        remove_if_there(path)?;
    }
    match fs::remove_dir(pins) {
        // Something of another program is in it, or root has prepared it for this user: the pins are gone all the same.
        Err(error)
            if !matches!(
                error.raw_os_error(),
                Some(libc::ENOTEMPTY | libc::EACCES | libc::EPERM | libc::EBUSY | libc::EROFS)
            ) =>
        {
            Err(error).with_context(|| format!("cannot remove {}", pins.display()))
        }
        _ => Ok(!paths.is_empty()),
    }
}

fn name_of(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

/// Whether a pin is a link to an interface.
pub(super) fn is_link(path: &Path) -> bool {
    name_of(path).starts_with("link_")
}

fn link_pin(pins: &Path, interface: &str, mode: AttachedMode) -> PathBuf {
    // The bpffs takes no dots in names, and interfaces of VLANs have them.
    let interface = interface.replace('%', "%25").replace('.', "%2E");
    pins.join(format!("link_{}_{interface}", mode.word()))
}

fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// The link behind an attachment; without one (a kernel before 5.9) nothing could be pinned.
fn take_fd_link(program: &mut aya::programs::Xdp, id: XdpLinkId) -> Result<FdLink> {
    let link = program.take_link(id).context("cannot take the link")?;
    FdLink::try_from(link).map_err(|error| anyhow!("this kernel has no XDP links (Linux 5.9): {error}"))
}

/// Adds what to do to the errors users meet most.
fn explain(error: ProgramError) -> anyhow::Error {
    let ProgramError::SyscallError(aya::sys::SyscallError { io_error, .. }) = &error else {
        return error.into();
    };
    let hint = match io_error.raw_os_error() {
        // The generic path says EEXIST.
        Some(libc::EBUSY | libc::EEXIST) => {
            "another XDP program is attached there: see `bpftool net`, remove it with `ip link set dev NAME xdp off`"
        }
        Some(libc::EOPNOTSUPP) => "its driver has no native XDP",
        Some(libc::ERANGE) => "its driver cannot do native XDP at this MTU",
        Some(libc::EINVAL) => "its driver cannot do native XDP as it is set up: see `lb doctor`",
        Some(libc::ENOSPC | libc::ENOMEM) => {
            "it has too few queues for native XDP: see `lb doctor`, and `ethtool -l` for those it can have"
        }
        Some(libc::EPERM) => "this needs CAP_NET_ADMIN and CAP_BPF",
        _ => return anyhow!("{io_error}"),
    };
    anyhow!("{io_error} ({hint})")
}
