//! The kernel and what this process may ask of it.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::{Finding, Grade};
use crate::dataplane::clock;

/// Version of a kernel: major and minor number.
type Version = (u32, u32);

/// Programs with frames in several buffers, and live links to them, work from here on.
const OLDEST: Version = (5, 18);

/// The oldest kernel that the tests run on.
const OLDEST_TESTED: Version = (6, 1);

/// Memory of maps counts against the control group instead of RLIMIT_MEMLOCK.
const NO_MEMLOCK: Version = (5, 11);

/// Capabilities by the number of their bit (`linux/capability.h`).
const CAP_NET_ADMIN: u32 = 12;
const CAP_NET_RAW: u32 = 13;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

/// Facts about the host.
#[derive(Clone, Debug)]
pub struct Host {
    /// `uname -r`.
    pub release: String,
    /// The kernel describes its types.
    pub has_btf: bool,
    /// Whether a program that was loaded was compiled to machine code, or why it could not be loaded.
    pub compiled: Result<bool, String>,
    /// A bpffs is mounted where it should be.
    pub has_bpffs: bool,
    /// Effective capabilities, as bits.
    pub capabilities: u64,
    /// Soft limit of locked memory, bytes.
    pub memlock: u64,
    /// Processors that this process may use.
    pub cpus: u32,
}

impl Host {
    /// Looks at this host.
    ///
    /// # Errors
    ///
    /// If it does not say what every Linux says.
    pub fn look() -> Result<Self> {
        let name = nix::sys::utsname::uname().context("cannot ask for the kernel's version")?;
        let status = fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
        let (memlock, _) =
            getrlimit(Resource::RLIMIT_MEMLOCK).context("cannot read the limit of locked memory")?;
        let bpffs = statfs("/sys/fs/bpf");
        Ok(Self {
            release: name.release().to_string_lossy().into_owned(),
            has_btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
            compiled: clock::try_kernel().map_err(|error| format!("{error:#}")),
            has_bpffs: bpffs.is_ok_and(|bpffs| bpffs.filesystem_type() == BPF_FS_MAGIC),
            capabilities: effective_capabilities(&status).context("/proc/self/status has no line CapEff")?,
            memlock,
            cpus: std::thread::available_parallelism().map_or(1, |count| count.get() as u32),
        })
    }

    /// Judges it. `announces`: the configuration assigns VIPs.
    pub fn judge(&self, announces: bool) -> Vec<Finding> {
        vec![
            self.kernel(),
            self.btf(),
            self.may_load(announces),
            self.jit(),
            self.bpffs(),
            self.locked_memory(),
        ]
    }

    fn kernel(&self) -> Finding {
        let finding =
            |grade, text: &str| Finding::new(grade, "kernel", format!("Linux {}{text}", self.release));
        match version(&self.release) {
            None => finding(Grade::Warning, ", of which the version is not understood")
                .fix("compare it with 6.1, the oldest that lb is tested on"),
            Some(version) if version < OLDEST => {
                finding(Grade::Unfit, " is too old").fix("use Linux 6.1 or newer")
            }
            Some(version) if version < OLDEST_TESTED => {
                finding(Grade::Warning, " is older than what lb is tested on").fix("use Linux 6.1 or newer")
            }
            Some(_) => finding(Grade::Ok, ""),
        }
    }

    fn btf(&self) -> Finding {
        if self.has_btf {
            Finding::new(Grade::Ok, "btf", "the kernel describes its types (BTF)")
        } else {
            Finding::new(
                Grade::Warning,
                "btf",
                "no /sys/kernel/btf/vmlinux: the kernel may not take the types of maps",
            )
            .fix("use a kernel with CONFIG_DEBUG_INFO_BTF=y; those of the distributions have it")
        }
    }

    fn has(&self, capability: u32) -> bool {
        let implied =
            matches!(capability, CAP_BPF | CAP_PERFMON) && self.capabilities >> CAP_SYS_ADMIN & 1 == 1;
        implied || self.capabilities >> capability & 1 == 1
    }

