//! Where an instance keeps what outlives its process: pins in the bpffs, its socket and lock in `/run`.

use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use nix::unistd::geteuid;

use crate::notes;

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

    /// Whether there is anything pinned; unless it can be seen that there is not, there is.
    pub fn has_pins(&self) -> bool {
        match fs::read_dir(self.pins()) {
            Ok(mut entries) => entries.next().is_some(),
            Err(error) => error.kind() != std::io::ErrorKind::NotFound,
        }
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
    /// If another controller holds it, or the run directory cannot be written.
    pub fn lock(&self) -> Result<Lock> {
        let directory = self.run_dir();
        fs::create_dir_all(&directory)
            .with_context(|| format!("cannot create {}{}", directory.display(), own(&directory)))?;
        let path = directory.join("lock");
        loop {
            let mut options = File::options();
            let file = options.read(true).write(true).create(true).truncate(false).open(&path);
            let file = file.with_context(|| format!("cannot open {}{}", path.display(), own(&directory)))?;
            let mut lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => lock,
                Err((file, _)) => bail!(self.is_held(file)),
            };
            if !is_file_at(&lock, &path) {
                // Whoever held it has removed the file between our two steps.
                continue;
            }
            lock.set_len(0)
                .and_then(|()| lock.rewind())
                .and_then(|()| writeln!(lock, "{}", std::process::id()))
                .with_context(|| format!("cannot write {}", path.display()))?;
            return Ok(Lock { file: lock, path });
        }
    }

    fn is_held(&self, mut lock: File) -> String {
        let mut pid = String::new();
        let _ = lock.read_to_string(&mut pid);
        format!(
            "instance `{}` is already running (process {}); stop that one first, or choose another --instance",
            self.name,
            pid.trim()
        )
    }

    /// Removes what an instance without a data plane has left in its run directory, and the lock last. The directory
    /// goes too, unless there is something else in it or whoever made it has more rights than this process.
    pub fn forget(&self, lock: Lock) {
        let _ = fs::remove_file(self.socket());
        for note in notes::left_over() {
            let _ = notes::remove(&self.run_dir(), &note);
        }
        let _ = fs::remove_file(&lock.path);
        let _ = fs::remove_dir(self.run_dir());
        drop(lock.file);
    }

    /// Makes sure that there is a directory in a bpffs for the pins; mounts the bpffs where there is none.
    ///
    /// # Errors
    ///
    /// If it cannot be made, or this process may not use it: the bpffs that systemd mounts is root's alone, so that
    /// for another user the directory has to be prepared.
    pub fn ensure_pins(&self) -> Result<()> {
        let pins = self.pins();
        let remedy = || {
            format!("cannot use {} for the pinned maps{}", pins.display(), own_in(&pins, Path::new(BPFFS)))
        };
        match statfs(&pins) {
            Ok(filesystem) if filesystem.filesystem_type() == BPF_FS_MAGIC => {}
            Ok(_) | Err(Errno::ENOENT) => {
                mount_bpffs()?;
                fs::create_dir_all(&pins).with_context(remedy)?;
            }
            Err(error) => return Err(error).with_context(remedy),
        }
        for entry in fs::read_dir(&pins).with_context(remedy)? {
            let pin = entry.with_context(remedy)?.path();
            let owner = fs::metadata(&pin).with_context(remedy)?.uid();
            let user = geteuid();
            if !user.is_root() && owner != user.as_raw() {
                bail!(
                    "{} belongs to user id {owner}, this process runs as {user}: another user ran this instance; \
                     as root, hand its maps over by `chown -R {user} {}`, or remove them by `lb detach`",
                    pin.display(),
                    pins.display()
                );
            }
        }
        Ok(())
    }
}

/// What root has to do where another user may not create or use a directory; nothing for root.
fn own(directory: &Path) -> String {
    let user = geteuid();
    if user.is_root() {
        return String::new();
    }
    let directory = directory.display();
    format!(
        " as user id {user}; the unit of systemd prepares it, without it do as root \
         `install --directory --mode=0700 --owner={user} {directory}`"
    )
}

/// As [`own`], for a directory below one that may be closed.
fn own_in(directory: &Path, parent: &Path) -> String {
    match own(directory) {
        text if text.is_empty() => text,
        text => format!("{text} and `chmod o+x {}`", parent.display()),
    }
}

/// Whether an open file still stands at a path.
fn is_file_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(open), Ok(there)) => (open.dev(), open.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

/// The right to control an instance.
#[derive(Debug)]
pub struct Lock {
    file: Flock<File>,
    path: PathBuf,
}

/// Mounts the bpffs where there is none.
fn mount_bpffs() -> Result<()> {
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
