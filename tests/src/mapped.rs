//! Arrays that user space can map (BPF_F_MMAPABLE, kernel 5.5): their values are read and written without a system call for each.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::ptr::NonNull;

use anyhow::{Context as _, Result, ensure};
use aya::Pod;
use aya::maps::MapData;

/// Bytes of a word.
const WORD: usize = size_of::<u64>();

/// The values of an array. Programs may write them at any time; who writes here has to know that they do not.
#[derive(Debug)]
pub struct MappedArray {
    words: NonNull<u64>,
    values: u32,
    words_each: u32,
}

impl MappedArray {
    /// Maps an array whose values consist of whole words of 64 bits.
    ///
    /// # Errors
    ///
    /// If it is made of something else, or may not be mapped.
    pub fn new(map: &MapData) -> Result<Self> {
        let info = map.info().context("cannot ask about a map")?;
        let (values, bytes) = (info.max_entries(), info.value_size());
        ensure!(bytes.is_multiple_of(WORD as u32), "values of {bytes} bytes are no whole words");
        // SAFETY: a new mapping, which the kernel places, of the file that the descriptor stands for.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                values as usize * bytes as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.fd().as_fd().as_raw_fd(),
                0,
            )
        };
        match NonNull::new(address.cast()) {
            Some(words) if address != libc::MAP_FAILED => {
                Ok(Self { words, values, words_each: bytes / WORD as u32 })
            }
            _ => Err(io::Error::last_os_error()).context("cannot map an array"),
        }
    }

    /// How many values there are.
    pub const fn values(&self) -> u32 {
        self.values
    }

    /// All of them, in bytes.
    pub const fn bytes(&self) -> usize {
        self.values as usize * self.words_each as usize * WORD
    }

    /// A word of a value.
    ///
    /// # Panics
    ///
    /// If there is no such word; so do all others here.
    pub fn word(&self, value: u32, word: u32) -> u64 {
        // SAFETY: `at` gives a word within the mapping, which lasts as long as `self`; all bit patterns are valid.
        unsafe { self.at(value, word).read_volatile() }
    }

    /// Writes a word of a value.
    pub fn set_word(&mut self, value: u32, word: u32, content: u64) {
        // SAFETY: as in `word`.
        unsafe { self.at(value, word).write_volatile(content) };
    }

    /// A whole value.
    pub fn value<T: Pod>(&self, value: u32) -> T {
        // SAFETY: `of_value` gives as many bytes of the mapping as a `T` has, aligned for it; `Pod` types are valid for all bytes.
        unsafe { self.of_value::<T>(value).read_volatile() }
    }

    /// Writes a whole value.
    pub fn set_value<T: Pod>(&mut self, value: u32, content: T) {
        // SAFETY: as in `value`.
        unsafe { self.of_value::<T>(value).write_volatile(content) };
    }

    /// Makes all values zero.
    pub fn clear(&mut self) {
        // SAFETY: exactly the mapping, which is this value's own; zero is as good as any bit pattern.
        unsafe { self.words.as_ptr().cast::<u8>().write_bytes(0, self.bytes()) };
    }

    fn at(&self, value: u32, word: u32) -> *mut u64 {
        assert!(value < self.values && word < self.words_each, "word {word} of value {value}: {self:?}");
        self.words.as_ptr().wrapping_add(value as usize * self.words_each as usize + word as usize)
    }

    fn of_value<T>(&self, value: u32) -> *mut T {
        let is_right = size_of::<T>() == self.words_each as usize * WORD && align_of::<T>() <= WORD;
        assert!(is_right, "another type than the values of {self:?}");
        self.at(value, 0).cast()
    }
}

impl Drop for MappedArray {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and nothing refers to it any more.
        unsafe { libc::munmap(self.words.as_ptr().cast(), self.bytes()) };
    }
}

// SAFETY: a mapping belongs to the process, whichever of its threads uses it.
unsafe impl Send for MappedArray {}
