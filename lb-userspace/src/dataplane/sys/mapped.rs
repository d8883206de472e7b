//! Arrays that are made to be mapped (BPF_F_MMAPABLE, kernel 5.5). Programs may write them at any time.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;

use aya::Pod;
use aya::maps::MapData;

/// The values of an array, for reading.
#[derive(Debug)]
pub(in crate::dataplane) struct Mapped<T> {
    mapping: Mapping,
    of: PhantomData<T>,
}

impl<T: Pod> Mapped<T> {
    /// Maps an array whose values are one or several `T`.
    pub(in crate::dataplane) fn new(map: &MapData) -> io::Result<Self> {
        Ok(Self { mapping: Mapping::new(map, libc::PROT_READ)?, of: PhantomData })
    }

    /// How many there are.
    pub(in crate::dataplane) const fn count(&self) -> u32 {
        (self.mapping.bytes / size_of::<T>()) as u32
    }

    /// What one holds at the moment: a word at once, but of a larger value some parts may be older than others.
    pub(in crate::dataplane) fn read(&self, index: u32) -> Option<T> {
        self.mapping.read(index as usize * size_of::<T>())
    }

    /// The word that one begins with, at once.
    pub(in crate::dataplane) fn first_word(&self, index: u32) -> Option<u64> {
        self.mapping.read(index as usize * size_of::<T>())
    }
}

/// An array as words of 64 bits, for taking out what stands in them.
#[derive(Debug)]
pub(in crate::dataplane) struct Words(Mapping);

impl Words {
    pub(in crate::dataplane) fn new(map: &MapData) -> io::Result<Self> {
        Mapping::new(map, libc::PROT_READ | libc::PROT_WRITE).map(Self)
    }

    /// What a word holds.
    pub(in crate::dataplane) fn load(&self, index: u32) -> Option<u64> {
        self.word(index).map(|word| word.load(SeqCst))
    }

    /// Makes a word 0 if it holds what is expected, and that is not 0; whether it did.
    pub(in crate::dataplane) fn take(&self, index: u32, expected: u64) -> bool {
        // Also a failed exchange would take the cache line from the CPUs that use it.
        expected != 0
            && self.load(index) == Some(expected)
            && self.word(index).is_some_and(|word| word.compare_exchange(expected, 0, SeqCst, SeqCst).is_ok())
    }

    /// The value that begins with a word; some parts of it may be older than others.
    pub(in crate::dataplane) fn read<T: Pod>(&self, index: u32) -> Option<T> {
        self.0.read(index as usize * size_of::<u64>())
    }

    fn word(&self, index: u32) -> Option<&AtomicU64> {
        let offset = index as usize * size_of::<u64>();
        // SAFETY: the word is within the mapping, which begins with a page, may be written, and lasts as long as `self`. Programs
        // that change it do so by atomic instructions, too.
        (offset + size_of::<u64>() <= self.0.bytes)
            .then(|| unsafe { AtomicU64::from_ptr(self.0.address.as_ptr().add(offset).cast()) })
    }
}

/// The memory of a map.
#[derive(Debug)]
struct Mapping {
    address: NonNull<u8>,
    bytes: usize,
}

impl Mapping {
    fn new(map: &MapData, protection: libc::c_int) -> io::Result<Self> {
        let info = map.info().map_err(io::Error::other)?;
        // The kernel keeps values as whole words.
        let bytes = info.max_entries() as usize * (info.value_size() as usize).next_multiple_of(8);
        Self::of_file(bytes, protection, libc::MAP_SHARED, map.fd().as_fd().as_raw_fd())
    }

    fn of_file(
        bytes: usize,
        protection: libc::c_int,
        flags: libc::c_int,
        file: libc::c_int,
    ) -> io::Result<Self> {
        // SAFETY: a new mapping, which the kernel places.
        let address = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, file, 0) };
        match NonNull::new(address) {
            Some(begin) if address != libc::MAP_FAILED => Ok(Self { address: begin.cast(), bytes }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// What stands so many bytes behind the begin; `None` outside of the mapping.
    fn read<T: Pod>(&self, offset: usize) -> Option<T> {
        let is_within = offset.is_multiple_of(align_of::<T>()) && offset + size_of::<T>() <= self.bytes;
        // SAFETY: the value is within the mapping, which lasts as long as `self` and is page-aligned; `Pod` types are valid for
        // all bytes. Whoever else writes them, a volatile read takes what it finds.
        is_within.then(|| unsafe { self.address.add(offset).cast::<T>().read_volatile() })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and nothing refers to it any more.
        unsafe { libc::munmap(self.address.as_ptr().cast(), self.bytes) };
    }
}

// SAFETY: the memory is only read, or changed by atomic operations, which any thread may do.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

#[cfg(test)]
impl Words {
    /// Memory of no map, with these words in it.
    pub(in crate::dataplane) fn of_test(words: &[u64]) -> Self {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let mapping = Mapping::of_file(size_of_val(words), libc::PROT_READ | libc::PROT_WRITE, flags, -1);
        let words_in_place = Self(mapping.unwrap());
        for (index, word) in words.iter().enumerate() {
            words_in_place.word(index as u32).unwrap().store(*word, SeqCst);
        }
        words_in_place
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_taken_once_and_only_as_what_it_is() {
        let words = Words::of_test(&[7, 0, 9]);
        assert!(!words.take(0, 8) && words.take(0, 7) && !words.take(0, 7));
        assert!(!words.take(1, 0), "there is nothing to take");
        assert_eq!([0, 1, 2, 3].map(|index| words.load(index)), [Some(0), Some(0), Some(9), None]);
        assert_eq!((words.read::<[u32; 2]>(2), words.read::<[u64; 2]>(2)), (Some([9, 0]), None));
    }
}
