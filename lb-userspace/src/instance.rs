//! Where an instance keeps what outlives its process: pins in the bpffs, its socket and lock in `/run`.

use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

/// Where the bpffs is mounted.
const BPFFS: &str = "/sys/fs/bpf";

/// A named instance on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    name: String,
}

impl Instance {
    /// The instance of this name.
    ///
    /// # Errors
    ///
    /// If the name could not be part of a path: it has the form `[A-Za-z0-9_-]{1,64}`.
    pub fn new(name: &str) -> Result<Self> {
        let is_valid = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        if name.is_empty() || name.len() > 64 || !name.chars().all(is_valid) {
            bail!("instance name {name:?}: expected 1 to 64 of the characters A-Z a-z 0-9 _ -");
        }
        Ok(Self { name: name.to_owned() })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Directory of its pinned maps and links.
    pub fn pins(&self) -> PathBuf {
        Path::new(BPFFS).join(&self.name)
    }

    /// Directory of its socket, its lock and its notes.
    pub fn run_dir(&self) -> PathBuf {
        Path::new("/run").join(&self.name)
    }

    /// Its API socket.
    pub fn socket(&self) -> PathBuf {
        self.run_dir().join("api.sock")
    }

    /// Takes the lock that keeps a second controller away. It is released when the process ends, however it ends.
    ///
    /// # Errors
    ///
    /// If another controller holds it, or `/run` cannot be written.
    pub fn lock(&self) -> Result<Lock> {
        let directory = self.run_dir();
        fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
        let path = directory.join("lock");
        let mut options = File::options();
        let file = options.read(true).write(true).create(true).truncate(false).open(&path);
        let file = file.with_context(|| format!("cannot open {}", path.display()))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut lock) => {
                lock.set_len(0)
                    .and_then(|()| lock.rewind())
                    .and_then(|()| writeln!(lock, "{}", std::process::id()))?;
                Ok(Lock { _lock: lock })
            }
            Err((mut file, _)) => {
                let mut pid = String::new();
                let _ = file.read_to_string(&mut pid);
                bail!(
                    "instance `{}` is already running (process {}); stop that one first, or choose another --instance",
                    self.name,
                    pid.trim()
                )
            }
        }
    }
}

/// The right to control an instance.
#[derive(Debug)]
pub struct Lock {
    _lock: Flock<File>,
}

/// Mounts the bpffs where there is none.
///
/// # Errors
///
/// If it cannot be mounted.
pub fn ensure_bpffs() -> Result<()> {
    let filesystem = statfs(BPFFS).with_context(|| format!("cannot look at {BPFFS}: is sysfs mounted?"))?;
    if filesystem.filesystem_type() == BPF_FS_MAGIC {
        return Ok(());
    }
    mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), Some("mode=0700"))
        .with_context(|| format!("cannot mount the bpffs: run `mount -t bpf bpf {BPFFS}` as root"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_their_directory() {
        assert!(Instance::new("lb").is_ok());
        for name in ["", "..", "a/b", "a b", &"x".repeat(65)] {
            assert!(Instance::new(name).is_err(), "{name:?}");
        }
    }
}
