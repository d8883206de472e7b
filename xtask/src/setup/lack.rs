//! Finding out what is missing. Programs are looked for by name, so that one that came another way than from a
//! package counts.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use xtask::command::{find_program, probe};
use xtask::toolchain::{self, Toolchain};
use xtask::{package, workspace};

use super::Group;

/// A program and the Debian package it is in.
type Tool = (&'static str, &'static str);

const TEST_TOOLS: &[Tool] = &[
    ("bpftool", "bpftool"),
    ("curl", "curl"),
    ("dig", "bind9-dnsutils"),
    ("dnsmasq", "dnsmasq-base"),
    ("ethtool", "ethtool"),
    ("ip", "iproute2"),
    ("iperf3", "iperf3"),
    ("nc.openbsd", "netcat-openbsd"),
    ("nft", "nftables"),
    ("nginx", "nginx-light"),
    ("ping", "iputils-ping"),
    ("promtool", "prometheus"),
    ("tracepath", "iputils-tracepath"),
    ("traceroute", "traceroute"),
];

/// The peers that `cargo xtask bench e2e` measures lb against.
const BENCH_TOOLS: &[Tool] = &[
    ("ethtool", "ethtool"),
    ("haproxy", "haproxy"),
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("nginx", "nginx-light"),
    ("taskset", "util-linux"),
];

/// The module of nginx that passes TCP connections on, a file and not a program.
const NGINX_STREAM: (&str, &str) = ("/usr/lib/nginx/modules/ngx_stream_module.so", "libnginx-mod-stream");

const PACKAGE_TOOLS: &[Tool] = &[
    ("adduser", "adduser"),
    ("dpkg-deb", "dpkg"),
    ("dpkg-shlibdeps", "dpkg-dev"),
    ("strip", "binutils"),
    ("systemctl", "systemd"),
];

const KERNEL_TOOLS: &[Tool] = &[
    ("busybox", "busybox-static"),
    ("cpio", "cpio"),
    ("modprobe", "kmod"),
    ("strip", "binutils"),
    ("xz", "xz-utils"),
];

/// Debian's newest Rust: compiler, cargo and sources come from one source package and so always match.
const DEBIAN_RUST: &[&str] = &["rustc-web", "cargo-web", "rust-web-src"];

/// What bpf-linker is compiled with.
const BPF_LINKER_LIBRARIES: &[&str] = &["llvm-22-dev", "g++", "libc6-dev", "libzstd-dev", "zlib1g-dev"];

/// Kernels that the program is tested on besides the running one.
const KERNELS: &[&str] = &["6.1", "6.12"];

/// What the fetch script calls the machine to boot them in.
const QEMU: &str = "qemu";

/// What is missing.
#[derive(Debug, Default)]
pub(super) struct Lack {
    /// Debian packages.
    pub(super) packages: Vec<&'static str>,
    /// bpf-linker.
    pub(super) bpf_linker: bool,
    /// cargo-deb.
    pub(super) cargo_deb: bool,
    /// Kernels to boot in a virtual machine, and the machine: what the fetch script downloads.
    pub(super) kernels: Vec<&'static str>,
    /// The eBPF toolchain that is there, and the major version of its LLVM.
    toolchain: Option<(String, u32)>,
}

impl Lack {
    /// What these groups need and the machine lacks. Takes well under a second.
    pub(super) fn of(groups: &[Group]) -> Result<Self> {
        let mut lack = Self::default();
        for group in groups {
            match group {
                Group::Build => lack.look_for_build_tools()?,
                Group::Test => lack.look_for(TEST_TOOLS),
                Group::Package => {
                    lack.look_for(PACKAGE_TOOLS);
                    lack.cargo_deb = package::find_cargo_deb().is_none();
                }
                Group::Kernels => lack.look_for_kernels(),
                Group::Bench => lack.look_for_peers(),
            }
        }
        Ok(lack)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.packages.is_empty() && !self.bpf_linker && !self.cargo_deb && self.kernels.is_empty()
    }

    /// Major version of the LLVM in the eBPF toolchain that is there.
    pub(super) fn llvm(&self) -> Option<u32> {
        self.toolchain.as_ref().map(|(_, llvm)| *llvm)
    }

    fn look_for_build_tools(&mut self) -> Result<()> {
        match Toolchain::find() {
            Ok(toolchain) => self.toolchain = Some((toolchain.name, toolchain.llvm)),
            // Installing another toolchain than the one that was asked for would not help.
            Err(error) if std::env::var_os(toolchain::OVERRIDE).is_some() => return Err(error),
            Err(_) => self.packages.extend(DEBIAN_RUST),
        }
        self.bpf_linker = toolchain::find_bpf_linker().is_none();
        if self.bpf_linker {
            self.packages.extend(BPF_LINKER_LIBRARIES.iter().filter(|package| !is_installed(package)));
        }
        Ok(())
    }

    fn look_for(&mut self, tools: &[Tool]) {
        let missing = tools.iter().filter(|(program, _)| find_program(program).is_none());
        self.packages.extend(missing.map(|(_, package)| package));
    }

    fn look_for_peers(&mut self) {
        self.look_for(BENCH_TOOLS);
        let (module, package) = NGINX_STREAM;
        if !Path::new(module).is_file() {
            self.packages.push(package);
        }
    }

    fn look_for_kernels(&mut self) {
        self.look_for(KERNEL_TOOLS);
        let machine = if find_program("qemu-system-x86_64").is_some() { None } else { Some(QEMU) };
        self.kernels = KERNELS.iter().copied().chain(machine).filter(|what| !is_fetched(what)).collect();
    }
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return writeln!(f, "setup: nothing is missing");
        }
        if let Some((name, llvm)) = &self.toolchain {
            writeln!(f, "setup: {name} (LLVM {llvm}) will compile the eBPF program")?;
        }
        if !self.packages.is_empty() {
            writeln!(f, "setup: missing packages: {}", self.packages.join(" "))?;
        }
        if self.bpf_linker {
            writeln!(f, "setup: missing program: bpf-linker")?;
        }
        if self.cargo_deb {
            writeln!(f, "setup: missing program: cargo-deb")?;
        }
        if !self.kernels.is_empty() {
            writeln!(f, "setup: missing for virtual machines: {}", self.kernels.join(" "))?;
        }
        Ok(())
    }
}

/// The script that downloads kernels and QEMU.
pub(super) fn fetch_script() -> PathBuf {
    workspace().join("tests/kernels/fetch")
}

fn is_fetched(what: &str) -> bool {
    probe(Command::new(fetch_script()).args(["--check", what])).is_some()
}

fn is_installed(package: &str) -> bool {
    let status =
        probe(Command::new("dpkg-query").args(["--show", "--showformat=${db:Status-Status}", package]));
    status.as_deref() == Some("installed")
}
