//! Installing what is missing, saying each command.

use std::fs::{self, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use xtask::cargo::cargo;
use xtask::command::{self, find_program, probe, shell_line};

use super::is_root;
use super::lack::{Lack, fetch_script};

/// The version that was tested; 0.13 links with LLVM 22, that of rustc 1.94 to 1.97.
const BPF_LINKER: &str = "0.13.0";
const BPF_LINKER_LLVM: u32 = 22;

/// The version that was tested.
const CARGO_DEB: &str = "3.8.0";

/// Services that come with the packages and that nobody asked for.
const SERVICES: &[(&str, &str)] = &[("nginx-light", "nginx.service"), ("haproxy", "haproxy.service")];

pub(super) fn install(lack: &Lack) -> Result<()> {
    if !lack.packages.is_empty() {
        install_packages(&lack.packages)?;
    }
    if lack.bpf_linker {
        install_bpf_linker(lack.llvm())?;
    }
    if lack.cargo_deb {
        install_cargo_deb()?;
    }
    if !lack.kernels.is_empty() {
        command::run(Command::new(fetch_script()).args(&lack.kernels))?;
    }
    Ok(())
}

fn install_packages(packages: &[&str]) -> Result<()> {
    let [mut update, mut install] = apt_commands(packages);
    ensure!(
        find_program("apt-get").is_some(),
        "these Debian packages, or what other systems have in their place, are needed: {}\n\
         This system has no apt-get: install them, then run `cargo xtask setup` again.",
        packages.join(" ")
    );
    ensure!(
        is_root()?,
        "packages are missing and only root can install them. Run:\n  sudo {}\n  sudo {}\nand then this again.",
        shell_line(&update),
        shell_line(&install)
    );
    let _guard = ServiceGuard::new()?;
    command::run(&mut update)?;
    command::run(&mut install)?;
    for (_, service) in SERVICES.iter().filter(|(package, _)| packages.contains(package)) {
        keep_from_boot(service)?;
    }
    Ok(())
}

/// Without recommended packages, and never by removing another package.
fn apt_commands(packages: &[&str]) -> [Command; 2] {
    let apt = || {
        let mut apt = Command::new("apt-get");
        apt.args(["--quiet=2", "-oDpkg::Use-Pty=0", "-oAcquire::Retries=3", "-oDPkg::Lock::Timeout=300"]);
        apt
    };
    let (mut update, mut install) = (apt(), apt());
    update.arg("update");
    install
        .args(["install", "--yes", "--no-install-recommends", "--no-remove"])
        .args(packages)
        .env("DEBIAN_FRONTEND", "noninteractive");
    [update, install]
}

fn install_bpf_linker(rustc_llvm: Option<u32>) -> Result<()> {
    if let Some(llvm) = rustc_llvm.filter(|llvm| *llvm > BPF_LINKER_LLVM) {
        bail!(
            "bpf-linker is missing, and the one that can be compiled here has LLVM {BPF_LINKER_LLVM}, older than \
             LLVM {llvm} of the eBPF toolchain. Run:\n  cargo install cargo-binstall\n  cargo binstall bpf-linker"
        );
    }
    let feature = format!("llvm-{BPF_LINKER_LLVM}");
    let mut install = cargo();
    install
        .args(["install", "bpf-linker", "--locked", "--version", BPF_LINKER])
        .args(["--no-default-features", "--features", &feature])
        .env("LLVM_PREFIX", format!("/usr/lib/{feature}"));
    command::run(&mut install)
}

fn install_cargo_deb() -> Result<()> {
    command::run(cargo().args(["install", "cargo-deb", "--locked", "--version", CARGO_DEB]))
}

/// Keeps a service that came with a package from starting at the next boot.
fn keep_from_boot(service: &str) -> Result<()> {
    let has_systemd = find_program("systemctl").is_some();
    let enabled = || probe(Command::new("systemctl").args(["is-enabled", service])).is_some();
    if has_systemd && enabled() {
        command::run(Command::new("systemctl").args(["disable", service]))?;
    }
    Ok(())
}

/// Keeps packages from starting their services while they are installed, by the means that Debian's policy
/// has for it: `invoke-rc.d` asks this script, and 101 means no.
struct ServiceGuard;

impl ServiceGuard {
    const PATH: &str = "/usr/sbin/policy-rc.d";
    const SCRIPT: &str =
        "#!/bin/sh\n# Left by an interrupted `cargo xtask setup`? Then remove it.\nexit 101\n";

    /// `None` where there is a script already, which is the administrator's word. One of ours that was left
    /// behind is taken over.
    fn new() -> Result<Option<Self>> {
        match fs::read(Self::PATH) {
            Ok(script) if script != Self::SCRIPT.as_bytes() => return Ok(None),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error).context(Self::PATH),
        }
        let guard = Self;
        fs::write(Self::PATH, Self::SCRIPT)
            .and_then(|()| fs::set_permissions(Self::PATH, Permissions::from_mode(0o755)))
            .with_context(|| format!("cannot write {}", Self::PATH))?;
        Ok(Some(guard))
    }
}

impl Drop for ServiceGuard {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(Self::PATH) {
            eprintln!("setup: cannot remove {}: {error}; remove it by hand", Self::PATH);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apt_is_asked_for_nothing_but_the_packages() {
        let [_, install] = apt_commands(&["curl", "nftables"]);
        let line = shell_line(&install);
        assert!(line.starts_with("DEBIAN_FRONTEND=noninteractive apt-get "), "{line}");
        assert!(line.ends_with(" --no-install-recommends --no-remove curl nftables"), "{line}");
    }
}
