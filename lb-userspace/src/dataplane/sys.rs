//! The `bpf(2)` calls that aya does not offer, and arrays that are mapped. All `unsafe` of the controller's data plane is here.

mod mapped;

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use aya::Pod;
use aya::maps::{MapData, RingBuf};
use aya_obj::generated::{
    BPF_EXIST, BPF_F_TEST_XDP_LIVE_FRAMES, bpf_attr, bpf_cmd, bpf_prog_info, bpf_prog_type,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

pub(super) use self::mapped::{Mapped, Words};

/// Where a walk over a hash map stands: the kernel's opaque token.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cursor(Option<u32>);

/// Entries that one call reads.
const BATCH: usize = 16_384;

/// Buffers for walking over a hash map, used again from call to call.
pub(super) struct Batch<K, V> {
    keys: Vec<MaybeUninit<K>>,
    values: Vec<MaybeUninit<V>>,
}

impl<K: Pod, V: Pod> Batch<K, V> {
    pub(super) fn new() -> Self {
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        keys.resize_with(BATCH, MaybeUninit::uninit);
        values.resize_with(BATCH, MaybeUninit::uninit);
        Self { keys, values }
    }

    /// Reads the next entries of a hash map; `None` when the walk has ended. An entry inserted or removed
    /// meanwhile may be seen or not; others are seen exactly once (BPF_MAP_LOOKUP_BATCH, kernel 5.6).
    pub(super) fn read_next(
        &mut self,
        map: BorrowedFd<'_>,
        cursor: &mut Cursor,
    ) -> io::Result<Option<impl Iterator<Item = (K, V)> + '_>> {
        let Cursor(token) = cursor;
        let mut next = 0_u32;
        // SAFETY: all-zero is a valid `bpf_attr`.
        let mut attr: bpf_attr = unsafe { std::mem::zeroed() };
        attr.batch.in_batch = token.as_ref().map_or(0, |token| std::ptr::from_ref(token) as u64);
        attr.batch.out_batch = std::ptr::from_mut(&mut next) as u64;
        attr.batch.keys = self.keys.as_mut_ptr() as u64;
        attr.batch.values = self.values.as_mut_ptr() as u64;
        attr.batch.count = BATCH as u32;
        attr.batch.map_fd = map.as_raw_fd() as u32;
        // SAFETY: the buffers hold `count` keys and values of the sizes that the map was checked to have when it
        // was opened; token and `next` are the four bytes that hash maps use.
        let result = unsafe { bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attr) };
        // SAFETY: the kernel writes `count` also when it fails; a `u32` is valid whatever it holds.
        let count = unsafe { attr.batch.count } as usize;
        let has_ended = match result {
            Ok(_) => false,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            Err(error) => return Err(error),
        };
        if has_ended && count == 0 {
            return Ok(None);
        }
        // After the last batch the next call must find nothing: this token is past every bucket.
        *token = Some(if has_ended { u32::MAX } else { next });
        let entries = self.keys.iter().zip(&self.values).take(count);
        // SAFETY: the kernel has filled the first `count` entries; `Pod` types are valid for all bytes.
        Ok(Some(entries.map(|(key, value)| unsafe { (key.assume_init(), value.assume_init()) })))
    }
}

/// The value under a key.
pub(super) fn lookup<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    value_by(bpf_cmd::BPF_MAP_LOOKUP_ELEM, map, key)
}

/// Removes a key from a hash map and gives the value it had (kernel 5.14).
pub(super) fn take<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    value_by(bpf_cmd::BPF_MAP_LOOKUP_AND_DELETE_ELEM, map, key)
}