    fn may_load(&self, announces: bool) -> Finding {
        let lacking = |wanted: &[(u32, &'static str)]| -> Vec<&'static str> {
            wanted.iter().filter(|(bit, _)| !self.has(*bit)).map(|(_, name)| *name).collect()
        };
        let needed =
            lacking(&[(CAP_BPF, "CAP_BPF"), (CAP_NET_ADMIN, "CAP_NET_ADMIN"), (CAP_PERFMON, "CAP_PERFMON")]);
        if !needed.is_empty() {
            return Finding::new(
                Grade::Unfit,
                "capabilities",
                format!("this process lacks {}", needed.join(", ")),
            )
            .fix("run `lb` as root, or with these capabilities (AmbientCapabilities= of its systemd unit)");
        }
        if announces && !self.has(CAP_NET_RAW) {
            return Finding::new(
                Grade::Warning,
                "capabilities",
                "this process lacks CAP_NET_RAW: VIPs are assigned, but cannot be announced",
            )
            .fix("add CAP_NET_RAW, or set assign_vips = false");
        }
        Finding::new(Grade::Ok, "capabilities", "this process may load and attach the program")
    }

    fn jit(&self) -> Finding {
        match &self.compiled {
            Ok(true) => Finding::new(Grade::Ok, "jit", "programs are loaded, and compiled to machine code"),
            Ok(false) => {
                Finding::new(Grade::Warning, "jit", "programs are interpreted, which is many times slower")
                    .fix("sysctl -w net.core.bpf_jit_enable=1")
            }
            Err(error) => Finding::new(Grade::Unfit, "jit", format!("the kernel takes no program: {error}"))
                .fix(
                    "see the finding `capabilities`; in a container, its seccomp profile has to allow bpf(2)",
                ),
        }
    }

    fn bpffs(&self) -> Finding {
        let mount = "mount -t bpf bpf /sys/fs/bpf";
        match (self.has_bpffs, self.has(CAP_SYS_ADMIN)) {
            (true, _) => Finding::new(Grade::Ok, "bpffs", "mounted at /sys/fs/bpf"),
            (false, true) => {
                Finding::new(Grade::Note, "bpffs", "not mounted at /sys/fs/bpf; `lb run` does it").fix(mount)
            }
            (false, false) => Finding::new(
                Grade::Unfit,
                "bpffs",
                "not mounted at /sys/fs/bpf, and this process may not do it",
            )
            .fix(format!("as root: {mount}")),
        }
    }

    fn locked_memory(&self) -> Finding {
        if version(&self.release).is_none_or(|version| version >= NO_MEMLOCK) {
            return Finding::new(
                Grade::Ok,
                "memlock",
                "the memory of maps counts against the control group, not against RLIMIT_MEMLOCK",
            );
        }
        match self.memlock {
            u64::MAX => Finding::new(Grade::Ok, "memlock", "RLIMIT_MEMLOCK is unlimited"),
            bytes => Finding::new(
                Grade::Unfit,
                "memlock",
                format!("RLIMIT_MEMLOCK is {bytes} bytes, too few for maps"),
            )
            .fix("ulimit -l unlimited, or LimitMEMLOCK=infinity in the systemd unit"),
        }
    }
}

/// Major and minor number of `uname -r`.
fn version(release: &str) -> Option<Version> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn effective_capabilities(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fit() -> Host {
        Host {
            release: "6.1.0-32-cloud-amd64".to_owned(),
            has_btf: true,
            compiled: Ok(true),
            has_bpffs: true,
            capabilities: 1 << CAP_BPF | 1 << CAP_NET_ADMIN | 1 << CAP_PERFMON | 1 << CAP_NET_RAW,
            memlock: 8 << 20,
            cpus: 2,
        }
    }

    /// What stands out from a fit host, which needs no fix.
    fn complaints(host: &Host) -> Vec<(Grade, &'static str)> {
        let findings = host.judge(true);
        for finding in &findings {
            assert!(finding.grade < Grade::Warning || finding.fix.is_some(), "{finding:?}");
        }
        findings.iter().filter(|f| f.grade > Grade::Ok).map(|f| (f.grade, f.check)).collect()
    }

    #[test]
    fn a_fit_host_has_nothing_to_complain_of() {
        assert_eq!(complaints(&fit()), []);
    }

    #[test]
    fn each_lack_is_found_and_has_a_fix() {
        use Grade::{Note, Unfit, Warning};
        let with = |change: &dyn Fn(&mut Host)| {
            let mut host = fit();
            change(&mut host);
            complaints(&host)
        };
        assert_eq!(with(&|host| host.release = "5.4.0".into()), [(Unfit, "kernel"), (Unfit, "memlock")]);
        assert_eq!(with(&|host| host.release = "5.18.3".into()), [(Warning, "kernel")]);
        assert_eq!(with(&|host| host.has_btf = false), [(Warning, "btf")]);
        assert_eq!(with(&|host| host.compiled = Ok(false)), [(Warning, "jit")]);
        assert_eq!(with(&|host| host.compiled = Err("EPERM".into())), [(Unfit, "jit")]);
        assert_eq!(with(&|host| host.has_bpffs = false), [(Unfit, "bpffs")]);
        assert_eq!(with(&|host| host.capabilities &= !(1 << CAP_NET_RAW)), [(Warning, "capabilities")]);
        assert_eq!(with(&|host| host.capabilities &= !(1 << CAP_BPF)), [(Unfit, "capabilities")]);
        let as_root = |host: &mut Host| {
            host.capabilities = 1 << CAP_SYS_ADMIN | 1 << CAP_NET_ADMIN | 1 << CAP_NET_RAW;
            host.has_bpffs = false;
        };
        assert_eq!(with(&as_root), [(Note, "bpffs")]);
    }

    #[test]
    fn this_host_can_be_looked_at() {
        let host = Host::look().unwrap();
        assert!(version(&host.release).is_some(), "{host:?}");
        assert!(host.cpus > 0);
        assert_eq!(effective_capabilities("Name:\tx\nCapEff:\t000001ffffffffff\n"), Some(0x1ff_ffff_ffff));
    }
}
