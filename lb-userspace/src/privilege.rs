//! What a process must be allowed to do to control a data plane, and what to say when it is not. The capabilities are
//! those of Linux 5.8 (capabilities(7)); none of them makes its holder root.

use std::fmt::Write as _;
use std::io;

use anyhow::{Context as _, Error, Result, bail};
use caps::{CapSet, Capability};
use nix::unistd::geteuid;

/// A capability and what it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// The capability.
    pub capability: Capability,
    /// What cannot be done without it, as a verb phrase.
    pub purpose: &'static str,
}

/// What `lb run` needs whatever its configuration.
const ALWAYS: [Need; 3] = [
    Need { capability: Capability::CAP_BPF, purpose: "create maps and load programs" },
    Need {
        capability: Capability::CAP_NET_ADMIN,
        purpose: "attach the XDP program, follow neighbours and add addresses",
    },
    Need { capability: Capability::CAP_PERFMON, purpose: "load programs that compute with packet pointers" },
];

/// What it needs besides to announce the addresses it adds.
const ANNOUNCING: Need =
    Need { capability: Capability::CAP_NET_RAW, purpose: "announce the VIPs (lb.assign_vips)" };

/// What this process lacks of the capabilities that `lb run` needs; `announces` is `lb.assign_vips`.
///
/// # Errors
///
/// If the kernel does not say which capabilities this process has.
pub fn missing(announces: bool) -> Result<Vec<Need>> {
    let held = caps::read(None, CapSet::Effective).context("cannot read the capabilities of this process")?;
    Ok(lacking(announces, |capability| held.contains(&capability)))
}

fn lacking(announces: bool, holds: impl Fn(Capability) -> bool) -> Vec<Need> {
    // The kernel takes CAP_SYS_ADMIN for either of the two that were split off from it.
    let is_met = |need: &Need| match need.capability {
        Capability::CAP_BPF | Capability::CAP_PERFMON => {
            holds(need.capability) || holds(Capability::CAP_SYS_ADMIN)
        }
        other => holds(other),
    };
    let needs = ALWAYS.into_iter().chain(announces.then_some(ANNOUNCING));
    needs.filter(|need| !is_met(need)).collect()
}

/// Refuses to go on without the capabilities that `lb run` needs: before it has changed anything, and naming each.
///
/// # Errors
///
/// If one is missing.
pub fn require(announces: bool) -> Result<()> {
    let missing = missing(announces)?;
    if missing.is_empty() {
        return Ok(());
    }
    bail!("{}", refusal(&missing, geteuid().as_raw()))
}

fn refusal(missing: &[Need], user: u32) -> String {
    let mut text = format!("this process (user id {user}) lacks capabilities that `lb run` needs:");
    for Need { capability, purpose } in missing {
        // Writing to a String cannot fail.
        let _ = write!(text, "\n  {capability}: to {purpose}");
    }
    text + "\nrun it as root, by its unit (`systemctl start lb`), or give it the capabilities, for example\n  \
            setpriv --reuid USER --regid GROUP --clear-groups \\\n    \
            --inh-caps=-all,+bpf,+net_admin,+perfmon,+net_raw \\\n    \
            --ambient-caps=-all,+bpf,+net_admin,+perfmon,+net_raw lb run --config FILE"
}

/// Adds a hint to a failure that the kernel gave "not permitted" as reason for, although the process has the
/// capabilities: then something else forbids it.
pub fn explain(error: Error) -> Error {
    let is_refusal = |cause: &(dyn std::error::Error + 'static)| {
        let io_error = cause.downcast_ref::<io::Error>();
        io_error.is_some_and(|io_error| io_error.raw_os_error() == Some(libc::EPERM))
    };
    if !error.chain().any(is_refusal) {
        return error;
    }
    error.context(
        "the kernel does not permit it although this process has the capabilities; a user namespace, the seccomp \
         filter of a container (bpf(2) has to be allowed) or a kernel locked down for confidentiality do that",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(missing: &[Need]) -> Vec<String> {
        missing.iter().map(|need| need.capability.to_string()).collect()
    }

    #[test]
    fn what_is_missing_is_named_and_nothing_else() {
        assert_eq!(
            names(&lacking(true, |_| false)),
            ["CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON", "CAP_NET_RAW"]
        );
        let but_raw = |capability| capability != Capability::CAP_NET_RAW;
        assert_eq!(names(&lacking(true, but_raw)), ["CAP_NET_RAW"]);
        assert_eq!(lacking(false, but_raw), []);
    }

    #[test]
    fn sys_admin_stands_for_what_was_split_off_from_it() {
        let sys_admin = |capability| capability == Capability::CAP_SYS_ADMIN;
        assert_eq!(names(&lacking(false, sys_admin)), ["CAP_NET_ADMIN"]);
    }

    #[test]
    fn only_a_refusal_of_the_kernel_is_explained() {
        let failure = |errno| Error::new(io::Error::from_raw_os_error(errno)).context("cannot load");
        assert!(format!("{:#}", explain(failure(libc::EPERM))).contains("seccomp"));
        assert_eq!(format!("{:#}", explain(failure(libc::ENOSPC))), format!("{:#}", failure(libc::ENOSPC)));
    }
}