fn value_by<K: Pod, V: Pod>(command: bpf_cmd, map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    let mut value = MaybeUninit::<V>::uninit();
    // SAFETY: all-zero is a valid `bpf_attr`.
    let mut attr: bpf_attr = unsafe { std::mem::zeroed() };
    attr.__bindgen_anon_2.map_fd = map.as_raw_fd() as u32;
    attr.__bindgen_anon_2.key = std::ptr::from_ref(key) as u64;
    attr.__bindgen_anon_2.__bindgen_anon_1.value = value.as_mut_ptr() as u64;
    // SAFETY: key and value have the sizes that the map was checked to have when it was opened.
    match unsafe { bpf(command, &mut attr) } {
        // SAFETY: the kernel has filled the value.
        Ok(_) => Ok(Some(unsafe { value.assume_init() })),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Replaces the value under a key; whether the key was there. A key that is not there stays away.
pub(super) fn replace<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K, value: &V) -> io::Result<bool> {
    // SAFETY: all-zero is a valid `bpf_attr`.
    let mut attr: bpf_attr = unsafe { std::mem::zeroed() };
    attr.__bindgen_anon_2.map_fd = map.as_raw_fd() as u32;
    attr.__bindgen_anon_2.key = std::ptr::from_ref(key) as u64;
    attr.__bindgen_anon_2.__bindgen_anon_1.value = std::ptr::from_ref(value) as u64;
    attr.__bindgen_anon_2.flags = u64::from(BPF_EXIST);
    // SAFETY: key and value have the sizes that the map was checked to have when it was opened; the kernel only reads.
    match unsafe { bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr) } {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Writes values under keys, a value for each (BPF_MAP_UPDATE_BATCH, kernel 5.6; for a map of maps, whose values are
/// descriptors of maps, kernel 5.19). Returns when no program sees an old map any more.
pub(super) fn update_all<K: Pod, V: Pod>(map: BorrowedFd<'_>, keys: &[K], values: &[V]) -> io::Result<()> {
    // SAFETY: all-zero is a valid `bpf_attr`.
    let mut attr: bpf_attr = unsafe { std::mem::zeroed() };
    attr.batch.keys = keys.as_ptr() as u64;
    attr.batch.values = values.as_ptr() as u64;
    attr.batch.count = keys.len().min(values.len()) as u32;
    attr.batch.map_fd = map.as_raw_fd() as u32;
    // SAFETY: there are `count` keys and values of the sizes that the map was checked to have when it was opened; the
    // kernel only reads them.
    unsafe { bpf(bpf_cmd::BPF_MAP_UPDATE_BATCH, &mut attr) }.map(drop)
}

/// Removes a key; whether it was there.
pub(super) fn delete<K: Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<bool> {
    // SAFETY: all-zero is a valid `bpf_attr`.
    let mut attr: bpf_attr = unsafe { std::mem::zeroed() };
    attr.__bindgen_anon_2.map_fd = map.as_raw_fd() as u32;
    attr.__bindgen_anon_2.key = std::ptr::from_ref(key) as u64;
    // SAFETY: the key has the size that the map was checked to have when it was opened.
    match unsafe { bpf(bpf_cmd::BPF_MAP_DELETE_ELEM, &mut attr) } {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The verdict of a program on a frame of zeros (BPF_PROG_TEST_RUN, kernel 4.12).
pub(super) fn run(program: BorrowedFd<'_>) -> io::Result<u32> {
    run_times(program, 1)
}

/// The same, so many times; the last verdict.
pub(super) fn run_times(program: BorrowedFd<'_>, times: u32) -> io::Result<u32> {
    let frame = [0_u8; 64];
    // SAFETY: all-zero is a valid `bpf_attr`.
    let mut attr: bpf_attr = unsafe { std::mem::zeroed() };
    attr.test.prog_fd = program.as_raw_fd() as u32;
    attr.test.data_in = frame.as_ptr() as u64;
    attr.test.data_size_in = frame.len() as u32;
    attr.test.repeat = times;
    // SAFETY: the kernel reads `data_size_in` bytes of the frame and writes nothing back but `attr`.
    unsafe { bpf(bpf_cmd::BPF_PROG_TEST_RUN, &mut attr) }?;
    // SAFETY: the kernel has filled the result; a `u32` is valid whatever it holds.
    Ok(unsafe { attr.test.retval })
}

/// A program whose verdict is the kernel's tick counter (jiffies), its low 32 bits: the program `clock` of the object,
/// for a process that does not load the object (bpf_jiffies64: kernel 5.6).
pub(super) fn load_clock() -> io::Result<OwnedFd> {
    const CALL: [u8; 4] = [0x85, 0, 0, 0];
    const EXIT: [u8; 4] = [0x95, 0, 0, 0];
    const BPF_FUNC_JIFFIES64: u32 = 118;
    // `struct bpf_insn`: code, registers and offset, then the immediate value.
    let instructions = [[CALL, BPF_FUNC_JIFFIES64.to_ne_bytes()], [EXIT, [0; 4]]];
    // SAFETY: all-zero is a valid `bpf_attr`.
    let mut attr: bpf_attr = unsafe { std::mem::zeroed() };
    attr.__bindgen_anon_3.prog_type = bpf_prog_type::BPF_PROG_TYPE_XDP as u32;
    attr.__bindgen_anon_3.insns = instructions.as_ptr() as u64;
    attr.__bindgen_anon_3.insn_cnt = instructions.len() as u32;
    attr.__bindgen_anon_3.license = c"Dual MIT/GPL".as_ptr() as u64;
    // SAFETY: the kernel reads `insn_cnt` instructions and the licence, and writes nothing.
    let fd = unsafe { bpf(bpf_cmd::BPF_PROG_LOAD, &mut attr) }?;
    // SAFETY: BPF_PROG_LOAD returns a new descriptor, which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether the kernel has compiled a program to machine code (BPF_OBJ_GET_INFO_BY_FD, kernel 4.13).
pub(super) fn is_compiled(program: BorrowedFd<'_>) -> io::Result<bool> {
    // SAFETY: all-zero is a valid `bpf_prog_info`: no program, no arrays.
    let mut info: bpf_prog_info = unsafe { std::mem::zeroed() };
    // SAFETY: all-zero is a valid `bpf_attr`.
    let mut attr: bpf_attr = unsafe { std::mem::zeroed() };
    attr.info.bpf_fd = program.as_raw_fd() as u32;
    attr.info.info = std::ptr::from_mut(&mut info) as u64;
    attr.info.info_len = size_of::<bpf_prog_info>() as u32;
    // SAFETY: the kernel fills at most `info_len` bytes of `info`, which asks for no array.
    unsafe { bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok(info.jited_prog_len > 0)
}

/// Runs an XDP program on a frame as if it had come in through the interface that the context (`struct xdp_md`) names, and
/// does with the frame what the program says (BPF_F_TEST_XDP_LIVE_FRAMES, kernel 5.18).
pub(super) fn inject(program: BorrowedFd<'_>, frame: &[u8], context: &[u8]) -> io::Result<()> {
    // SAFETY: all-zero is a valid `bpf_attr`.
    let mut attr: bpf_attr = unsafe { std::mem::zeroed() };
    attr.test.prog_fd = program.as_raw_fd() as u32;
    attr.test.data_in = frame.as_ptr() as u64;
    attr.test.data_size_in = frame.len() as u32;
    attr.test.ctx_in = context.as_ptr() as u64;
    attr.test.ctx_size_in = context.len() as u32;
    attr.test.repeat = 1;
    attr.test.flags = BPF_F_TEST_XDP_LIVE_FRAMES;
    attr.test.batch_size = 1;
    // SAFETY: the kernel reads as many bytes of frame and context as their sizes say, and writes back nothing but
    // `attr`.
    unsafe { bpf(bpf_cmd::BPF_PROG_TEST_RUN, &mut attr) }.map(drop)
}

/// Runs an XDP program on a frame that came in through the interface that the context (`struct xdp_md`) names; what the
/// program makes of the frame goes to `out`, as far as that reaches (BPF_PROG_TEST_RUN with a context, kernel 5.15).
pub(super) fn test_run(
    program: BorrowedFd<'_>,
    frame: &[u8],
    context: &[u8],
    out: &mut [u8],
) -> io::Result<u32> {
    // SAFETY: all-zero is a valid `bpf_attr`.
    let mut attr: bpf_attr = unsafe { std::mem::zeroed() };
    attr.test.prog_fd = program.as_raw_fd() as u32;
    attr.test.data_in = frame.as_ptr() as u64;
    attr.test.data_size_in = frame.len() as u32;
    attr.test.data_out = out.as_mut_ptr() as u64;
    attr.test.data_size_out = out.len() as u32;
    attr.test.ctx_in = context.as_ptr() as u64;
    attr.test.ctx_size_in = context.len() as u32;
    // SAFETY: the kernel reads as many bytes of frame and context as their sizes say, and writes at most as many to `out`.
    unsafe { bpf(bpf_cmd::BPF_PROG_TEST_RUN, &mut attr) }?;
    // SAFETY: the kernel has filled the result; a `u32` is valid whatever it holds.
    Ok(unsafe { attr.test.retval })
}

/// Waits for a ring buffer to have something to read, within a runtime.
pub(super) fn watch(ring: RingBuf<MapData>) -> io::Result<AsyncFd<RingBuf<MapData>>> {
    // SAFETY: a ring buffer owns its descriptor, always the same one, and closes it when it is dropped.
    Ok(unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }?)
}

/// The value that bytes of the kernel hold; `None` if there are too few of them.
pub(super) fn record<T: Pod>(bytes: &[u8]) -> Option<T> {
    if bytes.len() < size_of::<T>() {
        return None;
    }
    // SAFETY: there are enough bytes, `Pod` types are valid for all of them, and the read asks for no alignment.
    Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

/// What the command returns: a descriptor, or 0.
///
/// # Safety
///
/// Every address in `attr` must be valid for what `command` does with it.
unsafe fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<i32> {
    // SAFETY: the caller vouches for the addresses; `attr` is a whole `bpf_attr`.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command as libc::c_long, attr, size_of::<bpf_attr>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}
