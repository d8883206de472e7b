//! Finding a compiler for the eBPF target.
//!
//! `bpfel-unknown-none` has no precompiled `core`, so cargo has to build it from the sources of exactly that
//! rustc: rustup's component `rust-src`, or Debian's package `rust-web-src` beside `rustc-web`. Building `core`
//! is an unstable feature; a stable compiler does it when told to with `RUSTC_BOOTSTRAP=1`, which is set for
//! that one cargo and for nothing else.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::command::{find_program, probe};

/// The variable that names a toolchain to use instead of the ones looked for: a rustup toolchain, or a folder
/// with `bin/cargo` and `bin/rustc`.
pub const OVERRIDE: &str = "LB_EBPF_TOOLCHAIN";

/// The oldest compiler that builds this workspace: `rust-version` of Cargo.toml, second number.
const OLDEST_MINOR: u32 = 95;

/// A cargo and a rustc that can build `core` for the eBPF target.
#[derive(Debug)]
pub struct Toolchain {
    /// What to call it in messages.
    pub name: String,
    /// Its cargo.
    pub cargo: PathBuf,
    /// Its rustc.
    pub rustc: PathBuf,
    /// Major version of the LLVM in rustc; bpf-linker's must not be older.
    pub llvm: u32,
}

impl Toolchain {
    /// The first that fits of: `$LB_EBPF_TOOLCHAIN` and no other where it is set, rustup's nightly, rustup's
    /// stable, the system's own. The error lists what was found wrong with each.
    pub fn find() -> Result<Self> {
        let found = match env::var(OVERRIDE) {
            Ok(name) if Path::new(&name).is_dir() => Self::in_folder(name.clone(), Path::new(&name)),
            Ok(name) => Self::of_rustup(&name),
            Err(_) => return Self::search(),
        };
        found.or_else(|why| bail!("the toolchain that {OVERRIDE} names cannot build for eBPF: {why}"))
    }

    fn search() -> Result<Self> {
        let candidates: [&dyn Fn() -> Result<Self, String>; 3] =
            [&|| Self::of_rustup("nightly"), &|| Self::of_rustup("stable"), &|| {
                Self::in_folder("/usr/bin/rustc".into(), Path::new("/usr"))
            }];
        let mut reasons = Vec::new();
        for candidate in candidates {
            match candidate() {
                Ok(toolchain) => return Ok(toolchain),
                Err(reason) => reasons.push(reason),
            }
        }
        bail!(
            "no Rust toolchain here can build for eBPF:\n  - {}\nEither of these cures it:\n  \
             rustup toolchain install nightly --component rust-src\n  cargo xtask setup   (Debian, as root)",
            reasons.join("\n  - ")
        )
    }

    fn of_rustup(name: &str) -> Result<Self, String> {
        let label = format!("rustup's {name}");
        // Asking for a toolchain that is not there must not make rustup download it.
        let sysroot = probe(
            Command::new("rustup")
                .args(["run", name, "rustc", "--print", "sysroot"])
                .env("RUSTUP_AUTO_INSTALL", "0"),
        );
        match sysroot {
            Some(sysroot) => Self::in_folder(label, Path::new(&sysroot)),
            None => Err(format!("{label} is not installed")),
        }
    }

    /// The toolchain in `root`, if it is new enough and its sources are there.
    fn in_folder(name: String, root: &Path) -> Result<Self, String> {
        let (cargo, rustc) = (root.join("bin/cargo"), root.join("bin/rustc"));
        let Some(version) = probe(Command::new(&rustc).arg("-vV")) else {
            return Err(format!("{name} is not installed"));
        };
        let (Some(minor), Some(llvm)) =
            (minor_of(field(&version, "release")), major_of(field(&version, "LLVM version")))
        else {
            return Err(format!("{name} answers `-vV` in an unknown form: {version}"));
        };
        if minor < OLDEST_MINOR {
            return Err(format!("{name} is version 1.{minor}, older than 1.{OLDEST_MINOR}"));
        }
        if !cargo.is_file() {
            return Err(format!("{name} is without {}", cargo.display()));
        }
        check_sources(root, minor).map_err(|why| format!("{name} (1.{minor}) {why}"))?;
        Ok(Self { name, cargo, rustc, llvm })
    }
}

/// Whether the sources of the standard library are there and of the compiler's minor version: those of another
/// one never compile. rustup keeps both in step; Debian links to a folder named after the version.
fn check_sources(root: &Path, minor: u32) -> Result<(), String> {
    let sources = root.join("lib/rustlib/src/rust");
    if !sources.join("library/core/src/lib.rs").is_file() {
        return Err(format!("is without the sources of core in {}", sources.display()));
    }
    let real = sources.canonicalize().unwrap_or(sources);
    let named = real.file_name().and_then(|name| name.to_str()?.strip_prefix("rustc-"));
    match named.and_then(|version| minor_of(Some(version))) {
        Some(other) if other != minor => {
            Err(format!("has the sources of version 1.{other} in {}", real.display()))
        }
        _ => Ok(()),
    }
}

/// Where bpf-linker is: in `$PATH`, or where `cargo install` puts it. `None` too when it does not start, as it
/// happens after its libLLVM went away.
pub fn find_bpf_linker() -> Option<PathBuf> {
    let installed = cargo_bin().map(|bin| bin.join("bpf-linker")).filter(|file| file.is_file());
    find_program("bpf-linker")
        .or(installed)
        .filter(|file| probe(Command::new(file).arg("--version")).is_some())
}

/// Where `cargo install` puts programs.
pub fn cargo_bin() -> Option<PathBuf> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    Some(home.or_else(|| env::home_dir().map(|home| home.join(".cargo")))?.join("bin"))
}

/// The value after `name: ` in the output of `rustc -vV`.
fn field<'a>(version: &'a str, name: &str) -> Option<&'a str> {
    version.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

fn major_of(version: Option<&str>) -> Option<u32> {
    version?.split('.').next()?.parse().ok()
}

fn minor_of(version: Option<&str>) -> Option<u32> {
    version?.split('.').nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const VERSION: &str = "rustc 1.97.0-nightly (e50aa6fba 2026-05-19)\nbinary: rustc\nhost: \
                           x86_64-unknown-linux-gnu\nrelease: 1.97.0-nightly\nLLVM version: 22.1.4";

    #[test]
    fn the_versions_are_read_from_rustc() {
        assert_eq!(minor_of(field(VERSION, "release")), Some(97));
        assert_eq!(major_of(field(VERSION, "LLVM version")), Some(22));
        assert_eq!(minor_of(field(VERSION, "nothing")), None);
    }

    #[test]
    fn sources_of_another_version_are_refused() {
        let root = env::temp_dir().join(format!("lb-toolchain-{}", std::process::id()));
        let sources = root.join("src/rustc-1.96.0");
        std::fs::create_dir_all(sources.join("library/core/src")).unwrap();
        std::fs::create_dir_all(root.join("lib/rustlib/src")).unwrap();
        std::os::unix::fs::symlink(&sources, root.join("lib/rustlib/src/rust")).unwrap();

        let without = check_sources(&root, 96);
        std::fs::write(sources.join("library/core/src/lib.rs"), "").unwrap();
        let (same, other) = (check_sources(&root, 96), check_sources(&root, 95));
        std::fs::remove_dir_all(&root).unwrap();

        assert!(without.unwrap_err().contains("is without the sources"));
        assert_eq!(same, Ok(()));
        assert!(other.unwrap_err().contains("has the sources of version 1.96"));
    }
}
